"""Mean intersection over union of maps, as ADE20K measures it (arXiv:1608.05442), over base and novel classes apart."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from owl_swin.closed_set import ImageSegmenter
from owl_swin.data.label_maps import LabelledPicture, LabelMaps, read_label_maps
from owl_swin.data.naming import find_classes, spoken_names
from owl_swin.data.scene import as_annotated
from owl_swin.detector import Detector
from owl_swin.encoder import check_has_masks
from owl_swin.errors import DataError, ImageError
from owl_swin.evaluation.class_queries import encode_classes
from owl_swin.evaluation.confusion import Confusion, PixelSums
from owl_swin.evaluation.open_vocabulary import known_means
from owl_swin.evaluation.precision import interval, resampled_weights
from owl_swin.evaluation.report import Interval, Report
from owl_swin.evaluation.sets import Progress
from owl_swin.image import ImageSource
from owl_swin.semantic_map import NOTHING, SemanticMap
from owl_swin.tiling import TilesLike
from owl_swin.types import QueryEmbeddings

# A picture → what each of its pixels shows, of the classes of a set.
Segment = Callable[[ImageSource], SemanticMap]
# What pixels that show none of the names are called, where they are judged.
NOTHING_NAME = "(nothing)"
# Sides of a picture and its map may differ by rounding: by so many pixels of the larger one.
SLACK_PX = 2
# Pairs of classes that are listed as taken for one another.
CONFUSED = 10


def evaluate_segmentation(
    model: Detector | ImageSegmenter,
    annotations: str | Path,
    images: str | Path,
    *,
    names: Mapping[int, str] | Sequence[str] | None = None,
    ignore: Sequence[int] = (255,),
    nothing: int | None = None,
    classes: Sequence[str] | None = None,
    base: Sequence[str] = (),
    novel: Sequence[str] = (),
    threshold: float | None = None,
    image_size: int | None = None,
    tiles: TilesLike | None = None,
    draws: int = 200,
    progress: Progress | None = None,
) -> Report:
    """The maps of all pictures against the labels of ``read_label_maps``, which ``names``, ``ignore`` and ``nothing``
    are for.

    A detector is asked for all names of the set at once; a network with fixed classes answers with those of its names
    that are the set's, and its own are the names of label maps where none are given. Figures, in percent: mIoU, the
    mean over the classes that are shown or said; pixel_accuracy; mean_accuracy, over the classes that are shown; in
    per_class IoU. Where nothing is judged too, it is one of the classes of these. With ``novel`` classes, mIoU_base of
    the others, or of ``base`` where given and no more are asked, mIoU_novel, and the harmonic mean of both. A pixel
    shows nothing where no score reaches ``threshold``; None: 0 where the set has a class for each pixel that is judged,
    else that of the model. A picture that cannot be read counts as one of which nothing is known, and is in ``broken``.
    """
    if names is None and isinstance(model, ImageSegmenter):
        names = model.names
    maps = read_label_maps(annotations, images, names=names, ignore=ignore, nothing=nothing)
    if classes is not None or (base and novel):
        maps = maps.only(classes if classes is not None else [*base, *novel], annotations)
    groups = _groups(maps, base, novel, annotations)
    segment, notes = segment_by_name(model, maps, threshold=threshold, image_size=image_size, tiles=tiles)
    confusion, broken = Confusion(len(maps.names)), []  # type: ignore[var-annotated]
    for place, picture in enumerate(maps.pictures, start=1):
        compared = compare(segment, picture, maps.names, broken)
        if compared is None:
            confusion.skip()
        else:
            confusion.add(compared.truth, compared.said)
        if progress is not None:
            progress(place, len(maps.pictures))
    figures, intervals = _figures(confusion, groups, maps.has_nothing, draws)
    judged = confusion.sums(np.ones((1, len(confusion)), dtype=int))
    named = [*maps.names, NOTHING_NAME] if maps.has_nothing else maps.names
    iou = judged.iou()[0]
    how = "fixed classes" if isinstance(model, ImageSegmenter) else "text queries by class name"
    return Report(
        protocol=f"semantic mIoU, {how}, {len(maps.names)} classes"
        + (", and pixels that show none of them" if maps.has_nothing else "")
        + ("" if tiles is None else f", with {tiles}"),
        annotations=Path(annotations).name,
        counts={"n_images": len(maps.pictures), "n_pixels": int(judged.truth.sum())},
        figures=figures,
        intervals=intervals,
        per_class={name: round(float(iou[row]), 2) for row, name in enumerate(named) if not np.isnan(iou[row])},
        details={"confused": _confused(confusion.matrix(), maps.names)},
        notes=(*maps.notes, *notes),
        broken=tuple(broken),
    )


def segment_by_name(
    model: Detector | ImageSegmenter,
    maps: LabelMaps,
    *,
    threshold: float | None = None,
    image_size: int | None = None,
    tiles: TilesLike | None = None,
) -> tuple[Segment, list[str]]:
    """What makes a map of a picture with the names of the set, and what has to be said of it."""
    if isinstance(model, Detector):
        queries = encode_names(model, maps)
        settings: dict[str, Any] = {"tiles": tiles, "image_size": image_size}
        if threshold is not None or not maps.has_nothing:
            settings["threshold"] = threshold or 0.0
        return lambda picture: model.segment(picture, queries, **settings), []
    if tiles is not None or threshold is not None:
        raise DataError("tiles and a threshold are for models that are asked by name; this one has fixed classes")
    rows, notes = same_names(model.names, maps.names)
    change = np.array([*rows, NOTHING], dtype=np.int32)

    def segment(picture: ImageSource) -> SemanticMap:
        found = model.segment(picture, image_size=image_size)
        labels = change[found.labels.numpy()]
        return SemanticMap(found.labels.new_tensor(labels), found.scores, maps.names)

    return segment, notes


def encode_names(model: Detector, maps: LabelMaps) -> QueryEmbeddings:
    """The names of a set as queries; a model without masks raises QueryError, a set without classes DataError."""
    check_has_masks(model.spec)
    queries = encode_classes(model, {"categories": [{"name": name} for name in maps.names]})
    if queries is None:
        raise DataError("the set has no classes, so there is nothing to ask its pictures for")
    return queries


def same_names(own: Sequence[str], wanted: Sequence[str]) -> tuple[list[int], list[str]]:
    """For each name of a network the row of the set's name that means the same, or NOTHING, and a note of the set's
    classes that the network does not know. None in common raises DataError.

    Names are the same as they are written, or else where one of the network's is the first name of a class ("door,
    double door"), or else one of its others.
    """
    rows: dict[str, int] = {}
    whole, first, others = (
        [(name, row) for row, name in enumerate(wanted)],
        [(word, row) for row, name in enumerate(wanted) for word in spoken_names(name)[:1]],
        [(word, row) for row, name in enumerate(wanted) for word in spoken_names(name)[1:]],
    )
    for word, row in (*whole, *first, *others):
        rows.setdefault(word.casefold(), row)
    found = [
        next((rows[word.casefold()] for word in (name, *spoken_names(name)) if word.casefold() in rows), NOTHING)
        for name in own
    ]
    missing = [name for row, name in enumerate(wanted) if row not in found]
    if len(missing) == len(wanted):
        raise DataError(f"the model knows none of the set's classes; it knows {', '.join(own[:5])}, …")
    if not missing:
        return found, []
    more = ", …" if len(missing) > 10 else ""
    return found, [f"the model does not know {len(missing)} of the classes: {', '.join(missing[:10])}{more}"]


@dataclass(frozen=True, slots=True)
class ComparedMap:
    """Labels [H, W] that a picture shows and that a map says, rows of the set's names, and the map's scores."""

    truth: np.ndarray
    said: np.ndarray
    scores: np.ndarray


def compare(
    segment: Segment, picture: LabelledPicture, names: tuple[str, ...], broken: list[str]
) -> ComparedMap | None:
    """The map of one picture beside its labels, in their size. Nothing is said of a picture that cannot be read; None
    where the labels cannot be, or are of another shape. Both are said in ``broken``."""
    try:
        truth = picture.labels()
    except ImageError as error:
        broken.append(str(error))
        return None
    height, width = truth.shape
    try:
        found = segment(as_annotated(picture.source, (width, height)))
    except ImageError as error:
        broken.append(str(error))
        return ComparedMap(truth, np.full_like(truth, NOTHING), np.zeros(truth.shape, dtype=np.float32))
    own_height, own_width = found.image_hw
    if abs(own_width * height - own_height * width) > SLACK_PX * max(height, width, own_height, own_width):
        sizes = f"has {own_width}x{own_height} pixels and its map {width}x{height}, another shape"
        broken.append(f"{picture.source}: {sizes}")
        return None
    said, scores = found.labels.numpy().astype(np.int32), found.scores.numpy()
    if said.shape != truth.shape:
        said, scores = (
            np.array(Image.fromarray(one).resize((width, height), Image.Resampling.NEAREST)) for one in (said, scores)
        )
    if found.names != names:
        rows = {name: row for row, name in enumerate(names)}
        said = np.array([*(rows[name] for name in found.names), NOTHING])[said]
    return ComparedMap(truth, said, scores)


def _groups(maps: LabelMaps, base: Sequence[str], novel: Sequence[str], where: str | Path) -> dict[str, list[int]]:
    """Rows of the base and of the novel classes; nothing where no novel ones are named."""
    if not novel:
        if base:
            raise DataError("base classes need novel ones beside them; name these with --novel")
        return {}
    rows = find_classes(novel, maps.names, where)
    others = [row for row in range(len(maps.names)) if row not in rows]
    groups = {"base": find_classes(base, maps.names, where) if base else others, "novel": rows}
    if not groups["base"] or set(groups["base"]) & set(rows):
        raise DataError("a split needs base classes and novel classes, and no class in both")
    return groups


def _figures(
    confusion: Confusion, groups: Mapping[str, list[int]], has_nothing: bool, draws: int
) -> tuple[dict[str, float | None], dict[str, Interval | None]]:
    once = np.ones((1, len(confusion)), dtype=int)
    own, drawn = (
        _values(confusion.sums(times), groups, has_nothing)
        for times in (once, resampled_weights(len(confusion), draws))
    )
    figures = {key: None if np.isnan(value[0]) else round(float(value[0]), 2) for key, value in own.items()}
    return figures, {key: interval(drawn[key], figure) for key, figure in figures.items()}


def _values(sums: PixelSums, groups: Mapping[str, list[int]], has_nothing: bool) -> dict[str, np.ndarray]:
    """The figures of each draw."""
    rows = slice(None) if has_nothing else slice(-1)
    iou, accuracy = sums.iou(), sums.accuracy()
    values = {
        "mIoU": known_means(iou[:, rows]),
        "pixel_accuracy": sums.pixel_accuracy(),
        "mean_accuracy": known_means(accuracy[:, rows]),
    }
    values |= {f"mIoU_{key}": known_means(iou[:, own]) for key, own in groups.items()}
    if groups:
        base, novel = values["mIoU_base"], values["mIoU_novel"]
        values["mIoU_harmonic"] = 2 * base * novel / np.maximum(base + novel, 1e-9)
    return values


def _confused(matrix: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """The pairs with most pixels: what is shown, what was said, and the share of what is shown that was so named."""
    named, wrong = [*names, NOTHING_NAME], matrix * ~np.eye(len(matrix), dtype=bool)
    places = [divmod(int(place), len(matrix)) for place in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSED]]
    return [
        {"shown": named[t], "said": named[s], "share": round(float(wrong[t, s] / matrix[t].sum()), 4)}
        for t, s in places
        if wrong[t, s]
    ]
