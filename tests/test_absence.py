"""AUROC, false alarms and false positives against cases that can be counted by hand."""

import json
import math

import numpy as np
import pytest
import torch
from fake_detector import FakeDetector
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from training_data import NAMES, write_json, write_shapes

from owl_swin.errors import DataError
from owl_swin.evaluation.absence import auroc, evaluate_absence, false_alarms
from owl_swin.evaluation.answers import are_right

BOX, FAR = [10, 10, 40, 40], [60, 60, 30, 30]  # xywh
ONE = np.ones(4)


@pytest.mark.parametrize(
    "scores, positive, expected",
    [
        ([4, 3, 2, 1], [1, 1, 0, 0], 1.0),
        ([1, 2, 3, 4], [1, 1, 0, 0], 0.0),
        ([4, 3, 2, 1], [1, 0, 1, 0], 0.75),
        ([5, 5, 5, 5], [1, 1, 0, 0], 0.5),
        ([5, 5, 5, 1], [1, 0, 1, 0], 0.75),  # two ties and two won
        ([math.nan, 3, 2, 1], [1, 1, 0, 0], 1.0),
        ([4, 3, 2, 1], [1, 1, 1, 1], math.nan),
        ([4, 3, 2, 1], [0, 0, 0, 0], math.nan),
    ],
)
def test_auroc_of_known_cases(scores, positive, expected):
    value = auroc(np.array(scores, float), np.array(positive, bool), ONE)
    assert value == pytest.approx(expected, nan_ok=True)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), min_size=1, max_size=12))
def test_a_weight_is_a_repetition(rows):
    scores, positive, weights = (np.array(column) for column in zip(*rows, strict=True))
    positive, repeated = positive.astype(bool), np.repeat(np.arange(len(rows)), weights)
    once = auroc(scores[repeated].astype(float), positive[repeated], np.ones(len(repeated)))
    assert auroc(scores.astype(float), positive, weights) == pytest.approx(once, nan_ok=True)


def test_auroc_of_nothing_is_unknown():
    assert math.isnan(auroc(np.empty(0), np.empty(0, bool), np.empty(0)))


@pytest.mark.parametrize("recall, expected", [(0.5, 0.0), (0.51, 0.5), (1.0, 0.5)])
def test_false_alarms_at_the_score_that_enough_pictures_reach(recall, expected):
    scores, present = np.array([0.9, 0.3, 0.5, 0.1]), np.array([True, True, False, False])
    assert false_alarms(scores, present, recall) == expected


# --- The fate of an answer -----------------------------------------------------------------------------------------


def boxes(*xywh, crowd=()):
    return [{"bbox": box, "iscrowd": int(i in crowd)} for i, box in enumerate(xywh)]


@pytest.mark.parametrize(
    "answers, annotations, expected",
    [
        ([], boxes(BOX), []),
        ([[10, 10, 50, 50]], [], [False]),
        ([[10, 10, 50, 50]], boxes(BOX), [True]),
        ([[10, 10, 50, 50], [10, 10, 50, 50]], boxes(BOX), [True, False]),
        ([[10, 10, 50, 29]], boxes(BOX), [False]),  # IoU 0.475
        ([[10, 10, 50, 31]], boxes(BOX), [True]),  # IoU 0.525
        ([[10, 10, 50, 50], [12, 10, 50, 50]], boxes([12, 10, 38, 40], BOX), [True, True]),  # each its own
        ([[62, 62, 70, 70], [62, 62, 70, 70]], boxes(FAR, crowd=[0]), [None, None]),
        ([[10, 10, 50, 50]], boxes(BOX, BOX, crowd=[0]), [True]),
    ],
)
def test_fates_of_known_answers(answers, annotations, expected):
    assert are_right(torch.tensor(answers, dtype=torch.float).reshape(-1, 4), annotations) == expected


# --- Over files ----------------------------------------------------------------------------------------------------


def write_set(folder, boxes, n_images=4, names="ab"):
    """Pictures of 100 x 100 and boxes (picture, name, xywh) of the classes a and b, or others."""
    for i in range(n_images):
        Image.new("RGB", (100, 100)).save(folder / f"{i}.png")
    ids = {name: i for i, name in enumerate(names, start=1)}
    return write_json(
        folder / "set.json",
        {
            "images": [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in range(n_images)],
            "categories": [{"id": i, "name": name} for name, i in ids.items()],
            "annotations": [{"image_id": b[0], "category_id": ids[b[1]], "bbox": b[2]} for b in boxes],
        },
    )


XYXY = [10, 10, 50, 50]


def test_figures_of_a_case_counted_by_hand(tmp_path):
    path = write_set(tmp_path, [(0, "a", BOX), (1, "a", BOX), (0, "b", FAR)])
    told = {
        "0.png": [(XYXY, 0.9, "a"), (XYXY, 0.2, "b")],
        "1.png": [(XYXY, 0.4, "a")],
        "2.png": [(XYXY, 0.6, "a"), (XYXY, 0.3, "b"), ([0, 0, 9, 9], 0.5, "a")],
        "3.png": [(XYXY, 0.95, "a")],
    }
    result = evaluate_absence(FakeDetector(told), path, tmp_path, draws=20)
    # a: 0.9 and 0.4 against 0.6 and 0.95: one pair of four is right. b: 0.2 against 0.3 and twice next to nothing.
    assert result["per_class_auroc"] == {"a": 25.0, "b": 66.67}
    assert result["auroc"] == pytest.approx(45.83, abs=0.01)
    # a: the better of two scores 0.9, which 0.95 reaches. b: 0.2, which 0.3 reaches, of three.
    assert result["false_alarms"] == pytest.approx(100 * (1 / 2 + 1 / 3) / 2, abs=0.01)
    # At 0.9 one box of a is found, and one answer in two pictures is as good; no box of b is ever found.
    assert result["fppi"] == 0.5 and (result["fppi_classes"], result["fppi_reached"]) == (2, 1)
    assert result["n_images"] == 4 and result["n_boxes"] == 3 and result["recall"] == 0.5
    assert result["ci95_auroc"][0] <= result["auroc"] <= result["ci95_auroc"][1]
    assert result["per_class"]["b"] == 0
    # Pooled: 0.9, 0.4, 0.2 against 0.6, 0.95, 0.3 and twice 0.001: 4 + 3 + 2 of 15.
    assert result["auroc_pooled"] == 60


def test_every_model_is_judged_on_the_same_classes(tmp_path):
    path = write_set(tmp_path, [(0, "a", BOX), (1, "b", BOX), (2, "c", BOX)], names="abc")
    noise = [([0, 0, 9, 9], 0.95, "a")]
    good = {"0.png": [(XYXY, 0.9, "a")], "1.png": [*noise, (XYXY, 0.8, "b")], "2.png": [*noise, (XYXY, 0.8, "c")]}
    poor = {"0.png": [(XYXY, 0.9, "a")], "1.png": noise, "2.png": noise, "3.png": []}
    easy = {"0.png": [], "1.png": [(XYXY, 0.8, "b")]}
    results = [evaluate_absence(FakeDetector(told), path, tmp_path, draws=2) for told in (good, poor, easy)]
    assert [result["fppi_classes"] for result in results] == [3, 3, 3]
    assert [result["fppi_reached"] for result in results] == [3, 1, 1]
    # Half of the classes, two of three, keep to 0; those that never get so far are not left out of the three.
    assert [result["fppi"] for result in results] == [0, None, None]
    assert "most classes never reach recall 0.5" in results[1]["notes"][0]


@pytest.mark.parametrize(
    "boxes, n_images, reason",
    [
        ([(0, "a", BOX), (1, "a", BOX)], 2, "all 2 pictures have 'a'"),
        ([], 2, "none of 2 classes is in any of 2 pictures"),
        ([], 0, "no picture was asked for a class"),
    ],
)
def test_why_there_is_no_figure_is_said(tmp_path, boxes, n_images, reason):
    result = evaluate_absence(FakeDetector({}), write_set(tmp_path, boxes, n_images), tmp_path)
    assert result["auroc"] is result["fppi"] is None
    [note] = [note for note in result["notes"] if "no AUROC" in note]
    assert reason in note and "pictures with a class and pictures without it" in note


def test_perfect_scores(tmp_path):
    path = write_set(tmp_path, [(0, "a", BOX), (1, "b", BOX)])
    told = {"0.png": [(XYXY, 0.9, "a")], "1.png": [(XYXY, 0.8, "b")]}
    result = evaluate_absence(FakeDetector(told), path, tmp_path, draws=5)
    assert result["auroc"] == result["auroc_pooled"] == result["AP50"] == 100
    assert result["false_alarms"] == result["fppi"] == 0


@pytest.mark.parametrize("n_images, boxes", [(0, []), (1, []), (1, [(0, "a", BOX)])])
def test_sets_without_absence_or_presence_have_no_figures(tmp_path, n_images, boxes):
    result = evaluate_absence(FakeDetector({}), write_set(tmp_path, boxes, n_images), tmp_path)
    assert result["auroc"] is None and result["fppi"] is None and result["ci95_auroc"] is None
    assert result["n_images"] == n_images and result["per_class_auroc"] == {}


def test_a_broken_picture_is_left_out_and_told(tmp_path):
    path = write_set(tmp_path, [(0, "a", BOX)])
    (tmp_path / "3.png").write_bytes(b"no picture")
    result = evaluate_absence(FakeDetector({"0.png": [(XYXY, 0.9, "a")]}), path, tmp_path, draws=5)
    assert len(result["broken"]) == 1 and result["auroc"] == 100


@pytest.mark.parametrize("recall", [0, 1.5, -1])
def test_a_recall_that_cannot_be_is_refused(tmp_path, recall):
    with pytest.raises(DataError, match="recall"):
        evaluate_absence(FakeDetector({}), write_set(tmp_path, []), tmp_path, recall=recall)


def test_a_way_of_asking_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="text or exemplar, not by 'smell'"):
        evaluate_absence(FakeDetector({}), write_set(tmp_path, []), tmp_path, route="smell")


@pytest.mark.parametrize("route", ["text", "exemplar"])
def test_a_real_detector_is_asked_by_name_and_by_exemplar(tmp_path, detector, route):
    shapes = write_shapes(tmp_path / "shapes", 6)
    result = evaluate_absence(detector, shapes, shapes.parent / "images", route=route, draws=5)
    assert 0 <= result["auroc"] <= 100 and set(result["per_class_auroc"]) <= set(NAMES)
    json.dumps(result.to_json())
