"""What each pixel of a picture shows."""

from dataclasses import dataclass

from torch import Tensor

# At a pixel that shows none of the names.
NOTHING = -1


@dataclass(frozen=True, slots=True)
class SemanticMap:
    """One of ``names``, or nothing, at each pixel of a picture, upright.

    ``labels [H, W]`` int16: the index of the name, NOTHING (-1) for none. ``scores [H, W]`` in 0 to 1: how sure.
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

    def shares(self) -> dict[int, float]:
        """Share of the picture that shows each label, the largest first; NOTHING among them, where it is."""
        labels, counts = self.labels.unique(return_counts=True)
        pairs = zip(labels.tolist(), (counts / self.labels.numel()).tolist(), strict=True)
        return dict(sorted(pairs, key=lambda pair: -pair[1]))
