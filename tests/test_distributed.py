"""Several processes train as one would with all their pictures, and a run that is killed goes on to the bit."""

import json
import os
import signal
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import torch.distributed.run
from processes import forked
from safetensors import safe_open
from safetensors.torch import load_file
from training_data import TINY_MODEL, align_settings, detect_settings, to_toml, write_captions, write_labelled

from owl_swin.cli.main import main
from owl_swin.config import ModelConfig, read_toml
from owl_swin.errors import ConfigError
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.training.config import TrainConfig
from owl_swin.training.distributed import started_process
from owl_swin.training.loop import train
from owl_swin.training.tasks.detect import DetectBatch, DetectTask


def _signalled(step: int, sig: int) -> None:
    """In this process ``sig`` comes in the middle of that step, however busy the machine is."""
    learn, learnt = DetectTask.step_losses, iter(range(step))

    def step_losses(task: DetectTask, batch: DetectBatch) -> dict[str, torch.Tensor]:
        if next(learnt, None) is None:
            signal.raise_signal(sig)
        return learn(task, batch)

    DetectTask.step_losses = step_losses


def _train(toml: str, env: dict[str, str], killed_in: int | None) -> None:
    os.environ.update(env)
    if killed_in is not None:
        _signalled(killed_in, signal.SIGKILL)
    train(read_toml(toml, TrainConfig))


def _torchrun(command: list[str]) -> None:
    """`torchrun`, in a process that has the imports behind it; those that it starts have not."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.distributed.run.main(command)


def start(toml: Path, env: dict[str, str], killed_in: int | None = None) -> BaseProcess:
    """A process that trains, one of several where ``env`` says so as `torchrun` does; killed in that step."""
    process = forked.Process(target=_train, args=(str(toml), env, killed_in))
    process.start()
    return process


def places(processes: int) -> list[dict[str, str]]:
    """What `torchrun` would say to each of so many processes."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def run(folder: Path, settings: dict, processes: int = 1) -> Path:
    """The run's folder after all processes have ended well."""
    folder.mkdir(parents=True, exist_ok=True)
    toml = folder / "run.toml"
    settings = settings | {"output": str(folder / "run"), "device": "cpu"}
    toml.write_text(to_toml(settings))
    started = [start(toml, env) for env in places(processes)]
    for process in started:
        process.join(240)
    assert [process.exitcode for process in started] == [0] * processes
    return Path(settings["output"])


def losses(folder: Path) -> list[dict]:
    """Everything that a run measured, without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "steps_per_s"} for line in lines]


def without_drop_path(settings: dict) -> dict:
    """Which blocks are left out at random depends on the process; here nothing is."""
    model = Path(settings["model"])
    model.write_text(TINY_MODEL.replace("drop_path_rate = 0.05", "drop_path_rate = 0.0"))
    return settings


def assert_close_runs(one: Path, other: Path) -> None:
    """The same losses and weights, up to the order of sums."""
    for ours, theirs in zip(losses(one), losses(other), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3, abs=2e-4)
    ours, theirs = load_file(one / "state.safetensors"), load_file(other / "state.safetensors")
    assert ours.keys() == theirs.keys()
    moved = [key for key in ours if key.startswith("model.") and ours[key].is_floating_point()]
    assert all(torch.allclose(ours[key], theirs[key], atol=2e-3) for key in moved)


def mixed_align(folder: Path, **changes) -> dict:
    """Alignment on labelled and captioned pictures, four of each in a batch of eight."""
    labelled = write_labelled(folder / "labelled", n=12)
    data = [
        {"kind": "labelled", "path": str(labelled), "images": str(labelled.parent / "images"), "size": 32},
        {"kind": "captions", "path": str(write_captions(folder / "captions", n=12)), "size": 32},
    ]
    return without_drop_path(align_settings(folder, data, steps=3, **changes))


@pytest.mark.parametrize(
    "change",
    [{"contrast": "softmax"}, {"contrast": "sigmoid", "shard": "fsdp"}],
    ids=["softmax", "sigmoid-fsdp"],
)
def test_two_processes_align_as_one_with_the_doubled_batch(tmp_path, change):
    settings = mixed_align(tmp_path) | change
    settings["optim"] = settings["optim"] | {"text_lr": 1e-3}
    double = run(tmp_path / "double", settings | {"batch_size": 16})
    two = run(tmp_path / "two", settings | {"batch_size": 8}, processes=2)
    assert_close_runs(two, double)


def test_two_processes_detect_as_one_with_the_doubled_batch(tmp_path):
    settings = without_drop_path(detect_settings(tmp_path, steps=3))
    double = run(tmp_path / "double", settings | {"batch_size": 8})
    two = run(tmp_path / "two", settings | {"batch_size": 4}, processes=2)
    assert_close_runs(two, double)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_goes_on_to_the_bit(tmp_path, processes):
    settings = detect_settings(tmp_path, steps=8, checkpoint_minutes=0.0)
    straight = run(tmp_path / "straight", settings, processes)
    folder = tmp_path / "killed"
    folder.mkdir()
    toml = folder / "run.toml"
    toml.write_text(to_toml(settings | {"output": str(folder / "run"), "device": "cpu"}))
    *others, last = places(processes)
    started = [*(start(toml, env) for env in others), start(toml, last, killed_in=5)]
    for process in started:
        process.join(240)
    assert started[-1].exitcode == -signal.SIGKILL
    assert all(process.exitcode for process in started)  # those that it left have nobody to add up gradients with
    metrics = folder / "run" / "metrics.jsonl"
    # Half a line, as a machine that lost its power leaves it.
    assert len(losses(folder / "run")) == 5
    with open(metrics, "a") as file:
        file.write('{"step": 7, "lo')
    gone_on = run(folder, settings, processes)
    assert losses(gone_on) == losses(straight)
    ours, theirs = (load_file(path / "state.safetensors") for path in (gone_on, straight))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def _command(toml: str, env: dict[str, str], said: str, terminated_in: int | None) -> None:
    os.environ.update(env)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    if terminated_in is not None:
        _signalled(terminated_in, signal.SIGTERM)
    sys.argv = ["owl-swin", "train", toml]
    main()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_gets_sigterm_keeps_every_step_and_goes_on_to_the_bit(tmp_path, processes):
    """Of several processes one alone gets it: all end after the same step."""
    settings = detect_settings(tmp_path, steps=8, batch_size=1)
    straight = run(tmp_path / "straight", settings, processes)
    folder = tmp_path / "stopped"
    folder.mkdir()
    toml, said = folder / "run.toml", folder / "said"
    toml.write_text(to_toml(settings | {"output": str(folder / "run"), "device": "cpu"}))
    *others, last = places(processes)
    calls = [(str(toml), env, str(said), None) for env in others] + [(str(toml), last, str(said), 3)]
    started = [forked.Process(target=_command, args=call) for call in calls]
    for process in started:
        process.start()
    for process in started:
        process.join(240)
    assert [process.exitcode for process in started] == [143] * processes
    assert said.read_text().count("owl-swin: stopped; the same command goes on from the last checkpoint\n") == 1
    with safe_open(folder / "run" / "state.safetensors", "pt") as file:
        assert int(file.metadata()["step"]) == len(losses(folder / "run")) == 4
    gone_on = run(folder, settings, processes)
    assert losses(gone_on) == losses(straight)
    ours, theirs = (load_file(path / "state.safetensors") for path in (gone_on, straight))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_torchrun_starts_the_command(tmp_path):
    settings = without_drop_path(detect_settings(tmp_path, steps=2, batch_size=2)) | {"device": "cpu"}
    toml = tmp_path / "run.toml"
    toml.write_text(to_toml(settings))
    command = ["--standalone", "--nproc-per-node", "2", "-m", "owl_swin", "train", str(toml)]
    launcher = forked.Process(target=_torchrun, args=(command,))
    launcher.start()
    launcher.join(240)
    assert launcher.exitcode == 0
    assert len(losses(Path(settings["output"]))) == 2 and (Path(settings["output"]) / "model.safetensors").exists()


def test_one_process_needs_no_launcher():
    with started_process("cpu") as process:
        assert (process.rank, process.world, process.device.type, process.first) == (0, 1, "cpu", True)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="must be auto, cpu or cuda"), started_process("tpu"):
        pass
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="finds no GPU"), started_process("cuda"):
            pass


def test_the_tiny_model_has_no_other_randomness(tmp_path):
    """What the comparisons above rest on."""
    settings = without_drop_path(detect_settings(tmp_path))
    model = OwlSwin(read_toml(settings["model"], ModelConfig)).train()
    pixels = torch.rand(2, 3, 64, 64)
    assert torch.equal(model.encode_patches(pixels), model.encode_patches(pixels))
