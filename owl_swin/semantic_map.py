"""What each pixel of a picture shows."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from owl_swin.errors import QueryError, brief

# At a pixel that shows none of the names.
NOTHING = -1


@dataclass(frozen=True, slots=True)
class SemanticMap:
    """One of ``names``, or nothing, at each pixel of a picture, upright.

    ``labels [H, W]`` int16: the index of the name, NOTHING (-1) for none. ``scores [H, W]`` in 0 to 1: how sure, 0
    where nothing is.
    """

    labels: Tensor
    scores: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        shapes = [list(self.labels.shape), list(self.scores.shape)]
        if self.labels.ndim != 2 or shapes[0] != shapes[1]:
            raise ValueError(f"labels and scores must both be [H, W], got {shapes[0]} and {shapes[1]}")

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return self.labels.shape[0], self.labels.shape[1]

    def resized(self, image_hw: tuple[int, int]) -> "SemanticMap":
        """The map of a smaller or larger copy of the picture, whose pixels take what is nearest."""
        if image_hw == self.image_hw:
            return self
        rows, columns = (
            ((torch.arange(n, device=self.labels.device) + 0.5) * (own / n)).long().clamp(max=own - 1)
            for n, own in zip(image_hw, self.image_hw, strict=True)
        )
        return replace(self, labels=self.labels[rows][:, columns], scores=self.scores[rows][:, columns])

    def mask(self, name: str) -> Tensor:
        """Which pixels show this name, bool [H, W]; a name that was not asked for raises QueryError."""
        if name not in self.names:
            raise QueryError(f"this map does not know {brief(name)}; it was asked for {brief(', '.join(self.names))}")
        return self.labels == self.names.index(name)

    def shares(self) -> dict[int, float]:
        """Share of the picture that shows each label, the largest first; NOTHING among them, where it is."""
        labels, counts = self.labels.unique(return_counts=True)
        pairs = zip(labels.tolist(), (counts / self.labels.numel()).tolist(), strict=True)
        return dict(sorted(pairs, key=lambda pair: -pair[1]))
