"""Makes cut-outs of flat things with writing or a picture on them: signs and posters, seen from aside."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from owl_swin.data.cutouts import CUTOUT_SUFFIXES
from owl_swin.errors import DataError
from owl_swin.files import make_folder, write_image
from owl_swin.image import open_image
from owl_swin.made_here import MADE_HERE, may_be_written

RGB = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
# Height of letters in pixels; a cut-out is a few of them high.
LETTERS_PX = 48
CAPITALS, SMALL, DIGITS = "ABCDEFGHJKLMNPRSTUVWXYZ", "eaoinrstlhdcumfpgbwyvk", "0123456789"
# Ground and writing, as signs in streets and shops have them; the first are drawn most often.
COLOURS: list[tuple[RGB, RGB]] = [
    *[((250, 250, 245), (20, 20, 20))] * 4,
    *[((245, 205, 40), (15, 15, 15))] * 2,
    ((20, 60, 150), (245, 245, 245)),
    ((0, 100, 60), (245, 245, 245)),
    ((170, 20, 30), (250, 250, 250)),
    ((25, 25, 28), (230, 230, 230)),
    ((230, 230, 235), (20, 40, 130)),
    ((235, 120, 20), (255, 255, 255)),
    ((200, 205, 210), (160, 20, 20)),
]
FRAMES: list[RGB] = [(255, 255, 255), (20, 20, 20), (110, 70, 40)]
# With photographs, one cut-out of so many is a poster.
POSTER_EVERY = 4


def make_signs(
    folder: Path, *, count: int, photographs: Sequence[Path] = (), fonts: Sequence[Path] = (), seed: int = 0
) -> Path:
    """Writes ``count`` cut-outs, "sign-00000.png" and so on, into an empty or new folder, and returns it.

    A sign is a rounded or round plate of one colour with letters and digits that mean nothing, in one of ``fonts``
    (TrueType files, of which those that have no Latin letters are left out; none: Pillow's own), unevenly lit and seen
    from aside. Where ``photographs`` are given, each fourth cut-out is a poster instead, "poster-00003.png": a part of
    one of them, framed half the time. The same seed gives the same cut-outs, and what a call that was stopped left is
    made again. For ``paste_scenes``; the names are what detection learns. Raises DataError.
    """
    posters = {index for index in range(count) if photographs and index % POSTER_EVERY == POSTER_EVERY - 1}
    names = {f"{'poster' if index in posters else 'sign'}-{index:05d}.png": index for index in range(count)}
    make_folder(folder)
    there = [path for path in folder.iterdir() if path.suffix.lower() in CUTOUT_SUFFIXES]
    if any(path.name not in names or not may_be_written(path) for path in there):
        raise DataError(f"{folder}: has pictures in it; name an empty folder, since all in it would be cut-outs")
    letters = [font for font in map(_read_font, fonts) if _has_letters(font)] if fonts else [_own_font()]
    if not letters:
        raise DataError(f"none of the {len(fonts)} fonts has Latin letters and digits")
    for name, index in names.items():
        rng = random.Random(seed * 1_000_003 + index)
        if index in posters:
            cutout = _poster(open_image(rng.choice(photographs)), rng)
        else:
            cutout = _from_aside(_lit(_sign(rng.choice(letters), rng), rng), rng)
        write_image(folder / name, cutout.crop(cutout.getchannel("A").getbbox()), comment=MADE_HERE)
    return folder


def _own_font() -> Font:
    return ImageFont.load_default(LETTERS_PX)


def _read_font(path: Path) -> Font:
    try:
        return ImageFont.truetype(str(path), LETTERS_PX)
    except OSError as error:
        raise DataError(f"{path}: cannot be read as a font ({error})") from None


def _has_letters(font: Font) -> bool:
    """Fonts of symbols leave letters empty, or draw one box for all of them."""
    drawn = {bytes(font.getmask(letter)) for letter in "Aa7"}
    return len(drawn) == 3 and all(any(pixels) for pixels in drawn)


def _writing(rng: random.Random) -> str:
    """A third of them short and numbered, as on plates and doors; the others one to four rows of words."""

    def some(letters: str, least: int, most: int) -> str:
        return "".join(rng.choice(letters) for _ in range(rng.randint(least, most)))

    if rng.random() < 0.35:
        before = some(CAPITALS, 1, 3) + rng.choice([" ", "-", ""]) if rng.random() < 0.5 else ""
        after = rng.choice(["", " ", " "]) + some(CAPITALS, 1, 3) if rng.random() < 0.7 else ""
        return before + some(DIGITS, 1, 4) + after

    def word() -> str:
        return some(SMALL, 2, 9).capitalize() if rng.random() < 0.5 else some(CAPITALS, 2, 8)

    rows = rng.choice([1, 1, 1, 2, 2, 3, 4])
    return "\n".join(" ".join(word() for _ in range(rng.choice([1, 1, 2]))) for _ in range(rows))


def _sign(font: Font, rng: random.Random) -> Image.Image:
    """An RGBA plate that its writing fits in."""
    ground, ink = rng.choice(COLOURS)
    if rng.random() < 0.3:
        ground = _other_shade(ground, rng)
    text = _writing(rng)
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    width = int(right - left + 2 * rng.uniform(0.15, 1.2) * LETTERS_PX)
    height = int(bottom - top + 2 * rng.uniform(0.1, 0.7) * LETTERS_PX)
    if rng.random() < 0.2:
        width = height = max(width, height)
    plate = Image.new("RGBA", (width, height), (*ground, 0))
    draw = ImageDraw.Draw(plate)
    edge = rng.choice([0, 0, 2, 4, 6])
    border, line = (0, 0, width - 1, height - 1), ink if edge else None
    if rng.random() < 0.08:
        draw.ellipse(border, fill=ground, outline=line, width=edge)
    else:
        corner = rng.choice([0, 0, 0.08, 0.15, 0.3]) * min(width, height)
        draw.rounded_rectangle(border, corner, fill=ground, outline=line, width=edge)
    place = ((width - right - left) / 2, (height - bottom - top) / 2)
    draw.multiline_text(place, text, font=font, fill=ink, align="center")
    return plate


def _other_shade(colour: RGB, rng: random.Random) -> RGB:
    red, green, blue = (min(255, max(0, part + rng.randint(-50, 50))) for part in colour)
    return red, green, blue


def _lit(plate: Image.Image, rng: random.Random) -> Image.Image:
    """Brighter or darker, and unevenly so from side to side and from top to bottom."""
    pixels = np.asarray(plate).astype(np.float32)
    down, across = (
        rng.uniform(-most, most) * np.linspace(-1, 1, n) for most, n in zip((0.2, 0.25), pixels.shape[:2], strict=True)
    )
    light = rng.uniform(0.55, 1.1) + down[:, None] + across[None, :]  # [H, W]
    pixels[..., :3] = (pixels[..., :3] * light[..., None]).clip(0, 255)
    return Image.fromarray(pixels.astype(np.uint8), "RGBA")


def _from_aside(plate: Image.Image, rng: random.Random) -> Image.Image:
    """Its corners moved by up to 18 % of its sides, and turned a little one time in three."""
    width, height = plate.size
    margin = int(0.3 * max(width, height))
    around = (*np.asarray(plate)[0, 0, :3].tolist(), 0)  # its own colour, which soft edges take in
    wide = Image.new("RGBA", (width + 2 * margin, height + 2 * margin), around)
    wide.paste(plate, (margin, margin))
    most = rng.uniform(0, 0.18)
    rows, sides = [], []
    for x, y in ((0, 0), (0, height), (width, height), (width, 0)):
        u, v = x + margin, y + margin
        s, t = u + rng.uniform(-most, most) * width, v + rng.uniform(-most, most) * height
        rows += [[s, t, 1, 0, 0, 0, -u * s, -u * t], [0, 0, 0, s, t, 1, -v * s, -v * t]]
        sides += [u, v]
    view = np.linalg.solve(np.array(rows, dtype=float), np.array(sides, dtype=float)).tolist()
    wide = wide.transform(wide.size, Image.Transform.PERSPECTIVE, view, Image.Resampling.BICUBIC)
    return _turned(wide, rng.gauss(0, 10)) if rng.random() < 0.35 else wide


def _poster(photograph: Image.Image, rng: random.Random) -> Image.Image:
    """A part of a photograph, framed half the time, turned a little two times in five."""
    width, height = (rng.randint(max(1, side // 3), side) for side in photograph.size)
    x, y = (rng.randint(0, side - part) for side, part in zip(photograph.size, (width, height), strict=True))
    poster = photograph.crop((x, y, x + width, y + height)).convert("RGBA")
    if rng.random() < 0.5:
        edge = rng.randint(3, 10)
        framed = Image.new("RGBA", (width + 2 * edge, height + 2 * edge), (*rng.choice(FRAMES), 255))
        framed.paste(poster, (edge, edge))
        poster = framed
    return _turned(poster, rng.gauss(0, 8)) if rng.random() < 0.4 else poster


def _turned(picture: Image.Image, degrees: float) -> Image.Image:
    return picture.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
