"""The most memory that a process had."""

import resource
import sys
from pathlib import Path


def peak_mib() -> float:
    """Of this process since it began to run its program, in MiB: what the kernel calls its high-water mark.

    ``getrusage`` alone would count the process that started this one too.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 1024
