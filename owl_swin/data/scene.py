"""A picture with boxes and names, a set of them, and the checks that every reader of boxes shares."""

import hashlib
import logging
import math
import os
import struct
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from owl_swin.data.masks import Mask
from owl_swin.errors import DataError, ImageError
from owl_swin.image import MAX_PIXELS, ImageSource, open_image, stored_size

logger = logging.getLogger("owl_swin")

# What undoes the turn by which an EXIF orientation makes a picture upright; only turns that swap width and height.
UNTURN = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def no_rows() -> np.ndarray:
    """No rows of the set's names."""
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a picture lies, its ``boxes [N, 4]`` in xyxy pixels, and ``labels [N]``: for each a row of the set's names.

    ``negatives [K]``: names that were looked for and are not there; None: every name of the set was looked for, so
    each one without a box is absent. ``unknown [U]``: names of which boxes may be missing here (LVIS' "not exhaustive",
    crowds, VOC's "difficult", a box that was broken), whether or not others are given: nothing in the picture is surely
    not one of these.

    ``scores [N]`` in (0, 1] are how sure a guessed box is; None: all are certain. ``vague_boxes [V, 4]`` and
    ``vague_labels [V]`` were guessed with too little certainty to be boxes, or their absence. ``embeds [N, E]`` and
    ``image_embed [E]`` are what the teacher that guessed the boxes thinks of each, and of the whole picture.
    ``masks`` (none, or N + V of them; None: not known) are of the boxes, and then of the vague ones: a vague box with a
    mask is an area that surely shows its name, as stuff does, without saying where its things begin and end.
    """

    source: Path
    boxes: np.ndarray
    labels: np.ndarray
    tile: tuple[int, int, int, int] | None = None  # xyxy part of the source that is the picture
    stated_wh: tuple[int, int] | None = None  # size that the boxes speak of; (1, 1): they are fractions of the picture
    negatives: np.ndarray | None = None
    unknown: np.ndarray = field(default_factory=no_rows)
    scores: np.ndarray | None = None
    vague_boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), dtype=np.float32))
    vague_labels: np.ndarray = field(default_factory=no_rows)
    embeds: np.ndarray | None = None
    image_embed: np.ndarray | None = None
    masks: tuple[Mask | None, ...] = ()

    def boxes_on(self, picture: Image.Image) -> np.ndarray:
        """The boxes in pixels of the picture as it is, which may be stored smaller than annotated."""
        return self.boxes * self._scale_to(picture)

    def vague_boxes_on(self, picture: Image.Image) -> np.ndarray:
        """The same for the vague ones."""
        return self.vague_boxes * self._scale_to(picture)

    def _scale_to(self, picture: Image.Image) -> np.ndarray:
        if self.stated_wh is None:
            return np.ones(4, dtype=np.float32)
        x, y = picture.width / self.stated_wh[0], picture.height / self.stated_wh[1]
        return np.array([x, y, x, y], dtype=np.float32)

    @property
    def area_labels(self) -> np.ndarray:
        """The labels of the vague boxes that have a mask."""
        known = [mask is not None for mask in self.masks[len(self.labels) :]]
        return self.vague_labels[known] if any(known) else no_rows()

    def absent(self, n_names: int) -> np.ndarray:
        """Rows [K] of the set's ``n_names`` names that are surely not in the picture, in order."""
        looked_for = np.arange(n_names) if self.negatives is None else self.negatives
        return np.setdiff1d(looked_for, np.concatenate([self.labels, self.unknown, self.vague_labels]))


class PictureCache:
    """Decoded pictures of all sets of a run, kept until ``max_bytes`` are in use; threads may share it."""

    def __init__(self, max_bytes: int):
        self.max_bytes, self.bytes = max_bytes, 0
        self._kept: dict[object, Image.Image] = {}
        self._lock = threading.Lock()

    def get(self, key: object) -> Image.Image | None:
        """The picture that was kept under ``key``."""
        with self._lock:
            return self._kept.get(key)

    def keep(self, key: object, picture: Image.Image) -> None:
        """Keeps the picture if there is room. None is thrown out for it: pictures are drawn at random, so what is kept
        is as likely to be drawn as what comes."""
        size = 3 * picture.width * picture.height
        with self._lock:
            if key not in self._kept and self.bytes + size <= self.max_bytes:
                self._kept[key] = picture
                self.bytes += size


@dataclass(slots=True)
class Scenes:
    """One set. A scene's ``negatives`` and ``unknown`` say what is known of the names that it has no box of."""

    scenes: list[Scene]
    names: list[list[str]]  # the ways to say each class
    broken: list[str] = field(default_factory=list)  # what was left out, a sentence each
    cache: PictureCache = field(default_factory=lambda: PictureCache(0))

    def picture(self, scene: Scene) -> Image.Image:
        """The decoded picture, kept in the cache while there is room."""
        # Of tiles the whole sheet is kept; of other pictures the one that fits the stated size.
        key = scene.source if scene.tile is not None else (scene.source, scene.stated_wh)
        sheet = self.cache.get(key)
        if sheet is None:
            sheet = open_annotated(scene)
            self.cache.keep(key, sheet)
        return sheet if scene.tile is None else sheet.crop(scene.tile)

    def summary(self) -> str:
        """Counts of what was read, and a digest of names, files, boxes and labels."""
        digest = hashlib.sha256(repr(self.names).encode("utf-8", "surrogatepass"))
        for scene in self.scenes:
            digest.update(os.fsencode(scene.source.name) + repr(scene.tile).encode())
            for part in (scene.boxes, scene.labels, scene.unknown, scene.vague_boxes, scene.vague_labels):
                digest.update(part.tobytes())
            for optional in (scene.negatives, scene.scores):
                digest.update(b"-" if optional is None else optional.tobytes())
        boxes = sum(len(scene.labels) for scene in self.scenes)
        counts = f"{len(self.scenes)} pictures, {boxes} boxes, {len(self.names)} names"
        return f"{counts}, {digest.hexdigest()[:8]}"

    def unreadable(self) -> DataError:
        """What to raise when no picture of the set can be read."""
        return DataError(
            f"none of 100 pictures drawn from {self.scenes[0].source.parent} could be read: {self.broken[-1]}"
        )


def readable(scenes: Scenes, scene: Scene) -> Image.Image | None:
    """The picture, or None (noted once in ``broken``) when its file cannot be read."""
    try:
        return scenes.picture(scene)
    except ImageError as error:
        if str(error) not in scenes.broken:
            scenes.broken.append(str(error))
            logger.warning("left out: %s", error)
        return None


def open_annotated(scene: Scene) -> Image.Image:
    """The scene's source file as its boxes see it: upright, unless the stated size is that of the stored pixels."""
    return open_image(as_annotated(scene.source, scene.stated_wh))


def as_annotated(source: Path, stated_wh: tuple[int, int] | None) -> ImageSource:
    """The file itself, or, where the boxes speak of its pixels as stored, the picture without its EXIF turn.

    Annotations speak of the picture as it is shown, EXIF orientation applied. Some tools ignore the orientation and
    annotate the pixels as stored; where the stated size tells (a quarter turn of a picture that is no square), the
    picture comes as stored, so that the boxes fit.
    """
    if stated_wh is None or stated_wh[0] == stated_wh[1]:
        return source
    stored_wh, orientation = read_header(source)
    if orientation not in UNTURN or not _sideways(stated_wh, (stored_wh[1], stored_wh[0])):
        return source
    return open_image(source).transpose(UNTURN[orientation])


def read_header(source: Path) -> tuple[tuple[int, int], int]:
    """Stored (width, height) and EXIF orientation of a picture file, without decoding it; (0, 0) and 1 if it cannot be
    read, or is too large to be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(source) as file:
                width, height = stored_size(file)
                if not 0 < width * height <= MAX_PIXELS:
                    return (0, 0), 1
                # Pillow decodes a PNG to find an EXIF chunk that stands behind the pixels.
                has_exif = file.format != "PNG" or "exif" in file.info or _png_has_exif(source)
                return (width, height), int(file.getexif().get(ExifTags.Base.Orientation, 1)) if has_exif else 1
        except Exception:  # Pillow's decoders have no root in common; open_image says what is wrong
            return (0, 0), 1


def upright_size(source: Path) -> tuple[int, int] | None:
    """(width, height) of a picture as it is shown, without decoding it; None if it cannot be read."""
    (width, height), orientation = read_header(source)
    if not width:
        return None
    return (height, width) if orientation in UNTURN else (width, height)


def _png_has_exif(source: Path) -> bool:
    """Whether a PNG has an EXIF chunk, wherever it stands."""
    with open(source, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return True
            file.seek(length + 4, 1)
    return False


def _sideways(stated_wh: tuple[int, int], upright_wh: tuple[int, int]) -> bool:
    """Whether a stated size has the shape of the picture turned by a quarter rather than upright."""
    stated, upright = (math.log(wh[0] / wh[1]) for wh in (stated_wh, upright_wh))
    return abs(stated + upright) < abs(stated - upright)


def cut_box(xyxy: Sequence[Any], wh: tuple[float, float] | None) -> tuple[float, float, float, float] | str:
    """The box cut to a picture of ``wh``, or why it is none: "not four numbers" or "empty box"."""
    try:
        x0, y0, x1, y1 = (float(value) for value in xyxy)
    except (TypeError, ValueError, OverflowError):
        return "not four numbers"
    if not all(math.isfinite(value) for value in (x0, y0, x1, y1)):
        return "not four numbers"
    width, height = wh or (math.inf, math.inf)
    x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)
    return "empty box" if x1 <= x0 or y1 <= y0 else (x0, y0, x1, y1)


def score_problem(score: Any) -> str:
    """What is wrong with the score of a guessed box; nothing, if it is a number in [0, 1]."""
    # NaN fails this too.
    return "" if isinstance(score, (int, float)) and 0 <= score <= 1 else f"its score must lie in 0 to 1, got {score!r}"


class BoxList:
    """The boxes of one picture while they are read.

    What is no box inside the picture is left out and noted in ``broken``; its name is then unknown in the picture.
    Boxes with a score under ``ignore_below`` become vague ones. The second of two boxes alike is left out and noted.
    """

    def __init__(self, broken: list[str], wh: tuple[int, int] | None = None, *, ignore_below: float = 0.0):
        self.broken, self.wh, self.ignore_below = broken, wh, ignore_below
        self.scores: list[float] = []
        self.boxes: list[tuple[float, float, float, float]] = []
        self.labels: list[int] = []
        self.unknown: list[int] = []
        self.masks: list[Mask | None] = []
        self._known: set[tuple[int, tuple[float, ...]]] = set()

    def add(
        self,
        where: str,
        label: int,
        xyxy: Sequence[Any],
        *,
        as_given: Any = None,
        score: Any = 1.0,
        mask: Mask | None = None,
        area: bool = False,
    ) -> None:
        """Adds a box, cut to the picture, once; ``where`` and ``as_given`` (the box as the file has it) are for the
        note. An ``area`` has a vague box."""
        box, problem = cut_box(xyxy, self.wh), score_problem(score)
        if isinstance(box, str):
            problem = f"{box} {list(xyxy) if as_given is None else as_given}"
        if isinstance(box, str) or problem:
            self.broken.append(f"{where}: {problem}")
            self.unknown.append(label)
        elif (label, box) in self._known:
            self.broken.append(f"{where}: given twice")
        else:
            self.keep(label, box, 0.0 if area else score, mask)

    def keep(
        self, label: int, xyxy: tuple[float, float, float, float], score: float = 1.0, mask: Mask | None = None
    ) -> None:
        """Adds a box that was checked before."""
        self._known.add((label, xyxy))
        self.boxes.append(xyxy)
        self.labels.append(label)
        self.scores.append(float(score))
        self.masks.append(mask)

    def scene(self, source: Path, **more: Any) -> Scene:
        """The scene of these boxes; ``more`` are further fields of it."""
        boxes = np.array(self.boxes, dtype=np.float32).reshape(-1, 4)
        labels = np.array(self.labels, dtype=np.int64)
        unknown = np.unique(np.array(self.unknown + list(more.pop("unknown", ())), dtype=np.int64))
        scores = np.array(self.scores, dtype=np.float32)
        sure = (scores >= self.ignore_below) & (scores > 0)
        return Scene(
            source,
            boxes[sure],
            labels[sure],
            **{"stated_wh": self.wh, **more},
            unknown=unknown,
            scores=None if (scores[sure] == 1).all() else scores[sure],
            vague_boxes=boxes[~sure],
            vague_labels=labels[~sure],
            masks=(*compress(self.masks, sure), *compress(self.masks, ~sure)) if any(self.masks) else (),
        )


def without_rare(scenes: Scenes, min_boxes: int) -> Scenes:
    """The set without the names that have fewer than ``min_boxes`` boxes and areas; rows are counted anew."""
    labels = [own for scene in scenes.scenes for own in (scene.labels, scene.area_labels)]
    counts = np.bincount(np.concatenate([no_rows(), *labels]), minlength=len(scenes.names))
    kept = np.flatnonzero(counts >= min_boxes)
    new_row = np.full(len(scenes.names), -1)
    new_row[kept] = np.arange(len(kept))
    return _renumbered(scenes, new_row, [scenes.names[row] for row in kept])


def merge_same_names(scenes: Scenes) -> Scenes:
    """The set with classes of the very same names made one: else each would be a negative of the other."""
    rows: dict[tuple[str, ...], int] = {}
    new_row = np.array([rows.setdefault(tuple(names), len(rows)) for names in scenes.names], dtype=np.int64)
    if len(rows) == len(scenes.names):
        return scenes
    logger.warning("%d classes have the names of others and are made one with them", len(scenes.names) - len(rows))
    return _renumbered(scenes, new_row, [list(names) for names in rows])


def _renumbered(scenes: Scenes, new_row: np.ndarray, names: list[list[str]]) -> Scenes:
    """The set with each row of names changed to ``new_row``; rows that become -1 go, with their boxes."""

    def moved(rows: np.ndarray) -> np.ndarray:
        return new_row[rows][new_row[rows] >= 0]

    left = [
        replace(
            scene,
            masks=tuple(
                compress(scene.masks, np.concatenate([new_row[scene.labels], new_row[scene.vague_labels]]) >= 0)
            ),
            boxes=scene.boxes[new_row[scene.labels] >= 0],
            labels=moved(scene.labels),
            scores=None if scene.scores is None else scene.scores[new_row[scene.labels] >= 0],
            embeds=None if scene.embeds is None else scene.embeds[new_row[scene.labels] >= 0],
            vague_boxes=scene.vague_boxes[new_row[scene.vague_labels] >= 0],
            vague_labels=moved(scene.vague_labels),
            negatives=None if scene.negatives is None else np.unique(moved(scene.negatives)),
            unknown=np.unique(moved(scene.unknown)),
        )
        for scene in scenes.scenes
    ]
    return replace(scenes, scenes=left, names=names)


def without_missing(scenes: list[Scene], broken: list[str]) -> list[Scene]:
    """The scenes whose file is there; the others are noted in ``broken``."""
    missing = missing_files([scene.source for scene in scenes])
    broken += [f"{source}: no such picture" for source in missing]
    return [scene for scene in scenes if scene.source not in missing] if missing else scenes


def missing_files(sources: Sequence[Path]) -> dict[Path, None]:
    """The files that are not there, in order, each once. A folder is listed once, not asked for every file."""
    listed: dict[Path, set[str]] = {}
    missing: dict[Path, None] = {}
    for source in sources:
        folder = source.parent
        if folder not in listed:
            try:
                listed[folder] = {path.name for path in folder.iterdir()}
            except (OSError, ValueError):
                listed[folder] = set()
        if source.name not in listed[folder] and not _is_file(source):
            missing[source] = None
    return missing


def _is_file(path: Path) -> bool:
    # A file system may know the name in another case or composition than its listing shows.
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
