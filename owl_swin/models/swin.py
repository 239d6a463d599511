"""Swin Transformer (Liu et al. 2021, arXiv:2103.14030) for pictures of any height and width.

Tokens travel as maps [B, H, W, C]. A block cuts the map into windows once, does everything there (normalisation,
attention and MLP of a window touch nothing outside it) and puts the map together again. Without gradients cutting and
shifting are one gather, and the windows stream through the block in chunks that stay in the processor's cache.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owl_swin.attention import BlockAttention
from owl_swin.config import SwinConfig
from owl_swin.models.windows import (
    TracedPlan,
    WindowPlan,
    cut_windows,
    gather_windows,
    join_windows,
    traced_plan,
    window_plan,
)

# Numbers (tokens times channels) in one chunk of windows: what stays in the cache of a processor core.
CHUNK_VALUES = 262_144


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows with relative position bias: W-MSA, and SW-MSA with the plan's mask."""

    def __init__(self, dim: int, num_heads: int, window_size: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def biases(self, plan: WindowPlan | TracedPlan) -> Tensor:
        """What is added to the attention logits in each kind of window: [K, heads, N, N]."""
        n = plan.relative_index.shape[0]
        bias = self.relative_position_bias_table[plan.relative_index.flatten()].view(n, n, -1).permute(2, 0, 1)[None]
        return bias if plan.mask is None else bias + plan.mask[:, None]

    def weights(self, windows: Tensor, bias: Tensor) -> Tensor:
        """How much every patch of a window attends to every other: [B, W, heads, N, N], rows add up to 1."""
        batch, count, n, _ = windows.shape
        q, k, _ = self.qkv(windows).view(batch, count, n, 3, self.num_heads, -1).permute(3, 0, 1, 4, 2, 5)
        return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias).softmax(-1)

    def forward(self, windows: Tensor, bias: Tensor) -> Tensor:
        batch, count, n, channels = windows.shape
        if torch.is_grad_enabled() and windows.device.type == "cpu":
            return self._with_gradient(windows, bias)
        qkv = self.qkv(windows).view(batch, count, n, 3, self.num_heads, -1)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # each [B, W, heads, N, C/heads]
        bias = bias.to(q.dtype)
        if torch.jit.is_tracing():  # of a graph nobody knows how many windows there will be, one or more
            bias = bias.expand(count, -1, -1, -1)
        if not torch.jit.is_tracing() and len(bias) == 1:  # the same for every window
            q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        else:  # windows and heads share one axis, so that the bias needs no copy for each picture
            q, k, v = (x.flatten(1, 2) for x in (q, k, v))
            bias = bias.flatten(0, 1)[None]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x.view(batch, count, self.num_heads, n, -1).transpose(2, 3).reshape(batch, count, n, channels)
        return self.proj(x)

    def _with_gradient(self, windows: Tensor, bias: Tensor) -> Tensor:
        """The same written out: where the bias wants a gradient, PyTorch has no fused kernel on CPUs.

        Its fallback looks for rows that are wholly masked, of which there are none, and that takes time.
        """
        batch, count, n, channels = windows.shape
        qkv = self.qkv(windows).view(batch * count, n, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B*W, heads, N, C/heads]
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        logits = (logits.view(batch, count, -1, n, n) + bias.to(logits.dtype)).flatten(0, 1)
        x = logits.softmax(-1).to(v.dtype) @ v
        return self.proj(x.transpose(1, 2).reshape(batch, count, n, channels))


class SwinBlock(nn.Module):
    """One block: x + attention(norm(x)), then x + MLP(norm(x)), window by window."""

    def __init__(self, dim: int, num_heads: int, window_size: int, mlp_ratio: float, drop_path: float, eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = WindowAttention(dim, num_heads, window_size)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        # Leaves the branch out for whole pictures at random (arXiv:1603.09382).
        self.drop_path = _stochastic_depth(drop_path)

    def forward(self, x: Tensor, plan: WindowPlan | TracedPlan) -> Tensor:
        whole = torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_grad_enabled() or self.training
        if isinstance(plan, WindowPlan) and not whole:
            return self._streamed(x, plan)
        windows = cut_windows(x, plan)  # [B, W, N, C]
        bias, valid = self.attn.biases(plan), None
        if isinstance(plan, WindowPlan):
            count = len(plan.kinds)
            bias, valid = plan.of(bias, 0, count), plan.of(plan.valid, 0, count)
        windows = windows + self.drop_path(self.attn(self._normed(windows, valid), bias))
        windows = windows + self.drop_path(self.mlp(self.norm2(windows)))
        return join_windows(windows, plan, (x.shape[1], x.shape[2]))

    def _streamed(self, x: Tensor, plan: WindowPlan) -> Tensor:
        """The same without gradients: windows of one kind at a time, changed in place, in chunks that stay in the
        processor's cache."""
        windows, kinds, where = gather_windows(x, plan)
        biases = self.attn.biases(plan)
        for kind, alike in enumerate(kinds):
            valid = None if plan.valid is None else plan.valid[kind]
            bias = biases[kind : kind + 1] if len(biases) > 1 else biases
            for chunk in alike.split(max(1, CHUNK_VALUES // alike[0].numel())):
                chunk += self.attn(self._normed(chunk, valid)[None], bias)[0]
                chunk += self.mlp(self.norm2(chunk))
        return torch.embedding(windows, where)

    def attention(self, x: Tensor, plan: WindowPlan) -> Tensor:
        """What the block attends to in a map [B, H, W, C]: [B, W, heads, N, N]."""
        windows = cut_windows(x, plan)
        count = windows.shape[1]
        bias = plan.of(self.attn.biases(plan), 0, count)
        return self.attn.weights(self._normed(windows, plan.of(plan.valid, 0, count)), bias)

    def _normed(self, windows: Tensor, valid: Tensor | None) -> Tensor:
        normed = self.norm1(windows)
        return normed if valid is None else normed * valid.to(normed.dtype)


class PatchMerging(nn.Module):
    """2×2 neighbours concatenated to 4C channels, normalised, projected to 2C: [B, H, W, C] → [B, ⌈H/2⌉, ⌈W/2⌉, 2C]."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=eps)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = x.reshape(batch, -(-height // 2), 2, -(-width // 2), 2, channels).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


class SwinEncoder(nn.Module):
    """The encoder: ``forward(pixels [B, 3, H, W])`` → one map [B, H/s, W/s, C] a stage, strides s = 4, 8, 16, 32.

    Maps are taken before patch merging; the last one is layer-normalised, the others are not.
    """

    def __init__(self, config: SwinConfig):
        super().__init__()
        self.config = config
        eps = config.norm_eps
        self.patch_embed = nn.Conv2d(3, config.embed_dim, config.patch_size, stride=config.patch_size)
        self.patch_norm = nn.LayerNorm(config.embed_dim, eps=eps)
        rates = drop_path_rates(config)
        self.stages = nn.ModuleList()
        self.merges = nn.ModuleList()
        for stage, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
            dim, first = config.stage_dim(stage), sum(config.depths[:stage])
            self.stages.append(
                nn.ModuleList(
                    SwinBlock(dim, heads, config.window_size, config.mlp_ratio, rates[first + i], eps)
                    for i in range(depth)
                )
            )
            if stage + 1 < len(config.depths):
                self.merges.append(PatchMerging(dim, eps))
        self.norm = nn.LayerNorm(config.stage_dim(len(config.depths) - 1), eps=eps)
        self.apply(init_linear)

    def attention(self, pixels: Tensor) -> list[BlockAttention]:
        """What every patch of one picture [1, 3, H, W] attends to, block after block: the same pass, looked into."""
        x, maps = self._embed(pixels), []
        for stage, blocks in enumerate(self.stages):
            if stage:
                x = self.merges[stage - 1](x)
            for i, block in enumerate(cast(nn.ModuleList, blocks)):
                attention, x = block_attention(cast(SwinBlock, block), x, stage, i, self.config)
                maps.append(attention)
        return maps

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        x = self._embed(pixels)
        maps = []
        for stage, blocks in enumerate(self.stages):
            if stage:
                x = self.merges[stage - 1](x)
            x = swin_stage(blocks, x, self.config)
            maps.append(x)
        maps[-1] = self.norm(maps[-1])
        return tuple(maps)

    @property
    def pyramid_dims(self) -> list[int]:
        """Channels of the maps of ``pyramid``."""
        return [self.config.stage_dim(stage) for stage in range(len(self.config.depths))]

    def pyramid(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Maps [B, H/s, W/s, C] of strides s = 4, 8, 16, 32: those of ``forward``."""
        return self(pixels)

    def _embed(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] → patches [B, H/4, W/4, C]."""
        config = self.config
        bottom, right = -pixels.shape[2] % config.patch_size, -pixels.shape[3] % config.patch_size
        if (bottom or right) and config.padding != "torchvision":  # torchvision leaves the last pixels out
            pixels = F.pad(pixels, (0, right, 0, bottom))
        return self.patch_norm(self.patch_embed(pixels).permute(0, 2, 3, 1))


def drop_path_rates(config: SwinConfig) -> list[float]:
    """Stochastic depth of every block, rising from 0 to ``drop_path_rate``."""
    total = sum(config.depths)
    return [config.drop_path_rate * i / max(total - 1, 1) for i in range(total)]


def swin_stage(blocks: nn.Module, x: Tensor, config: SwinConfig) -> Tensor:
    """The blocks of one stage on a map [B, H, W, C], by turns in plain and in shifted windows."""
    plans = [_plan_of_stage(x, config, shifted) for shifted in (False, True)[: len(cast(nn.ModuleList, blocks))]]
    for i, block in enumerate(cast(nn.ModuleList, blocks)):
        x = block(x, plans[i % 2])
    return x


def _plan_of_stage(x: Tensor, config: SwinConfig, shifted: bool) -> WindowPlan | TracedPlan:
    """How the blocks of a stage, every other one shifted, cut a map [B, H, W, C]."""
    height, width = x.shape[1], x.shape[2]
    if torch.jit.is_tracing() and config.padding == "masked":
        return traced_plan((height, width), config.window_size, shifted, x.device)
    # What is part of a graph must not stay behind in the cache.
    tracing = torch.jit.is_tracing() or torch.compiler.is_compiling()
    make_plan = window_plan.__wrapped__ if tracing else window_plan
    return make_plan((int(height), int(width)), config.window_size, shifted, config.padding, x.device)


def block_attention(
    block: SwinBlock, x: Tensor, stage: int, index: int, config: SwinConfig
) -> tuple[BlockAttention, Tensor]:
    """What the patches of one map [1, H, W, C] attend to in a block, and the map after the block."""
    grid_hw = (x.shape[1], x.shape[2])
    plan = window_plan(grid_hw, config.window_size, index % 2 == 1, config.padding, x.device)
    # Patches are counted from 1 here: what fills windows up is cut as 0.
    count = torch.arange(1.0, 1 + grid_hw[0] * grid_hw[1], device=x.device).view(1, *grid_hw, 1)
    patches = cut_windows(count, plan)[0, ..., 0].long() - 1
    weights = block.attention(x, plan)[0]
    return BlockAttention(stage, index, grid_hw, plan.window_hw, plan.shift_hw, patches, weights), block(x, plan)


def _stochastic_depth(share: float) -> nn.Module:
    """Leaves a branch out for a share of the pictures of a batch, at random, while a model trains."""
    if share == 0:
        return nn.Identity()
    from torchvision.ops import StochasticDepth  # imported late: all of torchvision takes a second

    return StochasticDepth(share, "row")


def init_linear(module: nn.Module) -> None:
    """Truncated normal weights, as in the paper."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
