"""Do pictures find their captions and captions their pictures? Recall at 1, 5 and 10 (Karpathy & Fei-Fei 2015)."""

from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from owl_swin.classification import check_sees_whole
from owl_swin.data.broken import left_out, reading
from owl_swin.data.captions import Captioned, coco_caption_entries, shards, tar_entries
from owl_swin.data.truth import check_pictures
from owl_swin.detector import Detector
from owl_swin.errors import DataError
from owl_swin.evaluation.precision import interval, resampled_weights
from owl_swin.evaluation.report import Interval, Report
from owl_swin.evaluation.sets import BATCH, Progress, encode_pictures

RANKS = (1, 5, 10)
TEXTS_AT_ONCE = 256


@torch.inference_mode()
def evaluate_retrieval(
    detector: Detector,
    annotations: str | Path,
    images: str | Path | None = None,
    *,
    split: str = "test",
    draws: int = 200,
    progress: Progress | None = None,
) -> Report:
    """Every picture against every caption of a set, by the cosine of their embeddings.

    ``annotations`` is a folder of webdataset tars (SPLIT-*.tar with KEY.webp and KEY.json {"captions": [...]}), or a
    COCO captions file whose pictures lie in ``images``. Figures, in percent: image_to_text_r1, _r5, _r10: pictures one
    of whose captions is among the best 1, 5, 10 of all captions; text_to_image_r1, …: captions whose picture is among
    the best pictures (bootstrap over pictures). Of a tie, half counts as better. A picture that cannot be read is left
    out with its captions and listed in ``broken``.
    """
    check_sees_whole(detector.spec)
    path = Path(annotations)
    broken: list[str] = []
    samples, notes = _read(path, images, split, broken)
    embeds: list[Tensor] = []
    texts: list[str] = []
    owner: list[int] = []
    waiting, done = iter(samples), 0
    while batch := list(islice(waiting, BATCH)):
        encoded = encode_pictures(detector, [source for _, source, _ in batch], broken)
        for (_, _, captions), one in zip(batch, encoded, strict=True):
            if one is not None:
                owner += [len(embeds)] * len(captions)
                texts += captions
                embeds.append(one.embeddings.image_embed)
            done += 1
            if progress is not None:
                progress(done, len(samples))
    ranks: dict[str, np.ndarray] = {"image_to_text": np.empty(0), "text_to_image": np.empty(0)}
    if texts:
        parts = [texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE)]
        rows = torch.cat([detector.encode_queries(part).query_embeds for part in parts])
        ranks = retrieval_ranks(torch.stack(embeds) @ rows.T, torch.tensor(owner))
    weights = resampled_weights(len(embeds), draws)
    drawn = {
        "image_to_text": weights[:, np.unique(owner).astype(int)],
        "text_to_image": weights[:, np.array(owner, dtype=int)],
    }
    hits = {f"{direction}_r{k}": own < k for direction, own in ranks.items() for k in RANKS}
    figures = {name: round(100 * float(hit.mean()), 2) if len(hit) else None for name, hit in hits.items()}
    spans = {name: _interval(hit, drawn[name.rpartition("_")[0]], figures[name]) for name, hit in hits.items()}
    first = spans["image_to_text_r1"]
    return Report(
        protocol=f"retrieval among {len(embeds)} pictures and {len(texts)} captions, pooled embeddings",
        annotations=path.name,
        counts={"n_images": len(embeds), "n_captions": len(texts)},
        figures=figures,
        intervals=spans,
        details={"ci95_image_to_text_r1": list(first) if first else None},
        notes=tuple(notes),
        broken=tuple(broken),
    )


def retrieval_ranks(similarity: Tensor, owner: Tensor) -> dict[str, np.ndarray]:
    """How many come before, of ``similarity [I, T]`` with text t belonging to picture ``owner [T]``.

    image_to_text: for each picture that has texts, the texts before its best own one; text_to_image [T]: the pictures
    before the text's own. A tie counts half.
    """
    own = similarity[owner, torch.arange(len(owner), device=similarity.device)]  # [T]
    to_image = (similarity > own).sum(0) + ((similarity == own).sum(0) - 1) / 2
    to_text = []
    for picture in owner.unique().tolist():
        mine = owner == picture
        best, others = own[mine].max(), similarity[picture][~mine]
        to_text.append(float((others > best).sum() + (others == best).sum() / 2))
    return {"image_to_text": np.array(to_text), "text_to_image": to_image.cpu().numpy()}


def _interval(hit: np.ndarray, weights: np.ndarray, figure: float | None) -> Interval | None:
    """95 % interval of the share of N hits with ``weights [draws, N]``."""
    total = weights.sum(1)
    hits = weights[total > 0] @ hit
    return interval(100 * hits / total[total > 0], figure)


def _read(path: Path, images: str | Path | None, split: str, broken: list[str]) -> tuple[list[Captioned], list[str]]:
    """Pictures with their captions, and notes of what was left out; a tar that cannot be read joins ``broken``."""
    left: list[str] = []
    if path.is_dir():
        tars = shards(str(path), split)
        if not tars:
            raise DataError(f"{path}: holds no {split}*.tar; --split names the beginning of the files to read")
        samples = [sample for tar in tars for sample in tar_entries(tar, broken)]
        if broken and not samples:
            raise DataError(broken[0])
        return samples, []
    if images is None:
        raise DataError(f"{path}: eval retrieve needs --images, the folder of the pictures of a captions file")
    with reading(path, "a COCO captions file"):
        samples = coco_caption_entries(path, Path(images), left)
    if left and not any(captions for _, _, captions in samples):
        raise DataError(f"{path}: not a COCO captions file ({left[0]})")
    check_pictures([source for _, source, _ in samples if isinstance(source, Path)], path)
    return samples, [left_out(path, left)] if left else []
