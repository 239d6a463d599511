"""Frames of a video with boxes drawn in, written as a video."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from owl_swin.errors import MissingExtraError, OwlSwinError
from owl_swin.files import growing_file
from owl_swin.made_here import MADE_HERE

# H.264 where FFmpeg can write it, else what every FFmpeg can.
ENCODERS = ("libx264", "libopenh264", "h264_videotoolbox", "mpeg4")
# Times in the video are multiples of this: all usual rates are, also those of 1001ths, and MPEG-4 has no finer.
TIME_BASE = Fraction(1, 60_000)


class VideoWriter:
    """Takes frames of one video, each with its time."""

    def __init__(self, container: Any, encoder: str):
        self._container, self._encoder = container, encoder
        self._stream: Any = None
        self._last = -1

    def add(self, image: Image.Image, time_s: float) -> None:
        """The next frame; one of another size than the first is brought to that."""
        import av

        if self._stream is None:
            self._stream = self._container.add_stream(self._encoder, rate=30)
            # Colour is stored for 2 x 2 pixels.
            self._stream.width, self._stream.height = (side + side % 2 for side in image.size)
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = TIME_BASE
            # Frames that are stored out of order would need times that are even to say when the video ends.
            self._stream.codec_context.max_b_frames = 0
        width, height = self._stream.width, self._stream.height
        if not (0 <= width - image.width <= 1 and 0 <= height - image.height <= 1):
            image = image.resize((width, height))
        pixels = np.pad(np.asarray(image), ((0, height - image.height), (0, width - image.width), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts = self._last = max(self._last + 1, round(time_s / TIME_BASE))
        frame.time_base = TIME_BASE
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Writes what the encoder holds back."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))


@contextmanager
def video_writer(path: Path) -> Iterator[VideoWriter]:
    """Writes an MP4 to ``path``, whole when this ends; an error leaves what was there before."""
    try:
        import av
    except ImportError:
        raise MissingExtraError("writing a video", "video") from None
    encoder = next((name for name in ENCODERS if name in av.codecs_available and _writes(name)), None)
    if encoder is None:
        raise OwlSwinError(f"this PyAV writes no video; it has none of the encoders {', '.join(ENCODERS)}")
    try:
        with growing_file(path, what="the video") as part, _container(part) as container:
            writer = VideoWriter(container, encoder)
            yield writer
            writer.close()
    except av.FFmpegError as error:
        raise OwlSwinError(f"{path}: cannot write the video here ({error.strerror or error})") from None


def _container(path: Path) -> Any:
    import av

    container = av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})  # plays while it is fetched
    container.metadata["comment"] = MADE_HERE
    return container


def video_may_be_written(path: Path) -> bool:
    """Whether no file is lost where a video is written: none is there, or one that was written here."""
    if not path.exists():
        return True
    try:
        import av
    except ImportError:  # nothing will be written at all, which video_writer says
        return False
    try:
        with av.open(str(path)) as container:
            return bool(container.metadata.get("comment") == MADE_HERE)
    except (av.FFmpegError, OSError, ValueError):
        return False


def _writes(encoder: str) -> bool:
    import av

    try:
        return bool(av.Codec(encoder, "w").is_encoder)
    except ValueError:  # PyAV's error of a codec that only reads
        return False
