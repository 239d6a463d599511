"""The detection task: scenes with boxes and names, matched and scored as OWL-ViT does (arXiv:2205.06230)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from owl_swin.boxes import cxcywh_to_xyxy, paired_iou, xyxy_to_cxcywh
from owl_swin.data.scenes import Scene, Scenes, load_scenes, readable
from owl_swin.frame import exemplar_side, normalise
from owl_swin.models.heads import cell_centres
from owl_swin.models.owl_swin import OwlSwin, encode_from_patches
from owl_swin.scoring import raw_logits
from owl_swin.training.align import AlignBatch, AlignTask, jitter_colours
from owl_swin.training.augment import Canvas, mosaic
from owl_swin.training.config import TrainConfig
from owl_swin.training.distributed import Process
from owl_swin.training.exemplars import ExemplarBatch, ExemplarDraw, encode_exemplars, stack
from owl_swin.training.losses import box_losses, focal_loss, merge_same_boxes
from owl_swin.training.matcher import MATCHERS
from owl_swin.training.texts import TextBank, prompted

# Height and width of a batch in fractions of image_size: square, landscape, portrait.
SHAPES = ((1.0, 1.0), (0.7, 1.0), (1.0, 0.7))
LEAST_QUALITY = 0.1


@dataclass(frozen=True, slots=True)
class DetectBatch:
    """``pixels [B, 3, H, W]`` uint8; a list item a scene: ``boxes [G, 4]`` cxcywh in [0, 1] and ``labels [G]``, columns
    of the batch's Q classes; ``asked [B, Q]`` which classes count in which scene; ``classes [Q]`` of the bank and how
    they are said this time, ``texts [Q]`` rows of it; ``colours [B, 3]`` uniform numbers. ``exemplars`` show things of
    some of these classes, as columns."""

    pixels: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]
    asked: Tensor
    classes: Tensor
    texts: Tensor
    colours: Tensor
    align: AlignBatch | None
    exemplars: ExemplarBatch | None = None


class DetectTask:
    """Draws a set by weight for each scene; positives are the scene's names, negatives other names of its own set that
    are known to be absent."""

    def __init__(self, config: TrainConfig, model: OwlSwin, process: Process):
        self.config, self.process = config, process
        self.sets: list[Scenes] = [load_scenes(data) for data in config.data]
        weights = np.array([data.weight for data in config.data])
        self.odds = weights / weights.sum()
        sizes = [len(scenes.names) for scenes in self.sets]
        self.first_name = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
        names = [own for scenes in self.sets for own in scenes.names]
        self.bank = TextBank(prompted(names), model, trainable=config.optim.text_lr > 0)
        self.extra = nn.ModuleDict()
        self.align = None
        if config.align_data:
            self.align = AlignTask(config, model, config.align_data, config.align_batch_size, process)
            self.extra = self.align.extra
        self.matcher = MATCHERS[config.detect.matching]
        self.draws = [ExemplarDraw(scenes) for scenes in self.sets] if config.detect.exemplars else []
        self.crop_side = exemplar_side(model.config.heads.stride)

    def batch(self, index: int) -> DetectBatch:
        """This process's share of a batch: a function of the seed and the index alone, so that a resumed run sees the
        same, and so that the processes together see the scenes that one would. Exemplars are of a process's own
        scenes."""
        config, rng = self.config, np.random.default_rng((self.config.seed, index, 0, 2))
        colours = torch.from_numpy(rng.random((config.batch_size * self.process.world, 3), dtype=np.float32))
        shape = SHAPES[rng.integers(len(SHAPES))]
        longer = config.image_size * config.detect.scales[rng.integers(len(config.detect.scales))]
        hw = (max(32, round(longer * shape[0] / 32) * 32), max(32, round(longer * shape[1] / 32) * 32))
        ways = torch.from_numpy(rng.random(len(self.bank), dtype=np.float32)).clamp(max=1 - 1e-6)
        canvases, asked, labels, shown = [], [], [], []
        first = self.process.rank * config.batch_size
        for place in range(first, first + config.batch_size):
            rng = np.random.default_rng((config.seed, index, place))
            owner = int(rng.choice(len(self.sets), p=self.odds))
            canvas, drawn = self._canvas(owner, hw, rng)
            canvases.append(canvas)
            labels.append(torch.from_numpy(canvas.labels + self.first_name[owner]))
            asked.append(self._asked(owner, canvas.labels, drawn, rng))
            shown.append((owner, canvas.labels, drawn))
        classes = torch.cat(asked).unique()  # [Q], sorted
        counts = torch.zeros(config.batch_size, len(classes), dtype=torch.bool)
        for row, own in zip(counts, asked, strict=True):
            row[torch.searchsorted(classes, own)] = True
        scale = torch.tensor([hw[1], hw[0], hw[1], hw[0]])
        return DetectBatch(
            pixels=torch.from_numpy(np.stack([canvas.pixels for canvas in canvases])).permute(0, 3, 1, 2),
            boxes=[xyxy_to_cxcywh(torch.from_numpy(canvas.boxes) / scale) for canvas in canvases],
            labels=[torch.searchsorted(classes, own) for own in labels],
            asked=counts,
            classes=classes,
            texts=self.bank.draw(classes, ways[classes]),
            colours=colours[first : first + config.batch_size],
            align=self.align.batch(index) if self.align else None,
            exemplars=self._exemplars(shown, classes, index) if self.draws else None,
        )

    def _exemplars(
        self, shown: list[tuple[int, np.ndarray, list[Scene]]], classes: Tensor, index: int
    ) -> ExemplarBatch:
        """Crops of things in the scenes ``shown`` (set, labels and pictures of each), or of others called the same."""
        rng = np.random.default_rng((self.config.seed, index, self.process.rank, 1))
        with_things = [scene for scene in shown if len(scene[1])]
        crops, labels = [], []
        for place in rng.permutation(len(with_things))[: self.config.detect.exemplars]:
            owner, own, drawn = with_things[place]
            label = int(rng.choice(np.unique(own)))
            crop = self.draws[owner].crop(label, drawn, self.crop_side, rng)
            if crop is not None:
                crops.append(crop)
                labels.append(label + int(self.first_name[owner]))
        columns = torch.searchsorted(classes, torch.tensor(labels, dtype=torch.long))
        return stack(crops, columns, self.crop_side, rng)

    def _canvas(self, owner: int, hw: tuple[int, int], rng: np.random.Generator) -> tuple[Canvas, list[Scene]]:
        scenes, settings = self.sets[owner], self.config.detect
        odds = self.config.data[owner].mosaic or settings.mosaic
        side = 1 + int(rng.choice(len(odds), p=odds))
        drawn: list[Scene] = []

        def draw():
            for _ in range(100):
                scene = scenes.scenes[rng.integers(len(scenes.scenes))]
                picture = readable(scenes, scene)
                if picture is not None:
                    drawn.append(scene)
                    return picture, scene.boxes_on(picture), scene.labels
            raise scenes.unreadable()

        return mosaic(draw, hw, side, rng, min_kept=settings.min_crop, zoom=settings.zoom), drawn

    def _asked(self, owner: int, labels: np.ndarray, drawn: list[Scene], rng: np.random.Generator) -> Tensor:
        """Names that are scored in a canvas, as classes of the bank: its own, and up to ``negatives`` others that
        none of its pictures shows. A picture speaks only of names that its set has annotated in it."""
        names = len(self.sets[owner].names)
        absent, open_question = np.ones(names, dtype=bool), np.ones(names, dtype=bool)
        for scene in drawn:
            if scene.negatives is not None:
                checked = np.zeros(names, dtype=bool)
                checked[scene.negatives] = True
                absent &= checked
            for known in (scene.labels, scene.unknown):
                absent[known] = open_question[known] = False
        settings = self.config.detect
        others = rng.permutation(np.flatnonzero(absent))[: settings.negatives]
        more = min(settings.pseudo_negatives, settings.negatives - len(others))
        if more > 0:
            guesses = rng.permutation(np.flatnonzero(open_question & ~absent))[:more]
            others = np.concatenate([others, guesses])
        return torch.from_numpy(np.union1d(labels, others).astype(np.int64) + self.first_name[owner])

    def losses(self, model: OwlSwin, encode_patches, batch: DetectBatch) -> dict[str, Tensor]:
        """Class, box and objectness losses, each a mean over the scenes of the sum a matched pair."""
        settings = self.config.detect
        device = model.alignment_log_scale.device
        pixels = batch.pixels.to(device, non_blocking=True).float() / 255
        pixels = normalise(jitter_colours(pixels, batch.colours))
        patches = encode_patches(pixels)
        images = encode_from_patches(model, patches, (pixels.shape[2], pixels.shape[3]))
        texts = self.bank.embed(model, batch.texts)
        with torch.autocast(device.type, enabled=False):  # a logit needs more than the 3 digits of bfloat16
            logits = raw_logits(images, texts.float())  # [B, P, Q]
        stride = model.config.heads.stride
        centres = cell_centres(images.grid_hw) * stride / torch.tensor([pixels.shape[3], pixels.shape[2]])
        centres = centres.to(device)
        class_targets = torch.zeros_like(logits)
        object_targets = torch.zeros_like(images.objectness_logits)
        counts = torch.ones(len(pixels), device=device)
        l1, giou = logits.new_zeros(()), logits.new_zeros(())
        for i, (boxes, labels) in enumerate(zip(batch.boxes, batch.labels, strict=True)):
            boxes, multi_hot = merge_same_boxes(boxes.to(device), labels.to(device), logits.shape[-1])
            match = self.matcher(centres, logits[i], images.pred_boxes[i], multi_hot, boxes, settings)
            count = match.weights.sum().clamp(min=1)
            counts[i] = count
            goal = match.weights
            if settings.quality:
                goal = goal * _quality(images.pred_boxes[i, match.patches], boxes[match.targets])
            class_targets[i, match.patches] = multi_hot[match.targets] * goal[:, None]
            object_targets[i, match.patches] = goal
            distance, overlap = box_losses(images.pred_boxes[i, match.patches], boxes[match.targets])
            l1 = l1 + (distance * match.weights).sum() / count
            giou = giou + (overlap * match.weights).sum() / count
        focal = {"alpha": settings.focal_alpha, "gamma": settings.focal_gamma}
        asked = batch.asked.to(device)[:, None]
        per_scene = (focal_loss(logits, class_targets, **focal) * asked).sum((1, 2)) / counts
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
        if batch.exemplars is not None:
            columns = batch.exemplars.labels.to(device)
            exemplars = encode_exemplars(model, encode_patches, batch.exemplars)[: len(columns)]
            with torch.autocast(device.type, enabled=False):
                shown = focal_loss(raw_logits(images, exemplars.float()), class_targets[..., columns], **focal)
            parts["exemplar"] = ((shown * asked[..., columns]).sum((1, 2)) / counts).mean()
            total = total + settings.exemplar_weight * parts["exemplar"]
        if self.align is not None and batch.align is not None:
            aligned = self.align.losses(model, encode_patches, batch.align)
            total = total + self.config.align_weight * aligned["loss"]
            parts |= {"align": aligned["loss"], **{k: v for k, v in aligned.items() if k in ("accuracy", "dense")}}
        return {"loss": total, **{name: value.detach() for name, value in parts.items()}}


@torch.no_grad()
def _quality(boxes: Tensor, targets: Tensor) -> Tensor:
    """IoU [M] of cxcywh boxes with their targets, but at least LEAST_QUALITY, so that a poor box still has a name."""
    return paired_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets)).clamp(min=LEAST_QUALITY)
