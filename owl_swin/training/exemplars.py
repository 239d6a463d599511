"""Queries by example in detection training: crops of things, scored in the scenes as the names of these things are."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from owl_swin.boxes import clip, cxcywh_to_xyxy, paired_iou, xyxy_to_cxcywh
from owl_swin.data.scenes import Scene, Scenes, readable
from owl_swin.exemplar import NEARLY_BEST, patch_of_box
from owl_swin.frame import EXEMPLAR_MARGIN, exemplar_frame, normalise
from owl_swin.models.owl_swin import OwlSwin, encode_from_patches
from owl_swin.training.views import jitter_colours
from owl_swin.types import ImageEmbeddings

# Surroundings of a crop, in shares of the box's longer side: what a query has, changed by this factor at most.
MARGIN_CHANGE = 2.0
# How often the thing is cut from the scene's own picture; else from any picture of its set that has one.
SAME_PICTURE = 0.5


@dataclass(frozen=True, slots=True)
class ExemplarBatch:
    """``pixels [K, 3, S, S]`` uint8, the thing's box in it ``boxes [K, 4]`` xyxy in [0, 1], its class ``labels [K]`` as
    a column of the batch's classes, ``colours [K, 3]`` uniform numbers. Where nothing could be shown there is one blank
    crop without a label, so that all processes of a run do the same work."""

    pixels: Tensor
    boxes: Tensor
    labels: Tensor
    colours: Tensor


class ExemplarDraw:
    """Draws things of one set to be looked for: a class, then a picture that shows one, then a crop of it."""

    def __init__(self, scenes: Scenes):
        self.scenes = scenes
        self.with_label: list[list[Scene]] = [[] for _ in scenes.names]
        for scene in scenes.scenes:
            for label in np.unique(scene.labels):
                self.with_label[label].append(scene)

    def crop(
        self, label: int, drawn: list[Scene], side: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Pixels [side, side, 3] of a thing called ``label`` and its box xyxy in [0, 1]; None if its picture cannot be
        read. ``drawn`` are the pictures of the scene that it will be looked for in."""
        own = [scene for scene in drawn if label in scene.labels]
        from_ = own if own and rng.random() < SAME_PICTURE else self.with_label[label]
        scene = from_[rng.integers(len(from_))]
        picture = readable(self.scenes, scene)
        if picture is None:
            return None
        boxes = scene.boxes_on(picture)[scene.labels == label]
        sizes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        box = boxes[rng.choice(len(boxes), p=sizes / sizes.sum())]  # what is small shows little
        return cut_out(picture, box, side, rng)


def cut_out(
    picture: Image.Image, box_xyxy: np.ndarray, side: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """What a detector would see of a box, with more or less around it, mirrored half the time: pixels [side, side, 3]
    and the box in it, xyxy in [0, 1]."""
    margin = EXEMPLAR_MARGIN * MARGIN_CHANGE ** rng.uniform(-1, 1)
    frame = exemplar_frame((picture.height, picture.width), box_xyxy.tolist(), side, margin)
    pixels = frame.pixels(picture.convert("RGB")).permute(1, 2, 0).numpy()
    box = cxcywh_to_xyxy(frame.from_image(torch.from_numpy(box_xyxy).float())).numpy()
    if rng.random() < 0.5:
        width = frame.content_hw[1]  # what pads the frame stays at the right
        pixels = np.concatenate([pixels[:, :width][:, ::-1], pixels[:, width:]], 1)
        box = np.array([width / side - box[2], box[1], width / side - box[0], box[3]])
    return pixels, box.clip(0, 1).astype(np.float32)


def stack(
    crops: list[tuple[np.ndarray, np.ndarray]], labels: Tensor, side: int, rng: np.random.Generator
) -> ExemplarBatch:
    """The crops as a batch."""
    blank = (np.zeros((side, side, 3), np.uint8), np.array([0.25, 0.25, 0.75, 0.75], np.float32))
    pixels, boxes = zip(*(crops or [blank]), strict=True)
    colours = torch.from_numpy(rng.random((len(pixels), 3), dtype=np.float32))
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return ExemplarBatch(stacked, torch.from_numpy(np.stack(boxes)), labels, colours)


def encode_exemplars(model: OwlSwin, encode_patches, batch: ExemplarBatch) -> Tensor:
    """Unit embeddings [K, E] of the exemplars, each from the patch that a detector would take."""
    device = model.alignment_log_scale.device
    pixels = normalise(jitter_colours(batch.pixels.to(device).float() / 255, batch.colours))
    images = encode_from_patches(model, encode_patches(pixels), (pixels.shape[2], pixels.shape[3]))
    boxes = xyxy_to_cxcywh(batch.boxes.to(device))
    if device.type != "cpu":
        return embeds_of_boxes(images, boxes)
    return torch.stack([patch_of_box(images[k], box) for k, box in enumerate(boxes)])


def embeds_of_boxes(images: ImageEmbeddings, boxes: Tensor) -> Tensor:
    """``patch_of_box`` of K pictures, each with its box [K, 4], at once: [K, E]. A graphics card waits at each look at
    a single one."""
    with torch.no_grad():
        predicted, wanted = clip(cxcywh_to_xyxy(images.pred_boxes), (1, 1)), cxcywh_to_xyxy(boxes)[:, None]
        overlap = paired_iou(predicted, wanted)  # [K, P]
        best = overlap.amax(1, keepdim=True)
        place = boxes[:, :2].clamp(0, 1 - 1e-6) * boxes.new_tensor(images.grid_hw[::-1])
        on_it = place[:, 1].long() * images.grid_hw[1] + place[:, 0].long()
        patches = torch.arange(overlap.shape[1], device=boxes.device)
        # Where no box of the picture touches it, the patch that it lies on stands for it.
        candidates = torch.where(best > 0, overlap >= NEARLY_BEST * best, patches == on_it[:, None])
        objectness = images.objectness_logits.masked_fill(~candidates, -torch.inf)
        candidates &= objectness == objectness.amax(1, keepdim=True)
        ordinary = (images.class_embeds @ images.class_embeds.mean(1)[:, :, None])[:, :, 0]
        picked = ordinary.masked_fill(~candidates, torch.inf).argmin(1)
    return images.class_embeds[torch.arange(len(picked), device=picked.device), picked]
