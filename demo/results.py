"""What is found in an archive, a page at a time: the question, its answers, and the way back to the question before."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from owl_swin import (
    ArchiveError,
    Detector,
    Exemplar,
    Match,
    QueryEmbeddings,
    QueryError,
    RegionIndex,
)
from owl_swin.demo.archived import Archived, copy_of, keep_copies, thumbnail_of
from owl_swin.demo.asking import FLOOR
from owl_swin.demo.filling import Archive
from owl_swin.demo.photos import Photo
from owl_swin.demo.pieces import HOW, no_photo, stage_value, strip_value

LIMIT = 24
NO_RESULT = ("Results come here", "Add photos, then search in them by a name or an example.")
NO_SOURCE = ("Drop a photo of the thing", HOW)
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Filters:
    """Which regions may answer, as the options of `owl-swin search` say it; "" and None leave one out."""

    per_photo: float = 3
    paths: str = ""
    newer: str = ""
    older: str = ""
    min_side: float | None = None
    exact: bool = False

    def options(self) -> dict[str, Any]:
        """As ``RegionIndex.search`` takes them."""
        return {
            "per_image": int(self.per_photo),
            "path_glob": self.paths.strip() or None,
            "newer_than": self.newer.strip() or None,
            "older_than": self.older.strip() or None,
            "min_side_px": self.min_side,
            "exact": self.exact,
        }


@dataclass(frozen=True, slots=True)
class Asked:
    """One question: what the query field says of it, what boxes are labelled, and the region whose like it asks for,
    which does not answer it itself."""

    query: QueryEmbeddings
    text: str
    label: str = "match"
    region: str = ""


@dataclass(frozen=True, slots=True)
class Searched:
    """What stands in the tab: the archive, what was asked of it and before, one page of answers, and an example.

    ``own`` is what the visitor filled, if anything; ``archive`` is that, or the one that the server brought.
    """

    archive: Archive | None = None
    own: Archive | None = None
    asked: Asked | None = None
    before: tuple[tuple[Asked, int, int], ...] = ()  # with the page and the number of the result that was looked at
    threshold: float = 0.1
    filters: Filters = field(default_factory=Filters)
    page: int = 0
    more: bool = False
    matches: tuple[Match, ...] = ()
    chosen: int = -1
    source: Photo | None = None
    box_xyxy: Box | None = None


def in_archive(searched: Searched, archive: Archive | None) -> Searched:
    """The tab turned to an archive, of which nothing was asked yet."""
    return replace(searched, archive=archive, matches=(), chosen=-1, asked=None, before=(), page=0, more=False)


def index_of(searched: Searched) -> RegionIndex:
    """What to search in; ArchiveError before there is anything."""
    if searched.archive is None:
        raise ArchiveError("there are no photos to search in yet; add some first")
    return searched.archive.index


def ask(searched: Searched, asked: Asked) -> Searched:
    """Another question, from whose answers a way leads back to the last one."""
    if searched.asked is None or searched.asked.text == asked.text:
        before = searched.before
    else:
        before = (*searched.before, (searched.asked, searched.page, searched.chosen))
    return find(replace(searched, asked=asked, before=before, chosen=0))


def ask_text(detector: Detector, searched: Searched, text: str) -> Searched:
    """A search by name; the field still holding what an example was described by asks that again."""
    if searched.asked is not None and text == searched.asked.text:
        return find(searched)
    if not text.strip():
        raise QueryError("write what to search for first, or show an example of it")
    index_of(searched)
    return ask(searched, Asked(detector.encode_queries([text]), text, text))


def ask_example(detector: Detector, searched: Searched, photo: Photo, box_xyxy: Box | None) -> Searched:
    """A search for what is in the box of a photo."""
    index_of(searched)
    query = detector.encode_queries([Exemplar(photo.open(), box_xyxy)])
    return ask(searched, Asked(query, f"what is shown in {photo.name}{_place(box_xyxy)}"))


def ask_like(searched: Searched, match: Match) -> Searched:
    """A search for the like of a result, without itself."""
    query = index_of(searched).more_like(match.region)
    text = f"more like {Path(match.path).name}{_place(match.box_xyxy)}"
    return ask(searched, Asked(query, text, region=match.region))


def go_back(searched: Searched) -> Searched:
    """The question before, at the page and the result that were looked at."""
    if not searched.before:
        return searched
    *before, (asked, page, chosen) = searched.before
    return find(replace(searched, asked=asked, before=tuple(before), chosen=chosen), page)


def find(searched: Searched, page: int = 0) -> Searched:
    """A page of the best regions for what was asked; the result that was looked at stays so if it is still there."""
    asked = searched.asked
    if asked is None:
        return searched
    found = index_of(searched).search(
        asked.query, limit=(page + 1) * LIMIT + 2, threshold=searched.threshold, **searched.filters.options()
    )
    found = [match for match in found if not asked.region or match.region != asked.region]
    if page and len(found) <= page * LIMIT:
        return find(searched)
    here = tuple(found[page * LIMIT : (page + 1) * LIMIT])
    chosen = min(max(searched.chosen, 0), len(here) - 1)
    return replace(searched, matches=here, page=page, more=len(found) > (page + 1) * LIMIT, chosen=chosen)


def kept_choice(before: Searched, after: Searched) -> Searched:
    """The same result looked at as before, where it is still among the answers; else the best."""
    regions = [match.region for match in after.matches]
    was = before.matches[before.chosen].region if 0 <= before.chosen < len(before.matches) else ""
    return replace(after, chosen=regions.index(was) if was in regions else min(0, len(regions) - 1))


def note_of_nothing(searched: Searched) -> dict[str, Any] | None:
    """What to do when nothing in the archive answers."""
    asked = searched.asked
    if asked is None or searched.archive is None:
        return None
    options = searched.filters.options()
    nearest = [m for m in searched.archive.index.search(asked.query, limit=2, **options) if m.region != asked.region]
    advice = "Use a plainer word, or search by an example."
    if not nearest or (lower := math.floor(100 * nearest[0].score) / 100) < FLOOR:
        filtered = options != Filters().options()
        return {"text": f"Nothing like it is in these photos{' that pass the filters' * filtered}. {advice}"}
    return {
        "text": f"Nothing reaches the threshold. Nearest is a region with a score of {nearest[0].score:.2f}. {advice}",
        "action": f"Lower the threshold to {lower:.2f}",
        "value": lower,
    }


# --- What is shown of it ---------------------------------------------------------------------------------------------


def looked_at(searched: Searched) -> Archived | None:
    """The photo of the match that is looked at."""
    if searched.archive is None or not 0 <= searched.chosen < len(searched.matches):
        return None
    return Archived(searched.archive, searched.matches[searched.chosen])


def items(archive: Archive, matches: Sequence[Match]) -> list[dict[str, Any]]:
    """Matches as items of a strip; one whose photo is gone says so."""
    keep_copies(archive, matches)
    sources = [thumbnail_of(match) for match in matches]
    out = []
    for match, src in zip(matches, sources, strict=True):
        path = archive.shown_path(match.path)
        title, caption = f"{path}, score {match.score:.3f}", Path(path).name if src else "is gone"
        out.append({"src": src, "title": title, "caption": caption, "badge": f"{match.score:.2f}", "key": match.region})
    return out


def show_matches(searched: Searched) -> dict:
    """The strip of the page."""
    if searched.archive is None or not searched.matches:
        return strip_value([])
    return strip_value(items(searched.archive, searched.matches), chosen=searched.chosen)


def show_match(searched: Searched) -> dict:
    """The photo of the match that is looked at, with its box."""
    if searched.archive is None or not searched.matches:
        return {**no_photo(*NO_RESULT), "note": note_of_nothing(searched)}
    match = searched.matches[searched.chosen]
    path = searched.archive.shown_path(match.path)
    why = keep_copies(searched.archive, [match])
    if not (src := copy_of(match)):
        reason = why.get(match.image_id, "is gone or has changed since it was indexed")
        return no_photo("This photo cannot be shown", f"{path}: {reason}.")
    label = searched.asked.label if searched.asked is not None else "match"
    mark = {"box": match.box_xyxy, "label": label, "score": match.score, "query": 0, "patch": None}
    photo = Photo(Path(path), path, match.width, match.height, src, key=match.region)
    return stage_value(photo, boxes=[mark], note={"text": path})


def page_text(searched: Searched) -> str:
    """Which results are shown."""
    if not searched.matches:
        return ""
    first = searched.page * LIMIT + 1
    return f"Results {first} to {first + len(searched.matches) - 1}"


def _place(box_xyxy: Box | None) -> str:
    return "" if box_xyxy is None else " at " + ", ".join(f"{value:.0f}" for value in box_xyxy)
