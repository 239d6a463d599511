"""Videos and cameras: frames one after another, and what is found in them with the numbers of things.

Decoded with PyAV (FFmpeg), one frame at a time: the memory is that of a few frames, however long the video is.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Unpack

from PIL import Image

from owl_swin.detections import Detections
from owl_swin.encoded import EncodedImage
from owl_swin.encoder import Picture, check_batch_size, check_has_masks
from owl_swin.errors import ImageError, MissingExtraError, QueryError, brief
from owl_swin.image import MAX_PIXELS
from owl_swin.mask_sampling import masks_in_view
from owl_swin.postprocess import DetectOptions, DetectSettings, detect_options
from owl_swin.queries import Queries
from owl_swin.scoring import names_of
from owl_swin.tiling import TilesLike
from owl_swin.tracking import Tracker
from owl_swin.types import QueryEmbeddings
from owl_swin.video_source import VideoSource, is_camera, is_live, shown_source

if TYPE_CHECKING:
    from owl_swin.detector import Detector

# How FFmpeg reads a camera.
CAMERA_FORMAT = "v4l2"
# Seconds that an address has to answer, and to send the next packet.
TIMEOUT_S = 10.0
# A video that ends so much before the length it names, in seconds and as a share of it, is cut off.
MISSING_S, MISSING_SHARE = 0.5, 0.02
# Kinds of files that state a length of the whole alone, and do not guess it.
STATED = ("matroska", "flv")
# A time that lies so many seconds before the last one is that of a clock which began anew.
JUMP_S = 1.0
# Seconds between frames that name neither their times nor their rate.
UNKNOWN_FRAME_S = 1 / 30
# Detections of this share of the threshold still continue a track.
WEAK = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class VideoFrame:
    """One frame of a video: its ``number``, counted from 0, its ``time_s`` as players show it, and the upright picture.

    ``track_ids`` are the numbers of the things that ``found`` holds, in its order. None: it was seen in no frame
    before, or numbers were not asked for.
    """

    number: int
    time_s: float
    image: Image.Image
    found: Detections
    track_ids: tuple[int | None, ...]


def detect_video(
    detector: "Detector",
    source: VideoSource,
    queries: Queries = None,
    *,
    fps: float | None = None,
    every: int | None = None,
    track: bool = True,
    options: DetectOptions | None = None,
    tiles: TilesLike | None = None,
    batch_size: int = 8,
    open_options: Mapping[str, str] | None = None,
    **settings: Unpack[DetectSettings],
) -> Iterator[VideoFrame]:
    """What is found in a video file, a camera ("/dev/video0") or a stream ("rtsp://…"), frame by frame.

    ``fps``: so many frames a second at most, or ``every``: each such frame; else all. ``track`` numbers things through
    the video. ``batch_size`` frames are in memory at a time, of what is live one. ``open_options`` are FFmpeg's. The
    rest is as in ``Detector.detect``. A video that is damaged or cut off raises ImageError after its last frame.

    >>> for frame in detect_video(detector, "street.mp4", ["a car"], fps=5):
    ...     print(frame.time_s, [(one.name, number) for one, number in zip(frame.found, frame.track_ids)])
    """
    check_sampling(fps, every)
    chosen = detect_options(options, settings)
    asked = queries if queries is None or isinstance(queries, QueryEmbeddings) else detector.encode_queries(queries)
    thresholds = chosen.thresholds(names_of(asked))
    batch_size = 1 if is_live(source) else check_batch_size(batch_size)
    weak = replace(chosen, threshold=(WEAK * thresholds).tolist()) if track else chosen
    # Of tiles, masks are joined while the tiles are at hand.
    masks_after = track and chosen.masks and tiles is None
    if masks_after:
        check_has_masks(detector.spec)
        weak = replace(weak, masks=False)

    def frames() -> Iterator[VideoFrame]:
        with _opened(source, open_options) as video:
            tracker = Tracker(thresholds.tolist(), _frame_s(video.frame_s, fps, every)) if track else None
            for batch in _batches(_sampled(video.frames(), fps, every), batch_size):
                pictures = [upright(decoded) for _, _, decoded in batch]
                shown: Sequence[Picture] = pictures
                if masks_after:
                    shown = detector.encode_images(pictures, batch_size=batch_size, masks=True)
                found = detector.detect_batch(shown, asked, options=weak, batch_size=batch_size, tiles=tiles)
                for (number, time_s, _), image, encoded, one in zip(batch, pictures, shown, found, strict=True):
                    ids = [None] * len(one) if tracker is None else tracker.update(one, time_s)
                    keep = (one.scores >= thresholds.to(one.scores)[one.labels]).nonzero()[:, 0].tolist()
                    kept = one[keep]
                    if isinstance(encoded, EncodedImage):
                        kept = replace(kept, masks=masks_in_view(encoded.views[0], kept.patches, kept.boxes))
                    yield VideoFrame(number, time_s, image, kept, tuple(ids[row] for row in keep))

    return frames()


def check_sampling(fps: float | None, every: int | None) -> None:
    """Refuses what says not which frames are wanted."""
    if fps is not None and every is not None:
        raise QueryError("fps and every both say which frames are wanted; give one of them")
    if fps is not None and not (isinstance(fps, Real) and 0 < fps < math.inf):  # NaN fails this too
        raise QueryError(f"fps must be a number of frames a second above 0, got {brief(fps)}")
    if every is not None and not (isinstance(every, Integral) and every >= 1):
        raise QueryError(f"every must be a whole number of frames, at least 1, got {brief(every)}")


Decoded = tuple[int, float, Any]  # number, time in seconds, av.VideoFrame


def _sampled(frames: Iterator[Decoded], fps: float | None, every: int | None) -> Iterator[Decoded]:
    """The frames that are wanted: of ``fps`` the first of each such part of a second."""
    first, last = None, -1
    for number, time_s, frame in frames:
        first = time_s if first is None else first
        part = number if fps is None else math.floor((time_s - first) * fps + 1e-3)  # times are rounded
        if number % (every or 1) == 0 and part > last:
            last = part
            yield number, time_s, frame


def _frame_s(frame_s: float, fps: float | None, every: int | None) -> float:
    """Seconds between the frames that are wanted."""
    return max(frame_s * (every or 1), 0 if fps is None else 1 / fps)


def _batches(frames: Iterator[Decoded], size: int) -> Iterator[list[Decoded]]:
    """So many frames at a time. An error comes after all frames that were read before it."""
    batch: list[Decoded] = []
    try:
        for frame in frames:
            batch.append(frame)
            if len(batch) == size:
                yield batch
                batch = []
    except ImageError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


# --- Decoding ------------------------------------------------------------------------------------------------------


def upright(frame: Any) -> Image.Image:
    """A decoded frame as RGB, turned as its video says."""
    turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    image, turn = frame.to_image(), turns.get(round(frame.rotation / 90) * 90 % 360)
    return image if turn is None else image.transpose(turn)


@dataclass(slots=True)
class _Video:
    """An open video. ``frame_s``: seconds between its frames, where they come evenly."""

    container: Any
    stream: Any
    name: str
    live: bool

    @property
    def frame_s(self) -> float:
        rate = self.stream.average_rate or self.stream.guessed_rate
        return float(1 / rate) if rate else UNKNOWN_FRAME_S

    def frames(self) -> Iterator[Decoded]:
        """All frames, in the order in which they are shown; what is wrong with the video is raised after the last."""
        import av

        number, damaged, end_s, reason = 0, 0, 0.0, ""
        last_s, start_s, anew_s = 0.0, self._start_s(), None
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                reason = error.strerror or str(error)
                break
            if packet is None:
                break
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                damaged += 1
                continue
            for frame in decoded:
                time_s = last_s + self.frame_s if number else 0.0  # of a frame that does not name its own
                if frame.pts is not None:
                    stamp_s = float(frame.pts * frame.time_base)
                    start_s = stamp_s - time_s if start_s is None else start_s
                    if stamp_s - start_s >= last_s - JUMP_S:
                        time_s = stamp_s - start_s
                        anew_s = None
                    elif anew_s is not None and abs(stamp_s - time_s - anew_s) < JUMP_S:
                        start_s = anew_s  # two that fit: a clock that began anew, which goes on here
                    else:
                        anew_s = stamp_s - time_s
                last_s = max(last_s, time_s)
                end_s = last_s + (float(frame.duration * frame.time_base) if frame.duration else self.frame_s)
                damaged += bool(frame.is_corrupt)
                yield number, last_s, frame
                number += 1
        self._check_whole(number, damaged, end_s, reason)

    def _start_s(self) -> float | None:
        import av

        start = self.container.start_time
        return None if start is None or self.live else start / av.time_base

    def _length_s(self) -> float:
        """How long the file says that its pictures go on; 0 where it does not."""
        import av

        stream, container = self.stream, self.container
        if stream.duration:
            return float(stream.duration * stream.time_base)
        if stated := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "")):
            hours, minutes, seconds = map(float, stated.groups())
            return 3600 * hours + 60 * minutes + seconds - self._offset_s()
        alone = len(container.streams) == 1 and any(kind in container.format.name for kind in STATED)
        return container.duration / av.time_base - self._offset_s() if alone and container.duration else 0.0

    def _offset_s(self) -> float:
        """Where the clock of a Matroska file begins, which its lengths count too."""
        return max(0.0, self._start_s() or 0.0) if "matroska" in self.container.format.name else 0.0

    def _check_whole(self, n_frames: int, damaged: int, end_s: float, reason: str) -> None:
        if reason:
            raise ImageError(f"the video cannot be read beyond {end_s:.2f} s ({reason})", of=self.name)
        if not n_frames:
            raise ImageError("the video holds no frame that can be decoded", of=self.name)
        if self.live:
            return
        if damaged:
            raise ImageError(f"the video is damaged: {damaged} parts of it could not be decoded", of=self.name)
        length_s = self._length_s()
        if end_s < length_s - max(MISSING_S, MISSING_SHARE * length_s):
            raise ImageError(f"the video is cut off: it ends after {end_s:.2f} s of {length_s:.2f}", of=self.name)


@contextmanager
def _opened(source: VideoSource, open_options: Mapping[str, str] | None) -> Iterator[_Video]:
    try:
        import av
    except ImportError:
        raise MissingExtraError("reading a video", "video") from None
    address, name, live = os.fspath(source), shown_source(source), is_live(source)
    options = {"rtsp_transport": "tcp"} if address.lower().startswith("rtsp") else {}
    try:
        container = av.open(
            address,
            format=CAMERA_FORMAT if is_camera(address) else None,
            options=options | dict(open_options or {}),
            timeout=TIMEOUT_S if "://" in address else None,
            metadata_errors="replace",
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"cannot be opened as a video ({reason})", of=name) from None
    with container:
        stream = container.streams.best("video")
        if stream is None:
            raise ImageError("there are no pictures in this file", of=name)
        size = stream.codec_context
        if size.width * size.height > MAX_PIXELS:
            raise ImageError(f"a frame of {size.width}x{size.height} has more than {MAX_PIXELS} pixels", of=name)
        if not live:
            stream.thread_type = "AUTO"
        yield _Video(container, stream, name, live)
