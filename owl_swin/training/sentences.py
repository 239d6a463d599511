"""Teachers of texts: a sentence encoder, whose directions that differ most count, or a detector's own text encoder."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_swin.detector import Detector
from owl_swin.errors import DataError, first_line


@torch.no_grad()
def teacher_embeddings(folder: str | Path, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
    """Mean-pooled unit sentence vectors [N, 384] of a sentence-transformers folder, read by transformers."""
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no sentence encoder here ({first_line(error)})") from None
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


def model_embeddings(detector: Detector, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
    """Unit embeddings [N, E] of texts as a detector reads them, on the CPU."""
    parts = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
    return torch.cat([detector.encode_queries(list(part)).query_embeds.float().cpu() for part in parts])


def principal_directions(embeds: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Mean [1, D] and the ``size`` directions [D, size] that hold most of the variance."""
    mean = embeds.mean(0, keepdim=True)
    centred = embeds - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    return mean, vectors[:, -size:].flip(1)
