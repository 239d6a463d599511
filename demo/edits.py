"""Boxes moved, named, drawn and taken away by hand, laid over whatever the model answers: an annotation in the end."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torchvision.ops import box_iou

from owl_swin import BoxMasks, Detections, QueryError

Box = tuple[float, float, float, float]
# Which detector an answer is of: its fingerprint, and the size in which it looked.
By = tuple[str, int]

MOST_DRAWN = 1000
MOST_UNDONE = 200
LONGEST_NAME = 200
# From which overlap on a found box is the one that was taken away: of the same look at the photo, and of another one,
# in which boxes differ a little.
SAME_IOU, ALIKE_IOU = 0.98, 0.5
# Of one that has no side, and so overlaps nothing.
SAME_PX = 0.02


@dataclass(frozen=True, slots=True)
class Mark:
    """A box with its name; ``hand`` tells those apart that were made by hand, and is "" for one that was found."""

    name: str
    box_xyxy: Box
    hand: str = ""


@dataclass(frozen=True, slots=True)
class Edits:
    """What was done by hand to the answers about one photo: found boxes that went, each with who found it, and boxes
    that came. ``before`` are the states to go back to; ``number`` is that of the page's last edit, of whichever photo,
    and ``done`` that of the last one which was meant for this photo."""

    gone: tuple[tuple[Mark, By | None], ...] = ()
    drawn: tuple[Mark, ...] = ()
    before: tuple["Edits", ...] = ()
    number: int = 0
    done: int = 0

    def __bool__(self) -> bool:
        return bool(self.gone or self.drawn)

    def changed(self, gone: Sequence[tuple[Mark, By | None]], drawn: Sequence[Mark]) -> "Edits":
        """Another state, from which a way leads back to this one."""
        if len(drawn) > MOST_DRAWN or len(gone) > MOST_DRAWN:
            raise QueryError(f"at most {MOST_DRAWN} boxes of a photo can be edited")
        before = (*self.before, replace(self, before=()))[-MOST_UNDONE:]
        return Edits(tuple(gone), tuple(drawn), before, self.number, self.done)

    def put(self, was: Mark | None, now: Mark | None, by: By | None) -> "Edits":
        """One box in the place of another: None for ``was`` is a new one, None for ``now`` takes it away."""
        gone, drawn = self.gone, list(self.drawn)
        hands = [one.hand for one in drawn]
        place = hands.index(was.hand) if was is not None and was.hand in hands else len(drawn)
        if was is not None and not was.hand:
            gone = (*gone, (was, by))
        drawn[place : place + 1] = [now] if now is not None else []
        return self.changed(gone, drawn)

    def undone(self) -> "Edits":
        """As it was before the last edit."""
        if not self.before:
            return self
        return replace(self.before[-1], before=self.before[:-1], number=self.number, done=self.done)


@dataclass(frozen=True, slots=True)
class Edit:
    """What the page tells of one edit ("edited" in editing.js): boxes as it has them, or that the last edit, or all, is
    taken back."""

    number: int
    was: Any = None
    now: Any = None
    undo: bool = False
    reset: bool = False


def told_by(event: Any) -> list[Edit]:
    """The edits that the page tells, in the order in which they were made; what is none raises QueryError."""
    try:
        edits = [Edit(int(one["number"]), one["was"], one["now"], one["undo"], one["reset"]) for one in event.edits]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise QueryError("an edit must have its number, its boxes, and whether it takes others back") from None
    return sorted(edits, key=lambda one: one.number)


def read_edit(edits: Edits, told: Edit, image_hw: tuple[int, int], by: By | None) -> Edits:
    """The edits with one more; a box that means nothing raises QueryError."""
    if told.undo:
        edits = edits.undone()
    elif told.reset:
        edits = edits.changed((), ())
    else:
        was, now = _mark(told.was, image_hw), _mark(told.now, image_hw)
        if now is not None and not now.hand:
            raise QueryError("a box made by hand must say which it is")
        if was is not None or now is not None:
            edits = edits.put(was, now, by)
    return replace(edits, number=max(edits.number, told.number), done=told.number)


def _mark(told: Any, image_hw: tuple[int, int]) -> Mark | None:
    if told is None:
        return None
    try:
        values = [float(value) for value in told["box"]]
        name, hand = str(told["label"]).strip()[:LONGEST_NAME], str(told["hand"] or "")[:40]
    except (KeyError, TypeError, ValueError):
        raise QueryError("a box must have a name and four numbers") from None
    if len(values) != 4 or not all(map(math.isfinite, values)) or not name:
        raise QueryError("a box must have a name and four numbers")
    height, width = image_hw
    x0, x1 = sorted(min(max(value, 0.0), float(width)) for value in values[0::2])
    y0, y1 = sorted(min(max(value, 0.0), float(height)) for value in values[1::2])
    return Mark(name, (x0, y0, x1, y1), hand)


def annotate(found: Detections, edits: Edits, by: By | None) -> Detections:
    """What was found with the edits: what went is gone, and what came stands last, with NaN for a score and -1 for a
    patch, as no model gave it one. Of masks it has that of the box whose name alone it changed, else no pixel. Names
    that were not asked for follow those that were."""
    found = found.to("cpu")
    taken = _taken(found, edits, by)
    kept = found[[row for row in range(len(found)) if row not in taken]]
    if not edits.drawn:
        return kept
    names = tuple(dict.fromkeys(one.name for one in edits.drawn if one.name not in found.names))
    names = (*found.names, *names)
    n = len(edits.drawn)
    boxes = torch.tensor([one.box_xyxy for one in edits.drawn]).to(kept.boxes)
    masks = kept.masks
    if found.masks is not None and masks is not None:
        none = BoxMasks(boxes.new_full((1, 1, 1), -1.0), boxes[:1], kept.image_hw)
        renamed = [next((row for row, mark in taken.items() if _same(mark, one)), None) for one in edits.drawn]
        own = BoxMasks.cat([none if row is None else found.masks[[row]] for row in renamed])
        masks = BoxMasks.cat([masks, replace(own, boxes_px=boxes)])
    return Detections(
        boxes=torch.cat([kept.boxes, boxes]),
        scores=torch.cat([kept.scores, kept.scores.new_full((n,), math.nan)]),
        labels=torch.cat([kept.labels, torch.tensor([names.index(one.name) for one in edits.drawn]).to(kept.labels)]),
        names=names,
        image_hw=kept.image_hw,
        patches=torch.cat([kept.patches, kept.patches.new_full((n,), -1)]),
        best=kept.best,
        masks=masks,
    )


def _same(one: Mark, other: Mark) -> bool:
    """Whether two boxes are one."""
    return all(abs(a - b) <= SAME_PX for a, b in zip(one.box_xyxy, other.box_xyxy, strict=True))


def _taken(found: Detections, edits: Edits, by: By | None) -> dict[int, Mark]:
    """Which detections went, each with the box that took it: that takes at most one of its name, the one most like
    it."""
    kept, taken = torch.ones(len(found), dtype=torch.bool), {}
    for mark, finder in edits.gone:
        alike = kept & torch.tensor(
            [found.names[label] == mark.name for label in found.labels.tolist()], dtype=torch.bool
        )
        if not alike.any():
            continue
        box = torch.tensor([mark.box_xyxy]).to(found.boxes)
        overlap = box_iou(found.boxes, box)[:, 0].nan_to_num()
        overlap[(found.boxes - box).abs().amax(1) <= SAME_PX] = 1.0
        best = int(overlap.where(alike, overlap.new_tensor(-1.0)).argmax())
        if overlap[best] >= (SAME_IOU if finder == by else ALIKE_IOU):
            kept[best], taken[best] = False, mark
    return taken


def edit_state(edits: Edits, names: Sequence[str]) -> dict[str, Any]:
    """What the page must know of the edits beside the boxes."""
    return {"names": list(names), "edited": edits.number, "edits": bool(edits), "undo": bool(edits.before)}
