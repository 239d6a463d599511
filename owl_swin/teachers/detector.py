"""Any model behind Detector as a teacher."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from cachetools import LRUCache
from PIL import Image
from torch import Tensor

from owl_swin.detections import Detections
from owl_swin.detector import Detector
from owl_swin.errors import QueryError
from owl_swin.tiling import Tiles
from owl_swin.types import QueryEmbeddings

# Embeddings of texts that are kept: those of a list are asked in every picture, those of captions come again.
KEPT_TEXTS = 20_000
# Texts that are encoded together.
TEXT_BATCH = 256


class DetectorTeacher:
    """A Detector, which encodes a picture once for all names, and a name once for all pictures.

    ``tiles`` are shown to it beside each whole picture; ``rivals`` is the model's own if it is None.
    """

    def __init__(
        self, detector: Detector, *, nms_iou: float = 0.5, tiles: Tiles | None = None, rivals: float | None = None
    ):
        self._detector, self._nms_iou, self._tiles = detector, nms_iou, tiles
        self._rivals = detector.spec.rivals if rivals is None else rivals
        self._embeds: LRUCache[str, Tensor] = LRUCache(KEPT_TEXTS)
        self._last: tuple[tuple[str, ...], QueryEmbeddings] | None = None
        self.name = detector.name
        self.identity: dict[str, Any] = {
            "name": detector.name,
            "weights": detector.fingerprint[:32],
            "dtype": str(detector.dtype).removeprefix("torch."),
            "image_size": detector.image_size,
            "nms_iou": nms_iou,
            "rivals": self._rivals,
            "box_voting": detector.spec.box_voting,
            "calibration": asdict(detector.spec.calibration),
        }
        if tiles is not None:
            self.identity["tiles"] = asdict(tiles)

    def find(
        self, pictures: Sequence[Image.Image], texts: Sequence[tuple[str, ...]], threshold: float
    ) -> list[Detections]:
        """As the protocol has it; pictures of one model size are encoded together."""
        queries = [self._queries(own) for own in texts]
        return self._detector.detect_batch(
            pictures,
            queries,
            batch_size=max(1, len(pictures)),
            tiles=self._tiles,
            threshold=threshold,
            nms_iou=self._nms_iou,
            rivals=self._rivals,
        )

    def at_scale(self, scale: float) -> "DetectorTeacher":
        """A model of one size cannot be asked at another."""
        if not self._detector.spec.any_size and scale != 1:
            raise QueryError(
                f"{self.name} sees pictures in one size, {self._detector.image_size} pixels; leave scales out"
            )
        size = max(1, round(self._detector.image_size * scale))
        detector = self._detector.with_image_size(size)
        return DetectorTeacher(detector, nms_iou=self._nms_iou, tiles=self._tiles, rivals=self._rivals)

    def _queries(self, texts: tuple[str, ...]) -> QueryEmbeddings:
        if self._last is not None and self._last[0] == texts:
            return self._last[1]
        known = {text: self._embeds[text] for text in texts if text in self._embeds}
        new = [text for text in texts if text not in known]
        for start in range(0, len(new), TEXT_BATCH):
            part = new[start : start + TEXT_BATCH]
            known.update(zip(part, self._detector.encode_queries(part).query_embeds, strict=True))
        self._embeds.update(known)
        queries = QueryEmbeddings(
            torch.stack([known[text] for text in texts]), texts, fingerprint=self._detector.fingerprint
        )
        self._last = texts, queries
        return queries
