"""Non-maximum suppression by torchvision's operator, without the second that importing all of torchvision takes."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor


def not_suppressed(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> Tensor:
    """Indices [K], in order of ``boxes``, of those that overlap no better one of their group by more than ``iou``.

    ``boxes [N, 4]`` xyxy, ``scores [N]``, ``groups [N]`` whole numbers.
    """
    place = boxes.device
    if place.type not in ("cpu", "cuda"):  # others have no float64
        boxes, scores, groups = boxes.cpu(), scores.cpu(), groups.cpu()
    if not len(boxes):
        return torch.empty(0, dtype=torch.long, device=place)
    _load_operators()
    # Each group moves to a place of its own: far out, float32 has no pixels left for the 1000th.
    boxes, scores = boxes.double(), scores.double()
    apart = groups.double()[:, None] * (boxes.max() - boxes.min() + 1)
    return torch.ops.torchvision.nms(boxes + apart, scores, iou).sort().values.to(place)


@lru_cache(maxsize=1)
def _load_operators() -> None:
    """Registers torchvision's operators with torch."""
    if hasattr(torch.ops.torchvision, "nms"):
        return
    found = find_spec("torchvision")
    for library in sorted(Path(found.origin).parent.glob("_C*.so")) if found and found.origin else []:
        try:
            torch.ops.load_library(library)
        except OSError:
            continue
    if not hasattr(torch.ops.torchvision, "nms"):  # it lies elsewhere, or has another name
        import torchvision  # noqa: F401
