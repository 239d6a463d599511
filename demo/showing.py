"""Show it: a box around a thing in one photo, and where that thing is in another."""

from dataclasses import dataclass, field, replace
from typing import Any

import gradio as gr

from owl_swin import Detector, Exemplar, Query, QueryError, draw_heat_map
from owl_swin.demo.asking import FLOOR, Asked, answer, note_of_nothing, scales
from owl_swin.demo.naming import downloads, split_names
from owl_swin.demo.photos import SHOWN_PX, Photo, board, crop_uri, data_uri, sample_items, samples, take_photo
from owl_swin.demo.pieces import HOW, files, no_photo, pick, rows, stage, stage_value, strip, strip_value, told

BOXES, HEAT = "Boxes", "Where it fits"
THING = "this thing"
MOST_EXAMPLES = 12
INSTEAD = "add another example, or words for it"
NO_SOURCE = ("Drop a photo of the thing", HOW)
NO_TARGET = ("Drop the photo to look in", HOW)
EMPTY = (
    "No examples yet. Draw a box around the thing above and add it; several examples, and some of what it is not, make "
    "the answer better."
)
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Example:
    """One thing that was shown, and whether it is what is looked for."""

    photo: Photo
    box_xyxy: Box | None
    wanted: bool

    def exemplar(self) -> Exemplar:
        """As the detector takes it."""
        return Exemplar(self.photo.open(), self.box_xyxy)

    def item(self) -> dict[str, Any]:
        """As a strip shows it."""
        whole = (0, 0, self.photo.width, self.photo.height)
        src = crop_uri(self.photo.open(), self.box_xyxy or whole)
        word = "example" if self.wanted else "not this"
        title = f"{word}, from {self.photo.name}"
        return {"src": src, "title": title, "badge": word, "kind": "yes" if self.wanted else "no", "removable": True}


@dataclass(frozen=True, slots=True)
class Shown:
    """What stands in the tab: the photo that is drawn on, its box, the examples so far, and the photo to look in."""

    source: Photo | None = None
    box_xyxy: Box | None = None
    examples: tuple[Example, ...] = ()
    target: Asked = field(default_factory=Asked)


def as_query(examples: tuple[Example, ...], text: str, weight: float) -> Query | None:
    """All examples and the words for them as one query; None while nothing says what is looked for."""
    words = split_names(text)
    wanted = [one.exemplar() for one in examples if one.wanted]
    if not wanted and not words:
        return None
    negatives = [one.exemplar() for one in examples if not one.wanted]
    name = words[0] if words else THING
    return Query(name, texts=words, exemplars=wanted, negatives=negatives, weight=weight)


def search(detector: Detector, shown: Shown, text: str, weight: float) -> Shown:
    """The question put to the photo to look in."""
    target = shown.target
    query = as_query(shown.examples, text, weight)
    if target.photo is None or query is None:
        return replace(shown, target=replace(target, queries=None, done=False))
    encoded = target.encoded or detector.encode_image(target.photo.open())
    queries = detector.encode_queries([query])
    return replace(shown, target=replace(target, encoded=encoded, queries=queries, done=True))


def show_target(detector: Detector, shown: Shown, threshold: float, overlap: float, view: str) -> tuple[dict, dict]:
    """The photo to look in with its answer, and the downloads."""
    target = shown.target
    found = answer(detector, target, threshold, overlap)
    if target.photo is None:
        return no_photo(*NO_TARGET), {"files": []}
    if found is None or target.encoded is None:
        hint = None if shown.examples else {"text": "Add an example on the left, then its like is looked for here."}
        return stage_value(target.photo, note=hint), {"files": []}
    note = None if len(found) else note_of_nothing(detector, target, threshold, instead=INSTEAD)
    marks = rows(found, target.encoded.embeddings.grid_hw)
    src = ""
    if view == HEAT:
        scores = detector.similarity(target.encoded, target.queries)[0]
        src = data_uri(draw_heat_map(target.photo.open(), scores, title=found.names[0]), SHOWN_PX)
    else:
        marks = [{**mark, "patch": None} for mark in marks]
    return stage_value(target.photo, src=src, boxes=marks, note=note), {"files": downloads(target.photo, found)}


def show_source(shown: Shown) -> dict:
    """The photo to draw on, with the box so far."""
    if shown.source is None:
        return no_photo(*NO_SOURCE)
    return stage_value(shown.source, draft=list(shown.box_xyxy) if shown.box_xyxy else None)


def show_examples(shown: Shown) -> dict:
    """The strip of examples."""
    return strip_value([one.item() for one in shown.examples], empty=EMPTY)


def numbers(box: Box | None) -> list[float | None]:
    """The box in its four fields."""
    return [round(value, 1) for value in box] if box else [None] * 4


def box_of(fields: tuple[float | None, ...]) -> Box | None:
    """The box that four fields hold: None while one of them is empty."""
    if any(value is None for value in fields):
        return None
    x0, y0, x1, y1 = (float(value) for value in fields if value is not None)
    return (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))


def try_it() -> Shown:
    """The cat, shown in one photo, to be found on a board of six."""
    cat = next(one for one in samples() if one.title == "Cat")
    photo = take_photo(cat.path)
    return Shown(photo, None, (Example(photo, cat.box_xyxy, True),), Asked(board()))


def build(detector: Detector) -> None:
    """The tab."""
    sizes = scales(detector)
    state = gr.State(Shown())
    with gr.Row(elem_classes="owl-columns"):
        with gr.Column(scale=1, min_width=300):
            gr.Markdown("#### 1 · Show the thing\nDrag a box around it, or click two corners.", elem_classes="owl-step")
            source = stage("draw", upload="show-source-upload", empty=NO_SOURCE, elem_id="show-source")
            with gr.Row(elem_classes="owl-buttons"):
                add = gr.Button("Add as example", variant="primary", size="md", elem_id="show-add", min_width=120)
                add_not = gr.Button("Add as “not this”", size="md", elem_id="show-add-not", min_width=120)
            examples = strip(empty=EMPTY, elem_id="show-examples")
            source_upload = gr.UploadButton(
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
            if samples():
                gr.Markdown("Or draw on one of these", elem_classes="owl-small")
                strip_ = strip(items=sample_items(), elem_id="show-samples", elem_classes="owl-samples")
        with gr.Column(scale=1, min_width=300):
            gr.Markdown(
                "#### 2 · See where else it is\nIn any other photo, or in the same one.", elem_classes="owl-step"
            )
            target = stage("look", upload="show-target-upload", empty=NO_TARGET, table=True, elem_id="show-target")
            view = gr.Radio(
                [BOXES, HEAT],
                value=BOXES,
                label="View",
                info="Where it fits: how like your examples each patch is. Point at a box to see the patch it is from.",
                elem_id="show-view",
            )
            threshold = gr.Slider(FLOOR, 1, 0.2, step=0.01, label="Threshold", elem_id="show-threshold")
            with gr.Row(elem_classes="owl-buttons"):
                target_upload = gr.UploadButton(
                    "Choose a photo to look in", file_types=["image"], elem_id="show-target-upload", size="md"
                )
                same = gr.Button("Look in the same photo", size="md", min_width=120)
            if samples():
                tried = gr.Button("Try it: find the cat among six photos", size="md", elem_id="show-try")
            with gr.Accordion("More settings", open=False):
                overlap = gr.Slider(0.1, 1, 0.5, step=0.05, label="Overlap")
                size = gr.Radio(list(sizes), value=next(iter(sizes)), label="Detail")
            downloads_ = files(elem_id="show-files")

    settings = [words, weight, threshold, overlap, view, size]
    sides = [target, downloads_]

    def ask(shown: Shown, words_: str, weight_: float, threshold_: float, overlap_: float, view_: str, size_: str):
        detector_ = sizes[size_]
        shown = search(detector_, shown, words_, weight_)
        return shown, *show_target(detector_, shown, threshold_, overlap_, view_)

    @told
    def on_source_upload(path: str, shown: Shown):
        shown = replace(shown, source=take_photo(path), box_xyxy=None)
        return shown, show_source(shown), *numbers(None)

    @told
    def on_sample(event: gr.EventData, shown: Shown):
        shown = replace(shown, source=take_photo(samples()[event.index].path), box_xyxy=None)
        return shown, show_source(shown), *numbers(None)

    def on_drawn(event: gr.EventData, shown: Shown):
        box = box_of(tuple(event.box)) if event.box else None
        return replace(shown, box_xyxy=box), *numbers(box)

    def on_numbers(shown: Shown, *fields_: float | None):
        shown = replace(shown, box_xyxy=box_of(fields_))
        return shown, show_source(shown)

    @told
    def on_add(wanted: bool, shown: Shown, *settings_: Any):
        if shown.source is None:
            raise gr.Error("First choose a photo of the thing.", title="No photo yet", print_exception=False)
        if len(shown.examples) >= MOST_EXAMPLES:
            raise QueryError(f"there are {MOST_EXAMPLES} examples already; take one away first")
        shown = replace(shown, examples=(*shown.examples, Example(shown.source, shown.box_xyxy, wanted)))
        answered = ask(shown, *settings_)  # before the strip shows a box that means nothing
        return answered[0], show_examples(shown), *answered[1:]

    @told
    def on_removed(event: gr.EventData, shown: Shown, *settings_: Any):
        shown = replace(shown, examples=tuple(e for i, e in enumerate(shown.examples) if i != event.index))
        answered = ask(shown, *settings_)
        return answered[0], show_examples(shown), *answered[1:]

    @told
    def on_picked(event: gr.EventData, shown: Shown):
        one = pick(shown.examples, event.index)
        shown = replace(shown, source=one.photo, box_xyxy=one.box_xyxy)
        return shown, show_source(shown), *numbers(one.box_xyxy)

    @told
    def on_target(path: str, shown: Shown, *settings_: Any):
        return ask(replace(shown, target=shown.target.of(take_photo(path))), *settings_)

    @told
    def on_same(shown: Shown, *settings_: Any):
        if shown.source is None:
            raise gr.Error("First choose a photo of the thing.", title="No photo yet", print_exception=False)
        return ask(replace(shown, target=shown.target.of(shown.source)), *settings_)

    @told
    def on_try(*settings_: Any):
        answered = ask(try_it(), *settings_)
        shown = answered[0]
        return shown, show_source(shown), *numbers(None), show_examples(shown), *answered[1:]

    @told
    def on_settings(shown: Shown, *settings_: Any):
        return ask(shown, *settings_)

    @told
    def on_size(shown: Shown, *settings_: Any):
        return ask(replace(shown, target=shown.target.of(shown.target.photo)), *settings_)

    @told
    def on_view(shown: Shown, threshold_: float, overlap_: float, view_: str, size_: str):
        return show_target(sizes[size_], shown, threshold_, overlap_, view_)

    @told
    def on_asked(event: gr.EventData, shown: Shown, overlap_: float, view_: str, size_: str):
        return event.value, *show_target(sizes[size_], shown, event.value, overlap_, view_)

    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    busy = {"api_visibility": "private", "show_progress": "minimal", "show_progress_on": target}
    drawn = [state, source, *fields]
    source_upload.upload(on_source_upload, [source_upload, state], drawn, **quiet)
    # "multiple": of two corners clicked in quick succession, neither may be dropped; "always_last" repeats the first.
    source.drawn(on_drawn, [state], [state, *fields], trigger_mode="multiple", **quiet)
    typed = [event for field in fields for event in (field.submit, field.blur)]
    gr.on(typed, on_numbers, [state, *fields], [state, source], **quiet)
    asks = [state, examples, *sides]
    add.click(lambda shown, *rest: on_add(True, shown, *rest), [state, *settings], asks, **busy)
    add_not.click(lambda shown, *rest: on_add(False, shown, *rest), [state, *settings], asks, **busy)
    examples.removed(on_removed, [state, *settings], asks, **busy)
    examples.picked(on_picked, [state], drawn, **quiet)
    target_upload.upload(on_target, [target_upload, state, *settings], [state, *sides], **busy)
    same.click(on_same, [state, *settings], [state, *sides], **busy)
    gr.on([words.submit, words.blur, weight.release], on_settings, [state, *settings], [state, *sides], **busy)
    size.change(on_size, [state, *settings], [state, *sides], **busy)
    viewed = [state, threshold, overlap, view, size]
    gr.on(
        [threshold.input, threshold.release, overlap.input, overlap.release, view.change],
        on_view,
        viewed,
        sides,
        trigger_mode="always_last",
        **quiet,
    )
    target.asked(on_asked, [state, overlap, view, size], [threshold, *sides], **quiet)
    if samples():
        strip_.picked(on_sample, [state], drawn, **quiet)
        tried.click(on_try, settings, [*drawn, examples, *sides], **busy)
