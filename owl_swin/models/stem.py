"""A published convolutional network as the stem of a hybrid Swin (after arXiv:2010.11929 and arXiv:2106.14881).

The stem replaces the patch partition and the first two stages. It is any network of timm whose intermediate maps have
strides 8, 16 and 32; its batch normalisations are folded into the convolutions before them, so that all of it is
plain weights. Those of the models that ship are built here, since importing timm takes longer than a first answer.
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from owl_swin.errors import ConfigError
from owl_swin.models import efficientnet_lite

STRIDES = (8, 16, 32)
# Of the map that only masks look at.
FINE_STRIDE = 4
# What the project's pixels are normalised with; a stem may have been trained with other numbers.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ConvStem(nn.Module):
    """``forward(pixels [B, 3, H, W])`` → maps [B, ⌈H/s⌉, ⌈W/s⌉, C] of strides s = 8, 16, 32, and the network's last map
    of stride 32, which its classifier reads."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        if name in efficientnet_lite.SIZES:
            self.network: nn.Module = efficientnet_lite.EfficientNetLite(name)
            self.dims, self.last_dim = self.network.dims, self.network.last_dim
            self.fine_dim, self.fine_module = self.network.fine_dim, f"blocks.{efficientnet_lite.MAPPED[0]}"
            mean, std = efficientnet_lite.MEAN, efficientnet_lite.STD
        else:
            network = create_network(name)
            self.indices = [stage_of(network, stride) for stride in STRIDES]
            self.dims = [network.feature_info[i]["num_chs"] for i in self.indices]
            fine = [i for i, stage in enumerate(network.feature_info) if stage["reduction"] == FINE_STRIDE]
            self.fine_indices = fine[-1:]
            self.fine_dim = network.feature_info[fine[-1]]["num_chs"] if fine else 0
            self.fine_module = network.feature_info[fine[-1]]["module"] if fine else "none"
            self.last_dim = int(getattr(network, "head_hidden_size", network.num_features))
            mean, std = network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
            self.network = fold_norms(network)
        # Plain numbers, also where the model is first laid out without memory.
        own = list(zip(mean, std, IMAGENET_MEAN, IMAGENET_STD, strict=True))
        self.shift = [(given_mean - mean) / std for mean, std, given_mean, _ in own]
        self.scale = [given_std / std for _, std, _, given_std in own]

    def forward(self, pixels: Tensor, *, fine: bool = False) -> tuple[list[Tensor], Tensor]:
        """``fine``: also the map of stride 4, before the others; ``fine_dim`` is 0 where the network has none."""
        strides = (FINE_STRIDE, *STRIDES) if fine else STRIDES
        height, width = pixels.shape[2], pixels.shape[3]
        scale, shift = (pixels.new_tensor(v)[:, None, None] for v in (self.scale, self.shift))
        x = (pixels * scale + shift).contiguous(memory_format=torch.channels_last)
        maps, last = self._maps(x, fine)
        sized = [
            fitted(m, (-(-height // stride), -(-width // stride)))
            for m, stride in zip((*maps, last), (*strides, strides[-1]), strict=True)
        ]
        return sized[:-1], sized[-1]

    def late_pointwise(self) -> list[str]:
        """Names of the parameters of those layers behind the map of stride 4 that look at one pixel at a time."""
        modules = list(self.network.named_modules())  # in the order in which they work
        early = [i for i, (path, _) in enumerate(modules) if f"{path}.".startswith(f"{self.fine_module}.")]
        names = []
        for path, module in modules[max(early, default=0) + 1 :]:
            convolves = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
            if convolves or isinstance(module, nn.Linear):
                names += [f"network.{path}.{name}" for name, _ in module.named_parameters(recurse=False)]
        return names

    def _maps(self, pixels: Tensor, fine: bool) -> tuple[list[Tensor], Tensor]:
        """Maps [B, h, w, C]."""
        if isinstance(self.network, efficientnet_lite.EfficientNetLite):
            return self.network(pixels, fine=fine)
        indices = self.fine_indices + self.indices if fine else self.indices
        last, maps = self.network.forward_intermediates(pixels, indices=indices)  # type: ignore[operator]
        return [m.permute(0, 2, 3, 1) for m in maps], last.permute(0, 2, 3, 1)


def create_network(name: str, *, pretrained: bool = False) -> Any:
    """timm's network ``name`` without its classifier, in evaluation mode; one that timm does not know, or that has no
    maps of strides 8, 16 and 32, raises ConfigError."""
    import timm

    if not timm.is_model(name):
        raise ConfigError(
            f"image.stem: timm {timm.__version__} knows no network {name!r}; timm.list_models() names them"
        )
    network = timm.create_model(name, pretrained=pretrained, num_classes=0).eval()
    if not hasattr(network, "forward_intermediates"):
        raise ConfigError(f"image.stem: {name} does not give its intermediate maps; take a convolutional network")
    for stride in STRIDES:
        stage_of(network, stride)
    return network


def stage_of(network: Any, stride: int) -> int:
    """Index of the network's last intermediate map of ``stride``."""
    found = [i for i, stage in enumerate(network.feature_info) if stage["reduction"] == stride]
    if not found:
        has = sorted({stage["reduction"] for stage in network.feature_info})
        raise ConfigError(f"image.stem: a stem needs maps of strides 8, 16 and 32; this network has {has}")
    return found[-1]


def fold_norms(network: nn.Module) -> nn.Module:
    """The network with each batch normalisation folded into the convolution that stands right before it."""
    for parent in network.modules():
        children = list(parent.named_children())
        for (_, before), (norm_name, norm) in itertools.pairwise(children):
            conv = before[-1] if isinstance(before, nn.Sequential) and len(before) else before
            if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue
            if norm.num_features != conv.out_channels:
                continue
            assert norm.running_mean is not None and norm.running_var is not None
            weight, bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            conv.weight, conv.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
            setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))
    left = [name for name, module in network.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if left:
        raise ConfigError(
            f"image.stem: the batch normalisation {left[0]!r} of this network does not follow a convolution"
        )
    return network


def published_stem(name: str, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Folded weights for ``ConvStem(name).network``: of ``tensors``, which have timm's names, or (None) as timm
    publishes them. Tensors of a classifier are left out; others that do not fit raise ConfigError."""
    network = create_network(name, pretrained=tensors is None)
    if tensors is not None:
        own = network.state_dict()
        given = {k: v for k, v in tensors.items() if k in own and own[k].shape == v.shape}
        missing = [k for k in own if k not in given and not k.endswith("num_batches_tracked")]
        if missing:
            raise ConfigError(
                f"image.stem: the given weights of {name} lack {missing[0]!r} in the form that timm has it"
            )
        network.load_state_dict(given, strict=False)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network.forward_intermediates(pixels)[0]
        fold_norms(network)
        found = network.forward_intermediates(pixels)[0]
    if not torch.allclose(expected, found, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise ConfigError(
            f"image.stem: {name} gives other maps once its normalisations are folded; take another network"
        )
    return network.state_dict()


def fitted(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """A map [B, h, w, C] cut, or filled up with zeros, to ``hw``: networks round their sides differently."""
    x = x[:, : hw[0], : hw[1]]
    missing = hw[0] - x.shape[1], hw[1] - x.shape[2]
    return F.pad(x, (0, 0, 0, missing[1], 0, missing[0])) if any(missing) else x
