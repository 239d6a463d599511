"""Which pictures of a set are drawn, and which of their things are shown close up: rare names count more."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from owl_swin.data.scenes import Scene, Scenes, readable
from owl_swin.training.augment import Annotated


class SceneSampler:
    """Draws pictures of one set, those with rare names more often where ``repeat`` is above 0 (see DataConfig)."""

    def __init__(self, scenes: Scenes, repeat: float = 0.0):
        self.scenes = scenes
        self.frequency = frequency = name_frequency(scenes)
        self.rarity = rarity(frequency)
        self._sums = repeat_factors(scenes, frequency, repeat).cumsum()

    def draw(self, rng: np.random.Generator) -> tuple[Scene, Annotated]:
        """A picture that can be read, with what is known of it."""
        for _ in range(100):
            place = int(np.searchsorted(self._sums, rng.random() * self._sums[-1], side="right"))
            scene = self.scenes.scenes[min(place, len(self._sums) - 1)]
            picture = readable(self.scenes, scene)
            if picture is not None:
                return scene, annotated(picture, scene, self.rarity)
        raise self.scenes.unreadable()


def rarity_over_sets(
    samplers: Sequence[SceneSampler], rows: Sequence[np.ndarray], odds: np.ndarray, n_names: int
) -> Tensor:
    """How much each of ``n_names`` names counts, [names]: the mean of what the sets that show it say, weighted by how
    often they are drawn; ``rows`` are the places of each set's names. A name that none shows counts 1."""
    total, weight = np.zeros(n_names), np.zeros(n_names)
    for sampler, own, odd in zip(samplers, rows, odds, strict=True):
        shown = sampler.frequency > 0
        np.add.at(total, own[shown], odd * sampler.rarity[shown])
        np.add.at(weight, own[shown], odd)
    mean = np.divide(total, weight, out=np.ones(n_names), where=weight > 0)
    return torch.from_numpy(mean).float()


def name_frequency(scenes: Scenes) -> np.ndarray:
    """The share of the set's pictures that show each name, [names]."""
    counts = np.zeros(len(scenes.names))
    for scene in scenes.scenes:
        counts[np.unique(np.concatenate([scene.labels, scene.area_labels]))] += 1
    return counts / max(len(scenes.scenes), 1)


def rarity(frequency: np.ndarray) -> np.ndarray:
    """How much each name counts against the others: the inverse root of its frequency, 1 in the middle, 0.2 to 5."""
    seen = frequency[frequency > 0]
    middle = np.median(seen) if len(seen) else 1.0
    return np.clip(np.sqrt(middle / np.maximum(frequency, 1e-9)), 0.2, 5.0)


def repeat_factors(scenes: Scenes, frequency: np.ndarray, threshold: float) -> np.ndarray:
    """How often each picture is drawn against the others, [scenes]: by its rarest name, max(1, √(threshold / share of
    pictures with the name)), the repeat factor of LVIS (arXiv:1908.03195)."""
    factors = np.maximum(1.0, np.sqrt(threshold / np.maximum(frequency, 1e-9)))
    return np.array([factors[scene.labels].max(initial=1.0) for scene in scenes.scenes])


def annotated(picture: Image.Image, scene: Scene, close_up: np.ndarray) -> Annotated:
    """A picture with what is known of it; ``close_up [names]`` are the odds of a name's boxes to be shown large."""
    scores = np.ones(len(scene.labels), np.float32) if scene.scores is None else scene.scores
    vague = np.zeros(len(scene.vague_labels), np.float32)
    return Annotated(
        picture,
        np.concatenate([scene.boxes_on(picture), scene.vague_boxes_on(picture)]),
        np.concatenate([scene.labels, scene.vague_labels]),
        np.concatenate([scores, vague]),
        np.concatenate([close_up[scene.labels], vague]),
        scene.masks,
    )
