"""Text distillation: a sentence encoder into the small text tower, over object names, phrases and captions.

The student learns the teacher's directions in ``embed_dim`` dimensions (the teacher's principal ones, mean removed), so
that near names are near vectors before any picture is seen. A name inside a prompt ("a photo of a dog") is taught the
vector of the bare name.
"""

import hashlib
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from owl_swin.config import ModelConfig, read_toml
from owl_swin.data.captions import tar_captions
from owl_swin.data.wordnet import wordnet_nouns
from owl_swin.detector import Detector
from owl_swin.errors import CheckpointError, ConfigError
from owl_swin.families.weights import load_tensors, read_tensors
from owl_swin.files import write_safetensors
from owl_swin.models.text import TextEncoder
from owl_swin.tokenizer import get_tokenizer
from owl_swin.training import sentences
from owl_swin.training.cache import digests_of_files, kept_tensors
from owl_swin.training.distributed import Process
from owl_swin.training.sentences import principal_directions
from owl_swin.training.streams import stream_seed

PROMPTS = (
    "a {}", "the {}", "a photo of a {}", "a photo of the {}", "a picture of a {}", "an image of a {}", "{} in a scene",
    "one {}", "a close-up of a {}", "a small {}", "there is a {}", "a {} on the ground", "some {}", "my {}",
    "a blurry photo of a {}", "a bright photo of the {}",
)  # fmt: skip
ADJECTIVES = (
    "red", "green", "blue", "yellow", "black", "white", "brown", "orange", "purple", "pink", "grey", "golden", "silver",
    "wooden", "metal", "plastic", "glass", "paper", "leather", "stone", "ceramic", "small", "large", "old", "young",
    "new",
    "round", "square", "striped", "spotted", "shiny", "broken", "empty", "open", "wet", "furry", "sleeping", "running",
    "standing", "sitting", "flying",
)  # fmt: skip

# How often a phrase and a caption are drawn, beside a name that one can photograph.
PHRASE_ODDS, CAPTION_ODDS = 0.7, 1.0
HELD_OUT = 2_000
# What a teacher's name begins with where it is a detector.
MODEL = "model:"


@dataclass(frozen=True, slots=True)
class DistilConfig:
    """One distillation run; paths are folders and files of the caller's.

    ``teacher`` is the folder of a sentence encoder, whose principal directions are learned; or "model:SOURCE", a
    detector whose own text space is: `owl-swin distil --text` then gives the tower to a student of it.
    """

    model: str
    teacher: str
    wordnet: str
    output: str
    caption_tars: tuple[str, ...] = ()
    phrases: int = 60_000
    steps: int = 3_000
    batch_size: int = 512
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    init: str = ""
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size) < 1 or min(self.phrases, self.seed, self.warmup_steps) < 0:
            raise ConfigError("steps and batch_size must be at least 1; phrases, warmup_steps and seed 0 or more")


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Token ids [N, L], and the row of each one's target [N]."""

    ids: Tensor
    rows: Tensor


class TextTask:
    """Draws names, phrases and captions by their odds; each is to have its teacher's direction."""

    def __init__(self, config: DistilConfig, process: Process):
        torch.manual_seed(config.seed)
        self.config, self.process = config, process
        self.model_config = read_toml(config.model, ModelConfig)
        self.tokenizer = get_tokenizer(self.model_config.text.context_length)
        student = TextEncoder(self.model_config.text, self.model_config.embed_dim)
        if config.init:
            load_tensors(student, read_tensors(Path(config.init))[0], config.init)
        rng = random.Random(config.seed)
        self.texts, odds, self.prompted = _collect(config, rng)
        tokens = _readable_tokens(self.tokenizer.readings())
        everything = self.texts + list(tokens.values())
        targets = _targets(config, everything, len(self.texts), self.model_config.embed_dim)
        if not config.init:
            _start_tokens(student, list(tokens), targets[len(self.texts) :])
        self.targets = targets[: len(self.texts)].to(process.device)
        self.held_out = sorted(rng.sample(range(len(self.texts)), min(HELD_OUT, len(self.texts) // 2)))
        odds[self.held_out] = 0
        self.chances = np.cumsum(odds / odds.sum())
        self.model = nn.ModuleDict({"text_encoder": student}).to(process.device)
        self.extra = nn.ModuleDict()

    def batch(self, index: int) -> TextBatch:
        """This process's share of a batch: a function of the seed and the index alone."""
        rng = np.random.default_rng(stream_seed(self.config.seed, index))
        count = self.config.batch_size * self.process.world
        rows = np.searchsorted(self.chances, rng.random(count), side="right").clip(max=len(self.texts) - 1)
        prompts = rng.integers(2 * len(PROMPTS), size=count)  # half of the time none
        own = slice(self.process.rank * self.config.batch_size, (self.process.rank + 1) * self.config.batch_size)
        rows, prompts = rows[own], prompts[own]
        texts = [self.texts[row] for row in rows]
        for place, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            if row < self.prompted and prompt < len(PROMPTS):
                texts[place] = PROMPTS[prompt].format(texts[place])
        return TextBatch(self.tokenizer(texts), torch.from_numpy(rows))

    def step_losses(self, batch: TextBatch) -> dict[str, Tensor]:
        """The loss, and the mean cosine between student and teacher."""
        device = self.targets.device
        # The fused attention kernel's backward pass is slow for sequences of ten tokens.
        with sdpa_kernel(SDPBackend.MATH):
            embeds = _by_length(cast(TextEncoder, self.model["text_encoder"]), batch.ids.to(device))
        with torch.autocast(device.type, enabled=False):
            loss, cosine = distil_loss(embeds.float(), self.targets[batch.rows.to(device)])
        return {"loss": loss, "cosine": cosine.detach()}

    @torch.no_grad()
    def evaluate(self, averaged: nn.Module) -> dict[str, float]:
        """Mean cosine with the teacher on texts that are never trained on."""
        student = cast(nn.ModuleDict, averaged)["text_encoder"]
        total = torch.zeros(())
        for start in range(0, len(self.held_out), 500):
            rows = self.held_out[start : start + 500]
            embeds = student(self.tokenizer([self.texts[i] for i in rows]).to(self.targets.device))
            total += (embeds * self.targets[rows]).sum().cpu()
        return {"held_out_cosine": float(total / len(self.held_out))}

    def preview(self, averaged: nn.Module, batch: TextBatch) -> Image.Image | None:
        """Nothing to draw."""
        return None

    def write_result(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Writes text.safetensors, the tower alone, which TrainConfig.init takes."""
        tower = {name.removeprefix("text_encoder."): value.cpu().contiguous() for name, value in weights.items()}
        write_safetensors(folder / "text.safetensors", tower, {}, what="the text tower", error=CheckpointError)


def _collect(config: DistilConfig, rng: random.Random) -> tuple[list[str], np.ndarray, int]:
    """All texts, their odds, and how many at the beginning may stand in a prompt."""
    names = wordnet_nouns(config.wordnet)
    lemmas, weights = list(names), list(names.values())
    nouns = rng.choices(lemmas, [w if w >= 1 else 0 for w in weights], k=config.phrases)
    # Each text once: what is held out must stand nowhere else.
    drawn = dict.fromkeys(f"{rng.choice(ADJECTIVES)} {noun}" for noun in nouns)
    phrases = [phrase for phrase in drawn if phrase not in names]
    known = {*lemmas, *phrases}
    captions = [*dict.fromkeys(text for text in tar_captions(config.caption_tars) if text not in known)]
    print(f"{len(lemmas)} names, {len(phrases)} phrases, {len(captions)} captions", file=sys.stderr)
    odds = np.array(weights + [PHRASE_ODDS] * len(phrases) + [CAPTION_ODDS] * len(captions))
    return lemmas + phrases + captions, odds, len(lemmas) + len(phrases)


def _targets(config: DistilConfig, texts: Sequence[str], phrases: int, embed_dim: int) -> Tensor:
    """Unit targets [N, embed_dim] of ``texts``; the first ``phrases`` of them say which directions count."""
    output = Path(config.output)
    if config.teacher.startswith(MODEL):
        return _model_targets(config, texts, embed_dim)
    key = hashlib.sha256("\n".join([config.teacher, *digests_of_files(config.teacher), *texts]).encode()).hexdigest()
    embeds = _kept(output / "teacher.safetensors", key, lambda: sentences.teacher_embeddings(config.teacher, texts))
    if embeds.shape[1] < embed_dim:
        raise ConfigError(f"{config.model}: embed_dim {embed_dim} is more than the teacher's dimensions")

    def basis() -> Tensor:
        mean, directions = principal_directions(embeds[:phrases], embed_dim)
        return torch.cat([mean, directions.T])

    # Kept, because signs of the directions depend on the machine and a later run must aim at the same space.
    kept = _kept(output / "basis.safetensors", key, basis)
    if len(kept) != 1 + embed_dim:
        raise ConfigError(
            f"{output / 'basis.safetensors'}: holds {len(kept) - 1} directions, not the {embed_dim} of {config.model}; "
            "give this run a folder of its own"
        )
    return F.normalize((embeds - kept[:1]) @ kept[1:].T, dim=-1)


def _model_targets(config: DistilConfig, texts: Sequence[str], embed_dim: int) -> Tensor:
    """The same of a detector's text encoder: its space as it is."""
    detector = Detector.from_pretrained(config.teacher.removeprefix(MODEL), device="cpu", text_cache=False)
    if detector.spec.embed_dim != embed_dim:
        raise ConfigError(
            f"{config.model}: embed_dim is {embed_dim}, and the text space of the teacher {detector.name} has "
            f"{detector.spec.embed_dim}; they must be the same"
        )
    key = hashlib.sha256("\n".join([detector.fingerprint, *texts]).encode()).hexdigest()
    path = Path(config.output) / "teacher.safetensors"
    return _kept(path, key, lambda: sentences.model_embeddings(detector, texts))


def _kept(path: Path, key: str, make: Callable[[], Tensor]) -> Tensor:
    return kept_tensors(path, key, lambda: {"value": make()})["value"]


def _start_tokens(student: TextEncoder, tokens: list[int], targets: Tensor) -> None:
    """A token starts as what the teacher thinks of it, so far as the tower is wide enough."""
    table: Any = student.tower.token_embedding
    width = min(table.weight.shape[1], targets.shape[1])
    with torch.no_grad():
        table.weight[torch.tensor(tokens), :width] = targets[:, :width] * 0.5


def _readable_tokens(readings: dict[int, str]) -> dict[int, str]:
    return {
        i: text for i, text in readings.items() if text.isascii() and text.isprintable() and text and text[0] != "<"
    }


def distil_loss(student: Tensor, target: Tensor, *, temperature: float = 0.05) -> tuple[Tensor, Tensor]:
    """One minus cosine, plus the cross-entropy of finding one's own target in the batch; and the cosine."""
    cosine = (student * target).sum(-1).mean()
    own = torch.arange(len(target), device=target.device)
    same = (target @ target.T > 0.98) & (own != own[:, None])  # the same name drawn twice is no mistake
    logits = (student @ target.T / temperature).masked_fill(same, -1e4)
    return 2 * (1 - cosine) + 0.2 * F.cross_entropy(logits, own), cosine


def _by_length(student: TextEncoder, ids: Tensor, *, parts: int = 4) -> Tensor:
    """The student on short and long texts apart: names have five tokens, captions twenty, and padding costs as much."""
    order = (ids != 0).sum(1).argsort(stable=True)
    embeds = torch.cat([student(ids[rows]) for rows in order.chunk(parts)])
    return embeds[order.argsort()]
