"""What a teacher sees in pictures: boxes, scores, and its own embeddings of them, kept for every later start."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from owl_swin.detector import Detector
from owl_swin.encoded import EncodedImage, PreparedImage
from owl_swin.errors import DataError, ImageError
from owl_swin.image import open_image
from owl_swin.labelling.journal import LabelledPicture
from owl_swin.labelling.names import LabelName
from owl_swin.labelling.run import stamp_of
from owl_swin.queries import Query
from owl_swin.training.cache import kept_tensors
from owl_swin.training.distributed import Process, wait_for_all
from owl_swin.types import QueryEmbeddings

VERSION = 1
# Pictures of one file, and of one pass: what a kill costs, and what is in memory at once.
CHUNK, BATCH = 64, 8
# Threads that read pictures while the teacher looks at others.
READERS = 2

# (pictures done, of so many)
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class SeenPicture:
    """A picture and what was found in it, best score first.

    ``boxes [N, 4]`` are xyxy pixels of the upright picture of ``height`` and ``width``, ``labels [N]`` index the names,
    ``embeds [N, E]`` are the class embeddings of the teacher's patches that gave the boxes, and ``image_embed [E]`` is
    what it makes of the whole picture (None: a teacher that makes nothing of it). Embeddings are float16.
    """

    path: str
    height: int
    width: int
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    embeds: Tensor
    image_embed: Tensor | None

    @property
    def best(self) -> float:
        """The score of the best box; below 0 where there is none."""
        return float(self.scores.max()) if len(self.scores) else -1.0

    def labelled(self, names: Sequence[LabelName]) -> LabelledPicture:
        """The same as a labelling run has it, without embeddings."""
        boxes = tuple(tuple(round(side, 2) for side in box) for box in self.boxes.tolist())
        scores = tuple(round(score, 6) for score in self.scores.tolist())
        called = tuple(names[label].name for label in self.labels.tolist())
        return LabelledPicture(self.path, stamp_of(self.path), self.width, self.height, called, scores, boxes)


def asked_by(teacher: Detector, names: Sequence[LabelName]) -> QueryEmbeddings:
    """The names as a model is asked for them: one with several texts is one query."""
    return teacher.encode_queries([Query(name.name, texts=list(name.texts)) for name in names])


def see_pictures(
    paths: Sequence[str],
    teacher: Detector,
    names: Sequence[LabelName],
    folder: Path,
    *,
    root: str,
    threshold: float,
    process: Process,
    broken: list[str],
    progress: Progress | None = None,
) -> list[SeenPicture]:
    """What the teacher sees in each picture that can be read; the others are noted in ``broken``.

    Every 64 pictures are a file in ``folder``, which an earlier start may have left; one of other pictures, names,
    settings or another teacher is made again. Processes share the work and wait for one another.
    """
    queries = asked_by(teacher, names)
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    asked = [[name.name, list(name.texts)] for name in names]
    overlaps = [teacher.spec.nms_iou, teacher.spec.box_voting, teacher.spec.rivals, asdict(teacher.spec.calibration)]
    how = [VERSION, teacher.fingerprint, teacher.image_size, str(teacher.dtype), threshold, overlaps, asked]

    def seen(place: int) -> dict[str, Tensor]:
        own = [[os.path.relpath(path, root), stamp_of(path)] for path in chunks[place]]
        key = hashlib.sha256(json.dumps([how, own]).encode()).hexdigest()
        make = partial(_look, chunks[place], teacher, queries, threshold)
        return kept_tensors(folder / f"{place:06d}.safetensors", key, make)

    own = {}
    for place in range(process.rank, len(chunks), process.world):
        own[place] = seen(place)
        if progress is not None and process.first:
            progress(min(len(paths), (place + process.world) * CHUNK), len(paths))
    wait_for_all(process)
    found: list[SeenPicture] = []
    for place, chunk in enumerate(chunks):
        found += _pictures(chunk, own.pop(place) if place in own else seen(place))
    readable = {one.path for one in found}
    broken += [_why_not(path) for path in paths if path not in readable]
    return found


def _look(paths: Sequence[str], teacher: Detector, queries: QueryEmbeddings, threshold: float) -> dict[str, Tensor]:
    """Sizes [n, 2] and counts [n] of the pictures, and what was found in all of them, one after another."""
    whole = teacher.spec.has_image_embed
    sizes, counts, parts, images = [], [], [], []
    for path, one in zip(paths, _encoded(paths, teacher), strict=True):
        sizes.append((0, 0) if one is None else one.image_hw)
        if one is None:
            counts.append(0)
            continue
        patches = one.patches().class_embeds
        if not (patches.isfinite().all() and one.boxes_px().isfinite().all()):
            raise DataError(f"{path}: the teacher {teacher.name} answers with NaN or infinity")
        found = teacher.detect(one, queries, threshold=threshold)
        counts.append(len(found))
        parts.append((found.boxes, found.scores, found.labels, patches[found.patches].half()))
        images.append(one.embeddings.image_embed.half())
    size = teacher.spec.embed_dim
    nothing = (torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0, size).half())
    columns = [torch.cat([column.cpu() for column in columns]) for columns in zip(nothing, *parts, strict=True)]
    kept = dict(zip(("boxes", "scores", "labels", "embeds"), columns, strict=True))
    if whole:
        kept["images"] = torch.stack(images).cpu() if images else torch.zeros(0, size).half()
    return {"sizes": torch.tensor(sizes), "counts": torch.tensor(counts), **kept}


def _encoded(paths: Sequence[str], teacher: Detector) -> Iterator[EncodedImage | None]:
    """The pictures in order, None for one that cannot be read; other threads read ahead."""
    with ThreadPoolExecutor(READERS) as pool:
        ready = pool.map(partial(_prepared, teacher), paths)
        while batch := list(islice(ready, BATCH)):
            encoded = iter(teacher.encode_images([one for one in batch if one is not None], batch_size=BATCH))
            yield from (None if one is None else next(encoded) for one in batch)


def _prepared(teacher: Detector, path: str) -> PreparedImage | None:
    try:
        return teacher.prepare(path)
    except ImageError:
        return None


def _pictures(paths: Sequence[str], kept: dict[str, Tensor]) -> list[SeenPicture]:
    """The pictures of one file that could be read."""
    counts = kept["counts"].tolist()
    columns = [kept[name].split(counts) for name in ("boxes", "scores", "labels", "embeds")]
    images, seen = iter(kept.get("images", ())), []
    for path, (height, width), *found in zip(paths, kept["sizes"].tolist(), *columns, strict=True):
        if height:
            boxes, scores, labels, embeds = found
            image = next(images) if "images" in kept else None
            seen.append(SeenPicture(path, height, width, boxes, scores, labels, embeds, image))
    return seen


def _why_not(path: str) -> str:
    try:
        open_image(path)
    except ImageError as error:
        return str(error)
    return f"{path}: could not be read when it was the teacher's turn"
