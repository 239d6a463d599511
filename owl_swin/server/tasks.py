"""What is asked of each picture of a request: boxes, maps of scores, or which class it is of."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from owl_swin.boxes import area
from owl_swin.classification import class_probabilities
from owl_swin.detections import Detections
from owl_swin.detector import Detector
from owl_swin.encoded import EncodedImage
from owl_swin.formats import to_record
from owl_swin.map_formats import to_label_image, to_segments
from owl_swin.masks import MOST_LOGIT
from owl_swin.postprocess import Threshold, detect_options
from owl_swin.render import draw_detections, draw_heat_map, draw_semantic_map
from owl_swin.scoring import names_of, score
from owl_swin.segmentation import Layer, map_thresholds, paint
from owl_swin.semantic_map import SemanticMap
from owl_swin.server.problems import Problem
from owl_swin.tiling import FoundInView, join_views, without_weak
from owl_swin.types import QueryEmbeddings

# The best boxes that have no more pixels together are drawn with their masks, others without.
MOST_DRAWN_PIXELS = 2**26
# Scores of a map, of all names in all pixels: so many take some seconds.
MOST_MAP_VALUES = 2**32
# A map takes the memory of so many pixels of RGB for each of its own.
MAP_PIXELS = 4


@dataclass(frozen=True, slots=True)
class Task:
    """``answer`` runs in a thread of the model, ``record`` makes JSON of what it gives, under the picture's name.

    ``draw``, if there is one, makes a picture of ``found``, on the picture that was asked about or a smaller copy.
    ``plain`` makes one without it. ``join`` makes one answer of those about the whole picture and its tiles, and
    ``keep`` leaves of these what that needs. To record or draw takes the memory of a decoded picture of so many
    ``pixels``.
    """

    answer: Callable[[EncodedImage], Any]
    record: Callable[[str, Any], dict[str, Any]]
    draw: Callable[..., Image.Image] | None = None
    join: Callable[[Mapping[int, FoundInView]], Any] | None = None
    plain: Callable[[Any], Image.Image] | None = None
    pixels: Callable[[Any], int] = lambda _: 0
    keep: Callable[[dict[int, FoundInView]], dict[int, FoundInView]] = lambda found: found


def detection(detector: Detector, queries: QueryEmbeddings | None, options: dict[str, Any]) -> Task:
    """Boxes, and masks, as ``Detector.detect`` finds them."""
    chosen = detect_options(None, options).of_model(detector.spec)
    return Task(
        lambda encoded: detector.detect(encoded, queries, options=chosen),
        to_record,
        _draw_boxes,
        lambda found: join_views(found, chosen),
        keep=lambda found: without_weak(found, chosen),
    )


def segmentation(detector: Detector, queries: QueryEmbeddings, threshold: Threshold) -> Task:
    """Maps of what each pixel shows, as ``Detector.segment`` makes them: by the threads that read pictures, of what the
    model says of each view."""
    calibration, thresholds = detector.spec.calibration.of_maps, map_thresholds(queries.names, threshold)

    @torch.no_grad()
    def answer(encoded: EncodedImage) -> _Layers:
        (height, width), n_names = encoded.image_hw, len(queries)
        if height * width * n_names > MOST_MAP_VALUES:
            detail = (
                f"{n_names} names in a picture of {width}x{height} pixels: a map has at most {MOST_MAP_VALUES} scores"
            )
            raise Problem("too_many_queries", detail + "; ask for fewer names, or send a smaller picture")
        layers = [Layer.of(view, lambda dense: score(dense, queries, calibration)) for view in encoded.views]
        return _Layers(encoded.image_hw, layers)

    def painted(found: _Layers) -> SemanticMap:
        return paint(found.layers, found.image_hw, queries.names, thresholds)

    def record(name: str, found: _Layers) -> dict[str, Any]:
        height, width = found.image_hw
        areas = [{"label": one.pop("name"), **one} for one in to_segments(painted(found))]
        return {"image": name, "width": width, "height": height, "areas": areas}

    def draw(image: Image.Image, found: _Layers) -> Image.Image:
        return draw_semantic_map(image, painted(found).resized((image.height, image.width)))

    def join(found: Mapping[int, FoundInView]) -> _Layers:
        parts: list[Any] = [found[number].found for number in sorted(found)]
        return _Layers(parts[0].image_hw, [layer for part in parts for layer in part.layers])

    return Task(
        answer,
        record,
        draw,
        join,
        plain=lambda found: to_label_image(painted(found)),
        pixels=lambda found: MAP_PIXELS * math.prod(found.image_hw),
    )


@dataclass(frozen=True, slots=True)
class _Layers:
    """What a map is painted of."""

    image_hw: tuple[int, int]
    layers: Sequence[Layer]


def similarity(detector: Detector, queries: QueryEmbeddings | None) -> Task:
    """Maps of scores, as ``Detector.similarity`` makes them; the first of them can be drawn."""
    names = names_of(queries)

    def answer(encoded: EncodedImage) -> tuple[tuple[int, int], Tensor]:
        return encoded.image_hw, detector.similarity(encoded, queries).cpu()

    def record(name: str, found: tuple[tuple[int, int], Tensor]) -> dict[str, Any]:
        (height, width), maps = found
        rows = [
            {"query": i, "label": label, "scores": [[round(v, 6) for v in row] for row in scores]}
            for i, (label, scores) in enumerate(zip(names, maps.tolist(), strict=True))
        ]
        return {"image": name, "width": width, "height": height, "maps": rows}

    def paint(image: Image.Image, found: tuple[tuple[int, int], Tensor]) -> Image.Image:
        return draw_heat_map(image, found[1][0], title=names[0])

    return Task(answer, record, paint)


def classification(detector: Detector, means: Tensor, names: Sequence[str]) -> Task:
    """Which class fits a whole picture, as ``Detector.classify`` says it, the likeliest first."""

    @torch.no_grad()
    def answer(encoded: EncodedImage) -> tuple[tuple[int, int], Tensor]:
        return encoded.image_hw, class_probabilities(means, encoded.embeddings.image_embed, detector.spec).cpu()

    def record(name: str, found: tuple[tuple[int, int], Tensor]) -> dict[str, Any]:
        (height, width), shares = found
        order = shares.argsort(descending=True, stable=True).tolist()
        rows = [{"query": i, "label": names[i], "score": round(float(shares[i]), 6)} for i in order]
        return {"image": name, "width": width, "height": height, "classes": rows}

    return Task(answer, record)


def _draw_boxes(image: Image.Image, found: Detections) -> Image.Image:
    shown = found.scaled_to((image.height, image.width))
    if shown.masks is not None:
        few = int((area(shown.boxes).cumsum(0) <= MOST_DRAWN_PIXELS).sum())
        logits = shown.masks.logits.clone()
        logits[few:] = -MOST_LOGIT
        shown = replace(shown, masks=replace(shown.masks, logits=logits))
    return draw_detections(image, shown)
