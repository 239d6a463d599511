"""Parameter groups, learning-rate schedule, moving average of the weights."""

import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from owl_swin.models.stem import ConvStem
from owl_swin.training.config import OptimConfig

TensorList = tuple[Tensor, ...] | list[Tensor]


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: "stem", "image", "text", "fusion", "masks", "pool" or
    "heads"."""
    if name.startswith("image_encoder.stem."):
        return "stem"
    if name.startswith("image_encoder."):
        return "image"
    if name.startswith(("masks.", "fusion.")):
        return name.partition(".")[0]
    if name.startswith("image_projection.") or name == "alignment_log_scale":
        return "pool"
    return "text" if name.startswith("text_encoder.") else "heads"


def learning_rates(config: OptimConfig) -> dict[str, float]:
    """The peak learning rate of each part."""
    return {
        "image": config.image_lr,
        "stem": config.stem_lr,
        "text": config.text_lr,
        "heads": config.heads_lr,
        "fusion": config.fusion,
        "masks": config.masks,
        "pool": config.pool,
    }


def freeze(model: nn.Module, config: OptimConfig) -> None:
    """Parts whose learning rate is 0 stop requiring gradients, and so does what ``stem_part`` leaves out."""
    rates = learning_rates(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(rates[part_of(name)] > 0)
    if config.stem_part == "pointwise":
        for stem in (module for module in model.modules() if isinstance(module, ConvStem)):
            kept = set(stem.late_pointwise())
            for name, parameter in stem.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and name in kept)


def build_optimizer(model: nn.Module, config: OptimConfig, extra: nn.Module | None = None) -> torch.optim.AdamW:
    """AdamW with a group for each learning rate, with and without decay; parts at rate 0 stop requiring gradients.

    ``extra`` holds what only the training task needs; it learns at the rate of the heads.
    """
    freeze(model, config)
    rates = learning_rates(config)
    # Parts that follow the heads share their groups, so that older runs go on.
    followers = {part for part, own in (("pool", config.pool_lr), ("fusion", config.fusion_lr)) if own is None}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    named = [*model.named_parameters(), *([] if extra is None else extra.named_parameters(prefix="extra"))]
    for name, parameter in named:
        part = part_of(name)
        if parameter.requires_grad and rates[part] > 0:
            decayed = parameter.ndim > 1 and "bias_table" not in name and "embedding" not in name
            groups.setdefault(("heads" if part in followers else part, decayed), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "peak_lr": rates[part], "weight_decay": config.weight_decay if decayed else 0.0}
            for (part, decayed), parameters in groups.items()
        ],
        lr=0.0,
        betas=(config.betas[0], config.betas[1]),
        fused=True,
    )


def clip_gradients(model: nn.Module, optimizer: torch.optim.Optimizer, most: float) -> Tensor:
    """Clips the norm of all gradients that ``optimizer`` follows to ``most``; returns what it was before.

    Those of a published stem are clipped apart: without normalisations in it they are several times as large as all
    others, which would hardly move if both shared one limit.
    """
    stem = {id(p) for name, p in model.named_parameters() if part_of(name) == "stem"}
    parts: dict[bool, list[Tensor]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parts.setdefault(id(parameter) in stem, []).append(parameter)
    norms = [torch.nn.utils.clip_grad_norm_(own, most) for own in parts.values()]
    return torch.stack(norms).square().sum().sqrt() if len(norms) > 1 else norms[0]


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimConfig, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine from the peak to ``final_lr`` of it. Returns the factor on the peak."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    cosine = 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
    factor = warm * (config.final_lr + (1 - config.final_lr) * cosine)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return factor


def average_of(model: nn.Module, decay: float) -> AveragedModel:
    """A moving average of the model, for now its copy; the decay warms up so that early steps are forgotten."""

    @torch.no_grad()
    def move(averages: TensorList, values: TensorList, steps: Tensor | int) -> None:
        warm = min(decay, (1 + int(steps)) / (10 + int(steps)))
        torch._foreach_lerp_(averages, values, 1 - warm)

    return AveragedModel(model, multi_avg_fn=move).requires_grad_(False)
