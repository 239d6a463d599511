"""Batches in order, made while the ones before are learned from: by a thread of the run, or by processes beside it."""

import dataclasses
import multiprocessing
import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from owl_swin.errors import ConfigError, OwlSwinError
from owl_swin.training.tasks import Task

# Of each worker, batches that wait to be learned from.
AHEAD_OF_WORKER = 2
# A tensor of more bytes travels between processes as shared memory, of which each piece costs a file.
SHARED_BYTES = 1 << 20


def prefetched(task: Task, first: int, last: int, *, workers: int = 0) -> Iterator[Any]:
    """The batches from ``first`` to before ``last``, the same whoever makes them."""
    if workers == 0 or first == last:
        return _by_thread(task, first, last)
    if "fork" not in multiprocessing.get_all_start_methods():
        raise ConfigError("workers need an operating system that can fork processes; set workers = 0")
    return _by_processes(task, first, last, workers)


def _by_processes(task: Task, first: int, last: int, workers: int) -> Iterator[Any]:
    loader = DataLoader(
        _Batches(task, first, last),
        batch_size=None,
        num_workers=workers,
        collate_fn=packed,
        prefetch_factor=AHEAD_OF_WORKER,
        multiprocessing_context="fork",  # what the task has read already is shared, not read again
        generator=torch.Generator(),  # a seed is drawn from it, and none from the numbers that the model draws
    )
    try:
        for batch in loader:
            if isinstance(batch, Exception):
                raise batch
            yield unpacked(batch)
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        raise OwlSwinError(
            f"a process that makes batches ended ({str(error).splitlines()[0]}); memory is what they most often lack: "
            "set fewer workers, or a smaller cache_gib, which each of them fills"
        ) from None


class _Batches(Dataset):
    """The batches of a task as a DataLoader takes them."""

    def __init__(self, task: Task, first: int, last: int):
        self.task, self.first, self.last = task, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, place: int) -> Any:
        try:
            return self.task.batch(self.first + place)
        except Exception as error:  # raised again where the batch is asked for, without a loader's words around it
            return error


def packed(batch: Any) -> Any:
    """A batch with its small tensors as arrays, which travel as bytes: a file for each would be too many."""
    return _mapped(batch, lambda x: x.numpy() if isinstance(x, torch.Tensor) and x.nbytes <= SHARED_BYTES else x)


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


def _by_thread(task: Task, first: int, last: int, *, ahead: int = 3) -> Iterator[Any]:
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
