"""Average precision of masks against pycocotools, and the masks of annotation files."""

import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools import mask as pycocotools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from training_data import grey_noise, write_json

from owl_swin.data.outlines import outline_rle
from owl_swin.data.truth import read_truth
from owl_swin.errors import DataError
from owl_swin.evaluation.precision import average_precision
from owl_swin.rle import decode_rle, encode_rle, rle_counts

pytestmark = pytest.mark.numeric

HW = (120, 160)


def disc(x, y, radius, hw=HW):
    rows, columns = np.ogrid[: hw[0], : hw[1]]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def polygon(x, y, radius, points=9):
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1).ravel().tolist()


@pytest.fixture(scope="module")
def data():
    """A COCO file's content with polygons, run lengths of both kinds and crowds, and results like them."""
    rng = np.random.default_rng(3)
    annotations, rows = [], []
    for image in range(1, 17):
        for number in range(rng.integers(1, 7)):
            x, y, radius = rng.uniform(20, 140), rng.uniform(20, 100), rng.choice([6, 14, 25, 58])
            mask = encode_rle(disc(x, y, radius))
            forms = {
                0: [polygon(x, y, radius)],
                1: [polygon(x, y, radius * 0.8), polygon(x + radius, y, radius / 2)],
                2: mask,
                3: mask | {"counts": rle_counts(mask).tolist()},
            }
            annotation = {"id": len(annotations) + 1, "image_id": image, "category_id": int(rng.integers(1, 4))}
            annotation |= {"segmentation": forms[int(rng.integers(4))], "iscrowd": int(number == 4)}
            own = outline_rle(annotation["segmentation"], HW)
            box = pycocotools.toBbox(own | {"counts": own["counts"].encode()}).tolist()
            annotation |= {"area": float(decode_rle(own).sum()), "bbox": box}
            annotations.append(annotation)
            for _ in range(rng.integers(0, 4)):
                spread = rng.choice([0.01, 0.2])
                dx, dy, factor = rng.normal([0, 0, 1], [radius * spread, radius * spread, spread]).tolist()
                row = {"image_id": image, "category_id": annotation["category_id"], "score": float(rng.random())}
                found = encode_rle(disc(x + dx, y + dy, radius * factor))
                box = [x + dx - radius, y + dy - radius, 2 * radius, 2 * radius]
                rows.append(row | {"segmentation": found, "bbox": box})
    images = [{"id": i, "file_name": f"{i}.png", "width": HW[1], "height": HW[0]} for i in range(1, 17)]
    categories = [{"id": i, "name": name} for i, name in enumerate(("cup", "Tür", "a b"), start=1)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}, rows


def write(folder, content):
    path = write_json(folder / "set.json", content)
    for record in content["images"]:
        grey_noise(record.get("height") or HW[0], record.get("width") or HW[1]).save(folder / record["file_name"])
    return path


def band(mask):
    """The pixels of a mask that are within 2 % of the picture's diagonal of its edge, by the definition."""
    height, width = mask.shape
    steps = max(1, round(0.02 * np.hypot(height, width)))
    inner = np.pad(mask, 1)
    for _ in range(steps):
        around = np.pad(inner, 1)
        inner = np.all([around[y : y + height + 2, x : x + width + 2] for y in range(3) for x in range(3)], 0)
    return mask & ~inner[1:-1, 1:-1]


class BoundaryEval(COCOeval):
    """pycocotools with boundary IoU: the smaller of that of the masks and that of their bands."""

    def computeIoU(self, image, category):
        ious = super().computeIoU(image, category)
        truth = self._gts[image, category]
        answers = sorted(self._dts[image, category], key=lambda row: -row["score"])[:100]
        for i, row in enumerate(answers if len(ious) else ()):
            for j, annotation in enumerate(truth):
                if annotation["iscrowd"]:
                    continue
                a, b = (band(decode_rle(one["segmentation"])) for one in (row, annotation))
                ious[i, j] = min(ious[i, j], (a & b).sum() / max((a | b).sum(), 1))
        return ious


def of_pycocotools(content, rows, evaluation=COCOeval):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(content)
        truth.createIndex()
        answers = truth.loadRes([{k: v for k, v in copy.deepcopy(row).items() if k != "bbox"} for row in rows])
        found = evaluation(truth, answers, "segm")
        found.evaluate()
        found.accumulate()
        found.summarize()
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
    return dict(zip(names, (100 * found.stats[:6]).tolist(), strict=True))


@pytest.mark.parametrize("by, evaluation", [("segm", COCOeval), ("boundary", BoundaryEval)])
def test_precision_of_masks_is_that_of_pycocotools(data, tmp_path, by, evaluation):
    content, rows = data
    truth = read_truth(write(tmp_path, content), tmp_path, masks=True)
    found = average_precision(truth, rows, by=by, draws=20)
    assert found.figures == pytest.approx(of_pycocotools(content, rows, evaluation), abs=0.006)
    assert 10 < found.figures["AP"] < 90 and len(set(found.figures.values())) == 6
    low, high = found.intervals["AP50"]
    assert low < found.figures["AP50"] < high
    assert sorted(found.per_class) == ["Tür", "a b", "cup"]


def one_thing(**changes):
    """A set of a picture with a square in it, whose annotation is changed."""
    square = np.zeros(HW, dtype=bool)
    square[10:50, 20:80] = True
    annotation = {
        "id": 7,
        "image_id": 1,
        "category_id": 1,
        "bbox": [20, 10, 60, 40],
        "segmentation": encode_rle(square),
    }
    images = [{"id": 1, "file_name": "1.png", "width": HW[1], "height": HW[0]}]
    categories = [{"id": 1, "name": "cup"}]
    return {"images": images, "annotations": [annotation | changes], "categories": categories}


@pytest.mark.parametrize(
    "segmentation",
    [
        [[20, 10, 80, 10, 80, 50, 20, 50]],
        [20, 10, 80, 10, 80, 50, 20, 50],
        [[20, 10, 50, 10, 50, 50, 20, 50], [50, 10, 80, 10, 80, 50, 50, 50], [1, 1]],
    ],
    ids=["polygon", "flat polygon", "two polygons and a point"],
)
def test_masks_of_all_forms_are_the_same(tmp_path, segmentation):
    expected, given = one_thing(), one_thing(segmentation=segmentation)
    assert outline_rle(segmentation, HW) == expected["annotations"][0]["segmentation"]
    truth = read_truth(write(tmp_path, given), tmp_path, masks=True)
    assert truth["annotations"][0]["area"] == 2400 and truth["notes"] == []
    assert "segmentation" not in read_truth(tmp_path / "set.json", tmp_path)["annotations"][0]


def test_the_stated_area_says_the_size(tmp_path):
    truth = read_truth(write(tmp_path, one_thing(area=50.0)), tmp_path, masks=True)
    assert truth["annotations"][0]["area"] == 50


def test_a_picture_without_a_size_has_that_of_its_masks(tmp_path):
    content = one_thing()
    content["images"][0] = {"id": 1, "file_name": "1.png"}
    other = {"id": 2, "file_name": "2.png"}
    content["images"].append(other)
    write(tmp_path, content)
    grey_noise(33, 44).save(tmp_path / "2.png")
    images = read_truth(tmp_path / "set.json", tmp_path, masks=True)["images"]
    assert [(image["width"], image["height"]) for image in images] == [(160, 120), (44, 33)]


@pytest.mark.parametrize(
    "segmentation, reason",
    [
        ({"size": [120, 160], "counts": [5, 3]}, "its counts say otherwise"),
        ({"size": [120, 160], "counts": "~~"}, "no text of COCO's"),
        ({"size": [120, 160], "counts": [19200]}, "an empty mask"),
        ({"size": [12, 16], "counts": [10, 182]}, "16x12 pixels in a picture of 160x120"),
        ({"counts": [10, 182]}, "needs a size"),
        ([[1, 2, 3, 4]], "three points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "finite numbers"),
        ([["a", 2, 3, 4, 5, 6]], "numbers"),
        ([[1, 2, 1e12, 4, 5, 6]], "far out"),
        ([[-60, -60, -50, -60, -50, -50]], "an empty mask"),
        ("text", "polygons or run lengths"),
    ],
)
def test_a_damaged_mask_is_named_and_neither_found_nor_false(tmp_path, segmentation, reason):
    content = one_thing()
    content["annotations"].append(
        {"id": 8, "image_id": 1, "category_id": 1, "bbox": [90, 60, 30, 30], "segmentation": segmentation}
    )
    truth = read_truth(write(tmp_path, content), tmp_path, masks=True)
    assert len(truth["notes"]) == 1 and "annotation 8: " in truth["notes"][0] and reason in truth["notes"][0]
    square = {"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": truth["annotations"][0]["segmentation"]}
    inside = np.zeros(HW, dtype=bool)
    inside[65:80, 95:110] = True
    found = average_precision(truth, [square, square | {"score": 0.9, "segmentation": encode_rle(inside)}], by="segm")
    assert found.figures["AP"] == 100


@pytest.mark.parametrize("changes", [{"segmentation": []}, {"segmentation": None}, {"segmentation": [[1, 2]]}])
def test_a_set_without_masks_is_refused(tmp_path, changes):
    with pytest.raises(DataError, match=r"none of its 1 things has a mask .*; its boxes alone can be measured$"):
        read_truth(write(tmp_path, one_thing(**changes)), tmp_path, masks=True)


def test_things_without_a_mask_are_counted(tmp_path):
    content = one_thing()
    content["annotations"].append({"id": 8, "image_id": 1, "category_id": 1, "bbox": [90, 60, 30, 30]})
    truth = read_truth(write(tmp_path, content), tmp_path, masks=True)
    assert truth["notes"] == ["1 of 2 things have no mask and are neither to be found nor false"]
    assert [a["iscrowd"] for a in truth["annotations"]] == [0, 1]
