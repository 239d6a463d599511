"""Things that were shown, with words for them: what they ask as one query, and of which photo."""

from dataclasses import dataclass, field, replace
from typing import Any

from owl_swin import Detector, Exemplar, Query, QueryError
from owl_swin.demo.asking import Question, split_names
from owl_swin.demo.photos import Photo, crop_uri

THING = "this thing"
MOST_EXAMPLES = 12
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Example:
    """One thing that was shown, and whether it is what is looked for."""

    photo: Photo
    box_xyxy: Box | None
    wanted: bool
    src: str = ""

    @classmethod
    def of(cls, photo: Photo, box_xyxy: Box | None, wanted: bool) -> "Example":
        """With its thumbnail."""
        whole = (0, 0, photo.width, photo.height)
        return cls(photo, box_xyxy, wanted, crop_uri(photo.open(), box_xyxy or whole))

    def exemplar(self) -> Exemplar:
        """As the detector takes it."""
        return Exemplar(self.photo.open(), self.box_xyxy)

    def item(self) -> dict[str, Any]:
        """As a strip shows it."""
        word = "example" if self.wanted else "not this"
        title = f"{word}, from {self.photo.name}"
        kind = "yes" if self.wanted else "no"
        return {"src": self.src, "title": title, "badge": word, "kind": kind, "removable": True}


@dataclass(frozen=True, slots=True)
class Shown:
    """What stands in the tab: the photo that is drawn on, its box, the examples so far, the photo to look in, and words
    for the thing with the ``weight`` of the examples against them (1: the examples alone)."""

    source: Photo | None = None
    box_xyxy: Box | None = None
    examples: tuple[Example, ...] = ()
    target: Question = field(default_factory=Question)
    words: str = ""
    weight: float = 0.5


def with_example(shown: Shown, example: Example) -> Shown:
    """One example more; more than MOST_EXAMPLES raise QueryError."""
    if len(shown.examples) >= MOST_EXAMPLES:
        raise QueryError(f"there are {MOST_EXAMPLES} examples already; take one away first")
    return replace(shown, examples=(*shown.examples, example))


def as_query(examples: tuple[Example, ...], text: str, weight: float) -> Query | None:
    """All examples and the words for them as one query; None while nothing says what is looked for."""
    words = split_names(text)
    wanted = [one.exemplar() for one in examples if one.wanted]
    if not wanted and not words:
        return None
    negatives = [one.exemplar() for one in examples if not one.wanted]
    name = words[0] if words else THING
    return Query(name, texts=words, exemplars=wanted, negatives=negatives, weight=weight)


def search(detector: Detector, shown: Shown) -> Shown:
    """The question put to the photo to look in."""
    target = shown.target
    query = as_query(shown.examples, shown.words, shown.weight)
    if target.photo is None or query is None:
        return replace(shown, target=replace(target, queries=None, done=False))
    target.look.by(detector, target.photo, target.masks_by(detector))
    return replace(shown, target=replace(target, queries=detector.encode_queries([query]), done=True))


def numbers(box: Box | None) -> list[float | None]:
    """The box in its four fields."""
    return [round(value, 1) for value in box] if box else [None] * 4


def box_of(fields: tuple[float | None, ...]) -> Box | None:
    """The box that four fields hold: None while one of them is empty."""
    if any(value is None for value in fields):
        return None
    x0, y0, x1, y1 = (float(value) for value in fields if value is not None)
    return (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
