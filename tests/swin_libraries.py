"""Swin of torchvision, timm and transformers with random weights, and their stage maps, for the parity tests."""

import timm
import timm.models.swin_transformer
import timm.models.swin_transformer_v2
import torch
import torch.nn.functional as F
import torchvision
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from owl_swin.config import SwinConfig
from owl_swin.families.swin_weights import convert_state_dict, infer_config
from owl_swin.models.swin import SwinEncoder

CPU = torch.device("cpu")
NARROW = SwinConfig(embed_dim=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))
SMALL = SwinConfig(embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=4)


def randomise(module):
    """Weights with which a wrong order, bias, norm or mask cannot hide."""
    torch.manual_seed(0)
    for name, p in module.named_parameters():
        if name.endswith("relative_position_bias_table"):
            torch.nn.init.normal_(p)
        elif p.ndim < 2:
            torch.nn.init.normal_(p, mean=float(name.endswith("weight")), std=0.3)
        else:
            torch.nn.init.normal_(p, std=p[0].numel() ** -0.5)
    return module.eval()


def random_pixels(height, width, batch=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def torchvision_swin(config, hw):
    return torchvision.models.SwinTransformer(
        [config.patch_size] * 2, config.embed_dim, list(config.depths), list(config.num_heads), [config.window_size] * 2
    )


def torchvision_maps(model, pixels):
    x, maps = model.features[0](pixels), []
    for i, layer in enumerate(model.features[1:]):
        x = layer(x)
        maps += [x] if i % 2 == 0 else []  # stages and mergings take turns
    return [*maps[:-1], model.norm(maps[-1])]


def timm_swin(config, hw):
    return timm.models.swin_transformer.SwinTransformer(
        img_size=tuple(-(-side // 4) * 4 for side in hw),
        embed_dim=config.embed_dim,
        depths=config.depths,
        num_heads=config.num_heads,
        window_size=config.window_size,
    )


def timm_maps(model, pixels):
    height, width = model.patch_embed.img_size  # timm takes whole patches only
    pixels = F.pad(pixels, (0, width - pixels.shape[3], 0, height - pixels.shape[2]))
    return [x.permute(0, 2, 3, 1) for x in model.forward_intermediates(pixels, norm=True, intermediates_only=True)]


def transformers_swin(config, hw):
    return transformers.SwinModel(
        transformers.SwinConfig(
            embed_dim=config.embed_dim,
            depths=config.depths,
            num_heads=config.num_heads,
            window_size=config.window_size,
        )
    )


def transformers_maps(model, pixels):
    out = model(pixels, output_hidden_states=True, output_hidden_states_before_downsampling=True)
    maps = [x.permute(0, 2, 3, 1) for x in out.reshaped_hidden_states[1:]]
    return [*maps[:-1], out.last_hidden_state.view(maps[-1].shape)]


LIBRARIES = {
    "torchvision": (torchvision_swin, torchvision_maps),
    "timm": (timm_swin, timm_maps),
    "transformers": (transformers_swin, transformers_maps),
}


def encoder_from(tensors):
    config = infer_config(tensors)
    encoder = SwinEncoder(config).eval()
    encoder.load_state_dict(convert_state_dict(tensors, config))
    return encoder


def count_multiply_adds(module, *inputs):
    """Two operations a multiply-add; attention as its two matrix products."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() / 2
