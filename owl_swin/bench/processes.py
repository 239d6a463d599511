"""Systems in processes of their own, timed in turn, so that what else the machine does falls on all of them."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from owl_swin.bench.worker import PARTS

HW = tuple[int, int]
Progress = Callable[[str], None]
ENDED = "the process ended, perhaps for want of memory"


@dataclass(frozen=True)
class Job:
    """Pictures of ``hw`` pixels through a system, ``batch`` at once. ``hw`` None is the system's own size."""

    system: str
    hw: HW | None = None
    batch: int = 1
    dtype: str = "float32"


class Worker:
    """A process that holds one system."""

    def __init__(self, system: str, device: str, tiny: bool):
        command = [sys.executable, "-m", "owl_swin.bench.worker", system, device, "tiny" if tiny else "full"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    @cached_property
    def built(self) -> dict[str, Any]:
        """What the process said when its system was built: ``own_hw``, or ``error`` if it cannot be measured."""
        return self._read()

    def run(self, job: Job) -> dict[str, Any]:
        """Seconds of the three parts of one pass, and the peak of memory so far."""
        if "error" in self.built:
            return self.built
        try:
            print(
                json.dumps({**asdict(job), "hw": job.hw or self.built["own_hw"]}), file=self._process.stdin, flush=True
            )
        except OSError:
            return {"error": ENDED}
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": ENDED}


class Workers(AbstractContextManager["Workers"]):
    """A process for each system, from its first job to ``release`` or the end."""

    def __init__(self, *, rounds: int, device: str, tiny: bool, progress: Progress):
        self.rounds, self.device, self.tiny, self.progress = rounds, device, tiny, progress
        self._workers: dict[str, Worker] = {}

    def measure(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """A row for every job, which take turns: medians of all rounds but the first, which warms up.

        ``ms`` is of the whole pass, with ``ms_low`` and ``ms_high`` of all rounds; ``parts_ms`` of what is before, in
        and after the network. ``peak_mib`` is the process's. A system that cannot run has ``error`` instead.
        """
        for name in dict.fromkeys(job.system for job in jobs):
            if name not in self._workers:
                self._workers[name] = Worker(name, self.device, self.tiny)
        for name in dict.fromkeys(job.system for job in jobs):
            self.progress(f"building {name}")
            _ = self._workers[name].built
        answers: list[list[dict[str, Any]]] = [[] for _ in jobs]
        for turn in range(self.rounds + 1):
            for job, mine in zip(jobs, answers, strict=True):
                self.progress(f"round {turn} of {self.rounds}: {job.system}, batch {job.batch}")
                if not any("error" in answer for answer in mine):
                    mine.append(self._workers[job.system].run(job))
        return [_row(job, self._workers[job.system], mine) for job, mine in zip(jobs, answers, strict=True)]

    def release(self, names: Sequence[str]) -> None:
        """Ends the processes of these systems and gives their memory back."""
        for name in names:
            if worker := self._workers.pop(name, None):
                worker.close()

    def __exit__(self, *_: object) -> None:
        self.release(list(self._workers))


def _row(job: Job, worker: Worker, answers: list[dict[str, Any]]) -> dict[str, Any]:
    hw = job.hw or worker.built.get("own_hw")
    row: dict[str, Any] = {"system": job.system, "hw": hw, "batch": job.batch, "dtype": job.dtype}
    if errors := [answer["error"] for answer in answers if "error" in answer]:
        return row | {"error": errors[0]}
    passes = [answer["seconds"] for answer in answers[1:]]
    whole = [1e3 * sum(one) for one in passes]
    parts = [1e3 * statistics.median(column) for column in zip(*passes, strict=True)]
    return row | {
        "ms": statistics.median(whole),
        "ms_low": min(whole),
        "ms_high": max(whole),
        "parts_ms": dict(zip(PARTS, parts, strict=True)),
        "peak_mib": answers[-1]["peak_mib"],
    }
