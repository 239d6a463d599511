"""Small labelled and captioned pictures, decoded once and held in memory as uint8, for alignment."""

import io
import json
import random
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from owl_swin.errors import DataError
from owl_swin.training.config import DataConfig


@dataclass(frozen=True, slots=True)
class Pictures:
    """``images [N, 3, S, S]`` uint8 and, for each, ``labels [N]``: a row of ``texts``.

    ``texts[label]`` are the ways to say it. ``captioned`` pictures have a label each and are contrasted within the
    batch; the others with all texts of their set.
    """

    images: Tensor
    labels: Tensor
    texts: list[list[str]]
    captioned: bool = False


def load_pictures(config: DataConfig) -> Pictures:
    """Reads one set; what each kind expects is said in DataConfig."""
    readers = {
        "sheets": _sheets,
        "crops": _crops,
        "labelled": _labelled,
        "captions": _captions,
        "cutouts": _cutouts,
    }
    try:
        samples = list(readers[config.kind](config))
    except KeyError as error:
        raise DataError(f"{config.path}: no {error} where a set of kind {config.kind!r} has it") from None
    except (OSError, TypeError, ValueError, IndexError, tarfile.TarError) as error:
        raise DataError(f"{config.path}: cannot be read as {config.kind!r} ({error})") from None
    if not samples:
        raise DataError(f"{config.path}: holds no picture of split {config.split!r}")
    captioned = config.kind == "captions"
    texts: dict[tuple[str, ...], int] = {}
    labels: list[int] = []
    images: list[Tensor] = []
    rng = random.Random(0)
    rng.shuffle(samples)
    counts: dict[int, int] = {}
    for pixels, names in samples:
        label = len(labels) if captioned else texts.setdefault(names, len(texts))
        counts[label] = counts.get(label, 0) + 1
        if config.max_per_class and counts[label] > config.max_per_class:
            continue
        labels.append(label)
        images.append(torch.from_numpy(pixels).permute(2, 0, 1))
    all_texts = [list(names) for _, names in samples] if captioned else [list(names) for names in texts]
    return Pictures(torch.stack(images), torch.tensor(labels), all_texts, captioned)


Sample = tuple[np.ndarray, tuple[str, ...]]


def _sheets(config: DataConfig) -> Iterator[Sample]:
    manifest_path = Path(config.path)
    manifest = json.loads(manifest_path.read_text())
    tile, (rows, cols) = manifest["tile_px"], manifest["sheet_grid"]
    names = [tuple(n.strip() for n in entry.split(",")) for entry in manifest["classes"]]
    for sheet in manifest[config.split]:
        pixels = np.asarray(Image.open(manifest_path.parent / sheet["sheet"]).convert("RGB"))
        tiles = pixels.reshape(rows, tile, cols, tile, 3).swapaxes(1, 2).reshape(-1, tile, tile, 3)
        for label, picture in zip(sheet["labels"], tiles, strict=False):
            yield (
                picture.copy() if tile == config.size else _square(Image.fromarray(picture), config.size),
                names[label],
            )


def _crops(config: DataConfig) -> Iterator[Sample]:
    data = json.loads(Path(config.path).read_text())
    names = {c["id"]: (c["name"],) for c in data["categories"]}
    boxes: dict[int, list] = {}
    for annotation in data["annotations"]:
        if not annotation.get("iscrowd") and min(annotation["bbox"][2:]) >= 16:
            boxes.setdefault(annotation["image_id"], []).append(annotation)
    for record in data["images"]:
        if record["id"] not in boxes:
            continue
        picture = Image.open(Path(config.images) / record["file_name"]).convert("RGB")
        for annotation in boxes[record["id"]]:
            x, y, w, h = annotation["bbox"]
            side = min(1.2 * max(w, h), *picture.size)  # a square with some surroundings, inside the picture
            left = min(max(x + w / 2 - side / 2, 0), picture.width - side)
            top = min(max(y + h / 2 - side / 2, 0), picture.height - side)
            crop = picture.resize(
                (config.size, config.size), Image.Resampling.BICUBIC, (left, top, left + side, top + side)
            )
            yield np.array(crop), names[annotation["category_id"]]


def _labelled(config: DataConfig) -> Iterator[Sample]:
    for record in json.loads(Path(config.path).read_text())["images"]:
        picture = Image.open(Path(config.images) / record["file_name"]).convert("RGB")
        yield _square(picture, config.size), tuple(n.strip() for n in record["label"].split(","))


def _captions(config: DataConfig) -> Iterator[Sample]:
    paths = sorted(Path(config.path).glob(f"{config.split}-*.tar"))
    for path in paths:
        with tarfile.open(path) as tar:
            pictures: dict[str, np.ndarray] = {}
            captions: dict[str, tuple[str, ...]] = {}
            for member in tar:
                if not member.isfile():
                    continue
                key, _, extension = member.name.rpartition(".")
                content = tar.extractfile(member).read()  # type: ignore[union-attr]
                if extension == "json":
                    captions[key] = tuple(json.loads(content)["captions"])
                else:
                    pictures[key] = _square(Image.open(io.BytesIO(content)).convert("RGB"), config.size)
            yield from ((pictures[key], captions[key]) for key in sorted(pictures))


def _cutouts(config: DataConfig, *, backgrounds: int = 3) -> Iterator[Sample]:
    rng = np.random.default_rng(0)
    folder = Path(config.images)
    for record in json.loads(Path(config.path).read_text())["images"]:
        cutout = Image.open(folder / record["file_name"]).convert("RGBA").resize((config.size, config.size))
        for _ in range(backgrounds):
            colours = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
            canvas = Image.fromarray(colours).resize(cutout.size, Image.Resampling.BILINEAR).convert("RGBA")
            yield np.array(Image.alpha_composite(canvas, cutout).convert("RGB")), (record["name"],)


def _square(picture: Image.Image, size: int) -> np.ndarray:
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.array(picture.resize((size, size), Image.Resampling.BICUBIC, box))
