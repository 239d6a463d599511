"""Regions that no picture has, for timing an archive of any size: clustered as those of photographs are."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from owl_swin.index.store import Picture, Regions

EMBED_DIM = 256
PER_PICTURE = 20
# Kinds of things. The k-th most frequent has a share of regions that falls with 1 / k.
KINDS = 5000
# Parts of an embedding: what all regions share, its kind, one of a few variations that all kinds have, and noise. They,
# the shifts and the scales are chosen so that cosines between regions spread as those of photographs do.
COMMON, KIND, VARIATION, NOISE = 0.55, 0.55, 0.5, 0.25
VARIATIONS = 16
SHIFT, SCALE = (-0.43, 0.04), (7.1, 0.8)
# Names lie at this cosine to what they name; another picture of a thing is a new region of its kind.
TEXT_COSINE = 0.35


class Synthetic:
    """Draws regions and queries of one set of kinds; the same seed draws the same."""

    def __init__(self, seed: int = 0):
        self._rng = np.random.default_rng(seed)
        self._common = _unit(self._rng.normal(size=(1, EMBED_DIM)))
        self._kinds = _unit(self._rng.normal(size=(KINDS, EMBED_DIM)))
        self._variations = _unit(self._rng.normal(size=(VARIATIONS, EMBED_DIM)))
        share = 1 / np.arange(1, KINDS + 1)
        self._share = share / share.sum()

    def embeds(self, n: int) -> np.ndarray[Any, Any]:
        """Unit embeddings [n, E] of regions."""
        kind = self._kinds[self._rng.choice(KINDS, n, p=self._share)]
        variation = self._rng.normal(size=(n, VARIATIONS)).astype(np.float32) @ self._variations / VARIATIONS**0.5
        noise = self._rng.standard_normal((n, EMBED_DIM), np.float32) / EMBED_DIM**0.5
        spread = self._rng.normal(1, 0.4, (n, 1)).astype(np.float32)
        return _unit(COMMON * spread * self._common + KIND * kind + VARIATION * variation + NOISE * noise)

    def names(self, n: int) -> np.ndarray[Any, Any]:
        """Unit embeddings [n, E] of texts, each for a kind."""
        kind = self._kinds[self._rng.choice(KINDS, n, p=self._share)]
        other = _unit(self._rng.normal(size=(n, EMBED_DIM)))
        return _unit(TEXT_COSINE * kind + (1 - TEXT_COSINE**2) ** 0.5 * other)

    def rows(self, n_pictures: int, first: int) -> tuple[list[Picture], Regions]:
        """Pictures, counted from ``first``, with their regions."""
        n = n_pictures * PER_PICTURE
        names = [f"{i:032x}" for i in range(first, first + n_pictures)]
        pictures = [Picture(k, f"/photos/{k}.jpg", k, "", 1.7e9, 640, 480, PER_PICTURE, False) for k in names]
        owner = np.repeat(np.array(names, object), PER_PICTURE)
        corner = self._rng.uniform(0, 300, (n, 2)).astype(np.float32)
        regions = Regions(
            picture=owner,
            number=np.tile(np.arange(PER_PICTURE, dtype=np.int32), n_pictures),
            image_id=owner,
            path=np.repeat(np.array([p.path for p in pictures], object), PER_PICTURE),
            modified=np.full(n, 1.7e9),
            width=np.full(n, 640, np.int32),
            height=np.full(n, 480, np.int32),
            boxes=np.concatenate([corner, corner + 100], axis=1),
            objectness=self._rng.uniform(size=n).astype(np.float32),
            shift=self._rng.normal(*SHIFT, n).astype(np.float32),
            scale=np.maximum(self._rng.normal(*SCALE, n), 1).astype(np.float32),
            embeds=self.embeds(n),
        )
        return pictures, regions


def batches(synthetic: Synthetic, n_regions: int, size: int = 2500) -> Iterator[tuple[list[Picture], Regions]]:
    """``n_regions`` regions in parts of ``size`` pictures."""
    n_pictures = n_regions // PER_PICTURE
    for first in range(0, n_pictures, size):
        yield synthetic.rows(min(size, n_pictures - first), first)


def _unit(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
