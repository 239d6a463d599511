"""LVIS's rules on cases that can be counted by hand: what counts, what is never false, and what is cut off."""

import json

import pytest
import torch
from fake_detector import FakeDetector
from PIL import Image
from torch.testing import assert_close
from training_data import write_json, write_shapes

from owl_swin.evaluation.lvis import BestOfClass, evaluate_lvis, lvis_figures
from owl_swin.evaluation.precision import resampled_ap50

BOX, FAR, XYXY = [10, 10, 40, 40], [60, 60, 30, 30], [10, 10, 50, 50]


def truth(*boxes, n_images=2, negative=None, not_exhaustive=None, frequencies=("f", "r")):
    """Pictures 0, 1, … and boxes (picture, category, xywh) of the categories 1 and 2."""
    return {
        "info": {},
        "images": [
            {
                "id": i,
                "file_name": f"{i}.png",
                "width": 100,
                "height": 100,
                "neg_category_ids": (negative or {}).get(i, []),
                "not_exhaustive_category_ids": (not_exhaustive or {}).get(i, []),
            }
            for i in range(n_images)
        ],
        "categories": [{"id": i, "name": f"class {i}", "frequency": f} for i, f in enumerate(frequencies, start=1)],
        "annotations": [
            {"image_id": b[0], "category_id": b[1], "bbox": b[2], "area": b[2][2] * b[2][3], "iscrowd": 0}
            for b in boxes
        ],
    }


def answer(image, category, bbox, score):
    return {"image_id": image, "category_id": category, "bbox": bbox, "score": score}


def ap(data, rows):
    figures, _ = lvis_figures(data, rows)
    resampled = resampled_ap50(data, rows, draws=3, lvis=True)
    assert (resampled[:, 0] == resampled[0, 0]).all() or len(data["images"]) > 1
    return figures["AP50"]


RIGHT = answer(0, 1, BOX, 0.5)


@pytest.mark.parametrize(
    "data, rows, expected",
    [
        pytest.param(truth((0, 1, BOX)), [], 0, id="nothing found"),
        pytest.param(truth((0, 1, BOX)), [RIGHT], 100, id="found"),
        pytest.param(truth((0, 1, BOX)), [answer(0, 1, FAR, 0.9), RIGHT], 50, id="false where the class is"),
        pytest.param(truth((0, 1, BOX)), [answer(1, 1, FAR, 0.9), RIGHT], 100, id="unknown whether it is there"),
        pytest.param(
            truth((0, 1, BOX), negative={1: [1]}), [answer(1, 1, FAR, 0.9), RIGHT], 50, id="known not to be there"
        ),
        pytest.param(
            truth((0, 1, BOX), not_exhaustive={0: [1]}), [answer(0, 1, FAR, 0.9), RIGHT], 100, id="not all annotated"
        ),
        pytest.param(
            truth((0, 1, BOX), not_exhaustive={0: [2]}), [answer(0, 1, FAR, 0.9), RIGHT], 50, id="of another class"
        ),
        pytest.param(
            truth((0, 1, BOX), (1, 1, BOX), not_exhaustive={0: [1]}),
            [answer(0, 1, FAR, 0.9), answer(1, 1, FAR, 0.8), RIGHT, answer(1, 1, BOX, 0.4)],
            100 * 2 / 3,
            id="one judged and one not",
        ),
    ],
)
def test_what_counts(data, rows, expected):
    assert ap(data, rows) == pytest.approx(expected, abs=0.01)


def test_frequencies_have_figures_of_their_own():
    rows = [RIGHT, answer(1, 2, FAR, 0.5)]
    figures, per_class = lvis_figures(truth((0, 1, BOX), (1, 2, BOX)), rows)
    assert (figures["APf"], figures["APr"], figures["APc"], figures["AP"]) == (100, 0, None, 50)
    assert per_class == {"class 1": 100.0, "class 2": 0.0}


def test_the_interval_judges_by_the_same_rules():
    data = truth((0, 1, BOX), n_images=1, not_exhaustive={0: [1]})
    rows = [answer(0, 1, FAR, 0.9), RIGHT]
    assert (resampled_ap50(data, rows, draws=3, lvis=True)[:, 0] == 100).all()
    assert (resampled_ap50(data, rows, draws=3)[:, 0] == 50).all()


def test_the_best_of_a_class_are_kept_and_the_first_of_equals():
    best = BestOfClass([1, 2], size=2)
    for i, score in enumerate([0.5, 0.1, 0.5, 0.5, 0.05]):
        best.add(0, answer(i, 1, BOX, score))
    best.add(1, answer(9, 2, BOX, 0.01))
    assert [(row["image_id"], row["category_id"]) for row in best.rows()] == [(0, 1), (2, 1), (9, 2)]


# --- Over files ----------------------------------------------------------------------------------------------------


def write_set(folder, data):
    for record in data["images"]:
        Image.new("RGB", (100, 100)).save(folder / f"{record['id']}.png")
    return write_json(folder / "lvis.json", data)


def test_other_classes_push_out_of_the_300_but_not_of_the_fixed(tmp_path):
    crowd = [([60, 60, 61 + i % 30, 61 + i % 20], 0.9 - i / 1000, "class 2") for i in range(300)]
    path = write_set(tmp_path, truth((0, 1, BOX), n_images=1))
    result = evaluate_lvis(FakeDetector({"0.png": [*crowd, (XYXY, 0.3, "class 1")]}), path, tmp_path, draws=3)
    assert result["AP"] == result["AP50"] == 0 and result["ci95"] == [0.0, 0.0]
    assert result["AP_fixed"] == result["APf_fixed"] == 100 and result["APr_fixed"] is None


def test_pictures_are_found_by_their_address(tmp_path):
    data = truth((0, 1, BOX), n_images=1)
    del data["images"][0]["file_name"]
    data["images"][0]["coco_url"] = "http://images.cocodataset.org/val2017/0.png"
    (tmp_path / "val2017").mkdir()
    Image.new("RGB", (100, 100)).save(tmp_path / "val2017" / "0.png")
    path = write_json(tmp_path / "lvis.json", data)
    result = evaluate_lvis(FakeDetector({"0.png": [(XYXY, 0.9, "class 1")]}), path, tmp_path, draws=3)
    assert result["AP"] == 100 and result["broken"] == []


@pytest.mark.parametrize("missing", ["images", "annotations", "categories"])
def test_an_empty_set_has_no_figures(tmp_path, missing):
    path = write_set(tmp_path, truth((0, 1, BOX)) | {missing: []})
    result = evaluate_lvis(FakeDetector({}), path, tmp_path)
    assert result["AP"] is result["AP_fixed"] is result["ci95"] is None and result["per_class"] == {}


def test_a_coco_file_counts_no_answer_where_nothing_is_said(tmp_path):
    # Without lists of negatives, only the classes of a picture's boxes count there, and no class has a frequency.
    data = json.loads((write_shapes(tmp_path / "shapes", 3)).read_text())
    path = write_json(tmp_path / "shapes" / "set.json", data)
    result = evaluate_lvis(FakeDetector({}), path, tmp_path / "shapes" / "images", draws=3)
    assert result["AP"] == 0 and result["APr"] is None


def test_a_real_detector_is_asked(tmp_path, detector):
    shapes = write_shapes(tmp_path / "shapes", 4)
    result = evaluate_lvis(detector, shapes, shapes.parent / "images", draws=3)
    assert 0 <= result["AP"] <= 100 and 0 <= result["AP_fixed"] <= 100


def test_answers_do_not_depend_on_how_many_classes_are_asked_at_once(tmp_path, competing_detector, monkeypatch):
    shapes = write_shapes(tmp_path / "shapes", 4)

    def answers(at_once):
        rows = []
        monkeypatch.setattr("owl_swin.evaluation.lvis.CLASSES_AT_ONCE", at_once)
        monkeypatch.setattr(BestOfClass, "add", lambda self, place, row: rows.append(row))
        evaluate_lvis(competing_detector, shapes, shapes.parent / "images", draws=3)
        return sorted((row["image_id"], row["category_id"], row["score"]) for row in rows)

    together, apart = answers(64), answers(1)
    assert len(together) == len(apart) > 0
    assert_close(torch.tensor(together), torch.tensor(apart), atol=1e-6, rtol=0)
