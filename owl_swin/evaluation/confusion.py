"""Pixels of pictures, counted by what they show and what a map says of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from owl_swin.data.label_maps import IGNORED


class Confusion:
    """Pixels of pictures by what they show and what a map says, for C classes and nothing, one picture after another.

    Only the pairs that occur are kept, so that memory grows with what pictures show and not with their pixels.
    """

    def __init__(self, n_classes: int):
        self.n = n_classes + 1  # the last is nothing
        self._pictures: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, truth: np.ndarray, said: np.ndarray) -> None:
        """Adds a picture of labels [H, W]: ``truth`` with IGNORED where it is not judged."""
        judged = truth != IGNORED
        pairs = truth[judged].astype(np.int64) % self.n * self.n + said[judged].astype(np.int64) % self.n
        self._pictures.append(np.unique(pairs, return_counts=True))

    def skip(self) -> None:
        """Counts a picture that cannot be judged, of which nothing is known."""
        self._pictures.append((np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)))

    def __len__(self) -> int:
        return len(self._pictures)

    def sums(self, times: np.ndarray) -> "PixelSums":
        """The sums when each picture counts ``times`` [D, pictures]."""
        place = np.repeat(np.arange(len(self)), np.array([len(pair) for pair, _ in self._pictures], dtype=int))
        pair, pixels = (_joined([one[part] for one in self._pictures]) for part in (0, 1))
        truth, said = np.divmod(pair, self.n)
        right = truth == said

        def summed(labels: np.ndarray, part: np.ndarray | slice = slice(None)) -> np.ndarray:
            rows = [np.bincount(labels[part], (row[place] * pixels)[part], minlength=self.n) for row in times]
            return np.array(rows, dtype=float).reshape(len(times), self.n)

        return PixelSums(summed(truth, right), summed(truth), summed(said))

    def matrix(self) -> np.ndarray:
        """Pixels [C + 1, C + 1], what is shown by what was said; the last is nothing."""
        pair, pixels = (_joined([one[part] for one in self._pictures]) for part in (0, 1))
        found = np.bincount(pair, pixels, minlength=self.n * self.n)
        return found.astype(np.int64).reshape(self.n, self.n)


@dataclass(frozen=True, slots=True)
class PixelSums:
    """Pixels [D, C + 1] of each class in each draw of pictures: named right, shown, and said."""

    right: np.ndarray
    truth: np.ndarray
    said: np.ndarray

    def iou(self) -> np.ndarray:
        """Intersection over union [D, C + 1] in percent; NaN of what is neither shown nor said."""
        return _share(self.right, self.truth + self.said - self.right)

    def accuracy(self) -> np.ndarray:
        """Share [D, C + 1] in percent of a class's pixels that are named right; NaN of what is not shown."""
        return _share(self.right, self.truth)

    def pixel_accuracy(self) -> np.ndarray:
        """Share [D] in percent of all pixels that are named right."""
        return _share(self.right.sum(1), self.truth.sum(1))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, 100 * part / np.maximum(whole, 1), np.nan)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])
