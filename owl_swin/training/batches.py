"""Batches in order, made while the ones before are learned from: by a thread of the run, or by processes beside it."""

import dataclasses
import mmap
import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch

from owl_swin.errors import ConfigError, OwlSwinError
from owl_swin.signals import TERMINATING
from owl_swin.training.tasks import Task

# Of each worker, batches that are made or wait to be learned from.
AHEAD = 2
# Arrays of fewer bytes go through the pipe between processes, others through memory that they share: reading the pixels
# of 192 scenes out of a pipe keeps the run itself from its work for 0.3 seconds.
LARGE = 2**20
# What a slot of that memory may hold. It is an address range: memory is only what was once written, and stays so.
SLOT_BYTES = 2**29


@dataclasses.dataclass(frozen=True, slots=True)
class Placed:
    """An array that lies in a slot, from byte ``start`` on; ``axes`` go from the outermost in memory inwards."""

    start: int
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    dtype: str


class Slots:
    """Shared memory for the large arrays of batches: one slot each, in turn.

    Made before the processes that write into it are forked. A batch may be read until the second after it is asked for.
    """

    def __init__(self, count: int):
        try:
            self._slots = [mmap.mmap(-1, SLOT_BYTES) for _ in range(count)]
        except (OSError, OverflowError):  # no such addresses: all goes through the pipe
            self._slots = []

    def put(self, batch: Any, index: int) -> Any:
        """The batch of number ``index`` with ``Placed`` for each array that found room in its slot."""
        if not self._slots:
            return batch
        slot, used = self._slots[index % len(self._slots)], 0

        def place(value: Any) -> Any:
            nonlocal used
            if not isinstance(value, np.ndarray) or value.nbytes < LARGE or used + value.nbytes > SLOT_BYTES:
                return value
            # As they lie in memory: pixels [B, 3, H, W] are [B, H, W, 3] there.
            axes = np.argsort([-stride for stride in value.strides], kind="stable")
            placed = Placed(used, value.shape, tuple(axes.tolist()), value.dtype.str)
            self._at(slot, placed)[...] = value
            used += -(-value.nbytes // 64) * 64
            return placed

        return _mapped(batch, place)

    def take(self, batch: Any, index: int) -> Any:
        """The batch that was put, whose large arrays lie in the slot."""
        return _mapped(
            batch, lambda x: self._at(self._slots[index % len(self._slots)], x) if isinstance(x, Placed) else x
        )

    @staticmethod
    def _at(slot: mmap.mmap, placed: Placed) -> np.ndarray:
        shape = [placed.shape[axis] for axis in placed.axes]
        return np.ndarray(shape, placed.dtype, slot, placed.start).transpose(np.argsort(placed.axes))


def prefetched(task: Task, first: int, last: int, *, workers: int = 0) -> Generator[Any]:
    """The batches from ``first`` to before ``last``, the same whoever makes them. One that a worker made is to be read
    before the second after it is asked for: its large arrays lie in memory that is used again."""
    if workers == 0 or first == last:
        return _by_thread(task, first, last)
    if "fork" not in multiprocessing.get_all_start_methods():
        raise ConfigError("workers need an operating system that can fork processes; set workers = 0")
    return _by_processes(task, first, last, workers)


def _by_processes(task: Task, first: int, last: int, workers: int) -> Generator[Any]:
    # No DataLoader: its handler of processes that end stays in the program for ever.
    context = multiprocessing.get_context("fork")  # what the task has read already is shared, not read again
    hears, ends = context.Pipe(duplex=False)
    slots = Slots(AHEAD * workers + 2)
    pool = ProcessPoolExecutor(workers, context, initializer=_adopt, initargs=(task, slots, hears, ends))
    try:
        ahead = deque(pool.submit(_made, index) for index in range(first, min(last, first + AHEAD * workers)))
        for index in range(first, last):
            batch = ahead.popleft().result()
            if index + AHEAD * workers < last:
                ahead.append(pool.submit(_made, index + AHEAD * workers))
            yield unpacked(slots.take(batch, index))
    except BrokenProcessPool:
        ends.close()  # before the pool waits for the others
        raise OwlSwinError(
            "a process that makes batches ended; memory is what they most often lack: set fewer workers, or a smaller "
            "cache_gib, which each of them fills"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
        ends.close()
        hears.close()


# In a worker, whose batches it makes, and where their large arrays go.
_adopted: list[tuple[Task, Slots]] = []


def _adopt(task: Task, slots: Slots, hears: Connection, ends: Connection) -> None:
    # A terminal sends Ctrl-C, and a cluster SIGTERM, to all processes of a run; it alone decides when they end.
    for sig in (signal.SIGINT, *TERMINATING):
        signal.signal(sig, signal.SIG_IGN)
    ends.close()  # open in the run alone
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_the_run, args=(hears,), daemon=True).start()
    _adopted.append((task, slots))


def _end_with_the_run(hears: Connection) -> None:
    """The other end of the pipe closes when the run ends its workers; a run that is killed cannot do even that."""
    run = multiprocessing.parent_process()
    wait([hears] if run is None else [hears, run.sentinel])
    os._exit(1)


def _made(index: int) -> Any:
    task, slots = _adopted[-1]
    return slots.put(packed(task.batch(index)), index)


def packed(batch: Any) -> Any:
    """A batch with arrays in place of its tensors: those would travel between processes as a file each."""
    return _mapped(batch, lambda x: x.numpy() if isinstance(x, torch.Tensor) else x)


def unpacked(batch: Any) -> Any:
    """The batch that was packed."""
    return _mapped(batch, lambda x: torch.from_numpy(x) if isinstance(x, np.ndarray) else x)


def _mapped(value: Any, change: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, Placed)):
        own = {field.name: _mapped(getattr(value, field.name), change) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **own)
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(item, change) for item in value])
    return change(value)


def _by_thread(task: Task, first: int, last: int, *, ahead: int = 3) -> Generator[Any]:
    ready: queue.Queue = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def work() -> None:
        item: tuple[Any, Exception | None]
        for index in range(first, last):
            try:
                item = (task.batch(index), None)
            except Exception as error:  # raised again where the batch is asked for
                item = (None, error)
            while not stop.is_set():
                try:
                    ready.put(item, timeout=1)
                    break
                except queue.Full:
                    continue
            if stop.is_set() or item[1] is not None:
                return

    threading.Thread(target=work, daemon=True).start()
    try:
        for _ in range(first, last):
            batch, error = ready.get()
            if error is not None:
                raise error
            yield batch
    finally:
        stop.set()
