"""Name it: words in, boxes out."""

import json
import re
from dataclasses import dataclass, replace

import gradio as gr

from owl_swin import Detections, Detector, QueryError, to_coco, to_label_studio, to_record
from owl_swin.demo.asking import Question, answer, note_of_nothing, scales
from owl_swin.demo.photos import Photo, sample_items, samples, take_photo
from owl_swin.demo.pieces import (
    BUSY,
    QUIET,
    Upload,
    files,
    rows,
    stage,
    stage_value,
    strip,
    upload_button,
)
from owl_swin.demo.refusals import Refused, errors_shown
from owl_swin.demo.settings import Detail, in_turn, more_settings, moved, offered, threshold_slider

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


def ask(detector: Detector, asked: Question, text: str) -> Question:
    """The question with its photo and names encoded; a photo that was encoded already is not looked at again."""
    if asked.photo is None:
        return asked
    names = split_names(text)
    encoded = asked.encoded or detector.encode_image(asked.photo.open())
    return replace(asked, encoded=encoded, queries=detector.encode_queries(names) if names else None, done=True)


def show(detector: Detector, asked: Question, threshold: float, overlap: float) -> tuple[dict, dict]:
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
    wire(layout(sizes), Handlers(sizes))


@dataclass(frozen=True, slots=True)
class Page:
    """What the tab is made of."""

    asked: gr.State
    photo: gr.HTML
    downloads: gr.HTML
    upload: gr.UploadButton
    names: gr.Textbox
    find: gr.Button
    threshold: gr.Slider
    detail: Detail
    samples: gr.HTML | None


def layout(sizes: dict[str, Detector]) -> Page:
    """The pieces, where they stand."""
    asked = gr.State(Question())
    with gr.Row(elem_classes="owl-columns"):
        with gr.Column(scale=3, min_width=300):
            photo = stage("look", upload="name-upload", table=True, elem_id="name-stage")
            downloads_ = files(elem_id="name-files")
        with gr.Column(scale=2, min_width=280):
            upload = upload_button("Choose a photo", file_types=["image"], elem_id="name-upload")
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
            threshold = threshold_slider("name-threshold", info="Lowest score that is shown.")
            detail = more_settings(sizes, explained=True)
            samples_ = None
            if samples():
                gr.Markdown("Or try one of these", elem_classes="owl-small")
                samples_ = strip(items=sample_items(), elem_id="name-samples", elem_classes="owl-samples")
    return Page(asked, photo, downloads_, upload, names, find, threshold, detail, samples_)


@dataclass(frozen=True, slots=True)
class Handlers:
    """What the tab does on each click; ``sizes`` as ``scales`` gives them."""

    sizes: dict[str, Detector]

    def show(self, asked: Question, threshold: float, overlap: float) -> tuple[dict, dict]:
        """The answer; any of the sizes reads it alike, as nothing is looked at again."""
        return show(next(iter(self.sizes.values())), asked, threshold, overlap)

    @errors_shown
    def on_upload(self, upload: Upload, asked: Question, text: str, size: str, threshold: float, overlap: float):
        """Another photo, of which the same is asked."""
        asked = ask(self.sizes[size], asked.of(take_photo(*upload)), text)
        return asked, *self.show(asked, threshold, overlap)

    @errors_shown
    def on_find(self, asked: Question, text: str, size: str, threshold: float, overlap: float):
        """Other names for the same photo."""
        if asked.photo is None:
            raise Refused("No photo yet", "First choose a photo: drop one, click to choose one, or paste one.")
        asked = ask(self.sizes[size], asked, text)
        return asked, *self.show(asked, threshold, overlap)

    @errors_shown
    def on_sample(self, event: gr.EventData, asked: Question, size: str, threshold: float, overlap: float):
        """A sample, with names that may be in it."""
        one = samples()[event.index]
        asked = ask(self.sizes[size], asked.of(take_photo(one.path)), one.queries)
        return one.queries, asked, *self.show(asked, threshold, overlap)

    @errors_shown
    def on_size(self, asked: Question, text: str, size: str, threshold: float, overlap: float):
        """The same again at another size."""
        if asked.done:
            asked = ask(self.sizes[size], asked.of(asked.photo), text)
        return asked, *self.show(asked, threshold, overlap)

    @errors_shown
    def on_slider(self, asked: Question, threshold: float, overlap: float):
        """The same answer cut elsewhere."""
        return self.show(asked, threshold, overlap)


def wire(page: Page, on: Handlers) -> None:
    """Which event calls which handler."""
    asked, detail = page.asked, page.detail
    shown = [page.photo, page.downloads]
    settings = [detail.size, page.threshold, detail.overlap]
    busy = {**BUSY, "show_progress_on": page.photo}
    page.upload.upload(on.on_upload, [page.upload, asked, page.names, *settings], [asked, *shown], **busy)
    gr.on([page.find.click, page.names.submit], on.on_find, [asked, page.names, *settings], [asked, *shown], **busy)
    detail.size.change(on.on_size, [asked, page.names, *settings], [asked, *shown], **busy)
    cut, turn = [asked, page.threshold, detail.overlap], in_turn("name-view")
    gr.on(moved(page.threshold, detail.overlap), on.on_slider, cut, shown, trigger_mode="always_last", **turn)
    page.photo.asked(offered, None, page.threshold, **QUIET).then(on.on_slider, cut, shown, **turn)
    if page.samples is not None:
        page.samples.picked(on.on_sample, [asked, *settings], [page.names, asked, *shown], **busy)
