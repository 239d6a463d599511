"""Search: an archive of pictures, and where in it a thing is."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import gradio as gr

from owl_swin import Detector, MissingExtraError, RegionIndex
from owl_swin.demo.asking import FLOOR
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
from owl_swin.demo.photos import samples, take_photo
from owl_swin.demo.pieces import BUSY, QUIET, Upload, stage, stage_value, strip, upload_button
from owl_swin.demo.refusals import Refused, errors_shown, pick
from owl_swin.demo.results import (
    NO_RESULT,
    NO_SOURCE,
    Filters,
    Searched,
    ask_example,
    ask_like,
    ask_text,
    find,
    go_back,
    in_archive,
    kept_choice,
    page_text,
    show_match,
    show_matches,
)
from owl_swin.demo.settings import in_turn, moved, offered

# What the samples are asked for.
TRIED = "a person"
NOT_INSTALLED = str(MissingExtraError("Searching an archive", "search"))


def in_own(detector: Detector, searched: Searched) -> tuple[Searched, Archive]:
    """The tab turned to the visitor's own archive, made if need be: one that the server brought is its owner's."""
    own = searched.own or Archive.own(detector)
    return replace(in_archive(searched, own), own=own), own


def adding(searched: Searched, news: Iterator[str]) -> Iterator[tuple]:
    """What the tab shows while its archive is filled: progress, stats, state and results, as they change.

    The state turns to the archive as soon as something is in it: adding nothing loses nothing.
    """
    assert searched.archive is not None
    turned, same = False, [gr.skip()] * N_FOUND
    last = bar(0, 1, "Starting …")
    yield last, gr.skip(), *same
    for last in news:
        if turned or not searched.archive.index.stats().n_images:
            yield last, gr.skip(), *same
        else:
            turned = True
            yield last, stats_text(searched.archive), *show(searched)
    if turned:
        yield last, stats_text(searched.archive), *same
    elif searched.archive.index.stats().n_images:
        yield last, stats_text(searched.archive), *show(searched)


def show(searched: Searched) -> tuple:
    """The state, what the query field says, the strip, the photo of the result that is looked at, and the buttons:
    more like it, back to the question before, the page before, which page this is, and the next."""
    return (
        searched,
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
    state = gr.State(Searched())
    with gr.Row(elem_classes="owl-columns"):
        with gr.Column(scale=2, min_width=280):
            photos, wanted = layout_photos(attached, folders), layout_wanted()
        with gr.Column(scale=3, min_width=300):
            results = layout_results()
    on = Handlers(detector, attached)
    wire_photos(state, photos, wanted, results, on)
    wire_search(state, wanted, results, on)


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
    threshold = gr.Slider(0, 1, 0.1, step=FLOOR, label="Threshold", elem_id="search-threshold")
    return Wanted(text, find_, source, upload, like, threshold, layout_filters())


def layout_filters() -> list[Any]:
    """The filters of `owl-swin search`, in the order of ``Filters``, folded away."""
    with gr.Accordion("Filters", open=False):
        return [
            gr.Slider(1, 20, 3, step=1, label="Most results of one photo", elem_id="search-per-photo"),
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


@dataclass(frozen=True, slots=True)
class Handlers:
    """What the tab does on each click; ``attached`` is the archive that the server brought, if any.

    ``running`` has, of each visitor whose photos are being added, what stops that.
    """

    detector: Detector
    attached: Archive | None
    running: dict[str, threading.Event] = field(default_factory=dict)

    def ready(self, searched: Searched, threshold: float, *filters: Any) -> Searched:
        """The tab with something to search in, what the visitor filled or what the server brought, and its settings."""
        archive = searched.archive if searched.archive is not None else self.attached
        return replace(searched, archive=archive, threshold=threshold, filters=Filters(*filters))

    def filling(self, request: gr.Request, news: Callable[[threading.Event], Iterator[tuple]]) -> Iterator[tuple]:
        """The steps of ``news``, with the button that stops them before each, which goes in the end."""
        visitor = str(request.session_hash)
        if visitor in self.running:
            raise Refused("Photos are being added", "Wait until these are done, or stop it first.")
        stop = self.running[visitor] = threading.Event()
        try:
            for step in news(stop):
                yield gr.update(visible=True), *step
            yield DONE
        except Exception:
            yield DONE
            raise
        finally:
            del self.running[visitor]

    @errors_shown
    def on_files(self, uploads: list[Upload], searched: Searched, request: gr.Request):
        """Uploads, of which those that are no pictures are passed over."""
        pictures = pictures_of(uploads)
        searched, own = in_own(self.detector, searched)
        yield from self.filling(request, lambda stop: adding(searched, index_files(own, pictures, stop)))

    @errors_shown
    def on_folder(self, path: str, searched: Searched, request: gr.Request):
        """A folder of the machine that this runs on."""
        folder = named_folder(path)
        searched, own = in_own(self.detector, searched)
        yield from self.filling(request, lambda stop: adding(searched, index_folder(own, folder, stop)))

    @errors_shown
    def on_try(self, searched: Searched, request: gr.Request):
        """The samples, and a first search in them."""
        searched, own = in_own(self.detector, searched)
        photos = [Upload(str(one.path), one.path.name) for one in samples()]
        for step in self.filling(request, lambda stop: adding(searched, index_files(own, photos, stop))):
            yield gr.skip(), *step
        searched = ask_text(self.detector, self.ready(searched, 0.0), TRIED)
        yield 0, gr.skip(), gr.skip(), stats_text(own), *show(searched)

    def on_stop(self, request: gr.Request):
        """The end of what is being added."""
        if (stop := self.running.get(str(request.session_hash))) is not None:
            stop.set()

    @errors_shown
    def on_back_to_server(self, searched: Searched):
        """The server's archive again; the visitor's own stays for what is added next."""
        searched = in_archive(searched, self.attached)
        return "", stats_text(self.attached), *show(searched)

    @errors_shown
    def on_text(self, text: str, searched: Searched, *settings: Any):
        """A search by name."""
        return show(ask_text(self.detector, self.ready(searched, *settings), text))

    @errors_shown
    def on_example(self, searched: Searched, *settings: Any):
        """A search for what is in the box."""
        if searched.source is None:
            raise Refused("No photo yet", "First choose a photo of the thing.")
        return show(ask_example(self.detector, self.ready(searched, *settings), searched.source, searched.box_xyxy))

    @errors_shown
    def on_like(self, searched: Searched, *settings: Any):
        """A search for the like of a result."""
        if not searched.matches:
            raise Refused("Nothing chosen", "First search, then choose a result.")
        return show(ask_like(self.ready(searched, *settings), searched.matches[searched.chosen]))

    @errors_shown
    def on_back(self, searched: Searched, *settings: Any):
        """The search before."""
        return show(go_back(self.ready(searched, *settings)))

    @errors_shown
    def on_settings(self, searched: Searched, *settings: Any):
        """The same search with another threshold or other filters."""
        return leaving_text(show(kept_choice(searched, find(replace(self.ready(searched, *settings), chosen=0)))))

    @errors_shown
    def on_page(self, step: int, searched: Searched, *settings: Any):
        """A page further, or back."""
        turned = replace(self.ready(searched, *settings), chosen=0)
        return leaving_text(show(find(turned, max(0, searched.page + step))))

    @errors_shown
    def on_picked(self, event: gr.EventData, searched: Searched):
        """Another result to look at; the page has marked it already."""
        pick(searched.matches, event.index)
        searched = replace(searched, chosen=event.index)
        return searched, show_match(searched)

    @errors_shown
    def on_source(self, upload: Upload, searched: Searched):
        """A photo to draw an example on."""
        searched = replace(searched, source=take_photo(*upload), box_xyxy=None)
        return searched, stage_value(searched.source)

    @errors_shown
    def on_drawn(self, event: gr.EventData, searched: Searched):
        """The box that was drawn, or that went."""
        return replace(searched, box_xyxy=tuple(event.box) if event.box else None)


def found_of(state: gr.State, wanted: Wanted, results: Results) -> list[Any]:
    """What ``show`` fills, in its order."""
    buttons = [results.like, results.back, results.earlier, results.page, results.later]
    return [state, wanted.text, results.matches, results.photo, *buttons]


def wire_photos(state: gr.State, photos: Photos, wanted: Wanted, results: Results, on: Handlers) -> None:
    """What fills an archive, or turns to another."""
    found = found_of(state, wanted, results)
    added = [photos.stop, photos.progress, photos.stats, *found]
    photos.files.upload(on.on_files, [photos.files, state], added, **QUIET)
    photos.folder_files.upload(on.on_files, [photos.folder_files, state], added, **QUIET)
    if photos.folder is not None and photos.index is not None:
        gr.on([photos.index.click, photos.folder.submit], on.on_folder, [photos.folder, state], added, **QUIET)
    if photos.tried is not None:
        photos.tried.click(on.on_try, [state], [wanted.threshold, *added], **QUIET)
    photos.stop.click(on.on_stop, **QUIET)
    if photos.attached is not None:
        photos.attached.click(on.on_back_to_server, [state], added[1:], **QUIET)


def wire_search(state: gr.State, wanted: Wanted, results: Results, on: Handlers) -> None:
    """What searches, and what is looked at of the answer."""
    found = found_of(state, wanted, results)
    asks = [state, wanted.threshold, *wanted.filters]
    busy = {**BUSY, "show_progress_on": results.matches}
    gr.on([wanted.find.click, wanted.text.submit], on.on_text, [wanted.text, *asks], found, **busy)
    source_busy = {**BUSY, "show_progress_on": wanted.source}
    wanted.upload.upload(on.on_source, [wanted.upload, state], [state, wanted.source], **source_busy)
    wanted.source.drawn(on.on_drawn, [state], [state], trigger_mode="multiple", **QUIET)
    wanted.like.click(on.on_example, asks, found, **busy)
    results.like.click(on.on_like, asks, found, **busy)
    results.back.click(on.on_back, asks, found, **busy)
    results.earlier.click(lambda *given: on.on_page(-1, *given), asks, found, **busy)
    results.later.click(lambda *given: on.on_page(1, *given), asks, found, **busy)
    per_photo, paths, newer, older, min_side, exact = wanted.filters
    typed = [event for one in (paths, newer, older, min_side) for event in (one.submit, one.blur)]
    changed = [*moved(wanted.threshold), per_photo.release, exact.input, *typed]
    gr.on(changed, on.on_settings, asks, found, trigger_mode="always_last", **in_turn("search-view"))
    results.matches.picked(on.on_picked, [state], [state, results.photo], **QUIET)
    offered_ = results.photo.asked(offered, None, wanted.threshold, **QUIET)
    offered_.then(on.on_settings, asks, found, **{**busy, **in_turn("search-view")})
