"""The Gradio pages; they import only the public face of owl_swin."""
