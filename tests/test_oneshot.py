"""One-shot detection: which exemplars are drawn, what is asked, and the means over draws."""

import json

import pytest
import torch
from fake_detector import FakeDetector
from PIL import Image
from training_data import NAMES, write_json, write_shapes

from owl_swin.data.truth import read_truth
from owl_swin.errors import DataError
from owl_swin.evaluation.exemplar_bank import MAX_EXEMPLARS, ExemplarBank
from owl_swin.evaluation.oneshot import evaluate_oneshot

BOX, XYXY = [10, 10, 40, 40], [10, 10, 50, 50]


def write_set(folder, boxes, n_images=4, names=("a", "b")):
    """Pictures of 100 x 100, each of its own grey, and boxes (picture, name, xywh[, iscrowd])."""
    folder.mkdir(exist_ok=True)
    for i in range(n_images):
        Image.new("RGB", (100, 100), (i, i, i)).save(folder / f"{i}.png")
    return write_json(
        folder / "set.json",
        {
            "images": [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in range(n_images)],
            "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
            "annotations": [
                {"image_id": b[0], "category_id": names.index(b[1]) + 1, "bbox": b[2], "iscrowd": int(len(b) > 3)}
                for b in boxes
            ],
        },
    )


def shown(detector):
    """Picture and box of the exemplars that a fake detector was shown."""
    return {(exemplar.image.getpixel((0, 0))[0], tuple(exemplar.box_xyxy)) for exemplar in detector.exemplars}


def test_a_picture_is_asked_for_its_classes_by_other_pictures(tmp_path):
    path = write_set(tmp_path, [(0, "a", BOX), (1, "a", BOX), (2, "b", BOX), (3, "b", BOX)])
    told = {f"{i}.png": [(XYXY, 0.9, "a"), (XYXY, 0.8, "b")] for i in range(4)}
    detector = FakeDetector(told)
    result = evaluate_oneshot(detector, path, tmp_path, draws=2, resamples=5)
    # Nobody asks for the class that is not there, so its answers cost nothing.
    assert result["AP"] == result["AP50"] == 100 and result["draw_AP50"] == [100.0, 100.0]
    assert result["per_class"] == {"a": 100.0, "b": 100.0} and result["ci95"] == [100.0, 100.0]
    assert result["shots"] == 1 and result["draws"] == 2 and result["unasked"] == 0
    assert shown(detector) == {(i, tuple(XYXY)) for i in range(4)}  # each is an exemplar of the other of its class


def test_absent_classes_are_asked_when_wanted(tmp_path):
    path = write_set(tmp_path, [(0, "a", BOX), (1, "a", BOX), (2, "b", BOX), (3, "b", BOX)])
    told = {f"{i}.png": [(XYXY, 0.9, "a"), (XYXY, 0.8, "b")] for i in range(4)}
    result = evaluate_oneshot(FakeDetector(told), path, tmp_path, draws=1, absent=True, resamples=5)
    # Two of four answers of each class are right, and all score alike: precision is a half at best at full recall.
    assert result["AP50"] < 100 and "all classes" in result["protocol"]


def test_a_class_in_one_picture_alone_cannot_be_asked(tmp_path):
    path = write_set(tmp_path, [(0, "a", BOX), (0, "a", [60, 60, 30, 30]), (2, "b", BOX), (3, "b", BOX)])
    detector = FakeDetector({f"{i}.png": [(XYXY, 0.9, "a"), (XYXY, 0.8, "b")] for i in range(4)})
    result = evaluate_oneshot(detector, path, tmp_path, draws=3, resamples=5)
    assert result["unasked"] == 1 and result["per_class"] == {"b": 100.0} and result["AP50"] == 100
    assert "no exemplar in another picture" in result["notes"][0] and result["notes"][0].endswith(": a")


def test_exemplars_may_come_from_another_file(tmp_path):
    path = write_set(tmp_path / "asked", [(0, "a", BOX)], n_images=1)
    other = write_set(tmp_path / "shown", [(1, "a", [0, 0, 30, 30])], names=("z", "a"))
    detector = FakeDetector({"0.png": [(XYXY, 0.9, "a")]})
    result = evaluate_oneshot(
        detector, path, tmp_path / "asked", classes=["a"], exemplars=other, exemplar_images=tmp_path / "shown", draws=2
    )
    assert result["AP50"] == 100 and "another set" in result["protocol"]
    assert shown(detector) == {(1, (0, 0, 30, 30))}


def test_a_query_may_hold_the_name_and_other_classes_as_negatives(tmp_path, detector):
    boxes = [(i, name, BOX) for i, name in enumerate("abc")] + [(3, "a", BOX), (4, "b", BOX)]
    path = write_set(tmp_path, boxes, n_images=5, names=("a", "b", "c"))
    truth = read_truth(path, tmp_path)
    bank = ExemplarBank(detector, truth)
    texts = {name: torch.eye(16)[i] for i, name in enumerate("abc")}
    queries = bank.queries(["a", "b"], truth["images"][0], texts=texts, weight=0.25, negatives=1)
    extras = queries.extras
    assert queries.names == ("a", "b") and extras.owners.tolist() == [0, 0, 1, 1]
    assert extras.shares.tolist() == [0.75, 0, 0.75, 0] and extras.routes == ("text", "exemplar") * 2
    assert torch.equal(extras.embeds[0], texts["a"]) and not torch.equal(extras.embeds[1], queries.query_embeds[0])
    assert bank.queries(["a"], truth["images"][0], negatives=5).extras.shares.tolist() == [0, 0]
    assert bank.queries(["a"], truth["images"][0]).extras is None


@pytest.mark.parametrize("changes", [{"negatives": -1}, {"weight": 1.5}])
def test_shares_that_mean_nothing_are_refused(tmp_path, detector, changes):
    path = write_set(tmp_path, [(0, "a", BOX), (1, "a", BOX)])
    with pytest.raises(DataError, match="negatives must be at least 0 and weight lie in"):
        evaluate_oneshot(detector, path, tmp_path, **changes)


def test_the_protocol_says_what_goes_beside_the_exemplars(tmp_path, detector):
    path = write_set(tmp_path, [(0, "a", BOX), (1, "a", BOX), (1, "b", BOX)], n_images=2)
    result = evaluate_oneshot(detector, path, tmp_path, draws=1, with_text=True, negatives=1, resamples=5)
    assert "with its name (exemplars count 0.5) and 1 other class(es) as negatives" in result["protocol"]


def test_another_file_that_lists_the_asked_picture_does_not_show_it(tmp_path):
    path = write_set(tmp_path, [(0, "a", BOX)])
    detector = FakeDetector({"0.png": [(XYXY, 0.9, "a")]})
    assert evaluate_oneshot(detector, path, tmp_path, exemplars=path)["unasked"] == 1
    assert detector.exemplars == []


def test_another_file_must_have_the_classes(tmp_path):
    path = write_set(tmp_path / "asked", [(0, "a", BOX)])
    other = write_set(tmp_path / "shown", [], names=("a",))
    with pytest.raises(DataError, match="has no class 'b', which is asked"):
        evaluate_oneshot(
            FakeDetector({}), path, tmp_path / "asked", exemplars=other, exemplar_images=tmp_path / "shown"
        )


def test_seen_and_unseen_classes_are_told_apart(tmp_path):
    path = write_set(tmp_path, [(0, "a", BOX), (1, "a", BOX), (2, "b", BOX), (3, "b", BOX)])
    detector = FakeDetector({f"{i}.png": [(XYXY, 0.9, "a")] for i in range(4)})
    result = evaluate_oneshot(detector, path, tmp_path, draws=1, seen=["a"], unseen=["b"], resamples=5)
    assert (result["AP50_seen"], result["AP50_unseen"], result["AP50"]) == (100, 0, 50)
    assert result["ci95_seen"] == [100.0, 100.0] and result["ci95_unseen"] == [0.0, 0.0]
    with pytest.raises(DataError, match="no class 'c'"):
        evaluate_oneshot(detector, path, tmp_path, unseen=["c"])


def test_draws_are_the_same_in_every_run_and_differ_from_one_another(tmp_path):
    path = write_set(tmp_path, [(i, "a", [i, i, 40, 40]) for i in range(12)], n_images=12)
    truth = read_truth(path, tmp_path)

    def drawn(draw, shots=1):
        detector = FakeDetector({})
        ExemplarBank(detector, truth).draw("a", truth["images"][0], shots=shots, draw=draw)
        return shown(detector)

    assert drawn(0) == drawn(0)
    assert len({frozenset(drawn(draw)) for draw in range(6)}) > 2
    assert len(drawn(0, shots=5)) == 5
    assert len(drawn(0, shots=50)) == 11  # all that other pictures have


def test_small_boxes_and_crowds_are_no_exemplars_while_there_are_others(tmp_path):
    boxes = [(0, "a", [0, 0, 9, 9]), (1, "a", BOX), (1, "a", BOX, 1), (2, "b", [0, 0, 9, 9]), (2, "b", [0, 0, 0, 9])]
    bank = ExemplarBank(FakeDetector({}), read_truth(write_set(tmp_path, boxes), tmp_path))
    assert [a["bbox"] for a in bank.boxes["a"]] == [BOX]
    assert [a["bbox"] for a in bank.boxes["b"]] == [[0, 0, 9, 9]]


def test_of_many_boxes_a_fixed_part_is_drawn_from(tmp_path):
    boxes = [(0, "a", [0, 0, 20 + i / 100, 20]) for i in range(MAX_EXEMPLARS + 50)]
    truth = read_truth(write_set(tmp_path, boxes), tmp_path)
    banks = [ExemplarBank(FakeDetector({}), truth) for _ in range(2)]
    assert len(banks[0].boxes["a"]) == MAX_EXEMPLARS and banks[0].boxes == banks[1].boxes


def test_exemplars_that_cannot_be_read_are_passed_over_and_told(tmp_path):
    path = write_set(tmp_path, [(0, "a", BOX), (1, "a", BOX), (2, "a", [500, 500, 40, 40]), (3, "a", BOX)])
    (tmp_path / "1.png").write_bytes(b"no picture")
    detector = FakeDetector({f"{i}.png": [(XYXY, 0.9, "a")] for i in range(4)})
    result = evaluate_oneshot(detector, path, tmp_path, shots=3, draws=1, resamples=5)
    assert len(result["broken"]) == 1 and "1.png" in result["broken"][0]
    assert result["unasked"] == 0


@pytest.mark.parametrize("n_images, boxes", [(0, []), (1, []), (1, [(0, "a", BOX)])])
def test_an_empty_set_and_a_set_of_one_picture(tmp_path, n_images, boxes):
    result = evaluate_oneshot(FakeDetector({}), write_set(tmp_path, boxes, n_images), tmp_path)
    assert result["n_images"] == n_images and result["AP50"] is None and len(result["notes"]) == n_images
    assert result["unasked"] == len(boxes)


@pytest.mark.parametrize("setting", [{"shots": 0}, {"draws": 0}])
def test_nothing_to_draw_is_refused(tmp_path, setting):
    with pytest.raises(DataError, match="at least 1"):
        evaluate_oneshot(FakeDetector({}), write_set(tmp_path, []), tmp_path, **setting)


@pytest.mark.parametrize("shots", [1, 3])
def test_a_real_detector_is_asked(tmp_path, detector, shots):
    shapes = write_shapes(tmp_path / "shapes", 6)
    result = evaluate_oneshot(detector, shapes, shapes.parent / "images", shots=shots, draws=2, resamples=5)
    assert 0 <= result["AP50"] <= 100 and set(result["per_class"]) <= set(NAMES)
    again = evaluate_oneshot(detector, shapes, shapes.parent / "images", shots=shots, draws=2, resamples=5)
    assert json.dumps(result.to_json()) == json.dumps(again.to_json())


def test_several_shots_are_the_robust_mean_of_each(tmp_path, detector):
    shapes = write_shapes(tmp_path / "shapes", 12)
    truth = read_truth(shapes, shapes.parent / "images")
    bank = ExemplarBank(detector, truth)
    one, many = (bank.draw(NAMES[0], truth["images"][0], shots=shots, draw=0) for shots in (1, 2))
    assert one @ many < 0.9999
    assert torch.equal(one, bank.draw(NAMES[0], truth["images"][0], shots=1, draw=0))
