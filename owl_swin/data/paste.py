"""Makes a detection set out of named cut-outs: on photographs, with their boxes and masks (arXiv:1708.01642); on those
of a set, whose own boxes stay, it is copy-paste augmentation (arXiv:2012.07177)."""

import math
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from owl_swin.data.cutouts import Cutout, read_cutout
from owl_swin.data.scene import Scene, Scenes, readable
from owl_swin.errors import DataError
from owl_swin.files import make_folder, remove_file, write_image, write_json
from owl_swin.image import open_image
from owl_swin.made_here import MADE_HERE, check_set_may_be_written, made_here
from owl_swin.rle import encode_rle

# Height of a pasted thing as a share of the photograph's shorter side.
HEIGHTS = (0.15, 0.6)
# A thing of which less than this share of its pixels stays visible behind later ones gets no box.
LEAST_VISIBLE = 0.5
# A box of the photograph that is covered by more than this share may be of what is no longer seen: its name is then
# neither there nor absent. One that is covered by more than the other is gone.
UNSURE_COVERED, GONE_COVERED = 0.4, 0.75
# Pictures of sets that are tried before all of them are taken to be unreadable.
MOST_TRIES = 100
# Of its own size a thing gets a multiple, but no less or more than these shares of the photograph's longer side.
SCALED_SHARES = (0.05, 0.85)
# By how much, up and down, a thing then differs in brightness, and in height against width.
BRIGHTNESS, STRETCH = 0.25, 0.13


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large things become, one of these: ``shares``, the smallest and the largest longer side as a share of the
    photograph's, each above 0 and at most 1; or ``scales``, the smallest and the largest multiple of their own pixels,
    from 5 % to 85 % of the photograph, with which they vary in brightness and a little in shape too. Between them
    twice the size is as likely as half. None: heights of 0.15 to 0.6 of the photograph's shorter side."""

    shares: tuple[float, float] | None = None
    scales: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.shares is not None and self.scales is not None:
            raise DataError("sizes are shares of the photograph or multiples of a thing's own; give one of them")
        if self.shares is not None and not 0 < self.shares[0] <= self.shares[1] <= 1:
            raise DataError(f"sizes must be two numbers above 0 and at most 1, the smaller first, got {self.shares}")
        if self.scales is not None and not 0 < self.scales[0] <= self.scales[1] < math.inf:
            raise DataError(f"scales must be two numbers above 0, the smaller first, got {self.scales}")

    def scale(self, photograph: tuple[int, int], thing: tuple[int, int], rng: random.Random) -> float:
        """How many times its own size a thing (width, height) becomes on a photograph (width, height)."""
        if self.shares is not None:
            scale = math.exp(rng.uniform(*map(math.log, self.shares))) * max(photograph) / max(thing)
        elif self.scales is not None:
            least, most = (share * max(photograph) / max(thing) for share in SCALED_SHARES)
            scale = math.exp(rng.uniform(*map(math.log, self.scales)))
            scale = min(max(scale, least), most)
        else:
            scale = rng.uniform(*HEIGHTS) * min(photograph) / thing[1]
        return min(scale, photograph[0] / thing[0], photograph[1] / thing[1])


@dataclass(frozen=True, slots=True)
class Ground:
    """A photograph of a set: its boxes stay, with their names."""

    scene: Scene
    names: Sequence[str]
    of: Scenes


def grounds_of(scenes: Scenes) -> list[Ground]:
    """The photographs of a set to paste on; classes are called by their first names."""
    names = [ways[0] for ways in scenes.names]
    return [Ground(scene, names, scenes) for scene in scenes.scenes]


def paste_scenes(
    cutouts: Sequence[Cutout],
    photographs: Sequence[Path | Ground],
    folder: Path,
    *,
    pictures: int,
    most_things: int = 4,
    longer_side_px: int = 320,
    sizes: Sizes | None = None,
    balance: float = 1.0,
    seed: int = 0,
) -> Path:
    """Writes ``pictures`` scenes of 1 to ``most_things`` cut-outs and their COCO file; returns the file.

    Things are scaled, mirrored half the time, and may cover one another; boxes and masks are of what can be seen. What
    the edge of its photograph had cut off is put at that edge again. A name is drawn with the ``balance``-th power of
    how many cut-outs it has as its weight: 1 draws all cut-outs alike, 0 all names. Photographs are scaled down to
    ``longer_side_px``. Boxes of a Ground stay as they are; where most of one is covered its name becomes unknown in the
    picture (a crowd in the file), and it goes where nearly all is. The same seed gives the same scenes. A set of before
    is written over; one of another hand raises OwlSwinError.
    """
    sizes = sizes or Sizes()
    if not cutouts or not photographs:
        raise DataError(f"pasting needs cut-outs and photographs, got {len(cutouts)} and {len(photographs)}")
    if not 0 <= balance <= 1:
        raise DataError(f"balance must lie in 0 to 1, got {balance}")
    by_name: dict[str, list[Cutout]] = {}
    for one in cutouts:
        by_name.setdefault(one.name, []).append(one)
    weights = [len(own) ** balance for own in by_name.values()]
    known = {name for ground in photographs if isinstance(ground, Ground) for name in ground.names}
    rows = {name: i + 1 for i, name in enumerate(sorted(known | by_name.keys()))}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    target = folder / "annotations.json"
    check_set_may_be_written(target, folder / "images", option="--to")
    sources = (one.scene.source if isinstance(one, Ground) else one for one in photographs)
    if any(os.path.realpath(source.parent) == os.path.realpath(folder / "images") for source in sources):
        raise DataError(f"{folder}: its pictures are to be pasted on and would be written over; name another folder")
    make_folder(folder / "images")
    for index in range(pictures):
        rng = random.Random(seed * 1_000_003 + index)
        ground, canvas = _drawn(photographs, rng)
        boxes, whole = ground.scene.boxes_on(canvas) if isinstance(ground, Ground) else None, canvas.size
        canvas.thumbnail((longer_side_px, longer_side_px))
        owner = np.full((canvas.height, canvas.width), -1)
        placed: list[tuple[str, int]] = []
        for _ in range(rng.randint(1, most_things)):
            (own,) = rng.choices(list(by_name.values()), weights)
            one = rng.choice(own)
            mask = _paste(canvas, one, rng, sizes)
            owner[mask] = len(placed)
            placed.append((one.name, int(mask.sum())))
        if not images:  # a run that is stopped leaves no boxes of before on new pictures
            remove_file(target, what="the annotations")
        file_name = f"{index:06d}.jpg"
        write_image(folder / "images" / file_name, canvas, quality=92, comment=MADE_HERE)
        image: dict[str, Any] = {"file_name": file_name, "width": canvas.width, "height": canvas.height}
        found = []
        if isinstance(ground, Ground) and boxes is not None:
            shown = boxes * np.array([canvas.width / whole[0], canvas.height / whole[1]] * 2, dtype=np.float32)
            found = _of_ground(ground, shown, owner, image, rows, known)
        found += _of_things(placed, owner, rows)
        images.append({"id": index + 1, **image})
        annotations += [{"id": len(annotations) + i, "image_id": index + 1, **one} for i, one in enumerate(found, 1)]
    categories = [{"id": row, "name": name} for name, row in rows.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(target, made_here(content), what="the annotations", indent=None)
    return target


def _drawn(photographs: Sequence[Path | Ground], rng: random.Random) -> tuple[Path | Ground, Image.Image]:
    """One of them, and its pixels to paste on; those of a set that cannot be read are noted and left out."""
    for _ in range(MOST_TRIES):
        ground = rng.choice(photographs)
        picture = readable(ground.of, ground.scene) if isinstance(ground, Ground) else open_image(ground)
        if picture is not None:
            return ground, picture.copy()
    assert isinstance(ground, Ground)
    raise ground.of.unreadable()


def _of_things(placed: Sequence[tuple[str, int]], owner: np.ndarray, rows: dict[str, int]) -> list[dict[str, Any]]:
    """Annotations of what was pasted, by what is seen of it."""
    found = []
    for place, (name, pixels) in enumerate(placed):
        ys, xs = np.nonzero(owner == place)
        if pixels and len(ys) >= LEAST_VISIBLE * pixels:
            x, y = int(xs.min()), int(ys.min())
            box = [x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y]
            mask = encode_rle(owner == place)
            one = {"category_id": rows[name], "bbox": box, "area": len(ys), "iscrowd": 0, "segmentation": mask}
            found.append(one)
    return found


def _of_ground(
    ground: Ground,
    boxes: np.ndarray,
    owner: np.ndarray,
    image: dict[str, Any],
    rows: dict[str, int],
    known: set[str],
) -> list[dict[str, Any]]:
    """Annotations that the photograph brought, in its ``boxes`` as they lie on what is pasted on; what is not known of
    it goes to ``image``, as which of the names ``known`` in other sets it shows."""
    scene, found = ground.scene, list[dict[str, Any]]()
    for number, (box, label) in enumerate(zip(boxes, scene.labels.tolist(), strict=True)):
        x0, y0, x1, y1 = box.tolist()
        part = owner[int(y0) : math.ceil(y1), int(x0) : math.ceil(x1)]
        covered = float((part >= 0).mean()) if part.size else 1.0
        if covered > GONE_COVERED:
            continue
        one: dict[str, Any] = {"category_id": rows[ground.names[label]], "bbox": [x0, y0, x1 - x0, y1 - y0]}
        one |= {"area": (x1 - x0) * (y1 - y0), "iscrowd": int(covered > UNSURE_COVERED)}
        if scene.scores is not None:
            one["score"] = float(scene.scores[number])
        mask = scene.masks[number] if number < len(scene.masks) else None
        if mask is not None:
            seen = Image.fromarray(mask.pixels()).resize(owner.shape[::-1], Image.Resampling.NEAREST)
            one["segmentation"] = encode_rle(np.asarray(seen) & (owner < 0))
        found.append(one)
    unknown = {ground.names[label] for label in np.union1d(scene.unknown, scene.vague_labels).tolist()}
    unknown |= known - set(ground.names)
    if unknown:
        image["not_exhaustive_category_ids"] = sorted(rows[name] for name in unknown)
    if scene.negatives is not None:
        image["neg_category_ids"] = [rows[ground.names[label]] for label in scene.negatives.tolist()]
    return found


def _paste(canvas: Image.Image, cutout: Cutout, rng: random.Random, sizes: Sizes) -> np.ndarray:
    """Pastes in place at a random place and size; returns which pixels [H, W] it covers."""
    thing, touches = read_cutout(cutout.path), set(cutout.touches)
    scale = sizes.scale(canvas.size, thing.size, rng)
    stretch = math.exp(rng.uniform(-STRETCH, STRETCH) / 2) if sizes.scales is not None else 1.0
    width = min(canvas.width, max(1, round(thing.width * scale * stretch)))
    height = min(canvas.height, max(1, round(thing.height * scale / stretch)))
    thing = thing.resize((width, height), Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        touches = {{"left": "right", "right": "left"}.get(side, side) for side in touches}
    if sizes.scales is not None:
        gain = rng.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS)
        thing = thing.point([min(255, round(value * gain)) for value in range(256)] * 3 + list(range(256)))
    x, y = rng.randint(0, canvas.width - width), rng.randint(0, canvas.height - height)
    x = 0 if "left" in touches else canvas.width - width if "right" in touches else x
    y = 0 if "top" in touches else canvas.height - height if "bottom" in touches else y
    canvas.paste(thing, (x, y), thing)
    mask = np.zeros((canvas.height, canvas.width), dtype=bool)
    mask[y : y + height, x : x + width] = np.asarray(thing.getchannel("A")) > 127
    return mask
