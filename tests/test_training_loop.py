"""The loop trains whatever keeps the protocol of a task, and shows how far it is."""

import json
import os
import signal

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from owl_swin.errors import OwlSwinError
from owl_swin.files import write_safetensors
from owl_swin.signals import Terminated, raised_signals
from owl_swin.training import journal
from owl_swin.training.config import OptimConfig
from owl_swin.training.distributed import Process
from owl_swin.training.journal import Journal
from owl_swin.training.loop import LoopConfig, run_task
from owl_swin.training.streams import stream_seed

ALONE = Process(0, 1, torch.device("cpu"))


class Line:
    """y = 2x + 1, learned by one number and a bias that only training has."""

    def __init__(self, fails: Exception | None = None, *, signalled: tuple[tuple[int, int], ...] = ()):
        """``signalled`` are signals that come in the middle of a step: (step, signal)."""
        torch.manual_seed(0)
        self.model = nn.Linear(1, 1, bias=False)
        self.extra = nn.ModuleDict({"bias": nn.Linear(1, 1, bias=True)})
        self.evaluated: list[bool] = []
        self.fails, self.signalled, self.steps = fails, signalled, 0

    def batch(self, index):
        return torch.randn(16, 1, generator=torch.Generator().manual_seed(index))

    def step_losses(self, batch):
        if self.fails is not None:
            raise self.fails
        for step, sig in self.signalled:
            if step == self.steps:
                signal.raise_signal(sig)
        self.steps += 1
        answer = self.model(batch) + self.extra["bias"](0 * batch) + 0.01 * torch.randn(())  # what a step draws counts
        return {"loss": ((answer - 2 * batch - 1) ** 2).mean()}

    def evaluate(self, averaged):
        self.evaluated.append(averaged is not self.model)
        return {"slope": float(averaged.weight.detach())}

    def preview(self, averaged, batch):
        return Image.new("RGB", (4, 4)) if len(batch) == 16 else None

    def write_result(self, folder, weights):
        tensors = {name: value.contiguous() for name, value in weights.items()}
        write_safetensors(folder / "line.safetensors", tensors, {}, what="the line", error=OwlSwinError)


def loop_config(folder, **changes):
    optim = OptimConfig(image_lr=0.0, heads_lr=0.1, warmup_steps=1, ema_decay=0.5, weight_decay=0.0)
    return LoopConfig(str(folder), **({"steps": 60, "optim": optim, "log_every": 10} | changes))


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "steps_per_s"} for line in found]


def test_a_task_that_the_package_does_not_know_is_trained_and_kept(tmp_path):
    task = Line()
    folder = run_task(task, loop_config(tmp_path / "run", evaluate_every=25, preview_every=30), ALONE, {})
    assert float(load_file(folder / "line.safetensors")["weight"]) == pytest.approx(2, abs=0.1)
    assert float(task.extra["bias"].bias.detach()) == pytest.approx(1, abs=0.1)
    assert [line["step"] for line in lines(folder)] == [0, 10, 20, 24, 30, 40, 49, 50, 59]
    assert [line["step"] for line in lines(folder) if "slope" in line] == [24, 49, 59]
    assert task.evaluated == [True] * 3
    assert sorted(path.name for path in folder.glob("*.jpg")) == ["found-30.jpg", "found-60.jpg"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_task_that_is_cut_off_goes_on_to_the_bit(tmp_path, accumulate):
    changes = {"steps": 9, "accumulate": accumulate, "log_every": 1}
    straight = run_task(Line(), loop_config(tmp_path / "straight", **changes), ALONE, {})
    config = loop_config(tmp_path / "run", **changes)
    for stop_after in (2, 3, None):
        run_task(Line(), config, ALONE, {}, stop_after=stop_after)
    assert lines(tmp_path / "run") == lines(straight)
    ours, theirs = (load_file(path / "state.safetensors") for path in (tmp_path / "run", straight))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_what_a_killed_writer_left_is_removed_when_the_run_goes_on(tmp_path):
    config = loop_config(tmp_path, steps=2)
    run_task(Line(), config, ALONE, {}, stop_after=1)
    (tmp_path / ".0123456789ab.part").write_bytes(b"half a state")
    run_task(Line(), config, ALONE, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "line.safetensors",
        "metrics.jsonl",
        "state.safetensors",
    ]


def test_too_little_memory_is_one_sentence(tmp_path):
    fails = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of …\nmore")
    with pytest.raises(
        OwlSwinError, match=r"cpu has too little memory for this batch \(CUDA out of memory\); lower"
    ) as e:
        run_task(Line(fails), loop_config(tmp_path), ALONE, {})
    assert "\n" not in str(e.value)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OwlSwinError, match="file: cannot write in this folder"):
        run_task(Line(), loop_config(tmp_path / "file"), ALONE, {})


def test_no_two_steps_processes_or_seeds_draw_alike():
    """The seed was a sum: seed 1 at step 0 drew as seed 0 at step 7919."""
    keys = [(seed, step, rank) for seed in (0, 1) for step in (0, 1, 7_919, 104_729, 1_000_003) for rank in (0, 1)]
    keys += [(seed, index) for seed in (0, 1) for index in (0, 1, 1_000_003)]
    assert len({stream_seed(*key) for key in keys}) == len(keys)
    assert all(0 <= stream_seed(*key) < 2**63 for key in keys)


# --- A kill at any moment ------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What nothing on the way catches, as nothing catches a kill."""


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_run_stopped_at_any_step_of_any_write_goes_on_to_the_bit(tmp_path, monkeypatch, call, number):
    config = loop_config(tmp_path / "run", steps=4, log_every=1, checkpoint_minutes=0.0)
    straight = run_task(Line(), loop_config(tmp_path / "straight", steps=4, log_every=1), ALONE, {})
    honest, count = getattr(os, call), 0

    def stop(*args, **kwargs):
        nonlocal count
        written = call != "open" or str(args[0]).endswith(".part")
        count += written
        if written and count == number:
            raise Killed
        return honest(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, stop)
        with pytest.raises(Killed):
            run_task(Line(), config, ALONE, {})
    folder = run_task(Line(), config, ALONE, {})
    assert lines(folder) == lines(straight)
    for file in ("state.safetensors", "line.safetensors"):
        ours, theirs = load_file(folder / file), load_file(straight / file)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


class Exploding(Line):
    """Its loss is finite at ``step``, and the gradient is not: that of a square root at zero."""

    step = 3

    def step_losses(self, batch):
        losses = super().step_losses(batch)
        if self.steps == self.step + 1:
            losses["loss"] = losses["loss"] + (0 * self.model.weight).sum().sqrt()
        return losses


@pytest.mark.parametrize("minutes, advice", [(0.0, r"go on with --allow-changes from the last"), (5.0, "begin again$")])
def test_gradients_that_are_not_finite_reach_no_checkpoint(tmp_path, minutes, advice):
    """They made all weights NaN, and these were kept before the next step's loss told."""
    config = loop_config(tmp_path, steps=6, checkpoint_minutes=minutes)
    with pytest.raises(OwlSwinError, match=rf"^step 3: the loss is \S+ and .*gradient nan; lower .* {advice}"):
        run_task(Exploding(), config, ALONE, {})
    state = tmp_path / "state.safetensors"
    assert state.exists() == (minutes == 0)
    if state.exists():
        assert step_of(tmp_path) == 3 and all(tensor.isfinite().all() for tensor in load_file(state).values())


# --- Signals -------------------------------------------------------------------------------------------------------


def step_of(folder):
    with safe_open(folder / "state.safetensors", "pt") as file:
        return int(file.metadata()["step"])


@pytest.mark.parametrize(
    "sig, raised, code",
    [(signal.SIGINT, KeyboardInterrupt, None), (signal.SIGTERM, Terminated, 143), (signal.SIGHUP, Terminated, 129)],
)
def test_a_run_that_is_asked_to_end_keeps_every_step_and_goes_on_to_the_bit(tmp_path, capfd, sig, raised, code):
    straight = run_task(Line(), loop_config(tmp_path / "straight", steps=6, log_every=1), ALONE, {})
    config = loop_config(tmp_path / "run", steps=6, log_every=1)
    with raised_signals(), pytest.raises(raised) as ended:
        run_task(Line(signalled=((3, sig),)), config, ALONE, {})
    assert getattr(ended.value, "code", None) == code
    assert step_of(tmp_path / "run") == 4 and (tmp_path / "run" / "line.safetensors").exists()
    assert "owl-swin: stopping after this step" in capfd.readouterr().err
    folder = run_task(Line(), config, ALONE, {})
    assert lines(folder) == lines(straight)
    for file in ("state.safetensors", "line.safetensors"):
        ours, theirs = load_file(folder / file), load_file(straight / file)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_what_a_shell_has_the_run_ignore_does_not_stop_it(tmp_path, name):
    """As of `owl-swin train RUN.toml &` in a script, and of `nohup`."""
    sig = getattr(signal, name)
    before = signal.signal(sig, signal.SIG_IGN)
    try:
        run_task(Line(signalled=((1, sig),)), loop_config(tmp_path, steps=3), ALONE, {})
    finally:
        signal.signal(sig, before)
    assert step_of(tmp_path) == 3


def test_a_second_ctrl_c_does_not_wait_but_under_torchrun_which_passes_the_first_one_on(tmp_path, monkeypatch):
    twice = ((2, signal.SIGINT), (2, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run_task(Line(signalled=twice), loop_config(tmp_path / "alone", steps=6), ALONE, {})
    assert not (tmp_path / "alone" / "state.safetensors").exists()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(KeyboardInterrupt):
        run_task(Line(signalled=twice), loop_config(tmp_path / "launched", steps=6), ALONE, {})
    assert step_of(tmp_path / "launched") == 3


def test_a_second_sigterm_as_timeout_sends_it_disturbs_nothing(tmp_path):
    with raised_signals(), pytest.raises(Terminated):
        run_task(Line(signalled=((2, signal.SIGTERM), (2, signal.SIGTERM))), loop_config(tmp_path, steps=6), ALONE, {})
    assert step_of(tmp_path) == 3
    with raised_signals():
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # while what was at work closes
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# --- Progress ------------------------------------------------------------------------------------------------------


def test_progress_in_a_file_is_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(journal, "LINE_EVERY_S", 0.0)
    run_task(Line(), loop_config(tmp_path, steps=3, log_every=1), ALONE, {})
    said = capsys.readouterr()
    assert said.out == ""
    first, second, last = said.err.splitlines()
    assert first.startswith("step 1/3  ") and first.endswith(" left") and "\r" not in said.err
    assert second.startswith("step 2/3  loss ") and last.startswith("step 3/3  loss ") and last.endswith(" elapsed")


def test_lines_come_now_and_then_and_at_the_end(tmp_path, monkeypatch, capsys):
    clock = iter(float(second) for second in range(10_000))
    monkeypatch.setattr(journal.time, "monotonic", lambda: next(clock))
    with Journal(tmp_path, first=100, steps=200, tensorboard=False) as book:
        for step in range(101, 135):
            book.advance(step)
    shown = [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()]
    assert 3 <= len(shown) <= 5 and shown[-1] == "step 134/200"


@pytest.mark.parametrize(
    "seconds, shown", [(0, "0:00:00"), (59.6, "0:01:00"), (3_725, "1:02:05"), (360_000, "100:00:00")]
)
def test_clock(seconds, shown):
    assert journal._clock(seconds) == shown


def test_metrics_on_a_full_disk_are_one_sentence(tmp_path):
    with Journal(tmp_path, first=0, steps=1, tensorboard=False) as book, open("/dev/full", "w") as full:
        book._file, own = full, book._file
        with pytest.raises(OwlSwinError, match=r"metrics\.jsonl: cannot write the metrics here \(No space left"):
            book.write(0, {"loss": 1.0})
        book._file = own
        os.dup2(own.fileno(), full.fileno())  # so that it can be closed


def test_a_last_line_that_lost_its_end_does_not_swallow_the_next(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 1}')
    with Journal(tmp_path, first=1, steps=2, tensorboard=False) as book:
        book.write(1, {"loss": 0.5})
    assert lines(tmp_path) == [{"step": 0, "loss": 1}, {"step": 1, "loss": 0.5}]
