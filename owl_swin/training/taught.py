"""What a teacher thinks of boxes and pictures, as embeddings that a student's own come to equal.

The student's patches that answer for a box learn the direction of the teacher's patch that gave it, so that whatever
text is near that direction for the teacher is near it for the student.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from owl_swin.data.scene import Scene


@dataclass(frozen=True, slots=True)
class TaughtWeights:
    """How much the embeddings of boxes and of whole pictures count beside the other losses."""

    boxes: float
    image: float


@dataclass(frozen=True, slots=True)
class TaughtBatch:
    """``boxes`` [G, E] for each scene and ``images`` [B, E]; a row of zeros where the teacher said nothing."""

    boxes: list[Tensor]
    images: Tensor


def taught_batch(drawn: Sequence[Sequence[Scene]], rows: Sequence[np.ndarray]) -> TaughtBatch:
    """What was said of each scene's boxes and of its pictures together. ``rows`` count the boxes through the pictures,
    in each the sure ones before the vague."""
    boxes, images = [], []
    for scenes, own in zip(drawn, rows, strict=True):
        said = torch.from_numpy(np.concatenate([_of_boxes(scene) for scene in scenes])[own])
        boxes.append(said.float())
        whole = [scene.image_embed for scene in scenes if scene.image_embed is not None]
        mean = np.mean(np.stack(whole).astype(np.float32), 0) if len(whole) == len(scenes) else None
        images.append(said.new_zeros(said.shape[1]).float() if mean is None else torch.from_numpy(mean))
    return TaughtBatch(boxes, torch.stack(images))


def _of_boxes(scene: Scene) -> np.ndarray:
    assert scene.embeds is not None, "a set without a teacher's embeddings"
    nothing = np.zeros((len(scene.vague_labels), scene.embeds.shape[1]), scene.embeds.dtype)
    return np.concatenate([scene.embeds, nothing])


def embed_loss(class_embeds: Tensor, said: Tensor, weights: Tensor) -> Tensor:
    """Sum of the weighted 1 - cosine of patches [M, E] with what was said of their boxes [M, E]."""
    known = (said != 0).any(-1)
    return ((1 - F.cosine_similarity(class_embeds, said, dim=-1)) * weights * known).sum()


def image_embed_loss(image_embed: Tensor, taught: TaughtBatch) -> Tensor:
    """Mean 1 - cosine of scenes [B, E] with what was said of their pictures, over those of which something was."""
    said = taught.images.to(image_embed)
    known = (said != 0).any(-1)
    distance = (1 - F.cosine_similarity(image_embed, said, dim=-1)) * known
    return distance.sum() / known.sum().clamp(min=1)
