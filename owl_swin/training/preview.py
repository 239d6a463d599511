"""A picture of what the model finds while it trains, in scenes of the run that are asked for what they hold."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from owl_swin.detector import Detector
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.render import draw_detections, picture_grid

SCENES, COLUMNS = 6, 3
TILE_PX = 320
# Low, so that a young model shows what it believes.
THRESHOLD = 0.15


def draw_preview(model: OwlSwin, scenes: Sequence[tuple[Tensor, list[str]]], image_size: int) -> Image.Image:
    """Draws a model's answers on the first scenes: uint8 pixels [3, H, W], and the names to ask for, below each."""
    copy = OwlSwin(model.config)
    copy.load_state_dict(model.state_dict())
    detector = Detector(copy, device="cpu", image_size=image_size)
    cells, texts = [], []
    for pixels, names in scenes[:SCENES]:
        picture = _enlarged(pixels)
        if names:
            with torch.inference_mode():
                found = detector.detect(picture, names, threshold=THRESHOLD, nms_iou=0.5)
            picture = draw_detections(picture, found)
        picture.thumbnail((TILE_PX, TILE_PX))
        cells.append(picture)
        texts.append(", ".join(names))
    return picture_grid(cells, texts, cell=TILE_PX, columns=COLUMNS, lines=2)


def _enlarged(pixels: Tensor) -> Image.Image:
    scale = max(1, TILE_PX // max(pixels.shape[1:]))
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    return picture.resize((scale * picture.width, scale * picture.height))
