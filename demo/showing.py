"""Show it: a box around a thing in one photo, and where that thing is in another."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from owl_swin import Detector, draw_heat_map
from owl_swin.demo import zoom
from owl_swin.demo.asking import Question, answer, edit, note_of_nothing
from owl_swin.demo.edits import annotate, edit_state
from owl_swin.demo.examples import Box, Example, Shown, box_of, numbers, search, with_example
from owl_swin.demo.exports import OUTLINED, downloads, edited_copies, query_file, stage_files
from owl_swin.demo.models import Choice, Models, size_choices
from owl_swin.demo.outlines import paths_of
from owl_swin.demo.photos import SHOWN_PX, Photo, board, data_uri, meant, samples, take_photo
from owl_swin.demo.pieces import (
    BUSY,
    QUIET,
    Upload,
    draw_value,
    no_photo,
    rows,
    stage_value,
    strip_value,
)
from owl_swin.demo.refusals import Refused, errors_shown, pick
from owl_swin.demo.session import Session
from owl_swin.demo.settings import (
    Answers,
    in_turn,
    moved,
    outlines_choice,
)
from owl_swin.demo.showing_layout import EMPTY, HEAT, NO_SOURCE, NO_TARGET, Source, Target, layout_source, layout_target

INSTEAD = "add another example, or words for it"
# Of events in turn: what is added is what was drawn or typed before.
BOX = "show-box"


def show_target(
    detector: Detector,
    shown: Shown,
    threshold: float,
    overlap: float,
    view: str,
    whole: bool = False,
) -> tuple[dict, dict]:
    """The photo to look in with its answer, and the downloads: those with masks have their contents where they are
    wanted ``whole``."""
    target = shown.target
    found = answer(detector, target, threshold, overlap)
    if target.photo is None:
        return no_photo(*NO_TARGET), stage_files([])
    if found is None or target.encoded is None:
        hint = None if shown.examples else {"text": "Add an example on the left, then its like is looked for here."}
        return stage_value(target.photo, note=hint, edited=target.edits.number), stage_files([])
    boxes, edits = annotate(found, target.edits, target.look.finder), target.edits
    note = None if len(boxes) or edits else note_of_nothing(detector, target, threshold, instead=INSTEAD)
    paths = paths_of(boxes, target.look.paths)
    marks = rows(boxes, target.encoded, [one.hand for one in edits.drawn], paths)
    src = ""
    if view == HEAT:
        scores = detector.similarity(target.encoded, target.queries)[0]
        src = data_uri(draw_heat_map(target.photo.preview(), scores, title=found.names[0]), SHOWN_PX)
    else:
        marks = [{**mark, "patch": None} for mark in marks]
    later = boxes.masks is not None and not whole
    given = [
        *downloads(target.photo, boxes, "show-target", edited=bool(edits), later=later),
        *query_file(target.photo, target.queries),
    ]
    written = edited_copies(target.photo, boxes, later=later) if edits else ()
    state = {**edit_state(edits, boxes.names), "heat": view == HEAT}
    stage_ = stage_value(target.photo, src=src, boxes=marks, note=note, **state)
    note_ = OUTLINED if boxes.masks is not None else ""
    return stage_, stage_files(given, written, note=note_)


def show_source(shown: Shown) -> dict:
    """The photo to draw on, with the box so far."""
    if shown.source is None:
        return no_photo(*NO_SOURCE)
    return draw_value(shown.source, shown.box_xyxy)


def show_examples(shown: Shown) -> dict:
    """The strip of examples."""
    return strip_value([one.item() for one in shown.examples], empty=EMPTY)


def try_it() -> Shown:
    """The cat, shown in one photo, to be found on a board of six."""
    cat = next(one for one in samples() if one.title == "Cat")
    photo = take_photo(cat.path)
    return Shown(photo, None, (Example.of(photo, cat.box_xyxy, True),), Question(board()))


def build(choice: Choice) -> Callable[[Any], None]:
    """The tab; what it gives back asks again when another model is chosen."""
    state = gr.State(Session(Shown()))
    with gr.Row(elem_classes="owl-columns"):
        source, target = layout_source(), layout_target(choice.models)
    on = Handlers(choice.models)
    wire_source(state, source, on)
    return wire_answers(state, source, target, on, choice.chosen)


@dataclass(frozen=True, slots=True)
class Handlers:
    """What the tab does on each click."""

    models: Models

    def ask(self, session: Session[Shown], step: Callable[[Shown], Shown]) -> Shown:
        """What a step makes of the tab, with its answer, which may take long: it is not shown yet, since how is known
        only then."""

        def asked(shown: Shown) -> Shown:
            shown = step(shown)
            return search(self.models.detector(shown.target.model, shown.target.size), shown)

        return session.change(asked)

    @errors_shown
    def on_source_upload(self, upload: Upload, session: Session[Shown]):
        """Another photo to draw on."""
        return with_source(session, take_photo(*upload))

    @errors_shown
    def on_sample(self, event: gr.EventData, session: Session[Shown]):
        """A sample to draw on."""
        return with_source(session, take_photo(samples()[event.index].path))

    @errors_shown
    def on_picked(self, event: gr.EventData, session: Session[Shown]):
        """An example, to draw on its photo again."""
        one = pick(session.value.examples, event.index)
        return with_source(session, one.photo, one.box_xyxy)

    def on_drawn(self, event: gr.EventData, session: Session[Shown]):
        """The box that was drawn, or that went."""
        if not meant(session.value.source, event):
            return session, *[gr.skip()] * 4
        box = box_of(tuple(event.box)) if event.box else None
        session.change(lambda shown: replace(shown, box_xyxy=box))
        return session, *numbers(box)

    def on_numbers(self, session: Session[Shown], *fields: float | None):
        """The box that was typed; fields that are only left leave the photo alone, on which a box may be begun."""
        if numbers(box_of(fields)) == numbers(session.value.box_xyxy):
            return session, gr.skip()
        return session, show_source(session.change(lambda shown: replace(shown, box_xyxy=box_of(fields))))

    @errors_shown
    def on_add(self, wanted: bool, session: Session[Shown]):
        """What is in the box becomes an example."""
        shown = session.value
        example = Example.of(source_of(shown), shown.box_xyxy, wanted)
        # Asked before the strip shows it: a box that means nothing is refused.
        return session, show_examples(self.ask(session, lambda shown: with_example(shown, example)))

    @errors_shown
    def on_removed(self, event: gr.EventData, session: Session[Shown]):
        """An example less."""
        if getattr(event, "of", len(session.value.examples)) != len(session.value.examples):
            return session, gr.skip()  # the second click on one that went
        gone = pick(session.value.examples, event.index)
        shown = self.ask(
            session, lambda shown: replace(shown, examples=tuple(e for e in shown.examples if e is not gone))
        )
        return session, show_examples(shown)

    @errors_shown
    def on_target(self, upload: Upload, session: Session[Shown]):
        """Another photo to look in."""
        photo = take_photo(*upload)
        self.ask(session, lambda shown: replace(shown, target=shown.target.of(photo)))
        return session

    @errors_shown
    def on_same(self, session: Session[Shown]):
        """The photo that is drawn on, to look in."""
        photo = source_of(session.value)
        self.ask(session, lambda shown: replace(shown, target=shown.target.of(photo)))
        return session

    @errors_shown
    def on_try(self, session: Session[Shown]):
        """The cat, in finer detail: what is on a board of six is small."""
        before, tried = session.value.target, try_it()
        size = list(self.models.sizes(before.model))[:2][-1]
        target = replace(before.of(tried.target.photo), size=size)
        tried = replace(tried, target=target)
        shown = self.ask(session, lambda shown: replace(tried, words=shown.words, weight=shown.weight))
        return session, show_source(shown), *numbers(None), show_examples(shown), size

    @errors_shown
    def on_words(self, session: Session[Shown], words: str, weight: float):
        """Other words, or another weight of them."""
        self.ask(session, lambda shown: replace(shown, words=words, weight=weight))
        return session

    @errors_shown
    def on_size(self, session: Session[Shown], size: str):
        """The same again at another size."""
        self.ask(session, lambda shown: replace(shown, target=replace(shown.target, size=size)))
        return session

    @errors_shown
    def on_outlines(self, session: Session[Shown], wanted: bool):
        """With masks or without; a photo that was encoded for them is not encoded again."""
        self.ask(session, lambda shown: replace(shown, target=replace(shown.target, outlines=wanted)))
        return session

    def on_model(self, session: Session[Shown], chosen: Session[str]):
        """The same asked of another model; where it cannot be, as of one that takes no examples, this is told."""
        model = chosen.value
        if session.value.target.model == model:
            return session, *[gr.skip()] * 3
        session.change(lambda shown: replace(shown, target=shown.target.by(model)))
        errors_shown(self.ask)(session, lambda shown: shown)
        return session, size_choices(self.models.sizes(model)), *outlines_choice(self.models.detector(model))

    @errors_shown
    def on_edited(self, event: gr.EventData, session: Session[Shown], *view: Any):
        """A box moved, named, drawn or taken away."""
        edit(event, lambda step: session.change(lambda shown: replace(shown, target=step(shown.target))))
        return session, *self.on_view(session, *view)

    @errors_shown
    def on_view(self, session: Session[Shown], threshold: float, overlap: float, view: str):
        """The answer as the settings are now."""
        detector = self.models.detector(session.value.target.model)
        return show_target(detector, session.value, threshold, overlap, view)

    @errors_shown
    def on_wanted(self, session: Session[Shown], threshold: float, overlap: float, view: str):
        """The downloads with their contents."""
        detector = self.models.detector(session.value.target.model)
        return show_target(detector, session.value, threshold, overlap, view, whole=True)[1]


def with_source(session: Session[Shown], photo: Photo, box: Box | None = None) -> tuple:
    """A photo to draw on: the state, the stage, and the four fields of its box."""
    shown = session.change(lambda shown: replace(shown, source=photo, box_xyxy=box))
    return session, show_source(shown), *numbers(box)


def source_of(shown: Shown) -> Photo:
    """The photo that is drawn on; without one, the page says so."""
    if shown.source is None:
        raise Refused("No photo yet", "First choose a photo of the thing.")
    return shown.source


def wire_source(state: gr.State, source: Source, on: Handlers) -> None:
    """What happens in the left column alone: photos to draw on, and the box."""
    drawn = [state, source.photo, *source.fields]
    each: dict[str, Any] = {"trigger_mode": "multiple"}
    busy = {**BUSY, **each, "show_progress_on": source.photo}
    source.upload.upload(on.on_source_upload, [source.upload, state], drawn, **busy)
    source.photo.drawn(on.on_drawn, [state], [state, *source.fields], **each, **in_turn(BOX))
    typed = [event for field in source.fields for event in (field.submit, field.blur)]
    boxed = [state, source.photo]
    gr.on(typed, on.on_numbers, [state, *source.fields], boxed, trigger_mode="always_last", **in_turn(BOX))
    source.examples.picked(on.on_picked, [state], drawn, **each, **QUIET)
    zoom.wire(source.photo, state, lambda shown: shown.source)
    if source.samples is not None:
        source.samples.picked(on.on_sample, [state], drawn, **each, **QUIET)


def wire_answers(
    state: gr.State, source: Source, target: Target, on: Handlers, chosen: gr.State
) -> Callable[[Any], None]:
    """What changes the question, after which the answer is shown, and what shows the same answer in another way; what
    it gives back follows the choice of another model."""
    detail, tried = target.detail, target.tried
    viewed = [state, target.threshold, detail.overlap, target.view]
    look = Answers(on.on_view, viewed, [target.photo, target.downloads], target.photo, "show-view")
    listed = [state, source.examples]
    set_, once = {"trigger_mode": "always_last"}, {"trigger_mode": "once"}
    added: dict[str, Any] = {**once, "concurrency_id": BOX, "concurrency_limit": 1}
    look(source.add.click, lambda session: on.on_add(True, session), [state], listed, **added)
    look(source.add_not.click, lambda session: on.on_add(False, session), [state], listed, **added)
    look(source.examples.removed, on.on_removed, [state], listed)
    look(target.upload.upload, on.on_target, [target.upload, state], [state])
    look(target.same.click, on.on_same, [state], [state], **once)
    worded = [source.words.submit, source.words.blur, source.weight.release]
    look(worded, on.on_words, [state, source.words, source.weight], [state], **set_)
    look(detail.size.input, on.on_size, [state, detail.size], [state], **set_)
    look(target.outlines.switch.input, on.on_outlines, [state, target.outlines.switch], [state], **set_)
    target.downloads.wanted(on.on_wanted, viewed, target.downloads, trigger_mode="always_last", **QUIET)
    if tried is not None:
        tries = [state, source.photo, *source.fields, source.examples, detail.size]
        look(tried.click, on.on_try, [state], tries, **once)
    edited = {"trigger_mode": "multiple", **in_turn("show-view")}
    target.photo.edited(on.on_edited, viewed, [state, target.photo, target.downloads], **edited)
    look.again([*moved(target.threshold, detail.overlap), target.view.change])
    look.offered(target.photo.asked, target.threshold)
    zoom.wire(target.photo, state, lambda shown: shown.target.photo)
    return look.after(on.on_model, [state, chosen], [state, detail.size, *target.outlines.pieces])
