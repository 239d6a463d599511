"""What a teacher saw, parted into pictures to learn from and pictures to be compared on."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from owl_swin.data.scene import PictureCache, Scene, Scenes
from owl_swin.distillation.seen import SeenPicture
from owl_swin.errors import DataError
from owl_swin.labelling.label_set import label_set
from owl_swin.labelling.names import LabelName


def held_out(seen: Sequence[SeenPicture], share: float, root: str) -> tuple[list[SeenPicture], list[SeenPicture]]:
    """(to learn from, held out): the names of the files decide, so that the same pictures fall to the same part.

    At least one picture is held out and one is not; fewer than two raise DataError.
    """
    if len(seen) < 2:
        raise DataError(f"a student needs at least 2 pictures, one of which is held out; {len(seen)} could be read")
    count = min(max(1, round(share * len(seen))), len(seen) - 1)
    order = sorted(seen, key=lambda one: hashlib.sha256(os.fsencode(os.path.relpath(one.path, root))).digest())
    out = {one.path for one in order[:count]}
    return [one for one in seen if one.path not in out], [one for one in seen if one.path in out]


def worth_learning(seen: Sequence[SeenPicture], least: float, names: Sequence[LabelName]) -> list[SeenPicture]:
    """The pictures whose best box has a score of ``least``; none at all raises DataError."""
    kept = [one for one in seen if one.best >= least]
    if not kept:
        best = max(seen, key=lambda one: one.best)
        found = "nothing was found in them"
        if best.best >= 0:
            name = names[int(best.labels[best.scores.argmax()])].name
            found = f"the best is {best.best:.3f} ({name} in {best.path})"
        raise DataError(
            f"none of {len(seen)} pictures has a box that the teacher gives a score of {least:g}; {found}; lower the "
            "picture threshold, or ask for other names"
        )
    return kept


def scenes_of(seen: Sequence[SeenPicture], names: Sequence[LabelName], cache: PictureCache) -> Scenes:
    """The pictures as a set to train on, with scores and embeddings."""
    scenes = [
        Scene(
            Path(one.path),
            one.boxes.numpy().astype(np.float32),
            one.labels.numpy(),
            stated_wh=(one.width, one.height),
            scores=one.scores.numpy().astype(np.float32),
            embeds=one.embeds.numpy(),
            image_embed=None if one.image_embed is None else one.image_embed.numpy(),
        )
        for one in seen
    ]
    return Scenes(scenes, [list(name.texts) for name in names], cache=cache)


def labels_of(seen: Sequence[SeenPicture], names: Sequence[LabelName], root: str, teacher: str) -> dict[str, Any]:
    """The pictures as a file in COCO's form, with scores."""
    info = {"description": "pseudo-labels", "teacher": teacher}
    return label_set([one.labelled(names) for one in seen], root, [name.name for name in names], info)
