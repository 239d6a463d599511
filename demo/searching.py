"""Search: an archive of pictures, and where in it a thing is."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from owl_swin import ArchiveError, Detector, Exemplar, ImageError, Match, MissingExtraError, RegionIndex
from owl_swin.demo.asking import FLOOR
from owl_swin.demo.filling import Archive, bar, index_files, index_folder, installed, pictures_of, stats_text
from owl_swin.demo.photos import Photo, crop_uri, samples, take_photo
from owl_swin.demo.pieces import BUSY, HOW, QUIET, errors_shown, no_photo, pick, stage, stage_value, strip, strip_value

LIMIT = 24
PER_PHOTO = 3
# What the samples are asked for.
TRIED = "a person"
NOT_INSTALLED = str(MissingExtraError("Searching an archive", "search"))
NO_SOURCE = ("Drop a photo of the thing", HOW)
NO_RESULT = ("Results come here", "Add photos, then search in them by a name or an example.")


@dataclass(frozen=True, slots=True)
class Searched:
    """What stands in the tab: the archive, its answers, the one that is looked at, what was asked, and an example.

    ``own`` is what the visitor filled, if anything; ``archive`` is that, or the one that the server brought.
    """

    archive: Archive | None = None
    own: Archive | None = None
    matches: tuple[Match, ...] = ()
    chosen: int = -1
    asked: Any = None
    source: Photo | None = None
    box_xyxy: tuple[float, float, float, float] | None = None

    @property
    def named(self) -> str:
        """What the boxes are labelled: the name that was asked for, whatever the text field says by now."""
        return self.asked if isinstance(self.asked, str) else "match"


def in_archive(searched: Searched, archive: Archive | None) -> Searched:
    """The tab turned to an archive, of which nothing was asked yet."""
    return replace(searched, archive=archive, matches=(), chosen=-1, asked=None)


def in_own(detector: Detector, searched: Searched) -> tuple[Searched, Archive]:
    """The tab turned to the visitor's own archive, made if need be: one that the server brought is its owner's."""
    own = searched.own or Archive.own(detector)
    return replace(in_archive(searched, own), own=own), own


def adding(searched: Searched, news: Iterator[str]) -> Iterator[tuple]:
    """What the tab shows while its archive is filled: state, progress, stats and results, as they change.

    The state turns to the archive as soon as something is in it: adding nothing loses nothing.
    """
    assert searched.archive is not None
    turned, same = False, [gr.skip()] * 3
    last = bar(0, 1, "Starting …")
    yield gr.skip(), last, gr.skip(), *same
    for last in news:
        if turned or not searched.archive.index.stats().n_images:
            yield gr.skip(), last, gr.skip(), *same
        else:
            turned = True
            yield searched, last, stats_text(searched.archive), *show(searched)
    if turned:
        yield gr.skip(), last, stats_text(searched.archive), *same
    elif searched.archive.index.stats().n_images:
        yield searched, last, stats_text(searched.archive), *show(searched)


def search(searched: Searched, query: Any, threshold: float) -> Searched:
    """The best regions of the archive for a query."""
    if searched.archive is None:
        raise ArchiveError("there are no photos to search in yet; add some first")
    matches = searched.archive.index.search(query, limit=LIMIT, threshold=threshold, per_image=PER_PHOTO)
    return replace(searched, matches=tuple(matches), chosen=0 if matches else -1, asked=query)


def note_of_nothing(searched: Searched) -> dict[str, Any] | None:
    """What to do when nothing in the archive answers."""
    if searched.asked is None or searched.archive is None:
        return None
    nearest = searched.archive.index.search(searched.asked, limit=1)
    advice = "Use a plainer word, or search by an example."
    if not nearest or (lower := math.floor(100 * nearest[0].score) / 100) < FLOOR:
        return {"text": f"Nothing like it is in these photos. {advice}"}
    return {
        "text": f"Nothing reaches the threshold. Nearest is a region with a score of {nearest[0].score:.2f}. {advice}",
        "action": f"Lower the threshold to {lower:.2f}",
        "value": lower,
    }


def item(archive: Archive, match: Match) -> dict[str, Any]:
    """A match as an item of the strip; one whose photo is gone says so."""
    name = Path(match.path).name
    try:
        src = crop_uri(archive.index.open_picture(match.image_id), match.box_xyxy)
    except ImageError:
        src = ""
    return {"src": src, "title": f"{name}, score {match.score:.3f}", "caption": name, "badge": f"{match.score:.2f}"}


def show(searched: Searched) -> tuple[dict, dict, Any]:
    """The strip of matches, the photo of the one that is looked at, and whether there is one."""
    if searched.archive is None or not searched.matches:
        return strip_value([]), {**no_photo(*NO_RESULT), "note": note_of_nothing(searched)}, gr.update(visible=False)
    items = [item(searched.archive, match) for match in searched.matches]
    return strip_value(items, chosen=searched.chosen), show_match(searched), gr.update(visible=True)


def show_match(searched: Searched) -> dict:
    """The photo of the match that is looked at, with its box."""
    match = searched.matches[searched.chosen]
    try:
        assert searched.archive is not None
        photo = take_photo(searched.archive.index.open_picture(match.image_id), Path(match.path).name)
    except ImageError as error:
        return no_photo("This photo is gone", str(error))
    mark = {"box": match.box_xyxy, "label": searched.named, "score": match.score, "query": 0, "patch": None}
    return stage_value(photo, boxes=[mark], note={"text": match.path})


def build(detector: Detector, index: RegionIndex | None, *, folders: bool) -> None:
    """The tab."""
    if index is None and not installed():
        gr.Markdown(f"### Search is not installed\n{NOT_INSTALLED}", elem_classes="owl-step")
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


@dataclass(frozen=True, slots=True)
class Results:
    """The photo of one result, and all of them."""

    photo: gr.HTML
    more: gr.Button
    matches: gr.HTML


def layout_photos(attached: Archive | None, folders: bool) -> Photos:
    """The upper half of the left column."""
    gr.Markdown("#### 1 · Photos to search in", elem_classes="owl-step")
    stats = gr.Markdown(stats_text(attached), elem_id="search-stats")
    small: dict[str, Any] = {"size": "md", "min_width": 110}
    with gr.Row(elem_classes="owl-buttons"):
        many = gr.UploadButton(
            "Add photos", file_types=["image"], file_count="multiple", elem_id="search-files", **small
        )
        folder_files = gr.UploadButton("Add a folder", file_count="directory", elem_id="search-folder-upload", **small)
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
    return Photos(stats, many, folder_files, folder, index, tried, back, progress)


def layout_wanted() -> Wanted:
    """The lower half of the left column."""
    gr.Markdown("#### 2 · What to look for", elem_classes="owl-step")
    text = gr.Textbox(
        "",
        label="A name",
        placeholder="a red mug",
        elem_id="search-text",
        info="Enter searches.",
        lines=1,
        max_lines=1,
    )
    find = gr.Button("Search", variant="primary", elem_id="search-find")
    with gr.Accordion("Or show an example", open=False):
        source = stage("draw", upload="search-source-upload", empty=NO_SOURCE, elem_id="search-source")
        upload = gr.UploadButton(
            "Choose a photo of the thing", file_types=["image"], elem_id="search-source-upload", size="md"
        )
        like = gr.Button("Search for what is in the box", size="md", elem_id="search-like")
    threshold = gr.Slider(0, 1, 0.1, step=FLOOR, label="Threshold", elem_id="search-threshold")
    return Wanted(text, find, source, upload, like, threshold)


def layout_results() -> Results:
    """The right column."""
    gr.Markdown("#### 3 · Where it is\nThe best comes first; click another to see its photo.", elem_classes="owl-step")
    photo = stage("look", empty=NO_RESULT, elem_id="search-photo")
    more = gr.Button("More like this", size="md", elem_id="search-more", visible=False)
    matches = strip(grid=True, elem_id="search-results")
    return Results(photo, more, matches)


@dataclass(frozen=True, slots=True)
class Handlers:
    """What the tab does on each click; ``attached`` is the archive that the server brought, if any."""

    detector: Detector
    attached: Archive | None

    def with_archive(self, searched: Searched) -> Searched:
        """The tab with something to search in: what the visitor filled, or what the server brought."""
        return searched if searched.archive is not None else replace(searched, archive=self.attached)

    @errors_shown
    def on_files(self, paths: list[str], searched: Searched):
        """Uploads, of which those that are no pictures are passed over."""
        pictures = pictures_of(paths)
        searched, own = in_own(self.detector, searched)
        yield from adding(searched, index_files(own, pictures))

    @errors_shown
    def on_folder(self, path: str, searched: Searched):
        """A folder of the machine that this runs on."""
        searched, own = in_own(self.detector, searched)
        yield from adding(searched, index_folder(own, path.strip()))

    @errors_shown
    def on_try(self, searched: Searched):
        """The samples, and a first search in them."""
        searched, own = in_own(self.detector, searched)
        for step in adding(searched, index_files(own, [one.path for one in samples()])):
            yield gr.skip(), gr.skip(), *step
        searched = search(searched, TRIED, 0.0)
        yield TRIED, 0, searched, gr.skip(), stats_text(own), *show(searched)

    @errors_shown
    def on_back(self, searched: Searched):
        """The server's archive again; the visitor's own stays for what is added next."""
        searched = in_archive(searched, self.attached)
        return searched, "", stats_text(self.attached), *show(searched)

    @errors_shown
    def on_text(self, text: str, threshold: float, searched: Searched):
        """A search by name."""
        searched = search(self.with_archive(searched), text, threshold)
        return searched, *show(searched)

    @errors_shown
    def on_like(self, threshold: float, searched: Searched):
        """A search for what is in the box."""
        if searched.source is None:
            raise gr.Error("First choose a photo of the thing.", title="No photo yet", print_exception=False)
        query = Exemplar(searched.source.open(), searched.box_xyxy)
        searched = search(self.with_archive(searched), query, threshold)
        return searched, *show(searched)

    @errors_shown
    def on_more(self, threshold: float, searched: Searched):
        """A search for the like of a result."""
        if searched.chosen < 0 or searched.archive is None:
            raise gr.Error("First search, then choose a result.", title="Nothing chosen", print_exception=False)
        region = searched.matches[searched.chosen].region
        searched = search(searched, searched.archive.index.more_like(region), threshold)
        return searched, *show(searched)

    @errors_shown
    def on_asked(self, event: gr.EventData, searched: Searched):
        """The same search with the threshold that the note offers."""
        searched = search(searched, searched.asked, event.value)
        return event.value, searched, *show(searched)

    @errors_shown
    def on_picked(self, event: gr.EventData, searched: Searched):
        """Another result to look at."""
        pick(searched.matches, event.index)
        searched = replace(searched, chosen=event.index)
        matches, photo, _ = show(searched)
        return searched, matches, photo

    @errors_shown
    def on_source(self, path: str, searched: Searched):
        """A photo to draw an example on."""
        searched = replace(searched, source=take_photo(path), box_xyxy=None)
        return searched, stage_value(searched.source)

    def on_drawn(self, event: gr.EventData, searched: Searched):
        """The box that was drawn, or that went."""
        return replace(searched, box_xyxy=tuple(event.box) if event.box else None)


def wire_photos(state: gr.State, photos: Photos, wanted: Wanted, results: Results, on: Handlers) -> None:
    """What fills an archive, or turns to another."""
    added = [state, photos.progress, photos.stats, results.matches, results.photo, results.more]
    photos.files.upload(on.on_files, [photos.files, state], added, **QUIET)
    photos.folder_files.upload(on.on_files, [photos.folder_files, state], added, **QUIET)
    if photos.folder is not None and photos.index is not None:
        gr.on([photos.index.click, photos.folder.submit], on.on_folder, [photos.folder, state], added, **QUIET)
    if photos.tried is not None:
        photos.tried.click(on.on_try, [state], [wanted.text, wanted.threshold, *added], **QUIET)
    if photos.attached is not None:
        photos.attached.click(on.on_back, [state], added, **QUIET)


def wire_search(state: gr.State, wanted: Wanted, results: Results, on: Handlers) -> None:
    """What searches, and what is looked at of the answer."""
    found = [state, results.matches, results.photo, results.more]
    busy = {**BUSY, "show_progress_on": results.matches}
    gr.on([wanted.find.click, wanted.text.submit], on.on_text, [wanted.text, wanted.threshold, state], found, **busy)
    wanted.upload.upload(on.on_source, [wanted.upload, state], [state, wanted.source], **QUIET)
    wanted.source.drawn(on.on_drawn, [state], [state], trigger_mode="multiple", **QUIET)
    wanted.like.click(on.on_like, [wanted.threshold, state], found, **busy)
    results.more.click(on.on_more, [wanted.threshold, state], found, **busy)
    results.matches.picked(on.on_picked, [state], [state, results.matches, results.photo], **QUIET)
    results.photo.asked(on.on_asked, [state], [wanted.threshold, *found], **QUIET)
