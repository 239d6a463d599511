"""`owl-swin detect --masks`: drawn, written in every form that has a place for them, and refused elsewhere."""

import json

import numpy as np
import pytest
from picture_files import encode, noise
from PIL import Image
from pycocotools import mask as coco_masks
from test_cli import assert_one_sentence, owl_swin, photos  # noqa: F401
from videos import make_video, moving

from owl_swin.families.owl_swin import save_checkpoint


@pytest.fixture(scope="module")
def masked_file(masked_detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("masked") / "masked.safetensors"
    save_checkpoint(path, masked_detector.model, {"name": "tiny_with_masks"})
    return path


@pytest.fixture
def detect(owl_swin, masked_file, tmp_path, monkeypatch):  # noqa: F811
    """The command in a folder with two pictures, with a model that has masks."""
    monkeypatch.chdir(tmp_path)
    for name, size in (("a.png", (60, 90)), ("b.png", (90, 60))):
        (tmp_path / name).write_bytes(encode(noise(*size)))

    def run(*arguments, model=masked_file):
        common = ("--query", "a cat", "--threshold", "0.3", "--top-k", "5", "--model", model)
        return owl_swin("detect", *arguments, *common)

    return run


def test_json_has_run_lengths_and_drawings_have_masks(detect, tmp_path):
    run = detect("a.png", "b.png", "--masks", "--format", "jsonl", "--save", "drawn")
    assert run.code == 0 and len(run.records) == 2
    for record in run.records:
        assert record["detections"]
        for row in record["detections"]:
            assert row["segmentation"]["size"] == [record["height"], record["width"]]
            assert coco_masks.decode(row["segmentation"]).shape == (record["height"], record["width"])
    detect("a.png", "--format", "jsonl", "--save", "plain")
    drawn, plain = (np.asarray(Image.open(tmp_path / name / "a.jpg")).astype(int) for name in ("drawn", "plain"))
    mask = sum(coco_masks.decode(row["segmentation"]) for row in run.records[0]["detections"]) > 0
    assert mask.any() and np.abs(drawn - plain).sum(-1)[mask].mean() > 20


def test_each_form_that_has_a_place_for_masks(detect, tmp_path):
    annotations = json.loads(detect("a.png", "b.png", "--masks", "--format", "coco").out)["annotations"]
    assert annotations and all(coco_masks.decode(one["segmentation"]).sum() == one["area"] for one in annotations)
    tasks = json.loads(detect("a.png", "--masks", "--format", "label-studio").out)
    assert {one["from_name"] for one in tasks[0]["predictions"][0]["result"]} <= {"mask", "label"}
    assert detect("a.png", "--masks", "--format", "yolo", "--to", "set").code == 0
    assert all(len(line.split()) >= 9 for line in (tmp_path / "set/labels/a.txt").read_text().splitlines())


def test_a_form_without_a_place_for_masks_says_so(detect):
    for form in ([], ["--format", "csv"], ["--format", "voc", "--to", "set"]):
        assert_one_sentence(detect("a.png", "--masks", *form), "holds boxes and no masks; give --save to draw them")
    run = detect("a.png", "--masks", "--format", "csv", "--save", "drawn")
    assert run.code == 0 and "csv holds boxes; the masks are in the drawings only" in run.err
    assert "segmentation" not in run.out


def test_a_model_without_masks_is_refused_before_anything_is_written(detect, model_file, tmp_path):
    run = detect("a.png", "--masks", "--format", "yolo", "--to", "set", model=model_file)
    assert_one_sentence(run, "finds boxes and makes no masks")
    assert not (tmp_path / "set").exists()


def test_tiles_have_masks(detect):
    run = detect("a.png", "--masks", "--tile", "64", "--format", "jsonl", "--save", "drawn")
    (record,) = run.records
    assert record["detections"] and all(row["segmentation"]["size"] == [60, 90] for row in record["detections"])


def test_frames_of_a_video_have_masks(detect, tmp_path):
    make_video(tmp_path / "v.mp4", moving(3))
    run = detect("v.mp4", "--masks", "--format", "jsonl", "--save", "drawn")
    assert run.code == 0 and len(run.records) == 3 and (tmp_path / "drawn/v.mp4").exists()
    rows = [row for record in run.records for row in record["detections"]]
    assert rows and all(row["segmentation"]["size"] == [64, 96] for row in rows)
