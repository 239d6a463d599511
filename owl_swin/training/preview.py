"""A picture of what the model finds while it trains: the same few scenes every time, boxes asked for by name."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from owl_swin.detector import Detector
from owl_swin.files import write_image
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.render import draw_detections
from owl_swin.training.detect import DetectBatch, DetectTask

SCENES = 6
TILE_PX = 320
# Low, so that a young model shows what it believes.
THRESHOLD = 0.15


def draw_preview(path: Path, model: OwlSwin, ema: dict[str, Tensor], task: DetectTask, batch: DetectBatch) -> Path:
    """Draws the averaged model's answers on the scenes of ``batch``, each asked for the names that it holds."""
    averaged = OwlSwin(model.config)
    averaged.load_state_dict({**model.state_dict(), **ema})
    detector = Detector(averaged, device="cpu", image_size=task.config.image_size)
    sheet = Image.new("RGB", (3 * TILE_PX, 2 * TILE_PX), "white")
    for place in range(min(SCENES, len(batch.pixels))):
        picture, names = _scene(task, batch, place)
        if names:
            with torch.inference_mode():
                found = detector.detect(picture, names, threshold=THRESHOLD, nms_iou=0.5)
            picture = draw_detections(picture, found)
        picture.thumbnail((TILE_PX, TILE_PX))
        sheet.paste(picture, (place % 3 * TILE_PX, place // 3 * TILE_PX))
    write_image(path, sheet)
    return path


def _scene(task: DetectTask, batch: DetectBatch, place: int) -> tuple[Image.Image, list[str]]:
    """A scene of a detection batch, enlarged for drawing, and its names."""
    pixels = batch.pixels[place].permute(1, 2, 0).numpy()
    scale = max(1, TILE_PX // max(pixels.shape[:2]))
    picture = Image.fromarray(pixels).resize((scale * pixels.shape[1], scale * pixels.shape[0]))
    names = [own[0] for scenes in task.sets for own in scenes.names]
    return picture, list(dict.fromkeys(names[int(batch.classes[column])] for column in batch.labels[place]))
