"""Videos that the tests make on the spot, and a detector that sees coloured rectangles in them."""

import struct

import numpy as np
import torch
from PIL import Image

from owl_swin.detections import Detection, Detections
from owl_swin.postprocess import detect_options
from owl_swin.types import QueryEmbeddings
from owl_swin.video_output import video_writer

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


def make_video(path, frames, size=(96, 64)):
    """An MP4 of frames (time_s, [(colour, box)]) on a grey ground."""
    with video_writer(path) as writer:
        for time_s, things in frames:
            image = Image.new("RGB", size, (128, 128, 128))
            for colour, box in things:
                image.paste(COLOURS[colour], box)
            writer.add(image, time_s)
    return path


def moving(n_frames, frame_s=0.1, step=2):
    """A red thing that moves right, and from the third frame on a blue one that stays."""
    return [
        (i * frame_s, [("red", (4 + step * i, 4, 24 + step * i, 24)), *[("blue", (40, 40, 60, 60))] * (i >= 2)])
        for i in range(n_frames)
    ]


def turned_by_its_header(content: bytes) -> bytes:
    """An MP4 that says that it is to be shown a quarter turn clockwise."""
    place = content.index(b"tkhd") + 4 + 40  # the matrix of its track
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    return content[:place] + matrix + content[place + 36 :]


class SeesColours:
    """Finds each rectangle of a colour that it is asked for, with score 0.9, and remembers how many pictures it got at
    once; ``scores`` are those of one colour in frame after frame instead."""

    def __init__(self, scores=()):
        self.sizes, self.scores = [], iter(scores)

    def encode_queries(self, names):
        return QueryEmbeddings(torch.zeros(len(names), 1), tuple(names))

    def detect_batch(self, pictures, queries, *, options=None, batch_size=8, tiles=None):
        self.sizes.append(len(pictures))
        return [self._found(picture, queries.names, detect_options(options)) for picture in pictures]

    def _found(self, picture, names, options):
        pixels = np.asarray(picture).astype(int)
        rows = []
        for label, name in enumerate(names):
            ys, xs = np.nonzero(np.abs(pixels - COLOURS[name]).sum(2) < 120)
            if len(ys):
                rows.append((label, next(self.scores, 0.9), [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]))
        best = max(
            (Detection(names[row[0]], row[1], tuple(row[2]), row[0]) for row in rows), default=None, key=score_of
        )
        rows = [row for row in rows if row[1] >= options.thresholds(names)[row[0]]]
        rows.sort(key=lambda row: -row[1])
        labels = torch.tensor([row[0] for row in rows], dtype=torch.long)
        boxes = torch.tensor(np.array([row[2] for row in rows]).reshape(-1, 4), dtype=torch.float)
        scores = torch.tensor([row[1] for row in rows], dtype=torch.float)
        return Detections(boxes, scores, labels, names, (picture.height, picture.width), labels, best)


def score_of(one):
    """What detections are ordered by."""
    return one.score
