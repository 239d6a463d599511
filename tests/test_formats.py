"""Detections in the forms that other programs read."""

import json

import pytest
import torch

from owl_swin.formats import to_coco, to_fiftyone, to_label_studio, to_record
from owl_swin.types import Detections


def found(*rows, names=("cat", "dog"), image_hw=(100, 200)) -> Detections:
    """Detections from rows of (label, score, x0, y0, x1, y1)."""
    table = torch.tensor(rows).view(len(rows), 6)
    labels = table[:, 0].long()
    return Detections(table[:, 2:], table[:, 1], labels, names, image_hw, labels)


ONE = found([1, 0.75, 10, 20, 60, 45], [0, 0.5, 0, 0, 200, 100])
TWO = found([0, 0.25, 1, 2, 3, 4], names=("cat", "mug"), image_hw=(10, 10))
NOTHING = found(image_hw=(30, 40))


def test_a_record_of_nothing_found():
    assert to_record("a.jpg", NOTHING) == {"image": "a.jpg", "width": 40, "height": 30, "detections": []}


def test_a_record_has_the_picture_its_size_and_its_rows():
    assert to_record("a.jpg", ONE) == {
        "image": "a.jpg",
        "width": 200,
        "height": 100,
        "detections": [
            {"label": "dog", "score": 0.75, "box": {"xmin": 10.0, "ymin": 20.0, "xmax": 60.0, "ymax": 45.0}},
            {"label": "cat", "score": 0.5, "box": {"xmin": 0.0, "ymin": 0.0, "xmax": 200.0, "ymax": 100.0}},
        ],
    }


def test_coco_of_no_pictures():
    assert to_coco([], []) == {"images": [], "categories": [], "annotations": []}


def test_coco_counts_ids_from_one_and_writes_corner_and_size():
    assert to_coco(["a.jpg", "b.jpg", "c.jpg"], [ONE, NOTHING, TWO]) == {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 200, "height": 100},
            {"id": 2, "file_name": "b.jpg", "width": 40, "height": 30},
            {"id": 3, "file_name": "c.jpg", "width": 10, "height": 10},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "mug"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 2,
                "bbox": [10.0, 20.0, 50.0, 25.0],
                "area": 1250.0,
                "iscrowd": 0,
                "score": 0.75,
            },
            {
                "id": 2,
                "image_id": 1,
                "category_id": 1,
                "bbox": [0.0, 0.0, 200.0, 100.0],
                "area": 20000.0,
                "iscrowd": 0,
                "score": 0.5,
            },
            {
                "id": 3,
                "image_id": 3,
                "category_id": 1,
                "bbox": [1.0, 2.0, 2.0, 2.0],
                "area": 4.0,
                "iscrowd": 0,
                "score": 0.25,
            },
        ],
    }


def test_coco_makes_one_category_of_a_name_that_was_asked_twice():
    twice = found([0, 0.5, 0, 0, 1, 1], [1, 0.5, 0, 0, 1, 1], names=("cat", "cat"))
    coco = to_coco(["a.jpg"], [twice])
    assert coco["categories"] == [{"id": 1, "name": "cat"}]
    assert [row["category_id"] for row in coco["annotations"]] == [1, 1]


def test_label_studio_writes_percent_of_the_picture():
    (task,) = to_label_studio(["a.jpg"], [ONE], model_version="nano")
    (prediction,) = task["predictions"]
    assert task["data"] == {"image": "a.jpg"}
    assert prediction["model_version"] == "nano"
    assert prediction["score"] == 0.75
    assert prediction["result"][0] == {
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": 200,
        "original_height": 100,
        "value": {
            "x": 5.0,
            "y": 20.0,
            "width": 25.0,
            "height": 25.0,
            "rotation": 0,
            "rectanglelabels": ["dog"],
        },
        "score": 0.75,
    }


def test_label_studio_of_nothing_found_is_a_task_without_boxes():
    (task,) = to_label_studio(["a.jpg"], [NOTHING])
    assert task["predictions"] == [{"model_version": "owl_swin", "score": 0.0, "result": []}]


@pytest.mark.parametrize("form", [to_coco, to_label_studio])
def test_every_form_is_plain_json(form):
    assert json.loads(json.dumps(form(["a.jpg"], [ONE]))) == form(["a.jpg"], [ONE])


@pytest.mark.parametrize("form", [to_coco, to_label_studio])
def test_a_name_for_each_result(form):
    with pytest.raises(ValueError, match=r"zip\(\)"):
        form(["a.jpg"], [ONE, TWO])


def test_fiftyone_s_boxes_are_corner_and_size_in_parts_of_the_picture():
    assert to_fiftyone(NOTHING) == []
    assert to_fiftyone(ONE) == [
        {"label": "dog", "bounding_box": [0.05, 0.2, 0.25, 0.25], "confidence": 0.75},
        {"label": "cat", "bounding_box": [0.0, 0.0, 1.0, 1.0], "confidence": 0.5},
    ]
