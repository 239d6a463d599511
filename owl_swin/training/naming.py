"""Dense names: what a published classifier says in each place of a scene becomes names that the patches learn.

The classifier of the stem reads the stem's last map cell by cell, as a class activation map does (arXiv:1512.04150).
Every cell's patches, and the whole scene, then learn its distribution over names through their text embeddings. So a
patch of any photograph learns a name, without boxes.
"""

import copy
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_swin.data.naming import read_class_names
from owl_swin.errors import ConfigError
from owl_swin.families.weights import read_tensors
from owl_swin.models.hybrid import HybridSwin
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.models.stem import published_stem
from owl_swin.training.config import NamingConfig
from owl_swin.training.texts import TextBank, prompted

# Inverse temperature of cosines between patches and names: a sentence encoder's names lie near one another.
NAME_SCALE = 30.0


class DenseNames:
    """The classifier, without the classes that are struck out, and the text embeddings of the others.

    ``stem`` is the stem that it reads, if that is not the model's own as it is at each step.
    """

    def __init__(self, config: NamingConfig, model: OwlSwin, *, stem_learns: bool = False):
        self.config = config
        encoder = model.image_encoder
        if not isinstance(encoder, HybridSwin):
            raise ConfigError("[naming] reads the last map of a published stem; this model has none (image.stem)")
        tensors = read_tensors(Path(config.weights))[0]
        try:
            weight, bias = tensors["weight"].float(), tensors["bias"].float()
        except KeyError as error:
            raise ConfigError(f"{config.weights}: a classifier has tensors 'weight' and 'bias'; no {error}") from None
        channels = encoder.stem.last_dim
        if weight.ndim != 2 or weight.shape[1] != channels or bias.shape != weight.shape[:1]:
            raise ConfigError(
                f"{config.weights}: expected weight [N, {channels}] and bias [N] for the stem "
                f"{model.config.image.stem}, got {list(weight.shape)} and {list(bias.shape)}"
            )
        names = read_class_names(config.names, len(weight), "a classifier")
        kept = [row for row, own in enumerate(names) if own]
        self.weight, self.bias = weight[kept], bias[kept]
        self.embeds = TextBank(prompted([names[row] for row in kept]), model, trainable=False).means()  # [N, E]

        self.stem = copy.deepcopy(encoder.stem) if config.stem or stem_learns else None
        if self.stem is not None:
            if config.stem:
                given = read_tensors(Path(config.stem))[0]
                self.stem.network.load_state_dict(published_stem(self.stem.name, given))
            self.stem.requires_grad_(False)

    @torch.no_grad()
    def own_map(self, pixels: Tensor) -> Tensor:
        """The last map [b, ⌈H/32⌉, ⌈W/32⌉, C] of its own stem, of the first scenes [B, 3, H, W] that it reads."""
        assert self.stem is not None
        self.stem.to(pixels.device)
        return self.stem(pixels[: math.ceil(self.config.share * len(pixels))])[1]

    def read(self, stem_map: Tensor) -> Tensor:
        """What the classifier says in each cell [B, h, w, C] of a stem's last map, as logits [B, h, w, N]."""
        with torch.no_grad():
            return F.linear(stem_map.float(), self.weight.to(stem_map.device), self.bias.to(stem_map.device))

    def losses(self, said: Tensor, class_embeds: Tensor, image_embed: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """Weighted sum of the dense and the pooled loss: the cross-entropy between the classifier's distribution over
        names and that of the embeddings. Where the classifier is sure, it counts more.

        ``said [b, h, w, N]`` of ``read``, for the first b of ``class_embeds [B, P, E]``, ``image_embed [B, E]``.
        """
        loss = self.dense_loss(said, class_embeds, grid_hw)
        pooled = said.mean((1, 2)).softmax(-1)
        return loss + self.config.pooled_weight * self._distance(image_embed[: len(said)], pooled)

    def dense_loss(self, said: Tensor, embeds: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """The dense part alone, of the patches' ``embeds [B, P, E]``."""
        batch, height, width, _ = said.shape
        x = embeds[:batch].view(batch, *grid_hw, -1).permute(0, 3, 1, 2)  # [B, E, gh, gw]
        x = F.normalize(F.adaptive_avg_pool2d(x, (height, width)).permute(0, 2, 3, 1), dim=-1)
        return self.config.dense_weight * self._distance(x, said.softmax(-1))

    def _distance(self, embeds: Tensor, target: Tensor) -> Tensor:
        logits = NAME_SCALE * embeds @ self.embeds.to(embeds).T
        entropy = -(target * logits.log_softmax(-1)).sum(-1)
        sure = target.max(-1).values
        return (entropy * sure).sum() / sure.sum().clamp(min=1e-6)


def name_loss(cosines: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum of the weighted cross-entropies of patches with the names of their boxes, and no less than 0.

    ``cosines [M, Q]``, ``targets [M, Q]`` (0 to 1, at least one of a row positive), ``weights [M]``.
    """
    share = targets / targets.sum(1, keepdim=True).clamp(min=1e-6)
    return (-(share * (NAME_SCALE * cosines).log_softmax(-1)).sum(1) * weights).sum()
