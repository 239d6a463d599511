"""A picture, or a short video, from the camera of the browser."""

from typing import Any

import gradio as gr

from owl_swin.demo.pieces import HEAD


def camera(upload: str, *, record: bool = False, **options: Any) -> gr.HTML:
    """A button that shows what the camera sees and takes a picture, or with ``record`` a short video.

    It is given to the upload button with the id ``upload``, as if it had been chosen there. Browsers that have no
    camera for this page, as those that are not asked by https, show nothing.
    """
    return gr.HTML(
        value="",
        html_template='<div class="owl-camera"></div>',
        js_on_load="owlCamera(element, props);",
        head=HEAD,
        apply_default_css=False,
        upload=upload,
        record=record,
        **options,
    )
