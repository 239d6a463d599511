"""What a run can do beyond its plain form: teacher, trained texts, accumulation, blending, pictures, boards, starts."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from training_data import align_settings, detect_settings, to_toml, train_config, write_labelled
from training_runs import ALONE, model_of

from owl_swin.cli import training as command
from owl_swin.config import ModelConfig, read_toml
from owl_swin.errors import CheckpointError, ConfigError
from owl_swin.families.owl_swin import load_checkpoint, save_checkpoint
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.training import teacher as teaching
from owl_swin.training.cache import digests_of_files
from owl_swin.training.config import TeacherConfig
from owl_swin.training.initial import blended, load_init, old_weights
from owl_swin.training.loop import train
from owl_swin.training.tasks.detect import DetectTask
from owl_swin.training.tasks.image import start_model
from owl_swin.training.teacher import TeacherHead, distillation_losses, teacher_maps
from owl_swin.training.texts import PROMPTS, TextBank, prompted

SMALL_TEACHER = "mobilenetv3_small_050"


def metrics(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def labelled_settings(folder, **changes):
    labelled = write_labelled(folder / "labelled")
    data = [{"kind": "labelled", "path": str(labelled), "images": str(labelled.parent / "images"), "size": 32}]
    return align_settings(folder, data, **changes)


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    import timm

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(timm.create_model(SMALL_TEACHER, pretrained=False).state_dict(), path)
    return path


# --- Teacher -------------------------------------------------------------------------------------------------------


def test_a_teacher_is_learned_from_and_asked_once(tmp_path, teacher_file, monkeypatch):
    teacher = {"name": SMALL_TEACHER, "weights": str(teacher_file), "size": 64, "dim": 8}
    settings = labelled_settings(tmp_path, steps=40, teacher=teacher)
    config = train_config(settings)
    train(config, stop_after=20)
    monkeypatch.setattr("owl_swin.training.teacher.load_teacher", lambda _: pytest.fail("asked again"))
    train(config)
    lines = metrics(config.output)
    assert lines[-1]["dense"] < lines[0]["dense"] - 0.1 and lines[-1]["pooled"] < lines[0]["pooled"] - 0.1
    state = load_file(Path(config.output) / "state.safetensors")
    assert "extra.teacher.dense.weight" in state
    assert not any("teacher" in key for key in load_file(Path(config.output) / "model.safetensors"))


def test_maps_are_the_teachers_in_its_main_directions(tmp_path, teacher_file):
    config = TeacherConfig(SMALL_TEACHER, str(teacher_file), size=64, dim=6)
    pictures = torch.randint(256, (12, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    maps = teacher_maps(config, [pictures[:8], pictures[8:]], tmp_path)
    assert [tuple(m.shape) for m in maps] == [(8, 6, 2, 2), (4, 6, 2, 2)] and maps[0].dtype == torch.float16
    spread = torch.cat(maps).float().permute(0, 2, 3, 1).flatten(0, 2).std(0)
    assert (spread[:-1] >= spread[1:] - 1e-3).all()  # the strongest direction first


def test_a_view_has_the_part_of_the_map_that_it_shows():
    head = TeacherHead(4, 2)
    with torch.no_grad():
        for linear in (head.dense, head.pooled):
            linear.weight.zero_()
            linear.bias.copy_(torch.tensor([1.0, 0.0]))
    maps = torch.zeros(1, 2, 2, 2)
    maps[0, 0, :, 0] = 1  # left half: what the head says; right half: the opposite
    maps[0, 0, :, 1] = -1
    left = torch.tensor([[[0.25, 0.0, -0.75], [0.0, 1.0, 0.0]]])
    mirrored = left * torch.tensor([-1.0, 1.0, 1.0])
    right = torch.tensor([[[0.25, 0.0, 0.75], [0.0, 1.0, 0.0]]])
    patches = torch.zeros(1, 2, 2, 4)
    for theta, expected in ((left, 0.0), (mirrored, 0.0), (right, 2.0)):
        losses = distillation_losses(head, patches, maps, theta)
        assert [float(x.detach()) for x in losses] == pytest.approx([expected] * 2)


def test_weights_of_another_teacher_are_refused(tmp_path, teacher_file):
    wrong = tmp_path / "wrong.safetensors"
    save_file({"a": torch.zeros(2)}, wrong)
    config = TeacherConfig(SMALL_TEACHER, str(wrong), size=32, dim=2)
    with pytest.raises(CheckpointError, match="missing"):
        teacher_maps(config, [torch.zeros(2, 3, 8, 8, dtype=torch.uint8)], tmp_path)


def test_a_free_classifier_helps_and_stays_behind(tmp_path):
    settings = labelled_settings(tmp_path, steps=60, linear_weight=1.0)
    folder = train(train_config(settings))
    assert max(line["linear_accuracy"] for line in metrics(folder)[-5:]) > 0.5
    assert "extra.linear_0.weight" in load_file(folder / "state.safetensors")
    assert not any("linear_" in key for key in load_file(folder / "model.safetensors"))


# --- Texts ---------------------------------------------------------------------------------------------------------


def test_every_name_in_every_prompt_is_a_way_to_say_a_class(tmp_path):
    model = model_of(labelled_settings(tmp_path)).eval()
    names = [["sofa", "couch"], ["dog"]]
    ways = prompted(names)
    assert [len(own) for own in ways] == [2 * len(PROMPTS), len(PROMPTS)] and "a photo of a couch" in ways[0]
    bank = TextBank(ways, model, trainable=False)
    classes = torch.tensor([0, 0, 1, 1])
    first_and_last = bank.draw(classes, torch.tensor([0.0, 0.999, 0.0, 0.999]))
    with torch.no_grad():
        tokens = TextBank([["sofa"], [ways[0][-1]], ["dog"], [ways[1][-1]]], model, trainable=False)
        expected = tokens.embed(model, tokens.draw(torch.arange(4), torch.zeros(4)))
    torch.testing.assert_close(bank.embed(model, first_and_last), expected)
    live = TextBank(ways, model, trainable=True)
    torch.testing.assert_close(
        live.embed(model, live.draw(classes, torch.zeros(4))),
        bank.embed(model, bank.draw(classes, torch.zeros(4))),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("task", ["align", "detect"])
def test_a_text_rate_trains_the_text_encoder(tmp_path, task):
    settings = labelled_settings(tmp_path) if task == "align" else detect_settings(tmp_path)
    settings["optim"] = settings["optim"] | {"text_lr": 1e-3}
    folder = train(train_config(settings))
    before, after = load_file(settings["init"][0]), load_file(folder / "state.safetensors")
    key = "tower.transformer.resblocks.0.mlp.c_fc.weight"
    assert not torch.equal(before[key], after[f"model.text_encoder.{key}"])


def test_locked_images_leave_only_texts_and_heads_to_learn(tmp_path):
    settings = labelled_settings(tmp_path)
    settings["optim"] = settings["optim"] | {"image_lr": 0.0, "text_lr": 1e-3}
    start = model_of(settings).state_dict()
    after = load_file(train(train_config(settings)) / "state.safetensors")
    for key, value in start.items():
        if key.startswith("image_encoder."):
            assert torch.equal(after[f"model.{key}"], value)


# --- The step ------------------------------------------------------------------------------------------------------


def test_accumulated_passes_are_one_step(tmp_path):
    settings = detect_settings(tmp_path, steps=2, accumulate=3)
    folder = train(train_config(settings))
    lines = metrics(folder)
    model = model_of(settings).train()
    task = DetectTask(train_config(settings), model, ALONE)
    torch.manual_seed(0)
    with torch.no_grad():
        seen = [float(task.losses(model, model.encode_patches, task.batch(i))["loss"]) for i in range(3)]
    assert len(lines) == 2 and lines[0]["loss"] == pytest.approx(sum(seen) / 3, rel=0.02)


@pytest.mark.parametrize("matching", ["hungarian", "aligned", "centre"])
def test_every_matching_learns(tmp_path, matching):
    settings = detect_settings(tmp_path, steps=30, detect={"mosaic": [1.0], "matching": matching, "scales": [0.7, 1.0]})
    lines = metrics(train(train_config(settings)))
    assert sum(line["loss"] for line in lines[-3:]) < sum(line["loss"] for line in lines[:3])


# --- Blending ------------------------------------------------------------------------------------------------------


def whole_start(tmp_path, **changes):
    """A run whose ``init`` is a whole model, to the last digit; and that model."""
    settings = detect_settings(tmp_path, **changes)
    start = model_of(settings)
    save_checkpoint(tmp_path / "start.safetensors", start, {"name": "start"}, exact=True)
    return settings | {"init": [str(tmp_path / "start.safetensors")]}, start.state_dict()


def test_a_run_that_has_ended_is_given_another_share_without_training(tmp_path, capsys):
    settings, start = whole_start(tmp_path, steps=3)
    toml, run = tmp_path / "run.toml", Path(settings["output"])
    toml.write_text(to_toml(settings))
    key = "image_encoder.norm.weight"
    command.train(toml)
    state, metrics_before = load_file(run / "state.safetensors"), (run / "metrics.jsonl").read_text()
    trained = state[f"ema.{key}"]
    assert not torch.equal(trained, start[key])
    for share in (0.25, 1.0, 0.0):
        command.train(toml, blend=share)
        result = load_file(run / "model.safetensors")[key].float()
        torch.testing.assert_close(result, torch.lerp(trained, start[key], share), atol=2e-3, rtol=2e-3)
    assert (run / "metrics.jsonl").read_text() == metrics_before
    after = load_file(run / "state.safetensors")
    assert after.keys() == state.keys() and all(torch.equal(after[name], state[name]) for name in state)
    assert blended({"a": torch.zeros(1)}, {"a": torch.ones(1)}, 0.3)["a"] == pytest.approx(0.3)


def test_what_the_start_did_not_give_stays_as_trained(tmp_path):
    """A text tower alone is given: what the image side began with is noise, of which there is nothing to keep."""
    settings = detect_settings(tmp_path, steps=2, blend=1.0)
    folder = train(train_config(settings))
    trained = load_file(folder / "state.safetensors")["ema.image_encoder.norm.weight"]
    result = load_file(folder / "model.safetensors")["image_encoder.norm.weight"].float()
    torch.testing.assert_close(result, trained, atol=2e-3, rtol=2e-3)
    assert not torch.equal(result, torch.ones_like(result))


def test_new_head_blocks_go_back_to_the_identity(tmp_path):
    settings, _ = whole_start(tmp_path, steps=3)
    model = Path(settings["model"])
    model.write_text(model.read_text() + "blocks = 1\n")
    with_blocks, given = start_model(train_config(settings), torch.device("cpu"))
    assert {name for name in with_blocks.state_dict() if name not in given and "head_blocks" not in name} == set()
    back = old_weights(with_blocks, given)
    assert {name for name in back if name.startswith("head_blocks.")} == {
        "head_blocks.0.reduce.weight",
        "head_blocks.0.reduce.bias",
    }
    folder = train(replace(train_config(settings), blend=1.0))
    assert load_file(folder / "state.safetensors")["ema.head_blocks.0.reduce.weight"].any()  # it has learned
    result = load_checkpoint(folder / "model.safetensors")[0]
    old = load_checkpoint(tmp_path / "start.safetensors")[0]
    pixels = torch.rand(1, 3, 64, 96)
    ours, theirs = result.encode_image(pixels), old.encode_image(pixels)
    torch.testing.assert_close(ours.pred_boxes, theirs.pred_boxes, atol=5e-3, rtol=5e-3)


def test_a_blend_knows_its_start_again(tmp_path):
    """Else a file that was replaced, or a later version's own weights, would be mixed in without a word."""
    settings, start = whole_start(tmp_path, steps=2)
    train(train_config(settings), stop_after=1)
    save_file({name: value + 1 for name, value in start.items()}, settings["init"][0])
    before = (Path(settings["output"]) / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="blend goes back to the weights that the run began with"):
        train(replace(train_config(settings), blend=0.5))
    assert (Path(settings["output"]) / "model.safetensors").read_bytes() == before
    train(train_config(settings))  # without a blend they do not count any more
    with pytest.raises(ConfigError, match="blend goes back"):
        train(replace(train_config(settings), blend=0.5))


def test_the_command_line_may_name_another_folder_and_share(tmp_path, capsys):
    settings, given = whole_start(tmp_path, steps=1)
    toml, elsewhere = tmp_path / "run.toml", tmp_path / "elsewhere"
    toml.write_text(to_toml(settings))
    command.train(toml, blend=1.0, output=elsewhere)
    assert capsys.readouterr().out == f"{elsewhere}\n"
    start = given["image_encoder.norm.weight"]
    kept = load_file(elsewhere / "model.safetensors")["image_encoder.norm.weight"].float()
    torch.testing.assert_close(kept, start, atol=2e-3, rtol=2e-3)
    assert not Path(settings["output"]).exists()


def test_pictures_and_boards_tell_how_a_run_goes(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = detect_settings(tmp_path, steps=4, preview_every=2, tensorboard=True)
    folder = train(train_config(settings))
    for step in (2, 4):
        with Image.open(folder / f"found-{step}.jpg") as picture:
            assert picture.width == 8 + 3 * 328 and len(set(picture.convert("L").tobytes())) > 50
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    told = [(event.step, event.value) for event in board.Scalars("loss")]
    assert [step for step, _ in told] == [0, 1, 2, 3]
    assert [value for _, value in told] == pytest.approx([line["loss"] for line in metrics(folder)], abs=1e-4)
    assert [image.step for image in board.Images("found")] == [1, 3]


# --- Starts --------------------------------------------------------------------------------------------------------


def test_a_run_starts_from_a_published_swin(tmp_path):
    import timm

    settings = labelled_settings(tmp_path)
    toml = Path(settings["model"])
    toml.write_text(toml.read_text().replace("depths = [1, 1, 2, 1]", "depths = [2, 2, 2, 2]"))
    config = read_toml(toml, ModelConfig).image
    published = timm.models.swin_transformer.SwinTransformer(
        img_size=128, embed_dim=config.embed_dim, depths=config.depths, num_heads=config.num_heads,
        window_size=config.window_size, num_classes=0,
    )  # fmt: skip
    weights = tmp_path / "swin.safetensors"
    save_file(published.state_dict(), weights)
    model = OwlSwin(read_toml(toml, ModelConfig))
    load_init(model, f"swin:{weights}")
    theirs = published.state_dict()["layers.0.blocks.0.attn.qkv.weight"]
    assert torch.equal(model.image_encoder.stages[0][0].attn.qkv.weight, theirs)


def test_a_run_starts_from_an_open_clip_text_encoder(tmp_path):
    import open_clip

    small = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / "small_for_this_test.json").write_text(json.dumps(small))
    open_clip.add_model_config(tmp_path / "small_for_this_test.json")
    torch.manual_seed(1)
    clip = open_clip.create_model("small_for_this_test", pretrained=None)
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, tmp_path / "clip.safetensors")
    settings = labelled_settings(tmp_path)
    toml = Path(settings["model"])
    toml.write_text(toml.read_text().replace("[text]\n", '[text]\nopen_clip = "small_for_this_test"\n'))
    model = OwlSwin(read_toml(toml, ModelConfig)).eval()
    load_init(model, f"open_clip:small_for_this_test/{tmp_path / 'clip.safetensors'}")
    ids = open_clip.get_tokenizer("small_for_this_test")(["a dog", "two cats"])
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(ids), clip.eval().encode_text(ids, normalize=True))
    with pytest.raises(ConfigError, match="open_clip:MODEL/TAG"):
        load_init(model, "open_clip:ViT-B-32/openai")


def test_what_was_kept_of_a_teacher_is_not_taken_for_another_in_its_place(tmp_path, teacher_file, monkeypatch):
    place = tmp_path / "teacher.safetensors"
    place.write_bytes(teacher_file.read_bytes())
    asked = []
    monkeypatch.setattr(
        teaching, "_make_maps", lambda _, sets: asked.append(1) or [torch.zeros(len(own)) for own in sets]
    )
    pictures = [torch.zeros(2, 3, 4, 4, dtype=torch.uint8)]

    def maps():
        return teacher_maps(TeacherConfig(SMALL_TEACHER, str(place)), pictures, tmp_path / "kept")

    maps()
    os.utime(place, (0, 0))  # as of a copy
    maps()
    assert len(asked) == 1
    place.write_bytes(place.read_bytes() + b" ")
    maps()
    assert len(asked) == 2


def test_the_files_of_a_teacher_are_known_by_their_content(tmp_path):
    place = tmp_path / "teacher"
    place.mkdir()
    (place / "weights").write_bytes(b"one")
    before = digests_of_files(str(place))
    assert digests_of_files("") == digests_of_files("org/teacher") == []
    assert before == digests_of_files(str(place / "weights"))
    (place / "weights").write_bytes(b"two")
    assert digests_of_files(str(place)) != before
