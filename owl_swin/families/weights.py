"""Tensors of a safetensors file, and how they get into a module. Nothing is unpickled.

Large matrices may be stored as int8 with a float16 scale a row (``NAME`` and ``NAME.row_scale``).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from owl_swin.errors import CheckpointError, brief
from owl_swin.files import read_json, read_safetensors

ROW_SCALE = ".row_scale"
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; pickled weights are refused."""
    if path.suffix in PICKLES:
        raise CheckpointError(
            f"{path}: pickled weights can run any program and are not read; convert them to safetensors"
        )
    if _is_pointer(path):
        raise CheckpointError("is a pointer of Git LFS and not the weights; run `git lfs pull` in its folder", of=path)
    return read_safetensors(path, error=CheckpointError)


def read_folder(folder: Path, name: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a model's folder in the form of transformers: model.safetensors, or its parts.

    ``name`` is what the caller knows the folder by. One without weights, with pickled ones alone, or where a part is
    missing raises CheckpointError.
    """
    if (folder / WEIGHTS).is_file():
        return read_tensors(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        raise CheckpointError(no_weights(folder), of=name or folder)
    try:
        places = read_json(folder / INDEX)["weight_map"]
        parts = sorted({str(part) for part in places.values()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"the list of the parts of a model cannot be read ({brief(error)})", of=folder / INDEX
        ) from None
    if lost := [part for part in parts if Path(part).name != part or not (folder / part).is_file()]:
        raise CheckpointError(
            f"{len(lost)} of the {len(parts)} parts of this model are not there, as after a broken download: "
            f"{', '.join(lost[:3])}",
            of=name or folder,
        )
    tensors: dict[str, Tensor] = {}
    for part in parts:
        tensors |= read_tensors(folder / part)[0]
    return tensors, {}


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Fills ``model``; keys that are missing, left over, of another shape or type, not finite raise CheckpointError."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    own = {name: own[name] for name in model.state_dict()}
    problems = {
        "missing": sorted(own.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - own.keys()),
        "of another shape": sorted(k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape),
        "of another type": sorted(
            k for k in own.keys() & tensors.keys() if own[k].is_floating_point() != tensors[k].is_floating_point()
        ),
        "not finite": sorted(k for k, v in tensors.items() if not _is_finite(v)),
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


def no_weights(folder: Path) -> str:
    """Why a folder without weights is not read, and what to do."""
    try:
        pickled = next((path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLES), "")
    except OSError as error:
        return f"cannot read this folder ({error.strerror})"
    if not pickled:
        return f"holds no weights; a model's folder has {WEIGHTS}"
    return pickled_weights(str(folder), pickled)


def pickled_weights(model: str, file: str) -> str:
    """Why the pickled weights of a folder, or of a model on the hub, are not read, and the command that converts."""
    convert = (
        f"import transformers as t; kind = t.AutoConfig.from_pretrained({model!r}).architectures[0]; "
        f"getattr(t, kind).from_pretrained({model!r}).save_pretrained('converted')"
    )
    return (
        f"its weights are pickled ({file}), can run any program and are not read; where you trust them, write them "
        f'as safetensors in the folder "converted" and give that: python -c "{convert}"'
    )


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(24) == b"version https://git-lfs."
    except (OSError, ValueError):
        return False


def _is_finite(tensor: Tensor) -> bool:
    """No value is NaN or infinite, found without a second tensor of this size."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = tensor.aminmax()
    return bool(low.isfinite() and high.isfinite())


def _restore_buffers(model: nn.Module) -> None:
    """Buffers that no file holds: open_clip's causal mask."""
    module: Any
    for module in model.modules():
        if hasattr(module, "build_causal_mask") and getattr(module, "attn_mask", None) is not None:
            module.attn_mask = module.build_causal_mask()
