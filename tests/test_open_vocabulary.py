"""Base and novel classes: who competes with whom, and the harmonic mean."""

import pytest
from fake_detector import FakeDetector
from test_oneshot import BOX, XYXY, write_set
from training_data import NAMES, write_shapes

from owl_swin.errors import DataError
from owl_swin.evaluation.open_vocabulary import evaluate_split, harmonic


@pytest.mark.parametrize(
    "a, b, expected", [(50, 50, 50), (100, 0, 0), (0, 0, 0), (60, 30, 40), (None, 50, None), (50, None, None)]
)
def test_harmonic_mean(a, b, expected):
    assert harmonic(a, b) == expected


def test_base_and_novel_are_told_apart(tmp_path):
    path = write_set(tmp_path, [(0, "a", BOX), (1, "b", BOX), (2, "c", BOX)], names=("a", "b", "c"))
    # a is found; b is found below a false answer; c is nobody's business.
    told = {"0.png": [(XYXY, 0.9, "a"), (XYXY, 0.8, "b")], "1.png": [(XYXY, 0.5, "b")], "2.png": [(XYXY, 0.9, "c")]}
    detector = FakeDetector(told)
    result = evaluate_split(detector, path, tmp_path, base=["a"], novel=["b"], draws=5)
    assert (result["AP50_base"], result["AP50_novel"], result["AP50"]) == (100, 50, 75)
    assert result["AP50_harmonic"] == pytest.approx(66.67, abs=0.01)
    assert result["AP50_novel_alone"] == 50 and result["n_boxes"] == 2
    assert set(result["per_class"]) == {"a", "b"}
    assert set(result) >= {"ci95", "ci95_base", "ci95_novel", "ci95_harmonic", "ci95_novel_alone"}


def test_base_classes_may_push_novel_ones_out(tmp_path):
    path = write_set(tmp_path, [(0, "a", BOX), (0, "b", BOX)], n_images=1)
    many = [(XYXY, 0.9 - i / 1000, "a") for i in range(100)]
    result = evaluate_split(
        FakeDetector({"0.png": [*many, (XYXY, 0.3, "b")]}), path, tmp_path, base=["a"], novel=["b"], draws=5
    )
    assert (result["AP50_base"], result["AP50_novel"], result["AP50_novel_alone"]) == (100, 0, 100)
    assert result["AP50_harmonic"] == 0 and result["ci95_harmonic"] == [0.0, 0.0]


@pytest.mark.parametrize("base, novel", [([], ["a"]), (["a"], []), (["a", "b"], ["b"])])
def test_what_is_no_split_is_refused(tmp_path, base, novel):
    with pytest.raises(DataError, match="needs base classes and novel classes"):
        evaluate_split(FakeDetector({}), write_set(tmp_path, []), tmp_path, base=base, novel=novel)


def test_an_unknown_class_is_refused(tmp_path):
    with pytest.raises(DataError, match="no class 'z'; its classes are a, b"):
        evaluate_split(FakeDetector({}), write_set(tmp_path, []), tmp_path, base=["a"], novel=["z"])


@pytest.mark.parametrize("n_images, boxes, expected", [(0, [], None), (1, [], None), (1, [(0, "a", BOX)], 0.0)])
def test_an_empty_set_and_a_set_of_one_picture(tmp_path, n_images, boxes, expected):
    path = write_set(tmp_path, boxes, n_images)
    result = evaluate_split(FakeDetector({}), path, tmp_path, base=["a"], novel=["b"], draws=5)
    assert result["AP50_base"] == result["AP50"] == expected
    assert result["AP50_novel"] is result["AP50_harmonic"] is result["ci95_novel"] is None


def test_a_real_detector_is_asked(tmp_path, detector):
    shapes = write_shapes(tmp_path / "shapes", 6)
    result = evaluate_split(
        detector, shapes, shapes.parent / "images", base=list(NAMES[:2]), novel=list(NAMES[2:]), draws=5
    )
    assert 0 <= result["AP50_harmonic"] <= 100
