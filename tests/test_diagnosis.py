"""Where a detector fails, against a picture whose answers are known beforehand."""

import json
from dataclasses import dataclass

import pytest
import torch
from PIL import Image

from owl_swin.detections import Detections
from owl_swin.evaluation.diagnosis import evaluate_diagnosis
from owl_swin.image import open_image
from owl_swin.types import QueryEmbeddings

# Of 100 px: a cat found and named, a dog found and called a cat, a small cat that no patch reaches.
TRUTH = [("cat", [0, 0, 40, 40]), ("dog", [50, 50, 50, 50]), ("cat", [90, 0, 8, 8])]
PATCHES = torch.tensor([[0.0, 0, 40, 36], [50, 50, 100, 100], [0, 0, 100, 100]])
LOGITS = torch.tensor([[3.0, -3.0], [1.0, 0.5], [-5.0, -5.0]])  # of cat and dog


@dataclass
class Encoded:
    image_hw: tuple[int, int]

    def boxes_px(self):
        return PATCHES


class Known:
    """Answers of three patches, of which the first is the most object-like."""

    def encode_queries(self, queries):
        return QueryEmbeddings(
            torch.zeros(len(queries), 1), tuple(q if isinstance(q, str) else q.name for q in queries)
        )

    def encode_images(self, pictures, *, batch_size, masks=False):
        return [Encoded((open_image(picture).height, open_image(picture).width)) for picture in pictures]

    def score(self, encoded, queries):
        return LOGITS

    def detect(self, encoded, queries, *, threshold, nms_iou=None, top_k=None):
        if queries is None:
            rows = [(0, 0, 0.9), (2, 0, 0.5)][:top_k]
        else:
            scores = LOGITS.sigmoid()
            rows = [(p, q, scores[p, q].item()) for p in range(3) for q in range(2) if scores[p, q] >= threshold]
            rows.sort(key=lambda row: -row[2])
        patches = torch.tensor([row[0] for row in rows], dtype=torch.long)
        return Detections(
            PATCHES[patches],
            torch.tensor([row[2] for row in rows]),
            torch.tensor([row[1] for row in rows], dtype=torch.long),
            ("object",) if queries is None else queries.names,
            encoded.image_hw,
            patches,
        )


@pytest.fixture
def report(tmp_path):
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    names = ("cat", "dog")
    annotations = [
        {"id": i, "image_id": 1, "category_id": names.index(name), "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, (name, box) in enumerate(TRUTH)
    ]
    data = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
    }
    (tmp_path / "set.json").write_text(json.dumps(data))
    return evaluate_diagnosis(Known(), tmp_path / "set.json", tmp_path, threshold=0.6)


def test_boxes_are_reached_named_and_shown(report):
    third = pytest.approx(100 / 3)
    assert report["reached"] == pytest.approx(200 / 3)
    assert report["class_free_50"] == report["class_free_75"] == third  # the dog's box is not among the object-like
    assert report["named"] == 50 and report["named_mean"] == 50 and report["per_class"] == {"cat": 100, "dog": 0}
    # Past 0.6: the cat, the dog as a cat, and the dog as a dog.
    assert report["shown"] == pytest.approx(200 / 3) and report["wrong_per_picture"] == 1


def test_recall_goes_by_the_share_of_the_picture(report):
    assert report["class_free_50_0.05_to_0.1"] == 0
    assert report["class_free_50_0.4_to_0.6"] == 50
    assert report["class_free_50_0.1_to_0.2"] is None


def test_the_threshold_is_stated(report):
    assert "threshold 0.6" in report["protocol"] and report["n_boxes"] == 3
