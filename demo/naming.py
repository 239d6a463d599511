"""Name it: words in, boxes out."""

import json
import re
from dataclasses import replace

import gradio as gr

from owl_swin import Detections, Detector, QueryError, to_coco, to_label_studio, to_record
from owl_swin.demo.asking import FLOOR, Asked, answer, note_of_nothing, scales
from owl_swin.demo.photos import Photo, sample_items, samples, take_photo
from owl_swin.demo.pieces import files, no_photo, rows, stage, stage_value, strip, told

# One visitor must not keep the model from all others.
MOST_NAMES = 100
INSTEAD = "use a plainer word, or show the thing in “Show it”"
HELP = "Separate names with commas or lines; leave it empty to find anything that looks like a thing."


def split_names(text: str) -> list[str]:
    """The names in a text, between commas and line ends, each once; more than MOST_NAMES raise QueryError."""
    names = list(dict.fromkeys(name.strip() for name in re.split(r"[,;\n]", text) if name.strip()))
    if len(names) > MOST_NAMES:
        raise QueryError(f"at most {MOST_NAMES} names at once, got {len(names)}; `owl-swin detect` takes any number")
    return names


def ask(detector: Detector, asked: Asked, text: str) -> Asked:
    """The question with its photo and names encoded; a photo that was encoded already is not looked at again."""
    if asked.photo is None:
        return asked
    names = split_names(text)
    encoded = asked.encoded or detector.encode_image(asked.photo.open())
    return replace(asked, encoded=encoded, queries=detector.encode_queries(names) if names else None, done=True)


def show(detector: Detector, asked: Asked, threshold: float, overlap: float) -> tuple[dict, dict]:
    """What the stage and the downloads hold for an answer."""
    found = answer(detector, asked, threshold, overlap)
    if asked.photo is None or found is None:
        return stage_value(asked.photo), {"files": []}
    note = None if len(found) else note_of_nothing(detector, asked, threshold, instead=INSTEAD)
    return stage_value(asked.photo, boxes=rows(found), note=note), {"files": downloads(asked.photo, found)}


def downloads(photo: Photo, found: Detections) -> list[dict[str, str]]:
    """The answer as files for other programs."""
    stem = photo.name.rsplit(".", 1)[0]
    forms = {
        "JSON": ("json", to_record(photo.name, found)),
        "COCO": ("coco.json", to_coco([photo.name], [found])),
        "Label Studio": ("label-studio.json", to_label_studio([photo.name], [found])),
    }
    return [
        {"label": label, "name": f"{stem}.{ending}", "text": json.dumps(content, indent=1)}
        for label, (ending, content) in forms.items()
    ]


def build(detector: Detector) -> None:
    """The tab."""
    sizes = scales(detector)
    normal = next(iter(sizes))
    state = gr.State(Asked())
    with gr.Row(elem_classes="owl-columns"):
        with gr.Column(scale=3, min_width=300):
            photo = stage("look", upload="name-upload", table=True, elem_id="name-stage")
            downloads_ = files(elem_id="name-files")
        with gr.Column(scale=2, min_width=280):
            upload = gr.UploadButton("Choose a photo", file_types=["image"], elem_id="name-upload")
            names = gr.Textbox(
                "",
                label="What to find",
                info=HELP,
                placeholder="a person, a red mug, a dog",
                lines=1,
                max_lines=6,
                elem_id="name-text",
            )
            find = gr.Button("Find", variant="primary", elem_id="name-find")
            threshold = gr.Slider(
                FLOOR,
                1,
                0.2,
                step=0.01,
                label="Threshold",
                info="Lowest score that is shown.",
                elem_id="name-threshold",
            )
            with gr.Accordion("More settings", open=False):
                overlap = gr.Slider(
                    0.1,
                    1,
                    0.5,
                    step=0.05,
                    label="Overlap",
                    info="Of boxes of one name that overlap by more, only the best stays; 1 keeps all.",
                )
                size = gr.Radio(list(sizes), value=normal, label="Detail", info="Finer finds smaller things, slower.")
            if samples():
                gr.Markdown("Or try one of these", elem_classes="owl-small")
                strip_ = strip(items=sample_items(), elem_id="name-samples", elem_classes="owl-samples")

    shown = [photo, downloads_]

    @told
    def on_upload(path: str, asked: Asked, text: str, size_: str, threshold_: float, overlap_: float):
        asked = ask(sizes[size_], asked.of(take_photo(path)), text)
        return asked, *show(detector, asked, threshold_, overlap_)

    @told
    def on_find(asked: Asked, text: str, size_: str, threshold_: float, overlap_: float):
        if asked.photo is None:
            return asked, no_photo("First a photo", "drop one here, click to choose one, or paste one"), {"files": []}
        asked = ask(sizes[size_], asked, text)
        return asked, *show(detector, asked, threshold_, overlap_)

    @told
    def on_sample(event: gr.EventData, asked: Asked, size_: str, threshold_: float, overlap_: float):
        one = samples()[event.index]
        asked = ask(sizes[size_], asked.of(take_photo(one.path)), one.queries)
        return one.queries, asked, *show(detector, asked, threshold_, overlap_)

    @told
    def on_size(asked: Asked, text: str, size_: str, threshold_: float, overlap_: float):
        if not asked.done:
            return asked, *show(detector, asked, threshold_, overlap_)
        asked = ask(sizes[size_], asked.of(asked.photo), text)
        return asked, *show(detector, asked, threshold_, overlap_)

    @told
    def on_slider(asked: Asked, threshold_: float, overlap_: float):
        return show(detector, asked, threshold_, overlap_)

    @told
    def on_asked(event: gr.EventData, asked: Asked, overlap_: float):
        return event.value, *show(detector, asked, event.value, overlap_)

    settings = [size, threshold, overlap]
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    busy = {"api_visibility": "private", "show_progress": "minimal", "show_progress_on": photo}
    upload.upload(on_upload, [upload, state, names, *settings], [state, *shown], **busy)
    gr.on([find.click, names.submit], on_find, [state, names, *settings], [state, *shown], **busy)
    size.change(on_size, [state, names, *settings], [state, *shown], **busy)
    gr.on(
        [threshold.input, threshold.release, overlap.input, overlap.release],
        on_slider,
        [state, threshold, overlap],
        shown,
        trigger_mode="always_last",
        **quiet,
    )
    photo.asked(on_asked, [state, overlap], [threshold, *shown], **quiet)
    if samples():
        strip_.picked(on_sample, [state, *settings], [names, state, *shown], **busy)
