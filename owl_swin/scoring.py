"""Scores of patches for queries: one matrix product, calibration, shares and negatives.

The patches may be those of a picture or the stored regions of an archive: see ``types.PatchLogitInputs``.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from owl_swin.config import CalibrationConfig
from owl_swin.types import PatchLogitInputs, QueryEmbeddings

# The class-free mode gives its boxes this name.
ANYTHING = "object"


def names_of(queries: QueryEmbeddings | None) -> tuple[str, ...]:
    """What the detections of these queries are called; None asks for anything."""
    return (ANYTHING,) if queries is None else queries.names


def raw_logits(patches: PatchLogitInputs, query_embeds: Tensor) -> Tensor:
    """Logits [..., P, Q] of every patch for every embedding [..., Q, E], before calibration."""
    cosine = patches.class_embeds @ query_embeds.transpose(-1, -2)  # [..., P, Q]
    return (cosine + patches.logit_shift[..., None]) * patches.logit_scale[..., None]


def score(patches: PatchLogitInputs, queries: QueryEmbeddings, calibration: CalibrationConfig) -> Tensor:
    """Calibrated logits [..., P, Q] of every patch for every query; their sigmoid is the score.

    All embeddings of all queries go through one matrix product, and each is calibrated by its own route. A query with
    texts and exemplars has the mean of both logits, weighted by its share. Negatives multiply the score by the chance
    that the patch shows the query rather than the negative that fits best: sigmoid(own logit - that logit). So a
    negative never raises a score, a negative that fits much worse leaves it as it is, and nothing is rescaled.
    """
    extras = queries.extras
    embeds, routes = queries.query_embeds.to(patches.class_embeds), queries.routes
    if extras is not None:
        embeds, routes = torch.cat([embeds, extras.embeds.to(embeds)]), routes + extras.routes
    logits = _calibrated(patches, embeds, routes, calibration)  # [..., P, Q + X]
    if extras is None:
        return logits
    own, extra = logits[..., : len(queries)].clone(), logits[..., len(queries) :]
    owners, shares = extras.owners.to(own.device), extras.shares.to(own)
    shared, negative = shares > 0, shares == 0
    own[..., owners[shared]] = torch.lerp(own[..., owners[shared]], extra[..., shared], shares[shared])
    return _against(own, extra[..., negative], owners[negative])


def _calibrated(
    patches: PatchLogitInputs, embeds: Tensor, routes: Sequence[str], calibration: CalibrationConfig
) -> Tensor:
    """``raw_logits`` times the scale of each route plus its bias, (cosine + shift) · scale · s + b, in one product:
    a table of logits for many queries is larger than all else, and each walk through it costs."""
    logit_scale = patches.logit_scale[..., None]
    left = torch.cat(
        [
            patches.class_embeds * logit_scale,
            patches.logit_shift[..., None] * logit_scale,
            torch.ones_like(logit_scale),
        ],
        -1,
    )
    scale, bias = (
        embeds.new_tensor([getattr(calibration, f"{route}_{part}") for route in routes])[:, None]
        for part in ("scale", "bias")
    )
    right = torch.cat([embeds * scale, scale, bias], -1)
    return left @ right.transpose(-1, -2)


def _against(logits: Tensor, negatives: Tensor, owners: Tensor) -> Tensor:
    """Logits [..., Q] of sigmoid(logit) · sigmoid(logit - best negative), for negatives [..., X] of queries [X]."""
    best = torch.full_like(logits, -math.inf)  # of a query without negatives: its logit stays as it is, to the bit
    best = best.scatter_reduce(-1, owners.expand_as(negatives), negatives, "amax")
    margin = logits - best
    return -torch.stack([-logits, -margin, -logits - margin]).logsumexp(0)
