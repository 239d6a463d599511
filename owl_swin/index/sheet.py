"""A contact sheet of matches: their pictures with the box drawn in."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from owl_swin.errors import ImageError, MissingExtraError
from owl_swin.frame import Frame, crop_hw
from owl_swin.huge import open_parts
from owl_swin.image import MAX_PIXELS
from owl_swin.index.match import Match
from owl_swin.index.region_index import RegionIndex
from owl_swin.render import label_colour, picture_grid

COLUMNS, CELL = 5, 300
# A box with less than this share of the picture's longer side is shown with its surroundings, not the whole picture.
SMALL = 0.25


def sheet_of_matches(index: RegionIndex, matches: Sequence[Match], queries: Sequence[int]) -> Image.Image:
    """A grid of the matches' pictures in their order, each with its box, score and file name.

    ``queries`` is the number of each match's query, which gives the box its colour. A picture that is gone is a grey
    cell that says so; without matches that raises ImageError.
    """
    if not matches:
        raise ImageError("nothing was found, so there is no sheet to draw")
    cells = [_cell(index, match, query) for match, query in zip(matches, queries, strict=True)]
    texts = [f"{match.score:.3f}  {_name(match.path)}" for match in matches]
    return picture_grid(cells, texts, cell=CELL, columns=COLUMNS, lines=2)


def _cell(index: RegionIndex, match: Match, query: int) -> Image.Image:
    x0, y0, x1, y1 = part = _part(match)
    scale = CELL / max(x1 - x0, y1 - y0)
    try:
        with open_parts(index.picture_file(match.image_id)) as parts:
            size = [max(1, round(side * scale)) for side in (y1 - y0, x1 - x0)]
            small_hw, is_whole = (size[0], size[1]), part == (0, 0, match.width, match.height)
            frame = Frame(parts.image_hw, small_hw, small_hw, None if is_whole else part)
            ((_, pixels),) = parts.shown([frame], lambda image, one: one.pixels(image))
    except (ImageError, MissingExtraError):
        gone = Image.new("RGB", (CELL, CELL * 3 // 4), "lightgrey")
        ImageDraw.Draw(gone).text((CELL // 2, CELL * 3 // 8), "gone or changed", fill="black", anchor="mm")
        return gone
    small = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    box = [(value - start) * scale for value, start in zip(match.box_xyxy, (x0, y0, x0, y0), strict=True)]
    ImageDraw.Draw(small).rectangle(box, outline=label_colour(query), width=4)
    return small


def _part(match: Match) -> tuple[int, int, int, int]:
    """Whole pixels of the picture that are shown."""
    x0, y0, x1, y1 = match.box_xyxy
    whole = max(match.width, match.height)
    side = max(x1 - x0, y1 - y0)
    if side >= SMALL * whole:
        return 0, 0, match.width, match.height
    half = max(side / SMALL / 2, 16.0)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    part = (
        max(0, int(x - half)),
        max(0, int(y - half)),
        min(match.width, int(x + half) + 1),
        min(match.height, int(y + half) + 1),
    )
    # Of a huge picture a part may itself be more than is decoded at once.
    return part if math.prod(crop_hw(part)) <= MAX_PIXELS else (0, 0, match.width, match.height)


def _name(path: str) -> str:
    """The file's name, with what cannot be drawn replaced."""
    name = path.rsplit("/", 1)[-1]
    return "".join(c if c.isprintable() else "?" for c in name)
