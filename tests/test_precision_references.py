"""Average precision against other hands: pycocotools, and LVIS's rules written out.

Random sets hold what seldom meets: crowds, pictures without boxes or answers, equal scores, boxes without a side, areas
at the borders of the sizes, more answers than count, classes without boxes, and ids in any order, of 0 and beyond 2^32.
"""

import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from owl_swin.evaluation import precision
from owl_swin.evaluation.precision import COCO_IOUS, RECALLS, SIZES, precision_table, resampled_ap50

SIDES = [0, 1, 10, 32, 37, 40, 96, 100]
COUNTED = 20


def random_set(seed, *, federated=False):
    rng = np.random.default_rng(seed)
    images = [{"id": i, "width": 300, "height": 300, "file_name": f"{i}.png"} for i in (7, 0, 2**31 + 5, 3, 2**40)]
    classes = [90, 0, 2**33, 5]  # the last has no boxes
    boxes, rows = [], []
    for place, record in enumerate(images):
        for _ in range(0 if place == 1 else rng.integers(0, 9)):
            x, y, w, h = (float(v) for v in (*rng.integers(0, 200, 2), *rng.choice(SIDES, 2)))
            crowd = int(not federated and rng.random() < 0.15)
            box = {"image_id": record["id"], "category_id": classes[rng.integers(3)], "iscrowd": crowd}
            boxes.append({**box, "bbox": [x, y, w, h], "area": w * h})
        own = [box for box in boxes if box["image_id"] == record["id"]]
        for _ in range(rng.choice([0, 5, 40])):
            near = own[rng.integers(len(own))] if own and rng.random() < 0.7 else None
            box = [*rng.integers(0, 200, 2), *rng.choice(SIDES, 2)] if near is None else near["bbox"]
            moved = (np.array(box) + rng.choice([0, 3]) * rng.normal(size=4)).clip(0).round(2).tolist()
            category = classes[rng.integers(4)] if near is None or rng.random() < 0.3 else near["category_id"]
            score = float(rng.choice([0.1, 0.5, 0.5, rng.random()]))
            rows.append({"image_id": record["id"], "category_id": category, "bbox": moved, "score": score})
        if federated:
            here = {box["category_id"] for box in own}
            record["neg_category_ids"] = [c for c in classes if c not in here and rng.random() < 0.5]
            record["not_exhaustive_category_ids"] = [c for c in classes if rng.random() < 0.3]
    categories = [{"id": c, "name": f"class {c}"} for c in classes]
    return {"images": images, "annotations": boxes, "categories": categories}, rows


@pytest.mark.parametrize("seed", range(8))
def test_precision_of_boxes_is_that_of_pycocotools(seed):
    truth, rows = random_set(seed)
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        # To pycocotools the annotation of id 0 is none.
        numbered = [{**box, "id": i} for i, box in enumerate(copy.deepcopy(truth["annotations"]), start=1)]
        known.dataset = {**truth, "annotations": numbered}
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(copy.deepcopy(rows)), "bbox")
        evaluation.params.maxDets = [COUNTED]
        evaluation.evaluate()
        evaluation.accumulate()
    order = [evaluation.params.catIds.index(category["id"]) for category in truth["categories"]]
    expected = evaluation.eval["precision"][..., 0][:, :, order]
    np.testing.assert_allclose(precision_table(truth, rows, max_detections=COUNTED), expected, atol=1e-9)
    assert (expected[..., -1, :] == -1).all() and (expected > 0).any()


@pytest.mark.parametrize("seed", range(4))
def test_precision_by_the_rules_of_lvis_written_out(seed):
    truth, rows = random_set(seed, federated=True)
    found = precision_table(truth, rows, max_detections=COUNTED, lvis=True)
    ranges = [(0, 1e10), *SIZES.values()]
    for column, category in enumerate(truth["categories"]):
        for size, limits in enumerate(ranges):
            for level in (0, 5, 9):
                expected = lvis_precision(truth, rows, category["id"], limits, COCO_IOUS[level])
                np.testing.assert_allclose(found[level, :, column, size], expected, atol=1e-9)
    assert (found > 0).any()


def lvis_precision(truth, rows, category, limits, iou):
    """Precision at each recall, of one class."""
    judged, needed = [], 0
    for record in sorted(truth["images"], key=lambda record: record["id"]):
        own, answers = (
            [one for one in part if (one["image_id"], one["category_id"]) == (record["id"], category)]
            for part in (truth["annotations"], rows)
        )
        if not own and category not in record["neg_category_ids"]:
            continue  # nobody looked
        own.sort(key=lambda box: not limits[0] <= box["area"] <= limits[1])
        inside = [limits[0] <= box["area"] <= limits[1] for box in own]
        needed += sum(inside)
        free = [True] * len(own)
        for answer in sorted(answers, key=lambda row: -row["score"])[:COUNTED]:
            overlaps = [(overlap(answer["bbox"], box["bbox"]), i) for i, box in enumerate(own) if free[i]]
            fits = [(inside[i], value, i) for value, i in overlaps if value >= iou]
            if fits:
                counts, _, chosen = max(fits)
                free[chosen] = False
            else:
                within = limits[0] <= answer["bbox"][2] * answer["bbox"][3] <= limits[1]
                counts = within and category not in record["not_exhaustive_category_ids"]
            if counts:
                judged.append((answer["score"], bool(fits)))
    if not needed:
        return np.full(len(RECALLS), -1.0)
    right = np.array([hit for _, hit in sorted(judged, key=lambda one: -one[0])], dtype=float)
    share = np.maximum.accumulate((right.cumsum() / np.arange(1, len(right) + 1))[::-1])[::-1]
    places = np.searchsorted(right.cumsum() / needed, RECALLS)
    return np.append(share, 0.0)[places]


def overlap(a, b):
    wide, high = (max(0, min(a[i] + a[2 + i], b[i] + b[2 + i]) - max(a[i], b[i])) for i in (0, 1))
    return wide * high / max(a[2] * a[3] + b[2] * b[3] - wide * high, 1e-9)


@pytest.mark.parametrize("lvis", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_every_picture_drawn_once_has_the_precision_of_the_set(seed, lvis, monkeypatch):
    monkeypatch.setattr(precision, "resampled_weights", lambda n_images, draws: np.ones((1, n_images), dtype=int))
    truth, rows = random_set(seed, federated=lvis)
    [drawn] = resampled_ap50(truth, rows, draws=1, max_detections=COUNTED, lvis=lvis)
    table = precision_table(truth, rows, max_detections=COUNTED, lvis=lvis)[0, :, :, 0].mean(0)
    np.testing.assert_allclose(drawn, np.where(table < 0, np.nan, 100 * table))
