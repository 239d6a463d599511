"""What a run leaves on the disk: it goes on from any kill, refuses what is damaged, and says what was changed."""

import json
import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from training_data import align_settings, detect_settings, train_config, write_captions

from owl_swin.cli.main import app
from owl_swin.errors import CheckpointError, ConfigError, OwlSwinError
from owl_swin.training.cache import kept_tensors
from owl_swin.training.distributed import Process
from owl_swin.training.journal import Journal
from owl_swin.training.loop import train
from owl_swin.training.optim import average_of
from owl_swin.training.state import RunState, load_state, save_state
from owl_swin.training.tasks.detect import DetectTask

ALONE = Process(0, 1, torch.device("cpu"))
SETTINGS = {"task": "detect", "seed": 0, "steps": 10, "optim": {"image_lr": 0.1}, "data": [{"path": "a"}]}


def make_run(steps: int = 0, *, frozen: str = "", seed: int = 0) -> RunState:
    """Two layers and a number of the task's own, moved ``steps`` times; the layer ``frozen`` is left out."""
    torch.manual_seed(seed)
    model = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)})
    extra = nn.ModuleDict({"bias": nn.Linear(1, 1)})
    moved = [p for name, p in model.named_parameters() if name.partition(".")[0] != frozen] + [*extra.parameters()]
    run = RunState(model, extra, average_of(model, 0.5), torch.optim.AdamW(moved, lr=0.1))
    for _ in range(steps):
        for parameter in moved:
            parameter.grad = torch.randn_like(parameter)
        run.optimizer.step()
        run.average.update_parameters(model)
    return run


def moments(run: RunState) -> dict[str, torch.Tensor]:
    return {f"{n}.{k}": v for n, p in run.parameters().items() for k, v in run.optimizer.state[p].items()}


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def path(tmp_path):
    """A state after 3 steps."""
    save_state(tmp_path / "state.safetensors", make_run(3), step=3, settings=SETTINGS, process=ALONE)
    return tmp_path / "state.safetensors"


def test_everything_comes_back(path):
    saved, run = make_run(3), make_run(seed=1)
    assert load_state(path, run, settings=SETTINGS) == 3
    assert_same(dict(saved.model.state_dict()), dict(run.model.state_dict()))
    assert_same(dict(saved.extra.state_dict()), dict(run.extra.state_dict()))
    assert_same(dict(saved.average.state_dict()), dict(run.average.state_dict()))
    assert_same(moments(saved), moments(run))
    assert len(moments(run)) == 6 * 3


def test_moments_of_earlier_versions_are_found_by_their_place(path):
    from owl_swin.files import read_safetensors, write_safetensors

    tensors, metadata = read_safetensors(path, error=CheckpointError)
    saved = make_run(3)
    place = {name: str(i) for i, name in enumerate(saved.parameters())}
    old = {}
    for key, value in tensors.items():
        name, _, kind = key.removeprefix("optim.").rpartition(".")
        old[f"optim.{place[name]}.{kind}" if key.startswith("optim.") else key] = value
    write_safetensors(path, old, metadata, what="it", error=CheckpointError)
    run = make_run(seed=1)
    load_state(path, run, settings=SETTINGS)
    assert_same(moments(saved), moments(run))


def test_moments_stay_with_their_parameter_when_another_part_is_frozen(path):
    """Told apart by their place alone, those of one layer would have become those of the other."""
    saved, run = moments(make_run(3)), make_run(frozen="one", seed=1)
    load_state(path, run, settings=SETTINGS)
    assert_same({k: v for k, v in saved.items() if ".one." not in k}, moments(run))
    thawed = make_run(3, frozen="one")
    save_state(path, thawed, step=3, settings=SETTINGS, process=ALONE)
    load_state(path, run := make_run(seed=1), settings=SETTINGS)
    fresh = {name for name, p in run.parameters().items() if not run.optimizer.state[p]}
    assert fresh == {"model.one.weight", "model.one.bias"}


# --- Damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"step": None},
        {"step": "soon"},
        {"step": "-1"},
        {"settings": None},
        {"settings": "{"},
        {"settings": "[1]"},
    ],
)
def test_a_state_whose_step_or_settings_are_damaged_is_one_sentence(path, change):
    metadata = {k: v for k, v in ({"step": "3", "settings": json.dumps(SETTINGS)} | change).items() if v is not None}
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"state\.safetensors: not the state of a training run \(") as caught:
        load_state(path, make_run(), settings=SETTINGS)
    assert "\n" not in str(caught.value)


def test_a_state_cut_off_anywhere_is_one_sentence(path):
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="not the state of a training run"):
            load_state(path, make_run(), settings=SETTINGS)


@pytest.mark.parametrize(
    "key, becomes",
    [
        ("optim.model.one.weight.exp_avg", torch.zeros(3)),
        ("optim.model.one.weight.exp_avg", None),
        ("optim.999.exp_avg", torch.zeros(1)),
    ],
)
def test_a_damaged_optimizer_is_one_sentence(path, key, becomes):
    tensors = {k: v for k, v in (load_file(path) | {key: becomes}).items() if v is not None}
    save_file(tensors, path, metadata={"step": "3", "settings": json.dumps(SETTINGS)})
    with pytest.raises(CheckpointError, match="its optimizer state does not fit this run"):
        load_state(path, make_run(), settings=SETTINGS)


# --- Settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, said",
    [
        ({"seed": 1}, "seed 0 (now 1)"),
        ({"steps": 20}, "steps 10 (now 20)"),
        ({"optim": {"image_lr": 0.2}}, "optim.image_lr 0.1 (now 0.2)"),
        ({"data": [{"path": "b"}]}, "data[0].path 'a' (now 'b')"),
        ({"data": []}, "data [{'path': 'a'}] (now [])"),
        ({"seed": 1, "steps": 5}, "seed 0 (now 1), steps 10 (now 5)"),
    ],
)
def test_other_settings_are_named_and_taken_on_purpose_only(path, caplog, change, said):
    with pytest.raises(ConfigError) as caught:
        load_state(path, run := make_run(seed=1), settings=SETTINGS | change)
    assert f"this run began with other settings: {said}; set them back" in str(caught.value)
    assert str(caught.value).endswith("or go on with the new ones by --allow-changes")
    assert not moments(run)  # refused before anything was changed
    assert load_state(path, run, settings=SETTINGS | change, allow_changes=True) == 3
    assert moments(run) and said in caplog.text


def test_settings_that_change_nothing_learned_may_change(path):
    for name in (
        "output",
        "device",
        "log_every",
        "checkpoint_minutes",
        "tensorboard",
        "preview_every",
        "blend",
        "workers",
    ):
        assert load_state(path, make_run(), settings=SETTINGS | {name: "another"}) == 3
    assert load_state(path, make_run(), settings=SETTINGS | {"new_in_this_version": 1}) == 3


def test_the_command_refuses_another_seed_and_goes_on_with_it_on_purpose(tmp_path, monkeypatch):
    from training_data import to_toml
    from typer.testing import CliRunner

    settings = detect_settings(tmp_path, steps=3)
    toml = tmp_path / "run.toml"

    def run(*options, **changes):
        toml.write_text(to_toml(settings | changes))
        return CliRunner().invoke(app, ["train", str(toml), *options])

    assert run("--stop-after", "1").exit_code == 0
    before = (Path(settings["output"]) / "state.safetensors").read_bytes()
    with monkeypatch.context() as patch:  # before any data is read
        patch.setattr("owl_swin.training.loop.build_task", None)
        refused = run(seed=5)
    assert isinstance(refused.exception, ConfigError) and "seed 0 (now 5)" in str(refused.exception)
    assert (Path(settings["output"]) / "state.safetensors").read_bytes() == before
    assert run("--allow-changes", seed=5).exit_code == 0
    assert run(seed=5).exit_code == 0  # the run now has the new ones


def test_another_model_file_of_the_same_shapes_is_named(tmp_path):
    settings = detect_settings(tmp_path, steps=2)
    train(train_config(settings), stop_after=1)
    model = Path(settings["model"])
    model.write_text(model.read_text().replace("drop_path_rate = 0.05", "drop_path_rate = 0.4"))
    with pytest.raises(ConfigError, match=r"model_config\.image\.drop_path_rate 0\.05 \(now 0\.4\)"):
        train(train_config(settings))


def test_labels_that_have_changed_since_are_told_and_taken_on_purpose_only(tmp_path):
    """The run went on with other boxes and names than it began with, without a word."""
    settings = detect_settings(tmp_path, steps=3)
    train(train_config(settings), stop_after=1)
    path = Path(settings["data"][0]["path"])
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(
        ConfigError, match=r"sets\[0\] '12 pictures, 18 boxes, 4 names, .*' \(now '12 pictures, 18 boxes, 4"
    ):
        train(train_config(settings))
    train(train_config(settings), allow_changes=True)
    path.write_text(json.dumps(content | {"annotations": content["annotations"][1:]}))
    train(train_config(settings))  # at its end nothing is learned any more; --blend may still be chosen


def test_a_set_without_a_box_is_trained_on_with_a_warning(tmp_path, caplog):
    settings = detect_settings(tmp_path, steps=1)
    path = Path(settings["data"][0]["path"])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    train(train_config(settings))
    assert "shapes.json: holds no box: all that its pictures show is background" in caplog.text


def test_captions_that_have_changed_since_are_told_too(tmp_path):
    def settings(n):
        pictures = {"kind": "captions", "path": str(write_captions(tmp_path / "captions", n)), "size": 32}
        return train_config(align_settings(tmp_path, [pictures], steps=2))

    train(settings(8), stop_after=1)
    with pytest.raises(ConfigError, match=r"sets\[0\] '8 pictures, .*' \(now '9 pictures"):
        train(settings(9))


# --- The journal ---------------------------------------------------------------------------------------------------

LINES = '{"step": 0, "loss": 1}\n{"step": 1, "loss": 1}\n{"step": 2, "loss": 1}\n{"step": 3, "lo'


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_curve_survives_a_failure_at_any_step_of_its_cutting(tmp_path, monkeypatch, step):
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINES)
    with monkeypatch.context() as patch:
        patch.setattr(os, step, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Journal(tmp_path, first=2, steps=9, tensorboard=False)
    assert path.read_text() == LINES
    with Journal(tmp_path, first=2, steps=9, tensorboard=False) as journal:
        journal.write(2, {"loss": 0.5})
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in kept] == [(0, 1), (1, 1), (2, 0.5)]


# --- Caches --------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_made_once_for_each_key(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"value": torch.full((2,), float(len(made)))}

    path = tmp_path / "folder" / "kept.safetensors"
    values = [float(kept_tensors(path, key, make)["value"][0]) for key in ("a", "a", "b", "b", "a")]
    assert values == [1, 1, 2, 2, 3]


def test_a_cache_cut_off_anywhere_is_made_again(tmp_path):
    path = tmp_path / "kept.safetensors"
    kept_tensors(path, "key", lambda: {"value": torch.arange(4)})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert torch.equal(kept_tensors(path, "key", lambda: {"value": torch.arange(4)})["value"], torch.arange(4))
    assert path.read_bytes() == content


def test_a_cache_without_a_place_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OwlSwinError, match="file: cannot write in this folder"):
        kept_tensors(tmp_path / "file" / "kept.safetensors", "key", lambda: {"value": torch.arange(4)})


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_cache_whose_writing_fails_is_not_there(tmp_path, monkeypatch, step):
    with monkeypatch.context() as patch:
        patch.setattr(os, step, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OwlSwinError, match="No space left"):
            kept_tensors(tmp_path / "kept.safetensors", "key", lambda: {"value": torch.arange(4)})
    assert list(tmp_path.iterdir()) == []


# --- Threads -------------------------------------------------------------------------------------------------------


def test_a_set_is_read_by_one_thread_at_a_time(tmp_path, monkeypatch):
    """The picture of what is found drew scenes while the thread of the next batches did."""
    inside, overlaps = threading.Lock(), []
    honest = DetectTask.batch

    def batch(self, index):
        if not inside.acquire(blocking=False):
            overlaps.append(index)
            return honest(self, index)
        try:
            threading.Event().wait(0.02)
            return honest(self, index)
        finally:
            inside.release()

    monkeypatch.setattr(DetectTask, "batch", batch)
    settings = detect_settings(tmp_path, steps=8, preview_every=1, image_size=64, batch_size=2)
    folder = train(train_config(settings))
    assert not overlaps
    assert len(list(folder.glob("found-*.jpg"))) == 8
