"""What is looked for in "Name it": names, each with examples of it if there are any, and how each of them fares."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from owl_swin import Detections, Detector, EncodedImage, Query, QueryEmbeddings, QueryError
from owl_swin.demo.asking import FLOOR, check_count
from owl_swin.demo.examples import MOST_EXAMPLES, THING, Example

# So many answers are looked through for the best one of each name.
MOST = 3000


@dataclass(frozen=True, slots=True)
class Term:
    """One thing to look for, encoded, with its examples; ``named`` says whether its name is part of the question.

    ``threshold`` is its own, None: that of all; one that is ``hidden`` keeps its place and its colour. One that is
    neither named nor has examples came from a file.
    """

    name: str
    embeds: QueryEmbeddings
    named: bool = True
    examples: tuple[Example, ...] = ()
    threshold: float | None = None
    hidden: bool = False

    @property
    def plain(self) -> bool:
        """Whether its name is all there is to it."""
        return self.named and not self.examples


def with_names(detector: Detector, terms: tuple[Term, ...], names: Sequence[str]) -> tuple[Term, ...]:
    """The terms and those names that are not among them, encoded together; too many raise QueryError."""
    new = [name for name in names if name not in {term.name for term in terms}]
    check_count(len(terms) + len(new))
    if not new:
        return terms
    encoded = detector.encode_queries(new)
    return (*terms, *(Term(name, encoded[i]) for i, name in enumerate(new)))


def with_file(detector: Detector, terms: tuple[Term, ...], content: bytes) -> tuple[Term, ...]:
    """The terms and those of a file of queries, which take the place of those called the same."""
    loaded = detector.load_queries(content)
    check_count(len(loaded))
    new = {name: Term(name, loaded[i], named=False) for i, name in enumerate(loaded.names)}
    kept = tuple(term for term in terms if term.name not in new)
    check_count(len(kept) + len(new))
    return (*kept, *new.values())


def with_example(detector: Detector, terms: tuple[Term, ...], place: int, example: Example) -> tuple[Term, ...]:
    """The terms with an example, or a thing that it is not, given to one of them; where there is none, to a new one."""
    if not terms:
        if not example.wanted:
            raise QueryError("name what you look for first, then say what it is not")
        return (_encoded(detector, THING, named=False, examples=(example,)),)
    term = terms[place]
    if not term.named and not term.examples:
        raise QueryError(f"“{term.name}” came from a file and takes no more examples; add it by its name")
    if len(term.examples) >= MOST_EXAMPLES:
        raise QueryError(f"“{term.name}” has {MOST_EXAMPLES} examples already; remove the name to begin anew")
    new = _encoded(detector, term.name, named=term.named, examples=(*term.examples, example))
    new = replace(new, threshold=term.threshold, hidden=term.hidden)
    return (*terms[:place], new, *terms[place + 1 :])


def with_model(detector: Detector, terms: Sequence[Term]) -> tuple[tuple[Term, ...], list[str]]:
    """The terms for another model, and why some could not come along: those of files are embeddings of their model, and
    not all models take examples."""
    kept, lost = [], []
    for term in terms:
        if not term.named and not term.examples:
            lost.append(f"“{term.name}” came from a file of queries, which only the model that made it understands")
            continue
        try:
            new = _encoded(detector, term.name, named=term.named, examples=term.examples)
        except QueryError as error:
            lost.append(f"“{term.name}”: {error.reason}")
        else:
            kept.append(replace(new, threshold=term.threshold, hidden=term.hidden))
    return tuple(kept), lost


def _encoded(detector: Detector, name: str, *, named: bool, examples: tuple[Example, ...]) -> Term:
    wanted = [one.exemplar() for one in examples if one.wanted]
    negatives = [one.exemplar() for one in examples if not one.wanted]
    query = Query(name, texts=[name] if named else (), exemplars=wanted, negatives=negatives)
    return Term(name, detector.encode_queries([query]), named, examples)


def queries_of(terms: Sequence[Term]) -> QueryEmbeddings | None:
    """All terms as queries; None, which asks for anything, where there are none."""
    queries = None
    for term in terms:
        queries = term.embeds if queries is None else queries + term.embeds
    return queries


def thresholds_of(terms: Sequence[Term], threshold: float) -> float | list[float]:
    """Of each term its own threshold, or that of all."""
    own = [threshold if term.threshold is None else term.threshold for term in terms]
    return own if any(term.threshold is not None for term in terms) else threshold


def seen_of(terms: Sequence[Term], found: Detections) -> list[bool]:
    """Which detections have a name that is not hidden."""
    hidden = {term.name for term in terms if term.hidden}
    return [found.names[label] not in hidden for label in found.labels.tolist()]


def answers_of(
    detector: Detector,
    encoded: EncodedImage,
    terms: Sequence[Term],
    limits: float | list[float],
    overlap: float,
    *,
    top_k: int,
    masks: bool = False,
) -> Detections:
    """What answers the terms from the thresholds ``limits`` on. Names compete for a thing, but hidden ones take nothing
    from those that are seen, whose answers are those of a question without them."""

    def found_by(asked: Sequence[Term], own: float | list[float]) -> Detections:
        queries = queries_of(asked)
        return detector.detect(encoded, queries, threshold=own, nms_iou=overlap, top_k=top_k, masks=masks)

    found = found_by(terms, limits)
    shown = [place for place, term in enumerate(terms) if not term.hidden]
    if not 0 < len(shown) < len(terms):
        return found
    own = [limits[place] for place in shown] if isinstance(limits, list) else limits
    seen = found_by([terms[place] for place in shown], own)
    seen = replace(seen, names=found.names, labels=torch.tensor(shown, device=seen.labels.device)[seen.labels])
    return Detections.merge([replace(seen, best=None), found[[not kept for kept in seen_of(terms, found)]]])


def best_of(detector: Detector, encoded: EncodedImage, terms: Sequence[Term], overlap: float) -> list[float]:
    """The best score of each term, as its answers have it: what a threshold has to reach to show one."""
    queries = queries_of(terms)
    if queries is None:
        return []
    best = detector.score(encoded, queries).sigmoid().amax(0).clamp(max=FLOOR)
    found = answers_of(detector, encoded, terms, FLOOR, overlap, top_k=MOST)
    return best.scatter_reduce(0, found.labels, found.scores.to(best), "amax").tolist()


def chips(terms: Sequence[Term], found: Detections | None, best: Sequence[float], threshold: float) -> dict[str, Any]:
    """What the page shows of each term: how often it was found, how near it came, and a threshold where it was not."""
    items = []
    for place, term in enumerate(terms):
        count = 0 if found is None else int((found.labels == place).sum())
        item: dict[str, Any] = {"name": term.name, "hidden": term.hidden, "threshold": term.threshold}
        shown, wrong = _count(term, True), _count(term, False)
        texts = [f"{shown} example{'s' * (shown > 1)}"] * bool(shown) + [f"{wrong} not"] * bool(wrong)
        item["with"] = ", ".join(texts)
        if place < len(best):
            limit = threshold if term.threshold is None else term.threshold
            lower = math.floor(100 * best[place]) / 100
            item["text"] = f"{count} found, best {best[place]:.2f}"
            if not count:
                item["text"] = f"none above {limit:.2f}, best {best[place]:.2f}"
                item["suggested"] = lower if FLOOR <= lower < limit else None
        items.append(item)
    return {"items": items}


def _count(term: Term, wanted: bool) -> int:
    return sum(one.wanted is wanted for one in term.examples)
