"""From pictures to the regions that are stored: the most object-like boxes of each, with what scores them."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from owl_swin.detector import Detector
from owl_swin.encoded import EncodedImage
from owl_swin.errors import ImageError
from owl_swin.image import open_image
from owl_swin.index.folder import Content, read_picture

# Of two boxes that overlap by more, the more object-like stays: the regions of a picture are different ones.
NMS_IOU = 0.5
# Pictures that are encoded together, unless they are larger together than this.
BATCH = 8
BATCH_PIXELS = 40_000_000


@dataclass(frozen=True, slots=True)
class PictureRegions:
    """The regions [n] of one picture, the most object-like first; columns as in ``store.Regions``."""

    boxes: np.ndarray[Any, Any]
    objectness: np.ndarray[Any, Any]
    shift: np.ndarray[Any, Any]
    scale: np.ndarray[Any, Any]
    embeds: np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class EncodedFile:
    """A picture that was read; ``regions`` is None where its content was known and it was not encoded again.

    ``problem`` says why there is nothing else.
    """

    path: str
    image_id: str = ""
    stamp: str = ""
    modified: float = 0.0
    width: int = 0
    height: int = 0
    regions: PictureRegions | None = None
    problem: str = ""


def regions_of_picture(detector: Detector, encoded: EncodedImage, n: int) -> PictureRegions:
    """The ``n`` most object-like boxes that do not cover one another, in pixels of the picture.

    A picture for which the model gives NaN raises ImageError.
    """
    found = detector.detect(encoded, None, threshold=0.0, nms_iou=NMS_IOU, top_k=n)
    embeddings, rows = encoded.embeddings, found.patches

    def column(values: Tensor) -> np.ndarray[Any, Any]:
        return values[rows].float().cpu().numpy()

    regions = PictureRegions(
        found.boxes.float().cpu().numpy(),
        found.scores.float().cpu().numpy(),
        column(embeddings.logit_shift),
        column(embeddings.logit_scale),
        column(embeddings.class_embeds),
    )
    everything = (embeddings.objectness_logits, embeddings.class_embeds, embeddings.pred_boxes)
    stored = (regions.shift, regions.scale, regions.embeds)
    if not all(t.isfinite().all() for t in everything) or not all(np.isfinite(a).all() for a in stored):
        raise ImageError("the model gives NaN or infinity for this picture")
    return regions


def encode_pictures(
    detector: Detector, contents: Sequence[tuple[Content, Image.Image]], n: int
) -> Iterator[EncodedFile]:
    """Encodes pictures in one call; ``n``: most regions of each."""
    encoded = detector.encode_images([image for _, image in contents], batch_size=BATCH)
    for (content, image), one in zip(contents, encoded, strict=True):
        file = EncodedFile(content.path, content.image_id, content.stamp, content.modified, image.width, image.height)
        try:
            yield replace(file, regions=regions_of_picture(detector, one, n))
        except ImageError as error:
            yield EncodedFile(content.path, problem=str(error))


def read_unknown(path: str, known: Callable[[str], bool]) -> tuple[Content, Image.Image | None] | EncodedFile:
    """The content of a file and, unless that content is known, the picture in it; or why not."""
    try:
        content = read_picture(path)
        return content, None if known(content.image_id) else open_content(content.content)
    except ImageError as error:
        return EncodedFile(path, problem=str(error))


def open_content(content: bytes) -> Image.Image:
    """The picture; an ImageError that has no name in it."""
    try:
        return open_image(content)
    except ImageError as error:
        raise ImageError(error.reason) from None


def encode_files(
    detector: Detector, paths: Iterable[str], n: int, known: Callable[[str], bool]
) -> Iterator[EncodedFile]:
    """All files, in order: read and decoded ahead by a few threads, encoded in batches in this one.

    At most about one batch and one picture a thread are in memory.
    """
    threads = min(4, os.cpu_count() or 1)
    batch: list[tuple[Content, Image.Image]] = []
    with ThreadPoolExecutor(threads) as pool:
        for done in _ahead(pool, paths, lambda path: read_unknown(path, known), threads + 1):
            if isinstance(done, EncodedFile):
                yield done
                continue
            content, image = done
            if image is None:
                yield EncodedFile(content.path, content.image_id, content.stamp, content.modified)
                continue
            batch.append((replace(content, content=b""), image))
            if len(batch) == BATCH or sum(i.width * i.height for _, i in batch) > BATCH_PIXELS:
                yield from encode_pictures(detector, batch, n)
                batch = []
        yield from encode_pictures(detector, batch, n)


def _ahead(pool: ThreadPoolExecutor, items: Iterable[str], work: Callable[[str], Any], n: int) -> Iterator[Any]:
    """Results of ``work`` in order, of which at most ``n`` are begun before they are asked for."""
    begun: deque[Future[Any]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) > n:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()
