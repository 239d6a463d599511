"""Photos of an archive on the page: small copies, thumbnails of what was found in them, and parts to zoom into."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

from cachetools import LRUCache
from PIL import Image

from owl_swin import ImageError, Match, MissingExtraError, open_parts
from owl_swin.demo.filling import Archive
from owl_swin.demo.photos import SHOWN_PX, THUMBNAIL_PX, box_around, data_uri, decoded, part_in

# Small copies of the archives' photos, of all visitors together: about a quarter of a megabyte each.
MOST_COPY_BYTES = 128_000_000
# A photo of more pixels is not kept decoded: parts of it are read from its file, one at a time.
MOST_KEPT_PIXELS = 64_000_000
Box = tuple[float, float, float, float]

_copies: LRUCache[str, str] = LRUCache(MOST_COPY_BYTES, getsizeof=len)  # of a photo's content, what a stage shows
_crops: LRUCache[tuple[str, Box], str] = LRUCache(MOST_COPY_BYTES // 4, getsizeof=len)
_lock = Lock()
_huge = Lock()


def keep_copies(archive: Archive, matches: Sequence[Match]) -> dict[str, str]:
    """Thumbnails of matches and a copy of their photos for the clicks to come, each photo decoded once; of those that
    have none, as they are gone, why."""
    with _lock:
        missing = [one for one in matches if one.image_id not in _copies or _key(one) not in _crops]
    why: dict[str, str] = {}
    for image_id in dict.fromkeys(one.image_id for one in missing):
        try:
            here = [one for one in missing if one.image_id == image_id]
            copy, crops = _read_copies(archive.index.picture_file(image_id), here)
        except (ImageError, MissingExtraError) as error:
            why[image_id] = str(getattr(error, "reason", error))
            continue
        with _lock:
            _copies[image_id] = copy
            _crops.update(crops)
    return why


def copy_of(match: Match) -> str:
    """The copy of its photo that is kept; "" if none is."""
    with _lock:
        return _copies.get(match.image_id, "")


def thumbnail_of(match: Match) -> str:
    """Its thumbnail that is kept; "" if none is."""
    with _lock:
        return _crops.get(_key(match), "")


def _key(match: Match) -> tuple[str, Box]:
    return match.image_id, match.box_xyxy


def _read_copies(source: bytes | str, matches: Sequence[Match]) -> tuple[str, dict[tuple[str, Box], str]]:
    """The copy of a photo of any size, and thumbnails: of the copy, or of its file where that has too few pixels."""
    crops = {}
    with open_parts(source, side=2 * SHOWN_PX) as parts:
        height, width = parts.image_hw
        small = parts.reduced(2 * SHOWN_PX)
        scale = small.width / width
        for match in sorted(matches, key=lambda one: one.box_xyxy[1]):  # as a file is read from top to bottom
            x0, y0, x1, y1 = box = box_around(match.box_xyxy, (height, width))
            if scale * max(x1 - x0, y1 - y0) >= THUMBNAIL_PX:
                across, down = scale, small.height / height
                crop = small.crop((round(x0 * across), round(y0 * down), math.ceil(x1 * across), math.ceil(y1 * down)))
            else:
                crop = parts.part(box, THUMBNAIL_PX)
            crops[_key(match)] = data_uri(crop, THUMBNAIL_PX)
    return data_uri(small, SHOWN_PX), crops


@dataclass(frozen=True, slots=True)
class Archived:
    """The photo of a match, to be zoomed into."""

    archive: Archive
    match: Match

    @property
    def name(self) -> str:
        """As visitors see it."""
        return self.archive.shown_path(self.match.path)

    @property
    def width(self) -> int:
        """Of the photo."""
        return self.match.width

    @property
    def height(self) -> int:
        """Of the photo."""
        return self.match.height

    def part(self, box_xyxy: tuple[int, int, int, int], side: int) -> Image.Image:
        """What is in a box; ImageError where the photo is gone."""
        image_id = self.match.image_id
        source = self.archive.index.picture_file(image_id)
        if self.width * self.height <= MOST_KEPT_PIXELS:
            return part_in(decoded(source, of=image_id), box_xyxy, side)
        with _huge, open_parts(source) as parts:
            return parts.part(box_xyxy, side)
