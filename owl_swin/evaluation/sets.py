"""The pictures of a set through the encoder, a few at a time, and answers in the pixels of its annotations."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from owl_swin.boxes import xyxy_to_xywh
from owl_swin.data.coco import stated_size
from owl_swin.data.scene import as_annotated
from owl_swin.detections import Detections
from owl_swin.detector import Detector
from owl_swin.encoded import EncodedImage
from owl_swin.errors import ImageError
from owl_swin.image import ImageSource
from owl_swin.tiling import TilesLike

# (pictures done, of so many)
Progress = Callable[[int, int], None]
# Pictures that are decoded and encoded together.
BATCH = 8


def encode_set(
    detector: Detector,
    truth: dict[str, Any],
    broken: list[str],
    progress: Progress | None = None,
    tiles: TilesLike | None = None,
    *,
    masks: bool = False,
) -> Iterator[tuple[dict[str, Any], EncodedImage]]:
    """Each record of a picture with the picture encoded, in order and as its boxes see it, with what ``masks`` are made
    of; a picture that cannot be read is added to ``broken`` instead."""
    records = truth["images"]
    for start in range(0, len(records), BATCH):
        batch = records[start : start + BATCH]
        pictures = [partial(as_annotated, record["source"], stated_size(record)) for record in batch]
        for offset, encoded in enumerate(encode_pictures(detector, pictures, broken, tiles, masks=masks)):
            if encoded is not None:
                yield batch[offset], encoded
            if progress is not None:
                progress(start + offset + 1, len(records))


def encode_pictures(
    detector: Detector,
    pictures: Sequence[ImageSource | Callable[[], ImageSource]],
    broken: list[str],
    tiles: TilesLike | None = None,
    *,
    masks: bool = False,
) -> list[EncodedImage | None]:
    """The pictures, or what these functions give, encoded together, or each with its tiles; None, and a sentence in
    ``broken``, for each that cannot be read."""
    if tiles is not None:
        return [_with_tiles(detector, picture, tiles, broken, masks) for picture in pictures]
    try:
        given = [_given(picture) for picture in pictures]
        return list(detector.encode_images(given, batch_size=len(pictures), masks=masks))
    except ImageError:  # one of them cannot be read: which one?
        encoded: list[EncodedImage | None] = []
        for picture in pictures:
            try:
                encoded += detector.encode_images([_given(picture)], batch_size=1, masks=masks)
            except ImageError as error:
                broken.append(str(error))
                encoded.append(None)
        return encoded


def _with_tiles(
    detector: Detector,
    picture: ImageSource | Callable[[], ImageSource],
    tiles: TilesLike,
    broken: list[str],
    masks: bool,
) -> EncodedImage | None:
    try:
        return detector.encode_image(_given(picture), tiles=tiles, masks=masks)
    except ImageError as error:
        broken.append(str(error))
        return None


def _given(picture: ImageSource | Callable[[], ImageSource]) -> ImageSource:
    return picture() if callable(picture) else picture


def coco_rows(found: Detections, record: dict[str, Any], category_ids: Sequence[Any]) -> list[dict[str, Any]]:
    """COCO result rows of one picture, in annotated pixels; label i is the class ``category_ids[i]``. Masks, where the
    detections have some, are there as run lengths, which take a few hundred bytes each."""
    boxes = xyxy_to_xywh(in_annotated_pixels(found, record)).tolist()
    rows = [
        {"image_id": record["id"], "category_id": category_ids[label], "bbox": box, "score": score}
        for box, label, score in zip(boxes, found.labels.tolist(), found.scores.tolist(), strict=True)
    ]
    if found.masks is None:
        return rows
    width, height = stated_size(record) or found.image_hw[::-1]
    masks = found.masks.scaled_to((round(height), round(width))).rle()
    return [{**row, "segmentation": mask} for row, mask in zip(rows, masks, strict=True)]


def in_annotated_pixels(found: Detections, record: dict[str, Any]) -> torch.Tensor:
    """Boxes [N, 4], xyxy, in a picture of the size that the annotation file states, if it states one."""
    height, width = found.image_hw
    stated = stated_size(record) or (width, height)
    return found.boxes.cpu() * torch.tensor([stated[0] / width, stated[1] / height] * 2)
