"""The student task: detection on what a teacher found, with its scores and its own embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from owl_swin.data.config import DataConfig
from owl_swin.data.scene import Scenes
from owl_swin.errors import ConfigError
from owl_swin.families.owl_swin import save_checkpoint
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.training.config import DetectConfig, OptimConfig, TrainConfig
from owl_swin.training.distributed import Process
from owl_swin.training.tasks.detect import DetectTask
from owl_swin.training.taught import TaughtWeights


def _optim() -> OptimConfig:
    return OptimConfig(warmup_steps=100, ema_decay=0.998)


def _detect() -> DetectConfig:
    return DetectConfig(negatives=100, mosaic=(0.7, 0.3), l1_weight=2.0, giou_weight=2.0, min_crop=0.5, zoom=0.3)


@dataclass(frozen=True, slots=True)
class StudentConfig:
    """One distillation of a teacher into a student.

    ``student`` is the model's TOML file; ``text`` a tower that `owl-swin distil-text` taught the teacher's texts
    (empty: the teacher's own is kept). ``init`` as in TrainConfig, for the image side. ``image_size`` is the longer
    side in pixels that the student learns and works at (0: that of its file).

    The teacher's boxes count from a score of ``threshold`` on, in pictures whose best one reaches
    ``picture_threshold`` (arXiv:2306.09683). The share ``held_out`` of the pictures is kept for the comparison at the
    end. ``embed_weight`` and ``image_embed_weight`` weigh the cosine to the teacher's embeddings of boxes and of whole
    pictures. The warm-up takes a tenth of the steps at most.
    """

    student: str
    output: str
    text: str = ""
    init: tuple[str, ...] = ()
    steps: int = 2000
    batch_size: int = 16
    accumulate: int = 1
    image_size: int = 0
    threshold: float = 0.1
    picture_threshold: float = 0.3
    held_out: float = 0.1
    embed_weight: float = 1.0
    image_embed_weight: float = 0.5
    precision: str = "float32"
    device: str = "auto"
    shard: str = "ddp"
    tensorboard: bool = False
    preview_every: int = 0
    cache_gib: float = 4.0
    seed: int = 0
    log_every: int = 20
    checkpoint_minutes: float = 5.0
    optim: OptimConfig = field(default_factory=_optim)
    detect: DetectConfig = field(default_factory=_detect)

    def __post_init__(self) -> None:
        if not (0 <= self.threshold <= 1 and 0 <= self.picture_threshold <= 1):
            raise ConfigError(
                f"threshold and picture_threshold lie in 0 to 1, got {self.threshold} and {self.picture_threshold}"
            )
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out is a share of the pictures between 0 and 1, got {self.held_out}")
        if min(self.embed_weight, self.image_embed_weight) < 0:
            raise ConfigError("embed_weight and image_embed_weight must be 0 or more")
        if self.image_size and self.image_size < 32:
            raise ConfigError(
                f"image_size must be at least 32 pixels, or 0 for that of the student's file, got {self.image_size}"
            )
        if self.optim.text_lr:
            raise ConfigError("optim.text_lr must be 0: the student's texts are the teacher's, and stay")
        self.train_config("labels.json", 32)  # whatever else may be wrong

    def train_config(self, labels: str, image_size: int) -> TrainConfig:
        """The same as settings of a detection run on the file ``labels``."""
        shared = {
            name: getattr(self, name)
            for name in (
                *("output", "steps", "batch_size", "accumulate", "precision", "device", "shard", "tensorboard"),
                *("preview_every", "cache_gib", "seed", "log_every", "checkpoint_minutes", "detect"),
            )
        }
        optim = replace(self.optim, warmup_steps=min(self.optim.warmup_steps, max(self.steps, 0) // 10))
        data = (DataConfig("coco", labels),)
        return TrainConfig("detect", self.student, data=data, image_size=image_size, optim=optim, **shared)


class StudentTask(DetectTask):
    """Draws the pictures that a teacher has labelled, each asked for by the very names that the teacher was."""

    def __init__(
        self,
        config: StudentConfig,
        train: TrainConfig,
        model: OwlSwin,
        process: Process,
        scenes: Scenes,
        card: Mapping[str, Any],
    ):
        weights = TaughtWeights(config.embed_weight, config.image_embed_weight)
        super().__init__(train, model, process, sets=[scenes], taught=weights)
        self.card = card
        self.has_image_embed = any(scene.image_embed is not None for scene in scenes.scenes)

    @staticmethod
    def texts_of(names: Sequence[Sequence[str]]) -> list[list[str]]:
        """The bare names: a score that the teacher gave is for these."""
        return [list(own) for own in names]

    def write_result(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Writes model.safetensors, whose card says who the teacher was."""
        if not self.has_image_embed:  # the pooled projection is untrained
            weights |= {f"image_projection.{kind}": weights[f"class_head.embed.{kind}"] for kind in ("weight", "bias")}
        averaged = OwlSwin(self.result_config())
        averaged.load_state_dict({k: weights[k].cpu().reshape(v.shape) for k, v in averaged.state_dict().items()})
        save_checkpoint(folder / "model.safetensors", averaged, self.card)
