"""Sets in other forms than COCO's, as an evaluation compares answers with them."""

import json
import logging

import pytest
from fake_detector import FakeDetector
from picture_files import turned
from PIL import Image
from test_readers import picture, voc_object, write_voc

from owl_swin.data.truth import counted_boxes, one_category_a_name, read_truth
from owl_swin.errors import DataError
from owl_swin.evaluation.absence import evaluate_absence
from owl_swin.evaluation.detection import evaluate_detection
from owl_swin.evaluation.lvis import scored_pairs


def write_yolo(root, names="[cat, 'sofa, couch']", **labels):
    """A YOLO set of pictures of 100 x 50 with their label files."""
    (root / "labels").mkdir(parents=True)
    (root / "data.yaml").write_text(f"names: {names}\n")
    for stem, lines in labels.items():
        picture(root / "images" / f"{stem}.png")
        (root / "labels" / f"{stem}.txt").write_text(lines)
    return root / "data.yaml"


def test_boxes_of_a_yolo_set_are_in_pixels_of_the_pictures(tmp_path):
    path = write_yolo(tmp_path, a="1 0.2 0.4 0.2 0.4\n", b="")
    truth = read_truth(path, tmp_path / "images")
    assert [(r["file_name"], r["width"], r["height"]) for r in truth["images"]] == [
        ("a.png", 100, 50),
        ("b.png", 100, 50),
    ]
    [annotation] = truth["annotations"]
    assert annotation["bbox"] == pytest.approx([10, 10, 20, 20], abs=1e-4) and annotation["area"] == pytest.approx(400)
    detector = FakeDetector({"a.png": [([10, 10, 30, 30], 0.9, "sofa, couch")]})
    result = evaluate_detection(detector, path, tmp_path / "images")
    assert result["AP"] == 100 and result["n_images"] == 2 and detector.queries[1].texts == ("sofa", "couch")


def test_boxes_of_a_yolo_set_are_of_the_pictures_as_shown(tmp_path):
    path = write_yolo(tmp_path, a="0 0.5 0.25 1 0.5\n")
    (tmp_path / "images" / "a.png").write_bytes(turned(Image.new("RGB", (100, 50)), 6))
    [annotation] = read_truth(path, tmp_path / "images")["annotations"]
    assert annotation["bbox"] == pytest.approx([0, 0, 100, 25])


def test_what_voc_calls_difficult_is_neither_found_nor_false(tmp_path):
    hard = voc_object("dog", (61, 11, 90, 40), difficult=1)
    root = write_voc(tmp_path, a=voc_object("cat", (11, 11, 30, 30)) + hard, b=voc_object("dog", (11, 11, 30, 30)))
    told = {
        "a.jpg": [([10, 10, 30, 30], 0.9, "cat"), ([60, 10, 90, 40], 0.95, "dog"), ([0, 0, 9, 9], 0.93, "dog")],
        "b.jpg": [([10, 10, 30, 30], 0.9, "dog")],
    }
    result = evaluate_detection(FakeDetector(told), root, root / "JPEGImages")
    assert result["AP"] == 100 and result["n_boxes"] == 2 and result["notes"] == []


def test_a_guessed_box_that_is_not_sure_is_neither_found_nor_false(tmp_path):
    path = write_yolo(tmp_path, a="0 0.2 0.4 0.2 0.4 0.9\n0 0.8 0.4 0.2 0.4 0.3\n", b="1 0.8 0.4 0.2 0.4 0.1\n")
    told = {
        "a.png": [([10, 10, 30, 30], 0.9, "cat"), ([70, 10, 90, 30], 0.95, "cat")],
        "b.png": [([70, 10, 90, 30], 0.95, "sofa, couch"), ([0, 0, 20, 20], 0.8, "cat")],
    }
    result = evaluate_detection(FakeDetector(told), path, tmp_path / "images")
    assert result["AP50"] == 100 and result["n_boxes"] == 1
    assert result["notes"][0] == "2 guessed boxes with a score under 0.5 are neither to be found nor false"
    assert evaluate_detection(FakeDetector(told), path, tmp_path / "images", ignore_below=0.2)["n_boxes"] == 2
    # Only a vague box says that b has a sofa: no picture surely has one, and none of the cat's is without.
    answers = evaluate_absence(FakeDetector(told), path, tmp_path / "images")
    assert answers["per_class_auroc"] == {"cat": 100} and answers["auroc_pooled"] == 100


def coco_file(tmp_path, **lists):
    picture(tmp_path / "images" / "a.png")
    boxes = [([10, 10, 20, 20], 0.9), ([70, 10, 20, 20], 0.3), ([40, 10, 20, 20], 0.0)]
    record = {"id": 1, "file_name": "a.png", "width": 100, "height": 50}
    content = {
        "images": [record | lists],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 3 if i == 0 else 5, "bbox": box, "score": score}
            for i, (box, score) in enumerate(boxes)
        ],
    }
    (tmp_path / "set.json").write_text(json.dumps(content))
    return tmp_path / "set.json"


def test_unsure_boxes_of_a_coco_file_are_crowds(tmp_path):
    path = coco_file(tmp_path)
    for least, vague in ((0.5, [0, 1, 1]), (0.1, [0, 0, 1]), (0.0, [0, 0, 1])):
        truth = read_truth(path, tmp_path / "images", ignore_below=least)
        assert [a["iscrowd"] for a in truth["annotations"]] == vague


def test_unsure_boxes_of_an_lvis_file_leave_their_name_open(tmp_path):
    path = coco_file(tmp_path, neg_category_ids=[5])
    truth = read_truth(path, tmp_path / "images")
    assert [a["category_id"] for a in truth["annotations"]] == [3]
    [record] = truth["images"]
    assert record["neg_category_ids"] == [] and record["not_exhaustive_category_ids"] == [5]
    assert scored_pairs(truth) == {(1, 3)}


def test_a_wrong_folder_of_a_voc_set_is_said(tmp_path):
    root = write_voc(tmp_path, a=voc_object())
    with pytest.raises(DataError, match="none of its 1 pictures is there"):
        read_truth(root, tmp_path / "elsewhere")


def test_pictures_that_are_not_there_are_said_before_the_others_are_asked(tmp_path, caplog):
    root = write_voc(tmp_path, a=voc_object(), b=voc_object())
    (root / "JPEGImages" / "b.jpg").unlink()
    with caplog.at_level(logging.WARNING, "owl_swin"):
        read_truth(root, root / "JPEGImages")
    assert "1 of 2 pictures are not there, the first is " in caplog.text and "b.jpg" in caplog.text


def test_categories_of_one_name_are_made_one():
    truth = {
        "images": [],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}, {"id": 8, "name": "cat"}],
        "annotations": [{"category_id": i, "iscrowd": i == 5} for i in (8, 5, 3)],
    }
    one = one_category_a_name(truth)
    assert [c["id"] for c in one["categories"]] == [3, 5]
    assert [a["category_id"] for a in one["annotations"]] == [3, 5, 3] and len(counted_boxes(one)) == 2
