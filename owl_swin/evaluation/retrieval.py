"""Do pictures find their captions and captions their pictures? Recall at 1, 5 and 10 (Karpathy & Fei-Fei 2015)."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from owl_swin.detector import Detector
from owl_swin.errors import DataError, ImageError
from owl_swin.evaluation.precision import interval, resampled_weights
from owl_swin.evaluation.sets import Progress, read_json

RANKS = (1, 5, 10)
PICTURES = (".webp", ".jpg", ".jpeg", ".png")
TEXTS_AT_ONCE = 256

# A picture's name, its path or the bytes of its file, and its captions.
Captioned = tuple[str, Path | bytes, list[str]]


@torch.inference_mode()
def evaluate_retrieval(
    detector: Detector,
    annotations: str | Path,
    images: str | Path | None = None,
    *,
    split: str = "test",
    draws: int = 200,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Every picture against every caption of a set, by the cosine of their embeddings.

    ``annotations`` is a folder of webdataset tars (SPLIT*.tar with KEY.webp and KEY.json {"captions": [...]}), or a
    COCO captions file whose pictures lie in ``images``. Returns, in percent, image_to_text_r1, _r5, _r10: pictures one
    of whose captions is among the best 1, 5, 10 of all captions; text_to_image_r1, …: captions whose picture is among
    the best pictures; and of each its interval, ci95_image_to_text_r1 (also as ci95) and so on (bootstrap over
    pictures). Of a tie, half counts as better. A picture that cannot be read is left out with its captions and listed
    in "broken".
    """
    path = Path(annotations)
    samples = list(_tar_samples(path, split) if path.is_dir() else _coco_samples(path, images))
    broken: list[str] = []
    embeds, texts, owner = [], [], []  # type: ignore[var-annotated]
    for done, (name, source, captions) in enumerate(samples, start=1):
        try:
            embeds.append(detector.encode_image(source).embeddings.image_embed)
        except ImageError as error:
            broken.append(str(error) if isinstance(source, Path) else f"{name}: {error}")
        else:
            owner += [len(embeds) - 1] * len(captions)
            texts += captions
        if progress is not None:
            progress(done, len(samples))
    ranks: dict[str, np.ndarray] = {"image_to_text": np.empty(0), "text_to_image": np.empty(0)}
    if texts:
        parts = [texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE)]
        encoded = torch.cat([detector.encode_queries(part).query_embeds for part in parts])
        ranks = retrieval_ranks(torch.stack(embeds) @ encoded.T, torch.tensor(owner))
    figures: dict[str, Any] = {
        f"{way}_r{k}": round(100 * float((own < k).mean()), 2) if len(own) else None
        for way, own in ranks.items()
        for k in RANKS
    }
    weights = resampled_weights(len(embeds), draws)
    drawn = {
        "image_to_text": weights[:, np.unique(owner).astype(int)],
        "text_to_image": weights[:, np.array(owner, dtype=int)],
    }
    return {
        "protocol": f"retrieval among {len(embeds)} pictures and {len(texts)} captions, pooled embeddings",
        "annotations": path.name,
        "n_images": len(embeds),
        "n_captions": len(texts),
        **figures,
        "ci95": _interval(ranks["image_to_text"] < 1, drawn["image_to_text"]),
        **{f"ci95_{way}_r{k}": _interval(own < k, drawn[way]) for way, own in ranks.items() for k in RANKS},
        "broken": broken,
    }


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


def _interval(hit: np.ndarray, weights: np.ndarray) -> list[float] | None:
    """95 % interval of the share of N hits with ``weights [draws, N]``."""
    total = weights.sum(1)
    hits = weights[total > 0] @ hit
    return interval(100 * hits / total[total > 0])


def _coco_samples(path: Path, images: str | Path | None) -> Iterator[Captioned]:
    data = read_json(path)
    if images is None:
        raise DataError(f"{path}: eval retrieve needs --images, the folder of the pictures")
    try:
        captions: dict[Any, list[str]] = {}
        for annotation in data["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(_text(annotation["caption"]))
        for record in data["images"]:
            yield record["file_name"], Path(images) / record["file_name"], captions.get(record["id"], [])
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not a COCO captions file (problem with {error})") from None


def _tar_samples(folder: Path, split: str) -> Iterator[Captioned]:
    tars = sorted(folder.glob(f"{split}*.tar"))
    if not tars:
        raise DataError(f"{folder}: holds no {split}*.tar; --split names the beginning of the files to read")
    for tar_path in tars:
        pictures: dict[str, bytes] = {}
        captions: dict[str, list[str]] = {}
        try:
            with tarfile.open(tar_path) as tar:
                for member in tar:
                    key, ending = str(PurePosixPath(member.name).with_suffix("")), PurePosixPath(member.name).suffix
                    file = tar.extractfile(member) if ending in (*PICTURES, ".json") else None
                    if file is not None and ending == ".json":
                        captions[key] = [_text(caption) for caption in json.loads(file.read())["captions"]]
                    elif file is not None:
                        pictures[key] = file.read()
        except (OSError, KeyError, TypeError, ValueError, tarfile.TarError) as error:
            raise DataError(f"{tar_path}: not a tar of pictures with captions (problem with {error})") from None
        for key, content in pictures.items():
            yield key, content, captions.get(key, [])


def _text(caption: Any) -> str:
    if not isinstance(caption, str):
        raise TypeError(f"caption {caption!r}")
    return caption
