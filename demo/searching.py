"""Search: an archive of pictures, and where in it a thing is."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import gradio as gr

from owl_swin import Detector, MissingExtraError, RegionIndex
from owl_swin.demo import zoom
from owl_swin.demo.filling import (
    Archive,
    bar,
    index_files,
    index_folder,
    installed,
    named_folder,
    pictures_of,
    stats_text,
)
from owl_swin.demo.photos import meant, samples, take_photo
from owl_swin.demo.pieces import BUSY, QUIET, Upload, draw_value
from owl_swin.demo.refusals import Refused, errors_shown
from owl_swin.demo.results import (
    Filters,
    Searched,
    ask_example,
    ask_like,
    ask_text,
    find,
    go_back,
    in_archive,
    kept_choice,
    looked_at,
    page_text,
    show_match,
    show_matches,
)
from owl_swin.demo.running import AT_ONCE, Runs
from owl_swin.demo.search_layout import Photos, Results, Wanted, layout_photos, layout_results, layout_wanted
from owl_swin.demo.session import Session
from owl_swin.demo.settings import in_turn, moved, offered

# What the samples are asked for.
TRIED = "a person"
NOT_INSTALLED = str(MissingExtraError("Searching an archive", "search"))


def own_of(detector: Detector, session: Session[Searched]) -> Archive:
    """The visitor's own archive, made if need be: one that the server brought is its owner's."""
    own = session.value.own or Archive.own(detector)
    return session.change(lambda now: replace(now, own=now.own or own)).own or own


def adding(session: Session[Searched], own: Archive, news: Iterator[str]) -> Iterator[tuple]:
    """What the tab shows while its archive is filled: progress, stats, state and results, as they change.

    The tab turns to the archive as soon as something is in it: adding nothing loses nothing.
    """
    turned, same = False, [gr.skip()] * N_FOUND
    last = bar(0, 1, "Starting …")
    yield last, gr.skip(), *same
    for last in news:
        if turned or not own.index.stats().n_images:
            yield last, gr.skip(), *same
        else:
            turned = True
            yield last, stats_text(own), *turned_to(session, own)
    if turned:
        yield last, stats_text(own), *same
    elif own.index.stats().n_images:
        yield last, stats_text(own), *turned_to(session, own)


def turned_to(session: Session[Searched], archive: Archive | None) -> tuple:
    """The tab turned to an archive, and what it shows of it."""
    session.change(lambda searched: in_archive(searched, archive))
    return show(session)


def show(session: Session[Searched]) -> tuple:
    """The state, what the query field says, the strip, the photo of the result that is looked at, and the buttons:
    more like it, back to the question before, the page before, which page this is, and the next."""
    searched = session.value
    return (
        session,
        searched.asked.text if searched.asked is not None else gr.skip(),
        show_matches(searched),
        show_match(searched),
        gr.update(visible=bool(searched.matches)),
        gr.update(visible=bool(searched.before)),
        gr.update(visible=searched.page > 0),
        page_text(searched),
        gr.update(visible=searched.more),
    )


N_FOUND = 9
# The last step of what adds photos: its "Stop" goes.
DONE = (gr.update(visible=False), *[gr.skip()] * (2 + N_FOUND))


def leaving_text(shown: tuple) -> tuple:
    """The same without the query field, in which the next query may stand by now."""
    return (shown[0], gr.skip(), *shown[2:])


def build(detector: Detector, index: RegionIndex | None, *, folders: bool) -> None:
    """The tab."""
    if index is None and not installed():
        gr.Markdown(f"## Search is not installed\n{NOT_INSTALLED}", elem_classes="owl-step")
        return
    attached = Archive(index) if index is not None else None
    state = gr.State(Session(Searched()))
    with gr.Row(elem_classes="owl-columns"):
        with gr.Column(scale=2, min_width=280):
            photos, wanted = layout_photos(attached, folders), layout_wanted()
        with gr.Column(scale=3, min_width=300):
            results = layout_results()
    on = Handlers(detector, attached)
    wire_photos(state, photos, wanted, results, on)
    wire_search(state, wanted, results, on)


@dataclass(frozen=True, slots=True)
class Handlers:
    """What the tab does on each click; ``attached`` is the archive that the server brought, if any."""

    detector: Detector
    attached: Archive | None
    runs: Runs = field(default_factory=lambda: Runs("Photos are being added"))

    def ask(self, session: Session[Searched], step: Callable[[Searched], Searched]) -> tuple:
        """What a step makes of the tab, with something to search in: what the visitor filled, or the server brought."""
        session.change(lambda now: step(replace(now, archive=now.archive or self.attached)))
        return show(session)

    def filling(
        self, request: gr.Request, news: Callable[[threading.Event], Iterator[tuple]], *, wait: bool = False
    ) -> Iterator[tuple]:
        """The steps of ``news``, with the button that stops them before each, which goes in the end."""
        with self.runs.begun(request, wait=wait) as stop:
            try:
                for step in news(stop):
                    yield gr.update(visible=True), *step
                yield DONE
            except Exception:
                yield DONE
                raise

    @errors_shown
    def on_files(self, uploads: list[Upload], session: Session[Searched], request: gr.Request):
        """Uploads, of which those that are no pictures are passed over."""
        pictures = pictures_of(uploads)

        def news(stop: threading.Event) -> Iterator[tuple]:
            own = own_of(self.detector, session)
            return adding(session, own, index_files(own, pictures, stop))

        yield from self.filling(request, news, wait=True)  # of files that were sent none is lost

    @errors_shown
    def on_folder(self, path: str, session: Session[Searched], request: gr.Request):
        """A folder of the machine that this runs on."""
        folder, own = named_folder(path), own_of(self.detector, session)
        yield from self.filling(request, lambda stop: adding(session, own, index_folder(own, folder, stop)))

    @errors_shown
    def on_try(self, session: Session[Searched], request: gr.Request):
        """The samples, and a first search in them."""
        own = own_of(self.detector, session)
        photos = [Upload(str(one.path), one.path.name) for one in samples()]
        for step in self.filling(request, lambda stop: adding(session, own, index_files(own, photos, stop))):
            yield gr.skip(), *step
        shown = self.ask(session, lambda now: ask_text(self.detector, replace(now, threshold=0.0), TRIED))
        yield 0, gr.skip(), gr.skip(), stats_text(own), *shown

    def on_stop(self, request: gr.Request):
        """The end of what is being added."""
        self.runs.stop(request)

    @errors_shown
    def on_back_to_server(self, session: Session[Searched]):
        """The server's archive again; the visitor's own stays for what is added next."""
        return "", stats_text(self.attached), *turned_to(session, self.attached)

    @errors_shown
    def on_text(self, text: str, session: Session[Searched]):
        """A search by name."""
        return leaving_text(self.ask(session, lambda now: ask_text(self.detector, now, text)))

    @errors_shown
    def on_example(self, session: Session[Searched]):
        """A search for what is in the box."""
        photo, box = session.value.source, session.value.box_xyxy
        if photo is None:
            raise Refused("No photo yet", "First choose a photo of the thing.")
        return self.ask(session, lambda now: ask_example(self.detector, now, photo, box))

    @errors_shown
    def on_like(self, session: Session[Searched]):
        """A search for the like of a result."""
        if not session.value.matches:
            raise Refused("Nothing chosen", "First search, then choose a result.")
        match = session.value.matches[session.value.chosen]
        return self.ask(session, lambda now: ask_like(now, match))

    @errors_shown
    def on_back(self, session: Session[Searched]):
        """The search before."""
        return self.ask(session, go_back)

    @errors_shown
    def on_settings(self, session: Session[Searched], threshold: float, *filters: Any):
        """The same search with another threshold or other filters, which hold for what is asked meanwhile, too."""
        session.change(lambda now: replace(now, threshold=threshold, filters=Filters(*filters)))
        return leaving_text(self.ask(session, lambda now: kept_choice(now, find(replace(now, chosen=0)))))

    @errors_shown
    def on_page(self, step: int, session: Session[Searched]):
        """A page further, or back."""
        page = max(0, session.value.page + step)
        return leaving_text(self.ask(session, lambda now: find(replace(now, chosen=0), page)))

    @errors_shown
    def on_picked(self, event: gr.EventData, session: Session[Searched]):
        """Another result to look at; the page has marked it already."""

        def step(now: Searched) -> Searched:
            regions = [match.region for match in now.matches]
            if event.key not in regions:
                raise Refused("Gone", "Other results are here by now.")
            return replace(now, chosen=regions.index(event.key))

        return session, show_match(session.change(step))

    @errors_shown
    def on_source(self, upload: Upload, session: Session[Searched]):
        """A photo to draw an example on."""
        photo = take_photo(*upload)
        session.change(lambda now: replace(now, source=photo, box_xyxy=None))
        return session, draw_value(photo, None)

    @errors_shown
    def on_drawn(self, event: gr.EventData, session: Session[Searched]):
        """The box that was drawn, or that went."""
        if not meant(session.value.source, event):
            return session
        box = tuple(event.box) if event.box else None
        session.change(lambda now: replace(now, box_xyxy=box))
        return session


def found_of(state: gr.State, wanted: Wanted, results: Results) -> list[Any]:
    """What ``show`` fills, in its order."""
    buttons = [results.like, results.back, results.earlier, results.page, results.later]
    return [state, wanted.text, results.matches, results.photo, *buttons]


def wire_photos(state: gr.State, photos: Photos, wanted: Wanted, results: Results, on: Handlers) -> None:
    """What fills an archive, or turns to another."""
    found = found_of(state, wanted, results)
    added = [photos.stop, photos.progress, photos.stats, *found]
    each = {**QUIET, **AT_ONCE, "trigger_mode": "multiple"}
    photos.files.upload(on.on_files, [photos.files, state], added, **each)
    photos.folder_files.upload(on.on_files, [photos.folder_files, state], added, **each)
    if photos.folder is not None and photos.index is not None:
        gr.on(
            [photos.index.click, photos.folder.submit], on.on_folder, [photos.folder, state], added, **QUIET, **AT_ONCE
        )
    if photos.tried is not None:
        photos.tried.click(on.on_try, [state], [wanted.threshold, *added], **QUIET, **AT_ONCE)
    photos.stop.click(on.on_stop, **QUIET)
    if photos.attached is not None:
        photos.attached.click(on.on_back_to_server, [state], added[1:], **QUIET)


def wire_search(state: gr.State, wanted: Wanted, results: Results, on: Handlers) -> None:
    """What searches, and what is looked at of the answer."""
    found = found_of(state, wanted, results)
    each = {"trigger_mode": "multiple"}
    busy = {**in_turn("search-view"), **BUSY, "show_progress_on": results.matches}
    gr.on([wanted.find.click, wanted.text.submit], on.on_text, [wanted.text, state], found, **each, **busy)
    source_busy = {**BUSY, **each, "show_progress_on": wanted.source}
    wanted.upload.upload(on.on_source, [wanted.upload, state], [state, wanted.source], **source_busy)
    wanted.source.drawn(on.on_drawn, [state], [state], **each, **QUIET)
    wanted.like.click(on.on_example, [state], found, **busy)
    results.like.click(on.on_like, [state], found, **busy)
    results.back.click(on.on_back, [state], found, **busy)
    results.earlier.click(lambda session: on.on_page(-1, session), [state], found, **busy)
    results.later.click(lambda session: on.on_page(1, session), [state], found, **busy)
    per_photo, paths, newer, older, min_side, exact = wanted.filters
    typed = [event for one in (paths, newer, older, min_side) for event in (one.submit, one.blur)]
    changed = [*moved(wanted.threshold), per_photo.release, exact.input, *typed]
    asks = [state, wanted.threshold, *wanted.filters]
    gr.on(changed, on.on_settings, asks, found, trigger_mode="always_last", **in_turn("search-view"))
    results.matches.picked(on.on_picked, [state], [state, results.photo], **each, **QUIET)
    zoom.wire(wanted.source, state, lambda searched: searched.source)
    zoom.wire(results.photo, state, looked_at)
    offered_ = results.photo.asked(offered, None, wanted.threshold, **each, **QUIET)
    offered_.then(on.on_settings, asks, found, trigger_mode="always_last", **busy)
