"""What the operations of the encoder reach of the machine's arithmetic, and whether arithmetic or memory bounds them.

After the roofline model (Williams, Waterman and Patterson 2009): an operation that does few sums a byte cannot be
faster than memory brings bytes, one that does many not faster than the largest matrix product.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from owl_swin.bench.clock import seconds_of
from owl_swin.bench.systems import build

COPY_MIB = 256


def roofline(place: torch.device, *, tiny: bool = False, hw: tuple[int, int] = (768, 768)) -> dict[str, Any]:
    """Of Swin-T on one picture: the rate of the whole, and a row for each kind of operation with its share of the
    time, its rate and its operations a byte. ``matrix_gflops`` and ``copy_gb_s`` are the machine's roofs."""
    hw = (256, 256) if tiny else hw
    system = build("Swin-T owl_swin", device=str(place), tiny=tiny)
    assert system.module is not None
    one = system.begin(hw, 1, torch.float32)
    one.network(None)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        system.module(torch.randn(1, 3, *hw, device=place))
    flops = counter.get_total_flops()
    whole = statistics.median(seconds_of(lambda: one.network(None), place) for _ in range(3))
    matrix = {
        str(dtype).removeprefix("torch."): matrix_rate(place, dtype, side=512 if tiny else 2048)
        for dtype in (torch.float32, torch.bfloat16)
    }
    return {
        "hw": hw,
        "gflop": flops / 1e9,
        "ms": 1e3 * whole,
        "gflops": flops / whole / 1e9,
        "matrix_gflops": matrix,
        "share_of_matrix_rate": flops / whole / 1e9 / matrix["float32"],
        "copy_gb_s": copy_rate(place, 8 if tiny else COPY_MIB),
        "operations": operations(lambda: one.network(None)),
    }


def matrix_rate(place: torch.device, dtype: torch.dtype, side: int) -> float:
    """GFLOP/s of the product of two square matrices."""
    a, b = (torch.randn(side, side, device=place, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    best = min(seconds_of(lambda: torch.mm(a, b), place) for _ in range(5))
    return 2 * side**3 / best / 1e9


def copy_rate(place: torch.device, mib: int) -> float:
    """GB/s, read and written, of copying a tensor that no cache holds."""
    a = torch.ones(mib * 2**18, device=place)
    b = torch.empty_like(a)
    b.copy_(a)
    return 2 * a.nbytes / min(seconds_of(lambda: b.copy_(a), place) for _ in range(5)) / 1e9


def operations(work: Callable[[], object]) -> list[dict[str, Any]]:
    """Kinds of operations of one run, the costliest first: name, share of the time, GFLOP/s and operations a byte where
    they are counted."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, with_flops=True) as profiled:
        work()
    kinds: dict[str, dict[str, float]] = {}
    for event in profiled.key_averages(group_by_input_shape=True):
        kind = kinds.setdefault(event.key.removeprefix("aten::"), {"us": 0.0, "flops": 0.0, "bytes": 0.0})
        kind["us"] += event.self_cpu_time_total
        kind["flops"] += event.flops or 0
        kind["bytes"] += event.count * _bytes(event.input_shapes)
    total = sum(kind["us"] for kind in kinds.values())
    rows = []
    for name, kind in sorted(kinds.items(), key=lambda item: -item[1]["us"]):
        if kind["us"] < 0.01 * total:
            continue
        row: dict[str, Any] = {"operation": name, "share_of_time": kind["us"] / total}
        if kind["flops"] and kind["bytes"]:
            row |= {"gflops": kind["flops"] / kind["us"] / 1e3, "flops_per_byte": kind["flops"] / kind["bytes"]}
        rows.append(row)
    return rows


def _bytes(shapes: list[Any]) -> float:
    """float32 bytes of the tensors that go into an operation, and as many as the largest for what comes out."""
    sizes = [4.0 * torch.Size(shape).numel() for shape in shapes if shape and all(isinstance(s, int) for s in shape)]
    return sum(sizes) + max(sizes, default=0.0)
