"""OWL-ViT and OWLv2 checkpoints, as transformers saves them: folders with config.json and safetensors."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from owl_swin.errors import CheckpointError, first_line
from owl_swin.families.owl_preprocess import CLIP_MEAN, CLIP_STD, Owlv2Preprocess, OwlVitPreprocess
from owl_swin.families.weights import load_tensors, read_folder
from owl_swin.files import read_json
from owl_swin.models.network import Pretrained
from owl_swin.models.owl_vit import ACTIVATIONS, OwlVit, OwlVitConfig, TowerConfig
from owl_swin.tokenizer import Tokenizer, clean_text, get_tokenizer, warn_of_cut

# The classes of transformers that save checkpoints of each family.
FAMILIES = {"owlvit": "OwlViTForObjectDetection", "owlv2": "Owlv2ForObjectDetection"}
# Sizes beyond those of any model, at which a damaged config.json would fill the memory before it is refused.
MOST, MOST_LAYERS = 2**24, 1000
# What settings that a config.json leaves out stand for in transformers.
TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
IMAGE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
PATCH_SIZES = {"owlvit": 32, "owlv2": 16}
# OWL-ViT has no objectness: the best answer to these names stands for it.
BROAD_NAMES = (
    *("a person", "an animal", "a bird", "an insect", "a plant", "food", "a vehicle", "furniture", "an appliance"),
    *("an electronic device", "a tool", "clothing", "a bag", "a toy", "a book", "a bottle", "a kitchen utensil"),
    *("sports equipment", "a musical instrument", "a sign", "a building", "a container", "a lamp", "a picture"),
)
# Ids of the tokenizer that stands in where a folder has none.
CLIP_VOCABULARY = 49_408
BROAD_TEMPLATE = "a photo of {}"


def load_owl_vit(folder: Path, settings: Mapping[str, Any], name: str) -> Pretrained:
    """The model of a folder whose config.json holds ``settings``, called ``name``.

    What is missing, damaged, half-downloaded, pickled or of another architecture raises CheckpointError.
    """
    config = read_config(settings, name, where=str(folder / "config.json"))
    with torch.device("meta"):
        network = OwlVit(config)
    load_tensors(network, _read_weights(folder, config.family), str(folder))
    network.eval().requires_grad_(False)
    tokenize = _tokenizer(folder, config)
    if not config.objectness:
        texts = [BROAD_TEMPLATE.format(broad) for broad in BROAD_NAMES]
        with torch.no_grad():
            network.broad_embeds = network.encode_text(tokenize(texts))
    mean, std = _colours(folder)
    family = Owlv2Preprocess if config.objectness else OwlVitPreprocess
    return Pretrained(network, family(config.patch_size, config.image_size, mean, std), tokenize, {"name": name})


def read_config(settings: Mapping[str, Any], name: str, where: str) -> OwlVitConfig:
    """The sizes of a model from its config.json, as transformers reads it."""
    try:
        family = str(settings["model_type"])
        text = {**TEXT, "max_position_embeddings": 16, "vocab_size": 49408, **(settings.get("text_config") or {})}
        image = {**IMAGE, "patch_size": PATCH_SIZES[family], "image_size": 768, **(settings.get("vision_config") or {})}
        config = OwlVitConfig(
            name=name,
            family=family,
            image=_tower(image),
            text=_tower(text),
            image_size=_one_side(image["image_size"]),
            patch_size=_one_side(image["patch_size"]),
            context_length=int(text["max_position_embeddings"]),
            vocab_size=int(text["vocab_size"]),
            embed_dim=int(settings.get("projection_dim", 512)),
            objectness=family == "owlv2",
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: its settings cannot be read ({type(error).__name__}: {error})") from None
    numbers = (config.image_size // max(1, config.patch_size), config.patch_size, config.context_length)
    if not 1 <= min(*numbers, config.vocab_size, config.embed_dim) <= max(*numbers, config.vocab_size) <= MOST:
        raise CheckpointError(f"{where}: its sizes make no model")
    return config


def _tower(settings: Mapping[str, Any]) -> TowerConfig:
    tower = TowerConfig(
        width=int(settings["hidden_size"]),
        mlp_width=int(settings["intermediate_size"]),
        layers=int(settings["num_hidden_layers"]),
        heads=int(settings["num_attention_heads"]),
        activation=str(settings.get("hidden_act", "quick_gelu")),
        norm_eps=float(settings.get("layer_norm_eps", 1e-5)),
    )
    if tower.activation not in ACTIVATIONS:
        raise ValueError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, got {tower.activation!r}")
    if min(tower.width, tower.mlp_width, tower.layers, tower.heads) < 1 or tower.width % tower.heads:
        raise ValueError(f"{tower.heads} heads do not divide a hidden_size of {tower.width}")
    if max(tower.width, tower.mlp_width) > MOST or tower.layers > MOST_LAYERS:
        raise ValueError(f"{tower.layers} layers of {tower.width} are more than any model has")
    return tower


def _one_side(value: Any) -> int:
    sides = {int(side) for side in (value if isinstance(value, (list, tuple)) else [value])}
    if len(sides) != 1:
        raise ValueError(f"a square has one side, got {value}")
    return sides.pop()


def _read_weights(folder: Path, family: str) -> dict[str, Tensor]:
    """float32 tensors under our names."""
    own = {}
    for key, tensor in read_folder(folder)[0].items():
        key = key.removeprefix(f"{family}.")
        if not key.endswith(".position_ids") and key != "box_bias":  # what older versions kept of what they count
            own[key] = tensor.float() if tensor.is_floating_point() else tensor
    return own


def _tokenizer(folder: Path, config: OwlVitConfig) -> Callable[[Sequence[str]], Tensor]:
    """The folder's own tokenizer, or CLIP's."""
    clip = get_tokenizer(config.context_length)
    made: FolderTokenizer | Tokenizer = clip
    known, whose = CLIP_VOCABULARY, "CLIP's tokenizer"
    if not _reads_as_clip(folder, clip):
        made = FolderTokenizer(folder, config.context_length)
        known, whose = made.vocab_size, "its tokenizer"
    if known > config.vocab_size:
        raise CheckpointError(
            f"{folder}: its text encoder knows {config.vocab_size} tokens, but {whose} has {known}; put the tokenizer "
            "that belongs to the model in the folder"
        )
    return made


def _reads_as_clip(folder: Path, clip: Tokenizer) -> bool:
    """Whether the folder has no tokenizer, or the one that is built in: importing transformers takes seconds."""
    if (folder / "tokenizer.json").is_file():
        return False
    path = folder / "vocab.json"
    try:
        return not path.is_file() or clip.has_vocabulary(read_json(path))
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"its tokenizer cannot be read ({error})", of=path) from None


class FolderTokenizer:
    """Ids of the tokenizer that a folder holds. Text that is too long is cut, with one warning, never refused."""

    def __init__(self, folder: Path, context_length: int):
        self.context_length = context_length
        try:
            if (folder / "tokenizer.json").is_file():
                from tokenizers import Tokenizer as Reader

                self._encode = Reader.from_file(str(folder / "tokenizer.json"))
            else:
                from transformers import CLIPTokenizer

                self._encode = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True).backend_tokenizer
            self._encode.no_padding()
            self._encode.no_truncation()
        except Exception as error:  # a damaged file: whatever its reader raises
            reason = first_line(error)
            raise CheckpointError(f"its tokenizer cannot be read ({reason})", of=folder) from None

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return self._encode.get_vocab_size()

    def save(self, path: Path) -> None:
        """Writes it as tokenizer.json."""
        self._encode.save(str(path))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids [N, context_length], int64."""
        ids = torch.zeros((len(texts), self.context_length), dtype=torch.long)
        found = self._encode.encode_batch([clean_text(text) for text in texts])
        cut = []
        for text, row, out in zip(texts, (one.ids for one in found), ids, strict=True):
            if len(row) > self.context_length:
                cut.append(text)
                row = [*row[: self.context_length - 1], row[-1]]
            out[: len(row)] = torch.tensor(row, dtype=torch.long)
        warn_of_cut(cut, self.context_length)
        return ids


def _colours(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of colours that the folder's preprocessing names, or CLIP's."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        path = folder / "processor_config.json"  # where transformers 5 writes the same
    if not path.is_file():
        return CLIP_MEAN, CLIP_STD
    try:
        settings = read_json(path)
        settings = settings.get("image_processor", settings)
        mean, std = (
            tuple(float(value) for value in settings.get(key, default))
            for key, default in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD))
        )
    except (OSError, json.JSONDecodeError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise CheckpointError(f"{path}: image_mean and image_std must be three numbers each, got {mean} and {std}")
    return mean, std
