"""Calibration error of answers whose error is known, the fit that cures it, and the model that keeps the cure."""

import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import TINY, make_tiny_model
from fake_detector import FakeDetector
from test_absence import BOX, XYXY, write_set
from torch.testing import assert_close
from training_data import write_shapes

from owl_swin.config import CalibrationConfig
from owl_swin.detector import Detector
from owl_swin.errors import ConfigError, DataError, MissingExtraError
from owl_swin.evaluation.absence import evaluate_absence
from owl_swin.evaluation.answers import Answers
from owl_swin.evaluation.calibration import (
    Platt,
    calibrated,
    d_ece,
    draw_reliability,
    evaluate_calibration,
    even_weights,
    fit_platt,
    reliability,
    to_logits,
)
from owl_swin.evaluation.detection import evaluate_detection
from owl_swin.evaluation.lvis import evaluate_lvis
from owl_swin.evaluation.map_calibration import SCORES, fit_pixels
from owl_swin.evaluation.odinw import evaluate_odinw
from owl_swin.evaluation.oneshot import evaluate_oneshot
from owl_swin.evaluation.open_vocabulary import evaluate_split
from owl_swin.exemplar import Exemplar
from owl_swin.families.owl_swin import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.numeric


def answers(score, right):
    n = len(score)
    empty = np.zeros((1, 1))
    zeros = np.zeros(n, int)
    return Answers(["a"], zeros, zeros, np.array(score), np.array(right, bool), empty, empty > 0, np.array([1]), [], [])


@pytest.mark.parametrize(
    "scores, right, expected",
    [
        ([], [], None),
        ([1.0], [1], 0.0),
        ([1.0], [0], 100.0),
        ([0.0, 0.0], [0, 0], 0.0),
        ([0.75] * 4, [1, 1, 1, 0], 0.0),
        ([0.75] * 4, [1, 1, 0, 0], 25.0),
        ([0.95, 0.05], [0, 1], 95.0),
        ([0.71, 0.79], [1, 0], 25.0),  # one bin: mean score 0.75, half of them right
        ([0.69, 0.71], [1, 0], 51.0),  # two bins: (0.31 + 0.71) / 2
    ],
)
def test_d_ece_of_known_cases(scores, right, expected):
    assert d_ece(reliability(np.array(scores, float), np.array(right, float))) == expected


def test_the_fit_finds_the_map_that_made_the_answers():
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 2, 40_000)
    right = rng.random(40_000) < 1 / (1 + np.exp(-(0.5 * logits - 1)))
    scores = 1 / (1 + np.exp(-logits))
    cure = fit_platt(np.array(scores), np.array(right, bool))
    assert cure.scale == pytest.approx(0.5, abs=0.02) and cure.bias == pytest.approx(-1, abs=0.04)
    assert d_ece(reliability(scores, right)) > 10 > 1 > d_ece(reliability(cure(scores), right))


@pytest.mark.parametrize(
    "scores, right, sentence",
    [
        ([], [], "0 of 0 answers are right"),
        ([0.5, 0.6], [0, 0], "0 of 2 answers are right"),
        ([0.5, 0.6], [1, 1], "2 of 2 answers are right"),
        ([0.9, 0.8, 0.1, 0.2], [0, 0, 1, 1], "no higher than wrong ones"),
    ],
)
def test_what_cannot_be_fitted_gets_one_sentence(scores, right, sentence):
    with pytest.raises(DataError, match=sentence):
        fit_platt(np.array(scores), np.array(right, bool))


def test_answers_that_are_told_apart_perfectly_are_fitted():
    cure = fit_platt(np.array([0.9, 0.8, 0.2, 0.1]), np.array([1, 1, 0, 0], bool))
    assert np.isfinite([cure.scale, cure.bias]).all() and (cure(np.array([0.1, 0.9])) > [0, 0.5]).all()


def test_logits_of_scores_that_float32_rounds_are_finite():
    assert np.isfinite(to_logits(np.array([0.0, 1.0]))).all()
    assert_close(torch.tensor(Platt()(np.array([0.1, 0.7]))), torch.tensor([0.1, 0.7], dtype=torch.float64))


def test_cures_add_up():
    config = calibrated(CalibrationConfig(), Platt(2.0, 1.0), "exemplar")
    config = calibrated(config, Platt(3.0, -1.0), "exemplar")
    # 3 · (2 · logit + 1) − 1
    assert config == CalibrationConfig(exemplar_scale=6.0, exemplar_bias=2.0)


@pytest.mark.parametrize("setting", [{"text_scale": 0.0}, {"exemplar_scale": -1.0}, {"text_bias": float("nan")}])
def test_a_calibration_that_cannot_be_is_refused(setting):
    with pytest.raises(ConfigError, match="calibration"):
        CalibrationConfig(**setting)


def test_the_picture_has_a_panel_each():
    rows = [{"from": 0.9, "score": 0.95, "right": 0.5, "n": 12_000}]
    one, two = draw_reliability({"before": rows}), draw_reliability({"before": rows, "after": []})
    assert one.height == two.height and two.width > 1.5 * one.width
    assert one.getpixel((40 + 304, 40 + 300)) != (255, 255, 255)  # the bar of the last bin
    assert one.getpixel((40 + 304, 40 + 100)) == (255, 255, 255)  # which ends in the middle


# --- In the model --------------------------------------------------------------------------------------------------


def calibrated_detector(**settings) -> Detector:
    model = make_tiny_model()
    model.config = replace(TINY, calibration=CalibrationConfig(**settings))
    return Detector(model, device="cpu")


def test_each_route_has_its_own_map(detector, picture):
    queries = ["cat", Exemplar(picture, (10, 12, 50, 44))]
    encoded = detector.encode_image(picture)
    raw = detector.score(encoded, detector.encode_queries(queries))
    cured = calibrated_detector(text_scale=2.0, text_bias=-1.0, exemplar_scale=0.5, exemplar_bias=3.0)
    mapped = cured.score(encoded, cured.encode_queries(queries))
    assert_close(mapped, torch.stack([raw[:, 0] * 2 - 1, raw[:, 1] * 0.5 + 3], 1))


def test_detections_keep_their_order_and_get_the_new_scores(detector, picture):
    cured = calibrated_detector(text_scale=0.5, text_bias=-1.0)
    before, after = (one.detect(picture, ["cat"], threshold=0) for one in (detector, cured))
    assert torch.equal(before.boxes, after.boxes)
    assert_close(after.scores, (before.scores.logit() * 0.5 - 1).sigmoid())


def test_the_file_keeps_the_calibration(tmp_path):
    model = make_tiny_model()
    model.config = replace(TINY, calibration=CalibrationConfig(text_scale=2.5, exemplar_bias=-3.0))
    save_checkpoint(tmp_path / "m.safetensors", model, {})
    assert load_checkpoint(tmp_path / "m.safetensors")[0].config == model.config


# --- Over files ----------------------------------------------------------------------------------------------------


def test_scores_that_say_too_much_are_cured_on_one_set_and_judged_on_another(tmp_path):
    # Every answer says 0.9 or 0.5; three of four are right at 0.9, and one of four at 0.5.
    told = {}
    for i in range(8):
        score, good = (0.9, i % 4 != 0) if i < 4 else (0.5, i % 4 == 0)
        told[f"{i}.png"] = [(XYXY if good else [60, 60, 90, 90], score, "a")]
    sets = []
    for name in ("fit", "judge"):
        (tmp_path / name).mkdir()
        sets.append(write_set(tmp_path / name, [(i, "a", BOX) for i in range(8)], n_images=8))
    fit, judge = sets
    result, cure = evaluate_calibration(
        FakeDetector(told), judge, judge.parent, fit=[fit], fit_images=[fit.parent], draws=10
    )
    assert result["d_ece_before"] == pytest.approx(100 * (0.15 + 0.25) / 2, abs=0.01)
    assert result["d_ece"] < 9  # not 0: Platt's targets are drawn in
    assert result["temperature"] == pytest.approx(1 / cure.scale, abs=1e-3) and result["fit"] == "set.json"
    assert sum(row["n"] for row in result["reliability"]) == result["n_answers"] == 8
    assert result["ci95_d_ece_before"][0] <= result["d_ece_before"] <= result["ci95_d_ece_before"][1]


def test_each_of_several_sets_counts_as_much():
    assert even_weights([30, 10]) == [pytest.approx(2 / 3), 2]
    assert even_weights([10, 0, 10]) == [1, 0, 1] and even_weights([0]) == [0]
    scores, right = [0.5] * 40, [True] * 25 + [False] * 5 + [False] * 9 + [True]
    one = fit_platt(np.array(scores), np.array(right), np.repeat(even_weights([30, 10]), [30, 10]))
    assert one(np.array([0.5]))[0] == pytest.approx((25 / 30 + 1 / 10) / 2, abs=0.005)


def test_pixels_of_each_of_several_sets_count_as_much():
    many, few = np.zeros((3, len(SCORES), 2)), np.zeros((1, len(SCORES), 2))
    place = len(SCORES) // 2
    many[:, place], few[:, place] = (900, 1000), (20, 200)
    cure = fit_pixels([many, few], "both")
    assert cure(SCORES[place : place + 1])[0] == pytest.approx((0.9 + 0.1) / 2, abs=0.005)


def test_several_sets_are_fitted_on_as_one(tmp_path):
    told = {f"{i}.png": [(XYXY, 0.9 if i < 4 else 0.5, "a")] for i in range(8)}
    right = {"judge": {0}, "much": {0, 1, 2, 4}, "little": {0}}  # the boxes that the answers lie on
    elsewhere = [60, 60, 30, 30]
    paths = []
    for name, good in right.items():
        (tmp_path / name).mkdir()
        rows = [(i, "a", BOX if i in good else elsewhere) for i in range(8)]
        paths.append(write_set(tmp_path / name, rows, n_images=8))
    judge, much, little = paths

    def cured(*fit, folders=None):
        folders = [path.parent for path in fit] if folders is None else folders
        found = evaluate_calibration(FakeDetector(told), judge, judge.parent, fit=fit, fit_images=folders, draws=2)
        return found[1](np.array([0.9]))[0]

    assert cured(much) > cured(much, little) > cured(little)
    with pytest.raises(DataError, match="2 sets to fit on have 3 folders"):
        cured(much, little, folders=[tmp_path] * 3)


def test_what_is_missing_for_measuring_is_said_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    path = write_set(tmp_path, [(0, "a", BOX)])
    for measure in (
        evaluate_calibration,
        evaluate_detection,
        evaluate_absence,
        evaluate_oneshot,
        partial(evaluate_split, base=["a"], novel=["b"]),
        evaluate_lvis,
        lambda detector, _, folder: evaluate_odinw(detector, folder),
    ):
        with pytest.raises(MissingExtraError, match="measuring average precision"):
            measure(None, path, tmp_path)  # no detector: it is not asked


def test_the_set_that_is_judged_on_is_not_fitted_on(tmp_path):
    path = write_set(tmp_path, [(0, "a", BOX)])
    with pytest.raises(DataError, match="fit on another one"):
        evaluate_calibration(FakeDetector({}), path, tmp_path, fit=[path])


def test_a_set_to_fit_on_that_is_not_there_is_said_before_any_work(tmp_path):
    path, detector = write_set(tmp_path, [(0, "a", BOX)]), FakeDetector({})
    other = write_set(tmp_path, [(0, "a", BOX)]).rename(tmp_path / "other.json")
    write_set(tmp_path, [(0, "a", BOX)])
    with pytest.raises(DataError, match=r"other\.json: none of its 4 pictures is there"):
        evaluate_calibration(detector, path, tmp_path, fit=[other], fit_images=[tmp_path / "elsewhere"])
    assert detector.asked is None


@pytest.mark.parametrize("n_images", [0, 1])
def test_sets_of_no_and_one_picture(tmp_path, n_images):
    told = {"0.png": [(XYXY, 0.9, "a")]}
    result, cure = evaluate_calibration(FakeDetector(told), write_set(tmp_path, [], n_images), tmp_path)
    assert result["d_ece"] == (90.0 if n_images else None) and cure == Platt()
    assert result["ci95_d_ece"] == ([90.0, 90.0] if n_images else None)
    assert "d_ece_before" not in result


def test_the_error_of_a_real_detector_falls(tmp_path, detector):
    fit, judge = (write_shapes(tmp_path / name, n) for name, n in (("fit", 10), ("judge", 6)))
    result, _ = evaluate_calibration(
        detector, judge, judge.parent / "images", fit=[fit], fit_images=[fit.parent / "images"], draws=5
    )
    assert result["d_ece"] < result["d_ece_before"]
