"""How long one picture takes with 1, 10, 80 labels: a Detector beside transformers' pipeline, with the same weights."""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from owl_swin.bench.training import describe_machine, figure
from owl_swin.boxes import paired_iou
from owl_swin.detector import Detector
from owl_swin.errors import QueryError
from owl_swin.families.owl_vit import FAMILIES

TASK = "zero-shot-object-detection"
PROCESSORS = {"owlvit": "OwlViTImageProcessor", "owlv2": "Owlv2ImageProcessor"}
PICTURE_HW = (480, 640)
# Of random weights nothing but the speed is measured: no patch reaches this.
THRESHOLD = 0.1


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a checkpoint: family, patch, side of the picture, width and layers of the image tower, text width."""

    family: str
    patch: int
    side: int
    width: int
    layers: int
    text_width: int
    text_layers: int = 12


# "tiny" is none that is published: it shows in seconds how time grows with the labels.
SHAPES = {
    "tiny": Shape("owlv2", 16, 192, 192, 2, 64, 2),
    "owlvit-base-patch32": Shape("owlvit", 32, 768, 768, 12, 512),
    "owlvit-base-patch16": Shape("owlvit", 16, 768, 768, 12, 512),
    "owlvit-large-patch14": Shape("owlvit", 14, 840, 1024, 24, 768),
    "owlv2-base-patch16": Shape("owlv2", 16, 960, 768, 12, 512),
    "owlv2-large-patch14": Shape("owlv2", 14, 1008, 1024, 24, 768),
}


def benchmark_labels(
    source: str | None = None,
    *,
    shape: str = "tiny",
    labels: Sequence[int] = (1, 10, 80),
    rounds: int = 3,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Times ``detect`` and transformers' pipeline on one picture, in turn, in this process.

    ``source`` is an OWL-ViT or OWLv2 checkpoint; without one, random weights of ``shape`` are made for the occasion.
    Both read the picture and encode the texts every time. Figures are medians in seconds; ``ratio`` says how many times
    as long the pipeline takes, ``best_score`` that both answer the same. For OWLv2, ``content_only`` is its time and
    what it changes: the differences of scores and the overlap of boxes, patch by patch.
    """
    if not labels or min(*labels, rounds, 1) < 1:
        raise QueryError("labels and rounds must be at least 1")
    if source is None and shape not in SHAPES:
        raise QueryError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")
    with _checkpoint(source, shape, progress) as place:
        detector = Detector.from_pretrained(place, device=device, text_cache=False)
        if detector.spec.family not in FAMILIES:
            raise QueryError(f"transformers has no pipeline for {detector.name}; give an OWL-ViT or OWLv2 checkpoint")
        pipe = _pipeline(place, detector, device)
        picture = _picture()
        result: dict[str, Any] = {
            "protocol": f"one picture of {PICTURE_HW[1]}x{PICTURE_HW[0]}, median of {rounds} alternating rounds",
            "machine": describe_machine(torch.device(device)),
            "model": shape if source is None else detector.name,
            "image_size": detector.image_size,
            "best_score": _best_scores(detector, pipe, picture),
            "seconds": {},
            "ratio": {},
        }
        for n in labels:
            names = [f"thing number {i}" for i in range(n)]
            progress(f"{n} labels")
            ours, theirs = _alternating(
                [
                    partial(detector.detect, picture, names, threshold=THRESHOLD),
                    partial(pipe, picture, candidate_labels=names, threshold=THRESHOLD),
                ],
                rounds,
            )
            result["seconds"][str(n)] = {"owl_swin": figure(ours), "transformers": figure(theirs)}
            result["ratio"][str(n)] = figure(theirs / ours)
        if detector.spec.family == "owlv2":
            progress("without padding")
            result["content_only"] = _without_padding(detector, place, device, picture, rounds)
    return result


@contextmanager
def _checkpoint(source: str | None, shape: str, progress: Callable[[str], None]):
    """The checkpoint's name or folder; a random one is gone afterwards."""
    if source is not None:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="owl_swin-bench-") as folder:
        progress(f"random weights of {shape}")
        _save_random(SHAPES[shape], Path(folder))
        yield folder


def _save_random(shape: Shape, folder: Path) -> None:
    import transformers

    family = FAMILIES[shape.family]
    config = getattr(transformers, family.replace("ForObjectDetection", "Config"))(
        text_config={
            "hidden_size": shape.text_width,
            "intermediate_size": 4 * shape.text_width,
            "num_hidden_layers": shape.text_layers,
            "num_attention_heads": shape.text_width // 64,
        },
        vision_config={
            "hidden_size": shape.width,
            "intermediate_size": 4 * shape.width,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.width // 64,
            "image_size": shape.side,
            "patch_size": shape.patch,
        },
        projection_dim=shape.text_width,
    )
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    model = getattr(transformers, family)(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "head" in name and weight.ndim == 2:  # transformers starts them so large that all boxes are edges
                weight.normal_(std=(0.05 if "logit" in name else 0.5) * weight.shape[1] ** -0.5)
        model.class_head.logit_scale.bias.fill_(10.0)
        model.class_head.logit_shift.bias.fill_(-1.0)
    model.save_pretrained(folder)


def _pipeline(place: str, detector: Detector, device: str) -> Any:
    import open_clip
    import transformers

    clip = open_clip.SimpleTokenizer()
    merges = [pair for pair, _ in sorted(clip.bpe_ranks.items(), key=lambda item: item[1])]
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): i for token, i in clip.encoder.items()}
    family, side = detector.spec.family, detector.spec.image_size
    return transformers.pipeline(
        TASK,
        model=getattr(transformers, FAMILIES[family]).from_pretrained(place).eval(),
        tokenizer=transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token="!"),
        image_processor=getattr(transformers, PROCESSORS[family])(size={"height": side, "width": side}),
        device=device,
    )


def _best_scores(detector: Detector, pipe: Any, picture: Image.Image) -> dict[str, float | None]:
    """The highest score of one label in the picture, of both."""
    best = detector.detect(picture, ["a thing"], threshold=0.0).best
    theirs = pipe(picture, candidate_labels=["a thing"], threshold=0.0)
    return {
        "owl_swin": None if best is None else round(best.score, 5),
        "transformers": round(max(one["score"] for one in theirs), 5),
    }


def _without_padding(
    detector: Detector, place: str, device: str, picture: Image.Image, rounds: int
) -> dict[str, float]:
    cut = Detector.from_pretrained(place, device=device, content_only=True, text_cache=False)
    whole_s, cut_s = _alternating(
        [partial(one.detect, picture, ["a thing"], threshold=THRESHOLD) for one in (detector, cut)], rounds
    )
    queries = detector.encode_queries(["a thing"])
    seen = [one.encode_image(picture) for one in (detector, cut)]
    rows, columns = seen[1].embeddings.grid_hw
    side = seen[0].embeddings.grid_hw[1]
    kept = (torch.arange(rows)[:, None] * side + torch.arange(columns)).flatten()
    scores = [detector.score(one, queries).sigmoid().cpu() for one in seen]
    boxes = [one.boxes_px().cpu() for one in seen]
    change = (scores[0][kept] - scores[1]).abs()
    return {
        "seconds": figure(cut_s),
        "ratio": figure(whole_s / cut_s),
        "share_of_patches": figure(len(kept) / len(scores[0])),
        "mean_score_change": figure(float(change.mean())),
        "largest_score_change": figure(float(change.max())),
        "mean_box_iou": figure(float(paired_iou(boxes[0][kept], boxes[1]).mean())),
    }


def _alternating(works: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Median seconds of each work, once around before anything counts."""
    seconds: list[list[float]] = [[] for _ in works]
    for i in range(rounds + 1):
        for work, times in zip(works, seconds, strict=True):
            start = time.perf_counter()
            work()  # its answer is in Python: nothing is left to be computed
            if i:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def _picture() -> Image.Image:
    """Coloured blocks."""
    blocks = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(PICTURE_HW[::-1], Image.Resampling.NEAREST)
