"""Queries of several parts: texts, exemplars and negatives of one thing, and how they are encoded."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_swin.errors import QueryError, brief
from owl_swin.exemplar import Exemplar
from owl_swin.models.network import Spec
from owl_swin.tokenizer import clean_text
from owl_swin.types import ExtraEmbeddings, QueryEmbeddings


@dataclass(frozen=True, slots=True)
class Query:
    """One thing to look for, named by texts, shown by exemplars, or both; ``name`` is what its detections are called.

    ``negatives``, texts or exemplars, are what it is not: its score goes down where one of them fits as well or better.
    ``weight`` in [0, 1] is how much the exemplars count against the texts when there are both. A query without texts
    and exemplars, or whose parts are of the wrong kind, raises QueryError.

    >>> mug = Query("my mug", texts=["a red mug"], exemplars=[Exemplar("mug.jpg", (40, 60, 210, 300))],
    ...             negatives=["a cup"])
    >>> detector.detect("shelf.jpg", [mug, "a dog"])
    """

    name: str
    texts: Sequence[str] = ()
    exemplars: Sequence[Exemplar] = ()
    negatives: Sequence[str | Exemplar] = ()
    weight: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise QueryError(f"the name of a query must be a text, got {type(self.name).__name__}")
        kinds = {"texts": (str,), "exemplars": (Exemplar,), "negatives": (str, Exemplar)}
        for field, kind in kinds.items():
            object.__setattr__(self, field, _parts(self.name, field, getattr(self, field), kind))
        query = f"the query {brief(self.name)}"
        if not self.texts and not self.exemplars:
            only = "only negatives" if self.negatives else "neither texts nor exemplars"
            raise QueryError(f"{query} has {only}; give it at least one text or exemplar to look for")
        if not isinstance(self.weight, Real) or not 0 <= self.weight <= 1:  # NaN fails this too
            raise QueryError(f"the weight of {query} must be a number in [0, 1], got {brief(self.weight)}")


Queries = Sequence[str | Exemplar | Query] | QueryEmbeddings | None
# One query, which a list may be mistaken for.
ONE = (str, Exemplar, Query)


def as_query(query: str | Exemplar | Query) -> Query:
    """A text or an exemplar as a query of that one part, called by the text as it is or the exemplar's name."""
    if isinstance(query, Query):
        return query
    if isinstance(query, Exemplar):
        return Query(query.name, exemplars=(query,))
    if not isinstance(query, str):
        raise QueryError(
            f"a text query must be a string, got {type(query).__name__}; a query is a text, an Exemplar or a Query"
        )
    return Query(query, texts=(query,))


def as_queries(queries: object) -> list[Query]:
    """A list of queries; a single one that is no list, or an empty list, raises QueryError."""
    if isinstance(queries, str):
        raise QueryError(
            f"queries must be a list of texts, got the single text {brief(queries)}; write [{brief(queries)}]"
        )
    if isinstance(queries, (Exemplar, Query)):
        kind = type(queries).__name__.lower()
        raise QueryError(f"queries must be a list, got a single {kind}; write [{kind}]")
    if not isinstance(queries, Iterable):
        raise QueryError(f"queries must be a list of texts, Exemplars and Queries, got {type(queries).__name__}")
    made = [as_query(query) for query in queries]
    if not made:
        raise QueryError("the list of queries is empty; leave queries out to find anything that looks like a thing")
    return made


def queries_per_image(
    queries: Queries | Sequence[Queries], n_images: int, encode: Callable[[Any], QueryEmbeddings]
) -> list[QueryEmbeddings | None]:
    """The queries of each picture, of one list for all or a list of lists, one a picture; equal lists are encoded once.

    Lists that are fewer or more than the pictures raise QueryError.
    """
    if queries is None or isinstance(queries, QueryEmbeddings):
        return [queries] * n_images
    if isinstance(queries, ONE) or not isinstance(queries, Iterable):
        return [encode(queries)] * n_images  # which encode refuses
    lists: list[Any] = list(queries)
    if len(lists) == n_images == 0:
        return []
    text = next((query for query in lists if isinstance(query, str)), None)
    if text is not None and any(_is_list(query) for query in lists):
        raise QueryError(f"expected a list of queries for each picture, got the text {brief(text)}; write {[text]!r}")
    if not all(_is_list(query) for query in lists) or not lists:
        return [encode(lists)] * n_images  # which refuses what is no query
    if len(lists) != n_images:
        raise QueryError(f"got {len(lists)} lists of queries for {n_images} pictures; give one list a picture")
    made: dict[Any, QueryEmbeddings] = {}
    out: list[QueryEmbeddings | None] = []
    for query in lists:
        if query is None or isinstance(query, QueryEmbeddings):
            out.append(query)
            continue
        key = tuple(as_queries(query))
        if key not in made:
            made[key] = encode(key)
        out.append(made[key])
    return out


def _is_list(queries: object) -> bool:
    """Whether these may be the queries of one picture."""
    if queries is None or isinstance(queries, QueryEmbeddings):
        return True
    return isinstance(queries, Iterable) and not isinstance(queries, ONE)


def encode_queries(
    queries: Sequence[Query],
    encode_texts: Callable[[list[str]], Tensor],
    encode_exemplars: Callable[[Sequence[Exemplar]], Tensor],
) -> QueryEmbeddings:
    """The queries as embeddings, in order: texts and exemplars of each joined to one of a kind, every negative apart.

    ``encode_texts`` makes unit embeddings [N, E] of N texts and is called once; ``encode_exemplars`` makes one [E] of
    several exemplars.
    """
    texts = dict.fromkeys(part for q in queries for part in (*q.texts, *q.negatives) if isinstance(part, str))
    cleaned = {text: clean_text(text) for text in texts}
    unique = list(dict.fromkeys(cleaned.values()))
    embeds = dict(zip(unique, encode_texts(unique), strict=True)) if unique else {}
    first: list[tuple[Tensor, str]] = []
    extra: list[tuple[Tensor, str, int, float]] = []
    for owner, query in enumerate(queries):
        positive: list[tuple[Tensor, str]] = []
        weight = float(query.weight) if query.texts and query.exemplars else float(not query.texts)
        if weight < 1:
            positive.append((_mean(torch.stack([embeds[cleaned[text]] for text in query.texts])), "text"))
        if weight > 0:
            positive.append((encode_exemplars(query.exemplars), "exemplar"))
        first.append(positive[0])
        extra += [(embed, route, owner, weight) for embed, route in positive[1:]]
        for part in query.negatives:
            if isinstance(part, Exemplar):
                extra.append((encode_exemplars([part]), "exemplar", owner, 0.0))
            else:
                extra.append((embeds[cleaned[part]], "text", owner, 0.0))
    rows = torch.stack([embed for embed, _ in first])
    extras = None
    if extra:
        extras = ExtraEmbeddings(
            torch.stack([embed for embed, *_ in extra]),
            torch.tensor([owner for _, _, owner, _ in extra], device=rows.device),
            torch.tensor([share for *_, share in extra], device=rows.device),
            tuple(route for _, route, _, _ in extra),
        )
    return QueryEmbeddings(rows, tuple(q.name for q in queries), tuple(route for _, route in first), extras)


def load_queries(source: str | Path | bytes, spec: Spec) -> QueryEmbeddings:
    """Queries that ``QueryEmbeddings.save`` wrote, of a path or the bytes of the file; a damaged one, or queries that
    another model than that of ``spec`` made, raise QueryError."""
    queries, where = QueryEmbeddings.load(source), "saved queries" if isinstance(source, bytes) else source
    if not queries.fingerprint:
        raise QueryError("says not which model made these queries; encode them with this one", of=where)
    try:
        queries.check_model(spec.embed_dim, spec.fingerprint)
    except QueryError as error:
        raise QueryError(error.reason, of=where) from None
    return queries


def _mean(embeds: Tensor) -> Tensor:
    """Unit embedding [E] of texts [N, E] that say the same."""
    return embeds[0] if len(embeds) == 1 else F.normalize(embeds.mean(0), dim=-1)


def _parts(name: str, field: str, parts: object, kind: tuple[type, ...]) -> tuple:
    """The parts as a tuple; a single part that is no list, or one of another kind, raises QueryError."""
    kinds = " or ".join({str: "texts", Exemplar: "Exemplars"}[k] for k in kind)
    wanted = f"{field} of the query {brief(name)} must be a list of {kinds}"
    if isinstance(parts, (str, Exemplar)):
        single = f"the single text {brief(parts)}" if isinstance(parts, str) else "a single exemplar"
        raise QueryError(f"{wanted}, got {single}; put it in [ ]")
    if not isinstance(parts, Sequence):
        raise QueryError(f"{wanted}, got {type(parts).__name__}")
    for part in parts:
        if not isinstance(part, kind):
            raise QueryError(f"{wanted}, got a {type(part).__name__} in it")
    return tuple(parts)
