"""What the tab "Show it" is made of, and where it stands."""

from dataclasses import dataclass

import gradio as gr

from owl_swin.demo.camera import camera
from owl_swin.demo.models import Models
from owl_swin.demo.photos import sample_items, samples
from owl_swin.demo.pieces import HOW, files, stage, strip, upload_button
from owl_swin.demo.settings import Detail, Outlines, more_settings, outlines_switch, slider, threshold_slider

BOXES, HEAT = "Boxes", "Where it fits"
# Lower than for names: the scores of examples are lower, and calibrated as those are.
SHOWN_THRESHOLD = 0.1
NO_SOURCE = ("Drop a photo of the thing", HOW)
NO_TARGET = ("Drop the photo to look in", HOW)
EMPTY = (
    "No examples yet. Draw a box around the thing above and add it; several examples, and some of what it is not, make "
    "the answer better."
)


@dataclass(frozen=True, slots=True)
class Source:
    """The left column: the photo to draw on, what was shown so far, and words for it."""

    photo: gr.HTML
    add: gr.Button
    add_not: gr.Button
    examples: gr.HTML
    upload: gr.UploadButton
    fields: list[gr.Number]
    words: gr.Textbox
    weight: gr.Slider
    samples: gr.HTML | None


@dataclass(frozen=True, slots=True)
class Target:
    """The right column: the photo to look in, and how."""

    photo: gr.HTML
    view: gr.Radio
    threshold: gr.Slider
    upload: gr.UploadButton
    same: gr.Button
    tried: gr.Button | None
    outlines: Outlines
    detail: Detail
    downloads: gr.HTML


def layout_source() -> Source:
    """The left column."""
    with gr.Column(scale=1, min_width=300):
        gr.Markdown("## 1 · Show the thing\nDrag a box around it, or click two corners.", elem_classes="owl-step")
        photo = stage("draw", upload="show-source-upload", empty=NO_SOURCE, elem_id="show-source")
        with gr.Row(elem_classes="owl-buttons"):
            add = gr.Button("Add as example", variant="primary", size="md", elem_id="show-add", min_width=120)
            add_not = gr.Button("Add as “not this”", size="md", elem_id="show-add-not", min_width=120)
        examples = strip(empty=EMPTY, elem_id="show-examples")
        upload = upload_button(
            "Choose a photo of the thing", file_types=["image"], elem_id="show-source-upload", size="md"
        )
        camera("show-source-upload", elem_id="show-source-camera")
        with gr.Accordion("Type the box, or add words", open=False):
            with gr.Row(elem_classes="owl-numbers"):
                fields = [
                    gr.Number(label=label, minimum=0, precision=1, min_width=64, elem_id=f"show-{label}")
                    for label in ("xmin", "ymin", "xmax", "ymax")
                ]
            words = gr.Textbox(
                "",
                label="Words for it",
                info="Optional: what it is called, used together with the examples.",
                placeholder="a tabby cat",
                elem_id="show-words",
            )
            weight = slider(0, 1, 0.5, step=0.05, label="Examples against words", info="1: examples alone.")
        samples_ = None
        if samples():
            gr.Markdown("Or draw on one of these", elem_classes="owl-small")
            samples_ = strip(items=sample_items(), elem_id="show-samples", elem_classes="owl-samples")
    return Source(photo, add, add_not, examples, upload, fields, words, weight, samples_)


def layout_target(models: Models) -> Target:
    """The right column."""
    with gr.Column(scale=1, min_width=300):
        gr.Markdown("## 2 · See where else it is\nIn any other photo, or in the same one.", elem_classes="owl-step")
        photo = stage(
            "look", upload="show-target-upload", empty=NO_TARGET, table=True, edits=True, elem_id="show-target"
        )
        view = gr.Radio(
            [BOXES, HEAT],
            value=BOXES,
            label="View",
            info="Where it fits: how like your examples each patch is. Point at a box to see the patch it is from.",
            elem_id="show-view",
        )
        threshold = threshold_slider("show-threshold", value=SHOWN_THRESHOLD)
        outlines = outlines_switch(models.detector(), "show-outlines")
        with gr.Row(elem_classes="owl-buttons"):
            upload = upload_button(
                "Choose a photo to look in", file_types=["image"], elem_id="show-target-upload", size="md"
            )
            same = gr.Button("Look in the same photo", size="md", min_width=120)
        camera("show-target-upload", elem_id="show-target-camera")
        tried = None
        if samples():
            tried = gr.Button("Try it: find the cat among six photos", size="md", elem_id="show-try")
        detail = more_settings(models.sizes())
        downloads_ = files(elem_id="show-files")
    return Target(photo, view, threshold, upload, same, tried, outlines, detail, downloads_)
