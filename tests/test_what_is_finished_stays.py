"""What commands have finished stays, and is written, however they end; and what somebody has corrected is kept."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, make_tiny_model
from picture_files import encode, noise
from PIL import Image
from test_cli import Run, assert_one_sentence, owl_swin  # noqa: F401
from typer.testing import CliRunner

from owl_swin.cli.main import app
from owl_swin.cli.map_results import PanopticMaps, closing
from owl_swin.config import CalibrationConfig
from owl_swin.detector import Detector
from owl_swin.errors import OwlSwinError
from owl_swin.files import image_comment, write_image
from owl_swin.labelling.names import LabelSpace, label_names
from owl_swin.labelling.run import LabelOptions, label_pictures, stamp_of
from owl_swin.made_here import MADE_HERE
from owl_swin.semantic_map import SemanticMap
from owl_swin.teachers.detector import DetectorTeacher


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encode(noise(60, 90, number)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def a_map() -> SemanticMap:
    return SemanticMap(torch.zeros(8, 8, dtype=torch.int16), torch.ones(8, 8), ("sky",))


@pytest.mark.parametrize("end", [SystemExit(0), RuntimeError("a fault"), MemoryError(), KeyboardInterrupt()])
def test_maps_that_are_finished_are_in_their_set_however_the_command_ends(tmp_path, end):
    maps = PanopticMaps(tmp_path, ["sky"])
    with pytest.raises(type(end)), closing(maps):
        maps.add("a.png", a_map(), lambda side: Image.new("RGB", (8, 8)))
        raise end
    said = json.loads((tmp_path / "panoptic.json").read_text())
    assert [one["file_name"] for one in said["images"]] == ["a.png"]


@pytest.mark.parametrize("corrected", ["panoptic.json", "panoptic/a.png"])
def test_a_set_that_was_corrected_is_not_written_over(tmp_path, corrected):
    maps = PanopticMaps(tmp_path, ["sky"])
    maps.add("a.png", a_map(), lambda side: Image.new("RGB", (8, 8)))
    maps.close()
    (tmp_path / "panoptic" / ".DS_Store").write_bytes(b"of a desktop")
    PanopticMaps(tmp_path, ["sky"])  # ours of before
    if corrected.endswith("json"):
        said = json.loads((tmp_path / corrected).read_text())
        said["annotations"][0]["segments_info"][0]["iscrowd"] = 1
        (tmp_path / corrected).write_text(json.dumps(said))
    else:
        Image.open(tmp_path / corrected).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / corrected)
    with pytest.raises(OwlSwinError, match="name another folder for --save"):
        PanopticMaps(tmp_path, ["sky"])


@pytest.mark.parametrize("end", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_too_little_memory_is_one_sentence_and_what_was_found_is_kept(owl_swin, folder, model_file, monkeypatch, end):  # noqa: F811
    detect, calls = Detector.detect_batch, []

    def once(self, *given, **options):
        calls.append(1)
        if len(calls) > 1:
            raise end
        return detect(self, *given, **options)

    monkeypatch.setattr(Detector, "detect_batch", once)
    monkeypatch.setattr("owl_swin.cli.detect.BATCH", 1)
    asked = ["--query", "a dog", "--threshold", "0", "--format", "coco", "--to", "out.json", "--model", model_file]
    run: Run = owl_swin("detect", "0.png", "1.png", "2.png", *asked)
    assert run.code == 2 and "there is not enough memory for this" in run.err
    assert [one["file_name"] for one in json.loads((folder / "out.json").read_text())["images"]] == ["0.png"]


def test_queries_that_are_read_are_not_written_over(owl_swin, folder, model_file):  # noqa: F811
    asked = ["detect", "0.png", "--model", model_file]
    assert owl_swin(*asked, "--query", "a mug", "--save-query", "q.safetensors").code == 0
    before = (folder / "q.safetensors").read_bytes()
    run = owl_swin(*asked, "--query-file", "q.safetensors", "--query", "a fork", "--save-query", "q.safetensors")
    assert_one_sentence(run, "q.safetensors: is read here and would be written over")
    assert (folder / "q.safetensors").read_bytes() == before


def test_classes_that_are_known_are_shown_where_it_is_stopped(folder, monkeypatch):
    class Classifier:
        def classify(self, picture):
            if seen:
                raise KeyboardInterrupt
            seen.append(picture)
            return self

        def ranked(self):
            return [("a cat", 0.9)]

    seen = []
    monkeypatch.setattr("owl_swin.families.closed_set.load_classifier", lambda *_, **__: Classifier())
    run = CliRunner().invoke(app, ["classify", "0.png", "1.png", "--model", "x"])
    assert "0.png" in run.stdout and "a cat" in run.stdout and "1.png" not in run.stdout


# --- Labels --------------------------------------------------------------------------------------------------------


def test_a_teacher_with_other_scores_labels_anew(folder):
    config = replace(TINY, calibration=CalibrationConfig(text_scale=2.0))
    one, other = (Detector(make_tiny_model(config=made), device="cpu") for made in (TINY, config))
    assert one.fingerprint == other.fingerprint
    space, scores = LabelSpace(label_names(["a cat"])), []
    for detector in (one, other):
        report = label_pictures(["0.png"], "l.json", DetectorTeacher(detector), space, LabelOptions(0, 0))
        assert report.known == 0
        scores.append(max(report.pictures[0].scores))
    assert scores[0] != pytest.approx(scores[1], abs=1e-3)


def test_a_picture_that_was_turned_with_its_time_put_back_is_another(folder):
    path = folder / "0.png"
    before, content, times = stamp_of("0.png"), path.read_bytes(), path.stat()
    path.write_bytes(content[:-1] + b"x")  # as long as it was
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert stamp_of("0.png") != before and stamp_of("nowhere.png") == ""


def test_names_of_a_caption_that_lie_within_one_another_are_no_negatives_of_one_another(folder, competing_detector):
    names = ["a", "a cat", "a tabby cat", "cat"]
    found = []
    for rivals in (None, 0.0):
        teacher = DetectorTeacher(competing_detector, rivals=rivals)
        assert teacher.identity["rivals"] == (1.0 if rivals is None else 0.0)
        (one,) = teacher.find([noise(60, 90)], [tuple(names)], 0.0)
        found.append(max(one.scores.tolist()) - min(one.scores.tolist()))
    alone = competing_detector.detect(noise(60, 90), names, threshold=0.0, nms_iou=0.5, rivals=0.0)
    assert one.scores.tolist() == pytest.approx(alone.scores.tolist(), abs=1e-6) and found[0] != found[1]


def test_captions_that_cannot_be_read_and_pictures_that_have_none_are_said(folder, model_file, caplog):
    (folder / "c.csv").write_text("path,caption\n0.png,a cat\n,a dog\nnowhere.png,a bird\n")
    options = ["--captions", "c.csv", "--to", "l.json", "--teacher", str(model_file), "--picture-threshold", "0"]
    run = CliRunner().invoke(app, ["label", ".", *options])
    assert run.exit_code == 0, run.exception
    assert "captions of 1 of 3 pictures" in run.stderr and "c.csv" in caplog.text


# --- Pictures ------------------------------------------------------------------------------------------------------


def test_a_picture_of_ours_is_known_whatever_its_size(tmp_path, recwarn):
    for name in ("a.png", "a.jpg"):
        write_image(tmp_path / name, Image.new("L", (16_000, 13_000)), comment=MADE_HERE)
        assert image_comment(tmp_path / name) == MADE_HERE.encode()
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "c.jpg").write_bytes(b"\xff\xd8\xff broken")
    assert image_comment(tmp_path / "b.png") == image_comment(tmp_path / "c.jpg") == b"" and not list(recwarn)


def test_a_picture_that_its_form_cannot_hold_is_one_sentence_with_its_name(tmp_path):
    with pytest.raises(OwlSwinError, match=r"long\.jpg: cannot write the sheet here"):
        write_image(tmp_path / "long.jpg", Image.fromarray(np.zeros((1, 66_000), np.uint8)), what="the sheet")
    assert not list(tmp_path.iterdir())
