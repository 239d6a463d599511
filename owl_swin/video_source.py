"""What a path or an address of a video looks like."""

import os
import re
from pathlib import Path

# Endings of video files.
VIDEO_SUFFIXES = (
    *(".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv"),
    *(".3gp", ".ogv", ".mjpeg", ".mjpg", ".y4m"),
)
# Addresses of cameras and streams, which come in real time.
LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "udp", "rtp", "srt", "tcp")
CAMERA_FOLDER = "/dev/video"

VideoSource = str | os.PathLike[str]


def is_camera(source: VideoSource) -> bool:
    """Whether it is a camera of this machine."""
    return os.fspath(source).startswith(CAMERA_FOLDER)


def is_video(source: VideoSource) -> bool:
    """Whether an address or a file is called as videos and cameras are, whatever is in it."""
    text = os.fspath(source)
    scheme, colon, rest = text.partition("://")
    if colon and scheme.lower() in LIVE_SCHEMES:
        return True
    path = rest.partition("?")[0] if colon else text
    return is_camera(text) or Path(path).suffix.lower() in VIDEO_SUFFIXES


def is_live(source: VideoSource) -> bool:
    """Whether frames come in real time, and do not end by themselves."""
    text = os.fspath(source)
    return is_camera(text) or (text.partition("://")[0].lower() in LIVE_SCHEMES and "://" in text)


def shown_source(source: VideoSource) -> str:
    """What a source is called in sentences and results: an address without its password."""
    return re.sub(r"(?<=://)[^/?#]*@", "", os.fspath(source))
