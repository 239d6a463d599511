"""What other rooms may know of a network: what it is, and what it does."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from owl_swin.attention import BlockAttention
from owl_swin.config import CalibrationConfig
from owl_swin.frame import Preprocess
from owl_swin.text_cache import TextCache
from owl_swin.types import ImageEmbeddings


@dataclass(frozen=True, slots=True)
class Spec:
    """A network's properties.

    ``fingerprint`` names its weights; ``image_size`` is the longer side in pixels that it was made for and ``stride``
    the side of a patch; ``any_size`` is False where only one size fits. ``search_norm``: no patch has a vector
    (scale · embedding, scale · shift) longer than this, or few have.
    ``alignment_scale`` is the inverse temperature of pictures and texts in classification. ``nms_iou``,
    ``box_voting`` and ``rivals`` are what detection takes where its caller says nothing else.
    """

    name: str
    family: str
    embed_dim: int
    fingerprint: str
    image_size: int
    stride: int
    any_size: bool
    has_objectness: bool
    has_image_embed: bool
    has_masks: bool
    search_norm: float
    calibration: CalibrationConfig
    alignment_scale: float
    nms_iou: float = 0.5
    box_voting: bool = False
    rivals: float = 0.0


class Network(Protocol):
    """A network behind the query boundary; it knows of no pictures, files or tokenizers."""

    @property
    def spec(self) -> Spec: ...

    def encode_image(self, pixels: Tensor) -> ImageEmbeddings:
        """Pixels [B, 3, H, W] as its family's preprocessing makes them → everything that no query touches."""
        ...

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids [N, L] → unit text embeddings [N, E]."""
        ...


class MaskNetwork(Network, Protocol):
    """A network whose ``spec.has_masks``."""

    def encode_with_masks(self, pixels: Tensor) -> ImageEmbeddings:
        """As encode_image, with ``masks``, which cost some time more."""
        ...


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A network with all that it needs to see pictures and read texts: what ``families.load`` gives a Detector.

    ``tokenize`` makes ids [N, L] of N texts. ``look_inside`` says what the patches of one picture [1, 3, H, W] attend
    to, where the network has attention to show. ``text_cache`` keeps embeddings of texts on disk; it is for networks
    that stay as they were loaded.
    """

    network: Network
    preprocess: Preprocess
    tokenize: Callable[[Sequence[str]], Tensor]
    card: Mapping[str, Any] = field(default_factory=dict)
    look_inside: Callable[[Any, Tensor], list[BlockAttention]] | None = None
    text_cache: TextCache | None = None


def fingerprint(model: nn.Module) -> str:
    """SHA-256, in hexadecimal, of names, shapes and values of all weights; what settings say is not in it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
