"""Draws detections and maps of scores on a picture, and many pictures on one sheet."""

import colorsys
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from owl_swin.errors import ImageError
from owl_swin.image import ImageSource, open_image
from owl_swin.types import Detections

# Steps of the golden ratio around the colour wheel: neighbours in the list of queries look different.
GOLDEN_RATIO = 0.618034
# Matplotlib's inferno at nine even steps: brightness grows evenly with the score, for colour-blind readers too.
HEAT = ("000004", "210c4a", "56106e", "89226a", "bb3754", "e35932", "f98c0a", "f9c932", "fcffa4")
# Opacity of the highest score; below it the opacity falls with the score, so that the picture stays visible.
HEAT_OPACITY = 0.7
# Pixels between the pictures of a sheet, and of the letters below them.
GAP, LETTER = 8, 15


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


def draw_heat_map(
    image: ImageSource, scores: Tensor | np.ndarray, *, title: str = "", limits: tuple[float, float] | None = None
) -> Image.Image:
    """A copy of the picture, upright and paled, under the colours of scores [h, w] of an even grid over it.

    ``Detector.similarity(image, queries)[i]`` is such a map. Colours run from one score to another: ``limits``, or the
    lowest and the highest of the map. The scale at the bottom says which these are, after ``title``; give limits, such
    as (0, 1), to compare pictures by eye.
    """
    canvas = open_image(image)
    values = np.asarray(scores.detach().cpu() if isinstance(scores, Tensor) else scores, dtype=np.float32)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ImageError(f"a heat map must be finite numbers [h, w], got {list(values.shape)}")
    low, high = (float(v) for v in ((values.min(), values.max()) if limits is None else limits))
    if not -np.inf < low <= high < np.inf:
        raise ImageError(f"the limits of a heat map must be two numbers, the lower first, got {low:g} and {high:g}")
    shares = ((values - low) / (high - low) if high > low else np.zeros_like(values)).clip(0, 1)
    steps = Image.fromarray(255 * shares).resize(canvas.size, Image.Resampling.BICUBIC).convert("L")
    pale = Image.blend(canvas, canvas.convert("L").convert("RGB"), 0.7)
    opacity = steps.point([round(255 * HEAT_OPACITY * (v / 255) ** 0.8) for v in range(256)])
    drawn = Image.composite(_in_heat_colours(steps), pale, opacity)
    _draw_scale(drawn, _printable(title), low, high)
    return drawn


def picture_grid(
    cells: Sequence[Image.Image], texts: Sequence[str], *, cell: int, columns: int, lines: int
) -> Image.Image:
    """One picture of many, at most ``cell`` pixels wide each, row by row, each with up to ``lines`` lines of its text
    below. There is at least one."""
    font = ImageFont.load_default(LETTER)
    columns = min(columns, len(cells))
    below = lines * (LETTER + 4) + GAP
    tops = [GAP]  # of each row, as tall as its tallest picture; and where the last one ends
    for start in range(0, len(cells), columns):
        tops.append(tops[-1] + max(picture.height for picture in cells[start : start + columns]) + below)
    canvas = Image.new("RGB", (columns * (cell + GAP) + GAP, tops[-1]), "white")
    draw = ImageDraw.Draw(canvas)
    for place, (picture, text) in enumerate(zip(cells, texts, strict=True)):
        x, bottom = GAP + place % columns * (cell + GAP), tops[place // columns + 1] - below
        canvas.paste(picture, (x + (cell - picture.width) // 2, bottom - picture.height))
        wide = max(8, int(cell / (0.52 * LETTER)))
        shown = textwrap.wrap(text, wide, max_lines=lines, placeholder=" …")
        draw.multiline_text((x, bottom + 2), "\n".join(shown), fill="black", font=font, spacing=2)
    return canvas


def _in_heat_colours(steps: Image.Image) -> Image.Image:
    """A grey picture with its 256 steps in the colours of the scale."""
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (0, 2, 4)] for colour in HEAT])
    places = np.linspace(0, 255, len(HEAT))
    table = np.stack([np.interp(np.arange(256), places, anchors[:, c]) for c in range(3)], 1).round().astype(np.uint8)
    coloured = steps.copy()
    coloured.putpalette(table.tobytes())
    return coloured.convert("RGB")


def _draw_scale(canvas: Image.Image, title: str, low: float, high: float) -> None:
    """The title and the colours from ``low`` to ``high`` in a strip at the bottom; left away where it has no room."""
    size = max(11, round(min(canvas.width, max(canvas.height, 320)) / 32))
    font = ImageFont.load_default(size)
    draw = ImageDraw.Draw(canvas)
    before, after = f"{title}  {low:.3f}".strip(), f"{high:.3f}"
    pad, bar = max(3, size // 3), 6 * size
    x = 2 * pad + round(draw.textlength(before, font=font))
    width = x + bar + pad + round(draw.textlength(after, font=font)) + pad
    height = size + 2 * pad
    if width > canvas.width or 3 * height > canvas.height:
        return
    y = canvas.height - height
    draw.rectangle((0, y, width, canvas.height), fill="black")
    draw.text((pad, y + height / 2), before, fill="white", font=font, anchor="lm")
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, bar).astype(np.uint8), (max(1, height - 2 * pad), 1)))
    canvas.paste(_in_heat_colours(ramp), (x, y + pad))
    draw.text((x + bar + pad, y + height / 2), after, fill="white", font=font, anchor="lm")


def _printable(name: str, limit: int = 40) -> str:
    name = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    return name if len(name) <= limit else name[: limit - 1] + "…"
