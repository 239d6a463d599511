"""From pictures to the regions that are stored: the most object-like boxes of each, with what scores them."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from owl_swin.detector import Detector
from owl_swin.encoded import EncodedImage, View
from owl_swin.errors import ImageError, MissingExtraError
from owl_swin.frame import HW
from owl_swin.image import open_image
from owl_swin.index.folder import Content, read_picture
from owl_swin.postprocess import DetectOptions
from owl_swin.tiling import FoundInView, Tiles, join_views

# Of two boxes that overlap by more, the more object-like stays: the regions of a picture are different ones.
NMS_IOU = 0.5
# Pictures that are encoded together, unless they are larger together than this.
BATCH = 8
BATCH_PIXELS = 40_000_000
# Regions of a picture in tiles: its boxes are compared with one another.
MOST_REGIONS = 2000
# Boxes with embeddings of this cosine may show the same thing.
ALIKE = 0.6


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


def regions_of_picture(detector: Detector, views: Iterable[tuple[int, View]], n: int) -> tuple[PictureRegions, HW]:
    """The ``n`` most object-like boxes of each view of a picture that do not cover one another, in pixels of the
    picture, whose height and width come with them. What several tiles show is there once.

    A picture for which the model gives NaN raises ImageError.
    """
    found: dict[int, FoundInView] = {}
    rows: dict[int, tuple[Tensor, ...]] = {}
    for number, view in views:
        one = detector.detect(EncodedImage((view,)), None, threshold=0.0, nms_iou=NMS_IOU, top_k=n)
        e, own = view.embeddings, one.patches
        rows[number] = tuple(values[own].float().cpu() for values in (e.logit_shift, e.logit_scale, e.class_embeds))
        everything = (e.objectness_logits, e.class_embeds, e.pred_boxes, *rows[number])
        if not all(values.isfinite().all() for values in everything):
            raise ImageError("the model gives NaN or infinity for this picture")
        # From here on a patch is the row that is kept of it.
        counted = replace(one, patches=torch.arange(len(one)))
        found[number] = FoundInView(counted.to("cpu"), view.frame.crop_xyxy, len(one))
    most = n if len(found) == 1 else min(n * len(found), max(n, MOST_REGIONS))
    options = DetectOptions(threshold=0.0, nms_iou=NMS_IOU, max_detections=most, nms_across=True)
    embeds_of = {number: own[-1] for number, own in rows.items()}
    joined = join_views(found if len(found) == 1 else _by_kind(found, embeds_of), options)
    columns = [torch.cat(column)[joined.patches] for column in zip(*(rows[i] for i in sorted(rows)), strict=True)]
    shift, scale, embeds = (column.numpy() for column in columns)
    boxes, objectness = (values.float().numpy() for values in (joined.boxes, joined.scores))
    return PictureRegions(boxes, objectness, shift, scale, embeds), joined.image_hw


def _by_kind(found: Mapping[int, FoundInView], embeds: Mapping[int, Tensor]) -> dict[int, FoundInView]:
    """The same with a label for each kind of thing, so that a box becomes a part of nothing but its like: a person who
    is cut by a seam none of the wall behind him. ``embeds`` are those of the boxes of each view."""
    together = torch.cat([embeds[number] for number in sorted(found)])  # [N, E]
    kinds = torch.full((len(together),), -1)
    n_kinds = 0
    for i in torch.cat([found[number].found.scores for number in sorted(found)]).argsort(descending=True, stable=True):
        if kinds[i] < 0:
            kinds[(kinds < 0) & (together @ together[i] >= ALIKE)] = n_kinds
            kinds[i] = n_kinds
            n_kinds += 1
    names = tuple(map(str, range(n_kinds)))
    sizes = [len(found[number].found) for number in sorted(found)]
    return {
        number: replace(found[number], found=replace(found[number].found, labels=own, names=names, best=None))
        for number, own in zip(sorted(found), kinds.split(sizes), strict=True)
    }


def encode_pictures(
    detector: Detector, contents: Sequence[tuple[Content, Image.Image]], n: int
) -> Iterator[EncodedFile]:
    """Encodes pictures in one call; ``n``: most regions of each."""
    encoded = detector.encode_images([image for _, image in contents], batch_size=BATCH)
    for (content, _), one in zip(contents, encoded, strict=True):
        try:
            yield _encoded(content, *regions_of_picture(detector, enumerate(one.views), n))
        except ImageError as error:
            yield EncodedFile(content.path, problem=str(error))


def encode_in_tiles(detector: Detector, content: Content, source: str | bytes, n: int, tiles: Tiles) -> EncodedFile:
    """Encodes a picture of any size, read from ``source`` tile by tile; ``n``: most regions of the whole of it, and of
    each tile."""
    try:
        encoded = _encoded(content, *regions_of_picture(detector, detector.views(source, tiles=tiles), n))
        if isinstance(source, str) and read_picture(source, keep=False).image_id != content.image_id:
            raise ImageError("the file changes while it is read; index again when it is complete")
    except (ImageError, MissingExtraError) as error:
        return EncodedFile(content.path, problem=getattr(error, "reason", str(error)))
    return encoded


def _encoded(content: Content, regions: PictureRegions, image_hw: HW) -> EncodedFile:
    height, width = image_hw
    return EncodedFile(content.path, content.image_id, content.stamp, content.modified, width, height, regions)


def read_unknown(
    path: str, known: Callable[[str], bool], tiles: Tiles | None = None
) -> tuple[Content, Image.Image | str | None] | EncodedFile:
    """The content of a file and, unless that content is known, the picture in it, or for ``tiles`` where it lies; or
    why not."""
    try:
        content = read_picture(path, keep=tiles is None)
        if known(content.image_id):
            return content, None
        return content, open_content(content.content) if tiles is None else path
    except ImageError as error:
        return EncodedFile(path, problem=str(error))


def open_content(content: bytes) -> Image.Image:
    """The picture; an ImageError that has no name in it."""
    try:
        return open_image(content)
    except ImageError as error:
        raise ImageError(error.reason) from None


def encode_files(
    detector: Detector, paths: Iterable[str], n: int, known: Callable[[str], bool], tiles: Tiles | None = None
) -> Iterator[EncodedFile]:
    """All files, in order: read and decoded ahead by a few threads, encoded in batches in this one.

    At most about one batch and one picture a thread are in memory, or with ``tiles`` a few of these.
    """
    threads = min(4, os.cpu_count() or 1)
    batch: list[tuple[Content, Image.Image]] = []
    with ThreadPoolExecutor(threads) as pool:
        for done in _ahead(pool, paths, lambda path: read_unknown(path, known, tiles), threads + 1):
            if isinstance(done, EncodedFile):
                yield done
                continue
            content, image = done
            if image is None:
                yield EncodedFile(content.path, content.image_id, content.stamp, content.modified)
            elif tiles is not None:
                yield encode_in_tiles(detector, content, image, n, tiles)
            else:
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
