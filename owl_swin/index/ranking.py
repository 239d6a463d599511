"""From stored regions to answers: exact scores, and the choice of the best."""

import math
import re
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from owl_swin.config import CalibrationConfig
from owl_swin.errors import QueryError
from owl_swin.index.match import Match
from owl_swin.index.paths import from_text
from owl_swin.index.store import RegionFilter, Regions, Store, vector_dim
from owl_swin.scoring import score
from owl_swin.types import ExtraEmbeddings, PatchLogitInputs, QueryEmbeddings

# So many times more regions are fetched from the index than are asked for, and at least so many: some are copies, or
# the query's negatives speak against them. 16 384 is what Milvus gives at most.
OVERSAMPLE = 2
LEAST_FETCH = 64
MOST_FETCH = 16_384

Array = np.ndarray[Any, Any]
Ranked = tuple[Array, Regions]  # scores [N], highest first, and their rows


class Choice:
    """Which of many scored regions are the answer: above a threshold, so many of a picture, at paths that match; until
    ``stop``, whereafter nobody waits for one."""

    def __init__(
        self,
        threshold: float = 0.0,
        per_image: int | None = None,
        path: re.Pattern[str] | None = None,
        stop: threading.Event | None = None,
    ):
        self.threshold, self._per_image, self._path, self._stop = threshold, per_image, path, stop

    def check(self) -> None:
        """Once it is to stop, raises QueryError."""
        if self._stop is not None and self._stop.is_set():
            raise QueryError("the search was stopped")

    def best(self, scores: Array, rows: Regions, wanted: int) -> Ranked:
        """The ``wanted`` best, best first; a region counts once, though its picture lie in several places."""
        keep: list[int] = []
        taken: set[tuple[str, int]] = set()
        of_image: dict[str, int] = {}
        for i in _best_first(scores, rows) if len(rows) else ():
            if scores[i] < self.threshold or len(keep) == wanted:
                break
            image_id, number = rows.image_id[i], int(rows.number[i])
            full = self._per_image is not None and of_image.get(image_id, 0) >= self._per_image
            if full or (image_id, number) in taken:
                continue
            if self._path is not None and not self._path.fullmatch(from_text(rows.path[i])):
                continue
            taken.add((image_id, number))
            of_image[image_id] = of_image.get(image_id, 0) + 1
            keep.append(i)
        return scores[keep], rows[keep]


def score_rows(rows: Regions, queries: QueryEmbeddings, calibration: CalibrationConfig) -> Array:
    """Scores [N, Q] of stored regions, by the very code that scores the patches of a picture.

    A region has the same score whatever is scored beside it: ``_fixed_point`` says why.
    """
    embeds, shift, scale = (torch.from_numpy(a.astype(np.float64)) for a in (rows.embeds, rows.shift, rows.scale))
    extras = queries.extras
    exact = replace(
        queries,
        query_embeds=_fixed_point(queries.query_embeds.cpu().double()),
        extras=extras and replace(extras, embeds=_fixed_point(extras.embeds.cpu().double())),
    )
    regions = PatchLogitInputs(_fixed_point(embeds), shift, scale)
    return score(regions, exact, calibration).sigmoid().float().numpy()


def search_vector(query: QueryEmbeddings, calibration: CalibrationConfig) -> Array:
    """The vector [D] of one query, whose cosine to a region's vector rises with the region's logit.

    Negatives have no part in it. A query of texts and exemplars has the weighted mean of two calibrated logits, which
    is linear in the region's vector too.
    """
    parts = [(query.query_embeds[0], query.routes[0], 1.0)]
    if query.extras is not None:
        for embed, route, share in zip(query.extras.embeds, query.extras.routes, query.extras.shares, strict=True):
            if share > 0:
                parts = [(parts[0][0], parts[0][1], 1 - float(share)), (embed, route, float(share))]
    embed_dim = query.query_embeds.shape[1]
    vector = np.zeros(vector_dim(embed_dim), np.float32)
    for embed, route, share in parts:
        weight = share * getattr(calibration, f"{route}_scale")
        vector[:embed_dim] += weight * embed.float().cpu().numpy()
        vector[embed_dim] += weight
    return vector


def best_of_nearest(
    store: Store,
    calibration: CalibrationConfig,
    query: QueryEmbeddings,
    where: RegionFilter,
    choice: Choice,
    wanted: int,
    *,
    probes: int | None = None,
) -> Ranked:
    """The best of what the store's index brings for one query.

    More is fetched until there are enough answers or there can be no more: copies, a picture's limit, negatives and
    paths that only nearly match can leave few of many. Where the index has given all that it may, every region is
    scored.
    """
    vector = search_vector(query, calibration)
    fetch = min(MOST_FETCH, max(LEAST_FETCH, 2 ** math.ceil(math.log2(OVERSAMPLE * wanted))))
    while True:
        rows = store.nearest(vector, fetch, where, probes)
        if not len(rows):
            return np.zeros(0, np.float32), rows
        best = choice.best(score_rows(rows, query, calibration)[:, 0], rows, wanted)
        if len(best[1]) >= wanted or len(rows) < fetch or _all_below(choice.threshold, rows, query, calibration):
            return best
        if fetch >= MOST_FETCH:
            return best_of_all(store, calibration, query, where, choice, wanted)[0]
        fetch = min(MOST_FETCH, 4 * fetch)


def best_of_all(
    store: Store,
    calibration: CalibrationConfig,
    queries: QueryEmbeddings,
    where: RegionFilter,
    choice: Choice,
    wanted: int,
) -> list[Ranked]:
    """The best of all regions for each query, in one pass over the archive."""
    best: list[Ranked] = [(np.zeros(0, np.float32), Regions.none())] * len(queries)
    for rows in store.scan(where):
        choice.check()
        if not len(rows):
            continue
        scores = score_rows(rows, queries, calibration)
        for q, (held, kept) in enumerate(best):
            # Only what may be among the best is compared one by one: copies of one region are few.
            near = _candidates(scores[:, q], held, wanted)
            part = (scores[near, q], rows[near])
            if len(held):
                part = np.concatenate([held, part[0]]), Regions.join([kept, part[1]])
            best[q] = choice.best(*part, wanted)
    return best


def one_query(queries: QueryEmbeddings, i: int) -> QueryEmbeddings:
    """One of several queries, with all that belongs to it."""
    extras = queries.extras
    if extras is not None:
        extras = _some(replace(extras, owners=torch.zeros_like(extras.owners)), extras.owners == i)
    return replace(
        queries,
        query_embeds=queries.query_embeds[i : i + 1],
        names=queries.names[i : i + 1],
        routes=queries.routes[i : i + 1],
        extras=extras,
    )


def to_matches(scores: Array, rows: Regions) -> list[Match]:
    """Ranked rows as callers get them."""
    boxes = rows.boxes.tolist()
    return [
        Match(
            image_id=str(rows.image_id[i]),
            path=from_text(rows.path[i]),
            box_xyxy=tuple(boxes[i]),
            score=float(scores[i]),
            objectness=float(rows.objectness[i]),
            width=int(rows.width[i]),
            height=int(rows.height[i]),
            modified=float(rows.modified[i]),
            region=f"{rows.image_id[i]}-{rows.number[i]}",
        )
        for i in range(len(rows))
    ]


def _all_below(threshold: float, rows: Regions, query: QueryEmbeddings, calibration: CalibrationConfig) -> bool:
    """Whether no region that the index would bring after ``rows`` can reach a threshold.

    It brings them by their score without negatives, and these only lower scores.
    """
    if threshold <= 0:
        return False
    if query.extras is not None:
        query = replace(query, extras=_some(query.extras, query.extras.shares > 0))
    return bool(score_rows(rows, query, calibration).min() < threshold)


def _fixed_point(embeds: Tensor) -> Tensor:
    """Unit embeddings in float64 as multiples of 2**-24, whose inner products are exact.

    The products are multiples of 2**-48, and so are their partial sums, which stay below 32 and so within the 53 bits
    of a float64. Nothing is rounded, so the order in which a processor adds does not show.
    """
    return (embeds * 2.0**24).round_().mul_(2.0**-24)


def _some(extras: ExtraEmbeddings, keep: Tensor) -> ExtraEmbeddings | None:
    """Those of a mask [X]; None if these are none."""
    own = keep.nonzero()[:, 0]
    routes = tuple(extras.routes[k] for k in own.tolist())
    return ExtraEmbeddings(extras.embeds[own], extras.owners[own], extras.shares[own], routes) if len(own) else None


def _best_first(scores: Array, rows: Regions) -> list[int]:
    """Indices by falling score; equal scores by the names of the regions, so that pages do not depend on the store."""
    return np.lexsort((rows.path.astype(str), rows.number, rows.image_id.astype(str), -scores)).tolist()


def _candidates(scores: Array, held: Array, wanted: int) -> Array:
    """Indices of the scores that may be among the best ``wanted`` together with those that are held already."""
    lowest = held[-1] if len(held) >= wanted else -np.inf
    return np.flatnonzero(scores >= lowest)
