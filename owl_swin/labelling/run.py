"""Pseudo-labels: what a teacher finds in pictures becomes a data set with scores.

After the self-training recipe of OWL-ST (arXiv:2306.09683): a picture stays if its best box reaches one threshold, a
box from a lower one on, and the scores stay as soft weights.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.ops import batched_nms

from owl_swin.boxes import area
from owl_swin.detections import Detections
from owl_swin.errors import ConfigError, DataError, ImageError, QueryError
from owl_swin.files import make_folder_of, write_bytes
from owl_swin.image import open_image
from owl_swin.labelling.journal import Journal, LabelledPicture, digest_of
from owl_swin.labelling.label_set import label_set
from owl_swin.labelling.names import Asked, LabelSpace
from owl_swin.locks import hold_lock
from owl_swin.teachers.teacher import Teacher, checked

# Boxes of one name by several texts compete at this overlap.
NMS_IOU = 0.5
# Threads that read pictures while the teacher looks at others.
READERS = 2


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """``threshold``: lowest score of a box. ``picture_threshold``: lowest score of the best box of a picture that
    stays. ``batch_size``: pictures that the teacher is shown together."""

    threshold: float = 0.1
    picture_threshold: float = 0.3
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name in ("threshold", "picture_threshold"):
            if not 0 <= getattr(self, name) <= 1:  # NaN fails this too
                raise ConfigError(f"{name} must lie in 0 to 1, got {getattr(self, name)}")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {self.batch_size}")


@dataclass(frozen=True, slots=True)
class LabelReport:
    """What a run came to: ``kept`` pictures with ``boxes``; ``dropped`` had no box good enough; ``known`` were labelled
    by an earlier run; ``skipped`` could not be read, (path, reason). ``root`` is the folder from which on the set names
    its files. ``pictures`` are those that were kept."""

    kept: int
    boxes: int
    dropped: int
    known: int
    skipped: tuple[tuple[str, str], ...]
    root: str
    pictures: tuple[LabelledPicture, ...]


def label_pictures(
    pictures: Sequence[str | os.PathLike[str]],
    to: str | os.PathLike[str],
    teacher: Teacher,
    space: LabelSpace,
    options: LabelOptions | None = None,
    *,
    root: str | os.PathLike[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> LabelReport:
    """Writes a data set in COCO's form of what the teacher finds, with scores, to ``to``: whole or not at all.

    ``root`` is the folder from which on the set names its files; None: the one that holds them all.

    Every answer goes at once to a journal beside it: the same call goes on after whatever has stopped it, and labels
    only what is new or has changed once it is finished. A second run on the same output at the same time, other
    settings while one is unfinished, an output that is not from here, a teacher's answer that means nothing, and
    pictures of which none can be read or stays, raise DataError; no answer is lost by that.
    """
    options, to = options or LabelOptions(), Path(to)
    spellings: dict[str, str] = {}  # of each file the first one
    for path in pictures:
        spellings.setdefault(os.path.abspath(path), os.fspath(path))  # noqa: PTH100
    paths = list(spellings.values())
    if not paths:
        raise DataError("there is no picture to label")
    if not space.listed and not any(space.own.values()):
        raise QueryError("there is nothing to look for; give names, or captions to take them from")
    folder = common_folder(paths) if root is None else os.fspath(root)
    make_folder_of(to)
    settings = {"teacher": teacher.identity, "names": space.identity, "threshold": options.threshold}
    with _only_run(to):
        journal = Journal(to.with_name(to.name + ".journal"), to, settings)
        try:
            return _label(paths, to, folder, teacher, space, options, journal, progress)
        finally:
            journal.close()


def _label(
    paths: Sequence[str],
    to: Path,
    root: str,
    teacher: Teacher,
    space: LabelSpace,
    options: LabelOptions,
    journal: Journal,
    progress: Callable[[int], None] | None,
) -> LabelReport:
    known = {path for path in paths if _is_known(path, journal, space)}
    done, skipped = len(known), list[tuple[str, str]]()
    new = [path for path in paths if path not in known]
    for batch in _batches(_opened(new, options.batch_size), options.batch_size):
        readable = [one for one in batch if not isinstance(one, Unreadable)]
        skipped += [(one.path, one.reason) for one in batch if isinstance(one, Unreadable)]
        for row in _answers(readable, teacher, space, options.threshold):
            journal.add(row)
        journal.to_disk()
        done += len(batch)
        if progress is not None:
            progress(done)
    unreadable = {path for path, _ in skipped}
    rows = [journal.pictures[path] for path in paths if path not in unreadable]
    if not rows:
        raise DataError(f"none of {len(paths)} pictures can be read; the first: {skipped[0][0]}: {skipped[0][1]}")
    kept = [row for row in rows if max(row.scores, default=-1.0) >= options.picture_threshold]
    if not kept:
        raise DataError(_nothing_kept(rows, options))
    info = {
        "description": "pseudo-labels",
        "teacher": teacher.identity,
        "threshold": options.threshold,
        "picture_threshold": options.picture_threshold,
    }
    content = json.dumps(label_set(kept, root, Asked.of(space.listed).names, info)).encode() + b"\n"
    journal.will_write(digest_of(content))
    write_bytes(to, content, what="the labels")
    boxes = sum(len(row.boxes) for row in kept)
    return LabelReport(len(kept), boxes, len(rows) - len(kept), len(known), tuple(skipped), root, tuple(kept))


@dataclass(frozen=True, slots=True)
class Opened:
    """A picture that was read."""

    path: str
    stamp: str
    picture: Image.Image


@dataclass(frozen=True, slots=True)
class Unreadable:
    """One that could not be."""

    path: str
    reason: str


def _opened(paths: Iterable[str], ahead: int) -> Iterator[Opened | Unreadable]:
    """The pictures in order, read by other threads, at most ``ahead`` before they are asked for."""
    pool = ThreadPoolExecutor(READERS)
    try:
        waiting: deque[Any] = deque()
        for path in paths:
            waiting.append(pool.submit(_open, path))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _open(path: str) -> Opened | Unreadable:
    stamp = stamp_of(path)  # before the file is read: one that changes meanwhile is read again by the next run
    try:
        return Opened(path, stamp, open_image(path))
    except ImageError as error:
        return Unreadable(path, error.reason)


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _answers(
    opened: Sequence[Opened], teacher: Teacher, space: LabelSpace, threshold: float
) -> Iterator[LabelledPicture]:
    """What the teacher finds in pictures that are shown to it together."""
    asked = [space.asked(one.path) for one in opened]
    shown = [i for i in range(len(opened)) if asked[i].texts]
    try:
        found = teacher.find([opened[i].picture for i in shown], [asked[i].texts for i in shown], threshold)
    except torch.OutOfMemoryError:
        raise DataError(
            f"the memory of the device is too small for {len(shown)} pictures at once; give a smaller batch size"
        ) from None
    except DataError as error:  # of one of several teachers
        where = f"{opened[0].path} to {opened[-1].path}" if len(opened) > 1 else opened[0].path
        raise DataError(error.reason, of=where) from None
    if len(found) != len(shown):
        raise DataError(f"the teacher {teacher.name} gave {len(found)} answers for {len(shown)} pictures")
    answers = dict(zip(shown, found, strict=True))
    for i, one in enumerate(opened):
        size, own = one.picture.size, space.own_names(one.path)
        empty = LabelledPicture(one.path, one.stamp, *size, asked=own)
        if i not in answers:
            yield empty
            continue
        try:
            answer = checked(answers[i], one.picture, asked[i].texts, teacher.name)
        except DataError as error:
            raise DataError(error.reason, of=one.path) from None
        labels, scores, boxes = _by_name(answer, asked[i], threshold)
        names = tuple(asked[i].names[label] for label in labels)
        yield replace(empty, names=names, scores=scores, boxes=boxes)


def _is_known(path: str, journal: Journal, space: LabelSpace) -> bool:
    """Whether this very file was asked for these very names."""
    row = journal.pictures.get(path)
    return row is not None and row.stamp == stamp_of(path) and row.asked == space.own_names(path)


def _by_name(
    found: Detections, asked: Asked, threshold: float
) -> tuple[list[int], tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """Places of names, scores and boxes, best first: what several texts of one name found is one box."""
    labels = torch.tensor(asked.owners, dtype=torch.long)[found.labels]
    keep = (found.scores >= threshold).nonzero()[:, 0]
    if len(set(asked.owners)) < len(asked.owners):
        kept = batched_nms(found.boxes[keep].double(), found.scores[keep].double(), labels[keep], NMS_IOU)
        keep = keep[kept]
    keep = keep[found.scores[keep].argsort(descending=True, stable=True)]
    rounded = (found.boxes[keep].double() * 100).round() / 100
    thin = area(rounded) == 0  # less than a hundredth of a pixel
    keep, rounded = keep[~thin], rounded[~thin]
    scores = tuple(round(score, 6) for score in found.scores[keep].tolist())
    boxes = tuple(tuple(round(side, 2) for side in box) for box in rounded.tolist())
    return labels[keep].tolist(), scores, boxes


def _nothing_kept(rows: Sequence[LabelledPicture], options: LabelOptions) -> str:
    best = max(rows, key=lambda row: max(row.scores, default=-1.0))
    if not best.scores:
        return (
            f"no box in {len(rows)} pictures has a score of {options.threshold:g}; lower the threshold, or ask others"
        )
    return (
        f"no picture of {len(rows)} has a box with a score of {options.picture_threshold:g}; the best is "
        f"{max(best.scores):.3f} ({best.names[best.scores.index(max(best.scores))]} in {best.image}); lower the "
        "picture threshold, or ask others"
    )


def _only_run(to: Path) -> Any:
    return hold_lock(
        to.with_name(f".{to.name}.lock"),
        busy=lambda holder: DataError(f"{to}: {holder} is writing these labels; wait for it, or name another file"),
        failed=lambda error: DataError(f"{to}: cannot write the labels here ({error.strerror})"),
        remove=True,
    )


def stamp_of(path: str) -> str:
    """Text that changes when a file does: its size, the time of its content, and that of any change, as of how it is
    turned where the first was put back; "" where it cannot be seen."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return ""
    return f"{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def common_folder(paths: Sequence[str]) -> str:
    """The folder that holds all of the pictures, in itself or in its folders."""
    try:
        return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])  # noqa: PTH100, PTH120
    except ValueError:  # drives of Windows have none in common
        return os.path.dirname(paths[0])  # noqa: PTH120
