"""In a video: words in, things followed from frame to frame out."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import gradio as gr

from owl_swin import Detector
from owl_swin.demo.asking import split_names
from owl_swin.demo.bundles import free_paths
from owl_swin.demo.camera import camera
from owl_swin.demo.clips import NOT_INSTALLED, Clip, Watched, copies, installed, sample, take_clip, watch
from owl_swin.demo.exports import Call, stage_files
from owl_swin.demo.models import Choice, Models, size_choices
from owl_swin.demo.photos import data_uri, samples
from owl_swin.demo.pieces import BUSY, HEAD, QUIET, Upload, files, upload_button
from owl_swin.demo.refusals import Refused, errors_shown
from owl_swin.demo.running import Runs, as_file, made_folder
from owl_swin.demo.session import Session
from owl_swin.demo.settings import Detail, more_settings, threshold_slider

NO_CLIP = ("Drop a short video here", "or click to choose one")
RATES = {"2": 2.0, "5": 5.0, "10": 10.0}
# How long the picture that is shown while the video is looked at may be.
LIVE_PX = 640
TRIED = "a cat"
LIVE_S = 0.25  # and so much later the next
READY = "Say what to find in it, then press “Find in the video”."


def clip_piece(upload: str, **options: Any) -> gr.HTML:
    """A place for one video: before, while and after it is looked at; ``upload`` is the button that takes another."""
    return gr.HTML(
        value=no_clip(),
        html_template='<div class="owl-stage"></div>',
        js_on_load="owlClip(element, props, trigger, watch);",
        head=HEAD,
        apply_default_css=False,
        upload=upload,
        **options,
    )


def no_clip() -> dict[str, Any]:
    """What stands there before there is a video."""
    return {"title": NO_CLIP[0], "text": NO_CLIP[1]}


def clip_value(clip: Clip) -> dict[str, Any]:
    """The video as it came; ``first`` is for browsers that do not play its kind."""
    return {"video": as_file(clip.path, clip.name), "first": clip.src, "alt": clip.name, "about": clip.text()}


def live_value(clip: Clip, watched: Watched) -> dict[str, Any]:
    """The last frame that was looked at, and how far that is."""
    if watched.shown is None:
        return {"frame": clip.src, "alt": clip.name, "bar": {"share": 0, "text": "Starting …"}}
    share = round(100 * min(1.0, watched.until_s / clip.length_s)) if clip.length_s else 0
    of = f" of {clip.length_s:.1f}" if clip.length_s else ""
    text = f"{watched.until_s:.1f}{of} s, {len(watched.lines)} frames, {watched.n_found} boxes"
    return {"frame": data_uri(watched.shown, LIVE_PX), "alt": clip.name, "bar": {"share": share, "text": text}}


def found_value(clip: Clip, watched: Watched, path: Path, threshold: float) -> dict[str, Any]:
    """The video with its boxes, and the things in it, the longest there first."""
    things = sorted(watched.things.values(), key=lambda one: (-one.n_frames, one.number))
    counts = [(len(watched.lines), "frame"), (watched.n_found, "box"), (len(things), "thing followed")]
    about = f"{clip.name}: " + ", ".join(_count(*count) for count in counts)
    note = watched.why
    if not watched.n_found:
        nearest = f"Nothing reaches the threshold of {threshold:.2f}; the best score was {watched.best:.2f}."
        note = f"{nearest} {watched.why}".strip()
    value = {"video": as_file(path), "alt": f"{clip.name} with boxes", "play": True, "about": about, "note": note}
    return {**value, "things": [one.row() for one in things]}


def _count(number: int, word: str) -> str:
    noun, space, rest = word.partition(" ")
    many = "" if number == 1 else "es" if noun.endswith("x") else "s"
    return f"{number} {noun}{many}{space}{rest}"


def found_files(clip: Clip, watched: Watched, path: Path, copied: Sequence[dict[str, str]] = ()) -> dict[str, Any]:
    """What can be fetched, the video with boxes and the boxes frame by frame, and the code that was ``copied``."""
    lines = {"label": "JSON lines", "name": f"{Path(clip.name).stem}.jsonl", "text": "".join(watched.lines)}
    return stage_files([{"label": "Video", "name": path.name, "file": as_file(path)}, lines], copied)


def build(choice: Choice) -> Callable[[Any], None]:
    """The tab; what it gives back follows the choice of another model."""
    if not installed():
        gr.Markdown(f"## Video is not installed\n{NOT_INSTALLED}", elem_classes="owl-step", elem_id="video-missing")
        return lambda event: None
    page, models = layout(choice.models.sizes()), choice.models
    wire(page, Handlers(models), choice.chosen)
    return lambda event: event.then(
        lambda chosen: size_choices(models.sizes(chosen.value)),
        choice.chosen,
        page.detail.size,
        trigger_mode="always_last",
        **QUIET,
    )


@dataclass(frozen=True, slots=True)
class Page:
    """What the tab is made of; ``made`` holds the folder of the video that can be fetched."""

    state: gr.State
    made: gr.State
    clip: gr.HTML
    downloads: gr.HTML
    upload: gr.UploadButton
    names: gr.Textbox
    find: gr.Button
    stop: gr.Button
    threshold: gr.Slider
    rate: gr.Radio
    detail: Detail
    tried: gr.Button | None


def layout(sizes: dict[str, Detector]) -> Page:
    """The pieces, where they stand."""
    state, made = gr.State(None), gr.State(None)
    with gr.Row(elem_classes="owl-columns"):
        with gr.Column(scale=3, min_width=300):
            clip = clip_piece("video-upload", elem_id="video-stage")
            downloads_ = files(elem_id="video-files")
        with gr.Column(scale=2, min_width=280):
            upload = upload_button("Choose a video", file_types=["video"], elem_id="video-upload")
            camera("video-upload", record=True, elem_id="video-camera")
            names = gr.Textbox(
                "",
                label="What to find",
                info="Commas part several. No name at all finds anything that looks like a thing.",
                placeholder="a person, a car, a dog",
                lines=1,
                max_lines=1,
                elem_id="video-text",
            )
            find_ = gr.Button("Find in the video", variant="primary", elem_id="video-find")
            stop = gr.Button("Stop; keep what is done", size="md", elem_id="video-stop", visible=False)
            threshold = threshold_slider("video-threshold", info="Lowest score of a box; it holds for the next run.")
            rate = gr.Radio(
                list(RATES),
                value="5",
                label="Frames a second",
                info="More follow faster things, slower. At most 300 frames and 60 seconds are looked at.",
                elem_id="video-rate",
            )
            detail = more_settings(sizes, explained=True)
            tried = gr.Button("Try it: a cat that moves", size="md", elem_id="video-try") if samples() else None
    return Page(state, made, clip, downloads_, upload, names, find_, stop, threshold, rate, detail, tried)


SHOWN = gr.update(visible=True)
HIDDEN = gr.update(visible=False)


@dataclass(frozen=True, slots=True)
class Handlers:
    """What the tab does on each click."""

    models: Models
    runs: Runs = field(default_factory=lambda: Runs("A video is being looked at"))

    @errors_shown
    def on_upload(self, upload: Upload, request: gr.Request):
        """Another video; nothing is looked for yet, and no more in the one before."""
        clip = take_clip(*upload)
        self.runs.let_go(request)
        return clip, {**clip_value(clip), "note": READY}, stage_files([]), HIDDEN

    @errors_shown
    def on_find(
        self,
        text: str,
        clip: Clip | None,
        threshold: float,
        rate: str,
        overlap: float,
        size: str,
        chosen: Session[str],
        request: gr.Request,
    ) -> Iterator[tuple]:
        """What the names are found in, frame by frame: the folder of what is made, the place, downloads, "Stop"."""
        if clip is None:
            raise Refused("No video yet", "First choose a video: drop one, click to choose one, or record one.")
        yield from self.found(split_names(text), clip, threshold, RATES.get(rate, 5.0), overlap, size, chosen, request)

    @errors_shown
    def on_try(
        self, threshold: float, rate: str, overlap: float, size: str, chosen: Session[str], request: gr.Request
    ) -> Iterator[tuple]:
        """A cat in a video that comes along: the video and its name before what ``on_find`` gives."""
        clip = sample()
        first: tuple = (clip, TRIED)
        for step in self.found([TRIED], clip, threshold, RATES.get(rate, 5.0), overlap, size, chosen, request):
            yield *first, *step
            first = (gr.skip(), gr.skip())  # another video may have come meanwhile

    def found(
        self,
        names: list[str],
        clip: Clip,
        threshold: float,
        fps: float,
        overlap: float,
        size: str,
        chosen: Session[str],
        request: gr.Request,
    ) -> Iterator[tuple]:
        """The steps of a run, as ``on_find`` gives them."""
        detector = self.models.detector(chosen.value, size)
        same = (gr.skip(), gr.skip())
        with self.runs.begun(request) as stop:
            yield gr.skip(), live_value(clip, Watched()), gr.skip(), SHOWN
            folder, watched = made_folder(), Watched()
            path = Path(folder.name) / f"{PurePosixPath(free_paths([clip.name])[0]).stem}.boxes.mp4"
            queries = detector.encode_queries(names) if names else None
            try:
                settings = {"fps": fps, "threshold": threshold, "overlap": overlap}
                said_s = 0.0
                for watched in watch(detector, clip, queries, **settings, to=path, stop=stop):
                    if not stop.let_go and time.monotonic() - said_s > LIVE_S:
                        said_s = time.monotonic()
                        yield gr.skip(), live_value(clip, watched), *same
            except Exception:
                yield gr.skip(), gr.skip() if stop.let_go else clip_value(clip), gr.skip(), HIDDEN
                raise
            if stop.let_go:  # another video is there by now
                yield *[gr.skip()] * 3, HIDDEN
                return
            normal = self.models.detector(chosen.value).spec.image_size
            px = None if detector.image_size == normal else detector.image_size
            call = Call(self.models.source(chosen.value), names, threshold, overlap, px)
            copied = copies(clip, call, fps)
            shown = found_value(clip, watched, path, threshold), found_files(clip, watched, path, copied)
            yield folder, *shown, HIDDEN

    def on_stop(self, request: gr.Request) -> None:
        """The end of the run."""
        self.runs.stop(request)


def wire(page: Page, on: Handlers, chosen: gr.State) -> None:
    """Which event calls which handler."""
    shown = [page.clip, page.downloads]
    busy = {**BUSY, "show_progress_on": page.clip}
    page.upload.upload(on.on_upload, [page.upload], [page.state, *shown, page.stop], trigger_mode="multiple", **busy)
    asks = [page.threshold, page.rate, page.detail.overlap, page.detail.size, chosen]
    found = [page.made, *shown, page.stop]
    gr.on([page.find.click, page.names.submit], on.on_find, [page.names, page.state, *asks], found, **busy)
    if page.tried is not None:
        page.tried.click(on.on_try, asks, [page.state, page.names, *found], **busy)
    page.stop.click(on.on_stop, **QUIET)
