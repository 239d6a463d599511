"""The strip of several photos in "Name it": what it shows, what its clicks do, and the zip of all answers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from owl_swin import Detections, Detector, ImageError
from owl_swin.demo.asking import Question
from owl_swin.demo.batch import (
    Rest,
    coming,
    look_again,
    marks_of,
    photos_of,
    place_of,
    stale_of,
    strip_of,
    take_next,
    taken,
    turned_to,
    without,
)
from owl_swin.demo.bundles import FORMS, Answered, write_bundle
from owl_swin.demo.photos import take_photo
from owl_swin.demo.pieces import HEAD, QUIET, Upload, upload_button
from owl_swin.demo.refusals import Refused, errors_shown, explain
from owl_swin.demo.running import AT_ONCE, Runs, Stopped, as_file, made_folder
from owl_swin.demo.session import Session
from owl_swin.demo.settings import Answers, in_turn


@dataclass(frozen=True, slots=True)
class Batch:
    """The pieces; ``made`` holds the folder of the zip that can be fetched."""

    strip: gr.HTML
    add: gr.UploadButton
    zips: gr.HTML
    made: gr.State


def batch_strip() -> tuple[gr.HTML, gr.UploadButton]:
    """The strip, and the button, seen within it, that adds photos."""
    strip = gr.HTML(
        value={"items": []},
        marks={},
        html_template='<div class="owl-batch"></div>',
        js_on_load='owlBatch(element, props, trigger, watch); // "picked" "removed" "next" "stopped" "cleared"',
        head=HEAD,
        apply_default_css=False,
        add="name-add",
        elem_id="name-batch",
    )
    add = upload_button(
        "Add photos", file_types=["image"], file_count="multiple", elem_id="name-add", elem_classes="owl-unseen"
    )
    return strip, add


def batch_zips() -> gr.HTML:
    """The zip of all answers."""
    return gr.HTML(
        value={"photos": 0},
        html_template='<div class="owl-files"></div>',
        js_on_load='owlZips(element, props, trigger, watch); // "zipped" "stopped"',
        head=HEAD,
        apply_default_css=False,
        elem_id="name-zips",
    )


def zips_value(n_photos: int, **more: Any) -> dict[str, Any]:
    """What the row of zips shows: its forms, and how far one is, or the file."""
    return {"photos": n_photos, "forms": list(FORMS), **more}


@dataclass(frozen=True, slots=True)
class Handlers:
    """What clicks on the strip do, of a tab whose session holds a dataclass with the photo that is looked at,
    ``asked``, and the ``rest`` of the batch.

    ``detector`` is what looks at a photo, ``ask`` puts what a step makes of the tab in its place, with its answer, and
    ``find`` gives what is shown of the answer for one of the photos, at a threshold and an overlap, with masks or not.
    """

    detector: Callable[[Any], Detector]
    ask: Callable[[Session, Callable[[Any], Any]], None]
    find: Callable[[Any, Question, float, float, bool], Detections | None]
    runs: Runs = field(default_factory=lambda: Runs("A zip is being made"))

    def strip(self, named: Any) -> dict[str, Any]:
        """The strip with its photos."""
        return strip_of(self.detector(named), named.asked, named.rest)

    def on_marks(self, session: Session, threshold: float, overlap: float) -> tuple:
        """What the strip says of each photo, and the row of zips."""
        named = session.value
        photos = photos_of(named.asked, named.rest)
        if len(photos) < 2:
            return gr.HTML(marks={"chosen": 0}), zips_value(0)
        found = [self.find(named, one, threshold, overlap, False) for one in photos]
        return gr.HTML(marks=marks_of(len(named.rest.before), found)), zips_value(len(photos))

    @errors_shown
    def on_photos(self, uploads: Sequence[Upload], session: Session, *, add: bool = False):
        """Other photos in place of the one that is there; where there are several, or with ``add``, more of them."""
        named = session.value
        if named.asked.photo is not None and (add or len(photos_of(named.asked, named.rest)) > 1):
            session.change(lambda now: replace(now, rest=coming(now.asked, replace(now.rest, left_out=()), uploads)))
            return session, self.strip(session.value)
        left_out, rest = [], list(uploads)
        first = None
        while rest and first is None:
            try:
                first = take_photo(*rest.pop(0))
            except ImageError as error:
                left_out.append(explain(error)[1])
        if first is None:
            raise ImageError("; ".join(left_out))
        photo = first

        def step(now: Any) -> Any:
            now = replace(now, asked=now.asked.of(photo), rest=Rest(left_out=tuple(left_out)))
            return replace(now, rest=coming(now.asked, now.rest, rest))

        self.ask(session, step)
        return session, self.strip(session.value)

    @errors_shown
    def on_next(self, session: Session):
        """The next photo that is to come, or that another size is still to be looked at in."""
        named = session.value
        if named.rest.waiting:
            upload, photo, why = take_next(self.detector(named), named.asked, named.rest)

            def step(now: Any) -> Any:
                asked, rest = taken(now.asked, now.rest, upload, photo, why)
                return replace(now, asked=asked, rest=rest)

            session.change(step)
        else:
            self.ask(session, lambda now: self._looked_again(now))
        return session, self.strip(session.value)

    def _looked_again(self, named: Any) -> Any:
        detector = self.detector(named)
        stale = stale_of(detector, named.asked, named.rest)
        if not stale:
            return named
        asked, rest = look_again(detector, named.asked, named.rest, stale[0])
        return replace(named, asked=asked, rest=rest)

    @errors_shown
    def on_picked(self, event: gr.EventData, session: Session):
        """Another photo to look at."""

        def step(now: Any) -> Any:
            place = place_of(now.asked, now.rest, str(event.key), str(event.name))
            asked, rest = turned_to(now.asked, now.rest, place)
            return replace(now, asked=asked, rest=rest)

        self.ask(session, step)
        return session

    @errors_shown
    def on_removed(self, event: gr.EventData, session: Session):
        """A photo less."""

        def step(now: Any) -> Any:
            place = place_of(now.asked, now.rest, str(event.key), str(event.name))
            asked, rest = without(now.asked, now.rest, place)
            return replace(now, asked=asked, rest=rest)

        self.ask(session, step)
        return session, self.strip(session.value)

    @errors_shown
    def on_cleared(self, session: Session):
        """No photo any more."""
        session.change(lambda now: replace(now, asked=now.asked.of(None), rest=Rest()))
        return session, self.strip(session.value)

    @errors_shown
    def on_stopped(self, session: Session):
        """No more photos than there are."""
        session.change(lambda now: replace(now, rest=replace(now.rest, waiting=())))
        return session, self.strip(session.value)

    @errors_shown
    def on_zip(self, event: gr.EventData, session: Session, threshold: float, overlap: float, request: gr.Request):
        """All answers as a zip: the folder of what is made, and the row of zips."""
        named, form = session.value, str(event.form)
        photos = photos_of(named.asked, named.rest)
        if form not in FORMS or not photos:
            raise Refused("Nothing to fetch", "First choose some photos.")
        if n := len(named.rest.waiting) or len(stale_of(self.detector(named), named.asked, named.rest)):
            raise Refused("Not yet", f"{n} photo{'s are' if n > 1 else ' is'} still to be looked at.")
        with self.runs.begun(request) as stop:
            yield gr.skip(), zips_value(len(photos), busy=form, done=0)
            yield from self._packed(form, self._answers(named, photos, threshold, overlap), stop)

    def _answers(self, named: Any, photos: Sequence[Question], threshold: float, overlap: float) -> list[Answered]:
        masks = named.asked.masks_by(self.detector(named))
        found = [(one, self.find(named, one, threshold, overlap, masks)) for one in photos]
        return [Answered(q.photo, one, bool(q.edits)) for q, one in found if q.photo is not None and one is not None]

    def _packed(self, form: str, batch: Sequence[Answered], stop: Any) -> Iterator[tuple]:
        folder, n_photos = made_folder(), len(batch)
        path = Path(folder.name) / f"photos.{FORMS[form]}.zip"
        try:
            for done in write_bundle(path, form, batch, stop):
                yield gr.skip(), zips_value(n_photos, busy=form, done=done)
        except Stopped:
            yield gr.skip(), zips_value(n_photos)
            return
        except Exception:
            yield gr.skip(), zips_value(n_photos)
            raise
        yield folder, zips_value(n_photos, file=as_file(path))

    def on_zip_stopped(self, request: gr.Request) -> None:
        """No zip after all."""
        self.runs.stop(request)


def wire(batch: Batch, on: Handlers, look: Answers, upload: gr.UploadButton, viewed: list[Any]) -> None:
    """Which event calls which handler: ``look`` shows the answer after it; ``viewed`` are state, threshold, overlap."""
    state, strip = viewed[0], batch.strip
    photos, kept = [state, strip], [batch.strip, batch.zips]
    look(upload.upload, on.on_photos, [upload, state], photos)
    look(batch.add.upload, partial(on.on_photos, add=True), [batch.add, state], photos)
    look(strip.picked, on.on_picked, [state], [state])
    look(strip.removed, on.on_removed, [state], photos)
    look(strip.cleared, on.on_cleared, [state], photos)
    strip.stopped(on.on_stopped, [state], photos, **QUIET)
    nearer = strip.next(on.on_next, [state], photos, trigger_mode="multiple", **QUIET)
    nearer.then(on.on_marks, viewed, kept, trigger_mode="always_last", **in_turn(look.name))
    batch.zips.zipped(on.on_zip, viewed, [batch.made, batch.zips], trigger_mode="multiple", **QUIET, **AT_ONCE)
    batch.zips.stopped(on.on_zip_stopped, **QUIET)
