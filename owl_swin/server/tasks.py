"""What is asked of each picture of a request: boxes, maps of scores, or which class it is of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from owl_swin.classification import class_probabilities
from owl_swin.detections import Detections
from owl_swin.detector import Detector
from owl_swin.encoded import EncodedImage
from owl_swin.formats import to_record
from owl_swin.postprocess import detect_options
from owl_swin.render import draw_detections, draw_heat_map
from owl_swin.scoring import names_of
from owl_swin.tiling import FoundInView, join_views
from owl_swin.types import QueryEmbeddings


@dataclass(frozen=True, slots=True)
class Task:
    """``answer`` runs in a thread of the model, ``record`` makes JSON of what it gives, under the picture's name.

    ``draw``, if there is one, makes a picture of ``found``, on the picture that was asked about or a smaller copy.
    ``join`` makes one answer of those about the whole picture and its tiles.
    """

    answer: Callable[[EncodedImage], Any]
    record: Callable[[str, Any], dict[str, Any]]
    draw: Callable[..., Image.Image] | None = None
    join: Callable[[Mapping[int, FoundInView]], Detections] | None = None


def detection(detector: Detector, queries: QueryEmbeddings | None, options: dict[str, Any]) -> Task:
    """Boxes, as ``Detector.detect`` finds them."""
    chosen = detect_options(None, options)
    return Task(
        lambda encoded: detector.detect(encoded, queries, options=chosen),
        to_record,
        _draw_boxes,
        lambda found: join_views(found, chosen),
    )


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
    height, width = found.image_hw
    scale = torch.tensor([image.width / width, image.height / height] * 2, device=found.boxes.device)
    return draw_detections(image, replace(found, boxes=found.boxes * scale, image_hw=(image.height, image.width)))
