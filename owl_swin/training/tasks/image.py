"""What tasks on pictures share: the model that they start from and the model file that they end with."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from owl_swin.config import ModelConfig, read_toml
from owl_swin.data.pictures import Pictures
from owl_swin.data.scene import Scenes
from owl_swin.families.owl_swin import save_checkpoint
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.training.config import TrainConfig
from owl_swin.training.initial import calibration_of, load_init, start_masks, start_new_blocks


def start_model(config: TrainConfig, device: torch.device) -> tuple[OwlSwin, set[str]]:
    """The model of a run's configuration with the weights that it starts from, and the names of those tensors that
    ``init`` gave; the others began at random or as their layer does."""
    torch.manual_seed(config.seed)
    model = OwlSwin(read_toml(config.model, ModelConfig)).to(device)
    given: set[str] = set()
    for source in config.init:
        given |= load_init(model, source)
    start_masks(model, given)
    start_new_blocks(model, given)
    if config.logit_scale:
        nn.init.constant_(model.alignment_log_scale, math.log(config.logit_scale))
    return model, given


class ImageTask:
    """A task that trains a whole OwlSwin on ``sets``."""

    config: TrainConfig
    model: OwlSwin
    sets: Sequence[Scenes] | Sequence[Pictures]

    @cached_property
    def encode_patches(self) -> Callable[[Tensor], Tensor]:
        """Pixels [B, 3, H, W] → fused patches, compiled where the run says so."""
        return torch.compile(self.model.encode_patches) if self.config.compile else self.model.encode_patches

    def sets_as_read(self) -> list[str]:
        """Counts of each set and a digest of its labels: a run that goes on is to see what it began with."""
        return [own.summary() for own in self.sets]

    def evaluate(self, averaged: nn.Module) -> dict[str, float]:
        """Nothing: pictures that are kept back are for `owl-swin eval`."""
        return {}

    def preview(self, averaged: nn.Module, batch: Any) -> Image.Image | None:
        """Nothing to draw."""
        return None

    def result_config(self) -> ModelConfig:
        """The configuration of the model file that the run ends with."""
        return self.model.config

    def with_scores_of_before(self) -> ModelConfig:
        """The same with the calibration of the weights that the run began from, for a run that changes no score."""
        kept = calibration_of(self.config.init)
        return self.model.config if kept is None else replace(self.model.config, calibration=kept)

    def write_result(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Writes model.safetensors."""
        averaged = OwlSwin(self.result_config())
        averaged.load_state_dict({k: weights[k].cpu().reshape(v.shape) for k, v in averaged.state_dict().items()})
        card = {"name": folder.name, "recipe": f"`owl-swin train` into {folder}"}
        save_checkpoint(folder / "model.safetensors", averaged, card)
