"""What the tab "Search" is made of, and where it stands."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from owl_swin.demo.asking import FLOOR
from owl_swin.demo.filling import Archive, stats_text
from owl_swin.demo.photos import samples
from owl_swin.demo.pieces import stage, strip, upload_button
from owl_swin.demo.results import NO_RESULT, NO_SOURCE
from owl_swin.demo.settings import slider


@dataclass(frozen=True, slots=True)
class Photos:
    """Where photos come from, and how far they are."""

    stats: gr.Markdown
    files: gr.UploadButton
    folder_files: gr.UploadButton
    folder: gr.Textbox | None
    index: gr.Button | None
    tried: gr.Button | None
    attached: gr.Button | None
    stop: gr.Button
    progress: gr.HTML


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to look for: a name, or a box in a photo."""

    text: gr.Textbox
    find: gr.Button
    source: gr.HTML
    upload: gr.UploadButton
    like: gr.Button
    threshold: gr.Slider
    filters: list[Any]


@dataclass(frozen=True, slots=True)
class Results:
    """The photo of one result, and all of them."""

    photo: gr.HTML
    like: gr.Button
    back: gr.Button
    matches: gr.HTML
    earlier: gr.Button
    page: gr.Markdown
    later: gr.Button


def layout_photos(attached: Archive | None, folders: bool) -> Photos:
    """The upper half of the left column."""
    gr.Markdown("## 1 · Photos to search in", elem_classes="owl-step")
    stats = gr.Markdown(stats_text(attached), elem_id="search-stats")
    small: dict[str, Any] = {"size": "md", "min_width": 110}
    with gr.Row(elem_classes="owl-buttons"):
        many = upload_button("Add photos", file_types=["image"], file_count="multiple", elem_id="search-files", **small)
        folder_files = upload_button("Add a folder", file_count="directory", elem_id="search-folder-upload", **small)
    folder = index = tried = back = None
    if folders:
        with gr.Row(elem_classes="owl-buttons"):
            folder = gr.Textbox(
                "",
                label="A folder of this machine",
                placeholder="/home/me/photos",
                elem_id="search-folder",
                scale=3,
            )
            index = gr.Button("Index it", size="md", elem_id="search-index", scale=1, min_width=90)
    if attached is not None:
        back = gr.Button("Search the server’s archive", size="md", elem_id="search-attached")
    elif samples():
        tried = gr.Button("Try it with six sample photos", size="md", elem_id="search-try")
    progress = gr.HTML("", elem_id="search-progress", apply_default_css=False)
    stop = gr.Button("Stop; keep what is done", size="md", elem_id="search-stop", visible=False)
    return Photos(stats, many, folder_files, folder, index, tried, back, stop, progress)


def layout_wanted() -> Wanted:
    """The lower half of the left column."""
    gr.Markdown("## 2 · What to look for", elem_classes="owl-step")
    text = gr.Textbox(
        "",
        label="A name",
        placeholder="a red mug",
        elem_id="search-text",
        info="Enter searches.",
        lines=1,
        max_lines=1,
    )
    find_ = gr.Button("Search", variant="primary", elem_id="search-find")
    with gr.Accordion("Or show an example", open=False):
        source = stage("draw", upload="search-source-upload", empty=NO_SOURCE, elem_id="search-source")
        upload = upload_button(
            "Choose a photo of the thing", file_types=["image"], elem_id="search-source-upload", size="md"
        )
        like = gr.Button("Search for what is in the box", size="md", elem_id="search-like")
    threshold = slider(0, 1, 0.1, step=FLOOR, label="Threshold", elem_id="search-threshold")
    return Wanted(text, find_, source, upload, like, threshold, layout_filters())


def layout_filters() -> list[Any]:
    """The filters of `owl-swin search`, in the order of ``Filters``, folded away."""
    with gr.Accordion("Filters", open=False):
        return [
            slider(1, 20, 3, step=1, label="Most results of one photo", elem_id="search-per-photo"),
            gr.Textbox("", label="Only these paths", placeholder="2024/*.jpg", elem_id="search-paths"),
            gr.Textbox("", label="Only files newer than", info="A date, or an age.", placeholder="2024-05-31 or 7d"),
            gr.Textbox("", label="Only files older than", info="A date, or an age.", placeholder="2024-05-31 or 1y"),
            gr.Number(None, label="Shortest side of a box, in pixels", minimum=0, elem_id="search-min-side"),
            gr.Checkbox(False, label="Score every region", info="Slower, and misses nothing in a large archive."),
        ]


def layout_results() -> Results:
    """The right column."""
    gr.Markdown("## 3 · Where it is\nThe best comes first; click another to see its photo.", elem_classes="owl-step")
    photo = stage("look", empty=NO_RESULT, elem_id="search-photo")
    with gr.Row(elem_classes="owl-buttons"):
        like = gr.Button("More like this", size="md", elem_id="search-more", visible=False, min_width=120)
        back = gr.Button("‹ Back to the search before", size="md", elem_id="search-back", visible=False, min_width=120)
    matches = strip(grid=True, elem_id="search-results")
    with gr.Row(elem_classes="owl-buttons owl-pages"):
        earlier = gr.Button("‹ Page before", size="md", elem_id="search-earlier", visible=False, min_width=110)
        page = gr.Markdown("", elem_id="search-page")
        later = gr.Button("Next page ›", size="md", elem_id="search-later", visible=False, min_width=110)
    return Results(photo, like, back, matches, earlier, page, later)
