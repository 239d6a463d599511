"""`eval detect` and `eval oneshot` of masks, from pictures to figures."""

import numpy as np
import pytest
from fake_detector import FakeDetector
from picture_files import noise
from training_data import write_json, write_shapes

from owl_swin.data.label_maps import IGNORED, LabelledPicture, LabelMaps
from owl_swin.data.truth import read_truth
from owl_swin.errors import DataError, QueryError
from owl_swin.evaluation.detection import evaluate_detection
from owl_swin.evaluation.exemplar_bank import areas_as_boxes
from owl_swin.evaluation.lvis import evaluate_lvis
from owl_swin.evaluation.map_calibration import collect_pixels, evaluate_map_calibration, queries_by_exemplar
from owl_swin.evaluation.mask_precision import mask_iou
from owl_swin.evaluation.odinw import evaluate_odinw
from owl_swin.evaluation.oneshot import evaluate_oneshot
from owl_swin.evaluation.open_vocabulary import evaluate_split
from owl_swin.evaluation.semantic import evaluate_segmentation
from owl_swin.evaluation.sets import coco_rows, encode_set
from owl_swin.rle import decode_rle, encode_rle
from owl_swin.semantic_map import NOTHING

pytestmark = pytest.mark.numeric

HW = (60, 80)


def rectangle(x0, y0, x1, y1, hw=HW):
    mask = np.zeros(hw, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def write_set(folder, things, n_images=2, hw=HW, sizes=True):
    """A set of grey pictures; a thing is (picture, name, box xyxy, mask or None)."""
    folder.mkdir(exist_ok=True)
    names = ["cup", "Tür"]
    annotations = [
        {"id": i, "image_id": image, "category_id": names.index(name) + 1, "iscrowd": 0}
        | {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
        | ({} if mask is None else {"segmentation": encode_rle(mask)})
        for i, (image, name, box, mask) in enumerate(things, start=1)
    ]
    images = [{"id": i, "file_name": f"{i}.png", "width": hw[1], "height": hw[0]} for i in range(1, n_images + 1)]
    for record in images:
        noise(*HW).save(folder / record["file_name"])
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    return write_json(folder / "set.json", {"images": images, "annotations": annotations, "categories": categories})


BOX = (10, 10, 50, 40)


def test_masks_are_measured_apart_from_their_boxes(tmp_path):
    # Boxes are right. Masks are the left halves: of the first thing exactly, of the second half of what is wanted.
    things = [(1, "cup", BOX, rectangle(10, 10, 30, 40)), (2, "Tür", BOX, rectangle(*BOX))]
    path = write_set(tmp_path, things)
    told = {"1.png": [(BOX, 0.9, "cup")], "2.png": [(BOX, 0.8, "Tür"), ((0, 0, 9, 9), 0.3, "Tür")]}
    report = evaluate_detection(FakeDetector(told), path, tmp_path, masks=True, draws=10)
    assert report.per_class == {"cup": 100.0, "Tür": 100.0}
    assert report["AP50"] == 100 and report["AP75"] == 50 and report["AP"] == 55
    assert report["AP_box"] == report["AP50_box"] == 100
    assert report["AP_boundary"] < report["AP"] and report["mask_iou"] == 75
    assert report["ci95_mask_iou"] == [50, 100] and report["ci95"] and report["ci95_box"] and report["ci95_boundary"]
    assert report["protocol"].startswith("COCO mask AP, ") and not report.notes
    boxes = evaluate_detection(FakeDetector(told), path, tmp_path, draws=10)
    assert boxes["AP"] == 100 and "mask_iou" not in boxes


def test_answers_are_in_the_pixels_of_the_annotations(tmp_path):
    larger = (180, 160)  # of a picture that is stored smaller, and squashed
    mask = rectangle(20, 30, 60, 120, larger)
    path = write_set(tmp_path, [(1, "cup", (20, 30, 100, 120), mask)], hw=larger)
    truth = read_truth(path, tmp_path, masks=True)
    detector = FakeDetector({"1.png": [(BOX, 0.9, "cup")]})
    record, encoded = next(iter(encode_set(detector, truth, [], masks=True)))
    found = detector.detect(encoded, detector.encode_queries(["cup", "Tür"]), top_k=9, masks=True)
    (row,) = coco_rows(found, record, [1, 2])
    assert np.array_equal(decode_rle(row["segmentation"]), mask) and row["bbox"] == [20, 30, 80, 90]


def test_without_right_boxes_masks_have_no_overlap(tmp_path):
    path = write_set(tmp_path, [(1, "cup", BOX, rectangle(*BOX))])
    truth = read_truth(path, tmp_path, masks=True)
    assert mask_iou(truth, []) == (None, None)
    report = evaluate_detection(FakeDetector({}), path, tmp_path, masks=True, draws=5)
    assert report["AP50"] == 0 and report["mask_iou"] is None and report["ci95"] == [0, 0]


def test_masks_by_exemplars(tmp_path):
    things = [(i, "cup", BOX, rectangle(10, 10, 30, 40)) for i in (1, 2)]
    path = write_set(tmp_path, things)
    told = {"1.png": [(BOX, 0.9, "cup")], "2.png": [(BOX, 0.8, "cup")]}
    report = evaluate_oneshot(FakeDetector(told), path, tmp_path, masks=True, draws=2, resamples=5)
    assert report["AP"] == report["AP_box"] == report["AP50_boundary"] == 100
    assert report["protocol"].startswith("one-shot COCO mask AP")
    other = write_set(tmp_path / "shown", [(1, "cup", BOX, None), (1, "Tür", BOX, None)])
    settings = {"exemplars": other, "exemplar_images": other.parent, "draws": 1, "resamples": 5}
    assert evaluate_oneshot(FakeDetector(told), path, tmp_path, masks=True, **settings)["AP"] == 100


def evaluate_parts(detector, path, images, **settings):
    """The split of the set's two classes."""
    return evaluate_split(detector, path, images, base=["cup"], novel=["Tür"], **settings)


def evaluate_folder(detector, path, images, **settings):
    """The folder of the set as one of many."""
    return evaluate_odinw(detector, path.parent, split=path.stem, **settings)


@pytest.mark.parametrize(
    "evaluate, beside",
    [(evaluate_lvis, ["APf"]), (evaluate_parts, ["AP50_base", "AP50_harmonic"]), (evaluate_folder, [])],
)
def test_other_protocols_measure_masks_with_edges_and_boxes_beside(evaluate, beside, tmp_path):
    things = [(1, "cup", BOX, rectangle(10, 10, 30, 40)), (2, "Tür", BOX, rectangle(*BOX))]
    path = write_set(tmp_path, things)
    told = {"1.png": [(BOX, 0.9, "cup")], "2.png": [(BOX, 0.8, "Tür")]}
    result = evaluate(FakeDetector(told), path, tmp_path, masks=True, draws=5)
    assert result["AP"] == 55 and result["AP_box"] == result["AP50_box"] == 100 and result["mask_iou"] == 75
    assert result["AP_boundary"] < 55 and "mask AP" in result["protocol"]
    assert result["ci95"] == result["ci95_box"] == [100, 100] and result["ci95_boundary"]
    for figure in beside:
        assert {figure, f"{figure}_box", f"{figure}_boundary"} <= set(result)
    boxes = evaluate(FakeDetector(told), path, tmp_path, draws=5)
    assert boxes["AP"] == 100 and "mask_iou" not in boxes and "box AP" in boxes["protocol"]


@pytest.mark.parametrize(
    "evaluate", [evaluate_detection, evaluate_oneshot, evaluate_lvis, evaluate_parts, evaluate_folder]
)
def test_a_model_or_a_set_without_masks_is_refused(evaluate, detector, masked_detector, tmp_path):
    path = write_shapes(tmp_path / "shapes", 3)
    with pytest.raises(QueryError, match="mask"):
        evaluate(detector, path, path.parent / "images", masks=True)
    with pytest.raises(DataError, match=r"none of its .* has a mask"):
        evaluate(masked_detector, path, path.parent / "images", masks=True)


def test_a_real_detector_finds_masks_whole_and_in_tiles(masked_detector, tmp_path):
    path = write_set(tmp_path, [(1, "cup", BOX, rectangle(*BOX)), (2, "Tür", BOX, rectangle(*BOX))])
    for tiles in (None, 40):
        report = evaluate_detection(masked_detector, path, tmp_path, masks=True, tiles=tiles, draws=5)
        assert 0 <= report["AP"] <= report["AP50"] <= 100 and not report.broken


def test_maps_of_exemplars_are_asked_for_what_other_pictures_show(masked_detector, tmp_path):
    first, second = np.full(HW, IGNORED, np.int32), np.full(HW, NOTHING, np.int32)
    first[5:25, 10:40] = first[40:45, 60:70] = second[30:50, 20:60] = 0  # a cup in two areas, and in one
    second[:10, :30] = 1  # a door, which no other picture has
    pictures = []
    for i, labels in enumerate((first, second)):
        noise(*HW).save(tmp_path / f"{i}.png")
        pictures.append(LabelledPicture(tmp_path / f"{i}.png", lambda labels=labels: labels))
    maps = LabelMaps(("cup", "Tür"), pictures, has_nothing=True)
    boxes = [(a["image_id"], a["category_id"], a["bbox"]) for a in areas_as_boxes(maps)["annotations"]]
    assert boxes == [(0, 0, [10, 5, 30, 20]), (1, 0, [20, 30, 40, 20]), (1, 1, [0, 0, 30, 10])]
    queries = queries_by_exemplar(masked_detector, maps, [])
    assert [queries(place).names for place in (0, 1)] == [("cup", "Tür"), ("cup",)]
    answers = collect_pixels(masked_detector, maps, queries)
    assert answers.table[..., 1].sum(1).tolist() == [600 + 50, 60 * 80 - 300] and not answers.broken


def test_empty_sets_and_a_picture_of_one_row(masked_detector, tmp_path):
    noise(1, 4000).save(tmp_path / "1.png")
    category, record = {"id": 1, "name": "red_cup"}, {"id": 1, "file_name": "1.png"}
    thing = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 0, 500, 1]}
    thing["segmentation"] = [[10, 0, 510, 0, 510, 1, 10, 1]]
    for images, annotations in (([], []), ([record], []), ([record], [thing])):
        path = write_json(
            tmp_path / "set.json", {"images": images, "annotations": annotations, "categories": [category]}
        )
        found = evaluate_detection(masked_detector, path, tmp_path, masks=True, draws=5)
        maps = evaluate_segmentation(masked_detector, path, tmp_path, draws=5)
        scores, _ = evaluate_map_calibration(masked_detector, path, tmp_path, draws=5)
        assert (found["AP50"] is None) == (not annotations)
        assert (maps["mIoU"] is None) == (scores["d_ece"] is None) == (not images)
        assert maps["n_pixels"] == scores["n_pixels"] == 4000 * len(images)
    write_json(path, {"images": [record], "annotations": [], "categories": []})
    with pytest.raises(DataError, match="has no classes"):
        evaluate_segmentation(masked_detector, path, tmp_path)
