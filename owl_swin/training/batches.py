"""Batches in order, made while the ones before are learned from: by a thread of the run, or by processes beside it."""

import dataclasses
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


def prefetched(task: Task, first: int, last: int, *, workers: int = 0) -> Generator[Any]:
    """The batches from ``first`` to before ``last``, the same whoever makes them."""
    if workers == 0 or first == last:
        return _by_thread(task, first, last)
    if "fork" not in multiprocessing.get_all_start_methods():
        raise ConfigError("workers need an operating system that can fork processes; set workers = 0")
    return _by_processes(task, first, last, workers)


def _by_processes(task: Task, first: int, last: int, workers: int) -> Generator[Any]:
    # No DataLoader: its handler of processes that end stays in the program for ever.
    context = multiprocessing.get_context("fork")  # what the task has read already is shared, not read again
    hears, ends = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_adopt, initargs=(task, hears, ends))
    try:
        ahead = deque(pool.submit(_made, index) for index in range(first, min(last, first + AHEAD * workers)))
        for index in range(first, last):
            batch = ahead.popleft().result()
            if index + AHEAD * workers < last:
                ahead.append(pool.submit(_made, index + AHEAD * workers))
            yield unpacked(batch)
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


# In a worker, whose batches it makes.
_adopted: list[Task] = []


def _adopt(task: Task, hears: Connection, ends: Connection) -> None:
    # A terminal sends Ctrl-C, and a cluster SIGTERM, to all processes of a run; it alone decides when they end.
    for sig in (signal.SIGINT, *TERMINATING):
        signal.signal(sig, signal.SIG_IGN)
    ends.close()  # open in the run alone
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_the_run, args=(hears,), daemon=True).start()
    _adopted.append(task)


def _end_with_the_run(hears: Connection) -> None:
    """The other end of the pipe closes when the run ends its workers; a run that is killed cannot do even that."""
    run = multiprocessing.parent_process()
    wait([hears] if run is None else [hears, run.sentinel])
    os._exit(1)


def _made(index: int) -> Any:
    return packed(_adopted[-1].batch(index))


def packed(batch: Any) -> Any:
    """A batch with arrays in place of its tensors: those would travel between processes as a file each."""
    return _mapped(batch, lambda x: x.numpy() if isinstance(x, torch.Tensor) else x)


def unpacked(batch: Any) -> Any:
    """The batch that was packed."""
    return _mapped(batch, lambda x: torch.from_numpy(x) if isinstance(x, np.ndarray) else x)


def _mapped(value: Any, change: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
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
