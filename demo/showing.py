"""Show it: a box around a thing in one photo, and where that thing is in another."""

from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from owl_swin import Detector, draw_heat_map
from owl_swin.demo.asking import Question, answer, note_of_nothing, scales
from owl_swin.demo.examples import Box, Example, Shown, box_of, numbers, search, with_example
from owl_swin.demo.exports import downloads, query_file, stage_files
from owl_swin.demo.photos import SHOWN_PX, Photo, board, data_uri, sample_items, samples, take_photo
from owl_swin.demo.pieces import (
    BUSY,
    HOW,
    QUIET,
    Upload,
    files,
    no_photo,
    rows,
    stage,
    stage_value,
    strip,
    strip_value,
    upload_button,
)
from owl_swin.demo.refusals import Refused, errors_shown, pick
from owl_swin.demo.settings import Detail, in_turn, more_settings, moved, offered, threshold_slider

BOXES, HEAT = "Boxes", "Where it fits"
# Lower than for names: the scores of examples are lower, and calibrated as those are.
SHOWN_THRESHOLD = 0.1
INSTEAD = "add another example, or words for it"
NO_SOURCE = ("Drop a photo of the thing", HOW)
NO_TARGET = ("Drop the photo to look in", HOW)
EMPTY = (
    "No examples yet. Draw a box around the thing above and add it; several examples, and some of what it is not, make "
    "the answer better."
)


def show_target(detector: Detector, shown: Shown, threshold: float, overlap: float, view: str) -> tuple[dict, dict]:
    """The photo to look in with its answer, and the downloads."""
    target = shown.target
    found = answer(detector, target, threshold, overlap)
    if target.photo is None:
        return no_photo(*NO_TARGET), stage_files([])
    if found is None or target.encoded is None:
        hint = None if shown.examples else {"text": "Add an example on the left, then its like is looked for here."}
        return stage_value(target.photo, note=hint), stage_files([])
    note = None if len(found) else note_of_nothing(detector, target, threshold, instead=INSTEAD)
    marks = rows(found, target.encoded)
    src = ""
    if view == HEAT:
        scores = detector.similarity(target.encoded, target.queries)[0]
        src = data_uri(draw_heat_map(target.photo.preview(), scores, title=found.names[0]), SHOWN_PX)
    else:
        marks = [{**mark, "patch": None} for mark in marks]
    given = [*downloads(target.photo, found, "show-target"), *query_file(target.photo, target.queries)]
    return stage_value(target.photo, src=src, boxes=marks, note=note), stage_files(given)


def show_source(shown: Shown) -> dict:
    """The photo to draw on, with the box so far."""
    if shown.source is None:
        return no_photo(*NO_SOURCE)
    return stage_value(shown.source, draft=list(shown.box_xyxy) if shown.box_xyxy else None)


def show_examples(shown: Shown) -> dict:
    """The strip of examples."""
    return strip_value([one.item() for one in shown.examples], empty=EMPTY)


def try_it() -> Shown:
    """The cat, shown in one photo, to be found on a board of six."""
    cat = next(one for one in samples() if one.title == "Cat")
    photo = take_photo(cat.path)
    return Shown(photo, None, (Example.of(photo, cat.box_xyxy, True),), Question(board()))


def build(detector: Detector) -> None:
    """The tab."""
    sizes = scales(detector)
    state = gr.State(Shown())
    with gr.Row(elem_classes="owl-columns"):
        source, target = layout_source(), layout_target(sizes)
    on = Handlers(sizes)
    wire_source(state, source, on)
    wire_answers(state, source, target, on)
    wire_target(state, target, on)


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
            weight = gr.Slider(0, 1, 0.5, step=0.05, label="Examples against words", info="1: examples alone.")
        samples_ = None
        if samples():
            gr.Markdown("Or draw on one of these", elem_classes="owl-small")
            samples_ = strip(items=sample_items(), elem_id="show-samples", elem_classes="owl-samples")
    return Source(photo, add, add_not, examples, upload, fields, words, weight, samples_)


def layout_target(sizes: dict[str, Detector]) -> Target:
    """The right column."""
    with gr.Column(scale=1, min_width=300):
        gr.Markdown("## 2 · See where else it is\nIn any other photo, or in the same one.", elem_classes="owl-step")
        photo = stage("look", upload="show-target-upload", empty=NO_TARGET, table=True, elem_id="show-target")
        view = gr.Radio(
            [BOXES, HEAT],
            value=BOXES,
            label="View",
            info="Where it fits: how like your examples each patch is. Point at a box to see the patch it is from.",
            elem_id="show-view",
        )
        threshold = threshold_slider("show-threshold", value=SHOWN_THRESHOLD)
        with gr.Row(elem_classes="owl-buttons"):
            upload = upload_button(
                "Choose a photo to look in", file_types=["image"], elem_id="show-target-upload", size="md"
            )
            same = gr.Button("Look in the same photo", size="md", min_width=120)
        tried = None
        if samples():
            tried = gr.Button("Try it: find the cat among six photos", size="md", elem_id="show-try")
        detail = more_settings(sizes)
        downloads_ = files(elem_id="show-files")
    return Target(photo, view, threshold, upload, same, tried, detail, downloads_)


@dataclass(frozen=True, slots=True)
class Handlers:
    """What the tab does on each click; ``sizes`` as ``scales`` gives them.

    ``settings`` are words, weight, threshold, overlap, view and size.
    """

    sizes: dict[str, Detector]

    def ask(self, shown: Shown, words: str, weight: float, threshold: float, overlap: float, view: str, size: str):
        """The state with its answer, the photo to look in, and the downloads."""
        detector = self.sizes[size]
        shown = search(detector, shown, words, weight)
        return shown, *show_target(detector, shown, threshold, overlap, view)

    @errors_shown
    def on_source_upload(self, upload: Upload, shown: Shown):
        """Another photo to draw on."""
        return with_source(shown, take_photo(*upload))

    @errors_shown
    def on_sample(self, event: gr.EventData, shown: Shown):
        """A sample to draw on."""
        return with_source(shown, take_photo(samples()[event.index].path))

    @errors_shown
    def on_picked(self, event: gr.EventData, shown: Shown):
        """An example, to draw on its photo again."""
        one = pick(shown.examples, event.index)
        return with_source(shown, one.photo, one.box_xyxy)

    def on_drawn(self, event: gr.EventData, shown: Shown):
        """The box that was drawn, or that went."""
        box = box_of(tuple(event.box)) if event.box else None
        return replace(shown, box_xyxy=box), *numbers(box)

    def on_numbers(self, shown: Shown, *fields: float | None):
        """The box that was typed."""
        shown = replace(shown, box_xyxy=box_of(fields))
        return shown, show_source(shown)

    @errors_shown
    def on_add(self, wanted: bool, shown: Shown, *settings: Any):
        """What is in the box becomes an example."""
        shown = with_example(shown, Example.of(source_of(shown), shown.box_xyxy, wanted))
        shown, *sides = self.ask(shown, *settings)  # before the strip shows a box that means nothing
        return shown, show_examples(shown), *sides

    @errors_shown
    def on_removed(self, event: gr.EventData, shown: Shown, *settings: Any):
        """An example less."""
        shown = replace(shown, examples=tuple(e for i, e in enumerate(shown.examples) if i != event.index))
        shown, *sides = self.ask(shown, *settings)
        return shown, show_examples(shown), *sides

    @errors_shown
    def on_target(self, upload: Upload, shown: Shown, *settings: Any):
        """Another photo to look in."""
        return self.ask(replace(shown, target=shown.target.of(take_photo(*upload))), *settings)

    @errors_shown
    def on_same(self, shown: Shown, *settings: Any):
        """The photo that is drawn on, to look in."""
        return self.ask(replace(shown, target=shown.target.of(source_of(shown))), *settings)

    @errors_shown
    def on_try(self, *settings: Any):
        """The cat, in finer detail: what is on a board of six is small."""
        *others, _ = settings
        size = list(self.sizes)[:2][-1]
        shown, *sides = self.ask(try_it(), *others, size)
        return shown, show_source(shown), *numbers(None), show_examples(shown), *sides, size

    @errors_shown
    def on_settings(self, shown: Shown, *settings: Any):
        """Other words, or another weight of them."""
        return self.ask(shown, *settings)

    @errors_shown
    def on_size(self, shown: Shown, *settings: Any):
        """The same again at another size."""
        return self.ask(replace(shown, target=shown.target.of(shown.target.photo)), *settings)

    @errors_shown
    def on_view(self, shown: Shown, threshold: float, overlap: float, view: str, size: str):
        """The same answer in another view, or cut elsewhere."""
        return show_target(self.sizes[size], shown, threshold, overlap, view)


def with_source(shown: Shown, photo: Photo, box: Box | None = None) -> tuple:
    """A photo to draw on: the state, the stage, and the four fields of its box."""
    shown = replace(shown, source=photo, box_xyxy=box)
    return shown, show_source(shown), *numbers(box)


def source_of(shown: Shown) -> Photo:
    """The photo that is drawn on; without one, the page says so."""
    if shown.source is None:
        raise Refused("No photo yet", "First choose a photo of the thing.")
    return shown.source


def wire_source(state: gr.State, source: Source, on: Handlers) -> None:
    """What happens in the left column alone: photos to draw on, and the box."""
    drawn = [state, source.photo, *source.fields]
    busy = {**BUSY, "show_progress_on": source.photo}
    source.upload.upload(on.on_source_upload, [source.upload, state], drawn, **busy)
    # "multiple": of two corners clicked in quick succession, neither may be dropped; "always_last" repeats the first.
    source.photo.drawn(on.on_drawn, [state], [state, *source.fields], trigger_mode="multiple", **QUIET)
    typed = [event for field in source.fields for event in (field.submit, field.blur)]
    gr.on(typed, on.on_numbers, [state, *source.fields], [state, source.photo], **QUIET)
    source.examples.picked(on.on_picked, [state], drawn, **QUIET)
    if source.samples is not None:
        source.samples.picked(on.on_sample, [state], drawn, **QUIET)


def wire_answers(state: gr.State, source: Source, target: Target, on: Handlers) -> None:
    """What changes the question, and so the answer on the right."""
    detail = target.detail
    asks = [source.words, source.weight, target.threshold, detail.overlap, target.view, detail.size]
    sides = [target.photo, target.downloads]
    asked, listed = [state, *asks], [state, source.examples, *sides]
    busy = {**BUSY, "show_progress_on": target.photo}
    source.add.click(lambda shown, *rest: on.on_add(True, shown, *rest), asked, listed, **busy)
    source.add_not.click(lambda shown, *rest: on.on_add(False, shown, *rest), asked, listed, **busy)
    source.examples.removed(on.on_removed, asked, listed, **busy)
    # A threshold that is moved while the photo is looked at holds for its answer, which began with the one before.
    viewed = [state, target.threshold, detail.overlap, target.view, detail.size]
    looked_at = target.upload.upload(on.on_target, [target.upload, *asked], [state, *sides], **busy)
    looked_at.then(on.on_view, viewed, sides, **in_turn("show-view"))
    target.same.click(on.on_same, asked, [state, *sides], **busy)
    worded = [source.words.submit, source.words.blur, source.weight.release]
    gr.on(worded, on.on_settings, asked, [state, *sides], **busy)
    detail.size.input(on.on_size, asked, [state, *sides], **busy)
    if target.tried is not None:
        shown = [state, source.photo, *source.fields, source.examples, *sides, detail.size]
        target.tried.click(on.on_try, asks, shown, **busy)


def wire_target(state: gr.State, target: Target, on: Handlers) -> None:
    """What shows the same answer in another way."""
    detail, sides = target.detail, [target.photo, target.downloads]
    viewed = [state, target.threshold, detail.overlap, target.view, detail.size]
    events = [*moved(target.threshold, detail.overlap), target.view.change]
    turn = in_turn("show-view")
    gr.on(events, on.on_view, viewed, sides, trigger_mode="always_last", **turn)
    target.photo.asked(offered, None, target.threshold, **QUIET).then(on.on_view, viewed, sides, **turn)
