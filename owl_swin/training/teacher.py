"""Feature distillation: every patch also learns to say what a published image network sees in its place.

The teacher looks at each kept picture once; a random crop of the picture then has the same crop of the teacher's map as
its target (as ReLabel does with label maps, arXiv:2101.05022), so that a step costs no pass of the teacher.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owl_swin.families.weights import load_tensors, read_tensors
from owl_swin.training.cache import digests_of_files, kept_tensors
from owl_swin.training.config import TeacherConfig

# Pictures of one pass: on two cores small ones run twice as fast, in bfloat16 throughout twice again.
BATCH = 32
BASIS_PICTURES = 4096


class TeacherHead(nn.Module):
    """Fused patches [B, h, w, D] → the teacher's map [B, h, w, T] and its mean [B, T], as the student guesses them."""

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.dense = nn.Linear(width, dim)
        self.pooled = nn.Linear(width, dim)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        return self.dense(patches).float(), self.pooled(patches.mean((1, 2))).float()


def teacher_maps(config: TeacherConfig, sets: Sequence[Tensor], cache: Path) -> list[Tensor]:
    """The teacher's maps of uint8 pictures: for each set [N, 3, S, S] a float16 [N, T, g, g].

    T are the first ``dim`` principal directions of the teacher's last map, centred, each divided by the root of its
    standard deviation so that fine distinctions count too. ``cache`` is a folder that keeps them for the next start.
    """
    marks = [[len(images), _mark(images)] for images in sets]
    key = json.dumps([config.name, config.weights, *digests_of_files(config.weights), config.size, config.dim, marks])

    def make() -> dict[str, Tensor]:
        return {str(i): maps for i, maps in enumerate(_make_maps(config, sets))}

    kept = kept_tensors(cache / "teacher.safetensors", key, make)
    return [kept[str(i)] for i in range(len(sets))]


def _mark(images: Tensor) -> str:
    """A few pictures of a set tell it from another of as many."""
    return hashlib.sha256(images[:: max(1, len(images) // 64)].contiguous().numpy().data).hexdigest()


def _make_maps(config: TeacherConfig, sets: Sequence[Tensor]) -> list[Tensor]:
    teacher, mean, std = load_teacher(config)
    total = sum(map(len, sets))
    few = [images[: max(1, BASIS_PICTURES * len(images) // total)] for images in sets]
    seen = [_maps(teacher, images, config.size, mean, std).permute(0, 2, 3, 1).flatten(0, 2) for images in few]
    centre, directions = _basis(torch.cat(seen), config.dim)
    maps = []
    for images in sets:
        parts = []
        for start in range(0, len(images), BATCH):
            found = _maps(teacher, images[start : start + BATCH], config.size, mean, std)
            parts.append(torch.einsum("nchw,ct->nthw", found - centre[:, None, None], directions).half().contiguous())
        maps.append(torch.cat(parts).contiguous())
    return maps


def load_teacher(config: TeacherConfig) -> tuple[nn.Module, Tensor, Tensor]:
    """The network in evaluation mode, and the mean and deviation [3, 1, 1] that its pixels are normalised with."""
    import timm

    teacher = timm.create_model(config.name, pretrained=not config.weights).eval()
    if config.weights:
        load_tensors(teacher, read_tensors(Path(config.weights))[0], config.weights)
    settings = teacher.pretrained_cfg
    mean, std = (torch.tensor(settings[key])[:, None, None] for key in ("mean", "std"))
    teacher = teacher.requires_grad_(False).to(torch.bfloat16, memory_format=torch.channels_last)
    return teacher, mean, std


@torch.inference_mode()
def _maps(teacher: nn.Module, images: Tensor, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """[N, 3, S, S] uint8 → [N, C, g, g]."""
    found = []
    for part in images.split(BATCH):
        pixels = F.interpolate(part.float() / 255, (size, size), mode="bicubic", align_corners=False)
        pixels = ((pixels - mean) / std).to(torch.bfloat16, memory_format=torch.channels_last)
        found.append(teacher.forward_features(pixels).float())  # type: ignore[operator]
    return torch.cat(found)


def _basis(features: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Mean [C] of the rows, and directions [C, T] scaled by the inverse root of the standard deviation along each."""
    centre = features.mean(0)
    covariance = torch.cov((features - centre).T)
    variance, vectors = torch.linalg.eigh(covariance)
    variance, vectors = variance.flip(0)[:dim].clamp(min=1e-8), vectors.flip(1)[:, :dim]
    return centre, vectors / variance**0.25


def distillation_losses(head: TeacherHead, patches: Tensor, maps: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """1 - cosine of every patch, and of the mean over patches, to the teacher's: two numbers.

    ``maps [B, T, g, g]`` of the whole pictures; ``theta [B, 2, 3]`` says which part of it is the view.
    """
    batch, height, width, _ = patches.shape
    grid = F.affine_grid(theta, [batch, 1, height, width], align_corners=False)
    target = F.grid_sample(maps.float(), grid, padding_mode="border", align_corners=False).permute(0, 2, 3, 1)
    dense, pooled = head(patches)
    return (
        (1 - F.cosine_similarity(dense, target, dim=-1)).mean(),
        (1 - F.cosine_similarity(pooled, target.mean((1, 2)), dim=-1)).mean(),
    )
