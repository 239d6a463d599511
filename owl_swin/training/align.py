"""The alignment task: pooled image embedding against text embedding, CLIP-style (arXiv:2103.00020)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owl_swin.image import normalise
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.tokenizer import get_tokenizer
from owl_swin.training.config import DataConfig, TrainConfig
from owl_swin.training.pictures import Pictures, load_pictures
from owl_swin.training.teacher import TeacherHead, distillation_losses, teacher_maps

PROMPTS = ("{}", "a photo of a {}")


@dataclass(frozen=True, slots=True)
class AlignBatch:
    """A part for each set drawn from."""

    parts: list["AlignPart"]


@dataclass(frozen=True, slots=True)
class AlignPart:
    """Pictures of one set: normalised pixels [n, 3, S, S], which part of the kept picture each shows (theta [n, 2, 3]),
    its row there [n], labels [n], and a random number [n] that picks among the ways to say it."""

    owner: int
    pixels: Tensor
    theta: Tensor
    rows: Tensor
    labels: Tensor
    which: Tensor


class AlignTask:
    """Draws from sets by weight. Labelled pictures are classified among their own set's names: a name of another set
    may be true of them too, so it is no negative. Captioned pictures are contrasted with the batch's captions."""

    def __init__(self, config: TrainConfig, model: OwlSwin, data: Sequence[DataConfig], batch_size: int):
        self.config = config
        self.sets: list[Pictures] = [load_pictures(one) for one in data]
        self.counts = _shares(torch.tensor([one.weight for one in data]), batch_size)
        self.text_embeds = [
            caption_embeddings(pictures.texts, model) if pictures.captioned else name_embeddings(pictures.texts, model)
            for pictures in self.sets
        ]
        self.extra = nn.Module()
        self.teacher_maps: list[Tensor] = []
        if config.teacher.name:
            cache = Path(config.output) / "teacher"
            self.teacher_maps = teacher_maps(config.teacher, [pictures.images for pictures in self.sets], cache)
            self.extra = TeacherHead(model.config.heads.width, config.teacher.dim)

    def batch(self, step: int) -> AlignBatch:
        """The batch of a step: a function of the seed and the step alone, so that a resumed run sees the same."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        parts = []
        for index, (pictures, count) in enumerate(zip(self.sets, self.counts, strict=True)):
            if not count:
                continue
            rows = torch.randint(len(pictures.images), (count,), generator=generator)
            theta = random_theta(count, generator)
            pixels = random_views(pictures.images[rows], theta, self.config.align_size, generator)
            which = torch.randint(1 << 30, (count,), generator=generator)
            parts.append(AlignPart(index, pixels, theta, rows, pictures.labels[rows], which))
        return AlignBatch(parts)

    def losses(self, model: OwlSwin, encode_patches, batch: AlignBatch) -> dict[str, Tensor]:
        """Mean loss over the pictures of the batch, and the accuracy on the first labelled set."""
        pixels = torch.cat([part.pixels for part in batch.parts])
        patches = encode_patches(pixels)
        embeds = model.pool(patches)
        scale = model.alignment_log_scale.exp().clamp(max=100)
        total, start, out = embeds.new_zeros(()), 0, {}
        for part in batch.parts:
            here = embeds[start : start + len(part.rows)]
            start += len(part.rows)
            texts, labels = self.text_embeds[part.owner], part.labels
            if isinstance(texts, list):  # captions: one of each picture's own, contrasted within the batch
                chosen = torch.stack(
                    [texts[i][int(w) % len(texts[i])] for i, w in zip(labels, part.which, strict=True)]
                )
                logits = scale * here @ chosen.T
                logits = logits.masked_fill(
                    (labels[:, None] == labels) & ~torch.eye(len(labels), dtype=torch.bool), -1e4
                )
                target = torch.arange(len(labels))
                loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
            else:
                logits = scale * here @ texts.T
                loss = F.cross_entropy(logits, labels, label_smoothing=0.05)
                if "accuracy" not in out:
                    out["accuracy"] = (logits.argmax(-1) == labels).float().mean().detach()
            out[f"loss_{part.owner}"] = loss.detach()
            total = total + loss * len(part.rows) / len(pixels)
        if self.teacher_maps:
            maps = torch.cat([self.teacher_maps[part.owner][part.rows] for part in batch.parts])
            theta = torch.cat([part.theta for part in batch.parts])
            dense, pooled = distillation_losses(cast(TeacherHead, self.extra), patches, maps, theta)
            out |= {"dense": dense.detach(), "pooled": pooled.detach()}
            total = total + self.config.teacher.dense_weight * dense + self.config.teacher.pooled_weight * pooled
        return {"loss": total, **out}


@torch.no_grad()
def embed_texts(texts: Sequence[str], model: OwlSwin) -> Tensor:
    """Unit embeddings [N, E] of texts by the model's own text encoder."""
    tokenizer = get_tokenizer(model.config.text.context_length, model.config.text.open_clip)
    # Texts of one length together: a batch costs as much as its longest text.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    embeds = torch.zeros(len(texts), model.config.embed_dim)
    for start in range(0, len(order), 512):
        rows = order[start : start + 512]
        embeds[rows] = model.encode_text(tokenizer([texts[i] for i in rows]))
    return embeds


def name_embeddings(names: Sequence[Sequence[str]], model: OwlSwin) -> Tensor:
    """A unit embedding [N, E] for each class: the mean over its synonyms and a few prompts."""
    prompted = [[prompt.format(name) for name in synonyms for prompt in PROMPTS] for synonyms in names]
    flat = embed_texts([text for texts in prompted for text in texts], model)
    means = [part.mean(0) for part in flat.split([len(texts) for texts in prompted])]
    return F.normalize(torch.stack(means), dim=-1)


def caption_embeddings(captions: Sequence[Sequence[str]], model: OwlSwin) -> list[Tensor]:
    """Unit embeddings [n, E] of each picture's captions."""
    flat = embed_texts([caption for own in captions for caption in own], model)
    return list(flat.split([len(own) for own in captions]))


def random_theta(n: int, generator: torch.Generator) -> Tensor:
    """Which part of a picture each of n views shows, as ``affine_grid`` takes it [n, 2, 3]: 30 to 100 % of the area,
    sides 3:4 to 4:3, half of them mirrored."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    side = uniform(0.3, 1.0).sqrt()
    aspect = uniform(-0.14, 0.14).exp()
    scale_x, scale_y = (side * aspect).clamp(max=1), (side / aspect).clamp(max=1)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = scale_x * flip, scale_y
    theta[:, 0, 2], theta[:, 1, 2] = (1 - scale_x) * uniform(-1, 1), (1 - scale_y) * uniform(-1, 1)
    return theta


def random_views(images: Tensor, theta: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """The parts ``theta`` of uint8 [N, 3, S, S], with random colours: normalised pixels [N, 3, size, size]."""
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    grid = F.affine_grid(theta, [n, 3, size, size], align_corners=False)
    views = F.grid_sample(
        images.float().div_(255), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return normalise(jitter_colours(views, uniform))


def jitter_colours(views: Tensor, uniform) -> Tensor:
    """Random brightness, contrast and saturation of pixels in [0, 1]; ``uniform(low, high, *shape)`` draws a row
    each."""
    grey = views.mean(1, keepdim=True)
    views = grey + (views - grey) * uniform(0.6, 1.4, 1, 1, 1)
    mean = grey.mean((2, 3), keepdim=True)
    views = mean + (views - mean) * uniform(0.6, 1.4, 1, 1, 1)
    return (views * uniform(0.7, 1.3, 1, 1, 1)).clamp_(0, 1)


def _shares(weights: Tensor, total: int) -> list[int]:
    """Whole numbers proportional to the weights that add up to ``total``."""
    exact = weights / weights.sum() * total
    counts = exact.floor().long()
    for index in (exact - counts).argsort(descending=True)[: total - int(counts.sum())]:
        counts[index] += 1
    return counts.tolist()
