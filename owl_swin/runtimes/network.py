"""A network whose graphs something else than PyTorch computes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from owl_swin.errors import CheckpointError, ConfigError, QueryError, first_line
from owl_swin.frame import FRAME_MULTIPLE, HW
from owl_swin.models.network import Spec
from owl_swin.runtimes import SPEC
from owl_swin.runtimes.spec import ExportSpec, read_spec
from owl_swin.types import ImageEmbeddings, MaskEmbeddings, PatchLogitInputs

# Outputs of an image's graph, in order; its input is "pixels". That of texts makes "text_embeds" of "ids".
IMAGE_OUTPUTS = ("class_embeds", "pred_boxes", "objectness_logits", "logit_shift", "logit_scale", "image_embed")
# Outputs that the graph of pictures with masks has after these: those of MaskEmbeddings, then of its ``dense``.
MASK_OUTPUTS = ("mask_embeds", "pixel_embeds")
DENSE_OUTPUTS = ("class_embeds", "logit_shift", "logit_scale")

# One array in, all outputs of the graph out, in order. Several threads may call it at once.
Graph = Callable[[np.ndarray], list[np.ndarray]]


class GraphNetwork:
    """The network of an exported folder, on the processor. Graphs are read when they are first needed.

    Copies, and what a process sends to another, read the folder again.
    """

    def __init__(self, folder: Path, open_graph: Callable[[Path], Graph]):
        # Graphs are read when they are needed, wherever the process has gone by then.
        self._folder, self._open_graph = folder.absolute(), open_graph
        self._own = _said(folder)
        self._export: ExportSpec = read_spec(folder)
        self._graphs: dict[str, Graph] = {}
        self._lock = Lock()

    def __reduce__(self) -> Any:
        return GraphNetwork, (self._folder, self._open_graph)

    @property
    def spec(self) -> Spec:
        """That of the network which was exported."""
        return self._export.network

    @property
    def export(self) -> ExportSpec:
        """What the folder says of itself."""
        return self._export

    def placed(self, device: torch.device, dtype: torch.dtype | None) -> "GraphNetwork":
        """Itself; on another device than the processor, or in another precision, raises ConfigError."""
        if device.type != "cpu":
            raise ConfigError(f'an exported model computes on the CPU, got device "{device}"; load its source instead')
        if dtype not in (None, torch.float32):
            raise ConfigError(
                f"an exported model keeps the precision it was written with ({self._export.precision}), got {dtype}"
            )
        return self

    def encode_image(self, pixels: Tensor) -> ImageEmbeddings:
        """Normalised pixels [B, 3, H, W] → everything that no query touches; a frame that the folder has no graph for
        raises QueryError."""
        return self._image_embeddings(pixels, self._answers(pixels, self._export.image_graph))

    def encode_with_masks(self, pixels: Tensor) -> ImageEmbeddings:
        """As encode_image, with ``masks``; of a folder whose network has some."""
        answers = self._answers(pixels, self._export.mask_graph)
        of_image, of_masks = answers[: len(IMAGE_OUTPUTS)], answers[len(IMAGE_OUTPUTS) :]
        mask_embeds, pixel_embeds, *dense = of_masks
        masks = MaskEmbeddings(mask_embeds, pixel_embeds, PatchLogitInputs(*dense))
        return replace(self._image_embeddings(pixels, of_image), masks=masks)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids [N, L] → unit text embeddings [N, E]."""
        if not len(ids):
            return torch.zeros(0, self.spec.embed_dim)
        return torch.from_numpy(self._graph(self._export.text_graph)(_array(ids, np.int64))[0])

    def _answers(self, pixels: Tensor, name_of: Callable[[HW | None], str]) -> list[Tensor]:
        """The outputs of the graph for these pixels."""
        height, width = pixels.shape[2:]
        graph = self._graph(name_of(self._size((height, width))))
        return [torch.from_numpy(value) for value in graph(_array(pixels, np.float32))]

    def _image_embeddings(self, pixels: Tensor, answers: Sequence[Tensor]) -> ImageEmbeddings:
        outputs: dict[str, Any] = dict(zip(IMAGE_OUTPUTS, answers, strict=True))
        stride = self.spec.stride
        return ImageEmbeddings(**outputs, grid_hw=(pixels.shape[2] // stride, pixels.shape[3] // stride))

    def _size(self, frame_hw: HW) -> HW | None:
        sizes = self._export.sizes
        if frame_hw in sizes:
            return frame_hw
        if sizes or any(side % FRAME_MULTIPLE for side in frame_hw):
            known = ", ".join(f"{height}x{width}" for height, width in sizes) or f"multiples of {FRAME_MULTIPLE}"
            raise QueryError(
                f"this export has graphs for frames (height x width) of {known}, not {frame_hw[0]}x{frame_hw[1]}; "
                "leave out image_size, or export this size too"
            )
        return None

    def _graph(self, name: str) -> Graph:
        with self._lock:
            if name not in self._graphs:
                try:
                    graph = self._open_graph(self._folder / name)
                except (OSError, RuntimeError, ValueError) as error:
                    reason = first_line(error)
                    raise CheckpointError(f"cannot be read ({reason})", of=self._folder / name) from None
                if _said(self._folder) != self._own:  # which goes before the graphs, and comes after them
                    raise CheckpointError("was written again since it was loaded; load it anew", of=self._folder)
                self._graphs[name] = graph
            return self._graphs[name]


def _said(folder: Path) -> bytes:
    """What the folder says of itself, as it is."""
    try:
        return (folder / SPEC).read_bytes()
    except OSError:
        return b""


def _array(tensor: Tensor, kind: type) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), kind)
