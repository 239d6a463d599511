"""Weights to start from, and mixing them back in at the end."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_swin.config import CalibrationConfig, from_mapping
from owl_swin.errors import CheckpointError, ConfigError
from owl_swin.families.owl_swin import checkpoint_path
from owl_swin.families.swin_dialects import TABLE
from owl_swin.families.weights import dequantise, read_tensors
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.models.stem import published_stem
from owl_swin.models.swin import SwinBlock
from owl_swin.training.state import has_blend


def load_init(model: OwlSwin, source: str) -> set[str]:
    """Starts from weights, and returns the names of the tensors that were there; ``source`` as in TrainConfig.init.

    Parts that the source does not hold stay as they are. Windows may be of another size: the biases of offsets that
    the source knows are kept, and those farther apart begin as the nearest that it knows. Any other tensor of another
    shape, or a file without any, is refused.
    """
    kind, _, name = source.partition(":")
    if kind == "swin" and name:
        return _load(model, {f"image_encoder.{k}": v for k, v in _published_swin(model, name).items()}, source)
    if kind == "stem" and name:
        if model.config.image.stem == "patch":
            raise ConfigError(f"{source}: this model has no stem; set image.stem to a network of timm")
        given = None if name == "timm" else read_tensors(Path(name))[0]
        tensors = published_stem(model.config.image.stem, given)
        return _load(model, {f"image_encoder.stem.network.{k}": v for k, v in tensors.items()}, source)
    if kind == "text" and name:
        tensors = dequantise(read_tensors(checkpoint_path(_weights_of(name)))[0], name)
        return _load(model, {k: v for k, v in tensors.items() if k.startswith("text_encoder.")}, source)
    if kind == "open_clip" and name:
        return _load(model, {f"text_encoder.tower.{k}": v for k, v in _published_text(model, name).items()}, source)
    tensors = dequantise(read_tensors(checkpoint_path(_weights_of(source)))[0], source)
    if any(key.startswith("ema.") for key in tensors):
        tensors = {k.removeprefix("ema."): v for k, v in tensors.items() if k.startswith("ema.")}
    elif any(key.startswith("tower.") for key in tensors):
        tensors = {f"text_encoder.{k}": v for k, v in tensors.items()}
    return _load(model, tensors, source)


def _weights_of(source: str) -> str:
    """A run's folder means its state, which has all the digits that model.safetensors rounds away; that of a run with
    ``blend`` means the latter, since its state is what was trained alone."""
    state, result = Path(source) / "state.safetensors", Path(source) / "model.safetensors"
    if not state.is_file():
        return source
    return str(result if result.is_file() and has_blend(state) else state)


def _load(model: OwlSwin, tensors: dict[str, Tensor], source: str) -> set[str]:
    own = model.state_dict()
    if model.masks is None:  # a model of boxes begins with those of one that has masks too
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("masks.")}
    tensors = {k: _rewindowed(v, own[k].shape) if k in own and k.endswith(TABLE) else v for k, v in tensors.items()}
    wrong = [k for k, v in tensors.items() if k not in own or own[k].shape != v.shape]
    if wrong or not tensors:
        raise CheckpointError(f"{source}: does not fit this model; first misfit: {wrong[:3] or 'no tensors'}")
    model.load_state_dict(tensors, strict=False)
    return set(tensors)


def _rewindowed(table: Tensor, shape: torch.Size) -> Tensor:
    """A table [(2 w - 1)², heads] of relative position bias for windows of another size → one of ``shape``. Its middle
    keeps the same offsets; the published way, stretching it (Swin's bicubic interpolation), moves all of them."""
    if table.ndim != 2 or table.shape[1] != shape[1]:
        return table
    old, new = math.isqrt(table.shape[0]), math.isqrt(shape[0])
    if old == new or old % 2 == 0 or old * old != table.shape[0]:
        return table
    missing = (new - old) // 2  # below 0 for smaller windows
    grid = table.T.reshape(1, -1, old, old)
    return F.pad(grid.float(), (missing,) * 4, mode="replicate").to(table).reshape(-1, new * new).T.contiguous()


@torch.no_grad()
def start_new_blocks(model: OwlSwin, given: Set[str]) -> None:
    """Lets Swin blocks of which nothing was ``given``, in a stage of which other blocks were, hand on what comes in."""
    parameters = dict(model.named_parameters())
    for name in _last_of_new_blocks(model, given):
        parameters[name].zero_()


def _last_of_new_blocks(model: OwlSwin, given: Set[str]) -> set[str]:
    """Names of the parameters through which those blocks add to what comes in."""
    names: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, SwinBlock):
            held = [any(key.startswith(f"{part}.") for key in given) for part in (name, name.rpartition(".")[0])]
            if held == [False, True]:
                last = f"mlp.{len(module.mlp) - 1}"
                names |= {f"{name}.{layer}.{kind}" for layer in ("attn.proj", last) for kind in ("weight", "bias")}
    return names


# Before a colon: of what the rest of a source is a part.
PARTS = ("swin", "stem", "text", "open_clip")
SIZES_OF_SWIN = ("patch_size", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio")


def _published_swin(model: OwlSwin, name: str) -> dict[str, Tensor]:
    from owl_swin.families.swin_weights import load_swin

    image = model.config.image
    if image.stem != "patch":
        raise ConfigError(f"swin:{name}: this model has a stem in place of a Swin's first stages (image.stem)")
    published = load_swin(name, padding=image.padding)
    sizes = {key: getattr(published.config, key) for key in SIZES_OF_SWIN}
    if other := {key: size for key, size in sizes.items() if size != getattr(image, key)}:
        said = ", ".join(f"{key} = {list(size) if isinstance(size, tuple) else size}" for key, size in other.items())
        raise ConfigError(f"swin:{name}: is a Swin of {said}; set these under [image] of the model's configuration")
    return published.state_dict()


def _published_text(model: OwlSwin, name: str) -> dict[str, Tensor]:
    import open_clip

    architecture, _, tag = name.partition("/")
    if not tag or model.config.text.open_clip != architecture:
        raise ConfigError(
            f"open_clip:{name}: write open_clip:MODEL/TAG with the MODEL that the model's text.open_clip names "
            f"({model.config.text.open_clip or 'none here'})"
        )
    published = open_clip.create_model(architecture, pretrained=tag)
    text = published.text if hasattr(published, "text") else None
    if text is not None:
        return text.state_dict()
    own = model.text_encoder.tower.state_dict()  # open_clip's CLIP class keeps the text tower's parts at its top
    return {key: value for key, value in published.state_dict().items() if key in own}


def copy_pooled_to_class_head(model: OwlSwin) -> None:
    """Lets every patch start from the picture-wide projection that alignment has learned."""
    model.class_head.embed.load_state_dict(model.image_projection.state_dict())


def calibration_of(sources: Sequence[str]) -> CalibrationConfig | None:
    """The calibration of the last of the weights to start from that are a whole model; None where none is."""
    for source in reversed(sources):
        if source.partition(":")[0] in PARTS and ":" in source:
            continue
        metadata = read_tensors(checkpoint_path(_weights_of(source)))[1]
        try:
            said = metadata.get("config")
            config = json.loads(metadata["settings"])["model_config"] if said is None else json.loads(said)
            return from_mapping(CalibrationConfig, config["calibration"], where=source)
        except (KeyError, TypeError, ValueError):  # a text tower, or weights that others wrote
            continue
    return None


def start_masks(model: OwlSwin, given: set[str]) -> None:
    """Lets a mask branch of which nothing was ``given`` say of each place what its patch says of its box."""
    if model.masks is not None and not any(name.startswith("masks.") for name in given):
        model.masks.dense_head.load_state_dict(model.class_head.state_dict())


def old_weights(model: OwlSwin, given: Set[str]) -> dict[str, Tensor]:
    """The parameters that a blend takes back to where they are now, before any step; ``given`` are the names of those
    that weights to start from held.

    What began at random is not among them, since a mean of weights and noise is no model. A block that is new between
    heads or in a stage that are not goes back to the identity: its last layers, which began at zero, are among them.
    """
    last_layers = {f"head_blocks.{name}" for name, _ in model.head_blocks.named_parameters() if ".reduce." in name}
    back = given | last_layers if any(name.startswith("class_head.") for name in given) else set(given)
    back |= _last_of_new_blocks(model, given)
    return {name: p.detach() for name, p in model.named_parameters() if name in back}


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """By which the same names and values are known again: hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)};".encode())
        digest.update(tensor.cpu().float().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


@torch.no_grad()
def blended(trained: dict[str, Tensor], old: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights between the trained and the old ones: ``share`` 0 is all trained, 1 all old."""
    mixed = {
        key: torch.lerp(trained[key].float(), value.to(trained[key].device).float(), share)
        for key, value in old.items()
    }
    return {**trained, **mixed}
