"""Exemplars in detection training: crops show the thing they are labelled with, and are learned from."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_data import COLOURS, NAMES, detect_settings, draw_shape, grey_noise, train_config

from owl_swin.boxes import cxcywh_to_xyxy
from owl_swin.config import ModelConfig, read_toml
from owl_swin.errors import ConfigError
from owl_swin.frame import SwinPreprocess
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.training.distributed import Process
from owl_swin.training.exemplars import cut_out
from owl_swin.training.initial import load_init
from owl_swin.training.tasks.detect import DetectTask

pytestmark = pytest.mark.numeric

ALONE = Process(0, 1, torch.device("cpu"))


def task_of(tmp_path, **detect):
    settings = detect_settings(tmp_path, detect={"mosaic": [0.5, 0.5], "exemplars": 4} | detect)
    torch.manual_seed(0)
    model = OwlSwin(read_toml(settings["model"], ModelConfig))
    load_init(model, settings["init"][0])
    return DetectTask(train_config(settings), model, ALONE), model.eval()


def coloured(pixels: np.ndarray, name: str) -> np.ndarray:
    """Which pixels [H, W] have the colour of the shape."""
    return np.abs(pixels.astype(int) - COLOURS[name.split()[0]]).sum(-1) < 150


@pytest.mark.parametrize("box", [(30, 20, 50, 60), (0, 0, 18, 12), (70, 50, 96, 72), (0, 0, 96, 72)])
def test_a_crop_shows_the_thing_where_its_box_says(box):
    picture = grey_noise(72, 96)
    draw_shape(picture, "red square", box)
    for seed in range(12):
        pixels, where = cut_out(picture, np.array(box, dtype=np.float32), 96, np.random.default_rng(seed))
        assert pixels.shape == (96, 96, 3) and pixels.dtype == np.uint8
        ys, xs = np.nonzero(coloured(pixels, "red square"))
        seen = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert np.abs(seen - 96 * where).max() < 4
        if box == (30, 20, 50, 60):  # it is shown whole, and fills much of the crop
            assert 0.35 < where[3] - where[1] < 0.85


def test_exemplars_show_things_of_the_scenes_classes(tmp_path):
    task, _ = task_of(tmp_path)
    for step in range(6):
        batch = task.batch(step)
        shown = batch.exemplars
        assert 0 < len(shown.labels) <= 4 and shown.pixels.shape[1:] == (3, task.crop_side, task.crop_side)
        assert set(shown.labels.tolist()) <= {int(label) for labels in batch.labels for label in labels}
        for pixels, box, label in zip(shown.pixels, shown.boxes, shown.labels, strict=True):
            x0, y0, x1, y1 = (task.crop_side * box).round().int().tolist()
            inside = pixels.permute(1, 2, 0).numpy()[y0:y1, x0:x1]
            assert coloured(inside, NAMES[batch.classes[label]]).mean() > 0.5
        again = task.batch(step).exemplars
        assert torch.equal(again.pixels, shown.pixels) and torch.equal(again.labels, shown.labels)


def test_exemplars_count_only_where_their_class_was_asked_for(tmp_path):
    task, model = task_of(tmp_path)
    batch = task.batch(0)
    assert task.losses(model, model.encode_patches, batch)["exemplar"] > 0
    nothing = replace(
        batch,
        asked=[asked[:0] for asked in batch.asked],
        boxes=[boxes[:0] for boxes in batch.boxes],
        labels=[labels[:0] for labels in batch.labels],
        scores=[scores[:0] for scores in batch.scores],
    )
    assert task.losses(model, model.encode_patches, nothing)["exemplar"] == 0


def test_exemplars_are_learned_and_weigh_what_they_are_told(tmp_path):
    task, model = task_of(tmp_path)
    batch = task.batch(0)
    losses = task.losses(model, model.encode_patches, batch)
    (tmp_path / "halved").mkdir()
    halved, _ = task_of(tmp_path / "halved", exemplar_weight=0.5)
    difference = losses["loss"] - halved.losses(model, model.encode_patches, batch)["loss"]
    assert difference.item() == pytest.approx(losses["exemplar"].item() / 2, rel=1e-4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(25):
        task.losses(model, model.encode_patches, batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert task.losses(model, model.encode_patches, batch)["exemplar"] < 0.5 * losses["exemplar"]


def test_a_picture_that_cannot_be_read_shows_nothing(tmp_path):
    task, _ = task_of(tmp_path)
    scenes = task.draws[0].scenes
    scene = scenes.scenes[0]
    scene.source.write_bytes(b"no picture")
    assert task.draws[0].crop(int(scene.labels[0]), [scene], 96, _Own()) is None
    assert scenes.broken


def test_where_nothing_can_be_shown_the_part_is_there_and_zero(tmp_path):
    """Processes compare their losses part by part, and every one of them encodes exemplars."""
    settings = detect_settings(tmp_path, detect={"exemplars": 4})
    path = Path(settings["data"][0]["path"])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    torch.manual_seed(0)
    model = OwlSwin(read_toml(settings["model"], ModelConfig))
    task = DetectTask(train_config(settings), model, ALONE)
    seen = []
    losses = task.losses(model, lambda pixels: seen.append(len(pixels)) or model.encode_patches(pixels), task.batch(0))
    losses["loss"].backward()
    assert losses["exemplar"] == 0 and losses["loss"].isfinite() and seen == [4, 1]


class _Own:
    """Chance that always takes the first of what there is, the scene's own pictures before others."""

    def random(self):
        return 0.0

    def integers(self, n):
        return 0


def test_settings_that_mean_nothing_are_refused(tmp_path):
    for wrong in ({"exemplars": -1}, {"exemplar_weight": -0.1}):
        with pytest.raises(ConfigError, match="exemplar"):
            train_config(detect_settings(tmp_path / str(wrong), detect=wrong))


@pytest.mark.parametrize("box", [(30, 20, 50, 60), (0, 0, 18, 12), (70, 50, 96, 72), (0, 0, 10, 72)])
def test_a_crop_shows_what_a_detector_would_see(box, monkeypatch):
    monkeypatch.setattr("owl_swin.training.exemplars.MARGIN_CHANGE", 1.0)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (72, 96, 3), dtype=np.uint8))
    frame = SwinPreprocess(16).exemplar((72, 96), box, 640)
    expected = SwinPreprocess(16).pixels(picture, frame).permute(1, 2, 0).numpy()
    where = cxcywh_to_xyxy(frame.from_image(torch.tensor(box, dtype=torch.float))).numpy()
    seen = set()
    for seed in range(8):
        pixels, inside = cut_out(picture, np.array(box, dtype=np.float32), 96, np.random.default_rng(seed))
        mirrored = not np.array_equal(pixels, expected)
        seen.add(mirrored)
        if mirrored:
            width = frame.content_hw[1]
            assert np.array_equal(pixels[:, :width][:, ::-1], expected[:, :width])
            assert np.array_equal(pixels[:, width:], expected[:, width:])
            inside = np.array([width / 96 - inside[2], inside[1], width / 96 - inside[0], inside[3]])
        np.testing.assert_allclose(inside, where.clip(0, 1), atol=1e-6)
    assert seen == {True, False}


def test_narrow_pictures_are_not_stretched():
    picture = Image.new("RGB", (10, 40), (9, 9, 9))
    pixels, box = cut_out(picture, np.array([0, 0, 10, 40], dtype=np.float32), 64, np.random.default_rng(0))
    assert pixels.shape == (64, 64, 3)
    width, height = (64 * (box[2:] - box[:2])).tolist()
    assert height / width == pytest.approx(4, rel=0.1)
