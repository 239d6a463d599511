"""Data sets and run files that the training tests make on the spot: coloured shapes on noise, and their names."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

COLOURS = {"red": (230, 20, 20), "green": (20, 200, 40), "blue": (30, 40, 235), "yellow": (240, 220, 30)}
NAMES = ("red square", "green circle", "blue square", "yellow circle")

TINY_MODEL = """
name = "tiny_for_training"
embed_dim = 32
image_size = 96

[image]
embed_dim = 16
depths = [1, 1, 2, 1]
num_heads = [1, 2, 4, 4]
window_size = 4

[text]
width = 32
layers = 1
heads = 2
context_length = 12

[heads]
width = 32
stride = 16
stages = [2, 3, 4]
"""


def grey_noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """A dim RGB picture on which a coloured shape stands out."""
    values = np.random.default_rng(seed).integers(60, 120, (height, width, 1), dtype=np.uint8)
    return Image.fromarray(values.repeat(3, 2))


def draw_shape(picture: Image.Image, name: str, box_xyxy: tuple[int, int, int, int]) -> None:
    """Draws "red square", "blue circle", … so that it fills the box."""
    colour, shape = name.split()
    pen, (x0, y0, x1, y1) = ImageDraw.Draw(picture), box_xyxy
    (pen.rectangle if shape == "square" else pen.ellipse)((x0, y0, x1 - 1, y1 - 1), fill=COLOURS[colour])


def write_shapes(folder: Path, n: int = 12) -> Path:
    """A COCO set of ``n`` pictures of 72 to 96 pixels with one or two shapes; returns its annotation file.

    Pictures lie in ``folder/images``. Category ids have gaps, as COCO's own.
    """
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    categories = [{"id": 3 * i + 2, "name": name} for i, name in enumerate(NAMES)]
    images, annotations = [], []
    for i in range(n):
        height, width = (int(side) for side in rng.integers(72, 97, 2))
        picture = grey_noise(height, width, i)
        for half in range(1 + i % 2):
            side = int(rng.integers(28, 37))
            x = int(rng.integers(0, width // 2 - side + 1)) + half * (width // 2)
            y = int(rng.integers(0, height - side + 1))
            category = categories[(i + half) % len(categories)]
            draw_shape(picture, category["name"], (x, y, x + side, y + side))
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i, "category_id": category["id"], "bbox": [x, y, side, side]}
            )
        picture.save(folder / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
    path = folder / "shapes.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path
