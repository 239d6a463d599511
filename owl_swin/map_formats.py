"""Maps of what each pixel shows in the forms that other programs read: PNG with a palette, COCO panoptic."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from owl_swin.rle import compressed
from owl_swin.semantic_map import NOTHING, SemanticMap

# Classes that a PNG with a palette has room for; its last value is "nothing", as the tools of ADE20K have it.
PALETTE_CLASSES = 255


def class_colour(label: int) -> tuple[int, int, int]:
    """The colour of a class, always the same: Pascal VOC's, which spreads the bits of the number over red, green and
    blue. Class 0 has VOC's first colour that is not black."""
    number, colour = label % PALETTE_CLASSES + 1, [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            colour[channel] |= (number >> channel & 1) << (7 - bit)
        number >>= 3
    return colour[0], colour[1], colour[2]


def to_label_image(found: SemanticMap) -> Image.Image:
    """A picture whose values are the labels. Up to 255 classes: 8 bits with a palette of ``class_colour``, 255 is
    nothing; more: 16 bits of grey, 65535 is nothing."""
    labels = found.labels.numpy()
    if len(found.names) > PALETTE_CLASSES:
        return Image.fromarray(np.where(labels == NOTHING, 65535, labels).astype(np.uint16))
    image = Image.fromarray(np.where(labels == NOTHING, PALETTE_CLASSES, labels).astype(np.uint8)).convert("P")
    colours = [value for label in range(PALETTE_CLASSES) for value in class_colour(label)]
    image.putpalette([*colours, 0, 0, 0])
    return image


def to_legend(found: SemanticMap) -> dict[str, Any]:
    """What the values of ``to_label_image`` mean: the classes that the picture shows, the largest first, and the share
    of it that each takes."""
    height, width = found.image_hw
    nothing = PALETTE_CLASSES if len(found.names) <= PALETTE_CLASSES else 65535
    classes = [
        {"id": label, "name": found.names[label], "color": list(class_colour(label)), "share": round(share, 6)}
        for label, share in found.shares().items()
        if label != NOTHING
    ]
    return {"width": width, "height": height, "nothing": nothing, "classes": classes}


def to_panoptic_image(found: SemanticMap) -> tuple[Image.Image, list[dict[str, Any]]]:
    """A PNG's pixels and the segments_info of COCO's panoptic form: one segment a class. The id of a segment, which is
    R + 256 G + 65536 B there, is that of its category: 1 + the label; 0 is nothing."""
    ids = found.labels.numpy().astype(np.uint32) + np.uint32(1)
    segments = []
    for label in found.shares():
        if label == NOTHING:
            continue
        own = ids == label + 1
        rows, cols = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
        top, left = int(rows[0]), int(cols[0])
        segments.append(
            {
                "id": label + 1,
                "category_id": label + 1,
                "area": int(own.sum()),
                "bbox": [left, top, int(cols[-1]) - left + 1, int(rows[-1]) - top + 1],
                "iscrowd": 0,
            }
        )
    return Image.fromarray(np.stack([ids >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)), segments


def to_segments(found: SemanticMap) -> list[dict[str, Any]]:
    """What the map shows, the largest first: the ``id`` of a name, how much of the picture it takes, its mean score,
    and its pixels in COCO's compressed run lengths, as pycocotools reads them."""
    labels = found.labels.cpu().numpy()
    flat = labels.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])  # runs of one label, column by column
    ends, of_run = np.append(starts[1:], flat.size), flat[starts]
    scores = found.scores.cpu().numpy()
    sums = np.bincount(labels.ravel() + 1, scores.ravel(), len(found.names) + 1)
    segments = []
    for label, share in found.shares().items():
        if label == NOTHING:
            continue
        own = of_run == label
        edges = np.stack([starts[own], ends[own]], 1).ravel()
        counts = np.diff(np.concatenate([[0], edges, [flat.size] if edges[-1] < flat.size else []]).astype(np.int64))
        area = int(counts[1::2].sum())
        segments.append(
            {
                "id": label,
                "name": found.names[label],
                "area": area,
                "share": round(share, 6),
                "score": round(float(sums[label + 1]) / area, 6),
                "segmentation": {"size": list(labels.shape), "counts": compressed(counts)},
            }
        )
    return segments


def panoptic_categories(names: Sequence[str]) -> list[Mapping[str, Any]]:
    """COCO's list of categories; a class of pixels is "stuff", of which nobody counts the things."""
    return [
        {"id": label + 1, "name": name, "supercategory": "", "isthing": 0, "color": list(class_colour(label))}
        for label, name in enumerate(names)
    ]
