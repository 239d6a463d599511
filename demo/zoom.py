"""What is seen of a photo that is zoomed into: its own pixels, where the copy that the page has is too coarse."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import gradio as gr
from PIL import Image

from owl_swin.demo.photos import data_uri
from owl_swin.demo.pieces import QUIET
from owl_swin.demo.refusals import errors_shown
from owl_swin.demo.session import Session

# Of one part, however large the window: about two megabytes of JPEG.
MOST_PIXELS = 4_000_000
# Visitors whose parts are made at a time: each may have a photo decoded.
AT_A_TIME = 2


class Shown(Protocol):
    """A photo that parts can be shown of."""

    @property
    def name(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    def part(self, box_xyxy: tuple[int, int, int, int], side: int) -> Image.Image:
        """What is in a box, upright; its longer side needs no more than ``side`` pixels."""
        ...


def part_of(photo: Shown | None, event: Any) -> dict[str, Any]:
    """The part of a photo that the page asks for ("zoomed" in zoom.js); without ``src`` if it means no part of it.

    The photo is the visitor's own, or one of the archive: the page says which part, and never of which file.
    """
    nothing = {"number": int(event.number)}
    try:
        x0, y0, x1, y1 = (float(value) for value in event.box)
        wide, of = float(event.wide), list(event.of)
    except (TypeError, ValueError):
        return nothing
    key = getattr(photo, "key", None)  # of those of an archive the file tells
    if key is not None and key != getattr(event, "key", key):
        return nothing
    if photo is None or of != [photo.name, photo.width, photo.height] or not all(map(math.isfinite, (x0, y0, x1, y1))):
        return nothing
    x0, y0, x1, y1 = max(0.0, x0), max(0.0, y0), min(float(photo.width), x1), min(float(photo.height), y1)
    left, top, right, bottom = math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)
    if not (x0 < x1 and y0 < y1 and wide > 0):
        return nothing
    width, height = right - left, bottom - top
    scale = min(1.0, wide / (x1 - x0), math.sqrt(MOST_PIXELS / (width * height)))
    side = max(1, round(scale * max(width, height)))
    image = photo.part((left, top, right, bottom), side)
    return {**nothing, "src": data_uri(image, side, fine=True), "box": (left, top, right, bottom)}


def wire(stage: gr.HTML, state: gr.State, photo_of: Callable[[Any], Shown | None]) -> None:
    """Lets a stage show parts of the photo that a session has."""

    def on_zoomed(event: gr.EventData, session: Session[Any]):
        part = errors_shown(part_of)(photo_of(session.value), event)
        return gr.HTML(part=part if "number" in part else {"number": int(event.number)})

    turns: dict[str, Any] = {"trigger_mode": "multiple", "concurrency_id": "zoom", "concurrency_limit": AT_A_TIME}
    stage.zoomed(on_zoomed, [state], [stage], **turns, **QUIET)
