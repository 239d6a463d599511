"""A hybrid Swin: stages 3 and 4 of a Swin Transformer on a published convolutional stem."""

from typing import cast

import torch
from torch import Tensor, nn

from owl_swin.attention import BlockAttention
from owl_swin.config import SwinConfig
from owl_swin.errors import ConfigError
from owl_swin.models.stem import ConvStem, fitted
from owl_swin.models.swin import PatchMerging, SwinBlock, block_attention, drop_path_rates, init_linear, swin_stage


class HybridSwin(nn.Module):
    """The encoder: ``forward(pixels [B, 3, H, W])`` → one map [B, ⌈H/s⌉, ⌈W/s⌉, C] a stage, strides s = 8, 16, 32.

    The first is the stem's, projected; the other two are Swin stages 3 and 4 as in SwinEncoder, which also take the
    stem's maps of their strides in. The last one is layer-normalised.
    """

    def __init__(self, config: SwinConfig):
        super().__init__()
        self.config = config
        eps = config.norm_eps
        self.stem = ConvStem(config.stem)
        dim8, dim16, dim32 = self.stem.dims
        c2, c3, c4 = (config.stage_dim(stage) for stage in (1, 2, 3))
        self.lateral2 = nn.Linear(dim8, c2)
        self.lateral3, self.norm3 = nn.Linear(4 * dim8 + dim16, c3), nn.LayerNorm(c3, eps=eps)
        self.lateral4, self.norm4 = nn.Linear(dim32 + self.stem.last_dim, c4), nn.LayerNorm(c4, eps=eps)
        # Maps of a rectified network reach far from zero, each at its own scale.
        self.stem_norms = nn.ModuleList(nn.LayerNorm(dim, eps=eps) for dim in (dim8, dim16, dim32, self.stem.last_dim))
        rates = drop_path_rates(config)
        self.stages = nn.ModuleList()
        for stage in (2, 3):
            first = sum(config.depths[:stage])
            self.stages.append(
                nn.ModuleList(
                    SwinBlock(
                        config.stage_dim(stage),
                        config.num_heads[stage],
                        config.window_size,
                        config.mlp_ratio,
                        rate,
                        eps,
                    )
                    for rate in rates[first : first + config.depths[stage]]
                )
            )
        self.merge = PatchMerging(c3, eps)
        self.norm = nn.LayerNorm(c4, eps=eps)
        for name, module in self.named_children():
            if name != "stem":
                module.apply(init_linear)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return self.with_stem(pixels)[0]

    def with_stem(self, pixels: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The maps of ``forward``, and the stem's own last map [B, ⌈H/32⌉, ⌈W/32⌉, C], which its classifier reads."""
        maps, last = self.stem(pixels)
        return self._stages(maps, last), last

    @property
    def pyramid_dims(self) -> list[int]:
        """Channels of the maps of ``pyramid``."""
        if not self.stem.fine_dim:
            raise ConfigError(f"image.stem: {self.stem.name} has no map of stride 4, which masks are made of")
        return [self.stem.fine_dim, *(self.config.stage_dim(stage) for stage in (1, 2, 3))]

    def pyramid(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Maps [B, ⌈H/s⌉, ⌈W/s⌉, C] of strides s = 4, 8, 16, 32: the stem's finest, and those of ``forward``."""
        return self.pyramid_with_stem(pixels)[0]

    def pyramid_with_stem(self, pixels: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The maps of ``pyramid``, and the stem's own last map as ``with_stem`` gives it."""
        (f4, *maps), last = self.stem(pixels, fine=True)
        return (f4.to(self.lateral2.weight.dtype), *self._stages(maps, last)), last

    def _stages(self, maps: list[Tensor], last: Tensor) -> tuple[Tensor, ...]:
        """The encoder's maps of those of the stem."""
        f8, stage3, inputs4 = self._inputs(maps, last)
        stage3 = swin_stage(self.stages[0], stage3, self.config)
        stage4 = swin_stage(self.stages[1], self._fourth(stage3, inputs4), self.config)
        return f8, stage3, self.norm(stage4)

    def attention(self, pixels: Tensor) -> list[BlockAttention]:
        """What every patch of one picture [1, 3, H, W] attends to in stages 3 and 4 (2 and 3, counted from 0)."""
        _, x, inputs4 = self._inputs(*self.stem(pixels))
        seen: list[BlockAttention] = []
        for stage, blocks in enumerate(self.stages, start=2):
            x = self._fourth(x, inputs4) if stage == 3 else x
            for i, block in enumerate(cast(nn.ModuleList, blocks)):
                attention, x = block_attention(cast(SwinBlock, block), x, stage, i, self.config)
                seen.append(attention)
        return seen

    def _inputs(self, maps: list[Tensor], last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What stages 2 (finished), 3 and 4 get of the stem."""
        # A stem may answer in fewer digits than the norms work in.
        digits = self.lateral2.weight.dtype
        normed = (norm(m.to(digits)) for norm, m in zip(self.stem_norms, (*maps, last), strict=True))
        f8, f16, f32, last = normed
        batch, height, width, _ = f16.shape
        even = fitted(f8, (2 * height, 2 * width))
        gathered = even.reshape(batch, height, 2, width, 2, -1).permute(0, 1, 3, 2, 4, 5).flatten(3)
        stage3 = self.norm3(self.lateral3(torch.cat([gathered, f16], -1)))
        return self.lateral2(f8), stage3, self.lateral4(torch.cat([f32, last], -1))

    def _fourth(self, stage3: Tensor, inputs4: Tensor) -> Tensor:
        return self.norm4(self.merge(stage3) + inputs4)
