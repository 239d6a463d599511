"""Seconds, with the work of a GPU waited for."""

import time
from collections.abc import Callable

import torch


def now(device: torch.device) -> float:
    """Seconds of a clock, once ``device`` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """How long some work takes on ``device``."""
    start = now(device)
    work()
    return now(device) - start
