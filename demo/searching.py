"""Search: an archive of pictures, and where in it a thing is."""

import importlib.util
import math
import queue
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from owl_swin import ArchiveError, Detector, Exemplar, ImageError, IndexProgress, Match, MissingExtraError, RegionIndex
from owl_swin.demo.asking import FLOOR
from owl_swin.demo.photos import Photo, crop_uri, samples, take_photo
from owl_swin.demo.pieces import HOW, no_photo, pick, stage, stage_value, strip, strip_value, told

LIMIT = 24
PER_PHOTO = 3
# What the samples are asked for.
TRIED = "a cat"
# Uploads are handed to the archive so many at a time, so that the bar moves.
BATCH = 8
NOT_INSTALLED = str(MissingExtraError("Searching an archive", "search"))
NO_SOURCE = ("Drop a photo of the thing", HOW)
NO_RESULT = ("Results come here", "Add photos, then search in them by a name or an example.")
PICTURES = [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"]


@dataclass(frozen=True, slots=True)
class Archive:
    """An open archive; ``folder`` is the temporary one that a visitor's own archive lives in and dies with."""

    index: RegionIndex
    folder: tempfile.TemporaryDirectory | None = None

    @classmethod
    def own(cls, detector: Detector) -> "Archive":
        """An empty archive of one visitor."""
        folder = tempfile.TemporaryDirectory(prefix="owl_swin-", ignore_cleanup_errors=True)
        return cls(RegionIndex.open(Path(folder.name, "archive.lance"), detector, create=True), folder)


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


def installed() -> bool:
    """Whether the packages of the extra are there."""
    return all(importlib.util.find_spec(name) for name in ("lancedb", "pyarrow"))


def bar(done: int, total: int, text: str) -> str:
    """A progress bar, as HTML."""
    share = round(100 * done / total) if total else 0
    return (
        f'<div class="owl-progress" role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{share}">'
        f'<i style="width:{share}%"></i></div><p class="owl-hint">{text}</p>'
    )


def told_progress(progress: IndexProgress) -> str:
    """Rate and time left in words, under a bar."""
    left = "" if progress.seconds_left is None else f", about {progress.seconds_left:.0f} s left"
    return bar(
        progress.done,
        progress.total,
        f"{progress.done} of {progress.total} photos, {progress.regions} regions, {progress.rate:.1f} a second{left}",
    )


def index_folder(archive: Archive, folder: str) -> Iterator[str]:
    """Indexes a folder of this machine, telling how far it is."""
    news: queue.Queue[IndexProgress | Exception | None] = queue.Queue()

    def work() -> None:
        try:
            archive.index.add_folder(folder, progress=news.put)
            news.put(None)
        except Exception as error:  # whatever it is, the page must say so
            news.put(error)

    threading.Thread(target=work, daemon=True).start()
    while (item := news.get()) is not None:
        if isinstance(item, Exception):
            raise item
        yield told_progress(item)


def pictures_of(paths: Sequence[str | Path]) -> list[Path]:
    """The pictures by name among uploaded files; ImageError if there is none."""
    pictures = [Path(path) for path in paths if Path(path).suffix.lower() in PICTURES]
    if not pictures:
        raise ImageError("there is no picture among these files (JPEG, PNG, WebP, GIF, BMP or TIFF)")
    return pictures


def index_files(archive: Archive, pictures: Sequence[Path]) -> Iterator[str]:
    """Indexes uploaded photos, which the archive keeps, telling how far it is; broken ones are left out and counted."""
    regions, skipped = 0, 0
    for start in range(0, len(pictures), BATCH):
        batch = pictures[start : start + BATCH]
        report = archive.index.add_images([(path.name, path.read_bytes()) for path in batch])
        regions += report.regions
        skipped += len(report.skipped)
        done = start + len(batch)
        broken = f", {skipped} could not be read" if skipped else ""
        yield bar(done, len(pictures), f"{done} of {len(pictures)} photos, {regions} regions{broken}")


def told_stats(archive: Archive | None) -> str:
    """What is in the archive, in a sentence."""
    if archive is None:
        return "No photos yet."
    stats = archive.index.stats()
    return f"**{stats.n_images} photos** and {stats.n_regions} regions are ready to be searched."


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
            yield searched, last, told_stats(searched.archive), *show(searched)
    if turned:
        yield gr.skip(), last, told_stats(searched.archive), *same
    elif searched.archive.index.stats().n_images:
        yield searched, last, told_stats(searched.archive), *show(searched)


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
            gr.Markdown("#### 1 · Photos to search in", elem_classes="owl-step")
            stats = gr.Markdown(told_stats(attached), elem_id="search-stats")
            with gr.Row(elem_classes="owl-buttons"):
                many = gr.UploadButton(
                    "Add photos",
                    file_types=["image"],
                    file_count="multiple",
                    size="md",
                    elem_id="search-files",
                    min_width=110,
                )
                folder_up = gr.UploadButton(
                    "Add a folder", file_count="directory", size="md", elem_id="search-folder-upload", min_width=110
                )
            if folders:
                with gr.Row(elem_classes="owl-buttons"):
                    folder = gr.Textbox(
                        "",
                        label="A folder of this machine",
                        placeholder="/home/me/photos",
                        elem_id="search-folder",
                        scale=3,
                    )
                    add = gr.Button("Index it", size="md", elem_id="search-index", scale=1, min_width=90)
            if samples() and attached is None:
                try_ = gr.Button("Try it with six sample photos", size="md", elem_id="search-try")
            if attached is not None:
                back = gr.Button("Search the server’s archive", size="md", elem_id="search-attached")
            progress = gr.HTML("", elem_id="search-progress", apply_default_css=False)
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
                source_upload = gr.UploadButton(
                    "Choose a photo of the thing", file_types=["image"], elem_id="search-source-upload", size="md"
                )
                like = gr.Button("Search for what is in the box", size="md", elem_id="search-like")
            threshold = gr.Slider(0, 1, 0.1, step=FLOOR, label="Threshold", elem_id="search-threshold")
        with gr.Column(scale=3, min_width=300):
            gr.Markdown(
                "#### 3 · Where it is\nThe best comes first; click another to see its photo.", elem_classes="owl-step"
            )
            photo = stage("look", empty=NO_RESULT, elem_id="search-photo")
            more = gr.Button("More like this", size="md", elem_id="search-more", visible=False)
            matches = strip(grid=True, elem_id="search-results")

    results = [matches, photo, more]

    def with_archive(searched: Searched) -> Searched:
        return searched if searched.archive is not None else replace(searched, archive=attached)

    @told
    def on_files(paths: list[str], searched: Searched):
        pictures = pictures_of(paths)
        searched, own = in_own(detector, searched)
        yield from adding(searched, index_files(own, pictures))

    @told
    def on_folder(path: str, searched: Searched):
        searched, own = in_own(detector, searched)
        yield from adding(searched, index_folder(own, path.strip()))

    @told
    def on_try(searched: Searched):
        searched, own = in_own(detector, searched)
        for step in adding(searched, index_files(own, [one.path for one in samples()])):
            yield gr.skip(), gr.skip(), *step
        searched = search(searched, TRIED, 0.0)
        yield TRIED, 0, searched, gr.skip(), told_stats(own), *show(searched)

    @told
    def on_back(searched: Searched):
        searched = in_archive(searched, attached)
        return searched, "", told_stats(attached), *show(searched)

    @told
    def on_text(text_: str, threshold_: float, searched: Searched):
        searched = search(with_archive(searched), text_, threshold_)
        return searched, *show(searched)

    @told
    def on_like(threshold_: float, searched: Searched):
        if searched.source is None:
            raise gr.Error("First choose a photo of the thing.", title="No photo yet", print_exception=False)
        query = Exemplar(searched.source.open(), searched.box_xyxy)
        searched = search(with_archive(searched), query, threshold_)
        return searched, *show(searched)

    @told
    def on_more(threshold_: float, searched: Searched):
        if searched.chosen < 0 or searched.archive is None:
            raise gr.Error("First search, then choose a result.", title="Nothing chosen", print_exception=False)
        region = searched.matches[searched.chosen].region
        searched = search(searched, searched.archive.index.more_like(region), threshold_)
        return searched, *show(searched)

    @told
    def on_asked(event: gr.EventData, searched: Searched):
        searched = search(searched, searched.asked, event.value)
        return event.value, searched, *show(searched)

    @told
    def on_picked(event: gr.EventData, searched: Searched):
        pick(searched.matches, event.index)
        searched = replace(searched, chosen=event.index)
        return (
            searched,
            strip_value([item(searched.archive, m) for m in searched.matches], chosen=event.index),
            show_match(searched),
        )

    @told
    def on_source(path: str, searched: Searched):
        searched = replace(searched, source=take_photo(path), box_xyxy=None)
        return searched, stage_value(searched.source)

    def on_drawn(event: gr.EventData, searched: Searched):
        return replace(searched, box_xyxy=tuple(event.box) if event.box else None)

    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    busy = {"api_visibility": "private", "show_progress": "minimal", "show_progress_on": matches}
    added = [state, progress, stats, *results]
    many.upload(on_files, [many, state], added, **quiet)
    folder_up.upload(on_files, [folder_up, state], added, **quiet)
    if folders:
        gr.on([add.click, folder.submit], on_folder, [folder, state], added, **quiet)
    if samples() and attached is None:
        try_.click(on_try, [state], [text, threshold, *added], **quiet)
    if attached is not None:
        back.click(on_back, [state], added, **quiet)
    gr.on([find.click, text.submit], on_text, [text, threshold, state], [state, *results], **busy)
    source_upload.upload(on_source, [source_upload, state], [state, source], **quiet)
    source.drawn(on_drawn, [state], [state], trigger_mode="multiple", **quiet)
    like.click(on_like, [threshold, state], [state, *results], **busy)
    more.click(on_more, [threshold, state], [state, *results], **busy)
    matches.picked(on_picked, [state], [state, matches, photo], **quiet)
    photo.asked(on_asked, [state], [threshold, state, *results], **quiet)
