"""The demo: tabs over one detector. `python demo/app.py` opens it on this machine; `owl-swin serve` mounts it."""

import argparse
import html
import os
import signal
import sys
import tempfile
from pathlib import Path

# Read when Gradio is imported: nothing is reported, nothing is asked of other machines.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr

from owl_swin import Detector, RegionIndex
from owl_swin.demo import inside, mapping, models, naming, searching, showing, watching
from owl_swin.demo.models import Models
from owl_swin.demo.pieces import STYLE

# How often Gradio's copies of uploads are looked through, and how old they grow, in seconds.
KEPT_S = (3600, 24 * 3600)

# Visitors whose photos, embeddings and attention are kept at a time, tens of megabytes each: who was away the longest
# is forgotten first.
SESSIONS = 64

OWL = """<svg viewBox="0 0 48 48" aria-hidden="true"><path d="M8 6l8 6a22 22 0 0 1 16 0l8-6v20a16 16 0 0 1-32 0z"/>
<g class="eyes"><circle cx="17" cy="23" r="6.5"/><circle cx="31" cy="23" r="6.5"/></g>
<g class="pupils"><circle cx="17" cy="23" r="2.8"/><circle cx="31" cy="23" r="2.8"/></g>
<path class="beak" d="M24 27l3 4-3 4-3-4z"/></svg>"""

HEADER = """<header class="owl-header">{owl}
<div><h1>owl_swin</h1><p>Find anything that you can name or show.</p></div>
<p class="owl-model">{model}</p>
<button type="button" class="owl-theme" aria-label="Switch between light and dark">◐</button></header>"""

# The head of Gradio's notices is a button with another inside, which no screen reader can tell apart.
SWITCH = """
element.querySelector('.owl-theme').addEventListener('click', () => document.body.classList.toggle('dark'));
new MutationObserver(() => document.querySelectorAll('.toast-header[role]').forEach((one) => {
  one.removeAttribute('role');
  one.removeAttribute('tabindex');
})).observe(document.body, { childList: true, subtree: true });
"""


def own_folder() -> tempfile.TemporaryDirectory:
    """A folder of this process alone for uploads, which Gradio then uses, so that what is oldest there may be deleted.

    It lies where GRADIO_TEMP_DIR says, and ends with the process.
    """
    parent = os.environ.get("GRADIO_TEMP_DIR") or None
    if parent is not None:
        Path(parent).mkdir(parents=True, exist_ok=True)
    folder = tempfile.TemporaryDirectory(prefix="owl_swin-demo-", dir=parent, ignore_cleanup_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder.name
    return folder


UPLOADS = own_folder()


def build_demo(
    detector: Detector, *, index: RegionIndex | None = None, folders: bool = False, choice: Models | None = None
) -> gr.Blocks:
    """The pages over a detector, and over an open archive if there is one.

    ``folders`` lets visitors name folders of this machine to be indexed: only where all of them may read its files.
    ``choice`` are the models that they may choose among, the first of which is the detector; without it, it is alone.
    """
    choice = choice or Models(detector)
    with gr.Blocks(title="owl_swin", analytics_enabled=False, delete_cache=KEPT_S, fill_width=True) as blocks:
        alone = len(choice.labels) < 2
        gr.HTML(
            HEADER.format(owl=OWL, model=html.escape(models.about(detector)) if alone else ""),
            js_on_load=SWITCH,
            head=f"<style>{STYLE}</style>",
            apply_default_css=False,
            elem_id="owl-top",
        )
        chosen = models.build(choice)
        with gr.Tabs(elem_id="owl-tabs"):
            with gr.Tab("Name it"):
                follow = [naming.build(chosen)]
            with gr.Tab("Show it"):
                follow.append(showing.build(chosen))
            if detector.spec.has_masks:
                with gr.Tab("Map it"):
                    if not alone:
                        gr.Markdown(f"Maps are made with {choice.labels[0]}.", elem_classes="owl-small")
                    mapping.build(choice)
            with gr.Tab("Video"):
                follow.append(watching.build(chosen))
            with gr.Tab("Search"):
                if not alone:
                    gr.Markdown(f"Archives are made and searched with {choice.labels[0]}.", elem_classes="owl-small")
                searching.build(detector, index, folders=folders)
            if detector.has_attention or not alone:
                with gr.Tab("Inside Swin"):
                    follow.append(inside.build(chosen))
        models.wire(chosen, follow)
    blocks.state_session_capacity = SESSIONS
    return blocks


def end(*_: object) -> None:
    """Ends the program as it would by itself, which takes the uploads with it; to be told so again changes nothing."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main() -> None:
    """Opens the demo on this machine alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model",
        action="append",
        metavar="MODEL",
        help="a name that ships, a .safetensors file, a folder, or a name of the hub; several, or a folder of models, "
        "can be chosen among, as can nano and the OWL family by name",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps, or auto")
    parser.add_argument("--index", help="an archive that `owl-swin index` made, for the tab Search")
    parser.add_argument("--port", type=int, default=7860)
    arguments = parser.parse_args()
    before = signal.signal(signal.SIGTERM, end)
    try:
        serve(arguments)
    finally:
        signal.signal(signal.SIGTERM, before)


def serve(arguments: argparse.Namespace) -> None:
    """Answers until it is ended."""
    sources = models.listed([*(arguments.model or ["nano"]), "nano", *models.PUBLISHED])

    def load(source: str) -> Detector:
        return Detector.from_pretrained(source, device=arguments.device)

    detector = load(sources[0])
    index = RegionIndex.open(arguments.index, detector) if arguments.index else None
    blocks = build_demo(detector, index=index, folders=True, choice=Models(detector, sources, load, served=False))
    blocks.launch(
        server_name="127.0.0.1",
        server_port=arguments.port,
        footer_links=[],
        run_history=False,
        state_session_capacity=SESSIONS,  # launch() would set it back to its own
    )


if __name__ == "__main__":
    main()
