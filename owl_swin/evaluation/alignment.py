"""How well whole pictures and texts agree: zero-shot classification."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from owl_swin.detector import TEMPLATES, Detector
from owl_swin.errors import DataError, ImageError
from owl_swin.evaluation.sets import Progress
from owl_swin.image import open_image


@torch.inference_mode()
def evaluate_classification(
    detector: Detector,
    annotations: str | Path,
    images: str | Path | None = None,
    *,
    split: str = "val",
    classes: Sequence[str] | None = None,
    pictures: str = "all",
    among: str = "all",
    examples: str | Path | None = None,
    example_images: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Zero-shot top-1 and top-5 in percent: each picture is given the class whose name fits it best.

    ``annotations`` is a manifest of tile sheets, or a COCO-like file whose image records carry ``label`` (then
    ``images`` is their folder). A class may have several names, separated by commas; prompts and names are averaged.
    With ``classes``, only pictures of these classes are asked, and only these are answers. A picture that cannot be
    read is left out and listed in "broken".

    ``pictures`` and ``among`` choose by a manifest's list of held-out classes which pictures are asked and which names
    are the answers: "all", "trained" or "heldout".
    """
    samples, names = _read(Path(annotations), Path(images) if images else None, split)
    if classes is None:
        wanted = _group(Path(annotations), names, among)
        asked = set(_group(Path(annotations), names, pictures))
    else:
        wanted = [_row(names, c, annotations) for c in classes]
        asked = set(wanted)
    asked &= set(wanted)
    position = {label: i for i, label in enumerate(wanted)}
    if examples is None or not wanted:
        fits = class_embeddings(detector, [names[label] for label in wanted]) if wanted else torch.empty(0)
    else:
        folder = example_images if example_images is not None else images
        fits = shown_classes(detector, [names[label] for label in wanted], Path(examples), folder)
    titles = class_titles([names[label] for label in wanted])
    hits1: list[bool] = []
    hits5: list[bool] = []
    per_class: dict[str, list[bool]] = {}
    broken: list[str] = []
    total, done = len(samples), 0
    for batch in _chunks(samples, 64):
        opened, labels = [], []
        for open_sample, label in batch:
            if label in asked:
                try:
                    opened.append(open_image(open_sample()))
                    labels.append(position[label])
                except ImageError as error:
                    broken.append(str(error))
        done = min(done + 64, total)
        if opened:
            encoded = detector.encode_images(opened, batch_size=64)
            embeds = torch.stack([e.embeddings.image_embed for e in encoded])
            top = (embeds @ fits.T).topk(min(5, len(wanted)), dim=-1).indices.cpu()
            for row, label in zip(top, labels, strict=True):
                hits1.append(bool(row[0] == label))
                hits5.append(bool((row == label).any()))
                per_class.setdefault(titles[label], []).append(hits1[-1])
        if progress is not None:
            progress(done, total)
    return {
        "protocol": f"zero-shot classification of {pictures} classes among {len(wanted)}, each "
        + (f"named, {len(TEMPLATES)} templates averaged" if examples is None else "shown by other pictures"),
        "annotations": Path(annotations).name,
        "n_images": len(hits1),
        "n_classes": len(wanted),
        "top1": _mean(hits1),
        "top5": _mean(hits5),
        "per_class": {name: _mean(hits) for name, hits in per_class.items()},
        "ci95": _interval(hits1),
        "broken": broken,
    }


def class_titles(names: Sequence[Sequence[str]]) -> list[str]:
    """What each class is called in the result: its first name; classes that share it are called by all their names."""
    firsts, wholes = [own[0] for own in names], [", ".join(own) for own in names]
    titles = [w if firsts.count(f) > 1 else f for f, w in zip(firsts, wholes, strict=True)]
    return [f"{title} ({row})" if titles.count(title) > 1 else title for row, title in enumerate(titles)]


def class_embeddings(detector: Detector, names: Sequence[Sequence[str]]) -> Tensor:
    """A unit embedding [N, E] for each class: the mean over its names in all templates."""
    prompts = [[t.replace("{}", name) for name in synonyms for t in TEMPLATES] for synonyms in names]
    flat = detector.encode_queries([p for own in prompts for p in own]).query_embeds
    return F.normalize(torch.stack([part.mean(0) for part in flat.split([len(own) for own in prompts])]), dim=-1)


def shown_classes(
    detector: Detector, names: Sequence[Sequence[str]], examples: Path, images: str | Path | None
) -> Tensor:
    """A unit embedding [N, E] for each class: the mean over the pictures that ``examples`` has of it."""
    samples, own = _read(examples, Path(images) if images else None, "train")
    rows = {tuple(name): row for row, name in enumerate(names)}
    parts: list[list[Tensor]] = [[] for _ in names]
    for batch in _chunks([one for one in samples if tuple(own[one[1]]) in rows], 64):
        encoded = detector.encode_images([open_image(get()) for get, _ in batch], batch_size=64)
        for (_, label), one in zip(batch, encoded, strict=True):
            parts[rows[tuple(own[label])]].append(one.embeddings.image_embed)
    for name, part in zip(names, parts, strict=True):
        if not part:
            raise DataError(f"{examples}: has no picture of the class {name[0]!r}")
    return F.normalize(torch.stack([torch.stack(part).mean(0) for part in parts]), dim=-1)


def _read(path: Path, images: Path | None, split: str) -> tuple[list, list[list[str]]]:
    try:
        data = json.loads(path.read_text())
        if "tile_px" in data:
            names = [[n.strip() for n in entry.split(",")] for entry in data["classes"]]
            return _sheet_samples(path.parent, data, split), names
        if images is None:
            raise DataError(f"{path}: eval classify needs --images, the folder of the pictures")
        labels = sorted({record["label"] for record in data["images"]})
        rows = {label: i for i, label in enumerate(labels)}
        samples = [(_opener(images / r["file_name"]), rows[r["label"]]) for r in data["images"]]
        return samples, [[n.strip() for n in label.split(",")] for label in labels]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except DataError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: neither a manifest of sheets nor a file of labelled pictures ({error})") from None


def _sheet_samples(folder: Path, manifest: dict[str, Any], split: str) -> list:
    side, cols = manifest["tile_px"], manifest["sheet_grid"][1]
    samples = []
    for sheet in manifest[split]:
        pixels = np.asarray(Image.open(folder / sheet["sheet"]).convert("RGB"))
        for place, label in enumerate(sheet["labels"]):
            y, x = place // cols * side, place % cols * side
            tile = pixels[y : y + side, x : x + side]
            samples.append((lambda tile=tile: tile, label))
    return samples


def _group(path: Path, names: list[list[str]], group: str) -> list[int]:
    """Rows of ``names`` in one of the groups "all", "trained" and "heldout"."""
    if group == "all":
        return list(range(len(names)))
    heldout = json.loads(path.read_text()).get("heldout")
    if group not in ("trained", "heldout") or heldout is None:
        raise DataError(
            f"{path}: no group of classes {group!r}; groups are all, and trained and heldout with a manifest"
        )
    return sorted(heldout) if group == "heldout" else sorted(set(range(len(names))) - set(heldout))


def _opener(path: Path):
    return lambda: path


def _row(names: list[list[str]], wanted: str, where: str | Path) -> int:
    for row, synonyms in enumerate(names):
        if wanted in synonyms or wanted == ", ".join(synonyms):
            return row
    raise DataError(f"{where}: has no class {wanted!r}")


def _chunks(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _mean(hits: Sequence[bool]) -> float | None:
    return round(100 * float(np.mean(hits)), 2) if hits else None


def _interval(hits: Sequence[bool], draws: int = 1000) -> list[float] | None:
    """95 % bootstrap interval over pictures, in percent."""
    if not hits:
        return None
    values = np.random.default_rng(0).choice(np.array(hits, float), (draws, len(hits))).mean(1)
    return [round(100 * float(v), 2) for v in np.percentile(values, [2.5, 97.5])]
