"""Our own models: one safetensors file that holds weights, configuration and model card."""

import difflib
import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

from owl_swin.config import ModelConfig, from_mapping, to_mapping
from owl_swin.errors import CheckpointError, ConfigError, brief
from owl_swin.families.hub import local_place, near_published
from owl_swin.families.weights import (
    ROW_SCALE,
    WEIGHTS,
    dequantise,
    load_tensors,
    no_weights,
    quantise_rows,
    read_tensors,
)
from owl_swin.files import near_name, read_json, write_safetensors
from owl_swin.frame import SwinPreprocess
from owl_swin.models.layout import without_values
from owl_swin.models.network import Pretrained
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.tokenizer import get_tokenizer

FORMAT = "owl_swin-1"
SHIPPED = ("nano",)


def save_checkpoint(
    path: str | Path, model: OwlSwin, card: Mapping[str, Any], *, int8: bool = True, exact: bool = False
) -> None:
    """Writes model and card to ``path``, whole or not at all: small tensors as float16, large ones as int8 rows, or all
    of them as they are (``exact``)."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu()
        if exact:
            tensors[name] = tensor.clone().contiguous()  # a tensor that has two names is written twice
        elif int8 and tensor.ndim >= 2 and tensor.numel() >= 4096 and "bias_table" not in name:
            tensors[name], tensors[name + ROW_SCALE] = quantise_rows(tensor)
        else:
            tensors[name] = tensor.half().contiguous()
    metadata = {"format": FORMAT, "config": json.dumps(to_mapping(model.config)), "card": _card_text(card)}
    write_safetensors(Path(path), tensors, metadata, what="the model", error=CheckpointError)


def replace_card(path: Path, card: Mapping[str, Any]) -> None:
    """Puts another card in the place of that of a model's file; the weights stay as they are, to the bit."""
    tensors, metadata = read_tensors(path)
    metadata["card"] = _card_text(card)
    write_safetensors(path, tensors, metadata, what="the model", error=CheckpointError)


def _card_text(card: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(card), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"a model card holds texts, numbers, lists and tables of these ({error})") from None


def load_checkpoint(source: str | Path = "nano") -> tuple[OwlSwin, dict[str, Any]]:
    """The model, in evaluation mode, and its card, from a name that ships or a file or a folder with model.safetensors.

    A file that is damaged, cut off, no safetensors, or of another architecture raises CheckpointError.
    """
    path = checkpoint_path(source)
    tensors, metadata = read_tensors(path)
    config, card = _described(path, metadata)
    with without_values():
        model = OwlSwin(config)
    load_tensors(model, dequantise(tensors, str(path)), str(path))
    return model.eval().requires_grad_(False), card


def settings_of(config: ModelConfig, card: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of a model: its kind, its configuration and its card."""
    kind = {"model_type": "owl_swin", "architectures": ["OwlSwin"], "format": FORMAT}
    return {**kind, "config": to_mapping(config), "card": dict(card)}


def _described(path: Path, metadata: Mapping[str, str]) -> tuple[ModelConfig, dict[str, Any]]:
    """Configuration and card of a model, from its file; from config.json beside it where other programs that wrote the
    weights again left them out."""
    beside, found = path.with_name("config.json"), metadata.get("format")
    try:
        if found == FORMAT:
            held: Any = {key: json.loads(metadata[key]) for key in ("config", "card")}
        else:
            held = read_json(beside) if beside.is_file() else None
            if not isinstance(held, dict) or held.get("format") != FORMAT:
                kind = held.get("model_type") if isinstance(held, dict) else None
                other = f"; it is of the kind {brief(kind)}" if kind else ", and no config.json beside it says its kind"
                raise CheckpointError(f"{path}: holds no owl_swin model (format {found!r}, expected {FORMAT!r}){other}")
        config, card = from_mapping(ModelConfig, held["config"], where=str(path)), held["card"]
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    except (OSError, KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: its configuration cannot be read ({error})") from None
    if not isinstance(card, dict):
        raise CheckpointError(f"{path}: its model card must be a JSON object, got {type(card).__name__}")
    return config, card


def load_owl_swin(source: str | Path = "nano") -> Pretrained:
    """The model of ``load_checkpoint`` with all that a Detector needs."""
    model, card = load_checkpoint(source)
    return pretrained(model, card)


def pretrained(model: OwlSwin, card: Mapping[str, Any] | None = None) -> Pretrained:
    """A model of ours with its preprocessing and tokenizer."""
    text = model.config.text
    return Pretrained(
        model,
        SwinPreprocess(model.config.exemplar_stride),
        get_tokenizer(text.context_length, text.open_clip),
        card or {},
        OwlSwin.attention,
    )


def checkpoint_path(source: str | Path) -> Path:
    """The file behind a name that ships, a file, a folder, or a name on the hub."""
    if str(source) in SHIPPED:
        return Path(str(files("owl_swin") / "weights" / f"{source}.safetensors"))
    path = Path(local_place(source))
    text, is_folder, is_file = str(source), False, False
    with suppress(OSError, ValueError):  # no possible path
        is_folder = path.is_dir() and text != ""
        is_file = (path / WEIGHTS if is_folder else path).is_file()
    if is_file:
        return path / WEIGHTS if is_folder else path
    if is_folder:
        raise CheckpointError(no_weights(path), of=source)
    near = (*difflib.get_close_matches(text, SHIPPED, n=1), near_name(text) or near_published(text))[0]
    hint = f" (did you mean {near}?)" if near else ""
    raise CheckpointError(
        f"no such model{hint}; give a .safetensors file, a folder with {WEIGHTS}, a name on the Hugging Face hub as "
        f"user/model, or {', '.join(SHIPPED)}",
        of=source if text.strip() and text.isprintable() else repr(text),
    )
