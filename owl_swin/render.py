"""Draws detections and maps of scores on a picture, and many pictures on one sheet."""

import colorsys
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from owl_swin.boxes import area
from owl_swin.detections import Detections
from owl_swin.errors import ImageError
from owl_swin.image import ImageSource, open_image
from owl_swin.map_formats import class_colour
from owl_swin.masks import BoxMasks
from owl_swin.semantic_map import NOTHING, SemanticMap

# Steps of the golden ratio around the colour wheel: neighbours in the list of queries look different.
GOLDEN_RATIO = 0.618034
# Matplotlib's inferno at nine even steps: brightness grows evenly with the score, for colour-blind readers too.
HEAT = ("000004", "210c4a", "56106e", "89226a", "bb3754", "e35932", "f98c0a", "f9c932", "fcffa4")
# Opacity of the highest score; below it the opacity falls with the score, so that the picture stays visible.
HEAT_OPACITY = 0.7
# Of the colours of classes on a picture; the legend below it has no more names, and is no narrower in pixels.
MAP_OPACITY, LEGEND_NAMES, LEGEND_WIDTH = 0.6, 30, 240
# Of the pixels of a mask, within its outline.
MASK_OPACITY = 0.4
# The line within the border of a box or mask.
DARK = (64, 64, 64)
# Of letters in a picture, in pixels.
MIN_LETTER = 11
# How far from its box a label may go, in labels.
STEPS = 6
# Fonts that systems bring, for letters that Pillow's own has not.
FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf"),
    *("wqy-zenhei.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc", "msyh.ttc", "YuGothM.ttc", "malgun.ttf"),
    *("Arial Unicode.ttf", "arialuni.ttf", "NotoSansArabic-Regular.ttf", "NotoSansDevanagari-Regular.ttf"),
)
# Pixels between the pictures of a sheet, and of the letters below them.
GAP, LETTER = 8, 15


def label_colour(label: int) -> tuple[int, int, int]:
    """A bright colour for a query index, always the same for the same index."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + label * GOLDEN_RATIO) % 1, 0.75, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(
    image: ImageSource,
    detections: Detections,
    *,
    with_scores: bool = True,
    track_ids: Sequence[int | None] | None = None,
) -> Image.Image:
    """A copy of the picture, upright and RGB, with a box, name and score for each detection, the best on top, and where
    there are masks these too.

    Names stand above all boxes and not over one another: the best choose first, and one that finds no place is left
    away. ``with_scores`` False leaves the scores away, for annotations. ``track_ids`` number the things of a video, one
    a detection: each has its own colour, and #number behind its name.
    """
    canvas = open_image(image)
    if (canvas.height, canvas.width) != detections.image_hw:
        wanted = f"{detections.image_hw[1]}x{detections.image_hw[0]}"
        raise ImageError(f"these detections are of a picture of {wanted} pixels, got {canvas.width}x{canvas.height}")
    draw = ImageDraw.Draw(canvas)
    size = max(MIN_LETTER, round(min(canvas.width, max(canvas.height, 320)) / 32))
    line = max(2, size // 6)
    boxes = [(x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)) for x0, y0, x1, y1 in detections.boxes.tolist()]
    numbers = [None] * len(detections) if track_ids is None else list(track_ids)
    kinds = detections.labels.tolist() if track_ids is None else [number or 0 for number in numbers]
    colours = [label_colour(kind) for kind in kinds]
    if detections.masks is not None:
        sizes = area(detections.boxes).tolist()
        for row in sorted(range(len(sizes)), key=lambda row: (-sizes[row], -row)):  # small ones lie on large ones
            _draw_mask(canvas, detections.masks, row, colours[row], line)
    for box, colour in zip(reversed(boxes), reversed(colours), strict=True):
        _draw_box(draw, box, colour, line)
    placed = _Placed(canvas.width, canvas.height)
    for one, number, box, colour in zip(detections, numbers, boxes, colours, strict=True):
        after = [f"#{number}"] * (number is not None) + [f"{one.score:.2f}"] * (
            with_scores and not math.isnan(one.score)
        )
        label = _Label.of(one.name, " ".join(after), size, canvas.width - 2 * line)
        place = placed.find(box, label.width + 2 * line, label.height + 2 * line) if label.text else None
        if place is not None:
            x, y = place
            draw.rectangle((x, y, x + label.width + 2 * line - 1, y + label.height + 2 * line - 1), fill=colour)
            draw.text((x + line - label.left, y + line - label.top), label.text, fill=_ink(colour), font=label.font)
    return canvas


def _draw_mask(canvas: Image.Image, masks: BoxMasks, number: int, colour: tuple[int, int, int], line: int) -> None:
    """Its pixels shine through, its outline does not, with a dark line within as that of a box has."""
    place, part = masks.part(number)
    inside = part.cpu().numpy()
    within = _eroded(inside, line)
    outline = inside & ~within
    opacity = np.where(outline, 255, inside * np.uint8(255 * MASK_OPACITY)).astype(np.uint8)
    canvas.paste(colour, place, Image.fromarray(opacity))
    canvas.paste(DARK, place, Image.fromarray(within & ~_eroded(within, max(1, line // 3))))


def _eroded(mask: np.ndarray, by: int) -> np.ndarray:
    """The pixels of a mask [h, w] around which so many on every side belong to it too."""
    for axis in (0, 1):
        lines = np.pad(np.moveaxis(mask, axis, 0), ((by, by), (0, 0)))
        width = 1  # of the span of which each pixel says whether it belongs
        while width < 2 * by + 1:
            step = min(width, 2 * by + 1 - width)
            lines, width = lines[:-step] & lines[step:], width + step
        mask = np.moveaxis(lines, 0, axis)
    return mask


def _draw_box(
    draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], colour: tuple[int, int, int], line: int
) -> None:
    """The border, with a dark line within so that it is seen on a background of its own colour too."""
    x0, y0, x1, y1 = box
    if min(x1 - x0, y1 - y0) > 4 * line:
        inner = (x0 + line, y0 + line, x1 - line, y1 - line)
        draw.rectangle(inner, outline=DARK, width=max(1, line // 3))
    draw.rectangle(box, outline=colour, width=line)


def _ink(colour: tuple[int, int, int]) -> str:
    """Black or white, whichever is read better on a colour, by the luminance of WCAG 2."""
    linear = [(c / 255 / 12.92 if c < 11 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"


@dataclass(frozen=True, slots=True)
class _Label:
    """A text in a font, and the pixels that its letters take: ``left`` and ``top`` from where it is drawn."""

    text: str
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont
    left: float
    top: float
    width: int
    height: int

    @staticmethod
    def of(name: str, score: str, size: int, most: int) -> "_Label":
        """The name, cut so that no more than ``most`` pixels are taken, and the score."""
        name = _printable(name)
        font = _font(size, name)
        text = f"{name} {score}".strip()
        while name and font.getlength(text) > most:
            name = name.rstrip("…")[:-1]
            text = f"{name}… {score}".strip() if name else score
        # All labels are as tall as a letter with its ascender and descender, so that they stand in line.
        left, top, _, bottom = font.getbbox(text + "Äg")
        width = font.getbbox(text)[2] - left if text else 0
        return _Label(text if width <= most else "", font, left, top, math.ceil(width), math.ceil(bottom - top))


class _Placed:
    """Where labels stand already, all within a picture and none over another."""

    def __init__(self, width: int, height: int):
        self._width, self._height = width, height
        self._taken = np.zeros((0, 4))  # xyxy

    def find(self, box: tuple[float, float, float, float], width: int, height: int) -> tuple[int, int] | None:
        """The first free place by a box for a label of this size, which is then taken; None if there is none."""
        if width > self._width or height > self._height:
            return None
        for x, y in self._places(box, width, height):
            x = round(min(max(x, 0), self._width - width))
            y = round(min(max(y, 0), self._height - height))
            taken = self._taken
            over = (taken[:, 0] < x + width) & (taken[:, 2] > x) & (taken[:, 1] < y + height) & (taken[:, 3] > y)
            if not over.any():
                self._taken = np.append(taken, [[x, y, x + width, y + height]], axis=0)
                return x, y
        return None

    @staticmethod
    def _places(box: tuple[float, float, float, float], width: int, height: int) -> Iterator[tuple[float, float]]:
        """Corners from the usual one on: above the box, within it, below it, then in steps away from these."""
        x0, y0, x1, y1 = box
        right = x1 + 1 - width
        tops = (y0 - height if y0 >= height else y0, y0, y1 + 1, y1 + 1 - height)
        for top in tops:
            yield x0, top
            yield right, top
        for step in range(1, STEPS + 1):
            yield x0, y0 + step * height
            yield right, y0 + step * height
            yield x0 + step * width / 2, tops[0]
            yield x0 - step * width / 2, tops[0]
            yield x0, y0 - (step + 1) * height
            yield x0, y1 + 1 + step * height


@lru_cache(maxsize=64)
def _font(size: int, text: str = "") -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, or the first of this machine that has every letter of the text."""
    own = ImageFont.load_default(size)
    if text.isascii():
        return own
    for name in ("", *FONTS):
        try:
            font = ImageFont.truetype(name, size) if name else own
        except OSError:
            continue
        missing = bytes(font.getmask("\U0010fffd"))
        if all(letter.isspace() or bytes(font.getmask(letter)) != missing for letter in text):
            return font
    return own


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


def draw_semantic_map(image: ImageSource, found: SemanticMap) -> Image.Image:
    """The picture, upright, under the colours of its classes, and below it their names, the largest first.

    Colours are those of the PNG that `owl-swin segment` writes; what shows none of the names keeps its own.
    """
    picture = open_image(image)
    if (picture.height, picture.width) != found.image_hw:
        wanted = f"{found.image_hw[1]}x{found.image_hw[0]}"
        raise ImageError(f"this map is of a picture of {wanted} pixels, got {picture.width}x{picture.height}")
    labels = found.labels.numpy()
    colours = np.array([class_colour(label) for label in range(len(found.names))] or [(0, 0, 0)], dtype=np.uint8)
    painted = Image.fromarray(colours[labels.clip(0)])
    opacity = Image.fromarray(np.where(labels == NOTHING, 0, round(255 * MAP_OPACITY)).astype(np.uint8))
    drawn = Image.composite(painted, picture, opacity)

    size = max(MIN_LETTER, round(min(picture.width, 1600) / 40))
    width = max(picture.width, LEGEND_WIDTH)
    column, row = min(width, 14 * size), round(1.6 * size)
    columns = max(1, width // column)
    shown = [(label, share) for label, share in found.shares().items() if label != NOTHING][:LEGEND_NAMES]
    canvas = Image.new("RGB", (width, picture.height + row * -(-len(shown) // columns) + GAP), "white")
    canvas.paste(drawn)
    draw = ImageDraw.Draw(canvas)
    for place, (label, share) in enumerate(shown):
        x, y = place % columns * column + GAP // 2, picture.height + place // columns * row + GAP // 2
        draw.rectangle((x, y, x + size - 1, y + size - 1), fill=class_colour(label), outline=DARK)
        percent = f"{100 * share:.0f} %" if share >= 0.005 else "< 1 %"
        text = _Label.of(found.names[label], percent, size, column - 2 * size)
        draw.text((x + 1.4 * size, y + size / 2), text.text, fill="black", font=text.font, anchor="lm")
    return canvas


def picture_grid(
    cells: Sequence[Image.Image], texts: Sequence[str], *, cell: int, columns: int, lines: int
) -> Image.Image:
    """One picture of many, at most ``cell`` pixels wide each, row by row, each with up to ``lines`` lines of its text
    below. There is at least one."""
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
        font = _font(LETTER, text)
        shown = _wrapped(_printable(text, limit=1000), font, cell, lines)
        draw.multiline_text((x, bottom + 2), "\n".join(shown), fill="black", font=font, spacing=2)
    return canvas


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, lines: int) -> list[str]:
    """The text in at most so many lines that are no wider than ``width`` pixels, broken between words where it can."""
    out: list[str] = []
    rest = text
    while rest and len(out) < lines:
        last = len(out) == lines - 1
        fits = len(rest)
        while fits > 1 and font.getlength(rest[:fits] + ("…" if last and fits < len(rest) else "")) > width:
            fits -= 1
        space = rest.rfind(" ", 0, fits + 1) if fits < len(rest) else -1
        end = space if space > 0 and not last else fits
        out.append(rest[:end].rstrip() + ("…" if last and end < len(rest) else ""))
        rest = rest[end:].lstrip()
    return out


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
