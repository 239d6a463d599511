"""What the tab "Name it" is made of, and where it stands."""

from dataclasses import dataclass

import gradio as gr

from owl_swin.demo.batching import Batch, batch_strip, batch_zips
from owl_swin.demo.camera import camera
from owl_swin.demo.models import Models
from owl_swin.demo.photos import sample_items, samples
from owl_swin.demo.pieces import chips_piece, files, stage, strip, upload_button
from owl_swin.demo.settings import Detail, Outlines, more_settings, outlines_switch, threshold_slider

HELP = "Enter adds a name, commas part several. No name at all finds anything that looks like a thing."


@dataclass(frozen=True, slots=True)
class Page:
    """What the tab is made of."""

    state: gr.State
    batch: Batch
    photo: gr.HTML
    downloads: gr.HTML
    upload: gr.UploadButton
    names: gr.Textbox
    find: gr.Button
    chips: gr.HTML
    load: gr.UploadButton
    threshold: gr.Slider
    outlines: Outlines
    detail: Detail
    samples: gr.HTML | None


def layout(state: gr.State, models: Models) -> Page:
    """The pieces, where they stand."""
    with gr.Row(elem_classes="owl-columns"):
        with gr.Column(scale=3, min_width=300):
            several, add = batch_strip()
            photo = stage("look", upload="name-upload", table=True, likes=True, edits=True, elem_id="name-stage")
            downloads_ = files(elem_id="name-files")
            batch = Batch(several, add, batch_zips(), gr.State(None))
        with gr.Column(scale=2, min_width=280):
            upload = upload_button("Choose photos", file_types=["image"], file_count="multiple", elem_id="name-upload")
            camera("name-upload", elem_id="name-camera")
            names = gr.Textbox(
                "",
                label="What to find",
                info=HELP,
                placeholder="a person, a red mug, a dog",
                lines=1,
                max_lines=1,
                elem_id="name-text",
            )
            find_ = gr.Button("Find", variant="primary", elem_id="name-find")
            chips_ = chips_piece(elem_id="name-chips")
            threshold = threshold_slider("name-threshold", info="Lowest score that is shown.")
            outlines = outlines_switch(models.detector(), "name-outlines")
            detail = more_settings(models.sizes(), explained=True)
            load = upload_button("Load a query", elem_id="name-load", size="md")
            samples_ = None
            if samples():
                gr.Markdown("Or try one of these", elem_classes="owl-small")
                samples_ = strip(items=sample_items(), elem_id="name-samples", elem_classes="owl-samples")
    asking = upload, names, find_, chips_, load, threshold, outlines, detail, samples_
    return Page(state, batch, photo, downloads_, *asking)
