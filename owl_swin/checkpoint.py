"""Model files: one safetensors file that holds weights, configuration and model card. Nothing is unpickled.

Large matrices may be stored as int8 with a float16 scale a row (``NAME`` and ``NAME.row_scale``); they are turned back
into float32 when read.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from owl_swin.config import ModelConfig, from_mapping, to_mapping
from owl_swin.errors import CheckpointError, ConfigError
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.safetensors_file import read_safetensors, write_safetensors

FORMAT = "owl_swin-1"
SHIPPED = ("nano",)
ROW_SCALE = ".row_scale"


def save_checkpoint(path: str | Path, model: OwlSwin, card: Mapping[str, Any], *, int8: bool = True) -> None:
    """Writes model and card to ``path``, whole or not at all: small tensors as float16, large ones as int8 rows."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu()
        if int8 and tensor.ndim >= 2 and tensor.numel() >= 4096 and "bias_table" not in name:
            tensors[name], tensors[name + ROW_SCALE] = quantise_rows(tensor)
        else:
            tensors[name] = tensor.half().contiguous()
    metadata = {
        "format": FORMAT,
        "config": json.dumps(to_mapping(model.config)),
        "card": json.dumps(dict(card), ensure_ascii=False),
    }
    write_safetensors(Path(path), tensors, metadata, what="the model", error=CheckpointError)


def load_checkpoint(source: str | Path = "nano") -> tuple[OwlSwin, dict[str, Any]]:
    """The model, in evaluation mode, and its card, from a name that ships or a file or a folder with model.safetensors.

    A file that is damaged, cut off, no safetensors, or of another architecture raises CheckpointError.
    """
    path = checkpoint_path(source)
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: holds no owl_swin model (format {metadata.get('format')!r}, expected {FORMAT!r})"
        )
    try:
        config = from_mapping(ModelConfig, json.loads(metadata["config"]), where=str(path))
        card = json.loads(metadata["card"])
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    except (KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: its configuration cannot be read ({error})") from None
    if not isinstance(card, dict):
        raise CheckpointError(f"{path}: its model card must be a JSON object, got {type(card).__name__}")
    with torch.device("meta"):
        model = OwlSwin(config)
    load_tensors(model, dequantise(tensors, str(path)), str(path))
    return model.eval().requires_grad_(False), card


def checkpoint_path(source: str | Path) -> Path:
    """The file behind a name that ships, a file or a folder."""
    if str(source) in SHIPPED:
        return Path(str(files("owl_swin") / "weights" / f"{source}.safetensors"))
    path = Path(source)
    try:
        if path.is_dir():
            path = path / "model.safetensors"
        exists = path.is_file()
    except (OSError, ValueError):
        exists = False
    if not exists:
        names = ", ".join(SHIPPED)
        raise CheckpointError(
            f"{source}: no such model; give a .safetensors file, a folder with model.safetensors, or {names}"
        )
    return path


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; pickled weights are refused."""
    if path.suffix in (".pt", ".pth", ".bin", ".pkl", ".ckpt"):
        raise CheckpointError(
            f"{path}: pickled weights can run any program and are not read; convert them to safetensors"
        )
    return read_safetensors(path, error=CheckpointError)


def fingerprint(model: nn.Module) -> str:
    """SHA-256, in hexadecimal, of names, shapes and values of all weights; what settings say is not in it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
