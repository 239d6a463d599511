"""A process that holds one system and times it when asked: ``python -m owl_swin.bench.worker NAME DEVICE tiny|full``.

It answers JSON lines: to ``{"hw": [h, w], "batch": n, "dtype": "float32"}`` the seconds of each part of one pass.
"""

import itertools
import json
import sys
from typing import Any

import torch

from owl_swin.bench.clock import now
from owl_swin.bench.memory import peak_mib
from owl_swin.bench.systems import Pass, System, build

PARTS = ("before", "network", "after")


def main() -> None:
    """Builds the system, says so, and answers until its input ends."""
    name, device, size = sys.argv[1:4]
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    try:
        system = build(name, device=device, tiny=size == "tiny")
        first: dict[str, Any] = {"own_hw": system.own_hw}
    except Exception as error:  # whatever a library raises here is why it cannot be compared
        first = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(first), file=answers, flush=True)
    begun: dict[tuple, Pass] = {}
    for line in sys.stdin:
        try:
            answer = _answer(system, json.loads(line), begun, torch.device(device))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def _answer(system: System, asked: dict[str, Any], begun: dict[tuple, Pass], device: torch.device) -> dict[str, Any]:
    key = (tuple(asked["hw"]), asked["batch"], asked["dtype"])
    if key not in begun:
        begun.clear()
        begun[key] = system.begin(key[0], key[1], getattr(torch, key[2]))
    seconds = timed(begun[key], device)
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else peak_mib()
    return {"seconds": seconds, "peak_mib": peak}


def timed(one: Pass, device: torch.device) -> list[float]:
    """Seconds of the three parts of one pass."""
    clock = [now(device)]
    x: Any = None
    for part in (lambda _: one.before(), one.network, one.after):
        x = part(x)
        clock.append(now(device))
    return [b - a for a, b in itertools.pairwise(clock)]


if __name__ == "__main__":
    main()
