"""A teacher whose answers are written down, and pictures for it."""

import json
import os
import signal
from pathlib import Path

import torch
from picture_files import encode, noise

from owl_swin.detections import Detections
from owl_swin.labelling.names import LabelSpace, label_names


class Scripted:
    """A teacher that finds, in a picture of width W, what its script has for W: (label, score, box)."""

    name = "scripted"

    def __init__(self, script, identity="a", dies_at=None):
        self.script, self.identity, self.dies_at = script, {"name": identity}, dies_at
        self.seen, self.asked = [], []

    def find(self, pictures, texts, threshold):
        self.asked += texts
        return [self._found(picture, own) for picture, own in zip(pictures, texts, strict=True)]

    def at_scale(self, scale):
        return self

    def _found(self, picture, texts):
        if picture.width == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen.append(picture.width)
        rows = self.script.get(picture.width, [])
        boxes = torch.tensor([box for _, _, box in rows], dtype=torch.float32).reshape(-1, 4)
        scores = torch.tensor([score for _, score, _ in rows])
        labels = torch.tensor([label for label, _, _ in rows], dtype=torch.long)
        size = picture.height, picture.width
        return Detections(boxes, scores, labels, texts, size, torch.zeros(len(rows), dtype=torch.long))


BOX = (2, 3, 12, 23)
ONE_EACH = {width: [(0, 0.9, BOX)] for width in (40, 41, 42, 43, 44)}
DOG_AND_CAT = LabelSpace(label_names(["dog", "cat"]))


def five_pictures(folder: Path) -> list[Path]:
    """Pictures of widths 40 to 44, one of them in a folder in the folder."""
    (folder / "süd").mkdir(parents=True)
    paths = [folder / f"{width}.png" for width in (40, 41, 42, 43)] + [folder / "süd" / "44.png"]
    for width, path in enumerate(paths, start=40):
        path.write_bytes(encode(noise(30, width, seed=width)))
    return paths


def labels_of(path: Path) -> dict:
    return json.loads(path.read_text())
