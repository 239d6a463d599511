"""Published Swin weights, under the names of torchvision, timm, transformers and Microsoft, read into SwinEncoder."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from owl_swin.config import SwinConfig
from owl_swin.errors import CheckpointError, ConfigError
from owl_swin.families.weights import load_tensors, read_tensors
from owl_swin.models.layout import without_values
from owl_swin.models.swin import SwinEncoder

# Table 7 of arXiv:2103.14030.
SWIN_SIZES = {
    "T": SwinConfig(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "S": SwinConfig(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "B": SwinConfig(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    "L": SwinConfig(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
}

# What each library calls our modules. In "stages" and "merges", {odd} and {even} are 2 * stage + 1 and + 2.
TORCHVISION = {
    "patch_embed": "features.0.0",
    "patch_norm": "features.0.2",
    "stages": "features.{odd}.{block}",
    "merges": "features.{even}",
    "norm": "norm",
    "norm1": "norm1",
    "attn": "attn",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "norm2": "norm2",
    "mlp.0": "mlp.0",
    "mlp.2": "mlp.3",
}
TIMM = TORCHVISION | {
    "patch_embed": "patch_embed.proj",
    "patch_norm": "patch_embed.norm",
    "stages": "layers.{stage}.blocks.{block}",
    "merges": "layers.{next}.downsample",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
MICROSOFT = TIMM | {"merges": "layers.{stage}.downsample"}
TRANSFORMERS = {
    "patch_embed": "embeddings.patch_embeddings.projection",
    "patch_norm": "embeddings.norm",
    "stages": "encoder.layers.{stage}.blocks.{block}",
    "merges": "encoder.layers.{stage}.downsample",
    "norm": "layernorm",
    "norm1": "layernorm_before",
    "attn": "attention.relative_position_bias",
    "attn.qkv": "attention.q_proj attention.k_proj attention.v_proj",
    "attn.proj": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
# transformers' files keep the names that its modules had before version 5.
TRANSFORMERS_FILES = TRANSFORMERS | {
    "attn": "attention.self",
    "attn.qkv": "attention.self.query attention.self.key attention.self.value",
    "attn.proj": "attention.output.dense",
    "mlp.0": "intermediate.dense",
    "mlp.2": "output.dense",
}

TABLE = "relative_position_bias_table"
# Classifiers, SimMIM's decoder and mask, and buffers that follow from the window size.
LEFT_OUT = re.compile(
    r"(head|classifier|decoder|pooler|hidden_states_norms)\."
    r"|.*(relative_position_index|attn_mask|mask_token)$"
)
SWIN_V2 = re.compile(r"logit_scale|cpb_mlp|meta_mlp|continuous_position_bias_mlp")


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
        padding=_library(name_or_size),
    )


def load_swin(source: str | Path, *, padding: str | None = None, drop_path_rate: float = 0.0) -> SwinEncoder:
    """An encoder with the weights of ``source``, in evaluation mode.

    ``source`` is a .safetensors file, a folder with model.safetensors, or a name that is downloaded:
    "torchvision/swin_t", "timm/swin_tiny_patch4_window7_224.ms_in1k", "microsoft/swin-tiny-patch4-window7-224".
    ``padding``: None repeats the library that the weights come from; "masked" is ours (see SwinConfig).
    """
    path = _local_file(source)
    tensors = read_tensors(path)[0] if path else _download(str(source))
    try:
        config = replace(infer_config(tensors), drop_path_rate=drop_path_rate)
        config = replace(config, padding=padding) if padding else config
        weights = convert_state_dict(tensors, config)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    with without_values():
        encoder = SwinEncoder(config)
    load_tensors(encoder, weights, str(source))
    return encoder.eval()


def infer_config(tensors: Mapping[str, Tensor]) -> SwinConfig:
    """The config that the shapes tell; ``padding`` is the library whose key names these are."""
    layout, prefix = _detect_layout(tensors)
    library = "torchvision" if layout is TORCHVISION else "timm" if layout in (TIMM, MICROSOFT) else "transformers"

    def shape(name: str, axes: int) -> tuple[int, ...]:
        key = prefix + _published_keys(name, layout)[0]
        if key not in tensors:
            raise CheckpointError(f"these Swin weights are incomplete; missing: {key}")
        if tensors[key].ndim != axes or 0 in tensors[key].shape:
            raise CheckpointError(f"{key} must have {axes} axes, got shape {list(tensors[key].shape)}")
        return tuple(tensors[key].shape)

    embed_dim, colours, patch_size, patch_width = shape("patch_embed.weight", 4)
    if colours != 3 or patch_size != patch_width:
        raise CheckpointError(f"patches must be square with 3 colours, got {patch_size}x{patch_width} with {colours}")
    depths = _depths(tensors, layout, prefix)
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
            padding=library,
        )
    except ConfigError as error:
        raise CheckpointError(f"the shapes of these weights make no Swin Transformer ({error})") from None


def convert_state_dict(tensors: Mapping[str, Tensor], config: SwinConfig) -> dict[str, Tensor]:
    """The same weights, float32, under the names of ``SwinEncoder(config)``; classifiers and buffers are left out.

    Keys that are missing, left over or of another shape than ``config`` asks for raise CheckpointError.
    """
    layout, prefix = _detect_layout(tensors)
    with without_values():
        expected = SwinEncoder(config).state_dict()
    sources = {name: [prefix + key for key in _published_keys(name, layout)] for name in expected}
    used = {key for keys in sources.values() for key in keys}
    misshapen = []
    for name, keys in sources.items():
        want = [expected[name].shape[0] // len(keys), *expected[name].shape[1:]]
        misshapen += [
            f"{key} {list(tensors[key].shape)} instead of {want}"
            for key in keys
            if key in tensors and list(tensors[key].shape) != want
        ]
    problems = {
        "missing": sorted(used - tensors.keys()),
        "unexpected": sorted(k for k in tensors.keys() - used if not LEFT_OUT.match(k.removeprefix(prefix))),
        "of another shape": misshapen,
    }
    found = [f"{problem}: {_first_few(keys)}" for problem, keys in problems.items() if keys]
    if found:
        raise CheckpointError(f"weights do not fit this Swin encoder; {'; '.join(found)}")
    return {
        name: torch.cat([tensors[key] for key in keys]).float() if len(keys) > 1 else tensors[keys[0]].float()
        for name, keys in sources.items()
    }


def _detect_layout(tensors: Mapping[str, Tensor]) -> tuple[dict[str, str], str]:
    """The table of names that fits the keys, and the prefix that stands before all of them."""
    if any(SWIN_V2.search(key) for key in tensors):
        raise CheckpointError("these are weights of Swin Transformer V2, another architecture; give a Swin (V1) model")
    prefix = "swin." if any(key.startswith("swin.") for key in tensors) else ""
    keys = {key.removeprefix(prefix) for key in tensors}
    if "features.0.0.weight" in keys:
        return TORCHVISION, prefix
    if "patch_embed.proj.weight" in keys:
        return MICROSOFT if "layers.0.downsample.reduction.weight" in keys else TIMM, prefix
    if "embeddings.patch_embeddings.projection.weight" in keys:
        return TRANSFORMERS_FILES if any(".attention.self." in key for key in keys) else TRANSFORMERS, prefix
    some = _first_few(sorted(keys)) or "nothing"
    raise CheckpointError(f"not Swin weights of torchvision, timm or transformers; the keys are: {some}")


def _published_keys(name: str, layout: Mapping[str, str]) -> list[str]:
    """Where a library keeps our parameter ``name``: one key, or three where it keeps q, k and v apart."""
    place = re.fullmatch(r"(stages|merges)\.(\d+)\.(?:(\d+)\.)?(.+)", name)
    if place is None:
        module, _, leaf = name.rpartition(".")
        return [f"{layout[module]}.{leaf}"]
    part, stage, block, rest = place[1], int(place[2]), place[3], place[4]
    start = layout[part].format(stage=stage, block=block, next=stage + 1, odd=2 * stage + 1, even=2 * stage + 2)
    if part == "merges":  # the one part that has the same names everywhere
        return [f"{start}.{rest}"]
    module, _, leaf = rest.rpartition(".")
    return [f"{start}.{key}.{leaf}" for key in layout[module].split()]


def _depths(tensors: Mapping[str, Tensor], layout: Mapping[str, str], prefix: str) -> tuple[int, ...]:
    pattern = re.escape(prefix + layout["stages"]).replace(r"\{block\}", r"(\d+)")
    pattern = pattern.replace(r"\{odd\}", r"(\d*[13579])").replace(r"\{stage\}", r"(\d+)")
    places = {(int(m[1]), int(m[2])) for m in (re.match(pattern + r"\.", key) for key in tensors) if m}
    if layout is TORCHVISION:
        places = {(odd // 2, block) for odd, block in places}
    blocks: dict[int, list[int]] = {}
    for stage, block in sorted(places):
        blocks.setdefault(stage, []).append(block)
    if not blocks or list(blocks) != list(range(len(blocks))) or any(b != list(range(len(b))) for b in blocks.values()):
        raise CheckpointError(f"whole blocks of this Swin encoder are missing; there are, stage by stage, {blocks}")
    return tuple(len(b) for b in blocks.values())


def _local_file(source: str | Path) -> Path | None:
    """The weights file that ``source`` means; None if it is a name to download."""
    path = Path(source)
    try:
        path = path / "model.safetensors" if path.is_dir() else path
        if path.is_file():
            return path
    except (OSError, ValueError):  # no possible path, so no name either
        pass
    if path.suffix in (".safetensors", ".pt", ".pth", ".bin") or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)):
        raise CheckpointError(
            f"{source}: no such file; give a .safetensors file, a folder with model.safetensors, "
            "or a name like torchvision/swin_t, timm/swin_tiny_patch4_window7_224 or "
            "microsoft/swin-tiny-patch4-window7-224"
        )
    return None


def _library(name: str) -> str:
    owner = name.split("/")[0]
    return owner if owner in ("torchvision", "timm") else "transformers"


def _download(name: str) -> dict[str, Tensor]:
    library, model = _library(name), name.split("/")[1]
    if re.match(r"swin_?v2", model):
        raise CheckpointError(f"{name}: is a Swin Transformer V2, another architecture; give a Swin (V1) model")
    if library != "transformers" and not model.startswith("swin_"):
        raise CheckpointError(f"{name}: is no Swin Transformer; {library}'s have names that start with swin_")
    fetch = {"torchvision": _from_torchvision, "timm": _from_timm, "transformers": _from_transformers}[library]
    try:
        return fetch(name if library == "transformers" else model)
    except CheckpointError:
        raise
    except Exception as error:  # each library fails with errors of its own and of its HTTP client
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{name}: {library} cannot provide these weights ({reason})") from None


def _from_torchvision(name: str) -> dict[str, Tensor]:
    from torchvision.models import get_model

    return get_model(name, weights="DEFAULT").state_dict()


def _from_timm(name: str) -> dict[str, Tensor]:
    import timm

    return timm.create_model(name, pretrained=True).state_dict()


def _from_transformers(name: str) -> dict[str, Tensor]:
    from transformers import AutoConfig, SwinModel

    kind = AutoConfig.from_pretrained(name).model_type
    if kind != "swin":  # SwinModel would take it and start from random weights
        raise CheckpointError(f"{name}: is a model of the kind '{kind}', not 'swin'")
    model, report = SwinModel.from_pretrained(name, use_safetensors=True, output_loading_info=True)
    if report["missing_keys"]:
        raise CheckpointError(
            f"{name}: weights do not fit the model; missing: {_first_few(sorted(report['missing_keys']))}"
        )
    return model.state_dict()


def _first_few(items: list[str]) -> str:
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")
