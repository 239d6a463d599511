"""`owl-swin detect VIDEO`: frames in, boxes with the numbers of things out."""

import csv
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from owl_swin.cli.printing import LINE_S, emit, note, printable, say
from owl_swin.cli.results import Format, FreeNames, stem_of
from owl_swin.errors import ImageError, OwlSwinError
from owl_swin.files import growing_file, make_folder, make_folder_of
from owl_swin.formats import CORNERS, to_video_record
from owl_swin.signals import STOPPED
from owl_swin.video_source import is_video, shown_source

if TYPE_CHECKING:
    from owl_swin.detections import Detection
    from owl_swin.detector import Detector
    from owl_swin.postprocess import DetectOptions
    from owl_swin.tiling import Tiles
    from owl_swin.types import QueryEmbeddings
    from owl_swin.video import VideoFrame

CSV_COLUMNS = ("video", "frame", "time_s", "width", "height", "query", "label", "track_id", "score", *CORNERS)
# Forms that come out frame by frame.
FORMS = (Format.TABLE, Format.JSONL, Format.CSV)


@dataclass(frozen=True, slots=True)
class VideoOptions:
    """Which frames are wanted, and whether things are numbered."""

    fps: float | None
    every: int | None
    track: bool

    def of_videos(self, sources: Sequence[str], form: Format, explain: bool) -> bool:
        """Whether the sources are videos; what does not go together raises OwlSwinError."""
        videos = [source for source in sources if is_video(source)]
        if not videos:
            if self.fps is not None or self.every is not None:
                raise OwlSwinError("--fps and --every choose frames of a video; there is none among the pictures")
            return False
        if len(videos) < len(sources):
            raise OwlSwinError(f"{videos[0]}: videos and pictures go in calls of their own")
        if form not in FORMS:
            raise OwlSwinError(f"--format {form.value} is for pictures; of videos choose table, jsonl or csv")
        if explain:
            raise OwlSwinError("--explain is for pictures; give a video without it")
        return True


@dataclass
class VideoRun:
    """One call over its videos."""

    detector: "Detector"
    queries: "QueryEmbeddings | None"
    options: "DetectOptions"
    tiles: "Tiles | None"
    wanted: VideoOptions
    form: Format
    nothing: Callable[["Detection | None"], str]
    best: "Detection | None" = None
    n_frames: int = 0
    n_found: int = 0

    def over(self, sources: Sequence[str], to: Path | None, save: Path | None) -> int:
        """Detects in all videos and says how many could not be read whole; what was found in them is written. Ctrl-C
        ends it in the same way."""
        if to is not None:
            make_folder_of(to)
        if save is not None:
            make_folder(save)
        names, failed = FreeNames(), 0
        with _output(to) as write:
            write(_head(self.form))
            for source in sources:
                path = None if save is None else _free_place(save, stem_of(shown_source(source)), names)
                self.best, self.n_frames, self.n_found = None, 0, 0
                try:
                    self._one(source, write, path)
                except STOPPED:
                    say(f"{shown_source(source)}: stopped after {self.n_frames} frames")
                    raise
                except ImageError as error:
                    say(str(error))
                    failed += 1
                if self.n_frames and not self.n_found:
                    say(f"{shown_source(source)}: {self.nothing(self.best)}")
        return failed

    def _one(self, source: str, write: Callable[[str], object], path: Path | None) -> None:
        from owl_swin.render import draw_detections
        from owl_swin.video import detect_video
        from owl_swin.video_output import video_writer

        frames = detect_video(
            self.detector,
            source,
            self.queries,
            fps=self.wanted.fps,
            every=self.wanted.every,
            track=self.wanted.track,
            options=self.options,
            tiles=self.tiles,
        )
        ended: BaseException | None = None
        with ExitStack() as stack:
            writer = None
            try:
                for frame in self._counted(frames):
                    write(_text(self.form, shown_source(source), frame))
                    if path is not None:
                        writer = writer or stack.enter_context(video_writer(path))
                        ids = frame.track_ids if self.wanted.track else None
                        writer.add(draw_detections(frame.image, frame.found, track_ids=ids), frame.time_s)
            except (ImageError, *STOPPED) as error:
                ended = error  # what was found before it is kept
        if path is not None and writer is not None:
            note(f"wrote {path}")
        if ended is not None:
            raise ended

    def _counted(self, frames: "Iterator[VideoFrame]") -> "Iterator[VideoFrame]":
        said = time.monotonic()
        for frame in frames:
            yield frame
            self.n_frames += 1
            self.n_found += len(frame.found)
            best = frame.found.best
            if best is not None and (self.best is None or best.score > self.best.score):
                self.best = best
            if time.monotonic() - said > LINE_S:
                said = time.monotonic()
                say(f"{self.n_frames} frames, {frame.time_s:.0f} s of the video")


def _free_place(folder: Path, stem: str, names: FreeNames) -> Path:
    """Where the drawing of a video goes: one of before is written over, another video is not."""
    from owl_swin.video_output import video_may_be_written

    return folder / f"{names.take(stem, lambda name: video_may_be_written(folder / f'{name}.mp4'))}.mp4"


@contextmanager
def _output(to: Path | None) -> Iterator[Callable[[str], object]]:
    """Where text goes as it comes: to stdout, or to a file that is there when all is written, or when something went
    wrong after more than its head was."""
    if to is None:
        yield emit
        return
    stopped: BaseException | None = None
    with growing_file(to, what="the output") as part, _text_file(part) as file:
        texts = 0

        def write(text: str) -> None:
            nonlocal texts
            file.write(text)
            texts += 1

        try:
            yield write
        except STOPPED as error:
            stopped = error
        except (OwlSwinError, OSError) as error:
            if texts < 2:  # what was there before stays
                raise
            stopped = error
    if stopped is not None:
        raise stopped


def _text_file(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8", errors="backslashreplace")  # a file's name need not be text


def _head(form: Format) -> str:
    if form is Format.CSV:
        return ",".join(CSV_COLUMNS) + "\n"
    return _line("time_s", "frame", "track", "score", *CORNERS, "query", "label") if form is Format.TABLE else ""


def _text(form: Format, name: str, frame: "VideoFrame") -> str:
    """What is said of one frame."""
    record = to_video_record(name, frame.number, frame.time_s, frame.found, frame.track_ids)
    if form is Format.JSONL:
        return json.dumps(record) + "\n"
    rows = record["detections"]
    if form is Format.CSV:
        text = io.StringIO()
        head = [record[key] for key in ("video", "frame", "time_s", "width", "height")]
        csv.writer(text, lineterminator="\n").writerows(
            [*head, row["query"], row["label"], row["track_id"], row["score"], *row["box"].values()] for row in rows
        )
        return text.getvalue()
    return "".join(
        _line(
            f"{record['time_s']:.3f}",
            record["frame"],
            "" if row["track_id"] is None else row["track_id"],
            f"{row['score']:.3f}",
            *(f"{value:.0f}" for value in row["box"].values()),
            row["query"],
            row["label"],
        )
        for row in rows
    )


def _line(*cells: object) -> str:
    """One line of the table, whose columns are as wide whatever comes later."""
    *numbers, label = cells
    return "  ".join([f"{number:>8}" for number in numbers] + [printable(str(label))]) + "\n"
