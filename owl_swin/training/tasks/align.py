"""The alignment task: pooled image embedding against text embedding (CLIP, arXiv:2103.00020; arXiv:2303.15343)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owl_swin.config import ModelConfig
from owl_swin.data.config import DataConfig
from owl_swin.data.pictures import Pictures, load_pictures
from owl_swin.errors import ConfigError
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.training.config import TrainConfig
from owl_swin.training.distributed import Process
from owl_swin.training.streams import stream_seed
from owl_swin.training.tasks.image import ImageTask
from owl_swin.training.teacher import TeacherHead, distillation_losses, teacher_maps
from owl_swin.training.texts import TextBank, prompted
from owl_swin.training.views import random_theta, random_views

logger = logging.getLogger("owl_swin")

# Names that a labelled picture is classified among when each must be encoded again in every step.
MOST_TRAINED_NAMES = 256
LABEL_SMOOTHING = 0.05


@dataclass(frozen=True, slots=True)
class AlignPart:
    """Pictures of one set: normalised pixels [n, 3, S, S], which part of the kept picture each shows (theta [n, 2, 3]),
    its row there [n], the texts of the part as rows of the bank [t], and which of these is the picture's own [n]."""

    owner: int
    pixels: Tensor
    theta: Tensor
    rows: Tensor
    texts: Tensor
    target: Tensor


@dataclass(frozen=True, slots=True)
class AlignBatch:
    """A part for each set drawn from."""

    parts: list[AlignPart]


class AlignTask(ImageTask):
    """Draws from sets by weight. Labelled pictures are classified among their own set's names: a name of another set
    may be true of them too, so it is no negative. Captioned pictures are contrasted with the captions of the whole
    batch, over all processes, by open_clip's softmax or sigmoid loss."""

    def __init__(
        self, config: TrainConfig, model: OwlSwin, data: Sequence[DataConfig], batch_size: int, process: Process
    ):
        self.config, self.model, self.process = config, model, process
        self.sets: list[Pictures] = [load_pictures(one) for one in data]
        self.counts = _shares(torch.tensor([one.weight for one in data]), batch_size)
        for one, count, pictures in zip(data, self.counts, self.sets, strict=True):
            said = f"{one.path}: its weight gives it {count} of the {batch_size} pictures of a step"
            if not count:
                raise ConfigError(f"{said}, so that it would never be seen; make its weight or the batch larger")
            if count * process.world == 1 and pictures.captioned and config.contrast == "softmax":
                logger.warning("%s: a caption that is contrasted with no other teaches nothing", said)
        self.trainable_text = config.optim.text_lr > 0
        self.banks = [
            TextBank(
                pictures.texts if pictures.captioned else prompted(pictures.texts), model, trainable=self.trainable_text
            )
            for pictures in self.sets
        ]
        self.extra = nn.ModuleDict()
        self.contrast = _contrastive_loss(config.contrast, process)
        if config.contrast == "sigmoid":
            self.extra["bias"] = _Bias(-10.0)
        if config.linear_weight:
            width = model.config.heads.width
            for owner, pictures in enumerate(self.sets):
                if not pictures.captioned:
                    self.extra[f"linear_{owner}"] = nn.Linear(width, len(pictures.texts))
        self.teacher_maps: list[Tensor] = []
        if config.teacher.name:
            cache = Path(config.output) / "teacher"
            self.teacher_maps = teacher_maps(config.teacher, [pictures.images for pictures in self.sets], cache)
            self.extra["teacher"] = TeacherHead(model.config.heads.width, config.teacher.dim)

    def result_config(self) -> ModelConfig:
        """Where whole pictures learn alone, boxes keep the scores that they had."""
        return self.model.config if any(self.config.optim.rest) else self.with_scores_of_before()

    def batch(self, index: int) -> AlignBatch:
        """This process's share of a batch: a function of the seed and the index alone, so that a resumed run sees the
        same, and so that the processes together see what one would with all their pictures."""
        generator = torch.Generator().manual_seed(stream_seed(self.config.seed, index))
        parts = []
        for owner, (pictures, bank, count) in enumerate(zip(self.sets, self.banks, self.counts, strict=True)):
            everywhere = count * self.process.world
            chances = torch.rand(everywhere, 10, generator=generator)
            class_chances = torch.rand(len(bank), generator=generator)
            rows = _distinct_rows(len(pictures.images), everywhere, generator)
            if not count:
                continue
            own = slice(self.process.rank * count, (self.process.rank + 1) * count)
            chances, rows = chances[own], rows[own]
            theta = random_theta(chances[:, :5])
            pixels = random_views(pictures.images[rows], theta, self.config.align_size, chances[:, 5:8])
            labels = pictures.labels[rows]
            if pictures.captioned:
                texts, target = bank.draw(labels, chances[:, 8]), torch.arange(count)
            else:
                classes, target = self._choices(labels, class_chances)
                texts = bank.draw(classes, class_chances[classes])
            parts.append(AlignPart(owner, pixels, theta, rows, texts, target))
        return AlignBatch(parts)

    def _choices(self, labels: Tensor, chances: Tensor) -> tuple[Tensor, Tensor]:
        """Classes to choose from [t], and the row of each label among them [n]."""
        if not self.trainable_text or len(chances) <= MOST_TRAINED_NAMES:
            return torch.arange(len(chances)), labels
        ranking = chances.clone()
        ranking[labels] = -1
        classes = ranking.argsort()[: max(MOST_TRAINED_NAMES, len(labels.unique()))].sort().values
        return classes, torch.searchsorted(classes, labels)

    def step_losses(self, batch: AlignBatch) -> dict[str, Tensor]:
        """The losses of a batch by the model that is trained."""
        return self.losses(self.model, self.encode_patches, batch)

    def losses(self, model: OwlSwin, encode_patches, batch: AlignBatch) -> dict[str, Tensor]:
        """Mean loss over the pictures of the batch, and the accuracy on the first labelled set."""
        device = model.alignment_log_scale.device
        pixels = torch.cat([part.pixels for part in batch.parts]).to(device, non_blocking=True)
        patches = encode_patches(pixels)
        embeds, pooled_patches = model.pool(patches), patches.mean((1, 2))
        scale = model.alignment_log_scale.exp().clamp(max=100)
        total, start, out = embeds.new_zeros(()), 0, {}
        for part in batch.parts:
            own = slice(start, start + len(part.rows))
            here = embeds[own]
            start += len(part.rows)
            texts = self.banks[part.owner].embed(model, part.texts)
            if self.sets[part.owner].captioned:
                more = {"logit_bias": self.extra["bias"]()} if "bias" in self.extra else {}
                loss = self.contrast(here, texts, scale, **more)
            else:
                logits, target = scale * here @ texts.T, part.target.to(device)
                loss = F.cross_entropy(logits, target, label_smoothing=LABEL_SMOOTHING)
                if "accuracy" not in out:
                    out["accuracy"] = (logits.argmax(-1) == target).float().mean().detach()
                if f"linear_{part.owner}" in self.extra:
                    guess = self.extra[f"linear_{part.owner}"](pooled_patches[own]).float()
                    labels = self.sets[part.owner].labels[part.rows].to(device)
                    linear = F.cross_entropy(guess, labels, label_smoothing=LABEL_SMOOTHING)
                    total = total + self.config.linear_weight * linear * len(part.rows) / len(pixels)
                    out.setdefault("linear_accuracy", (guess.argmax(-1) == labels).float().mean().detach())
            out[f"loss_{part.owner}"] = loss.detach()
            total = total + loss * len(part.rows) / len(pixels)
        if self.teacher_maps:
            maps = torch.cat([self.teacher_maps[part.owner][part.rows].float() for part in batch.parts]).to(device)
            theta = torch.cat([part.theta for part in batch.parts]).to(device)
            head = self.extra["teacher"]
            assert isinstance(head, TeacherHead)
            dense, pooled = distillation_losses(head, patches, maps, theta)
            out |= {"dense": dense.detach(), "pooled": pooled.detach()}
            total = total + self.config.teacher.dense_weight * dense + self.config.teacher.pooled_weight * pooled
        return {"loss": total, **out}


class _Bias(nn.Module):
    """A number that is learned: the bias of the sigmoid loss."""

    def __init__(self, start: float):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(start))

    def forward(self) -> Tensor:
        return self.value


def _contrastive_loss(name: str, process: Process) -> nn.Module:
    from open_clip.loss import ClipLoss, SigLipLoss

    if name == "sigmoid":
        return SigLipLoss(rank=process.rank, world_size=process.world, dist_impl="gather")
    return ClipLoss(gather_with_grad=True, rank=process.rank, world_size=process.world)


def _distinct_rows(n: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` rows of ``n``, no row twice while there are enough: a picture's other caption is no negative."""
    if count > n // 4:
        return torch.cat([torch.randperm(n, generator=generator) for _ in range(-(-count // n) if n else 0)])[:count]
    rows = torch.randint(n, (4 * count + 16,), generator=generator)
    seen: dict[int, None] = dict.fromkeys(rows.tolist())
    return torch.tensor(list(seen)[:count], dtype=torch.long)


def _shares(weights: Tensor, total: int) -> list[int]:
    """Whole numbers proportional to the weights that add up to ``total``."""
    exact = weights / weights.sum() * total
    counts = exact.floor().long()
    for index in (exact - counts).argsort(descending=True)[: total - int(counts.sum())]:
        counts[index] += 1
    return counts.tolist()
