"""Whole training runs on a tiny model: they learn, resume to the bit, and refuse what is wrong."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from training_data import (
    NAMES,
    TINY_MODEL,
    align_settings,
    detect_settings,
    one_shape,
    to_toml,
    train_config,
    write_captions,
    write_labelled,
)
from training_runs import ALONE, model_of

from owl_swin import Detector
from owl_swin.boxes import pairwise_iou
from owl_swin.cli.main import main
from owl_swin.config import CalibrationConfig, ModelConfig, read_toml
from owl_swin.data.config import DataConfig
from owl_swin.data.scene import Scene, Scenes
from owl_swin.errors import CheckpointError, ConfigError
from owl_swin.families.owl_swin import load_checkpoint, save_checkpoint
from owl_swin.models.heads import cell_centres
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.models.swin import WindowAttention
from owl_swin.training.config import OptimConfig, TrainConfig
from owl_swin.training.initial import copy_pooled_to_class_head, load_init, old_weights, start_new_blocks
from owl_swin.training.loop import train
from owl_swin.training.sampling import SceneSampler, rarity_over_sets
from owl_swin.training.tasks.align import AlignTask, _shares
from owl_swin.training.tasks.detect import DetectTask
from owl_swin.training.views import random_theta, random_views


def metrics(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    """Everything that a run measured, without the time it took."""
    return [{key: value for key, value in line.items() if key != "steps_per_s"} for line in metrics(folder)]


def assert_same_state(one, other):
    ours, theirs = load_file(Path(one) / "state.safetensors"), load_file(Path(other) / "state.safetensors")
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key


# --- Detection -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes_run(tmp_path_factory):
    """A run that `owl-swin train` made to its end: (settings, folder, what it printed)."""
    folder = tmp_path_factory.mktemp("shapes_run")
    detect = {"mosaic": [1.0], "matching": "hungarian", "l1_weight": 3.0, "giou_weight": 3.0}
    settings = detect_settings(folder, steps=200, batch_size=8, log_every=10, detect=detect)
    toml = folder / "detect.toml"
    toml.write_text(to_toml(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["owl-swin", "train", str(toml)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return settings, Path(settings["output"])


def test_loss_of_the_run_falls(shapes_run):
    _, folder = shapes_run
    lines = metrics(folder)
    first, last = lines[0], lines[-6:]  # one batch is too few to tell, and processors part after some steps
    for part, factor in (("loss", 1.5), ("class", 1.8), ("l1", 2), ("objectness", 1.4)):
        assert np.mean([line[part] for line in last]) * factor < first[part], part


def test_the_trained_detector_finds_the_shapes_by_name(shapes_run):
    settings, folder = shapes_run
    detector = Detector.from_pretrained(folder, device="cpu")
    data = json.loads(Path(settings["data"][0]["path"]).read_text())
    names = {category["id"]: category["name"] for category in data["categories"]}
    found, present, absent = 0, [], []
    for record in data["images"]:
        own = [a for a in data["annotations"] if a["image_id"] == record["id"]]
        answers = detector.detect(
            Path(settings["data"][0]["images"]) / record["file_name"], NAMES, threshold=0.0, top_k=1000
        )
        best = {name: answers[answers.labels == label][:1] for label, name in enumerate(NAMES)}
        for annotation in own:
            x, y, w, h = annotation["bbox"]
            answer = best.pop(names[annotation["category_id"]])
            found += bool(pairwise_iou(answer.boxes, torch.tensor([[x, y, x + w, y + h]], dtype=torch.float)) > 0.5)
            present.append(float(answer.scores))
        absent += [float(answer.scores) for answer in best.values()]
    assert len(present) == 18
    assert found >= 14
    assert np.mean(present) > 2 * np.mean(absent)


def test_metrics_are_a_line_every_so_many_steps_and_at_the_end(shapes_run):
    lines = metrics(shapes_run[1])
    assert [line["step"] for line in lines] == [*range(0, 200, 10), 199]
    for line in lines:
        assert {"loss", "class", "l1", "giou", "objectness", "grad_norm", "lr_factor", "steps_per_s"} <= line.keys()
        assert all(np.isfinite(value) for value in line.values())
    assert lines[0]["lr_factor"] == 0.1 and lines[-1]["lr_factor"] < 0.02


def test_a_frozen_text_tower_stays_to_the_bit(shapes_run):
    settings, folder = shapes_run
    start, end = load_file(settings["init"][0]), load_file(folder / "state.safetensors")
    for key, value in start.items():
        assert torch.equal(end[f"model.text_encoder.{key}"], value)
        assert torch.equal(end[f"ema.text_encoder.{key}"], value)
    assert not torch.equal(end["model.class_head.embed.weight"], end["ema.class_head.embed.weight"])


def test_a_finished_run_does_nothing_more(shapes_run):
    settings, folder = shapes_run
    before = load_file(folder / "state.safetensors"), metrics(folder)
    train(train_config(settings | {"steps": 100}))  # fewer than it has
    after = load_file(folder / "state.safetensors"), metrics(folder)
    assert all(torch.equal(value, after[0][key]) for key, value in before[0].items())
    assert before[1] == after[1]
    assert state_step(folder) == 200


def state_step(folder):
    from safetensors import safe_open

    with safe_open(Path(folder) / "state.safetensors", "pt") as file:
        return int(file.metadata()["step"])


def test_one_batch_is_learned_by_heart(tmp_path):
    settings = detect_settings(tmp_path, batch_size=2)
    model = model_of(settings).eval()
    task = DetectTask(train_config(settings), model, ALONE)
    batch = next(b for b in map(task.batch, range(50)) if 1 in map(len, b.labels) and max(map(len, b.labels)) > 2)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    course = []
    for _ in range(120):
        parts = task.losses(model, model.encode_patches, batch)
        optimizer.zero_grad()
        parts["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        course.append({name: float(value.detach()) for name, value in parts.items()})
    for name in ("loss", "class", "l1", "giou", "objectness"):
        assert course[-1][name] < course[0][name] / 10, name


# --- Resuming ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_detection_run_is_the_same_to_the_bit(tmp_path, precision):
    labelled = write_labelled(tmp_path / "labelled")
    align_data = [{"kind": "labelled", "path": str(labelled), "images": str(labelled.parent / "images"), "size": 32}]
    more = {"precision": precision, "align_data": align_data, "align_size": 32, "align_batch_size": 4}
    settings = detect_settings(tmp_path, **more)
    straight = train(train_config(settings | {"output": str(tmp_path / "straight")}))
    config = train_config(settings)
    train(config, stop_after=3)
    assert state_step(config.output) == 3
    train(config, stop_after=3)
    assert losses(config.output) == losses(straight)
    assert_same_state(config.output, straight)
    assert {"align", "accuracy"} <= losses(straight)[0].keys()


def test_an_interrupted_save_leaves_the_old_state(tmp_path, monkeypatch):
    settings = detect_settings(tmp_path, steps=4)
    config = train_config(settings)
    train(config, stop_after=2)

    def cut_off(tensors, path, metadata):
        save_file(tensors, path, metadata=metadata)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", cut_off)
        with pytest.raises(CheckpointError, match=r"cannot write the state of the run here \(no space"):
            train(config)
    assert not list(Path(config.output).glob("*.part"))
    assert state_step(config.output) == 2
    Detector.from_pretrained(config.output, device="cpu")
    train(config)
    straight = train(train_config(settings | {"output": str(tmp_path / "straight")}))
    assert_same_state(config.output, straight)


def test_a_run_saves_on_its_way(tmp_path, monkeypatch):
    settings = detect_settings(tmp_path, steps=3, checkpoint_minutes=0.0)
    saved = []
    monkeypatch.setattr("owl_swin.training.loop.save_state", lambda path, run, *, step, **_: saved.append(step))
    train(train_config(settings))
    assert saved == [1, 2, 3, 3]


def test_what_learned_to_detect_is_used_at_the_size_it_learned_at(tmp_path):
    settings = detect_settings(tmp_path, steps=1, image_size=64)
    assert Detector.from_pretrained(train(train_config(settings)), device="cpu").image_size == 64


def test_a_state_of_another_model_is_refused(tmp_path):
    settings = detect_settings(tmp_path, steps=1)
    train(train_config(settings))
    wider = tmp_path / "wider.toml"
    wider.write_text(TINY_MODEL.replace("stride = 16\n", "stride = 16\nbox_form = 'owl'\n").replace("(32", "(48"))
    wider.write_text(wider.read_text().replace("[heads]\nwidth = 32", "[heads]\nwidth = 48"))
    other = train_config(settings | {"model": str(wider), "init": []})
    with pytest.raises(ConfigError, match=r"model_config\.heads\.width 32 \(now 48\)"):
        train(other)
    with pytest.raises(CheckpointError, match="another model"):
        train(other, allow_changes=True)


@pytest.mark.parametrize("content", [b"", b"nonsense" * 10])
def test_a_damaged_state_is_refused(tmp_path, content):
    settings = detect_settings(tmp_path, steps=1)
    Path(settings["output"]).mkdir()
    (Path(settings["output"]) / "state.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="not the state of a training run"):
        train(train_config(settings))


# --- Batches -------------------------------------------------------------------------------------------------------


def equal(one, other):
    """Whether two batches are the same to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    if hasattr(one, "__slots__"):
        return all(equal(getattr(one, name), getattr(other, name)) for name in one.__slots__)
    return one == other


def test_a_batch_is_a_function_of_the_step(tmp_path):
    labelled = write_labelled(tmp_path / "labelled")
    align_data = [{"kind": "labelled", "path": str(labelled), "images": str(labelled.parent / "images"), "size": 32}]
    settings = detect_settings(tmp_path, align_data=align_data, align_size=32)
    model, config = model_of(settings), train_config(settings)
    task, fresh = DetectTask(config, model, ALONE), DetectTask(config, model, ALONE)
    for step in (5, 0, 3):
        torch.manual_seed(step)
        assert equal(task.batch(step), fresh.batch(step))
    assert not equal(task.batch(0), task.batch(1))
    other = DetectTask(train_config(settings | {"seed": 1}), model, ALONE).batch(0)
    assert not equal(task.batch(0).pixels, other.pixels) and not equal(task.batch(0).align, other.align)


def test_no_two_draws_of_a_batch_share_a_stream_of_random_numbers(tmp_path, monkeypatch):
    settings = detect_settings(tmp_path, detect={"exemplars": 2})
    task = DetectTask(train_config(settings), model_of(settings), ALONE)
    honest, streams = np.random.default_rng, []

    def recording(seed):
        streams.append(tuple(np.random.SeedSequence(seed).generate_state(4)))
        return honest(seed)

    monkeypatch.setattr(np.random, "default_rng", recording)
    for index in range(3):
        task.batch(index)
    assert len(streams) == len(set(streams)) == 3 * (1 + 4 + 1)


def test_colours_of_a_batch_do_not_hang_on_the_names_of_its_sets(tmp_path):
    """They came from a seed that was a sum of floats, which another order of summation changes."""
    settings = detect_settings(tmp_path)
    model, more = model_of(settings), {**settings, "data": [*settings["data"], settings["data"][0]]}
    one, other = (DetectTask(train_config(each), model, ALONE).batch(7) for each in (settings, more))
    assert torch.equal(one.colours, other.colours)
    assert one.colours.min() >= 0 and one.colours.max() < 1 and len(one.colours.unique()) == one.colours.numel()


def test_a_batch_keeps_its_contract(tmp_path):
    settings = detect_settings(tmp_path, batch_size=6)
    path = Path(settings["data"][0]["path"])
    other = json.loads(path.read_text())
    for category in other["categories"]:
        category["name"] = f"other {category['name']}"
    (path.parent / "other.json").write_text(json.dumps(other))
    settings["data"] = [*settings["data"], {**settings["data"][0], "path": str(path.parent / "other.json")}]
    settings["detect"] = {"negatives": 2, "mosaic": [0.5, 0.5]}
    task = DetectTask(train_config(settings), model_of(settings), ALONE)
    assert len(task.bank) == 8
    seen = set()
    for step in range(12):
        batch = task.batch(step)
        assert batch.pixels.dtype == torch.uint8 and len(batch.asked) == 6
        assert torch.equal(batch.classes, batch.classes.unique()) and batch.texts.shape == batch.classes.shape
        assert batch.pixels.shape[:2] == (6, 3) and max(batch.pixels.shape[2:]) == 96
        seen.add(tuple(batch.pixels.shape[2:]))
        for boxes, labels, asked in zip(batch.boxes, batch.labels, batch.asked, strict=True):
            assert ((boxes >= 0) & (boxes <= 1)).all()
            assert set(labels.tolist()) <= set(asked.tolist()) and torch.equal(asked, asked.unique())
            names = batch.classes[asked]
            assert (names < 4).all() or (names >= 4).all()  # a name of another set may be true here: it is not asked
            assert len(names) - len(labels.unique()) <= 2
    assert seen == {(96, 96), (64, 96), (96, 64)}


@pytest.mark.parametrize(
    "negatives, unknown, pseudo, expected",
    [
        (None, [], 0, {0, 1, 2, 3}),  # exhaustive: every other name is absent
        (None, [2], 0, {0, 1, 3}),
        ([3], [], 0, {0, 3}),  # federated: only what was checked
        ([], [], 0, {0}),
        ([], [1], 5, {0, 2, 3}),  # free text: the others are taken to be absent
        ([3], [1], 1, {0, 2, 3}),
    ],
)
def test_only_names_known_to_be_absent_are_negatives(tmp_path, negatives, unknown, pseudo, expected):
    from owl_swin.data.scenes import Scene

    settings = detect_settings(tmp_path, detect={"mosaic": [1.0], "pseudo_negatives": pseudo})
    task = DetectTask(train_config(settings), model_of(settings), ALONE)
    checked = None if negatives is None else np.array(negatives, dtype=np.int64)
    scene = Scene(tmp_path, np.zeros((1, 4)), np.array([0]), negatives=checked, unknown=np.array(unknown, np.int64))
    asked = task._asked(0, np.array([0]), [scene], np.random.default_rng(0))
    assert set(asked.tolist()) == expected


def test_names_that_are_not_asked_do_not_count(tmp_path):
    settings = detect_settings(tmp_path)
    model = model_of(settings).eval()
    task = DetectTask(train_config(settings), model, ALONE)
    batch = task.batch(0)
    all_names = task.losses(model, model.encode_patches, batch)["class"]
    own = [labels.unique() for labels in batch.labels]
    assert any(len(few) < len(asked) for few, asked in zip(own, batch.asked, strict=True))
    own_names = task.losses(model, model.encode_patches, replace(batch, asked=own))["class"]
    model.class_head.shift_scale.bias.data[0] = 1.0  # what is not asked could cost much more now
    assert own_names < all_names
    louder = task.losses(model, model.encode_patches, replace(batch, asked=own))["class"]
    assert louder < task.losses(model, model.encode_patches, batch)["class"]


def test_with_quality_a_score_has_to_reach_the_overlap_of_its_box(tmp_path):
    """Boxes of an untrained model are poor, so patches that are sure of their name lose by it."""
    settings = detect_settings(tmp_path)
    model = model_of(settings).eval()
    batch = DetectTask(train_config(settings), model, ALONE).batch(0)
    losses = {}
    for quality in (False, True):
        model.class_head.shift_scale.bias.data[0] = 1.5  # every patch says every name
        task = DetectTask(train_config(settings | {"detect": {"quality": quality}}), model, ALONE)
        losses[quality] = task.losses(model, model.encode_patches, batch)
    assert losses[True]["class"] > losses[False]["class"] and losses[True]["l1"] == losses[False]["l1"]


def test_scenes_without_boxes_have_a_loss_and_a_gradient(tmp_path):
    settings = detect_settings(tmp_path)
    path = Path(settings["data"][0]["path"])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    model = model_of(settings)
    task = DetectTask(train_config(settings), model, ALONE)
    parts = task.losses(model, model.encode_patches, task.batch(0))
    parts["loss"].backward()
    assert parts["l1"] == parts["giou"] == 0 and parts["class"] > 0 and parts["objectness"] > 0
    assert model.class_head.embed.weight.grad.isfinite().all()


# --- Settings and starting weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, where, suggestion",
    [("step", "", "did you mean 'steps'"), ("lr", "optim", "'optim.lr'"), ("mosaics", "detect", "'detect.mosaic'")],
)
def test_an_unknown_key_gets_a_suggestion(tmp_path, key, where, suggestion):
    settings = {
        "task": "detect",
        "model": "m",
        "output": "o",
        "optim": {},
        "detect": {},
        "data": [{"kind": "coco", "path": "p"}],
    }
    (settings[where] if where else settings)[key] = 1
    toml = tmp_path / "run.toml"
    toml.write_text(to_toml(settings))
    with pytest.raises(ConfigError, match=suggestion):
        read_toml(toml, TrainConfig)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"task": "segment"}, "task must be one of align, detect"),
        ({"precision": "float16"}, "precision must be one of"),
        ({"data": []}, r"at least one \[\[data\]\] table"),
        ({"steps": 0}, "at least 1"),
        ({"data": [{"kind": "lmdb", "path": "p"}]}, "data.kind must be one of"),
        ({"contrast": "triplet"}, "contrast must be one of softmax, sigmoid"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"optim": {"image_lr": -1e-3}}, "must be 0 .frozen. or more"),
        ({"optim": {"betas": [0.9]}}, r"optim.betas must be two numbers from 0 to below 1, got \(0.9,\)"),
        ({"optim": {"ema_decay": 1.0}}, "optim.ema_decay must lie in 0"),
        ({"optim": {"clip_norm": 0.0}}, "optim.clip_norm must be above 0"),
        ({"shard": "zero"}, "shard must be one of ddp, fsdp"),
        ({"blend": 1.5}, "blend must lie in 0"),
        ({"blend": 0.5}, "blend goes back to the weights of init, which names none"),
        ({"cache_gib": -1.0}, "cache_gib must be 0"),
        ({"task": "align", "preview_every": 5}, "preview_every draws boxes"),
        ({"detect": {"scales": []}}, "detect.scales must be positive"),
        ({"detect": {"scales": [1.0, math.nan]}}, "detect.scales must be positive"),
        ({"detect": {"scales": [math.inf]}}, "detect.scales must be positive"),
        ({"detect": {"min_crop": 60.0}}, "detect.min_crop must lie in 0 to 1, got 60.0"),
        ({"detect": {"zoom": -3.0}}, "detect.zoom must lie in 0 to 1"),
        ({"detect": {"focal_alpha": 7.0}}, "detect.focal_alpha must lie in 0 to 1"),
        ({"detect": {"negatives": -1}}, "detect.negatives must be 0 or more, got -1"),
        ({"detect": {"class_weight": -1.0}}, "detect.class_weight must be 0 or more"),
        ({"detect": {"exemplar_weight": math.nan}}, "detect.exemplar_weight must be 0 or more"),
        ({"align_weight": -0.5}, "align_weight must be 0 or more"),
        ({"logit_scale": -1.0}, "logit_scale must be 0 or more"),
        ({"align_size": 0}, "align_size and align_batch_size must be at least 1"),
        ({"image_size": 31}, "image_size must be at least 32 pixels, got 31"),
        ({"task": "align", "naming": {"weights": "w"}}, r"read by task = 'detect' alone, not by 'align'"),
        ({"linear_weight": 1.0}, r"name some under \[\[align_data\]\]"),
        ({"teacher": {"name": "resnet18"}}, r"name some under \[\[align_data\]\]"),
        (
            {
                "align_data": [{"kind": "folders", "path": "p"}],
                "optim": {"image_lr": 0.0, "heads_lr": 0.0, "masks_lr": 1e-3},
            },
            "teaches nothing where only the mask branch learns",
        ),
        ({"data": [{"kind": "coco", "path": "p", "weight": 0}]}, "data.weight must be positive"),
        ({"detect": {"mosaic": [0.5, 0.4]}}, "detect.mosaic must be probabilities"),
        ({"detect": {"mosaic": []}}, "detect.mosaic must be probabilities"),
        ({"data": [{"kind": "coco", "path": "p", "mosaic": [1.5, -0.5]}]}, "data.mosaic must be probabilities"),
        ({"steps": "many"}, "'steps' must be int, got 'many'"),
    ],
)
def test_a_value_that_means_nothing_is_refused(change, message):
    settings = {"task": "detect", "model": "m", "output": "o", "data": [{"kind": "coco", "path": "p"}]}
    with pytest.raises(ConfigError, match=message):
        train_config(settings | change)


def test_starting_weights_of_another_architecture_are_refused(tmp_path, model_file):
    settings = detect_settings(tmp_path, init=[str(model_file)])
    with pytest.raises(CheckpointError, match="does not fit this model"):
        train(train_config(settings))
    assert not list(Path(settings["output"]).glob("*.safetensors"))


@pytest.mark.parametrize(
    "name, content", [("x.safetensors", b"nonsense"), ("x.pt", b"pickle"), ("x.safetensors", None)]
)
def test_starting_weights_that_cannot_be_read_are_refused(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load_init(model_of(detect_settings(tmp_path)), str(tmp_path / name))


def test_a_file_without_tensors_is_no_start(tmp_path):
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(CheckpointError, match="no tensors"):
        load_init(model_of(detect_settings(tmp_path)), str(tmp_path / "empty.safetensors"))


def test_a_run_starts_from_a_model_file_a_run_or_a_text_tower(tmp_path):
    settings = detect_settings(tmp_path, steps=2)
    run = train(train_config(settings))
    state_tensors = load_file(run / "state.safetensors")
    text = load_file(settings["init"][0])
    save_checkpoint(tmp_path / "exact.safetensors", model_of(settings), {}, int8=False)
    for source, key, expected, tolerance in [
        (run / "state.safetensors", "fusion.mix.weight", state_tensors["ema.fusion.mix.weight"], 0),
        (run / "model.safetensors", "fusion.mix.weight", state_tensors["ema.fusion.mix.weight"], 1e-3),  # 8-bit
        (run, "fusion.mix.weight", state_tensors["ema.fusion.mix.weight"], 1e-3),
        (tmp_path / "exact.safetensors", "text_encoder.tower.text_projection", text["tower.text_projection"], 1e-3),
        (settings["init"][0], "text_encoder.tower.text_projection", text["tower.text_projection"], 0),
    ]:
        torch.manual_seed(9)
        model = OwlSwin(read_toml(settings["model"], ModelConfig))
        load_init(model, str(source))
        assert_close(model.state_dict()[key], expected, atol=tolerance, rtol=0)


def test_a_run_with_a_blend_is_gone_on_from_where_its_result_is(tmp_path):
    settings = detect_settings(tmp_path, steps=2)
    first = train(train_config(settings))
    again = train(train_config({**settings, "output": str(tmp_path / "again"), "init": [str(first)], "blend": 1.0}))
    trained = load_file(again / "state.safetensors")["ema.class_head.embed.weight"]
    began = load_file(first / "state.safetensors")["ema.class_head.embed.weight"]
    assert (trained - began).abs().max() > 1e-4
    for source, expected in ((again, began), (again / "state.safetensors", trained)):
        model = model_of(settings)
        load_init(model, str(source))
        assert_close(model.class_head.embed.weight, expected, atol=5e-5 if source == again else 0, rtol=5e-3)


def test_a_model_of_larger_windows_and_deeper_stages_starts_where_the_smaller_one_is(tmp_path):
    settings = detect_settings(tmp_path)
    small = model_of(settings)
    image = small.config.image
    for block in small.modules():  # untrained biases say next to nothing
        if isinstance(block, WindowAttention):
            torch.nn.init.normal_(block.relative_position_bias_table)
    save_checkpoint(tmp_path / "small.safetensors", small, {}, int8=False)
    deeper = replace(image, depths=(*image.depths[:2], image.depths[2] + 2, *image.depths[3:]))
    large = OwlSwin(replace(small.config, image=replace(deeper, window_size=image.window_size + 3)))
    start_new_blocks(large, load_init(large, str(tmp_path / "small.safetensors")))
    # A picture that fits in one window of either: all patches see one another, with the biases that there were.
    pixels = torch.randn(1, 3, 4 * image.window_size, 4 * image.window_size)
    with torch.inference_mode():
        assert_close(large.encode_patches(pixels), small.encode_patches(pixels), atol=1e-2, rtol=0)
    known = large.state_dict()["image_encoder.stages.2.0.attn.relative_position_bias_table"].unflatten(
        0, (-1, 2 * image.window_size + 5)
    )
    table = small.state_dict()["image_encoder.stages.2.0.attn.relative_position_bias_table"].unflatten(
        0, (-1, 2 * image.window_size - 1)
    )
    assert_close(known[3:-3, 3:-3], table, atol=1e-2, rtol=0)
    assert_close(known[0, 0], table[0, 0], atol=1e-2, rtol=0)  # what is farther apart begins as the farthest known
    narrow = OwlSwin(replace(large.config, image=replace(deeper, window_size=image.window_size - 1)))
    load_init(narrow, str(tmp_path / "small.safetensors"))
    kept = narrow.state_dict()["image_encoder.stages.2.0.attn.relative_position_bias_table"]
    assert_close(kept.unflatten(0, (-1, 2 * image.window_size - 3)), table[1:-1, 1:-1], atol=1e-2, rtol=0)
    save_checkpoint(tmp_path / "large.safetensors", large, {}, int8=False)
    with pytest.raises(CheckpointError, match="does not fit"):  # a block more has no place
        load_init(OwlSwin(small.config), str(tmp_path / "large.safetensors"))


def test_blocks_that_one_of_two_sources_gives_are_not_new_and_new_ones_go_back_in_a_blend(tmp_path):
    small = model_of(detect_settings(tmp_path))
    image = small.config.image
    deep = OwlSwin(replace(small.config, image=replace(image, depths=(*image.depths[:2], 4, *image.depths[3:]))))
    for name, model in (("small", small), ("deep", deep)):
        save_checkpoint(tmp_path / f"{name}.safetensors", model, {}, int8=False)
    model = OwlSwin(deep.config)
    from_small = load_init(model, str(tmp_path / "small.safetensors"))
    start_new_blocks(model, load_init(model, str(tmp_path / "deep.safetensors")) | from_small)
    key = "image_encoder.stages.2.3.attn.proj.weight"
    assert_close(model.state_dict()[key], deep.state_dict()[key], atol=1e-3, rtol=0)
    assert key in old_weights(model, set(model.state_dict()))
    fresh = OwlSwin(deep.config)
    start_new_blocks(fresh, from_small)
    back = old_weights(fresh, from_small)
    assert not back[key].any() and not back["image_encoder.stages.2.2.mlp.2.bias"].any()
    assert "image_encoder.stages.2.3.attn.qkv.weight" not in back  # noise


@pytest.mark.parametrize("shape", [(), (49,), (49, 5), (16, 4), (50, 4)])
def test_a_table_of_biases_that_is_of_no_window_is_refused(tmp_path, shape):
    model = model_of(detect_settings(tmp_path))
    save_file(
        {"image_encoder.stages.2.0.attn.relative_position_bias_table": torch.zeros(shape)}, tmp_path / "x.safetensors"
    )
    with pytest.raises(CheckpointError, match="does not fit"):
        load_init(model, str(tmp_path / "x.safetensors"))


def test_patches_start_from_the_projection_of_the_whole_picture(tmp_path):
    model = model_of(detect_settings(tmp_path))
    copy_pooled_to_class_head(model)
    assert torch.equal(model.class_head.embed.weight, model.image_projection.weight)
    assert model.class_head.embed.weight is not model.image_projection.weight


# --- Alignment -----------------------------------------------------------------------------------------------------


def alignment_sets(folder):
    labelled = write_labelled(folder / "labelled")
    return [
        {"kind": "labelled", "path": str(labelled), "images": str(labelled.parent / "images"), "size": 32},
        {"kind": "captions", "path": str(write_captions(folder / "captions")), "size": 40, "weight": 0.5},
    ]


def test_alignment_learns_and_names_the_pictures(tmp_path):
    settings = align_settings(tmp_path, alignment_sets(tmp_path)[:1], steps=80, log_every=5, align_size=96)
    folder = train(train_config(settings))
    lines = metrics(folder)
    assert lines[-1]["loss"] < lines[0]["loss"] / 2
    detector = Detector.from_pretrained(folder, device="cpu")
    answers = [detector.classify(one_shape(name, seed=20), NAMES).ranked()[0][0] for name in NAMES]
    assert answers == list(NAMES)


def test_whole_pictures_learn_names_alone_and_all_else_stays_to_the_bit(tmp_path):
    optim = {"image_lr": 0.0, "heads_lr": 0.0, "pool_lr": 1e-2, "warmup_steps": 1}
    settings = align_settings(tmp_path, alignment_sets(tmp_path), steps=20, log_every=5, align_size=64, optim=optim)
    before = model_of(settings).state_dict()
    folder = train(train_config(settings))
    lines = metrics(folder)
    assert lines[-1]["loss"] < lines[0]["loss"]
    after = load_file(folder / "state.safetensors")
    moved = {name for name, value in before.items() if not torch.equal(after[f"model.{name}"], value)}
    assert moved == {"image_projection.weight", "image_projection.bias", "alignment_log_scale"}
    assert all(
        torch.equal(after.get(f"ema.{name}", value), value) for name, value in before.items() if name not in moved
    )


def test_whole_pictures_that_learn_alone_leave_scores_as_they_were(tmp_path):
    optim = {"image_lr": 0.0, "heads_lr": 0.0, "pool_lr": 1e-2, "warmup_steps": 1}
    settings = align_settings(tmp_path, alignment_sets(tmp_path), steps=2, align_size=64, optim=optim)
    calibrated = model_of(settings)
    calibrated.config = replace(calibrated.config, calibration=CalibrationConfig(text_scale=2.5, text_bias=1.5))
    save_checkpoint(tmp_path / "calibrated.safetensors", calibrated, {})
    begun = settings | {"init": [str(tmp_path / "calibrated.safetensors")]}
    folder = train(train_config(begun))
    assert load_checkpoint(folder)[0].config.calibration == calibrated.config.calibration
    all_learn = train(train_config(begun | {"optim": {"warmup_steps": 1}, "output": str(tmp_path / "all")}))
    assert load_checkpoint(all_learn)[0].config.calibration == CalibrationConfig()


@pytest.mark.parametrize("weights", [(1.0, 0.007), (0.007, 1.0)])
def test_a_set_that_would_never_be_drawn_is_refused(tmp_path, weights):
    sets = [{**one, "weight": weight} for one, weight in zip(alignment_sets(tmp_path)[:2], weights, strict=True)]
    with pytest.raises(ConfigError, match="gives it 0 of the 8"):
        train(train_config(align_settings(tmp_path, sets, batch_size=8)))


def test_how_much_a_name_counts_does_not_depend_on_the_order_of_sets(tmp_path):
    def scenes(labels):
        shown = [Scene(Path("a"), np.zeros((len(own), 4)), np.array(own, dtype=np.int64)) for own in labels]
        return Scenes(shown, [["person"], ["cat"], ["dog"]])

    shows = SceneSampler(scenes([[0], [0], [0, 1], [0, 2]]))
    lists = SceneSampler(scenes([[1], [1], [2], []]))  # "person" is only among its names
    rows, odds = [np.arange(3)] * 2, np.array([0.75, 0.25])
    counts = rarity_over_sets([shows, lists], rows, odds, 4)
    assert counts[0] == pytest.approx(shows.rarity[0]) and counts[3] == 1
    assert counts[1] == pytest.approx(0.75 * shows.rarity[1] + 0.25 * lists.rarity[1])
    assert torch.equal(counts, rarity_over_sets([lists, shows], rows, odds[::-1], 4))


def test_a_resumed_alignment_run_is_the_same_to_the_bit(tmp_path):
    settings = align_settings(tmp_path, alignment_sets(tmp_path))
    straight = train(train_config(settings | {"output": str(tmp_path / "straight")}))
    config = train_config(settings)
    train(config, stop_after=3)
    train(config)
    assert losses(config.output) == losses(straight)
    assert_same_state(config.output, straight)


def test_captions_are_contrasted_within_the_batch(tmp_path):
    settings = align_settings(tmp_path, alignment_sets(tmp_path)[1:], steps=60)
    model = model_of(settings)
    task = AlignTask(train_config(settings), model, train_config(settings).data, 6, ALONE)
    batch = task.batch(0)
    part, *rest = batch.parts
    assert part.owner == 0 and not rest and len(part.pixels) == 6 and len(part.rows.unique()) == 6
    # By hand, softmax over the captions and over the pictures: other pictures' captions are the negatives.
    with torch.no_grad():
        embeds = model.eval().pool(model.encode_patches(part.pixels))
        texts = task.banks[0].embed(model, part.texts)
        logits = [[float(model.alignment_log_scale.exp() * (e @ t)) for t in texts] for e in embeds]
        expected = 0.0
        for i in range(6):
            rows = torch.tensor(logits[i]).logsumexp(0) - logits[i][i]
            cols = torch.tensor([logits[j][i] for j in range(6)]).logsumexp(0) - logits[i][i]
            expected += float(rows + cols) / 12
        assert float(task.losses(model, model.encode_patches, batch)["loss"]) == pytest.approx(expected, rel=1e-4)
        sigmoid = AlignTask(train_config(settings | {"contrast": "sigmoid"}), model, task.config.data, 6, ALONE)
        expected = 0.0
        for i in range(6):
            for j in range(6):
                sign = 1 if i == j else -1
                expected += float(torch.nn.functional.softplus(torch.tensor(-sign * (logits[i][j] - 10)))) / 6
        assert float(sigmoid.losses(model, model.encode_patches, batch)["loss"]) == pytest.approx(expected, rel=1e-4)


def test_captions_alone_may_stand_beside_detection(tmp_path):
    captions = alignment_sets(tmp_path)[1:]
    settings = detect_settings(tmp_path, steps=1, align_data=captions, align_size=32, align_batch_size=4)
    line = losses(train(train_config(settings)))[0]
    assert "align" in line and "accuracy" not in line


@pytest.mark.parametrize(
    "weights, total, counts",
    [
        ([1.0], 7, [7]),
        ([1, 1], 4, [2, 2]),
        ([1, 1, 1], 8, [3, 3, 2]),
        ([0.9, 0.1], 8, [7, 1]),
        ([0.99, 0.01], 8, [8, 0]),
    ],
)
def test_shares_of_a_batch_follow_the_weights(weights, total, counts):
    shares = _shares(torch.tensor(weights, dtype=torch.float), total)
    assert sorted(shares, reverse=True) == counts and sum(shares) == total


def test_random_views_are_crops_of_their_own_picture():
    pictures = torch.stack([torch.full((3, 20, 20), value, dtype=torch.uint8) for value in (0, 255)])
    chances = torch.rand(2, 8, generator=torch.Generator().manual_seed(0))
    views = random_views(pictures, random_theta(chances[:, :5]), 16, chances[:, 5:])
    assert views.shape == (2, 3, 16, 16) and views.dtype == torch.float32
    assert views[0].max() < views[1].min()


@pytest.mark.parametrize(
    "optim, message",
    [
        ({"image_lr": 0.0, "heads_lr": 0.0}, "nothing would be trained"),
        ({"image_lr": 0.0, "heads_lr": 0.0, "pool_lr": 1e-3}, "taught by task = 'align'"),
        ({"image_lr": 0.0, "heads_lr": 0.0, "pool_lr": 1e-3, "masks_lr": 1e-3}, "taught by task = 'align'"),
        ({"pool_lr": -1.0}, "pool_lr must be 0"),
    ],
)
def test_learning_rates_that_would_do_nothing_are_refused(optim, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig("detect", "m", "o", (DataConfig("coco", "a"),), optim=OptimConfig(**optim))


def test_a_guessed_box_sets_the_score_to_reach_and_a_vague_one_asks_nothing(tmp_path):
    settings = detect_settings(tmp_path)
    model = model_of(settings).eval()
    task = DetectTask(train_config(settings), model, ALONE)
    batch = task.batch(0)
    image, centres = model.encode_image(torch.zeros(1, 3, 64, 64))[0], cell_centres((4, 4)) / 4
    texts = task.bank.embed(model, batch.texts).float()

    def class_loss(score, shift):
        """Of a scene with one box over all of it, which every patch says by ``shift``."""
        scene = replace(
            batch,
            boxes=[torch.tensor([[0.5, 0.5, 1.0, 1.0]])],
            labels=[torch.tensor([0])],
            scores=[torch.tensor([score])],
            asked=[torch.tensor([0])],
        )
        sure = replace(image, logit_shift=torch.full((16,), shift), class_embeds=torch.zeros_like(image.class_embeds))
        logits, matched = task._matched(sure, centres, texts, scene, 0)
        return task._scene_losses(sure, matched, logits, centres, texts, None, scene, 0)["class"].item()

    scale = image.logit_scale[0].item()
    at_four_tenths = math.log(0.4 / 0.6) / scale
    whole = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    inside = task.matcher(centres, image.logit_shift[:, None], None, None, whole, None).patches
    assert 0 < len(inside) < 16  # the others are background
    assert class_loss(0.4, at_four_tenths) < class_loss(0.9, at_four_tenths)
    assert class_loss(0.0, 3.0) == 0  # vague: neither positive nor negative
    assert class_loss(1.0, 3.0) > 0
