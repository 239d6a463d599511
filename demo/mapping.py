"""Map it: what each place of a photo shows, of all that was named or shown, or nothing."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from owl_swin import Detector, EncodedImage, Query, QueryEmbeddings, QueryError, SemanticMap
from owl_swin.demo import zoom
from owl_swin.demo.asking import check_count, split_names
from owl_swin.demo.examples import MOST_EXAMPLES, THING, Box, Example
from owl_swin.demo.exports import query_file, stage_files, where_served
from owl_swin.demo.map_files import MapCall, copies, downloads
from owl_swin.demo.mapping_layout import NO_PHOTO, NO_SOURCE, PLACEHOLDER, Page, layout
from owl_swin.demo.models import Models
from owl_swin.demo.photos import SHOWN_PX, Photo, data_uri, meant, samples, take_photo
from owl_swin.demo.pieces import QUIET, Upload, draw_value, no_photo, stage_value, strip_value
from owl_swin.demo.refusals import Refused, errors_shown, pick
from owl_swin.demo.session import Session
from owl_swin.demo.settings import Answers, moved

UNNAMED = "Name what may be seen in it, then each place shows what it is."
# Names to begin with, for a photo of which nobody said what it shows.
FIRST = PLACEHOLDER


@dataclass(frozen=True, slots=True)
class Mapped:
    """What stands in the tab: a photo, what it may show, and both as the model has them, as soon as it has.

    ``shown`` are examples, each of one of the names or of a name of its own; ``source`` is the photo that is drawn on,
    and None where it is the same, with the box so far.
    """

    photo: Photo | None = None
    names: tuple[str, ...] = ()
    shown: tuple[tuple[str, Example], ...] = ()
    queries: QueryEmbeddings | None = None
    encoded: EncodedImage | None = None
    source: Photo | None = None
    box_xyxy: Box | None = None

    def of(self, detector: Detector, photo: Photo) -> "Mapped":
        """The same names for another photo, in the size that the page shows."""
        shown = photo.open().copy()
        shown.thumbnail((SHOWN_PX, SHOWN_PX))
        box = self.box_xyxy if self.source is not None else None
        return replace(self, photo=photo, encoded=detector.encode_image(shown, masks=True), box_xyxy=box)

    def named(self, detector: Detector, text: str) -> "Mapped":
        """The same photo with the names in a text."""
        names = tuple(split_names(text))
        return self if names == self.names else replace(self, names=names).asked(detector)

    def asked(self, detector: Detector) -> "Mapped":
        """With names and examples encoded."""
        queries = self.as_queries()
        check_count(len(queries))
        return replace(self, queries=detector.encode_queries(queries) if queries else None)

    def as_queries(self) -> list[str | Query]:
        """What is asked for; a name without examples is a text alone, as a call of the library has it."""
        queries: list[str | Query] = []
        for name in dict.fromkeys([*self.names, *(name for name, _ in self.shown)]):
            own = [one for of, one in self.shown if of == name]
            wanted = [one.exemplar() for one in own if one.wanted]
            texts = [name] if name in self.names else []
            if not texts and not wanted:
                raise QueryError(f"say what “{name}” is, by its name or an example, before what it is not")
            negatives = [one.exemplar() for one in own if not one.wanted]
            queries.append(Query(name, texts=texts, exemplars=wanted, negatives=negatives) if own else name)
        return queries

    @property
    def drawn_on(self) -> Photo | None:
        """The photo to draw on."""
        return self.source or self.photo


def map_value(found: SemanticMap) -> dict[str, Any]:
    """A map for the page: a picture whose red says which name, counted from 1, and whose green says how sure; and the
    names that it shows, the largest area first."""
    labels, scores = found.labels.numpy(), found.scores.numpy()
    channels = [labels + 1, np.round(255 * scores), np.zeros_like(labels)]
    picture = Image.fromarray(np.stack([one.astype(np.uint8) for one in channels], -1))
    areas = [
        {"id": label, "name": found.names[label], "share": share, "score": float(scores[labels == label].mean())}
        for label, share in found.shares().items()
        if label >= 0
    ]
    return {"src": data_uri(picture, max(picture.size), crisp=True), "areas": areas}


def show(detector: Detector, mapped: Mapped, threshold: float, model: str = "nano") -> tuple[dict, dict]:
    """The photo under its map, and the downloads; code calls the detector ``model``."""
    if mapped.photo is None or mapped.encoded is None:
        return no_photo(*NO_PHOTO), stage_files([])
    if mapped.queries is None:
        return stage_value(mapped.photo, note={"text": UNNAMED}), stage_files([])
    value = map_value(detector.segment(mapped.encoded, mapped.queries, threshold=threshold))
    if not value["areas"]:
        note = {"text": f"Nothing reaches the threshold of {threshold:.2f}. Lower it, or name something else."}
        return stage_value(mapped.photo, note=note, map=value), stage_files([])
    return stage_value(mapped.photo, map=value), _files(mapped.photo, detector, mapped, threshold, model)


def fetch(detector: Detector, mapped: Mapped, threshold: float, model: str, wanted: str) -> dict:
    """The downloads with the content of the one that is ``wanted``, in the pixels of the photo itself."""
    photo, encoded, queries = mapped.photo, mapped.encoded, mapped.queries
    if photo is None or encoded is None or queries is None:
        return stage_files([])
    whole = encoded if encoded.image_hw == (photo.height, photo.width) else photo.open()
    found = detector.segment(whole, queries, threshold=threshold)
    return _files(photo, detector, mapped, threshold, model, found, wanted)


def _files(
    photo: Photo,
    detector: Detector,
    mapped: Mapped,
    threshold: float,
    model: str,
    found: SemanticMap | None = None,
    wanted: str = "",
) -> dict:
    size = None if detector.image_size == detector.spec.image_size else detector.image_size
    call = MapCall(model, mapped.names, threshold, from_file=bool(mapped.shown), image_size=size)
    given = [*downloads(photo, found, wanted), *query_file(photo, mapped.queries)]
    return stage_files(given, copies(photo, call))


def show_source(mapped: Mapped) -> dict:
    """The photo to draw on, with the box so far."""
    if mapped.drawn_on is None:
        return no_photo(*NO_SOURCE)
    return draw_value(mapped.drawn_on, mapped.box_xyxy)


def show_examples(mapped: Mapped) -> dict:
    """The strip of examples, each with its name."""
    return strip_value([{**one.item(), "caption": name} for name, one in mapped.shown])


@dataclass(frozen=True, slots=True)
class Handlers:
    """What the tab does on each click."""

    models: Models

    @property
    def detector(self) -> Detector:
        """What looks at photos: the model that the demo was started with."""
        return self.models.detector()

    def ask(self, session: Session[Mapped], step: Callable[[Mapped], Mapped]) -> tuple:
        """A step that may take long: the state, and the photo to draw on."""
        return session, show_source(session.change(step))

    @errors_shown
    def on_upload(self, upload: Upload, session: Session[Mapped], text: str):
        """Another photo."""
        photo = take_photo(*upload)
        given = text.strip() or ("" if session.value.shown else FIRST)
        asked = self.ask(session, lambda mapped: mapped.named(self.detector, given).of(self.detector, photo))
        return *asked, gr.skip() if text.strip() else given  # others may stand there by now

    @errors_shown
    def on_sample(self, event: gr.EventData, session: Session[Mapped]):
        """A sample, with names of what may be in it."""
        sample = pick(samples(), event.index)
        photo, text = take_photo(sample.path), sample.queries
        return *self.ask(session, lambda mapped: mapped.named(self.detector, text).of(self.detector, photo)), text

    @errors_shown
    def on_names(self, session: Session[Mapped], text: str):
        """Other names."""
        return self.ask(session, lambda mapped: mapped.named(self.detector, text))[0]

    @errors_shown
    def on_source(self, upload: Upload, session: Session[Mapped]):
        """Another photo to draw on."""
        photo = take_photo(*upload)
        return self.ask(session, lambda mapped: replace(mapped, source=photo, box_xyxy=None))

    def on_drawn(self, event: gr.EventData, session: Session[Mapped]):
        """The box that was drawn, or that went."""
        if not meant(session.value.drawn_on, event):
            return session
        box = tuple(float(value) for value in event.box) if event.box else None
        session.change(lambda mapped: replace(mapped, box_xyxy=box))
        return session

    @errors_shown
    def on_add(self, wanted: bool, session: Session[Mapped], text: str, name: str):
        """What is in the box as an example of a name, or as what it is not; the names in the field count as well."""
        mapped, name = session.value, name.strip() or THING
        if mapped.drawn_on is None:
            raise Refused("No photo yet", "First choose a photo that shows the thing.")
        if len(mapped.shown) >= MOST_EXAMPLES:
            raise QueryError(f"there are {MOST_EXAMPLES} examples already; take one away first")
        example = Example.of(mapped.drawn_on, mapped.box_xyxy, wanted)

        def step(mapped: Mapped) -> Mapped:
            mapped = replace(mapped, names=tuple(split_names(text)), shown=(*mapped.shown, (name, example)))
            return mapped.asked(self.detector)

        return session, show_examples(session.change(step))

    @errors_shown
    def on_removed(self, event: gr.EventData, session: Session[Mapped]):
        """An example less, and what is said not to be a thing that nothing says any more."""
        if getattr(event, "of", len(session.value.shown)) != len(session.value.shown):  # the second click on what went
            return session, gr.skip()
        _, gone = pick(session.value.shown, event.index)

        def step(mapped: Mapped) -> Mapped:
            kept = tuple(pair for pair in mapped.shown if pair[1] is not gone)
            said = {*mapped.names, *(name for name, one in kept if one.wanted)}
            return replace(mapped, shown=tuple(pair for pair in kept if pair[0] in said)).asked(self.detector)

        return session, show_examples(session.change(step))

    @errors_shown
    def on_view(self, session: Session[Mapped], threshold: float):
        """The map as the settings are now."""
        stage_, files_ = show(self.detector, session.value, threshold, self.models.source())
        return stage_, where_served(files_, self.models.served)

    @errors_shown
    def on_wanted(self, event: gr.EventData, session: Session[Mapped], threshold: float):
        """The downloads with one that is made now."""
        files_ = fetch(self.detector, session.value, threshold, self.models.source(), str(event.label))
        return where_served(files_, self.models.served)


def build(models: Models) -> None:
    """The tab."""
    wire(layout(gr.State(Session(Mapped()))), Handlers(models))


def wire(page: Page, on: Handlers) -> None:
    """Which event calls which handler."""
    state, names, source = page.state, page.names, page.source
    viewed, asked = [state, page.threshold], [state, source.photo, names]
    look = Answers(on.on_view, viewed, [page.photo, page.downloads], page.photo, "map-view")
    look(page.upload.upload, on.on_upload, [page.upload, state, names], asked)
    look([page.find.click, names.submit], on.on_names, [state, names], [state])
    if page.samples is not None:
        look(page.samples.picked, on.on_sample, [state], asked)
    given, listed = [state, names, source.name], [state, source.examples]
    in_order: dict[str, Any] = {
        "concurrency_id": "map-shown",
        "concurrency_limit": 1,
    }  # what is added is what was drawn before
    each, once = {"trigger_mode": "multiple"}, {"trigger_mode": "once"}
    look(source.add.click, partial(on.on_add, True), given, listed, **in_order, **once)
    look(source.add_not.click, partial(on.on_add, False), given, listed, **in_order, **once)
    look(source.examples.removed, on.on_removed, [state], listed)
    source.upload.upload(on.on_source, [source.upload, state], [state, source.photo], **each, **QUIET)
    source.photo.drawn(on.on_drawn, [state], [state], **each, **in_order, **QUIET)
    look.again(moved(page.threshold))
    page.downloads.wanted(on.on_wanted, viewed, page.downloads, **each, **QUIET)
    zoom.wire(page.photo, state, lambda mapped: mapped.photo)
    zoom.wire(source.photo, state, lambda mapped: mapped.drawn_on)
