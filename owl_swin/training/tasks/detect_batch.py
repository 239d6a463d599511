"""What detection training learns from in a step."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from owl_swin.training.exemplars import ExemplarBatch
from owl_swin.training.tasks.align import AlignBatch
from owl_swin.training.taught import TaughtBatch
from owl_swin.training.true_masks import TrueMasks


@dataclass(frozen=True, slots=True)
class DetectBatch:
    """``pixels [B, 3, H, W]`` uint8; a list item a scene: ``boxes [G, 4]`` cxcywh in [0, 1], ``labels [G]``, columns of
    the batch's Q classes, and ``scores [G]`` (0: a vague box); ``asked``: for each scene the columns [q] that count in
    it, in order; ``classes [Q]`` of the bank and how they are said this time, ``texts [Q]`` rows of it; ``colours
    [B, 3]`` uniform numbers. ``exemplars`` show things of some of these classes, as columns. ``taught`` is what a
    teacher thinks of the boxes and scenes, ``masks`` the true masks of each scene, ``index`` the batch's own."""

    pixels: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]
    scores: list[Tensor]
    asked: list[Tensor]
    classes: Tensor
    texts: Tensor
    colours: Tensor
    align: AlignBatch | None
    exemplars: ExemplarBatch | None = None
    taught: TaughtBatch | None = None
    masks: Sequence[TrueMasks] = ()
    index: int = 0
