"""Draws detections on a picture."""

import colorsys

from PIL import Image, ImageDraw, ImageFont

from owl_swin.errors import ImageError
from owl_swin.image import ImageSource, open_image
from owl_swin.types import Detections

# Steps of the golden ratio around the colour wheel: neighbours in the list of queries look different.
GOLDEN_RATIO = 0.618034


def label_colour(label: int) -> tuple[int, int, int]:
    """A bright colour for a query index, always the same for the same index."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + label * GOLDEN_RATIO) % 1, 0.75, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(image: ImageSource, detections: Detections, *, with_scores: bool = True) -> Image.Image:
    """A copy of the picture, upright and RGB, with a box, name and score for each detection, the best on top.

    ``with_scores`` False leaves the scores away, for annotations.
    """
    canvas = open_image(image)
    if (canvas.height, canvas.width) != detections.image_hw:
        wanted = f"{detections.image_hw[1]}x{detections.image_hw[0]}"
        raise ImageError(f"these detections are of a picture of {wanted} pixels, got {canvas.width}x{canvas.height}")
    draw = ImageDraw.Draw(canvas)
    size = max(11, round(min(canvas.width, max(canvas.height, 320)) / 28))
    line = max(2, size // 6)
    font = ImageFont.load_default(size)
    for row in reversed(range(len(detections))):
        label = int(detections.labels[row])
        x0, y0, x1, y1 = detections.boxes[row].tolist()
        colour = label_colour(label)
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=line)
        text = _printable(detections.names[label]) + (f" {detections.scores[row]:.2f}" if with_scores else "")
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        width, height = right - left + 2 * line, bottom - top + 2 * line
        x = min(max(x0, 0), max(canvas.width - width, 0))
        y = y0 - height if y0 >= height else min(y0, max(canvas.height - height, 0))
        x, y = round(x), round(y)  # Pillow cuts letters off whose place is a fraction below zero
        draw.rectangle((x, y, x + width, y + height), fill=colour)
        ink = "black" if sum(colour) > 330 else "white"
        draw.text((x + line - left, y + line - top), text, fill=ink, font=font)
    return canvas


def _printable(name: str, limit: int = 40) -> str:
    name = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    return name if len(name) <= limit else name[: limit - 1] + "…"
