"""A photo and what is asked of it, between one click and the next: both are encoded once, then only compared."""

import contextlib
import math
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from owl_swin import Detections, Detector, EncodedImage, QueryEmbeddings, QueryError
from owl_swin.demo.edits import By, Edit, Edits, read_edit, told_by
from owl_swin.demo.outlines import Paths
from owl_swin.demo.photos import Photo, meant
from owl_swin.demo.refusals import errors_shown

# Below this a score says nothing; sliders end here.
FLOOR = 0.01
# One visitor must not keep the model from all others.
MOST_NAMES = 100


class Look:
    """The embeddings of one photo: made when first needed, kept for the questions that follow, and made again only for
    another detector or size."""

    def __init__(self) -> None:
        self.encoded: EncodedImage | None = None
        self.finder: By | None = None
        self.paths: Paths = {}  # what was drawn of them already
        self._lock = threading.Lock()

    def fits(self, detector: Detector, masks: bool = False) -> bool:
        """Whether there are embeddings that this detector made, and those that ``masks`` need."""
        if self.encoded is None or self.finder != (detector.fingerprint, detector.image_size):
            return False
        return not masks or self.encoded.embeddings.masks is not None

    def by(self, detector: Detector, photo: Photo, masks: bool = False) -> EncodedImage:
        """The embeddings that a detector makes; whoever asks meanwhile waits for them."""
        with self._lock:
            if self.encoded is None or not self.fits(detector, masks):
                finder = (detector.fingerprint, detector.image_size)
                self.encoded, self.finder = detector.encode_image(photo.open(), masks=masks), finder
                self.paths = {}
            return self.encoded


@dataclass(frozen=True, slots=True)
class Question:
    """A photo, its embeddings, and the queries; queries None asks for anything.

    ``model`` is one of those that can be chosen and ``size`` one of its ``scales``, "" the first; ``done`` says whether
    the photo was asked; ``edits`` is what was done to its answers by hand, whatever they are; ``outlines`` are wanted
    beside boxes, of a model that makes masks.
    """

    photo: Photo | None = None
    queries: QueryEmbeddings | None = None
    model: str = ""
    size: str = ""
    done: bool = False
    look: Look = field(default_factory=Look, compare=False)
    edits: Edits = field(default_factory=Edits)
    outlines: bool = False

    def masks_by(self, detector: Detector) -> bool:
        """Whether a detector is asked for masks."""
        return self.outlines and detector.spec.has_masks

    @property
    def encoded(self) -> EncodedImage | None:
        """The embeddings of the photo, as far as there are any."""
        return self.look.encoded

    def of(self, photo: Photo | None) -> "Question":
        """The same question of another photo."""
        return replace(self, photo=photo, done=False, look=Look(), edits=Edits(number=self.edits.number))

    def by(self, model: str) -> "Question":
        """The same photo, of which nothing was asked with that model yet; what was edited stays."""
        return replace(self, model=model, size="", queries=None, done=False, look=Look())

    def edited(self, event: Any, told: Edit) -> "Question":
        """With an edit that an event of the page tells; one of another photo, as was there a moment ago, and one that
        was heard of before change nothing."""
        if self.photo is None or not meant(self.photo, event) or told.number <= self.edits.done:
            return self
        hw = (self.photo.height, self.photo.width)
        return replace(self, edits=read_edit(self.edits, told, hw, self.look.finder))

    def heard(self, told: Edit, event: Any) -> "Question":
        """With the page's number of an edit, whatever became of it: the page then shows what there is."""
        number, done = max(self.edits.number, told.number), self.edits.done
        done = max(done, told.number) if meant(self.photo, event) else done
        return replace(self, edits=replace(self.edits, number=number, done=done))


Change = Callable[[Callable[[Question], Question]], Any]


def edit(event: Any, change: Change, looked_at: Change | None = None) -> None:
    """Does the edits that an event of the page tells, each if it can be; ``change`` puts what a step makes of the
    question that is meant in its place, and ``looked_at`` of that which is looked at, where it may be another."""
    for told in told_by(event):
        errors_shown(change)(partial(Question.edited, event=event, told=told))
        for one in (change, looked_at or change):
            one(partial(Question.heard, told=told, event=event))


def split_names(text: str) -> list[str]:
    """The names in a text, between commas and line ends, each once."""
    names = list(dict.fromkeys(name.strip() for name in re.split(r"[,;\n]", text) if name.strip()))
    check_count(len(names))
    return names


def check_count(n_names: int) -> None:
    """More than MOST_NAMES raise QueryError."""
    if n_names > MOST_NAMES:
        raise QueryError(f"at most {MOST_NAMES} names at once, got {n_names}; `owl-swin detect` takes any number")


def scales(detector: Detector) -> dict[str, Detector]:
    """The detector as it is, and at larger sizes that find smaller things, as far as a detector goes."""
    found = {f"normal ({detector.image_size} px)": detector}
    for name, factor in (("finer", 2), ("finest", 3)):
        size = detector.image_size * factor
        with contextlib.suppress(QueryError):  # larger than pictures may be
            found[f"{name} ({size} px)"] = detector.with_image_size(size)
    return found


def answer(detector: Detector, asked: Question, threshold: float, overlap: float) -> Detections | None:
    """What answers, without another look at the photo; None before anything was asked."""
    if not asked.done or asked.encoded is None:
        return None
    return detector.detect(
        asked.encoded,
        asked.queries,
        threshold=threshold,
        nms_iou=None if overlap >= 1 else overlap,
        top_k=100,
        masks=asked.masks_by(detector),
    )


def note_of_nothing(detector: Detector, asked: Question, threshold: float, *, instead: str) -> dict[str, Any]:
    """What to do when nothing answers: how near the best came, a threshold to try, and what to try ``instead``."""
    assert asked.encoded is not None
    best = detector.detect(asked.encoded, asked.queries, threshold=0.0, nms_iou=None, top_k=1)
    (nearest,) = best
    text = (
        f"Nothing reaches the threshold of {threshold:.2f}. Nearest is “{nearest.name}” with a score of "
        f"{nearest.score:.2f}. "
    )
    lower = math.floor(100 * nearest.score) / 100
    if lower >= FLOOR:
        return {
            "text": f"{text}If it is there, lower the threshold, or {instead}.",
            "action": f"Lower the threshold to {lower:.2f}",
            "value": lower,
        }
    return {"text": f"{text}It is probably not in this photo. If it is, take a closer photo, or {instead}."}
