"""How a map of patches is cut into windows, shifted, filled up and masked, and put together again."""

from collections.abc import Sequence
from threading import Lock
from typing import NamedTuple, overload

import torch
import torch.nn.functional as F
from cachetools import LRUCache, cached
from torch import Tensor

MASKED = -100.0
# What all plans together may take: a few hundred sizes of pictures.
PLAN_BYTES = 32 * 2**20


class GatherPlan(NamedTuple):
    """The same cut for a gather: windows of one kind after another."""

    patch: Tensor  # [W * N], the patch of the map at each place of each window; any for a filled-in place
    runs: tuple[tuple[int, int], ...]  # of each kind the first place, and how many it has
    place: Tensor  # [H * W], the place of each patch of the map
    run: Tensor  # [2, H * W], first place and number of places of the kind of the window that the patch is in


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
    gather: GatherPlan | None  # None where a graph is traced, which has no use for it

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


class TracedPlan(NamedTuple):
    """The plan of a map whose sides are known only when a graph runs: "masked" padding, made by the graph itself.

    Windows are never smaller than the model's; what a small map has less is masked, which comes to the same.
    """

    window_hw: tuple[int, int]
    padded_hw: tuple[int, int]
    there: tuple[Tensor, Tensor]  # rows and columns of the padded map, in the order in which windows are cut
    back: tuple[Tensor, Tensor]  # and where those of the map are then
    relative_index: Tensor  # [N, N] rows of the bias table
    mask: Tensor  # [W, N, N], 0 or MASKED


def _bytes_of_plan(plan: WindowPlan) -> int:
    return sum(part.nbytes for part in (*plan, *(plan.gather or ())) if isinstance(part, Tensor)) + 8 * len(plan.kinds)


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
    gather = None
    if not torch.compiler.is_compiling():
        # Where nothing is masked or filled up it does not matter of which kind a window is.
        order = [0] * len(kinds) if mask is None and valid is None else kinds
        plan = _gather_plan(map_hw, padded_hw, window_hw, shift_hw, pad_after_shift, order)
        gather = GatherPlan(plan.patch.to(device), plan.runs, plan.place.to(device), plan.run.to(device))
    return WindowPlan(window_hw, shift_hw, padded_hw, pad_after_shift, index, mask, valid, kinds, kind, gather)


def _gather_plan(
    map_hw: tuple[int, int],
    padded_hw: tuple[int, int],
    window_hw: tuple[int, int],
    shift_hw: tuple[int, int],
    pad_after_shift: bool,
    kinds: Sequence[int],
) -> GatherPlan:
    back = (-shift_hw[0], -shift_hw[1])
    patches = torch.arange(map_hw[0] * map_hw[1]).view(1, *map_hw, 1)
    missing = (0, 0, 0, padded_hw[1] - map_hw[1], 0, padded_hw[0] - map_hw[0])
    if pad_after_shift:
        cut = F.pad(torch.roll(patches, back, (1, 2)), missing, value=-1)
    else:
        cut = torch.roll(F.pad(patches, missing, value=-1), back, (1, 2))
    windows = _cut(cut, window_hw)[0, ..., 0]  # [W, N]
    kind = torch.tensor(kinds)
    counts = torch.bincount(kind, minlength=int(kind.max()) + 1) * windows.shape[1]
    firsts = counts.cumsum(0) - counts
    order = kind.argsort(stable=True)
    patch = windows[order].flatten()
    place, run = torch.empty_like(patches).flatten(), torch.empty(2, patches.numel(), dtype=torch.long)
    real = patch >= 0
    place[patch[real]] = real.nonzero()[:, 0]
    kind_of_place = kind[order].repeat_interleave(windows.shape[1])
    run[:, patch[real]] = torch.stack([firsts, counts])[:, kind_of_place[real]]
    return GatherPlan(patch.clamp(min=0), tuple(zip(firsts.tolist(), counts.tolist(), strict=True)), place, run)


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


def gather_windows(x: Tensor, plan: WindowPlan) -> tuple[Tensor, list[Tensor], Tensor]:
    """What ``cut_windows`` does in one copy, and in another order: the windows of a kind one after another.

    [B, H, W, C] → a new tensor [B * W * N, C], its parts [n, N, C] of each kind as views of it, and the row [B, H, W]
    of each patch of the map. What fills windows up are patches of the map, which must not be attended to.
    """
    batch, height, width, channels = x.shape
    assert plan.gather is not None
    gather, picture = plan.gather, torch.arange(x.shape[0], device=x.device)[:, None]
    patch = gather.patch + picture * (height * width)  # [B, W * N]
    rows = torch.cat([patch[:, first : first + count].flatten() for first, count in gather.runs])
    windows = torch.embedding(x.reshape(-1, channels), rows)
    # The places of a kind of all pictures stand together: before them those of earlier kinds, of all pictures too.
    where = gather.place + (batch - 1) * gather.run[0] + picture * gather.run[1]
    n = plan.window_hw[0] * plan.window_hw[1]
    parts = windows.split([batch * count for _, count in gather.runs])
    return windows, [part.view(-1, n, channels) for part in parts], where.view(batch, height, width)


def _padded(x: Tensor, hw: tuple[int, int]) -> Tensor:
    return F.pad(x, (0, 0, 0, hw[1] - x.shape[2], 0, hw[0] - x.shape[1]))


def cut_windows(x: Tensor, plan: WindowPlan | TracedPlan) -> Tensor:
    """[B, H, W, C] → windows [B, W, N, C], filled with zeros to whole windows and cyclically shifted."""
    if isinstance(plan, TracedPlan):
        return _cut(_moved(_padded(x, plan.padded_hw), plan.there), plan.window_hw)
    back = (-plan.shift_hw[0], -plan.shift_hw[1])
    if plan.pad_after_shift:
        x = _padded(torch.roll(x, back, (1, 2)), plan.padded_hw)
    else:
        x = _padded(x, plan.padded_hw) if plan.padded_hw != (x.shape[1], x.shape[2]) else x
        x = torch.roll(x, back, (1, 2)) if any(back) else x
    return _cut(x, plan.window_hw)


def join_windows(windows: Tensor, plan: WindowPlan | TracedPlan, map_hw: tuple[int, int]) -> Tensor:
    """Inverse of ``cut_windows``."""
    x = _join(windows, plan.window_hw, plan.padded_hw)
    if isinstance(plan, TracedPlan):
        return _moved(x, plan.back)
    if plan.pad_after_shift:
        return torch.roll(x[:, : map_hw[0], : map_hw[1]], plan.shift_hw, (1, 2))
    x = torch.roll(x, plan.shift_hw, (1, 2)) if any(plan.shift_hw) else x
    return x[:, : map_hw[0], : map_hw[1]] if plan.padded_hw != map_hw else x


def traced_plan(map_hw: tuple[int, int], window: int, shifted: bool, device: torch.device) -> TracedPlan:
    """The plan of one block, with "masked" padding, for a map whose sides a trace follows."""
    padded_hw = ((map_hw[0] + window - 1) // window * window, (map_hw[1] + window - 1) // window * window)
    axes = [_traced_axis(*axis, window, window // 2 if shifted else 0) for axis in zip(map_hw, padded_hw, strict=True)]
    (rows, rows_back, row_regions), (cols, cols_back, col_regions) = axes
    # Padding is a region of its own, of which no patch is.
    regions = torch.where((row_regions[:, None] < 0) | (col_regions < 0), -1, 3 * row_regions[:, None] + col_regions)
    regions = _cut(regions[None, ..., None], (window, window))[0, ..., 0]  # [W, N]
    together = (regions[:, None, :] == regions[:, :, None]) & (regions[:, None, :] >= 0)
    mask = torch.where(together, 0.0, MASKED).to(device)
    index = _relative_index((window, window), window).to(device)
    return TracedPlan((window, window), padded_hw, (rows, cols), (rows_back, cols_back), index, mask)


def _traced_axis(size: int, padded: int, window: int, half: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of one side: what each place shows, where each patch is shown, and the region of each place, -1 for padding."""
    places = torch.arange(padded)
    # One window that covers the side is not shifted.
    shift = torch.where(torch.full((1,), size) > window, half, 0)
    there = (places + shift) % padded
    back = (torch.arange(size) + padded - shift) % padded
    regions = (places >= padded - window).long() + (places >= padded - shift).long()
    return there, back, torch.where(there < size, torch.where(shift > 0, regions, 0), -1)


def _moved(x: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
    """Rows and columns of a map [B, H, W, C], picked."""
    return x.index_select(1, places[0].to(x.device)).index_select(2, places[1].to(x.device))
