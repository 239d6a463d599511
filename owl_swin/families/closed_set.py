"""Published Swin networks with a fixed list of classes: UPerNet of transformers, classifiers of all three libraries."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from owl_swin.closed_set import ImageClassifier, ImageSegmenter
from owl_swin.devices import pick_device
from owl_swin.errors import CheckpointError, brief
from owl_swin.families.hub import CONFIG_AND_WEIGHTS, fetch_snapshot, is_hub_name
from owl_swin.families.owl_swin import SHIPPED
from owl_swin.families.picture_settings import PictureSettings, of_timm, of_transformers
from owl_swin.families.swin_libraries import fetch_from_library, library_of, timm_name
from owl_swin.families.swin_weights import swin_of
from owl_swin.families.weights import load_tensors, read_folder, read_tensors
from owl_swin.files import read_json
from owl_swin.models.closed_set import Classifier, Segmenter
from owl_swin.models.layout import without_values
from owl_swin.models.pixel_decoders import UperDecoder

PICTURES = "preprocessor_config.json"
# What transformers calls the parts of UperDecoder, and what we call the layers of its convolutions.
UPER_PARTS = {
    "pools": "psp_modules",
    "pyramid": "bottleneck",
    "laterals": "lateral_convs",
    "smooth": "fpn_convs",
    "fuse": "fpn_bottleneck",
}
# Where classifiers have their last layer: timm's of today, its older ones and torchvision, transformers.
HEADS = ("head.fc", "head", "classifier")
# The side that published networks see: most classifiers, and segmenters trained on ADE20K.
CLASSIFIED, SEGMENTED = 224, 512


@dataclass(frozen=True, slots=True)
class _Published:
    """What a folder, file or name holds: tensors, what its files say, and what its library says where no file does."""

    tensors: dict[str, Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    settings: PictureSettings | None = None


def load_segmenter(
    source: str | Path, *, device: str = "auto", revision: str | None = None, token: str | bool | None = None
) -> ImageSegmenter:
    """transformers' UPerNet on a Swin, as "openmmlab/upernet-swin-tiny": a name on the hub, or a folder.

    ``revision`` and ``token`` are those of a model on the hub. What cannot be had or read raises CheckpointError.
    """
    found = _read(source, revision, token)
    kind, backbone = found.config.get("model_type"), found.config.get("backbone_config") or {}
    if kind != "upernet" or backbone.get("model_type", "swin") != "swin":
        has = f"{kind} on {backbone['model_type']}" if kind == "upernet" else kind
        raise CheckpointError(
            f"holds a model of the kind {brief(has)}; a segmenter is transformers' UPerNet on a Swin, in a folder with "
            "its config.json, or by name as openmmlab/upernet-swin-tiny",
            of=source,
        )
    tensors = found.tensors
    encoder, swin, _ = swin_of(tensors, source)
    if not swin.stage_norms or swin.norm is None:
        raise CheckpointError("its decoder does not read the last map of its Swin", of=source)
    weight = _tensor(tensors, "decode_head.classifier.weight", 4, source)
    pool_sides = _pool_sides(found.config, source)
    stages = range(len(swin.depths) - len(swin.stage_norms), len(swin.depths))
    with without_values():
        decoder = UperDecoder([encoder.config.stage_dim(i) for i in stages], weight.shape[1], pool_sides)
        network = Segmenter(encoder, decoder, weight.shape[0], first_map=stages[0])
    own = {key: value for key, value in network.state_dict().items() if not key.startswith("encoder.")}
    weights = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    for key in own:
        theirs = _uper_key(key, swin.stage_norms)
        if theirs in tensors:
            weights[key] = tensors[theirs] if key.endswith("num_batches_tracked") else tensors[theirs].float()
        elif key.endswith("num_batches_tracked"):
            weights[key] = torch.tensor(0)
    load_tensors(network, weights, str(source))
    names = _names(found, weight.shape[0], source)
    try:
        settings = of_transformers(found.pictures, SEGMENTED, Image.Resampling.BILINEAR)
    except CheckpointError as error:
        raise CheckpointError(error.reason, of=source) from None
    return ImageSegmenter(network.eval().to(pick_device(device)), names, settings)


def is_segmenter(source: str | Path) -> bool:
    """Whether a folder, or a model on the hub, which is fetched, is of a kind that load_segmenter reads."""
    if is_hub_name(source):
        folder = fetch_snapshot(str(source), wanted=(*CONFIG_AND_WEIGHTS, PICTURES))
    else:
        folder = Path(source)
    return _object(folder / "config.json").get("model_type") == "upernet"


def load_classifier(
    source: str | Path, *, device: str = "auto", revision: str | None = None, token: str | bool | None = None
) -> ImageClassifier:
    """A published Swin with its classifier, of transformers, timm or torchvision.

    ``source`` is a name, as "microsoft/swin-tiny-patch4-window7-224", "timm/swin_base_patch4_window7_224.ms_in1k",
    "torchvision/swin_t" or of the authors' files, "swin_large_patch4_window7_224_22kto1k"; a folder, or a .safetensors
    file. ``revision`` and ``token`` are those of a model on the hub. What cannot be had or read raises CheckpointError.
    """
    found = _read(source, revision, token)
    encoder, swin, _ = swin_of(found.tensors, source)
    head = next((head for head in HEADS if f"{head}.weight" in found.tensors), None)
    if swin.backbone or swin.norm is None or head is None:
        raise CheckpointError(
            "holds no classifier; `owl-swin segment` reads UPerNet models, and load_swin the encoder alone"
            if swin.backbone
            else "is a Swin without the layer that names classes; give a classifier, or load_swin reads it alone",
            of=source,
        )
    weight = _tensor(found.tensors, f"{head}.weight", 2, source)
    with without_values():
        network = Classifier(encoder, weight.shape[1], weight.shape[0])
    weights = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    for leaf in ("weight", "bias"):
        if f"{head}.{leaf}" in found.tensors:
            weights[f"head.{leaf}"] = found.tensors[f"{head}.{leaf}"].float()
    load_tensors(network, weights, str(source))
    try:
        settings = found.settings or _settings_of(found)
    except CheckpointError as error:
        raise CheckpointError(error.reason, of=source) from None
    names = _names(found, weight.shape[0], source)
    return ImageClassifier(network.eval().to(pick_device(device)), names, settings)


def _read(source: str | Path, revision: str | None, token: str | bool | None) -> _Published:
    path = Path(source)
    try:
        folder = path if path.is_dir() and str(source) else None
        if folder is None and path.is_file():
            return _Published(read_tensors(path)[0])
    except (OSError, ValueError) as error:  # no possible path, so no name either
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError("no such file, folder or model", of=brief(source)) from None
    if folder is None:
        name = timm_name(str(source))
        if name in SHIPPED:
            raise CheckpointError(
                "is asked by name and has no fixed classes; use Detector.classify or Detector.segment in Python, or "
                "`owl-swin segment --query`",
                of=source,
            )
        if not is_hub_name(name):
            raise CheckpointError(
                "no such file; give a folder, a .safetensors file or the name of a model, as "
                "microsoft/swin-tiny-patch4-window7-224 or openmmlab/upernet-swin-tiny",
                of=source,
            )
        if library_of(name) != "transformers":
            library = fetch_from_library(name)
            return _Published(library.tensors, names=library.names, settings=library.settings)
        wanted = (*CONFIG_AND_WEIGHTS, PICTURES)
        folder = fetch_snapshot(name, revision=revision, token=token, wanted=wanted)
    return _Published(read_folder(folder, str(source))[0], _object(folder / "config.json"), _object(folder / PICTURES))


def _object(path: Path) -> dict[str, Any]:
    """What a JSON file says; {} where there is none."""
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot be read as JSON ({brief(str(error))})", of=path) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"must be a JSON object, got {type(content).__name__}", of=path)
    return content


def _settings_of(found: _Published) -> PictureSettings:
    own = found.config.get("pretrained_cfg")
    if isinstance(own, Mapping):
        return of_timm(own)
    side = found.config.get("image_size", CLASSIFIED)
    return of_transformers(found.pictures, side)


def _names(found: _Published, classes: int, source: object) -> tuple[str, ...]:
    """The names of the classes as a file says them, or their numbers where none does."""
    config, names = found.config, list(found.names)
    if isinstance(config.get("id2label"), Mapping):
        said = {str(key): str(value) for key, value in config["id2label"].items()}
        names = [said.get(str(i), str(i)) for i in range(classes)]
    elif isinstance(config.get("label_names"), list):
        described = config.get("label_descriptions")
        described = described if isinstance(described, Mapping) else {}
        names = [str(described.get(name, name)) for name in config["label_names"]]
    if names and len(names) != classes:
        raise CheckpointError(f"has {classes} classes and {len(names)} names of classes", of=source)
    return tuple(names or map(str, range(classes)))


def _pool_sides(config: Mapping[str, Any], source: object) -> list[int]:
    sides = config.get("pool_scales", [1, 2, 3, 6])
    if not isinstance(sides, list) or not all(isinstance(side, int) and side > 0 for side in sides):
        raise CheckpointError(f"pool_scales must be whole numbers from 1, got {brief(sides)}", of=source)
    return sides


def _uper_key(key: str, stage_norms: tuple[str, ...]) -> str:
    """What a file of transformers calls our parameter or buffer ``key`` of a Segmenter with an UperDecoder."""
    if key.startswith("classifier."):
        return f"decode_head.{key}"
    _, part, rest = key.split(".", 2)
    if part == "norms":
        stage, leaf = rest.split(".")
        return f"{stage_norms[int(stage)]}.{leaf}"
    found = re.fullmatch(r"(?:(\d+)\.)?(\d)\.(\w+)", rest)
    assert found is not None
    index, layer, leaf = found.groups()
    place = UPER_PARTS[part] + (f".{index}" if index else "")
    # Before the two layers of a pool's convolution stands the pooling itself.
    place, layer = (f"{place}.1", str(int(layer) - 1)) if part == "pools" else (place, layer)
    return f"decode_head.{place}.{('conv', 'batch_norm')[int(layer)]}.{leaf}"


def _tensor(tensors: Mapping[str, Tensor], key: str, axes: int, source: object) -> Tensor:
    tensor = tensors.get(key)
    if tensor is None or tensor.ndim != axes or 0 in tensor.shape:
        has = "it is missing" if tensor is None else f"got shape {list(tensor.shape)}"
        raise CheckpointError(f"{key} must have {axes} axes; {has}", of=source)
    return tensor
