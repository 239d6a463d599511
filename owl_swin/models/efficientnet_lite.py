"""EfficientNet-Lite with its normalisations folded, as the stem of the models that ship.

timm builds the same networks, but importing timm takes longer than all else that a first answer needs. Parameters are
named and maps are made as by timm's ``tf_efficientnet_lite0`` to ``lite4``, whose weights come from the authors of
EfficientNet (arXiv:1905.11946): convolutions are padded as TensorFlow does, and every activation is ReLU6.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Multiples of channels and of blocks.
SIZES = {
    "tf_efficientnet_lite0": (1.0, 1.0),
    "tf_efficientnet_lite1": (1.0, 1.1),
    "tf_efficientnet_lite2": (1.1, 1.2),
    "tf_efficientnet_lite3": (1.2, 1.4),
    "tf_efficientnet_lite4": (1.4, 1.8),
}
# Kernel, stride, expansion, channels and blocks of each stage.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
# Stages that end with strides 4, 8, 16 and 32.
MAPPED = (1, 2, 4, 6)
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
# These networks were trained with pixels in [-1, 1].
MEAN = STD = (0.5, 0.5, 0.5)


class EfficientNetLite(nn.Module):
    """``forward(pixels [B, 3, H, W])`` → maps [B, ⌈H/s⌉, ⌈W/s⌉, C] of strides s = 8, 16 and 32, and the last one of
    stride 32, which a classifier would read.

    Channels are last throughout: a convolution of one pixel is then a plain matrix product.
    """

    def __init__(self, name: str):
        super().__init__()
        wide, deep = SIZES[name]
        self.conv_stem = SameConv(3, STEM_CHANNELS, 3, 2)
        self.blocks = nn.ModuleList()
        channels = STEM_CHANNELS
        for place, (kernel, stride, expansion, base, count) in enumerate(STAGES):
            blocks = nn.Sequential()
            # The first and the last stage keep their depth.
            for i in range(count if place in (0, len(STAGES) - 1) else math.ceil(count * deep)):
                out, step = rounded(base * wide), stride if i == 0 else 1
                blocks.append(InvertedResidual(channels, out, kernel, step, expansion))
                channels = out
            self.blocks.append(blocks)
        self.conv_head = SameConv(channels, HEAD_CHANNELS, 1)
        self.dims = [rounded(STAGES[place][3] * wide) for place in MAPPED[1:]]
        self.fine_dim = rounded(STAGES[MAPPED[0]][3] * wide)
        self.last_dim = HEAD_CHANNELS

    def forward(self, pixels: Tensor, *, fine: bool = False) -> tuple[list[Tensor], Tensor]:
        """``fine``: also the map of stride 4, before the others."""
        # A graph for other runtimes keeps channels first: they know no other convolution, and quantise by channel.
        first = torch.jit.is_tracing()
        x = _relu6(self.conv_stem(pixels if first else pixels.permute(0, 2, 3, 1)))
        maps = []
        for place, blocks in enumerate(self.blocks):
            x = blocks(x)
            if place in MAPPED[0 if fine else 1 :]:
                maps.append(x)
        *maps, last = (x.permute(0, 2, 3, 1) if first else x for x in (*maps, _relu6(self.conv_head(x))))
        return maps, last


class InvertedResidual(nn.Module):
    """Channels expand, mix within each, and are projected back; what keeps its shape is added to what came in.

    Without expansion, in the first stage, the projection is called ``conv_pw``, as in timm.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        hidden = channels * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and channels == out
        if self.expands:
            self.conv_pw = SameConv(channels, hidden, 1)
        self.conv_dw = SameConv(hidden, hidden, kernel, stride, groups=hidden)
        project = SameConv(hidden, out, 1)
        if self.expands:
            self.conv_pwl = project
        else:
            self.conv_pw = project

    def forward(self, x: Tensor) -> Tensor:
        y = _relu6(self.conv_pw(x)) if self.expands else x
        y = _relu6(self.conv_dw(y))
        y = self.conv_pwl(y) if self.expands else self.conv_pw(y)
        return x + y if self.adds else y


class SameConv(nn.Conv2d):
    """Convolution of maps [B, H, W, C], in a trace [B, C, H, W], whose output has ⌈side / stride⌉; of an odd padding,
    the larger half is right and below."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1):
        padding = (kernel - 1) // 2 if stride == 1 else 0
        super().__init__(channels, out, kernel, stride, padding, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.jit.is_tracing()  # where channels stand
        if self.kernel_size == (1, 1) and not first:
            return F.linear(x, self.weight[:, :, 0, 0], self.bias)
        if self.stride[0] > 1:
            missing = [
                max((-(-side // step) - 1) * step + kernel - side, 0)
                for side, step, kernel in zip(
                    x.shape[2:] if first else x.shape[1:3], self.stride, self.kernel_size, strict=True
                )
            ]
            top, left = missing[0] // 2, missing[1] // 2
            sides = (left, missing[1] - left, top, missing[0] - top)
            x = F.pad(x, sides if first else (0, 0, *sides))
        return self._convolved(x) if first else self._convolved(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _convolved(self, x: Tensor) -> Tensor:
        slow = self.groups > 1 and self.stride[0] > 1 and x.device.type == "cpu" and x.requires_grad
        if not slow or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        # Gradients through a depthwise kernel with a stride take a processor 40 times as long in bfloat16.
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(x.dtype)


def _relu6(x: Tensor) -> Tensor:
    """In place: neither kind of convolution needs its output to find gradients."""
    return F.relu6(x, inplace=True)


def rounded(channels: float, multiple: int = 8) -> int:
    """Channels as a multiple of 8, but not under nine tenths of what was wanted."""
    near = max(multiple, int(channels + multiple / 2) // multiple * multiple)
    return near + multiple if near < 0.9 * channels else near
