"""What callers of the archive get: matches, reports, progress and figures."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from owl_swin.tiling import Tiles


@dataclass(frozen=True, slots=True)
class Match:
    """One stored region that answers a query.

    ``box_xyxy`` are pixels of the upright picture, which is ``width`` x ``height``; ``score`` is what ``detect`` gives
    the same region without rivals; ``modified`` is the time of the picture's file in seconds since 1970; ``image_id``
    names the content of the file, ``region`` the region, both for as long as that content is in the archive.
    """

    image_id: str
    path: str
    box_xyxy: tuple[float, float, float, float]
    score: float
    objectness: float
    width: int
    height: int
    modified: float
    region: str


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What one call did: pictures added, changed, removed and unchanged; regions stored; (path, reason) of
    each file that was skipped."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    regions: int = 0
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class IndexProgress:
    """How far a call has come: pictures done of all, regions stored, pictures a second of late, seconds left at that
    rate (None while it is unknown), and the picture last seen."""

    done: int
    total: int
    regions: int
    rate: float
    seconds_left: float | None
    path: str


@dataclass(frozen=True, slots=True)
class IndexStats:
    """What an archive holds, the model that its regions are of, and the tiles in which it was shown the pictures."""

    n_images: int
    n_regions: int
    model: str
    fingerprint: str
    image_size: int
    regions_per_image: float
    tiles: "Tiles | None" = None
