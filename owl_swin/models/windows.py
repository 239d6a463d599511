"""How a map of patches is cut into windows, shifted, filled up and masked, and put together again."""

from threading import Lock
from typing import NamedTuple, overload

import torch
import torch.nn.functional as F
from cachetools import LRUCache, cached
from torch import Tensor

MASKED = -100.0
# What all plans together may take: a few hundred sizes of pictures.
PLAN_BYTES = 32 * 2**20


class WindowPlan(NamedTuple):
    """How a map of one size is cut into windows. N = window height * width, W = number of windows.

    Windows inside of a map are all alike, and those at each of its borders: of masks there are only K kinds, a few.
    """

    window_hw: tuple[int, int]
    shift_hw: tuple[int, int]
    padded_hw: tuple[int, int]
    pad_after_shift: bool
    relative_index: Tensor  # [N, N] rows of the bias table
    mask: Tensor | None  # [K, N, N], 0 or MASKED; None where every patch of a window attends to every other
    valid: Tensor | None  # [K, N, 1], 0 for filled-in patches that must enter the attention as zeros; None: all 1
    kinds: tuple[int, ...]  # [W], the kind of each window
    kind: Tensor  # the same as indices

    @overload
    def of(self, rows: Tensor, start: int, stop: int) -> Tensor: ...

    @overload
    def of(self, rows: None, start: int, stop: int) -> None: ...

    def of(self, rows: Tensor | None, start: int, stop: int) -> Tensor | None:
        """Of ``rows`` [K, ...], those of the windows from ``start`` to ``stop``; one [1, ...] where they are alike."""
        if rows is None or len(rows) == 1:
            return rows
        kinds = self.kinds[start:stop]
        if len(set(kinds)) == 1:
            return rows[kinds[0] : kinds[0] + 1]
        return rows[self.kind[start:stop]]


def _bytes_of_plan(plan: WindowPlan) -> int:
    return sum(part.nbytes for part in plan if isinstance(part, Tensor)) + 8 * len(plan.kinds)


@cached(LRUCache(PLAN_BYTES, _bytes_of_plan), lock=Lock())
@torch.inference_mode(False)  # a plan made while detecting may serve training later
def window_plan(map_hw: tuple[int, int], window: int, shifted: bool, padding: str, device: torch.device) -> WindowPlan:
    """The plan of one block for a map of size ``map_hw``; ``padding`` as in SwinConfig."""
    window_hw, shift_hw = _window_and_shift(map_hw, window, shifted, padding)
    padded_hw = (-(-map_hw[0] // window_hw[0]) * window_hw[0], -(-map_hw[1] // window_hw[1]) * window_hw[1])
    pad_after_shift = padding in ("timm", "timm_backbone")
    has_padding = padded_hw != map_hw
    (rows, row_kinds), (cols, col_kinds) = (
        _kinds_of_axis(*axis, rolled=not pad_after_shift)
        for axis in zip(map_hw, padded_hw, window_hw, shift_hw, strict=True)
    )
    kinds = tuple(row * len(cols) + col for row in row_kinds for col in col_kinds)
    # [K, N] each: the region that the shift puts a patch in, and whether there is one.
    region = torch.tensor([[3 * y[0] + x[0] for y in row for x in col] for row in rows for col in cols])
    real = torch.tensor([[y[1] * x[1] for y in row for x in col] for row in rows for col in cols])
    mask = None
    if any(shift_hw) or (has_padding and padding == "masked"):
        together = region[:, None, :] == region[:, :, None]  # [K, N, N]
        if padding == "masked":
            together = together & (real[:, None, :] == 1)
        mask = torch.where(together, 0.0, MASKED).to(device)
    valid = real[..., None].float().to(device) if has_padding and padding != "masked" else None
    index = _relative_index(window_hw, window).to(device)
    kind = torch.tensor(kinds).to(device)
    return WindowPlan(window_hw, shift_hw, padded_hw, pad_after_shift, index, mask, valid, kinds, kind)


def _kinds_of_axis(
    size: int, padded: int, window: int, shift: int, *, rolled: bool
) -> tuple[list[tuple[tuple[int, int], ...]], list[int]]:
    """The different windows along one side of a map, and which of them each window is.

    A window is a pair for each of its places: the region, as the shift brings the two ends of the map together in the
    last window, and 1 where the map has a patch, 0 where it is filled up.
    """
    places = []
    for place in range(padded):
        region = 0 if not shift or place < padded - window else 1 if place < padded - shift else 2
        places.append((region, int(((place + shift) % padded if rolled else place) < size)))
    windows = [tuple(places[start : start + window]) for start in range(0, padded, window)]
    kinds = list(dict.fromkeys(windows))
    return kinds, [kinds.index(one) for one in windows]


def _window_and_shift(
    map_hw: tuple[int, int], window: int, shifted: bool, padding: str
) -> tuple[tuple[int, int], tuple[int, int]]:
    half = window // 2 if shifted else 0
    if padding.endswith("_backbone"):  # detectors take whole windows and shift them, however small the map
        return (window, window), (half, half)
    if padding == "torchvision":  # whole windows always; no shift along a side that one window covers
        return (window, window), tuple(0 if size <= window else half for size in map_hw)  # type: ignore[return-value]
    if padding == "transformers" and min(map_hw) <= window:  # one small side switches both
        return (min(map_hw), min(map_hw)), (0, 0)
    window_hw = tuple(min(size, window) for size in map_hw)
    shift_hw = tuple(0 if size <= window else half for size in map_hw)
    return window_hw, shift_hw  # type: ignore[return-value]


def _relative_index(window_hw: tuple[int, int], table_window: int) -> Tensor:
    """Row of the bias table for each pair of patches [N, N]; smaller windows use the middle of the table."""
    rows, cols = torch.meshgrid(torch.arange(window_hw[0]), torch.arange(window_hw[1]), indexing="ij")
    rows, cols = rows.flatten(), cols.flatten()
    row_distance = rows[:, None] - rows[None, :] + table_window - 1
    col_distance = cols[:, None] - cols[None, :] + table_window - 1
    return row_distance * (2 * table_window - 1) + col_distance


def _cut(x: Tensor, window_hw: tuple[int, int]) -> Tensor:
    """[B, H, W, C] → windows [B, W, N, C]."""
    batch, height, width, channels = x.shape
    m, n = window_hw
    x = x.reshape(batch, height // m, m, width // n, n, channels).transpose(2, 3)
    return x.reshape(batch, (height // m) * (width // n), m * n, channels)


def _join(windows: Tensor, window_hw: tuple[int, int], map_hw: tuple[int, int]) -> Tensor:
    """Windows [B, W, N, C] → [B, H, W, C]."""
    batch, _, _, channels = windows.shape
    (m, n), (height, width) = window_hw, map_hw
    x = windows.reshape(batch, height // m, width // n, m, n, channels).transpose(2, 3)
    return x.reshape(batch, height, width, channels)


def cut_windows(x: Tensor, plan: WindowPlan) -> Tensor:
    """[B, H, W, C] → windows [B, W, N, C], filled with zeros to whole windows and cyclically shifted."""
    pad = (0, 0, 0, plan.padded_hw[1] - x.shape[2], 0, plan.padded_hw[0] - x.shape[1])
    back = (-plan.shift_hw[0], -plan.shift_hw[1])
    if plan.pad_after_shift:
        x = F.pad(torch.roll(x, back, (1, 2)), pad)
    else:
        x = F.pad(x, pad) if any(pad) else x
        x = torch.roll(x, back, (1, 2)) if any(back) else x
    return _cut(x, plan.window_hw)


def join_windows(windows: Tensor, plan: WindowPlan, map_hw: tuple[int, int]) -> Tensor:
    """Inverse of ``cut_windows``."""
    x = _join(windows, plan.window_hw, plan.padded_hw)
    if plan.pad_after_shift:
        return torch.roll(x[:, : map_hw[0], : map_hw[1]], plan.shift_hw, (1, 2))
    x = torch.roll(x, plan.shift_hw, (1, 2)) if any(plan.shift_hw) else x
    return x[:, : map_hw[0], : map_hw[1]] if plan.padded_hw != map_hw else x
