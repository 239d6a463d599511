"""Name it: words in, boxes out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import gradio as gr

from owl_swin import Detections, Detector
from owl_swin.demo import batching, models, zoom
from owl_swin.demo.asking import Question, edit, note_of_nothing, split_names
from owl_swin.demo.batch import Rest, with_photo
from owl_swin.demo.edits import annotate, edit_state
from owl_swin.demo.examples import Example
from owl_swin.demo.exports import (
    TOP_K,
    Call,
    copies,
    downloads,
    edited_copies,
    note_on,
    query_file,
    stage_files,
    where_served,
)
from owl_swin.demo.models import Choice, Models, size_choices
from owl_swin.demo.naming_layout import Page, layout
from owl_swin.demo.outlines import paths_of
from owl_swin.demo.photos import Photo, meant, samples, take_photo
from owl_swin.demo.pieces import (
    QUIET,
    Upload,
    rows,
    stage_value,
)
from owl_swin.demo.refusals import Refused, errors_shown, pick, refuse
from owl_swin.demo.session import Session
from owl_swin.demo.settings import (
    THRESHOLD,
    Answers,
    in_turn,
    moved,
    outlines_choice,
)
from owl_swin.demo.terms import (
    Term,
    answers_of,
    best_of,
    chips,
    queries_of,
    seen_of,
    thresholds_of,
    with_example,
    with_file,
    with_model,
    with_names,
)

INSTEAD = "use a plainer word, or show the thing in “Show it”"
HIDDEN = {"text": "All names are hidden; click one to see it again."}


@dataclass(frozen=True, slots=True)
class Named:
    """What stands in the tab: the photo with what is asked of it, the names that ask it, and the rest of the photos."""

    asked: Question = field(default_factory=Question)
    terms: tuple[Term, ...] = ()
    rest: Rest = field(default_factory=Rest)
    typed: str = ""  # what stood in the field of names when it was last asked

    def of(self, photo: Photo | None) -> "Named":
        """The same names, asked of another photo."""
        return replace(self, asked=self.asked.of(photo))


def ask(detector: Detector, named: Named) -> Named:
    """The question with its photo encoded; one that was encoded already is not looked at again."""
    asked = replace(named.asked, queries=queries_of(named.terms))
    if asked.photo is not None:
        asked.look.by(detector, asked.photo, asked.masks_by(detector))
        asked = replace(asked, done=True)
    return replace(named, asked=asked)


def find(detector: Detector, named: Named, threshold: float, overlap: float, masks: bool = True) -> Detections | None:
    """What answers, without another look at the photo; None before anything was asked. With ``masks`` where they are
    wanted."""
    asked = named.asked
    if not asked.done or asked.encoded is None:
        return None
    masks = masks and asked.masks_by(detector)
    limits = thresholds_of(named.terms, threshold)
    return answers_of(detector, asked.encoded, named.terms, limits, overlap, top_k=TOP_K, masks=masks)


def show(
    detector: Detector,
    named: Named,
    threshold: float,
    overlap: float,
    size: int | None = None,
    model: str = "nano",
    whole: bool = False,
    as_served: bool = True,
) -> tuple:
    """What the stage, the names and the downloads hold for an answer; code calls the detector ``model``. Downloads that
    hold masks have their contents where they are wanted ``whole``."""
    asked, terms = named.asked, named.terms
    found = find(detector, named, threshold, overlap)
    if asked.photo is None or asked.encoded is None or found is None:
        waiting = stage_value(asked.photo, edited=asked.edits.number)
        return waiting, chips(terms, None, (), threshold), stage_files([])
    best = best_of(detector, asked.encoded, terms, overlap)
    shown = [term for term in terms if not term.hidden]
    boxes, edits = annotate(found, asked.edits, asked.look.finder), asked.edits
    seen = seen_of(terms, boxes)
    marks = rows(boxes, hands=[one.hand for one in edits.drawn], paths=paths_of(boxes, asked.look.paths))
    marks = [mark for mark, kept in zip(marks, seen, strict=True) if kept]
    visible = boxes[seen]
    note = None
    if terms and not shown and not len(visible):
        note = HIDDEN
    elif not len(visible) and not edits:
        note = note_of_nothing(detector, replace(asked, queries=queries_of(shown)), threshold, instead=INSTEAD)
    call = Call(
        model,
        [term.name for term in shown],
        thresholds_of(shown, threshold),
        overlap,
        size,
        from_file=not all(term.plain for term in shown),
        masks=found.masks is not None,
        as_served=as_served,
    )
    later = found.masks is not None and not whole
    given = [
        *downloads(asked.photo, visible, "name-stage", edited=bool(edits), later=later),
        *query_file(asked.photo, queries_of(shown)),
    ]
    asked_again = [] if terms and not shown else copies(asked.photo, call)
    written = edited_copies(asked.photo, visible, later=later) if edits else asked_again
    stage = stage_value(asked.photo, boxes=marks, note=note, asked=len(terms) or None, **edit_state(edits, boxes.names))
    files_ = stage_files(given, written, note=note_on(found, edited=bool(edits)))
    return stage, chips(terms, found, best, threshold), files_


def build(choice: Choice) -> Callable[[Any], None]:
    """The tab; what it gives back asks again when another model is chosen."""
    page = layout(gr.State(Session(Named())), choice.models)
    models.follow_link(choice, page.chips)
    return wire(page, Handlers(choice.models), choice.chosen)


@dataclass(frozen=True)
class Handlers:
    """What the tab does on each click."""

    models: Models

    @cached_property
    def batch(self) -> batching.Handlers:
        """What clicks on the strip of several photos do."""
        return batching.Handlers(self.detector, self.ask, self.found_in)

    def detector(self, named: Named) -> Detector:
        """What looks at the photo."""
        return self.models.detector(named.asked.model, named.asked.size)

    def ask(self, session: Session[Named], step: Callable[[Named], Named]) -> None:
        """What a step makes of the tab, with its answer, which may take long: it is not shown yet, since how is known
        only then."""

        def asked(named: Named) -> Named:
            named = step(named)
            return ask(self.detector(named), named)

        session.change(asked)

    def found_in(
        self, named: Named, photo: Question, threshold: float, overlap: float, masks: bool
    ) -> Detections | None:
        """What is shown of the answer for one of the photos; None before it was looked at."""
        if not photo.look.fits(self.detector(named), masks):
            return None
        asked = replace(photo, queries=queries_of(named.terms), done=True, outlines=masks)
        found = find(self.models.detector(named.asked.model), replace(named, asked=asked), threshold, overlap)
        if found is None:
            return None
        boxes = annotate(found, photo.edits, photo.look.finder)
        return boxes[seen_of(named.terms, boxes)]

    @errors_shown
    def on_find(self, text: str, session: Session[Named]):
        """The names in the field join those that are there."""
        names = split_names(text)
        self.ask(session, lambda named: self.with_names(replace(named, typed=text), named.terms, names))
        if session.value.asked.photo is None and not names:
            raise Refused("No photo yet", "First choose a photo: drop one, click to choose one, or paste one.")
        return session

    def on_taken(self, text: str, session: Session[Named]):
        """The field is empty again, unless the next names stand in it by now."""
        return "" if text == session.value.typed else gr.skip()

    def with_names(self, named: Named, terms: tuple[Term, ...], names: Sequence[str]) -> Named:
        """The tab with these terms and these names."""
        return replace(named, terms=with_names(self.detector(named), terms, names))

    @errors_shown
    def on_sample(self, event: gr.EventData, session: Session[Named]):
        """A sample, with names that may be in it in place of those that were there."""
        one = samples()[event.index]
        photo, names = take_photo(one.path), split_names(one.queries)
        self.ask(session, lambda named: self.with_names(replace(named.of(photo), rest=Rest()), (), names))
        return session, self.batch.strip(session.value)

    @errors_shown
    def on_load(self, upload: Upload, session: Session[Named]):
        """The queries of a file join the names that are there."""
        content = Path(upload.path).read_bytes()
        self.ask(session, lambda named: replace(named, terms=with_file(self.detector(named), named.terms, content)))
        return session

    @errors_shown
    def on_link(self, event: gr.EventData, session: Session[Named], threshold: float):
        """What a link to the page asks for: its names, their thresholds, and that of all; in an open window what it
        says nothing of is as at the start."""
        if not event.names and not event.again:  # but for a model, which models.follow_link sees to
            return threshold, session
        own = [_share(limit) for limit in event.thresholds]
        limits = dict(zip_longest([str(name) for name in event.names], own[: len(event.names)]))

        def step(named: Named) -> Named:
            named = self.with_names(named, (), list(limits))
            return replace(named, terms=tuple(replace(term, threshold=limits[term.name]) for term in named.terms))

        self.ask(session, step)
        common = _share(event.threshold)
        if common is None:
            common = THRESHOLD if event.again else threshold
        return common, session

    @errors_shown
    def on_tuned(self, event: gr.EventData, session: Session[Named], *view: float):
        """A name hidden or shown, or with another threshold."""

        def step(named: Named) -> Named:
            place = _place(named.terms, event.name)
            term = named.terms[place]
            if event.hidden is not None:
                term = replace(term, hidden=bool(event.hidden))
            else:
                term = replace(term, threshold=_share(event.threshold))
            return replace(named, terms=(*named.terms[:place], term, *named.terms[place + 1 :]))

        session.change(step)
        return session, *self.on_view(session, *view)

    @errors_shown
    def on_edited(self, event: gr.EventData, session: Session[Named], *view: float):
        """A box moved, named, drawn or taken away."""

        def change(step: Callable[[Question], Question]) -> None:
            def of_meant(named: Named) -> Named:
                asked, rest = with_photo(named.asked, named.rest, event, step)
                return replace(named, asked=asked, rest=rest)

            session.change(of_meant)

        edit(event, change, lambda step: session.change(lambda named: replace(named, asked=step(named.asked))))
        return session, *self.on_view(session, *view)

    @errors_shown
    def on_removed(self, event: gr.EventData, session: Session[Named]):
        """A name less."""

        def step(named: Named) -> Named:
            return replace(named, terms=tuple(term for term in named.terms if term.name != event.name))

        self.ask(session, step)
        return session

    @errors_shown
    def on_liked(self, event: gr.EventData, session: Session[Named]):
        """A found box as an example of its name, or as what it is not."""
        photo = session.value.asked.photo
        if photo is None:
            raise Refused("No photo yet", "First choose a photo.")
        if not meant(photo, event):
            raise Refused("Gone", "Another photo is here by now.")
        x0, y0, x1, y1 = (float(value) for value in event.box)
        example = Example.of(photo, (x0, y0, x1, y1), bool(event.wanted))

        def step(named: Named) -> Named:
            place = _place(named.terms, event.name) if named.terms else 0
            return replace(named, terms=with_example(self.detector(named), named.terms, place, example))

        self.ask(session, step)
        return session

    @errors_shown
    def on_size(self, session: Session[Named], size: str):
        """The same again at another size."""
        self.ask(session, lambda named: replace(named, asked=replace(named.asked, size=size)))
        return session, self.batch.strip(session.value)

    @errors_shown
    def on_outlines(self, session: Session[Named], wanted: bool):
        """With masks or without; a photo that was encoded for them is not encoded again."""
        self.ask(session, lambda named: replace(named, asked=replace(named.asked, outlines=wanted)))
        return session, self.batch.strip(session.value)

    @errors_shown
    def on_model(self, session: Session[Named], chosen: Session[str]):
        """The same asked of another model; names that it cannot be asked are told and go."""
        model = chosen.value
        if session.value.asked.model == model:
            return session, *[gr.skip()] * 4
        lost: list[str] = []

        def step(named: Named) -> Named:
            terms, lost[:] = with_model(self.models.detector(model), named.terms)
            return replace(named, asked=named.asked.by(model), terms=terms)

        self.ask(session, step)
        if lost:
            errors_shown(refuse)("Not all names came along", "; ".join(lost) + ".")
        strip_, pieces = self.batch.strip(session.value), outlines_choice(self.models.detector(model))
        return session, size_choices(self.models.sizes(model)), strip_, *pieces

    def shown(self, named: Named, threshold: float, overlap: float, whole: bool = False) -> tuple:
        """What show() says of what is chosen."""
        normal, chosen = self.models.detector(named.asked.model), self.detector(named).image_size
        size = None if chosen == normal.spec.image_size else chosen
        source = self.models.source(named.asked.model)
        served = chosen == normal.image_size
        stage_, chips_, files_ = show(normal, named, threshold, overlap, size, source, whole, served)
        return stage_, {**chips_, "model": named.asked.model}, where_served(files_, self.models.served)

    @errors_shown
    def on_view(self, session: Session[Named], threshold: float, overlap: float):
        """The answer as the settings are now."""
        shown = self.shown(session.value, threshold, overlap)
        return *shown, *self.batch.on_marks(session, threshold, overlap)

    @errors_shown
    def on_wanted(self, session: Session[Named], threshold: float, overlap: float):
        """The downloads with their contents."""
        return self.shown(session.value, threshold, overlap, whole=True)[2]


def _place(terms: Sequence[Term], name: str) -> int:
    """Where a term stands: by its name, since others may have gone meanwhile."""
    return pick([i for i, term in enumerate(terms) if term.name == name], 0)


def _share(value: Any) -> float | None:
    """A threshold that the page sent; what is none is None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 <= number <= 1 else None


def wire(page: Page, on: Handlers, chosen: gr.State) -> Callable[[Any], None]:
    """Which event calls which handler, and what follows the choice of another model."""
    state, detail = page.state, page.detail
    viewed, batch = [state, page.threshold, detail.overlap], page.batch
    shown = [page.photo, page.chips, page.downloads, batch.strip, batch.zips]
    look = Answers(on.on_view, viewed, shown, page.photo, "name-view")
    batching.wire(batch, on.batch, look, page.upload, viewed)
    found = look([page.find.click, page.names.submit], on.on_find, [page.names, state], [state])
    found.then(on.on_taken, [page.names, state], [page.names], trigger_mode="multiple", **QUIET)
    look(page.load.upload, on.on_load, [page.load, state], [state])
    look(page.chips.linked, on.on_link, [state, page.threshold], [page.threshold, state])
    look(page.chips.removed, on.on_removed, [state], [state])
    look(page.photo.liked, on.on_liked, [state], [state])
    set_ = {"trigger_mode": "always_last"}
    look(detail.size.input, on.on_size, [state, detail.size], [state, batch.strip], **set_)
    look(page.outlines.switch.input, on.on_outlines, [state, page.outlines.switch], [state, batch.strip], **set_)
    page.downloads.wanted(on.on_wanted, viewed, page.downloads, trigger_mode="always_last", **QUIET)
    if page.samples is not None:
        look(page.samples.picked, on.on_sample, [state], [state, batch.strip])
    tuned = {"trigger_mode": "multiple", **in_turn("name-view")}
    page.chips.tuned(on.on_tuned, viewed, [state, *shown], **tuned)
    page.photo.edited(on.on_edited, viewed, [state, *shown], **tuned)
    look.again(moved(page.threshold, detail.overlap))
    look.offered(page.photo.asked, page.threshold)
    zoom.wire(page.photo, state, lambda named: named.asked.photo)
    return look.after(on.on_model, [state, chosen], [state, detail.size, batch.strip, *page.outlines.pieces])
