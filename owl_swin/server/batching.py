"""The bounded queue that joins the works of several clients into one pass through the model."""

import asyncio
import threading
import time
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

from owl_swin.server.turns import Lane, Turns


class Shaped(Protocol):
    """A picture that shares a pass with others of its shape."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class QueueFull(Exception):
    """No room for another work."""


@dataclass(eq=False, slots=True)
class Work:
    """One picture to encode, or None, and what to do with its encoding, in the thread of the model."""

    picture: Shaped | None
    then: Callable[[Any], Any]
    future: asyncio.Future
    order: tuple[float, int]
    arrived: float = field(default_factory=time.monotonic)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Works of one shape share a pass; None needs no pass, and shares nothing."""
        return None if self.picture is None else self.picture.shape


class Batcher:
    """The threads that run the model, and the queue before them.

    ``encode`` gets pictures of one shape, at most ``max_batch``, and gives back one encoding each, in order. Lanes take
    turns, and within one the oldest work is next; others of its shape join it, also younger ones, and it waits at most
    ``max_wait_s`` for them. A work whose future was cancelled is dropped unless it runs already. With several
    ``workers``, ``on_start`` gets before each batch how many of them are at work, this one included.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[Any]], Sequence[Any]],
        *,
        max_batch: int,
        max_wait_s: float,
        queue_size: int,
        workers: int = 1,
        on_start: Callable[[int], None] = lambda n_busy: None,
        on_batch: Callable[[Sequence[Work], float], None] = lambda works, seconds: None,
        on_drop: Callable[[int], None] = lambda n: None,
    ):
        self._encode, self._on_start, self._on_batch, self._on_drop = encode, on_start, on_batch, on_drop
        self._max_batch, self._max_wait_s, self._queue_size = max_batch, max_wait_s, queue_size
        self._queue: list[Work] = []  # by turn
        self._numbers, self._turns = count(), Turns()
        self._changed = threading.Condition()
        self._closing = False
        self._work_s = 0.0  # of one work, a running mean
        self._n_busy = 0
        self._threads = [threading.Thread(target=self._run, name=f"model-{i}", daemon=True) for i in range(workers)]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def alive(self) -> bool:
        """Whether works will still be done."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def seconds_left(self) -> float:
        """About how long what waits now will take."""
        return len(self._queue) * self._work_s

    def submit(self, picture: Shaped | None, then: Callable[[Any], Any], lane: Lane | None = None) -> asyncio.Future:
        """Queues a work for the running event loop, in a lane of its own if none is given; raises QueueFull."""
        future = asyncio.get_running_loop().create_future()
        with self._changed:
            if self._closing or len(self._queue) >= self._queue_size:
                raise QueueFull
            order = (self._turns.start(lane or Lane(), 1.0), next(self._numbers))
            insort(self._queue, Work(picture, then, future, order), key=lambda work: work.order)
            self._changed.notify()
        return future

    def close(self) -> None:
        """Does what waits, takes nothing more, and returns when the threads have ended."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            started = time.monotonic()
            self._on_start(self._n_busy)
            outcomes = self._outcomes(batch)
            with self._changed:
                self._n_busy -= 1
            seconds = time.monotonic() - started
            self._work_s += 0.2 * (seconds / len(batch) - self._work_s)
            self._on_batch(batch, seconds)
            _deliver(batch, outcomes)

    def _next_batch(self) -> list[Work]:
        """The next work and what shares its pass, which then count as busy; empty when the thread is to end."""
        with self._changed:
            while True:
                self._drop_cancelled()
                if not self._queue:
                    if self._closing:
                        return []
                    self._changed.wait()
                    continue
                first = self._queue[0]
                batch = self._mates(first)
                left = first.arrived + self._max_wait_s - time.monotonic()
                if first.shape is None or len(batch) == self._max_batch or left <= 0 or self._closing:
                    chosen = set(batch)
                    self._queue = [work for work in self._queue if work not in chosen]
                    self._turns.serve(first.order[0])
                    self._n_busy += 1
                    if self._queue:
                        self._changed.notify()
                    return batch
                self._changed.wait(left)

    def _mates(self, first: Work) -> list[Work]:
        """The next work and those that share its pass; one that needs no pass would only wait for others."""
        if first.shape is None:
            return [first]
        return [work for work in self._queue if work.shape == first.shape][: self._max_batch]

    def _drop_cancelled(self) -> None:
        kept = [work for work in self._queue if not work.future.cancelled()]
        if len(kept) < len(self._queue):
            self._on_drop(len(self._queue) - len(kept))
            self._queue = kept

    def _outcomes(self, batch: list[Work]) -> list[Any]:
        """What each work came to: a result, or the exception that it ended with."""
        if batch[0].picture is None:
            return [_attempt(batch[0].then, None)]
        encoded = _attempt(self._encode, [work.picture for work in batch])
        if isinstance(encoded, Exception):
            if len(batch) == 1:
                return [encoded]
            # One picture must not fail the requests of others: each on its own.
            return [outcome for work in batch for outcome in self._outcomes([work])]
        pairs = zip(batch, encoded, strict=True)
        return [None if work.future.cancelled() else _attempt(work.then, one) for work, one in pairs]


def _attempt(function: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return function(argument)
    except Exception as error:
        return error


def _deliver(batch: list[Work], outcomes: list[Any]) -> None:
    """Hands the outcomes to the event loops that wait for them; a loop that has ended needs none."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future, Any]]] = {}
    for work, outcome in zip(batch, outcomes, strict=True):
        by_loop.setdefault(work.future.get_loop(), []).append((work.future, outcome))
    for loop, pairs in by_loop.items():
        try:
            loop.call_soon_threadsafe(_set_all, pairs)
        except RuntimeError:
            if not loop.is_closed():
                raise


def _set_all(pairs: list[tuple[asyncio.Future, Any]]) -> None:
    for future, outcome in pairs:
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
