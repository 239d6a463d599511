"""A student that lives in its teacher's text space: a Swin of its own, and texts as the teacher reads them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from owl_swin.config import CalibrationConfig, ModelConfig, TextConfig
from owl_swin.detector import Detector
from owl_swin.errors import CheckpointError, ConfigError
from owl_swin.families.text_tower import text_tower
from owl_swin.families.weights import load_tensors, read_tensors
from owl_swin.models.network import Network
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.training.initial import load_init, start_new_blocks
from owl_swin.training.texts import embed_texts

# Least cosine between what a kept tower and the teacher say of a text: they compute the same.
SAME_TEXT = 0.999
HOW_ELSE = "teach a small tower its texts with `owl-swin distil-text`, and give the file to --text"


def student_config(config: ModelConfig, teacher: Network, text: str, where: str) -> ModelConfig:
    """The configuration of the student: image side of ``config``, text space of the teacher.

    Without ``text`` the text encoder is the teacher's own. With it, the file of a tower that learned the teacher's
    texts, it is that of ``config``, which must then have the size of the teacher's space.
    """
    spec = teacher.spec
    # The scores that the student learns are calibrated ones.
    config = replace(config, calibration=CalibrationConfig())
    if not text:
        return replace(config, embed_dim=spec.embed_dim, text=_kept_tower(teacher)[0])
    if config.embed_dim != spec.embed_dim:
        raise ConfigError(
            f"{where}: embed_dim is {config.embed_dim}, and the text space of the teacher {spec.name} has "
            f"{spec.embed_dim}; set embed_dim = {spec.embed_dim}, or leave --text out to keep the teacher's own tower"
        )
    return config


def build_student(
    config: ModelConfig, teacher: Detector, *, text: str = "", init: Sequence[str] = (), seed: int = 0
) -> OwlSwin:
    """A student of ``student_config`` with its text encoder in place; the rest starts from ``init``, else at random."""
    torch.manual_seed(seed)
    model = OwlSwin(config)
    start_new_blocks(model, {name for source in init for name in load_init(model, source)})
    if text:
        load_tensors(model.text_encoder, read_tensors(Path(text))[0], text)
    else:
        tower = _kept_tower(teacher.model)[1]
        load_tensors(model.text_encoder, {name: value.float().cpu() for name, value in tower.items()}, teacher.name)
    nn.init.constant_(model.alignment_log_scale, math.log(teacher.spec.alignment_scale))
    return model


def text_cosines(model: OwlSwin, teacher: Detector, texts: Sequence[str]) -> Tensor:
    """Cosine [N] between what student and teacher make of each text."""
    own = embed_texts(texts, model)
    return (own * teacher.encode_queries(list(texts)).query_embeds.to(own)).sum(-1)


def check_texts(model: OwlSwin, teacher: Detector, texts: Sequence[str]) -> None:
    """Refuses a kept tower that reads texts otherwise than the teacher, as behind another tokenizer."""
    cosines = text_cosines(model, teacher, texts)
    worst = int(cosines.argmin())
    if not cosines[worst] >= SAME_TEXT:  # NaN fails this too
        raise CheckpointError(
            f"the teacher {teacher.name} reads texts otherwise than its text encoder does behind CLIP's tokenizer "
            f"({texts[worst]!r}: cosine {cosines[worst]:.3f}); {HOW_ELSE}"
        )


def _kept_tower(teacher: Network) -> tuple[TextConfig, dict[str, Tensor]]:
    try:
        return text_tower(teacher)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {HOW_ELSE}") from None
