"""Data sets, models and run files that the training tests make on the spot: coloured shapes on noise."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from owl_swin.config import ModelConfig, from_mapping, read_toml
from owl_swin.models.text import TextEncoder
from owl_swin.training.config import TrainConfig

COLOURS = {"red": (230, 20, 20), "green": (20, 200, 40), "blue": (30, 40, 235), "yellow": (240, 220, 30)}
NAMES = ("red square", "green circle", "blue square", "yellow circle")

TINY_MODEL = """
name = "tiny_for_training"
embed_dim = 32
image_size = 96

[image]
embed_dim = 16
depths = [1, 1, 2, 1]
num_heads = [1, 2, 4, 4]
window_size = 4
drop_path_rate = 0.05

[text]
width = 32
layers = 1
heads = 2
context_length = 12

[heads]
width = 32
stride = 16
stages = [2, 3, 4]
"""


def grey_noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """A dim RGB picture on which a coloured shape stands out."""
    values = np.random.default_rng(seed).integers(60, 120, (height, width, 1), dtype=np.uint8)
    return Image.fromarray(values.repeat(3, 2))


def draw_shape(picture: Image.Image, name: str, box_xyxy: tuple[int, int, int, int]) -> None:
    """Draws "red square", "green circle", … so that it fills the box."""
    colour, shape = name.split()
    pen, (x0, y0, x1, y1) = ImageDraw.Draw(picture), box_xyxy
    (pen.rectangle if shape == "square" else pen.ellipse)((x0, y0, x1 - 1, y1 - 1), fill=COLOURS[colour])


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_shapes(folder: Path, n: int = 12) -> Path:
    """A COCO set of ``n`` pictures of 72 to 96 pixels with one or two shapes; returns its annotation file.

    Pictures lie in ``folder/images``. Category ids have gaps, as COCO's own, and annotation ids start at 0.
    """
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    categories = [{"id": 3 * i + 2, "name": name} for i, name in enumerate(NAMES)]
    images, annotations = [], []
    for i in range(n):
        height, width = (int(side) for side in rng.integers(72, 97, 2))
        picture = grey_noise(height, width, i)
        for half in range(1 + i % 2):
            side = int(rng.integers(28, 37))
            x = int(rng.integers(0, width // 2 - side + 1)) + half * (width // 2)
            y = int(rng.integers(0, height - side + 1))
            category = categories[(i + half) % len(categories)]
            draw_shape(picture, category["name"], (x, y, x + side, y + side))
            annotations.append(
                {"id": len(annotations), "image_id": i, "category_id": category["id"], "bbox": [x, y, side, side]}
            )
        picture.save(folder / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
    return write_json(folder / "shapes.json", {"images": images, "annotations": annotations, "categories": categories})


def one_shape(name: str, side: int = 48, seed: int = 0) -> Image.Image:
    """A square picture with one large shape."""
    picture = grey_noise(side, side, seed)
    draw_shape(picture, name, (side // 6, side // 6, side - side // 6, side - side // 6))
    return picture


def write_labelled(folder: Path, n: int = 8) -> Path:
    """``n`` pictures of one shape each, in a file whose image records carry ``label``."""
    (folder / "images").mkdir(parents=True)
    records = [{"file_name": f"{i}.png", "label": NAMES[i % len(NAMES)]} for i in range(n)]
    for i, record in enumerate(records):
        one_shape(record["label"], seed=i).save(folder / "images" / record["file_name"])
    return write_json(folder / "labelled.json", {"images": records})


def write_captions(folder: Path, n: int = 8, *, split: str = "train") -> Path:
    """A webdataset shard of ``n`` pictures of one shape with two captions each; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / f"{split}-000.tar", "w") as tar:
        for i in range(n):
            name, png = NAMES[i % len(NAMES)], io.BytesIO()
            one_shape(name, seed=i).save(png, "PNG")
            captions = json.dumps({"captions": [f"{name} number {i}", f"picture {i} of a {name}"]})
            for extension, content in (("png", png.getvalue()), ("json", captions.encode())):
                member = tarfile.TarInfo(f"{i:03d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder


def write_model(folder: Path) -> dict[str, Any]:
    """Writes a tiny model's TOML and text weights whose names lie apart; returns the keys of a run that use them."""
    model = folder / "model.toml"
    model.write_text(TINY_MODEL)
    config = read_toml(model, ModelConfig)
    torch.manual_seed(0)
    text = TextEncoder(config.text, config.embed_dim)
    with torch.no_grad():
        for name, parameter in text.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.0 if "embedding" in name else parameter.shape[1] ** -0.5)
        # Words alone make the difference: not places, nor the start and end tokens that all texts share.
        text.tower.positional_embedding.zero_()
        text.tower.token_embedding.weight[-2:] = 0
    weights = folder / "text.safetensors"
    save_file({key: value.contiguous() for key, value in text.state_dict().items()}, weights)
    return {"model": str(model), "init": [str(weights)]}


def detect_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a detection run on shapes, as a TOML file would hold them; all files lie in ``folder``."""
    shapes = write_shapes(folder / "shapes")
    return {
        "task": "detect",
        **write_model(folder),
        "output": str(folder / "run"),
        "steps": 6,
        "batch_size": 4,
        "image_size": 96,
        "log_every": 1,
        "optim": {"image_lr": 4e-3, "heads_lr": 4e-3, "warmup_steps": 10, "ema_decay": 0.9},
        "detect": {"mosaic": [0.5, 0.5]},
        "data": [{"kind": "coco", "path": str(shapes), "images": str(shapes.parent / "images")}],
    } | changes


def align_settings(folder: Path, data: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Settings of an alignment run on ``data``."""
    return {
        "task": "align",
        **write_model(folder),
        "output": str(folder / "run"),
        "steps": 6,
        "batch_size": 8,
        "align_size": 32,
        "log_every": 1,
        "optim": {"image_lr": 4e-3, "heads_lr": 4e-3, "warmup_steps": 5, "ema_decay": 0.9},
        "data": data,
    } | changes


def train_config(settings: dict[str, Any]) -> TrainConfig:
    return from_mapping(TrainConfig, settings)


def to_toml(settings: dict[str, Any]) -> str:
    """TOML of settings two tables deep; JSON writes strings, numbers and lists as TOML does."""
    plain = [f"{key} = {json.dumps(value)}" for key, value in settings.items() if not _is_table(value)]
    for key, value in settings.items():
        if isinstance(value, dict):
            plain += [f"[{key}]", to_toml(value)]
        elif _is_table(value):
            plain += [line for item in value for line in (f"[[{key}]]", to_toml(item))]
    return "\n".join(plain)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value))
