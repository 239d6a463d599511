"""Batches are the same whoever makes them, come in order, and say what is wrong where they are asked for."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from training_data import align_settings, detect_settings, train_config, write_captions
from training_runs import ALONE, model_of

import owl_swin.training.batches as batches_module
from owl_swin.errors import ConfigError, DataError, OwlSwinError
from owl_swin.training.batches import packed, prefetched, unpacked
from owl_swin.training.loop import train
from owl_swin.training.tasks.align import AlignTask
from owl_swin.training.tasks.detect import DetectTask


def leaves(value):
    """All that is in a batch, one after another."""
    if dataclasses.is_dataclass(value):
        return [leaf for field in dataclasses.fields(value) for leaf in leaves(getattr(value, field.name))]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def assert_same(one, other):
    ours, theirs = leaves(one), leaves(other)
    assert len(ours) == len(theirs)
    for mine, its in zip(ours, theirs, strict=True):
        assert type(mine) is type(its)
        if isinstance(mine, torch.Tensor):
            assert mine.dtype == its.dtype and torch.equal(mine, its)
        else:
            assert mine == its


class Counting:
    def batch(self, step):
        return step * 10


class Failing:
    def batch(self, step):
        if step == 1:
            raise DataError("no such picture", of="a.png")
        return step


class Dying:
    def batch(self, step):
        if step == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order(workers):
    assert list(prefetched(Counting(), 3, 8, workers=workers)) == [30, 40, 50, 60, 70]
    assert list(prefetched(Counting(), 3, 3, workers=workers)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_batch_comes_where_the_batch_is_asked_for(workers):
    batches = prefetched(Failing(), 0, 3, workers=workers)
    assert next(batches) == 0
    with pytest.raises(DataError) as raised:
        next(batches)
    assert str(raised.value) == "a.png: no such picture"


@pytest.mark.parametrize("workers", [1, 3])
def test_a_process_that_is_killed_is_told_in_a_sentence(workers):
    batches = prefetched(Dying(), 0, 3, workers=workers)
    with pytest.raises(OwlSwinError, match=r"a process that makes batches ended.*fewer workers") as raised:
        list(batches)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["detect", "align"])
def test_what_a_process_makes_is_what_the_run_would(tmp_path, kind):
    if kind == "detect":
        settings = detect_settings(tmp_path, detect={"mosaic": [0.5, 0.5], "exemplars": 2})
        task = DetectTask(train_config(settings), model_of(settings), ALONE)
    else:
        pictures = {"kind": "captions", "path": str(write_captions(tmp_path / "captions")), "size": 32}
        settings = align_settings(tmp_path, [pictures])
        config = train_config(settings)
        task = AlignTask(config, model_of(settings), config.data, 8, ALONE)
    for index, batch in enumerate(prefetched(task, 1, 4, workers=2), start=1):
        assert_same(batch, task.batch(index))


def test_tensors_travel_as_arrays_and_come_back():
    batch = [torch.arange(3), (torch.zeros(2, 2, dtype=torch.uint8), "text", None)]
    there = packed(batch)
    assert isinstance(there[0], np.ndarray) and isinstance(there[1][0], np.ndarray)
    assert_same(unpacked(there), batch)


class Large:
    """Batches with arrays of several megabytes, one of them with its axes in another order in memory."""

    def batch(self, step):
        random = np.random.default_rng(step)
        pixels = torch.from_numpy(random.integers(0, 256, (4 + step % 2, 400, 500, 3), dtype=np.uint8))
        return [pixels.permute(0, 3, 1, 2), torch.from_numpy(random.random((600, 400))), torch.arange(step), str(step)]


@pytest.mark.parametrize("room", ["a slot each", "half a slot", "none"])
def test_large_arrays_come_through_shared_memory_where_there_is_room(monkeypatch, room):
    if room == "none":
        monkeypatch.setattr(batches_module.mmap, "mmap", refused)
    else:
        monkeypatch.setattr(batches_module, "SLOT_BYTES", 2**24 if room == "a slot each" else 2**22)
    through_the_pipe = []
    take = batches_module.Slots.take

    def watched(slots, batch, index):
        through_the_pipe.append([isinstance(part, np.ndarray) for part in batch[:2]])
        return take(slots, batch, index)

    monkeypatch.setattr(batches_module.Slots, "take", watched)
    for index, batch in enumerate(prefetched(Large(), 0, 20, workers=2)):  # the slots are used again and again
        expected = Large().batch(index)
        assert_same(batch, expected)
        if room == "a slot each":
            assert batch[0].stride() == expected[0].stride()
    pipe = {"a slot each": [False, False], "half a slot": [False, True], "none": [True, True]}[room]
    assert len(through_the_pipe) == 20 and all(own == pipe for own in through_the_pipe)


def refused(*_):
    raise OSError("no such addresses")


def test_batches_that_nobody_asks_for_any_more_leave_no_process():
    before = set(multiprocessing.active_children())
    batches = prefetched(Counting(), 0, 100, workers=2)
    assert next(batches) == 0 and len(set(multiprocessing.active_children()) - before) == 2
    batches.close()
    for child in set(multiprocessing.active_children()) - before:
        child.join(20)
    assert set(multiprocessing.active_children()) <= before


def ignores(pid, sig):
    (mask,) = [line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigIgn" in line]
    return int(mask, 16) >> (sig - 1) & 1


def test_a_signal_to_all_processes_of_a_run_is_for_the_run_alone():
    """Ctrl-C comes from the terminal to all of them, SIGTERM from a cluster."""
    before = set(multiprocessing.active_children())
    batches = prefetched(Counting(), 0, 100, workers=2)
    assert next(batches) == 0
    for child in set(multiprocessing.active_children()) - before:
        while not ignores(child.pid, signal.SIGHUP):  # it may have just begun
            time.sleep(0.01)
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(child.pid, sig)
    assert list(batches) == [10 * step for step in range(1, 100)]


KILLED = """
import multiprocessing, os, signal
from owl_swin.training.batches import prefetched

class Counting:
    def batch(self, step):
        return step

batches = prefetched(Counting(), 0, 100, workers=3)
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_of_a_run_that_is_killed_end_too():
    pids = subprocess.run([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, timeout=60).stdout.split()
    assert len(pids) == 3
    for _ in range(200):
        alive = [pid for pid in pids if Path(f"/proc/{int(pid)}/cmdline").exists() and _runs(int(pid))]
        if not alive:
            return
        time.sleep(0.1)
    pytest.fail(f"still there: {alive}")


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie that nobody has asked after."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_run_with_workers_learns_what_a_run_without_does(tmp_path):
    ends = []
    for workers in (0, 2):
        settings = detect_settings(tmp_path / str(workers), steps=3, workers=workers)
        ends.append(train(train_config(settings)) / "metrics.jsonl")
    lines = [[line.partition('"steps_per_s"')[0] for line in path.read_text().splitlines()] for path in ends]
    assert lines[0] == lines[1] and len(lines[0]) > 0


def test_workers_where_no_process_can_fork_are_refused(monkeypatch):
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(ConfigError, match="set workers = 0"):
        prefetched(Counting(), 0, 3, workers=2)


def test_less_than_no_workers_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="workers must be 0"):
        train_config(detect_settings(tmp_path) | {"workers": -1})
