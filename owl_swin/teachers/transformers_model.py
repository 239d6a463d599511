"""Open-vocabulary detectors of transformers as teachers: what all of them share."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from owl_swin.detections import Detections
from owl_swin.devices import pick_device, pick_dtype
from owl_swin.errors import CheckpointError, QueryError, brief
from owl_swin.models.network import fingerprint

# Most detections of a picture, as a Detector has them.
MOST = 300


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass says: ``scores`` [B, Q, n] of its Q boxes for n of the texts, whose places are ``texts``, and
    ``boxes`` [B, Q, 4], xyxy in [0, 1] of the picture."""

    texts: Sequence[int]
    scores: Tensor
    boxes: Tensor


class Architecture(Protocol):
    """What differs between them."""

    size: int | None  # the one side in pixels that all pictures are brought to; None: any size is possible
    longer_side: int

    def pixels(self, picture: Image.Image, scale: float) -> Tensor:
        """[3, H, W] of an upright picture, as the model reads it."""
        ...

    def passes(self, pixels: Tensor, texts: tuple[str, ...]) -> Iterator[Pass]:
        """Pixels [B, 3, H, W] → what the model finds of the texts, each of which is in one pass."""
        ...


class TransformersTeacher:
    """A model of transformers. Pictures of one size that are asked the same are shown together, and none is padded to
    another: a picture has the same answer alone or in a batch."""

    def __init__(self, name: str, architecture: Architecture, identity: dict[str, Any], scale: float = 1.0):
        self._architecture, self._scale, self._identity = architecture, scale, identity
        self.name = name
        self.identity: dict[str, Any] = {"name": name, **identity, "scale": scale}

    def find(
        self, pictures: Sequence[Image.Image], texts: Sequence[tuple[str, ...]], threshold: float
    ) -> list[Detections]:
        """As the protocol has it."""
        pixels = [self._architecture.pixels(picture, self._scale) for picture in pictures]
        groups: dict[Any, list[int]] = {}
        for i, (own, one) in enumerate(zip(texts, pixels, strict=True)):
            groups.setdefault((own, one.shape), []).append(i)
        found: dict[int, Detections] = {}
        for (own, _), places in groups.items():
            shown = [pictures[i] for i in places]
            with torch.inference_mode():
                passes = self._architecture.passes(torch.stack([pixels[i] for i in places]), own)
                found.update(zip(places, _detections(passes, shown, own, threshold), strict=True))
        return [found[i] for i in range(len(pictures))]

    def at_scale(self, scale: float) -> "TransformersTeacher":
        """Only for those that see pictures in any size."""
        if self._architecture.size is not None and scale != 1:
            raise QueryError(
                f"{self.name} sees pictures in one size, {self._architecture.size} pixels; leave other sizes out"
            )
        return TransformersTeacher(self.name, self._architecture, self._identity, self._scale * scale)


def _detections(
    passes: Iterator[Pass], pictures: Sequence[Image.Image], texts: tuple[str, ...], threshold: float
) -> list[Detections]:
    rows: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in pictures]
    for one in passes:
        places = torch.tensor(one.texts, dtype=torch.long)
        for own, scores, boxes in zip(rows, one.scores.float().cpu(), one.boxes.float().cpu(), strict=True):
            # What is no number must not be lost here: whoever takes the answer refuses it.
            query, text = (~(scores < threshold)).nonzero(as_tuple=True)
            own.append((boxes[query], scores[query, text], places[text]))
    return [_best(own, picture, texts) for own, picture in zip(rows, pictures, strict=True)]


def _best(rows: Sequence[tuple[Tensor, Tensor, Tensor]], picture: Image.Image, texts: tuple[str, ...]) -> Detections:
    boxes, scores, labels = (torch.cat(column) for column in zip(*rows, strict=True))
    order = scores.argsort(descending=True, stable=True)[:MOST]
    size = torch.tensor([picture.width, picture.height] * 2, dtype=torch.float32)
    return Detections(
        boxes[order] * size,
        scores[order],
        labels[order],
        texts,
        (picture.height, picture.width),
        torch.zeros(len(order), dtype=torch.long),
    )


def load_transformers(
    folder: Path,
    name: str,
    kind: str,
    make: Callable[[Any, Any], Architecture],
    classes: tuple[str, str],
    *,
    device: str = "auto",
    dtype: str | None = None,
    image_size: int | None = None,
    **settings: Any,
) -> TransformersTeacher:
    """The teacher of a folder that transformers has saved, of these classes of its model and processor; what is not
    whole raises CheckpointError."""
    import transformers

    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            "holds no .safetensors weights, and pickled ones are not read; load the model with transformers and call "
            "save_pretrained to convert them",
            of=name,
        )
    place = pick_device(device)
    precision = pick_dtype(dtype) or torch.float32
    with quiet():
        try:
            processor = getattr(transformers, classes[1]).from_pretrained(folder, local_files_only=True)
            model, report = getattr(transformers, classes[0]).from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=precision,
                output_loading_info=True,
                **settings,
            )
        except Exception as error:  # transformers' own have no root in common
            lines = str(error).strip().splitlines() or [""]
            raise CheckpointError(
                f"transformers cannot load this model of the kind {kind} ({type(error).__name__}: {brief(lines[0])})",
                of=name,
            ) from None
    lost = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if lost:
        some = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        raise CheckpointError(f"weights do not fit the model; missing or of another shape: {some}", of=name)
    model = model.eval().requires_grad_(False)
    identity = {"kind": kind, "weights": fingerprint(model)[:32], "dtype": str(precision).removeprefix("torch.")}
    architecture = make(model.to(place), processor)
    teacher = TransformersTeacher(name, architecture, identity)
    return teacher if image_size is None else teacher.at_scale(image_size / architecture.longer_side)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers prints while it loads."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
