"""The detection task: scenes with boxes and names, matched and scored as OWL-ViT does (arXiv:2205.06230)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from owl_swin.boxes import xyxy_to_cxcywh
from owl_swin.image import normalise
from owl_swin.models.heads import cell_centres
from owl_swin.models.owl_swin import OwlSwin, encode_from_patches, score
from owl_swin.training.align import AlignBatch, AlignTask, jitter_colours, name_embeddings
from owl_swin.training.augment import Canvas, mosaic
from owl_swin.training.config import TrainConfig
from owl_swin.training.losses import box_losses, focal_loss, merge_same_boxes
from owl_swin.training.matcher import centre_match, hungarian_match
from owl_swin.training.scenes import Scenes, load_scenes, readable

# Height and width of a batch in fractions of image_size: square, landscape, portrait.
SHAPES = ((1.0, 1.0), (0.7, 1.0), (1.0, 0.7))


@dataclass(frozen=True, slots=True)
class DetectBatch:
    """``pixels [B, 3, H, W]`` uint8; a list item a scene: ``boxes [G, 4]`` cxcywh in [0, 1], ``labels [G]`` in the
    bank of all names; ``asked [B, Q]`` which names count in which scene."""

    pixels: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]
    asked: Tensor
    colours: int
    align: AlignBatch | None


class DetectTask:
    """Draws a set by weight for each scene; positives are the scene's names, negatives other names of its own set."""

    def __init__(self, config: TrainConfig, model: OwlSwin):
        self.config = config
        self.sets: list[Scenes] = [load_scenes(data) for data in config.data]
        weights = np.array([data.weight for data in config.data])
        self.odds = weights / weights.sum()
        sizes = [len(scenes.names) for scenes in self.sets]
        self.first_name = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
        self.name_embeds = torch.cat([name_embeddings(scenes.names, model) for scenes in self.sets])  # [Q, E]
        self.align = AlignTask(config, model, config.align_data, config.align_batch_size) if config.align_data else None
        self.extra = self.align.extra if self.align else nn.Module()

    def batch(self, step: int) -> DetectBatch:
        """The batch of a step: a function of the seed and the step alone, so that a resumed run sees the same."""
        config, rng = self.config, np.random.default_rng((self.config.seed, step))
        shape = SHAPES[rng.integers(len(SHAPES))]
        hw = tuple(max(32, round(config.image_size * side / 32) * 32) for side in shape)
        canvases, owners = [], []
        for _ in range(config.batch_size):
            owner = int(rng.choice(len(self.sets), p=self.odds))
            canvases.append(self._canvas(owner, hw, rng))  # type: ignore[arg-type]
            owners.append(owner)
        scale = torch.tensor([hw[1], hw[0], hw[1], hw[0]])
        boxes = [xyxy_to_cxcywh(torch.from_numpy(canvas.boxes) / scale) for canvas in canvases]
        labels = [
            torch.from_numpy(canvas.labels + self.first_name[owner])
            for canvas, owner in zip(canvases, owners, strict=True)
        ]
        asked = torch.stack([self._asked(owner, label, rng) for owner, label in zip(owners, labels, strict=True)])
        pixels = torch.from_numpy(np.stack([canvas.pixels for canvas in canvases])).permute(0, 3, 1, 2)
        align = self.align.batch(step) if self.align else None
        return DetectBatch(pixels, boxes, labels, asked, int(rng.integers(1 << 31)), align)

    def _canvas(self, owner: int, hw: tuple[int, int], rng: np.random.Generator) -> Canvas:
        scenes, settings = self.sets[owner], self.config.detect
        odds = self.config.data[owner].mosaic or settings.mosaic
        side = 1 + int(rng.choice(len(odds), p=odds))

        def draw():
            for _ in range(100):
                scene = scenes.scenes[rng.integers(len(scenes.scenes))]
                picture = readable(scenes, scene)
                if picture is not None:
                    return picture, scene.boxes_on(picture), scene.labels
            raise scenes.unreadable()

        return mosaic(draw, hw, side, rng, min_kept=settings.min_crop, zoom=settings.zoom)

    def _asked(self, owner: int, labels: Tensor, rng: np.random.Generator) -> Tensor:
        """Names that are scored in a scene [Q]: its own, and up to ``negatives`` others that its set annotates."""
        first, last = self.first_name[owner], self.first_name[owner + 1]
        asked = torch.zeros(len(self.name_embeds), dtype=torch.bool)
        others = rng.permutation(np.setdiff1d(np.arange(first, last), labels.numpy()))
        asked[others[: self.config.detect.negatives]] = True
        asked[labels] = True
        return asked

    def losses(self, model: OwlSwin, encode_patches, batch: DetectBatch) -> dict[str, Tensor]:
        """Class, box and objectness losses, each a mean over the scenes of the sum a matched pair."""
        settings = self.config.detect
        generator = torch.Generator().manual_seed(batch.colours)

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return torch.rand(len(batch.pixels), *shape, generator=generator) * (high - low) + low

        pixels = normalise(jitter_colours(batch.pixels.float() / 255, uniform))
        patches = encode_patches(pixels)
        images = encode_from_patches(model, patches, (pixels.shape[2], pixels.shape[3]))
        with torch.autocast(pixels.device.type, enabled=False):  # a logit needs more than the 3 digits of bfloat16
            logits = score(images, self.name_embeds)  # [B, P, Q]
        stride = model.config.heads.stride
        centres = cell_centres(images.grid_hw) * stride / torch.tensor([pixels.shape[3], pixels.shape[2]])
        class_targets = torch.zeros_like(logits)
        object_targets = torch.zeros_like(images.objectness_logits)
        counts = torch.ones(len(pixels))
        l1, giou = logits.new_zeros(()), logits.new_zeros(())
        for i, (boxes, labels) in enumerate(zip(batch.boxes, batch.labels, strict=True)):
            boxes, multi_hot = merge_same_boxes(boxes, labels, logits.shape[-1])
            if settings.matching == "centre":
                chosen, matched = centre_match(centres, boxes)
            else:
                chosen, matched = hungarian_match(
                    logits[i],
                    images.pred_boxes[i],
                    multi_hot,
                    boxes,
                    alpha=settings.focal_alpha,
                    gamma=settings.focal_gamma,
                )
            count = max(len(chosen), 1)
            counts[i] = count
            class_targets[i, chosen] = multi_hot[matched]
            object_targets[i, chosen] = 1
            distance, overlap = box_losses(images.pred_boxes[i, chosen], boxes[matched])
            l1 = l1 + distance.sum() / count
            giou = giou + overlap.sum() / count
        focal = {"alpha": settings.focal_alpha, "gamma": settings.focal_gamma}
        per_scene = (focal_loss(logits, class_targets, **focal) * batch.asked[:, None]).sum((1, 2)) / counts
        objectness = focal_loss(images.objectness_logits, object_targets, **focal).sum(1) / counts
        parts = {
            "class": per_scene.mean(),
            "l1": l1 / len(pixels),
            "giou": giou / len(pixels),
            "objectness": objectness.mean(),
        }
        total = (
            settings.class_weight * parts["class"]
            + settings.l1_weight * parts["l1"]
            + settings.giou_weight * parts["giou"]
            + settings.objectness_weight * parts["objectness"]
        )
        if self.align is not None and batch.align is not None:
            aligned = self.align.losses(model, encode_patches, batch.align)
            total = total + self.config.align_weight * aligned["loss"]
            parts |= {"align": aligned["loss"], **{k: v for k, v in aligned.items() if k == "accuracy"}}
        return {"loss": total, **{name: value.detach() for name, value in parts.items()}}
