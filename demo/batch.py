"""Several photos at once: which they are, which is looked at, and what a strip of them shows."""

import math
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from cachetools import LRUCache, cached

from owl_swin import Detections, Detector, ImageError
from owl_swin.demo.asking import Look, Question
from owl_swin.demo.photos import THUMBNAIL_PX, Photo, data_uri, meant, take_photo
from owl_swin.demo.pieces import Upload
from owl_swin.demo.refusals import FAILED, Refused, explain, pick

# One visitor must not keep the model from all others: photos at once, and bytes of their files together.
MOST_PHOTOS, MOST_BYTES = 60, 500_000_000
# Embeddings that are kept of the photos of one batch, and of those of all visitors.
MOST_LOOK_BYTES, MOST_LOOKS_BYTES = 500_000_000, 2_000_000_000
# Files that were left out and are named; of more it is said how many.
MOST_NAMED = 5
LOOKS: weakref.WeakSet[Look] = weakref.WeakSet()
_turns = count()


@dataclass(frozen=True, slots=True)
class Rest:
    """The photos of a batch beside the one that is looked at: before it, after it, and files that are still to come.

    ``left_out`` says of files why they are not among them; ``turn`` changes with each step towards what is to come,
    after which the page asks for the next one.
    """

    before: tuple[Question, ...] = ()
    after: tuple[Question, ...] = ()
    waiting: tuple[Upload, ...] = ()
    left_out: tuple[str, ...] = ()
    turn: int = field(default_factory=_turns.__next__, compare=False)

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


def photos_of(asked: Question, rest: Rest) -> tuple[Question, ...]:
    """All photos, in order."""
    return (*rest.before, *([asked] if asked.photo is not None else []), *rest.after)


def place_of(asked: Question, rest: Rest, key: str, name: str) -> int:
    """Where the photo stands that was clicked, which may have gone."""
    for place, one in enumerate(photos_of(asked, rest)):
        if one.photo is not None and one.photo.key == key:
            return place
    raise Refused("Gone", f"{name} is not here any more.")


def with_photo(asked: Question, rest: Rest, event: Any, step: Callable[[Question], Question]) -> tuple[Question, Rest]:
    """The batch with a step taken by the photo that an event of the page means, which another may have followed as the
    one that is looked at."""
    if meant(asked.photo, event):
        return step(asked), rest
    before, after = (
        tuple(step(one) if meant(one.photo, event) else one for one in side) for side in (rest.before, rest.after)
    )
    return asked, replace(rest, before=before, after=after)


def turned_to(asked: Question, rest: Rest, place: int) -> tuple[Question, Rest]:
    """Another photo to look at."""
    photos = photos_of(asked, rest)
    return _in_place_of(asked, pick(photos, place)), replace(rest, before=photos[:place], after=photos[place + 1 :])


def without(asked: Question, rest: Rest, place: int) -> tuple[Question, Rest]:
    """One photo less; if it is the one that is looked at, its neighbour is from now on."""
    photos = photos_of(asked, rest)
    pick(photos, place)
    left = (*photos[:place], *photos[place + 1 :])
    at = len(rest.before) - (place < len(rest.before))
    if not left:
        return asked.of(None), replace(rest, before=(), after=())
    at = min(at, len(left) - 1)
    return _in_place_of(asked, left[at]), replace(rest, before=left[:at], after=left[at + 1 :])


def _in_place_of(asked: Question, photo: Question) -> Question:
    """Another photo as the one that is looked at: by what is wanted now, with the page's count of edits."""
    edits = replace(photo.edits, number=asked.edits.number)
    return replace(photo, model=asked.model, size=asked.size, outlines=asked.outlines, edits=edits)


def joined(asked: Question, rest: Rest, photo: Question) -> tuple[Question, Rest]:
    """One photo more, at the end; the first is the one that is looked at."""
    if asked.photo is None:
        return replace(_in_place_of(asked, photo), queries=asked.queries, done=asked.done), rest
    return asked, replace(rest, after=(*rest.after, photo))


def coming(asked: Question, rest: Rest, uploads: Sequence[Upload]) -> Rest:
    """With files that are to come; those beyond the bounds are left out."""
    files = [one.photo.source for one in photos_of(asked, rest) if one.photo is not None]
    n_bytes = sum(_size(file) for file in files if isinstance(file, Path)) + sum(_size(u.path) for u in rest.waiting)
    room = MOST_PHOTOS - len(files) - len(rest.waiting)
    taken: list[Upload] = []
    left_out: list[str] = []
    for one in uploads:
        n_bytes += _size(one.path)
        if len(taken) >= room:
            left_out.append(f"{one.name}: at most {MOST_PHOTOS} photos at once")
        elif n_bytes > MOST_BYTES:
            left_out.append(f"{one.name}: the photos may have {MOST_BYTES // 10**6} MB together")
            n_bytes -= _size(one.path)
        else:
            taken.append(one)
    return replace(rest, waiting=(*rest.waiting, *taken), left_out=(*rest.left_out, *left_out))


def take_next(detector: Detector, asked: Question, rest: Rest) -> tuple[Upload, Question | None, str]:
    """The next file that is to come, the photo in it, encoded, or else why it is left out."""
    upload = rest.waiting[0]
    try:
        check_room([one.look for one in photos_of(asked, rest)])
        question = Question(take_photo(*upload), model=asked.model, size=asked.size)
        look_at(detector, question, asked.masks_by(detector))
    except ImageError as error:
        reason = explain(error)[1]
        return upload, None, reason if upload.name in reason else f"{upload.name}: {reason}"
    except Exception:  # whatever it is, the next one must have its turn
        return upload, None, f"{upload.name}: {FAILED[1]}"
    return upload, question, ""


def taken(asked: Question, rest: Rest, upload: Upload, photo: Question | None, why: str) -> tuple[Question, Rest]:
    """The batch with what ``take_next`` gave, unless that file is not waited for any more."""
    rest = replace(rest, turn=next(_turns))
    if upload not in rest.waiting:
        return asked, rest
    place = rest.waiting.index(upload)
    rest = replace(rest, waiting=(*rest.waiting[:place], *rest.waiting[place + 1 :]))
    if photo is None:
        return asked, replace(rest, left_out=(*rest.left_out, why))
    return joined(asked, rest, photo)


def look_at(detector: Detector, question: Question, masks: bool) -> None:
    """Encodes a photo of a batch, also for ``masks`` of what is in it."""
    if question.photo is not None:
        question.look.by(detector, question.photo, masks)
        LOOKS.add(question.look)


def stale_of(detector: Detector, asked: Question, rest: Rest) -> list[Question]:
    """The photos that are still to be looked at as is wanted now."""
    masks = asked.masks_by(detector)
    return [one for one in photos_of(asked, rest) if not one.look.fits(detector, masks)]


def look_again(detector: Detector, asked: Question, rest: Rest, stale: Question) -> tuple[Question, Rest]:
    """The batch with a photo encoded as is wanted now, or else without it."""
    rest = replace(rest, turn=next(_turns))
    try:
        check_room([one.look for one in photos_of(asked, rest) if one is not stale])
        look_at(detector, stale, asked.masks_by(detector))
    except Exception as error:  # whatever it is, the next one must have its turn
        name = stale.photo.name if stale.photo is not None else ""
        reason = explain(error)[1] if isinstance(error, ImageError) else FAILED[1]
        asked, rest = without(asked, rest, [one is stale for one in photos_of(asked, rest)].index(True))
        return asked, replace(rest, left_out=(*rest.left_out, reason if name in reason else f"{name}: {reason}"))
    return asked, rest


def check_room(looks: Sequence[Look]) -> None:
    """ImageError where the photos of one batch, or of all visitors, have no room for the embeddings of another."""
    if _kept(looks) > MOST_LOOK_BYTES:
        raise ImageError(f"{len(looks)} photos are as many as there is room for in this detail")
    if _kept(list(LOOKS)) > MOST_LOOKS_BYTES:
        raise ImageError("the photos of all visitors fill their room; come again later")


def _kept(looks: Sequence[Look]) -> int:
    return sum(look.encoded.nbytes for look in looks if look.encoded is not None)


def _size(path: str | Path) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


# --- What is shown of it ---------------------------------------------------------------------------------------------


def _key(photo: Photo) -> str:
    return str(photo.source) if isinstance(photo.source, Path) else photo.src


@cached(LRUCache(32_000_000, getsizeof=len), key=_key, lock=threading.Lock())
def thumbnail(photo: Photo) -> str:
    """The photo in small."""
    return data_uri(photo.preview(), THUMBNAIL_PX)


def strip_of(detector: Detector, asked: Question, rest: Rest) -> dict[str, Any]:
    """What changes with the photos: their thumbnails, how many are to be looked at, and what was left out."""
    questions = photos_of(asked, rest)
    photos = [one.photo for one in questions if one.photo is not None]
    n_waiting = len(rest.waiting) or len(stale_of(detector, asked, rest))
    items = []
    if len(photos) + len(rest.waiting) > 1:
        items = [
            {"src": thumbnail(one), "title": one.name, "caption": Path(one.name).name, "key": one.key} for one in photos
        ]
    named = rest.left_out[:MOST_NAMED]
    more = len(rest.left_out) - len(named)
    note = "Left out: " + "; ".join(named) + (f"; and {more} more" if more else "") + "." if named else ""
    to_come = {"coming": len(rest.waiting), "waiting": n_waiting, "turn": rest.turn}
    return {"items": items, "photos": len(photos), **to_come, "note": note}


def marks_of(place: int, found: Sequence[Detections | None]) -> dict[str, Any]:
    """What changes with names and thresholds: of each photo how many boxes it has and the best score; which is looked
    at."""
    badges = [_badge(one) for one in found]
    n_boxes = sum(len(one) for one in found if one is not None)
    n_with = sum(one is not None and len(one) > 0 for one in found)
    boxes = f"{n_boxes} box{'es' * (n_boxes != 1)}"
    return {"chosen": place, "badges": badges, "text": f"{len(found)} photos, {boxes} in {n_with} of them"}


def _badge(found: Detections | None) -> str:
    if found is None:
        return ""
    scores = [score for score in found.scores.tolist() if not math.isnan(score)]  # boxes made by hand have none
    best = max(scores, default=found.best.score if found.best is not None and not len(found) else None)
    return f"{len(found)}" if best is None else f"{len(found)} · {best:.2f}"
