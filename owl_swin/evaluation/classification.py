"""How well whole pictures and the names of classes agree: zero-shot classification."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from owl_swin.classification import check_sees_whole
from owl_swin.data.broken import left_out, reading
from owl_swin.data.labelled import image_records
from owl_swin.data.naming import find_classes, spoken_names
from owl_swin.data.tiles import Manifest
from owl_swin.data.truth import check_pictures
from owl_swin.detector import TEMPLATES, Detector
from owl_swin.errors import DataError
from owl_swin.evaluation.precision import interval
from owl_swin.evaluation.report import Report
from owl_swin.evaluation.sets import Progress, encode_pictures
from owl_swin.files import read_json
from owl_swin.image import ImageSource

# Pictures that are decoded and encoded together.
BATCH = 16
# The part of a manifest whose pictures are examples.
EXAMPLES_PART = "train"
FORM = "a manifest of sheets or a file of labelled pictures"


@dataclass(frozen=True, slots=True)
class NamedPictures:
    """Pictures with a class each: the ways to say each class, the label of each picture, and the classes of a manifest
    that were held out of training. ``pictures(labels, broken)`` opens those of some labels, one after another."""

    names: list[list[str]]
    labels: list[int]
    heldout: tuple[int, ...] | None
    pictures: Callable[[Collection[int], list[str]], Iterator[tuple[ImageSource, int]]]
    notes: list[str]


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
) -> Report:
    """Zero-shot top-1 and top-5 in percent: each picture is given the class whose name fits it best.

    ``annotations`` is a manifest of tile sheets, or a COCO-like file whose image records carry ``label`` (then
    ``images`` is their folder). A class may have several names, separated by commas; prompts and names are averaged.
    With ``classes``, only pictures of these classes are tested, and only these are answers. A picture that cannot be
    read is left out and listed in ``broken``.

    ``pictures`` and ``among`` choose by a manifest's list of held-out classes which pictures are tested and which names
    are the answers: "all", "trained" or "heldout". With ``examples``, another such file, classes are shown by its
    pictures and not named.
    """
    check_sees_whole(detector.spec)
    data = read_named(Path(annotations), Path(images) if images else None, split)
    if classes is None:
        candidates, tested = _group(data, among, annotations), set(_group(data, pictures, annotations))
    else:
        candidates = find_classes(classes, [", ".join(names) for names in data.names], annotations)
        tested = set(candidates)
    tested &= set(candidates)
    position = {label: place for place, label in enumerate(candidates)}
    names = [data.names[label] for label in candidates]
    broken: list[str] = []
    if examples is None or not candidates:
        fits = class_embeddings(detector, names) if candidates else torch.empty(0)
    else:
        folder = example_images if example_images is not None else images
        same = Path(examples).resolve() == Path(annotations).resolve()
        if same and (split == EXAMPLES_PART or not _is_manifest(Path(annotations))):
            raise DataError(f"{examples}: is the file that is judged; name one with other pictures as examples")
        fits = example_embeddings(detector, names, Path(examples), Path(folder) if folder else None, broken)
    places: list[int] = []
    best: list[list[int]] = []
    total = sum(label in tested for label in data.labels)
    for embeds, labels in _encoded(detector, data, tested, broken):
        if len(labels):
            best += (embeds @ fits.T).topk(min(5, len(candidates)), dim=-1).indices.tolist()
            places += [position[label] for label in labels]
        if progress is not None:
            progress(min(len(places) + len(broken), total), total)
    if progress is not None and len(places) + len(broken) < total:  # a whole sheet could not be read
        progress(total, total)
    first = np.array([own[0] == place for own, place in zip(best, places, strict=True)], dtype=float)
    among_five = np.array([place in own for own, place in zip(best, places, strict=True)], dtype=float)
    titles = class_titles(names)
    hits = {place: first[np.array(places) == place] for place in sorted(set(places))}
    return Report(
        protocol=f"zero-shot classification of {pictures} classes among {len(candidates)}, each "
        + (f"named, {len(TEMPLATES)} templates averaged" if examples is None else "shown by other pictures"),
        annotations=Path(annotations).name,
        counts={"n_images": len(places), "n_classes": len(candidates)},
        figures={"top1": _percent(first), "top5": _percent(among_five)},
        intervals={"top1": accuracy_interval(first)},
        per_class={titles[place]: _percent(own) for place, own in hits.items()},
        notes=tuple(data.notes),
        broken=tuple(broken),
    )


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


def example_embeddings(
    detector: Detector, names: Sequence[Sequence[str]], examples: Path, images: Path | None, broken: list[str]
) -> Tensor:
    """A unit embedding [N, E] for each class: the mean over the pictures that ``examples`` has of it."""
    data = read_named(examples, images, EXAMPLES_PART)
    rows = {tuple(name): row for row, name in enumerate(names)}
    row_of = {label: rows[tuple(own)] for label, own in enumerate(data.names) if tuple(own) in rows}
    parts: list[list[Tensor]] = [[] for _ in names]
    for embeds, labels in _encoded(detector, data, row_of.keys(), broken):
        for embed, label in zip(embeds, labels, strict=True):
            parts[row_of[label]].append(embed)
    for name, part in zip(names, parts, strict=True):
        if not part:
            raise DataError(f"{examples}: has no picture of the class {name[0]!r}")
    return F.normalize(torch.stack([torch.stack(part).mean(0) for part in parts]), dim=-1)


def _is_manifest(path: Path) -> bool:
    return "tile_px" in read_json(path)


def read_named(path: Path, images: Path | None, split: str) -> NamedPictures:
    """A manifest of sheets, or a file of labelled pictures in the folder ``images``."""
    with reading(path, FORM):
        if _is_manifest(path):
            manifest = Manifest.read(path, split)
            labels = [label for sheet in manifest.sheets for _, label, _, _ in manifest.tiles(sheet, [])]
            check_pictures([path.parent / sheet["sheet"] for sheet in manifest.sheets], path)
            return NamedPictures(manifest.names, labels, manifest.heldout, manifest.pictures, [])
        broken: list[str] = []
        records = list(image_records(path, "label", broken))
    if broken and not records:
        raise DataError(f"{path}: not {FORM} ({broken[0]})")
    if images is None:
        raise DataError(f"{path}: eval classify needs --images, the folder of the pictures")
    sources = [images / name for name, _ in records]
    check_pictures(sources, path)
    texts = sorted({label for _, label in records})
    labels = [texts.index(label) for _, label in records]
    files = list(zip(sources, labels, strict=True))
    notes = [left_out(path, broken)] if broken else []
    names = [spoken_names(label) or [label] for label in texts]
    return NamedPictures(names, labels, None, partial(_files, files), notes)


def _files(
    files: Sequence[tuple[Path, int]], tested: Collection[int], broken: list[str]
) -> Iterator[tuple[ImageSource, int]]:
    yield from ((source, label) for source, label in files if label in tested)


def _encoded(
    detector: Detector, data: NamedPictures, tested: Collection[int], broken: list[str]
) -> Iterator[tuple[Tensor, list[int]]]:
    """Embeddings [n, E] and labels of the pictures of some labels, a batch at a time."""
    samples = data.pictures(tested, broken)
    while batch := list(islice(samples, BATCH)):
        encoded = encode_pictures(detector, [source for source, _ in batch], broken)
        known = [(one, label) for one, (_, label) in zip(encoded, batch, strict=True) if one is not None]
        embeds = torch.stack([one.embeddings.image_embed for one, _ in known]) if known else torch.empty(0)
        yield embeds, [label for _, label in known]


def _group(data: NamedPictures, group: str, where: str | Path) -> list[int]:
    """Labels of one of the groups "all", "trained" and "heldout"."""
    if group == "all":
        return list(range(len(data.names)))
    if group not in ("trained", "heldout") or data.heldout is None:
        raise DataError(
            f"{where}: no group of classes {group!r}; groups are all, and trained and heldout with a manifest"
        )
    return sorted(data.heldout) if group == "heldout" else sorted(set(range(len(data.names))) - set(data.heldout))


def _percent(hits: np.ndarray) -> float | None:
    return round(100 * float(hits.mean()), 2) if len(hits) else None


def accuracy_interval(hits: np.ndarray, draws: int = 1000) -> tuple[float, float] | None:
    """95 % bootstrap interval over pictures, in percent."""
    if not len(hits):
        return None
    values = np.random.default_rng(0).choice(hits, (draws, len(hits))).mean(1)
    return interval(100 * values, _percent(hits))
