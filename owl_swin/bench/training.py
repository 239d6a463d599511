"""How fast training goes: pictures and arithmetic a second, beside timm's Swin and the machine's matrix products."""

import platform
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from owl_swin.bench.clock import seconds_of
from owl_swin.config import ModelConfig, SwinConfig
from owl_swin.errors import ConfigError, MissingExtraError
from owl_swin.models.owl_swin import OwlSwin

# Sides of the matrices whose product is the yardstick: the largest whose product takes no longer than this.
MATRIX_SIDES = (256, 512, 1024, 2048)
PRODUCT_S = 0.25


def benchmark_training(
    config: ModelConfig,
    *,
    image_size: int = 64,
    batch_size: int = 128,
    precision: str = "bfloat16",
    rounds: int = 5,
    device: str = "cpu",
) -> dict[str, Any]:
    """Times a training step (forward, backward, AdamW) of the image side, in turn with the same Swin from timm.

    Rounds alternate between the two, so that what else the machine does falls on both; figures are medians. GFLOP/s
    count the matrix products, convolutions and attention of a step; ``matrix_gflops`` is what a product of two
    square matrices of side ``matrix_side`` reaches in the same precision.
    """
    if min(image_size, batch_size, rounds) < 1:
        raise ConfigError("image_size, batch_size and rounds must be at least 1")
    if config.image.stem != "patch":
        raise ConfigError(f"timm has no Swin with the stem {config.image.stem}; name a model without one")
    place = torch.device(device)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(precision)
    if dtype is None:
        raise ConfigError(f"precision must be float32 or bfloat16, got {precision!r}")
    pixels = torch.randn(batch_size, 3, image_size, image_size, device=place)
    ours = OwlSwin(config).to(place).train()
    steps: dict[str, Callable[[], None]] = {
        "owl_swin": _step(
            [ours.image_encoder, ours.fusion], lambda x: ours.encode_patches(x).mean((1, 2)), pixels, dtype
        )
    }
    theirs = _timm_swin(config.image, image_size).to(place).train()
    steps["timm"] = _step([theirs], theirs, pixels, dtype)
    flops = {}
    for name, step in steps.items():
        step()
        with FlopCounterMode(display=False) as counter:
            step()
        flops[name] = counter.get_total_flops()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    side, product = _matrix_product(place, dtype)
    products: list[float] = []
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(seconds_of(step, place))
        products.append(seconds_of(product, place))
    rate = {name: batch_size / statistics.median(times) for name, times in seconds.items()}
    gflops = {name: flops[name] / statistics.median(times) / 1e9 for name, times in seconds.items()}
    matrix = 2 * side**3 / statistics.median(products) / 1e9
    return {
        "protocol": f"training step of the image side, {batch_size} pictures of {image_size} px, {precision}, "
        f"median of {rounds} alternating rounds",
        "machine": describe_machine(place),
        "images_per_s": {name: figure(value) for name, value in rate.items()},
        "gflops": {name: figure(value) for name, value in gflops.items()},
        "matrix_side": side,
        "matrix_gflops": figure(matrix),
        "share_of_matrix_rate": {name: figure(value / matrix) for name, value in gflops.items()},
        "ratio_to_timm": figure(rate["owl_swin"] / rate["timm"]),
    }


def describe_machine(device: torch.device) -> str:
    """What figures were measured on."""
    return f"{platform.machine()}, {torch.get_num_threads()} threads, {device.type}, torch {torch.__version__}"


def figure(value: float) -> float:
    """Four significant digits, so that ratios of figures hold on a slow machine too."""
    return float(f"{value:.4g}")


def _step(
    parts: list[nn.Module], forward: Callable[[Tensor], Tensor], pixels: Tensor, dtype: torch.dtype
) -> Callable[[], None]:
    parameters = [p for part in parts for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)

    def step() -> None:
        with torch.autocast(pixels.device.type, dtype, enabled=dtype is not torch.float32):
            embeds = forward(pixels).float()
        embeds.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _timm_swin(config: SwinConfig, image_size: int) -> nn.Module:
    try:
        from timm.models.swin_transformer import SwinTransformer
    except ImportError:
        raise MissingExtraError("bench train compares with timm and", "train") from None
    return SwinTransformer(
        img_size=image_size,
        patch_size=config.patch_size,
        num_classes=0,
        embed_dim=config.embed_dim,
        depths=config.depths,
        num_heads=config.num_heads,
        window_size=config.window_size,
        mlp_ratio=config.mlp_ratio,
        drop_path_rate=config.drop_path_rate,
    )


def _matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[int, Callable[[], Tensor]]:
    """Side of the matrices, and their product.

    Where a processor has no arithmetic for a precision, a product of large matrices takes minutes.
    """
    for side in MATRIX_SIDES:
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        product = partial(torch.mm, a, b)
        product()
        # Of twice the side it takes eight times as long.
        if 8 * seconds_of(product, device) > PRODUCT_S:
            break
    return side, product
