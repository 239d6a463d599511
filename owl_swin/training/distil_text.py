"""Distils a sentence encoder into the small text tower, over object names, phrases and captions.

The student learns the teacher's directions in ``embed_dim`` dimensions (the teacher's principal ones, mean removed), so
that near names are near vectors before any picture is seen. A name inside a prompt ("a photo of a dog") is taught the
vector of the bare name.
"""

import hashlib
import json
import math
import random
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from owl_swin.config import ModelConfig, read_toml
from owl_swin.errors import CheckpointError, ConfigError, DataError
from owl_swin.families.weights import load_tensors, read_tensors
from owl_swin.files import write_safetensors
from owl_swin.models.text import TextEncoder
from owl_swin.tokenizer import get_tokenizer
from owl_swin.training.cache import kept_tensors

# Lexicographer files of WordNet that hold things one can photograph.
VISIBLE = {5: "animal", 6: "artifact", 8: "body", 13: "food", 15: "location", 17: "object", 18: "person", 20: "plant"}

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


@dataclass(frozen=True, slots=True)
class DistilConfig:
    """One distillation run; paths are folders and files of the caller's."""

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


def wordnet_nouns(folder: str | Path) -> dict[str, float]:
    """Noun lemmas of WordNet → sampling weight: visible things first, and common senses more often."""
    counts: dict[str, int] = {}
    weights: dict[str, float] = {}
    folder = Path(folder)
    try:
        for line in (folder / "cntlist.rev").read_text().splitlines():
            sense, _, count = line.split()
            lemma, kind = sense.split("%")
            if kind.startswith("1:"):
                counts[lemma.lower()] = counts.get(lemma.lower(), 0) + int(count)
        lines = (folder / "data.noun").read_text().splitlines()
    except OSError as error:
        raise DataError(f"{folder}: no WordNet files here ({error})") from None
    for line in lines:
        if line.startswith(" "):
            continue
        head = line.split(" | ")[0].split()
        visible = int(head[1]) in VISIBLE
        for i in range(int(head[3], 16)):
            lemma = head[4 + 2 * i]
            weight = (1.0 if visible else 0.3) * (1 + math.log1p(counts.get(lemma.lower(), 0)))
            name = lemma.replace("_", " ")
            weights[name] = max(weights.get(name, 0.0), weight)
    return weights


def tar_captions(paths: Sequence[str]) -> Iterator[str]:
    """Captions of webdataset shards whose samples hold ``KEY.json`` with a list "captions"."""
    for path in paths:
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.name.endswith(".json"):
                        yield from json.load(tar.extractfile(member))["captions"]  # type: ignore[arg-type]
        except (OSError, tarfile.TarError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: no shard of captions ({error})") from None


@torch.no_grad()
def teacher_embeddings(folder: str | Path, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
    """Mean-pooled unit sentence vectors [N, 384] of a sentence-transformers folder, read by transformers."""
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no sentence encoder here ({str(error).splitlines()[0]})") from None
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = torch.empty(len(texts), model.config.hidden_size)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer([texts[i] for i in rows], padding=True, truncation=True, max_length=64, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"][..., None].float()
        out[rows] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    return out


def _basis(embeds: Tensor, size: int) -> Tensor:
    mean, directions = principal_directions(embeds, size)
    return torch.cat([mean, directions.T])


def principal_directions(embeds: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Mean [1, D] and the ``size`` directions [D, size] that hold most of the variance."""
    mean = embeds.mean(0, keepdim=True)
    centred = embeds - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    return mean, vectors[:, -size:].flip(1)


def distil(config: DistilConfig) -> Path:
    """Runs the distillation and writes ``text.safetensors`` and ``metrics.jsonl`` under ``config.output``."""
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    model_config = read_toml(config.model, ModelConfig)
    tokenizer = get_tokenizer(model_config.text.context_length)
    student = TextEncoder(model_config.text, model_config.embed_dim)
    if config.init:
        load_tensors(student, read_tensors(Path(config.init))[0], config.init)

    names = wordnet_nouns(config.wordnet)
    captions = list(tar_captions(config.caption_tars))
    lemmas, weights = list(names), list(names.values())
    nouns = rng.choices(lemmas, [w if w >= 1 else 0 for w in weights], k=config.phrases)
    phrases = [f"{rng.choice(ADJECTIVES)} {noun}" for noun in nouns]
    texts = lemmas + phrases + captions
    tokens = _readable_tokens(tokenizer)
    print(f"{len(lemmas)} names, {len(phrases)} phrases, {len(captions)} captions, {len(tokens)} tokens", flush=True)

    started = time.monotonic()
    everything = texts + list(tokens.values())
    key = hashlib.sha256("\n".join([config.teacher, *everything]).encode()).hexdigest()
    embeds = _cached(output / "teacher.safetensors", key, lambda: teacher_embeddings(config.teacher, everything))
    print(f"teacher: {time.monotonic() - started:.0f} s", flush=True)
    # Kept, because signs of the directions depend on the machine and a later run must aim at the same space.
    basis = _cached(output / "basis.safetensors", key, lambda: _basis(embeds[: len(texts)], model_config.embed_dim))
    mean, directions = basis[:1], basis[1:].T
    if directions.shape[1] < model_config.embed_dim:
        raise ConfigError(f"{config.model}: embed_dim {model_config.embed_dim} is more than the teacher's dimensions")
    targets = F.normalize((embeds - mean) @ directions, dim=-1)
    if not config.init:  # a token starts as what the teacher thinks of it
        rows = torch.tensor(list(tokens))
        width = min(model_config.text.width, targets.shape[1])
        tower: Any = student.tower
        tower.token_embedding.weight.data[rows, :width] = targets[len(texts) :, :width] * 0.5

    held_out = set(rng.sample(range(len(texts)), min(2_000, len(texts) // 2)))
    train = [i for i in range(len(texts)) if i not in held_out]
    odds = weights + [0.7] * len(phrases) + [1.0] * len(captions)
    train_odds = torch.tensor([odds[i] for i in train])
    matrices = {n for n, p in student.named_parameters() if p.ndim > 1 and "embedding" not in n}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in student.named_parameters() if n in matrices], "weight_decay": 0.05},
            {"params": [p for n, p in student.named_parameters() if n not in matrices], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    for step in range(config.steps):
        warm = min(1.0, (step + 1) / config.warmup_steps)
        decay = 0.5 * (1 + math.cos(math.pi * step / config.steps))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warm * max(decay, 0.01)
        picked = [train[i] for i in torch.multinomial(train_odds, config.batch_size, replacement=True)]
        batch = [
            rng.choice(PROMPTS).format(texts[i]) if i < len(lemmas) + len(phrases) and rng.random() < 0.5 else texts[i]
            for i in picked
        ]
        # The fused attention kernel's backward pass is slow for sequences of ten tokens.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            student_embeds = _by_length(student, tokenizer(batch))
        loss, cosine = distil_loss(student_embeds, targets[picked])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == config.steps - 1:
            line = {"step": step, "loss": loss.item(), "cosine": cosine.item(), "s": time.monotonic() - started}
            _log(output, line)
        if step % 500 == 499 or step == config.steps - 1:
            held_rows = sorted(held_out)
            with torch.no_grad():
                held = torch.cat(
                    [
                        student(tokenizer([texts[i] for i in held_rows[s : s + 500]]))
                        for s in range(0, len(held_rows), 500)
                    ]
                )
            cosine = (held * targets[held_rows]).sum(-1).mean()
            _log(output, {"step": step, "held_out_cosine": cosine.item()})
            weights = {k: v.contiguous() for k, v in student.state_dict().items()}
            path = output / "text.safetensors"
            write_safetensors(path, weights, {}, what="the text tower", error=CheckpointError)
    return output


def distil_loss(student: Tensor, target: Tensor, *, temperature: float = 0.05) -> tuple[Tensor, Tensor]:
    """One minus cosine, plus the cross-entropy of finding one's own target in the batch; and the cosine."""
    cosine = (student * target).sum(-1).mean()
    same = target @ target.T > 0.98  # the same name drawn twice is no mistake
    logits = (student @ target.T / temperature).masked_fill(same & ~torch.eye(len(target), dtype=torch.bool), -1e4)
    return 2 * (1 - cosine) + 0.2 * F.cross_entropy(logits, torch.arange(len(target))), cosine


def _by_length(student: TextEncoder, ids: Tensor, *, parts: int = 4) -> Tensor:
    """The student on short and long texts apart: names have five tokens, captions twenty, and padding costs as much."""
    order = (ids != 0).sum(1).argsort(stable=True)
    embeds = torch.cat([student(ids[rows]) for rows in order.chunk(parts)])
    return embeds[order.argsort()]


def _readable_tokens(tokenizer) -> dict[int, str]:
    decoder = tokenizer._encode.decoder
    cleaned = {i: token.replace("</w>", "").strip() for i, token in decoder.items()}
    return {i: token for i, token in cleaned.items() if token.isascii() and token and not token.startswith("<")}


def _log(output: Path, line: dict[str, float]) -> None:
    with open(output / "metrics.jsonl", "a") as log:
        print(json.dumps(line), file=log)


def _cached(path: Path, key: str, make: Callable[[], Tensor]) -> Tensor:
    return kept_tensors(path, key, lambda: {"value": make()})["value"]
