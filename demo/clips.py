"""A short video, and what is found in it frame by frame."""

import importlib.util
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

from owl_swin import (
    Detector,
    ImageError,
    MissingExtraError,
    QueryEmbeddings,
    VideoFrame,
    detect_video,
    draw_detections,
    to_video_record,
    video_writer,
)
from owl_swin.demo.exports import TOP_K, Call, as_command
from owl_swin.demo.photos import SHOWN_PX, data_uri
from owl_swin.demo.running import made_folder
from owl_swin.demo.scenes import write_video

# One visitor must not keep the model from all others: of a longer video the beginning is looked at.
MOST_BYTES, MOST_S, MOST_FRAMES, MOST_WORK_S = 200_000_000, 60.0, 300, 300.0
# What FFmpeg may read a visitor's file as: no playlist, which would have it open other files and addresses.
OPEN = {"format_whitelist": "mov,matroska,webm,avi,mpeg,mpegts,ogg,flv,asf"}
NOT_INSTALLED = str(MissingExtraError("Looking for things in a video", "video"))


@dataclass(frozen=True, slots=True)
class Clip:
    """A visitor's video; ``length_s`` is what it says of itself, 0 where it says nothing, ``src`` its first frame."""

    path: str
    name: str
    length_s: float
    width: int
    height: int
    src: str

    def text(self) -> str:
        """What it is, in a few words."""
        length = f"{self.length_s:.1f} s, " if self.length_s else ""
        return f"{self.name}: {length}{self.width} × {self.height} pixels"


@dataclass(slots=True)
class Thing:
    """One thing that was followed through frames."""

    number: int
    name: str
    first_s: float
    last_s: float
    score: float
    n_frames: int = 1

    def row(self) -> dict:
        """As the page shows it."""
        return {
            "number": self.number,
            "name": self.name,
            "from": round(self.first_s, 2),
            "to": round(self.last_s, 2),
            "score": self.score,
            "frames": self.n_frames,
        }


@dataclass(slots=True)
class Watched:
    """What was found so far. ``why`` says why it ended before the video; ``shown`` is the last frame with its boxes."""

    lines: list[str] = field(default_factory=list)  # of JSON, one a frame
    things: dict[int, Thing] = field(default_factory=dict)
    until_s: float = 0.0
    n_found: int = 0
    best: float = 0.0
    shown: Image.Image | None = None
    why: str = ""

    def add(self, name: str, frame: VideoFrame) -> None:
        """One frame more."""
        record = to_video_record(name, frame.number, frame.time_s, frame.found, frame.track_ids)
        self.lines.append(json.dumps(record) + "\n")
        self.until_s = frame.time_s
        self.n_found += len(frame.found)
        self.best = max(self.best, frame.found.best.score if frame.found.best else 0.0)
        for one, number in zip(frame.found, frame.track_ids, strict=True):
            if number is None:
                continue
            thing = self.things.setdefault(number, Thing(number, one.name, frame.time_s, frame.time_s, one.score, 0))
            thing.n_frames += 1
            thing.last_s, thing.score = frame.time_s, max(thing.score, one.score)


def installed() -> bool:
    """Whether the packages of the extra are there."""
    return all(importlib.util.find_spec(name) for name in ("av", "trackers", "supervision"))


def take_clip(path: str, name: str) -> Clip:
    """A video from a file; ImageError, which calls it by its name, if it is none or is too large."""
    import av

    size = Path(path).stat().st_size
    if size > MOST_BYTES:
        raise ImageError(f"a video may have {MOST_BYTES // 10**6} MB, this one has {size // 10**6}", of=name)
    try:
        with av.open(path, options=OPEN, metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None:
                raise ImageError("there are no pictures in this file", of=name)
            frame = next(container.decode(stream))
            first = frame.to_image().rotate(round(frame.rotation / 90) * 90, expand=True)
            length_s = (container.duration or 0) / av.time_base
    except (av.FFmpegError, StopIteration, OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError("not a video that can be read here (MP4, MOV, WebM, MKV, AVI or MPEG)", of=name) from None
    return Clip(path, name, max(0.0, length_s), first.width, first.height, data_uri(first, SHOWN_PX))


@cache
def sample_folder() -> tempfile.TemporaryDirectory:
    """Where a short video lies to try things with: a cat that moves over grass."""
    folder = made_folder()
    write_video(Path(folder.name) / "cat.mp4")
    return folder


def sample() -> Clip:
    """That video."""
    return take_clip(str(Path(sample_folder().name) / "cat.mp4"), "cat.mp4")


def copies(clip: Clip, call: Call, fps: float) -> list[dict[str, str]]:
    """What was asked as Python, and for the command line."""
    options = [] if call.model == "nano" else [repr(call.model)]
    options += [] if call.image_size is None else [f"image_size={call.image_size}"]
    queries = repr(list(call.names)) if call.names else "None"
    settings = f"fps={fps:g}, threshold={call.threshold!r}, nms_iou={call.overlap!r}, top_k={TOP_K}"
    python = (
        "from owl_swin import Detector, detect_video\n\n"
        f"detector = Detector.from_pretrained({', '.join(options)})\n"
        f"for frame in detect_video(detector, {clip.name!r}, {queries}, {settings}):\n"
        "    print(frame.time_s, frame.track_ids, frame.found.to_dicts())\n"
    )
    command = f"{as_command(clip, call).rstrip()} --fps {fps:g} --format jsonl --save found\n"
    return [{"label": "Python", "copy": python}, {"label": "command line", "copy": command}]


def watch(
    detector: Detector,
    clip: Clip,
    queries: QueryEmbeddings | None,
    *,
    fps: float,
    threshold: float,
    overlap: float,
    to: Path,
    stop: threading.Event,
) -> Iterator[Watched]:
    """Looks for things in a video and writes it with their boxes to ``to``, telling after each frame what was found.

    What was found before it was stopped, or before a place that is damaged, is kept.
    """
    watched, began_s = Watched(), time.monotonic()
    frames = detect_video(
        detector,
        clip.path,
        queries,
        fps=fps,
        threshold=threshold,
        nms_iou=overlap,
        top_k=TOP_K,
        batch_size=4,
        open_options=OPEN,
    )
    with ExitStack() as stack:
        writer = None
        try:
            for frame in frames:
                watched.why = _end(watched, frame, began_s)
                if watched.why:
                    break
                watched.add(clip.name, frame)
                drawn = draw_detections(frame.image, frame.found, track_ids=frame.track_ids)
                drawn.thumbnail((SHOWN_PX, SHOWN_PX))
                writer = writer or stack.enter_context(video_writer(to))
                writer.add(drawn, frame.time_s)
                watched.shown = drawn
                yield watched
                if stop.is_set():
                    watched.why = f"Stopped after {frame.time_s:.1f} s; what was found is kept."
                    break
        except ImageError as error:
            if writer is None:
                raise ImageError(error.reason, of=clip.name) from None
            watched.why = f"The rest cannot be read: {error.reason}."
    yield watched


def _end(watched: Watched, frame: VideoFrame, began_s: float) -> str:
    """Why a frame is not looked at any more; "" if it is."""
    if frame.time_s > MOST_S or len(watched.lines) >= MOST_FRAMES:
        return f"Of a longer video the first {watched.until_s:.0f} s are looked at; `owl-swin detect` takes any length."
    if time.monotonic() - began_s > MOST_WORK_S:
        return f"This took too long; the first {watched.until_s:.0f} s were looked at."
    return ""
