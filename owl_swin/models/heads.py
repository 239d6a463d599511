"""OWL heads: what every patch says about class, box and objectness (arXiv:2205.06230, arXiv:2306.09683)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owl_swin.config import HeadsConfig, SwinConfig

# A patch starts with logits near (0 - 0.6) * 10 for a text it does not know: one false alarm in 400.
INITIAL_SHIFT = -0.6
INITIAL_SCALE = 10.0
# Largest box side in strides (exp of this): more than any picture has.
MAX_LOG_SIZE = math.log(1e3)
# Side in patches of what a head block looks at, and how much wider it is inside than its patches.
BLOCK_KERNEL, BLOCK_EXPANSION = 7, 2


class PatchFusion(nn.Module):
    """Fuses encoder stages on the grid of one stride: [B, h, w, C_i] of each stage → patches [B, h, w, D].

    Each stage is normalised and projected; coarser ones are repeated or expanded, finer ones averaged. A convolution
    then lets neighbouring windows speak to one another.
    """

    def __init__(self, encoder: SwinConfig, config: HeadsConfig):
        super().__init__()
        self.maps = [stage - 1 - encoder.first_stage for stage in config.stages]
        self.strides = [encoder.stage_stride(stage - 1) for stage in config.stages]
        self.stride = config.stride
        dims = [encoder.stage_dim(stage - 1) for stage in config.stages]
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        # Patches under one of the stage, along a side; those of a repeated stage share one projection.
        self.times = [max(stride // config.stride, 1) for stride in self.strides]
        self.expand = config.upsample == "expand"
        self.projections = nn.ModuleList(
            nn.Linear(dim, config.width * (times**2 if self.expand else 1))
            for dim, times in zip(dims, self.times, strict=True)
        )
        self.mix_norm = nn.LayerNorm(config.width)
        self.mix = nn.Conv2d(config.width, config.width, 3, padding=1)
        self.norm = nn.LayerNorm(config.width)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        grid = maps[self.maps[self.strides.index(self.stride)]]
        height, width = grid.shape[1], grid.shape[2]
        fused = None
        parts = zip(self.maps, self.strides, self.times, self.norms, self.projections, strict=True)
        for place, stride, times, norm, project in parts:
            x = project(norm(maps[place]))
            if times > 1 and self.expand:
                batch, h, w, _ = x.shape
                x = x.view(batch, h, w, times, times, -1).transpose(2, 3).reshape(batch, h * times, w * times, -1)
                x = x[:, :height, :width]
            elif times > 1:
                x = x.repeat_interleave(times, 1).repeat_interleave(times, 2)[:, :height, :width]
            elif stride < self.stride:
                times = self.stride // stride
                x = F.avg_pool2d(x.permute(0, 3, 1, 2), times, ceil_mode=True).permute(0, 2, 3, 1)
            fused = x if fused is None else fused + x
        assert fused is not None
        mixed = self.mix(self.mix_norm(fused).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm(fused + F.gelu(mixed))


class HeadBlock(nn.Module):
    """A residual block of ConvNeXt (arXiv:2201.03545), patches [B, h, w, D] → the same: each looks at its neighbours.

    It starts as the identity, so that a trained model may be given blocks and go on from what it knows.
    """

    def __init__(self, width: int):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, BLOCK_KERNEL, padding=BLOCK_KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, BLOCK_EXPANSION * width)
        self.reduce = nn.Linear(BLOCK_EXPANSION * width, width)
        nn.init.zeros_(self.reduce.weight)
        nn.init.zeros_(self.reduce.bias)

    def forward(self, patches: Tensor) -> Tensor:
        seen = self.depthwise(patches.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return patches + self.reduce(F.gelu(self.expand(self.norm(seen))))


class ClassHead(nn.Module):
    """Patch → unit class embedding, and the shift and positive scale of its logits: logit = (cosine + shift) ·
    scale."""

    def __init__(self, width: int, embed_dim: int):
        super().__init__()
        self.embed = nn.Linear(width, embed_dim)
        self.shift_scale = nn.Linear(width, 2)
        nn.init.zeros_(self.shift_scale.weight)
        with torch.no_grad():
            self.shift_scale.bias.copy_(torch.tensor([INITIAL_SHIFT, INITIAL_SCALE - 1]))

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, P, D] → class embeddings [B, P, E], shift [B, P], scale [B, P]."""
        embeds = F.normalize(self.embed(patches).float(), dim=-1)
        shift, scale = self.shift_scale(patches).float().unbind(-1)
        return embeds, shift, F.elu(scale) + 1


class BoxHead(nn.Module):
    """Patch → box, cxcywh in [0, 1] of the model frame (centres and sizes may reach past it)."""

    def __init__(self, width: int, box_form: str):
        super().__init__()
        self.box_form = box_form
        self.mlp = _mlp(width, 4)

    def forward(self, patches: Tensor, grid_hw: tuple[int, int], stride_hw: tuple[float, float]) -> Tensor:
        """[B, P, D] → [B, P, 4]. ``stride_hw``: the sides of a patch in fractions of the model frame."""
        offsets = self.mlp(patches).float()
        if self.box_form == "owl":
            return torch.sigmoid(offsets + grid_prior(grid_hw).to(offsets))
        stride = _numbers(stride_hw[::-1]).to(offsets)
        centres = cell_centres(grid_hw).to(offsets) * stride
        # One stride of offset a unit, and sizes from four strides up and down by factors of e.
        centre = centres + offsets[..., :2] * stride
        size = (offsets[..., 2:].clamp(max=MAX_LOG_SIZE) + math.log(4)).exp() * stride
        return torch.cat([centre, size], -1)


class ObjectnessHead(nn.Module):
    """Patch → logit that it stands for some object; its input carries no gradient back, as in OWLv2."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = _mlp(width, 1)
        nn.init.constant_(self.mlp[-1].bias, -3.0)  # type: ignore[arg-type]

    def forward(self, patches: Tensor) -> Tensor:
        """[B, P, D] → [B, P]."""
        return self.mlp(patches.detach()).float()[..., 0]


def cell_centres(grid_hw: tuple[int, int]) -> Tensor:
    """Centres [P, 2] of the cells of a grid as (x, y), in cells: the first is (0.5, 0.5)."""
    rows, cols = torch.meshgrid(torch.arange(grid_hw[0]) + 0.5, torch.arange(grid_hw[1]) + 0.5, indexing="ij")
    return torch.stack([cols, rows], -1).flatten(0, 1)


def grid_prior(grid_hw: tuple[int, int]) -> Tensor:
    """Box every patch starts from: its own cell, as logits.

    Returns [P, 4], cxcywh; sigmoid of it lies in (0, 1). After OWL-ViT (arXiv:2205.06230), with cell centres.
    """
    size = _numbers(grid_hw[::-1])
    centres = cell_centres(grid_hw) / size
    sizes = (1 / size).expand_as(centres)
    return torch.logit(torch.cat([centres, sizes], -1), eps=1e-4)


def _numbers(values: Sequence[float]) -> Tensor:
    """Numbers [N]. In a traced graph the sides of a frame are symbols, which torch.tensor would make constants of."""
    return torch.stack([torch.full((), value, dtype=torch.float32) for value in values])


def _mlp(width: int, out: int) -> nn.Sequential:
    last = nn.Linear(width, out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), last)
