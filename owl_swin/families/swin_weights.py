"""Published Swin weights, alone or inside of a detector, read into SwinEncoder; swin_dialects.py has their names."""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from owl_swin.config import SwinConfig
from owl_swin.errors import CheckpointError, ConfigError
from owl_swin.families.hub import CONFIG_AND_WEIGHTS, fetch_snapshot, is_hub_name
from owl_swin.families.swin_dialects import BESIDE, TABLE, SwinKeys, find_swin, first_few
from owl_swin.families.swin_libraries import fetch_from_library, library_of, timm_name
from owl_swin.families.weights import load_tensors, read_folder, read_tensors
from owl_swin.models.layout import without_values
from owl_swin.models.swin import SwinEncoder

logger = logging.getLogger("owl_swin")

# Table 7 of arXiv:2103.14030.
SWIN_SIZES = {
    "T": SwinConfig(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "S": SwinConfig(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "B": SwinConfig(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    "L": SwinConfig(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
}


def swin_config(name_or_size: str) -> SwinConfig:
    """Sizes of "T", "S", "B" or "L" (window 7, our padding), or of a published name such as
    "microsoft/swin-base-patch4-window12-384" or "torchvision/swin_t" (window in the name, padding of that library).
    """
    if name_or_size in SWIN_SIZES:
        return SWIN_SIZES[name_or_size]
    size = re.search(r"(?:^|/)swin[_-](tiny|small|base|large|[tsbl])(?:[_-]|$)", name_or_size)
    if "/" not in name_or_size or size is None:
        raise ConfigError(
            f"{name_or_size}: no Swin size; give {', '.join(SWIN_SIZES)}, "
            "or a name like microsoft/swin-tiny-patch4-window7-224"
        )
    window = re.search(r"window(\d+)", name_or_size)
    return replace(
        SWIN_SIZES[size[1][0].upper()],
        window_size=int(window[1]) if window else 7,
        padding=library_of(name_or_size),
    )


def load_swin(
    source: str | Path,
    *,
    padding: str | None = None,
    drop_path_rate: float = 0.0,
    revision: str | None = None,
    token: str | bool | None = None,
) -> SwinEncoder:
    """An encoder with the weights of ``source``, in evaluation mode.

    ``source`` is a .safetensors file, a model's folder, or a name that is downloaded: "torchvision/swin_t",
    "timm/swin_tiny_patch4_window7_224.ms_in1k", "microsoft/swin-tiny-patch4-window7-224". Where the Swin is a part of
    another model, as in "IDEA-Research/grounding-dino-tiny", the rest is left out and one line in the log says so; its
    last map is then normalised as that model wants it.
    ``padding``: None repeats the library that the weights come from; "masked" is ours (see SwinConfig).
    ``revision`` and ``token`` are those of a model on the hub.
    """
    tensors = _read(source, revision, token)
    encoder, found, left_out = swin_of(tensors, source, padding=padding, drop_path_rate=drop_path_rate)
    if left_out or found.norm is None:
        logger.warning("%s: %s", source, _said(tensors, found, left_out))
    return encoder


def swin_of(
    tensors: Mapping[str, Tensor], source: object, *, padding: str | None = None, drop_path_rate: float = 0.0
) -> tuple[SwinEncoder, SwinKeys, list[str]]:
    """The encoder among the tensors of a file, in evaluation mode, where it was, and the keys that are no part of it.

    ``source`` is what the file is called where it holds no Swin, or not all of one, which raises CheckpointError.
    """
    try:
        found = find_swin(tensors)
        config = replace(_config_of(tensors, found), drop_path_rate=drop_path_rate)
        config = replace(config, padding=padding) if padding else config
        weights, left_out = _converted(tensors, found, config)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    with without_values():
        encoder = SwinEncoder(config)
    load_tensors(encoder, weights, str(source))
    return encoder.eval(), found, left_out


def infer_config(tensors: Mapping[str, Tensor]) -> SwinConfig:
    """The config that the shapes tell; ``padding`` is the library whose key names these are."""
    return _config_of(tensors, find_swin(tensors))


def convert_state_dict(tensors: Mapping[str, Tensor], config: SwinConfig) -> dict[str, Tensor]:
    """The Swin among ``tensors``, float32, under the names of ``SwinEncoder(config)``; all else is left out.

    Keys that are missing, left over or of another shape than ``config`` asks for raise CheckpointError.
    """
    return _converted(tensors, find_swin(tensors), config)[0]


def _config_of(tensors: Mapping[str, Tensor], found: SwinKeys) -> SwinConfig:
    def shape(name: str, axes: int) -> tuple[int, ...]:
        key = found.keys_of(name)[0]
        if key not in tensors:
            raise CheckpointError(f"these Swin weights are incomplete; missing: {key}")
        if tensors[key].ndim != axes or 0 in tensors[key].shape:
            raise CheckpointError(f"{key} must have {axes} axes, got shape {list(tensors[key].shape)}")
        return tuple(tensors[key].shape)

    embed_dim, colours, patch_size, patch_width = shape("patch_embed.weight", 4)
    if colours != 3 or patch_size != patch_width:
        raise CheckpointError(f"patches must be square with 3 colours, got {patch_size}x{patch_width} with {colours}")
    depths = found.depths
    tables = [shape(f"stages.{i}.{j}.attn.{TABLE}", 2) for i, depth in enumerate(depths) for j in range(depth)]
    sides = sorted({round(table[0] ** 0.5) for table in tables})
    windows = [(side + 1) // 2 for side in sides]
    if len(windows) > 1:
        raise CheckpointError(f"blocks with windows of different sizes {windows} are not supported (Swin-S3 has them)")
    try:
        return SwinConfig(
            embed_dim=embed_dim,
            depths=depths,
            num_heads=tuple(shape(f"stages.{i}.0.attn.{TABLE}", 2)[1] for i in range(len(depths))),
            window_size=windows[0],
            patch_size=patch_size,
            mlp_ratio=shape("stages.0.0.mlp.0.weight", 2)[0] / embed_dim,
            padding=found.padding,
        )
    except ConfigError as error:
        raise CheckpointError(f"the shapes of these weights make no Swin Transformer ({error})") from None


def _converted(
    tensors: Mapping[str, Tensor], found: SwinKeys, config: SwinConfig
) -> tuple[dict[str, Tensor], list[str]]:
    """The Swin's weights under our names, and the keys of what is no part of it."""
    with without_values():
        expected = SwinEncoder(config).state_dict()
    sources = {name: found.keys_of(name) for name in expected}
    used = {key for keys in sources.values() for key in keys}
    misshapen = []
    for name, keys in sources.items():
        want = [expected[name].shape[0] // max(len(keys), 1), *expected[name].shape[1:]]
        misshapen += [
            f"{key} {list(tensors[key].shape)} instead of {want}"
            for key in keys
            if key in tensors and list(tensors[key].shape) != want
        ]
    rest = sorted(k for k in tensors.keys() - used if not BESIDE.match(k.removeprefix(found.prefix)))
    unexpected = [key for key in rest if key.startswith(found.prefix)]
    problems = {"missing": sorted(used - tensors.keys()), "unexpected": unexpected}
    said = [
        f"{problem}: {first_few(keys)}"
        for problem, keys in (problems | {"of another shape": misshapen}).items()
        if keys
    ]
    if said:
        raise CheckpointError(f"weights do not fit this Swin encoder; {'; '.join(said)}")
    weights = {}
    for name, keys in sources.items():
        parts = [tensors[key].float() for key in keys]
        plain = torch.ones if name.endswith("weight") else torch.zeros  # a norm that is nowhere
        weights[name] = torch.cat(parts) if len(parts) > 1 else parts[0] if parts else plain(expected[name].shape)
    return weights, rest


def _said(tensors: Mapping[str, Tensor], found: SwinKeys, left_out: list[str]) -> str:
    """What was read of a file that holds more, or less, than a Swin."""
    where = f" under {found.prefix.rstrip('.')}" if found.prefix else ""
    said = f"its Swin{where} is read"
    if left_out:
        parts = list(dict.fromkeys(".".join(key.split(".")[:2]) for key in left_out))
        said += f" and {len(left_out)} of {len(tensors)} tensors are left out ({first_few(parts)})"
    return said if found.norm else f"{said}; it has no norm of its last map, which starts as none was learned"


def _read(source: str | Path, revision: str | None, token: str | bool | None) -> dict[str, Tensor]:
    """The tensors of a file, a folder, or a name that is downloaded."""
    path = Path(source)
    try:
        if path.is_dir() and source != "":
            return read_folder(path)[0]
        if path.is_file():
            return read_tensors(path)[0]
    except (OSError, ValueError) as error:  # no possible path, so no name either
        if isinstance(error, CheckpointError):
            raise
    name = timm_name(str(source))
    if not is_hub_name(name):
        raise CheckpointError(
            f"{source}: no such file; give a .safetensors file, a folder with model.safetensors, "
            "or a name like torchvision/swin_t, timm/swin_tiny_patch4_window7_224 or "
            "microsoft/swin-tiny-patch4-window7-224"
        )
    return _download(name, revision, token)


def _download(name: str, revision: str | None, token: str | bool | None) -> dict[str, Tensor]:
    if re.match(r"swin_?v2", name.split("/")[1]):
        raise CheckpointError(f"{name}: is a Swin Transformer V2, another architecture; give a Swin (V1) model")
    if library_of(name) == "transformers":
        return read_folder(fetch_snapshot(name, revision=revision, token=token, wanted=CONFIG_AND_WEIGHTS), name)[0]
    return fetch_from_library(name).tensors
