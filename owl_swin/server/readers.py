"""The threads that open pictures: fair between requests, and bounded in the pixels that are being decoded."""

import asyncio
import threading
from bisect import insort
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

from owl_swin.server.turns import Lane, Turns

Result = TypeVar("Result")

# A picture of at most so many pixels is small. Every reader may decode a small one; large ones leave a reader free.
SMALL_PIXELS = 8_000_000


@dataclass(slots=True)
class _Job:
    start: float
    number: int
    pixels: int
    work: Callable[[], Any]
    future: Future = field(default_factory=Future)

    @property
    def order(self) -> tuple[float, int]:
        return self.start, self.number


class Readers:
    """``n_threads`` threads for what takes a while and needs no model.

    Jobs that say how many pixels they decode share the threads by pixels. Those beyond SMALL_PIXELS decode at most
    ``max_pixels`` at a time together, or one alone, and never take the last free thread if there are several. A job
    whose future was cancelled before it began is dropped.
    """

    def __init__(self, n_threads: int, max_pixels: int):
        self._max_pixels, self._max_large = max_pixels, max(1, n_threads - 1)
        self._jobs: list[_Job] = []
        self._numbers, self._turns = count(), Turns()
        self._changed = threading.Condition()
        self._closing = False
        self._n_large = self._large_pixels = 0
        self._threads = [threading.Thread(target=self._run, name=f"reader-{i}", daemon=True) for i in range(n_threads)]
        for thread in self._threads:
            thread.start()

    async def run(self, lane: Lane, pixels: int, work: Callable[[], Result]) -> Result:
        """The result of the work, which decodes so many pixels, or 0."""
        # What decodes nothing costs a little too, so that a lane of many such works also takes turns.
        with self._changed:
            if self._closing:
                raise RuntimeError("the readers are closed")
            job = _Job(self._turns.start(lane, max(pixels, 50_000)), next(self._numbers), pixels, work)
            insort(self._jobs, job, key=lambda one: one.order)
            self._changed.notify()
        return await asyncio.wrap_future(job.future)

    def close(self) -> None:
        """Does what waits, and returns when the threads have ended."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                result = job.work()
            except BaseException as error:
                job.future.set_exception(error)
            else:
                job.future.set_result(result)
                del result
            self._done(job)
            del job

    def _next(self) -> _Job | None:
        """The next job that may begin; None when the thread is to end."""
        with self._changed:
            while True:
                job = next((one for one in self._jobs if one.future.cancelled() or self._fits(one)), None)
                if job is None:
                    if self._closing and not self._jobs:
                        return None
                    self._changed.wait()
                    continue
                self._jobs.remove(job)
                if not job.future.set_running_or_notify_cancel():
                    continue
                self._turns.serve(job.start)
                if job.pixels > SMALL_PIXELS:
                    self._n_large += 1
                    self._large_pixels += job.pixels
                return job

    def _fits(self, job: _Job) -> bool:
        if job.pixels <= SMALL_PIXELS or not self._n_large:
            return True
        return self._n_large < self._max_large and self._large_pixels + job.pixels <= self._max_pixels

    def _done(self, job: _Job) -> None:
        with self._changed:
            if job.pixels > SMALL_PIXELS:
                self._n_large -= 1
                self._large_pixels -= job.pixels
            self._changed.notify_all()
