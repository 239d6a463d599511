"""Small labelled and captioned pictures, decoded once and held in memory as uint8, for alignment."""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from owl_swin.data.broken import reading, report_broken
from owl_swin.data.captions import read_coco_captions, read_csv, read_jsonl, read_tars
from owl_swin.data.config import ALIGN_KINDS, DataConfig
from owl_swin.data.labelled import (
    Sample,
    read_crops,
    read_cutouts,
    read_folders,
    read_labelled,
    read_tiles,
)
from owl_swin.errors import DataError

# The most that one set may take: more would be swapped out on most machines.
MAX_BYTES = 16 << 30

READERS: dict[str, Callable[[DataConfig, list[str]], Iterator[Sample]]] = {
    "sheets": read_tiles,
    "crops": read_crops,
    "labelled": read_labelled,
    "folders": read_folders,
    "cutouts": read_cutouts,
    "captions": read_tars,
    "csv": read_csv,
    "jsonl": read_jsonl,
    "coco_captions": read_coco_captions,
}
CAPTIONED = ("captions", "csv", "jsonl", "coco_captions")


@dataclass(frozen=True, slots=True)
class Pictures:
    """``images [N, 3, S, S]`` uint8 and, for each, ``labels [N]``: a row of ``texts``.

    ``texts[label]`` are the ways to say it. ``captioned`` pictures have a label each and are contrasted within the
    batch; the others with all texts of their set. ``broken`` says what was left out, a sentence each.
    """

    images: Tensor
    labels: Tensor
    texts: list[list[str]]
    captioned: bool = False
    broken: tuple[str, ...] = ()

    def summary(self) -> str:
        """Counts of what was read, and a digest of labels and texts."""
        digest = hashlib.sha256(repr((self.labels.tolist(), self.texts)).encode("utf-8", "surrogatepass"))
        return f"{len(self.labels)} pictures, {len(self.texts)} names or captions, {digest.hexdigest()[:8]}"


def load_pictures(config: DataConfig) -> Pictures:
    """Reads one set; what each kind expects is said in DataConfig. Broken entries are left out, listed and counted in
    a warning. A set that needs more than 16 GiB is refused."""
    if config.kind not in ALIGN_KINDS:
        known = ", ".join(ALIGN_KINDS)
        raise DataError(f"{config.path}: sets of kind {config.kind!r} are not for alignment; those of {known} are")
    broken: list[str] = []
    samples = _read(config, broken)
    if not samples:
        problem = f"cannot be read as {config.kind!r} ({broken[0]})" if broken else ""
        raise DataError(f"{config.path}: {problem or f'holds no picture of split {config.split!r}'}")
    report_broken(config.path, broken)
    captioned = config.kind in CAPTIONED
    order = list(range(len(samples)))
    random.Random(0).shuffle(order)
    texts: dict[tuple[str, ...], int] = {}
    labels: list[int] = []
    kept: list[int] = []
    counts: dict[int, int] = {}
    for place in order:
        label = len(labels) if captioned else texts.setdefault(samples[place][1], len(texts))
        counts[label] = counts.get(label, 0) + 1
        if not config.max_per_class or counts[label] <= config.max_per_class:
            labels.append(label)
            kept.append(place)
    texts_of_label = [list(samples[place][1]) for place in kept] if captioned else [list(names) for names in texts]
    images = torch.empty(len(kept), 3, config.size, config.size, dtype=torch.uint8)
    for row, place in enumerate(kept):
        images[row] = torch.from_numpy(samples[place][0]).permute(2, 0, 1)
        samples[place] = (np.empty(0, np.uint8), ())  # its pixels are in the tensor now
    return Pictures(images, torch.tensor(labels), texts_of_label, captioned, tuple(broken))


def _read(config: DataConfig, broken: list[str]) -> list[Sample]:
    """All samples of the set, or the first ``max_pictures``."""
    samples: list[Sample] = []
    most = MAX_BYTES // (3 * config.size**2)
    with reading(config.path, f"a set of kind {config.kind!r}"):
        for sample in READERS[config.kind](config, broken):
            if config.max_pictures and len(samples) == config.max_pictures:
                break
            if len(samples) == most:
                raise DataError(
                    f"{config.path}: holds more than {most} pictures, which at {config.size} pixels take more than "
                    f"{MAX_BYTES / 2**30:.3g} GiB of memory; set data.max_pictures, or a smaller data.size"
                )
            samples.append(sample)
    return samples
