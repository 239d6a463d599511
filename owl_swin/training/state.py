"""What a run needs to go on: model, average, optimizer and step, in one safetensors file that is replaced whole."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from owl_swin.errors import CheckpointError
from owl_swin.training.distributed import Process, sliced_like, whole


def save_state(
    path: Path,
    *,
    model: nn.Module,
    extra: nn.Module,
    ema: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    step: int,
    settings: dict[str, Any],
    process: Process,
) -> None:
    """Writes the state after ``step`` finished steps; a reader sees the old file or the new one, never half of one.

    All processes call this together; the first one writes.
    """
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"extra.{k}": v for k, v in extra.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optim.{index}.{k}": v for k, v in state.items()}
    tensors = {k: whole(v.detach()).cpu().contiguous().clone() for k, v in tensors.items()}
    if not process.first:
        return
    part = path.with_suffix(".part")
    try:
        save_file(tensors, part, metadata={"step": str(step), "settings": json.dumps(settings)})
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot write the state of the run here ({error})") from None


def load_state(
    path: Path, *, model: nn.Module, extra: nn.Module, ema: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> int:
    """Puts the state back in place and returns the number of finished steps."""
    try:
        with safe_open(path, "pt") as file:
            step = int(file.metadata()["step"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not the state of a training run ({error})") from None
    try:
        for module, prefix in ((model, "model."), (extra, "extra.")):
            own = module.state_dict()
            given = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            module.load_state_dict({k: sliced_like(v, own[k]) for k, v in given.items()})
        for key in ema:
            ema[key].copy_(sliced_like(tensors[f"ema.{key}"], ema[key]))
    except (RuntimeError, KeyError):
        raise CheckpointError(
            f"{path}: the state of a run with another model; give this run a folder of its own"
        ) from None
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optim."):
            _, index, name = key.split(".")
            owner = parameters[int(index)]
            kept = value if name == "step" else sliced_like(value, owner)
            state.setdefault(int(index), {})[name] = kept
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step
