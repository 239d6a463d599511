"""Masks in the forms that other programs read, and drawn."""

import json
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from owl_swin.detections import Detections
from owl_swin.formats import to_coco, to_csv, to_dicts, to_fiftyone, to_record, to_video_record, to_voc, to_yolo
from owl_swin.label_studio import label_studio_interface, to_label_studio
from owl_swin.masks import BoxMasks
from owl_swin.render import MASK_OPACITY, draw_detections, label_colour

HW = (60, 80)
# Where `make converters` puts it: it needs other versions of what the tests need.
CONVERTER = Path(__file__).parent.parent / "out" / "converters" / "bin" / "python"


def cross(side=28):
    """Logits of a cross that fills a third of the box both ways."""
    third = (torch.arange(side) + 0.5 - side / 2).abs() < side / 6
    return torch.where(third | third[:, None], 5.0, -5.0)


def two_parts(side=28):
    columns = (torch.arange(side) < side // 4) | (torch.arange(side) >= side // 2)
    return torch.where(columns.expand(side, side), 5.0, -5.0)


def found(*logits) -> Detections:
    """A thing in each row of boxes, with such logits."""
    n = len(logits)
    boxes = torch.tensor([[10.0, 5.0 + 10 * i, 50.0, 35.0 + 10 * i] for i in range(n)]).view(n, 4)
    maps = torch.stack(logits) if logits else torch.zeros(0, 1, 1)
    labels = torch.arange(n) % 2
    masks = BoxMasks(maps, boxes, HW)
    return Detections(boxes, torch.linspace(0.9, 0.5, n), labels, ("a cat", "b"), HW, labels, masks=masks)


NONE, BOTH, EMPTY = found(), found(cross(), two_parts()), found(torch.full((4, 4), -1.0))


def test_rows_have_run_lengths_only_where_masks_were_asked_for():
    rows = to_dicts(BOTH)
    assert [row["segmentation"] for row in rows] == BOTH.rle()
    for row, mask in zip(json.loads(json.dumps(rows)), BOTH.masks, strict=True):
        assert np.array_equal(coco_masks.decode(row["segmentation"]), mask.numpy())
    assert to_record("a.jpg", BOTH)["detections"] == rows
    assert to_video_record("a.mp4", 0, 0.0, BOTH, [1, None])["detections"][0]["segmentation"] == rows[0]["segmentation"]
    assert to_dicts(replace(BOTH, masks=None)) == [
        {k: v for k, v in row.items() if k != "segmentation"} for row in rows
    ]
    assert to_dicts(NONE) == []


def test_pycocotools_reads_our_coco(tmp_path):
    (tmp_path / "found.json").write_text(json.dumps(to_coco(["a.jpg", "b.jpg", "c.jpg"], [NONE, BOTH, EMPTY])))
    coco = COCO(tmp_path / "found.json")
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[2]))
    assert len(annotations) == 2
    for annotation, mask in zip(annotations, BOTH.masks, strict=True):
        assert np.array_equal(coco.annToMask(annotation), mask.numpy())
        assert annotation["area"] == int(mask.sum()) and annotation["bbox"][2:] == [40, 30]
    (none,) = coco.loadAnns(coco.getAnnIds(imgIds=[3]))
    assert none["area"] == 0 and not coco.annToMask(none).any()
    again = coco.loadRes(to_coco(["a.jpg", "b.jpg", "c.jpg"], [NONE, BOTH, EMPTY])["annotations"])
    assert np.array_equal(again.annToMask(again.anns[1]), BOTH.masks[0].numpy())


def test_label_studio_has_a_polygon_a_part_in_percent_of_the_picture():
    (task,) = to_label_studio(["a.jpg"], [BOTH])
    first, *parts = task["predictions"][0]["result"]
    assert first["type"] == "polygonlabels" and first["from_name"] == "mask" and first["id"] == "mask1"
    assert first["value"]["polygonlabels"] == ["a cat"] and first["value"]["closed"] and first["score"] == 0.9
    assert [part["id"] for part in parts] == ["mask2-1", "mask2-2"] and {part["meta"]["query"] for part in parts} == {1}
    points = np.array(first["value"]["points"]) * (HW[1] / 100, HW[0] / 100)
    assert points.min(0).tolist() == pytest.approx([10, 5]) and points.max(0).tolist() == pytest.approx([50, 35])


# What a project of Label Studio exports as COCO once the predictions of its tasks are accepted.
EXPORT = """
import sys
from label_studio_sdk.converter import Converter
interface, tasks, out = sys.argv[1:]
Converter(interface, project_dir=None, download_resources=False).convert_to_coco(tasks, out, is_dir=False)
"""


@pytest.mark.skipif(not CONVERTER.exists(), reason="NO converter of Label Studio; make converters")
def test_the_converter_of_label_studio_gives_our_masks_and_boxes(tmp_path):
    hw, boxes = (600, 800), torch.tensor([[10.5, 20, 410, 330], [300, 200, 790, 590], [5, 6.25, 90, 80]])
    masks = BoxMasks(torch.stack([cross(), two_parts(), torch.full((28, 28), -1.0)]), boxes, hw)
    names, labels = ("a cat", "Tür & <b>"), torch.tensor([0, 1, 0])
    things = Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), labels, names, hw, labels, masks=masks)
    picture = tmp_path / "Bild ü.png"
    Image.new("RGB", hw[::-1]).save(picture)
    (task,) = to_label_studio([str(picture)], [things])
    (prediction,) = task.pop("predictions")
    accepted = task | {"id": 1, "annotations": [{"id": 1, "result": prediction["result"]}]}
    (tmp_path / "tasks.json").write_text(json.dumps([accepted]))
    (tmp_path / "view.xml").write_text(label_studio_interface(names, masks=True))
    files = [str(tmp_path / name) for name in ("view.xml", "tasks.json", "out")]
    subprocess.run([CONVERTER, "-c", EXPORT, *files], check=True, capture_output=True, text=True)
    coco = COCO(tmp_path / "out" / "result.json")
    own = {category["id"]: category["name"] for category in coco.cats.values()}
    outlined = [one for one in coco.anns.values() if one["segmentation"]]
    (box,) = [one for one in coco.anns.values() if not one["segmentation"]]
    assert box["bbox"] == pytest.approx([5, 6.25, 85, 73.75], abs=1e-3) and own[box["category_id"]] == "a cat"
    for number, name in enumerate(names):
        parts = [coco.annToMask(one) for one in outlined if own[one["category_id"]] == name]
        made, wanted = np.any(parts, 0), masks[number].numpy()
        assert len(parts) == number + 1 and (made & wanted).sum() > 0.99 * (made | wanted).sum()


def test_a_thing_without_pixels_is_its_box_in_label_studio():
    (task,) = to_label_studio(["a.jpg"], [EMPTY])
    (box,) = task["predictions"][0]["result"]
    assert box["type"] == "rectanglelabels" and box["value"]["width"] == 50
    view = ET.fromstring(label_studio_interface(["a cat"], masks=True))
    controls = {child.get("name"): child.tag for child in view}
    assert controls == {"image": "Image", "label": "RectangleLabels", "mask": "PolygonLabels"}
    assert {label.get("value") for label in view.iter("Label")} == {"a cat"}


def test_yolo_has_outlines_whose_parts_are_joined():
    lines = to_yolo(BOTH).splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1"] and to_yolo(NONE) == ""
    for line, mask in zip(lines, BOTH.masks, strict=True):
        points = np.array(line.split()[1:], dtype=float).reshape(-1, 2) * (HW[1], HW[0])
        drawn = coco_masks.decode(coco_masks.frPyObjects([points.flatten().tolist()], *HW))[..., 0].astype(bool)
        assert (drawn & mask.numpy()).sum() / (drawn | mask.numpy()).sum() > 0.9
    assert to_yolo(BOTH, with_scores=True).splitlines()[0].endswith(" 0.900000")
    assert to_yolo(EMPTY) == "0 0.125000 0.083333 0.625000 0.083333 0.625000 0.583333 0.125000 0.583333\n"


def test_csv_and_voc_are_as_without_masks():
    plain = replace(BOTH, masks=None)
    assert to_csv(["a"], [BOTH]) == to_csv(["a"], [plain]) and to_voc("a", BOTH) == to_voc("a", plain)


def test_fiftyone_has_the_mask_within_its_box():
    rows = to_fiftyone(BOTH)
    assert rows[0]["mask"].shape == (30, 40) and rows[0]["mask"].dtype == bool
    assert np.array_equal(rows[0]["mask"], BOTH.masks[0].numpy()[5:35, 10:50])


@pytest.mark.parametrize("most", [2**28, 0], ids=["array", "compact"])
def test_supervision_has_the_masks(monkeypatch, most):
    monkeypatch.setattr("owl_swin.formats.MOST_MASK_BYTES", most)
    theirs = BOTH.to_supervision()
    assert np.array_equal(np.asarray(theirs.mask), BOTH.masks.numpy())
    assert theirs.area.tolist() == BOTH.masks.to_tensor().flatten(1).sum(1).tolist()
    assert len(theirs[theirs.confidence > 0.7].mask) == 1
    assert np.asarray(NONE.to_supervision().mask).shape[0] == 0
    assert replace(BOTH, masks=None).to_supervision().mask is None


def test_pandas_has_run_lengths():
    assert BOTH.to_pandas()["segmentation"].tolist() == BOTH.rle()
    assert len(NONE.to_pandas()) == 0 and "segmentation" not in replace(BOTH, masks=None).to_pandas()


def test_a_mask_is_drawn_with_its_outline_over_what_it_covers_only():
    grey = Image.new("RGB", HW[::-1], (128, 128, 128))
    one = found(cross())
    difference = np.asarray(draw_detections(grey, one)) != np.asarray(draw_detections(grey, replace(one, masks=None)))
    mask = one.masks[0].numpy()
    assert not difference.any(-1)[~mask].any() and difference.any(-1)[mask].mean() > 0.4
    large = Image.new("RGB", (400, 300), (128, 128, 128))
    drawn = draw_detections(large, one.scaled_to((300, 400)))
    assert drawn.getpixel((150, 110)) == tuple(
        pytest.approx(MASK_OPACITY * c + (1 - MASK_OPACITY) * 128, abs=1.5) for c in label_colour(0)
    )
    edge = int(one.scaled_to((300, 400)).masks[0].any(1).nonzero().min())
    assert drawn.getpixel((150, edge)) == label_colour(0)


def test_the_best_mask_is_on_top():
    full = torch.full((4, 4), 5.0)
    both = found(full, full)
    both = replace(both, masks=BoxMasks(both.masks.logits, both.boxes[[0, 0]], HW)).scaled_to((300, 400))
    drawn = draw_detections(Image.new("RGB", (400, 300), (128, 128, 128)), both)
    first, second = (np.array(label_colour(i)) for i in (0, 1))
    below = 128 * (1 - MASK_OPACITY) + second * MASK_OPACITY
    assert np.abs(np.array(drawn.getpixel((150, 110))) - (below * (1 - MASK_OPACITY) + first * MASK_OPACITY)).max() < 3
