"""Tensors of a safetensors file, and how they get into a module. Nothing is unpickled.

Large matrices may be stored as int8 with a float16 scale a row (``NAME`` and ``NAME.row_scale``).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from owl_swin.errors import CheckpointError
from owl_swin.files import read_safetensors

ROW_SCALE = ".row_scale"


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; pickled weights are refused."""
    if path.suffix in (".pt", ".pth", ".bin", ".pkl", ".ckpt"):
        raise CheckpointError(
            f"{path}: pickled weights can run any program and are not read; convert them to safetensors"
        )
    return read_safetensors(path, error=CheckpointError)


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Fills ``model``; keys that are missing, left over, of another shape or not finite raise CheckpointError."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    own = {name: own[name] for name in model.state_dict()}
    problems = {
        "missing": sorted(own.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - own.keys()),
        "of another shape": sorted(k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape),
        "not finite": sorted(k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()),
    }
    for problem, keys in problems.items():
        if keys:
            some = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise CheckpointError(f"{where}: weights do not fit the model; {problem}: {some}")
    if any(tensor.is_meta for tensor in model.buffers()):
        model.to_empty(device="cpu")
        _restore_buffers(model)
    model.load_state_dict(dict(tensors), assign=True)


def quantise_rows(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values and float16 scales, one for each index of the first axis; value * scale gives the tensor back."""
    rows = tensor.float().flatten(1)
    scale = (rows.abs().amax(1) / 127).clamp(min=6e-8).half()
    values = (rows / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return values.view(tensor.shape).contiguous(), scale


def dequantise(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """float32 tensors of a stored model; int8 rows without a scale each raise CheckpointError."""
    out = {}
    for name, tensor in tensors.items():
        if name.endswith(ROW_SCALE):
            continue
        if tensor.dtype == torch.int8:
            scale = tensors.get(name + ROW_SCALE, tensor.new_empty(0))
            if scale.shape != tensor.shape[:1]:
                raise CheckpointError(
                    f"{where}: weights do not fit the model; {name} {list(tensor.shape)} has {scale.numel()} row scales"
                )
            tensor = tensor * scale.float().view(-1, *[1] * (tensor.ndim - 1))
        out[name] = tensor.float()
    return out


def _restore_buffers(model: nn.Module) -> None:
    """Buffers that no file holds: open_clip's causal mask."""
    module: Any
    for module in model.modules():
        if hasattr(module, "build_causal_mask") and getattr(module, "attn_mask", None) is not None:
            module.attn_mask = module.build_causal_mask()
