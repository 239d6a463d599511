"""A network that PyTorch's compiler made faster."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from owl_swin.attention import BlockAttention
from owl_swin.errors import ConfigError
from owl_swin.models.network import Pretrained, Spec
from owl_swin.types import ImageEmbeddings


class CompiledNetwork(nn.Module):
    """A network whose image encoder is compiled for each frame and size of batch when the first pictures come in it,
    which takes a minute; texts go the usual way, and so do pictures beyond the first eight pairs of these in a process,
    for which the compiler takes no more."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network
        self._encode: dict[bool, Callable[[Tensor], ImageEmbeddings]] = {}

    @property
    def spec(self) -> Spec:
        """The network's own."""
        return self.network.spec

    def encode_image(self, pixels: Tensor) -> ImageEmbeddings:
        """Normalised pixels [B, 3, H, W] → everything that no query touches."""
        return self._encoder(masks=False)(pixels)

    def encode_with_masks(self, pixels: Tensor) -> ImageEmbeddings:
        """As encode_image, with ``masks``; of a network that has them."""
        return self._encoder(masks=True)(pixels)

    def _encoder(self, *, masks: bool) -> Callable[[Tensor], ImageEmbeddings]:
        if masks not in self._encode:
            plain = self.network.encode_with_masks if masks else self.network.encode_image
            self._encode[masks] = torch.compile(plain, dynamic=False)
        return self._encode[masks]

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids [N, L] → unit text embeddings [N, E]."""
        return self.network.encode_text(ids)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was compiled: a copy, or another process, compiles for itself."""
        return {**self.__dict__, "_encode": {}}


def compiled(pretrained: Pretrained) -> Pretrained:
    """The model with a compiled image encoder; one that is no module of PyTorch raises ConfigError."""
    if not isinstance(pretrained.network, nn.Module):
        raise ConfigError("only weights can be compiled, and this is an exported model; load its source instead")
    look = pretrained.look_inside

    def look_inside(network: CompiledNetwork, pixels: Tensor) -> list[BlockAttention]:
        assert look is not None
        return look(network.network, pixels)

    return replace(
        pretrained, network=CompiledNetwork(pretrained.network), look_inside=None if look is None else look_inside
    )
