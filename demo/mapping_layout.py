"""What the tab "Map it" is made of, and where it stands."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from owl_swin.demo.photos import sample_items, samples
from owl_swin.demo.pieces import HEAD, HOW, files, no_photo, stage, strip, upload_button
from owl_swin.demo.settings import threshold_slider

NO_PHOTO = ("Drop a photo here", HOW)
NO_SOURCE = ("Drop a photo of the thing", HOW)
PLACEHOLDER = "sky, grass, water, road, wall, floor, a person"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a thing is shown: the photo to draw on, the name of what is in the box, and the examples so far."""

    photo: gr.HTML
    name: gr.Textbox
    add: gr.Button
    add_not: gr.Button
    upload: gr.UploadButton
    examples: gr.HTML


@dataclass(frozen=True, slots=True)
class Page:
    """What the tab is made of."""

    state: gr.State
    photo: gr.HTML
    downloads: gr.HTML
    names: gr.Textbox
    find: gr.Button
    threshold: gr.Slider
    upload: gr.UploadButton
    source: Source
    samples: gr.HTML | None


def map_stage(upload: str, **options: Any) -> gr.HTML:
    """A place for one photo under its map; the mouse over an area says what it is."""
    return gr.HTML(
        value=no_photo(*NO_PHOTO),
        html_template='<div class="owl-stage"></div>',
        js_on_load='owlMap(element, props, trigger, watch); // "zoomed"',
        head=HEAD,
        apply_default_css=False,
        mode="look",
        part={},
        upload=upload,
        **options,
    )


def layout(state: gr.State) -> Page:
    """The pieces, where they stand."""
    with gr.Row(elem_classes="owl-columns"):
        with gr.Column(scale=3, min_width=300):
            photo = map_stage("map-upload", elem_id="map-stage")
            downloads = files(elem_id="map-files")
        with gr.Column(scale=2, min_width=280):
            names = gr.Textbox(
                "",
                label="What may be seen",
                info="Commas part them. Each place of the photo shows one of these, or nothing.",
                placeholder=PLACEHOLDER,
                lines=1,
                max_lines=1,
                elem_id="map-text",
            )
            find = gr.Button("Map the photo", variant="primary", elem_id="map-find")
            threshold = threshold_slider("map-threshold", info="Lowest score; below it a place shows nothing.")
            upload = upload_button("Choose a photo", file_types=["image"], elem_id="map-upload", size="md")
            source = layout_source()
            samples_ = None
            if samples():
                gr.Markdown("Or map one of these", elem_classes="owl-small")
                samples_ = strip(items=sample_items(), elem_id="map-samples", elem_classes="owl-samples")
    return Page(state, photo, downloads, names, find, threshold, upload, source, samples_)


def layout_source() -> Source:
    """What is shown in place of a name, or beside it, folded away but for the examples that there are."""
    examples = strip(elem_id="map-examples")
    with gr.Accordion("Show it where words do not say it", open=False):
        gr.Markdown("Drag a box around the thing, or click two corners.", elem_classes="owl-small")
        photo = stage("draw", upload="map-source-upload", empty=NO_SOURCE, elem_id="map-source")
        name = gr.Textbox(
            "",
            label="Name of what is in the box",
            info="One of those above, which the example then explains, or a new one.",
            placeholder="this thing",
            max_lines=1,
            elem_id="map-name",
        )
        with gr.Row(elem_classes="owl-buttons"):
            add = gr.Button("Add as example", variant="primary", size="md", elem_id="map-add", min_width=120)
            add_not = gr.Button("Add as “not this”", size="md", elem_id="map-add-not", min_width=120)
        upload = upload_button("Draw on another photo", file_types=["image"], elem_id="map-source-upload", size="md")
    return Source(photo, name, add, add_not, upload, examples)
