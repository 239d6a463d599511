"""Probes: how much a classifier learns from the features of a frozen model, by a linear layer and by neighbours."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from owl_swin.data.config import DataConfig
from owl_swin.data.pictures import Pictures, load_pictures
from owl_swin.errors import CheckpointError, ConfigError, DataError
from owl_swin.evaluation.classification import accuracy_interval, class_titles
from owl_swin.evaluation.report import Report
from owl_swin.files import make_folder, write_json, write_safetensors
from owl_swin.frame import normalise
from owl_swin.models.network import fingerprint
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.training.cache import kept_tensors
from owl_swin.training.config import TrainConfig
from owl_swin.training.distributed import started_process
from owl_swin.training.tasks.image import start_model

# Of each class so many pictures to one that is kept back, where a set has no part to be tested on.
KEPT_BACK = 5
# Of the optimiser of the linear layer, which sees all pictures in every step.
STEPS = 100


@dataclass(frozen=True, slots=True)
class Labelled:
    """Features [N, D] of pictures, and the class [N] of each."""

    features: Tensor
    labels: Tensor


def run_probe(config: TrainConfig) -> list[Report]:
    """Classifiers on features of the frozen model, a report for each set of ``config.data``.

    The run's folder then holds ``features.safetensors`` (kept for the next start), ``probe.safetensors`` (weight, bias,
    and names in its metadata, for each set) and ``probe.json`` (the reports).
    """
    folder = Path(config.output)
    make_folder(folder)
    with started_process(config.device) as process:
        if process.world > 1:
            raise ConfigError("task = 'probe' runs in one process; start it without torchrun")
        tests = config.probe.test_data or [_part(one, config.probe.test) for one in config.data]
        sets = [_parts(one, test) for one, test in zip(config.data, tests, strict=True)]
        model, _ = start_model(config, process.device)
        kept = _features(config, model.eval(), [part for train, test, _ in sets for part in (train, test)], folder)
    reports: list[Report] = []
    layers: dict[str, Tensor] = {}
    for i, (data, (train, test, notes)) in enumerate(zip(config.data, sets, strict=True)):
        learned, tested = (Labelled(kept[str(2 * i + j)].float(), part.labels) for j, part in enumerate((train, test)))
        weight, bias, decay = fit_linear(learned, len(train.texts), config.probe.weight_decays, config.seed)
        layers |= {f"{i}.weight": weight, f"{i}.bias": bias}
        logits = tested.features @ weight.T + bias
        votes = neighbour_votes(learned, tested.features, config.probe.neighbours, config.probe.temperature)
        reports.append(_report(config, data, train, test, logits, votes, decay, notes))
    names = {f"{i}.names": json.dumps(class_titles(train.texts)) for i, (train, _, _) in enumerate(sets)}
    write_safetensors(folder / "probe.safetensors", layers, names, what="the probe", error=CheckpointError)
    write_json(folder / "probe.json", [report.to_json() for report in reports], what="the reports")
    return reports


def fit_linear(
    data: Labelled, classes: int, weight_decays: Sequence[float], seed: int = 0
) -> tuple[Tensor, Tensor, float]:
    """A linear classifier of features: weight [C, D], bias [C], and the weight decay, the best on a tenth of the data
    if there are several."""
    mean = data.features.mean(0)
    std = data.features.std(0, correction=0).clamp(min=1e-6)
    scaled = Labelled((data.features - mean) / std, data.labels)
    best = weight_decays[0]
    if len(weight_decays) > 1 and len(data.labels) >= 10:
        order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(seed))
        kept, rest = order.tensor_split([len(order) // 10])
        learned = Labelled(scaled.features[rest], scaled.labels[rest])
        found = []
        for decay in weight_decays:
            weight, bias = _regression(learned, classes, decay)
            found.append(F.cross_entropy(scaled.features[kept] @ weight.T + bias, scaled.labels[kept]).item())
        best = weight_decays[int(np.argmin(found))]
    weight, bias = _regression(scaled, classes, best)
    return weight / std, bias - (weight / std) @ mean, best


def neighbour_votes(data: Labelled, features: Tensor, neighbours: int, temperature: float) -> Tensor:
    """Votes [M, C] of the nearest features, by cosine, for the classes of ``features`` [M, D]."""
    known = F.normalize(data.features, dim=-1)
    classes = int(data.labels.max()) + 1
    votes = []
    for part in F.normalize(features, dim=-1).split(1024):
        cosine, rows = (part @ known.T).topk(min(neighbours, len(known)), dim=-1)
        weights = ((cosine - cosine[:, :1]) / temperature).exp()  # the nearest counts 1, so that nothing overflows
        votes.append(weights.new_zeros(len(part), classes).scatter_add_(1, data.labels[rows], weights))
    return torch.cat(votes)


def _regression(data: Labelled, classes: int, decay: float) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression with ``decay`` / 2 times the sum of squared weights."""
    weight = torch.zeros(classes, data.features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        fit = F.cross_entropy(data.features @ weight.T + bias, data.labels) + decay / 2 * weight.square().sum()
        fit.backward()
        return fit

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def _part(config: DataConfig, test: str) -> DataConfig | None:
    """The part of a set that is tested; None where the set has none and some of it is kept back."""
    if test == config.split:
        raise ConfigError(f"{config.path}: probe.test is {test!r}, which is also learned from; empty keeps some back")
    return replace(config, split=test) if test else None


def _parts(config: DataConfig, test: DataConfig | None) -> tuple[Pictures, Pictures, tuple[str, ...]]:
    """What is learned from and what is tested, with the classes of the first, and what has to be said."""
    train = load_pictures(config)
    if train.captioned:
        raise ConfigError(
            f"{config.path}: a probe needs pictures with classes; sets of kind {config.kind!r} have texts"
        )
    if test is None:
        kept = torch.zeros(len(train.labels), dtype=torch.bool)
        for label in range(len(train.texts)):
            rows = (train.labels == label).nonzero()[:, 0]
            kept[rows[KEPT_BACK - 1 :: KEPT_BACK]] = True
        if not kept.any():
            raise DataError(f"{config.path}: no class has {KEPT_BACK} pictures, so none can be kept back for a test")
        learned, tested = (
            replace(train, images=train.images[rows], labels=train.labels[rows]) for rows in (~kept, kept)
        )
        return learned, tested, ()
    tested = load_pictures(test)
    if tested.images.shape == train.images.shape and torch.equal(tested.images, train.images):
        raise ConfigError(
            f"{test.path}: what is tested ({test.split!r}) are the very pictures that are learned from; a set of kind "
            f"{test.kind!r} without such parts needs probe.test = '', which keeps some back, or probe.test_data"
        )
    rows_of = {tuple(names): row for row, names in enumerate(train.texts)}
    known = torch.tensor([rows_of.get(tuple(names), -1) for names in tested.texts])
    labels = known[tested.labels]
    left_out = int((labels < 0).sum())
    if left_out == len(labels):
        raise DataError(f"{test.path}: no class that is tested, of {test.split!r}, is among those that are learned")
    there = labels >= 0
    said = (f"pictures of classes that are not learned, left out: {left_out}",) if left_out else ()
    return train, replace(tested, images=tested.images[there], labels=labels[there]), said


def _features(config: TrainConfig, model: OwlSwin, parts: Sequence[Pictures], folder: Path) -> dict[str, Tensor]:
    """Features [N, D], float16, of the pictures of each part, made once."""
    marks = [hashlib.sha256(part.images.contiguous().numpy().data).hexdigest() for part in parts]
    key = json.dumps([fingerprint(model), config.probe.features, config.image_size, marks])

    def make() -> dict[str, Tensor]:
        return {str(i): _encoded(config, model, part.images).half() for i, part in enumerate(parts)}

    return kept_tensors(folder / "features.safetensors", key, make)


@torch.inference_mode()
def _encoded(config: TrainConfig, model: OwlSwin, images: Tensor) -> Tensor:
    """Pooled features [N, D] of uint8 pictures [N, 3, S, S]."""
    device, side = next(model.parameters()).device, config.image_size
    pooled = []
    for part in images.split(config.batch_size):
        pixels = part.to(device).float() / 255
        if pixels.shape[2] != side:
            pixels = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True).clamp(0, 1)
        pixels = normalise(pixels)
        maps = model.encode_patches(pixels) if config.probe.features == "patches" else model.image_encoder(pixels)[-1]
        pooled.append(maps.mean((1, 2)).float().cpu())
    return torch.cat(pooled)


def _report(
    config: TrainConfig,
    data: DataConfig,
    train: Pictures,
    tested: Pictures,
    logits: Tensor,
    votes: Tensor,
    decay: float,
    notes: tuple[str, ...],
) -> Report:
    labels = tested.labels
    top = logits.topk(min(5, logits.shape[1]), dim=-1).indices == labels[:, None]
    right = {"top1": top[:, 0], "top5": top.any(1), "knn_top1": votes.argmax(1) == labels}
    hits = {name: own.double().numpy() for name, own in right.items()}
    titles = class_titles(train.texts)
    per_class = {titles[i]: 100 * hits["top1"][(labels == i).numpy()].mean() for i in labels.unique().tolist()}
    return Report(
        protocol=f"linear probe and {config.probe.neighbours} nearest neighbours on frozen, pooled "
        f"{config.probe.features} at {config.image_size} px",
        annotations="/".join(Path(data.path).parts[-2:]),
        counts={"n_images": len(labels), "n_classes": len(titles), "n_train": len(train.labels)},
        figures={name: round(100 * float(own.mean()), 2) for name, own in hits.items()},
        intervals={name: accuracy_interval(own) for name, own in hits.items()},
        per_class={name: round(float(value), 2) for name, value in per_class.items()},
        details={"weight_decay": decay},
        notes=notes,
        broken=tuple(dict.fromkeys((*tested.broken, *train.broken))),
    )
