"""Masks of training scenes: read from files, and carried along where the pixels go."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from owl_swin.data.config import DataConfig
from owl_swin.data.masks import CodedMask
from owl_swin.data.scenes import load_scenes
from owl_swin.rle import encode_rle
from owl_swin.training.augment import Annotated, MaskPiece, mosaic, place
from owl_swin.training.sampling import SceneSampler
from owl_swin.training.true_masks import TrueMasks


def diamond(hw, centre, radius):
    """A mask [H, W] that differs from its box, its mirror image and its neighbours by its shape."""
    ys, xs = np.mgrid[: hw[0], : hw[1]]
    return (np.abs(ys - centre[0]) + np.abs(xs - centre[1]) <= radius) & (xs - centre[1] <= radius // 3)


def annotated(*masks, scale=1):
    """A black picture on which the masks are white; they are stored ``scale`` times smaller."""
    picture = Image.fromarray(np.any(masks, 0).astype(np.uint8) * 255).convert("RGB")
    boxes = []
    for mask in masks:
        ys, xs = np.nonzero(mask)
        boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    stored = tuple(CodedMask.of(encode_rle(mask[scale // 2 :: scale, scale // 2 :: scale])) for mask in masks)
    ones = np.ones(len(masks), np.float32)
    return Annotated(picture, np.array(boxes, np.float32), np.arange(len(masks)), ones, ones, stored)


def pasted(masks, hw):
    """All masks of a canvas as one picture [H, W] of 0 to 255."""
    canvas = np.zeros(hw, np.uint8)
    for piece in masks:
        h, w = piece.covered.shape
        part = canvas[piece.y : piece.y + h, piece.x : piece.x + w]
        np.maximum(part, piece.covered, out=part)
    return canvas


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("side", [1, 2])
def test_masks_go_where_the_pixels_go(side, scale):
    scenes = [
        annotated(diamond((90, 120), (30, 40), 24), diamond((90, 120), (60, 90), 20), scale=scale)
        for _ in range(side * side)
    ]
    seen = 0
    for seed in range(12):
        canvas = mosaic(scenes, (96, 128), np.random.default_rng(seed), min_kept=0.0, zoom=0.5)
        assert [piece.row for piece in canvas.masks] == list(range(len(canvas.boxes)))
        expected, found = canvas.pixels[..., 0] > 127, pasted(canvas.masks, (96, 128)) > 127
        # What is cut off to a sliver at the edge has no box and no mask.
        assert (expected & found).sum() >= (0.96 if scale == 1 else 0.9) * found.sum() - 8 and (
            expected & ~found
        ).mean() < 0.03
        seen += len(canvas.masks)
    assert seen > 10


def test_a_box_without_a_mask_stays_without():
    one = annotated(diamond((60, 60), (20, 20), 12), diamond((60, 60), (40, 40), 12))
    half = Annotated(one.picture, one.boxes, one.labels, one.scores, one.odds, (None, one.masks[1]))
    rows = [place(half, (60, 60), np.random.default_rng(seed), min_kept=0.9).masks for seed in range(8)]
    assert any(rows) and all(piece.row in (0, 1) for masks in rows for piece in masks)
    for seed in range(8):
        canvas = place(half, (60, 60), np.random.default_rng(seed), min_kept=0.9)
        assert [canvas.labels[piece.row] for piece in canvas.masks] == [n for n in canvas.labels if n == 1]


def test_cells_hold_how_much_of_them_is_covered():
    piece = MaskPiece(3, 2, 5, np.full((6, 4), 255, np.uint8))
    masks = TrueMasks.of([piece], (18, 12))
    expected = np.zeros((5, 3))
    expected[1] = [3 * 2 / 16 * 255, 3 * 2 / 16 * 255, 0]
    expected[2] = [3 * 2 / 16 * 255, 3 * 2 / 16 * 255, 0]
    np.testing.assert_allclose(masks.maps[0].numpy(), expected, atol=0.5)
    known, place_of = masks.covering(torch.tensor([0, 3, 5]))
    assert known.tolist() == [False, True, False] and place_of[1] == 0
    assert TrueMasks.of([], (18, 12)).covering(torch.tensor([0, 1]))[0].tolist() == [False, False]


def coco_file(folder, segmentations, wh=(40, 30)):
    """A set of one picture with a box for each segmentation."""
    (folder / "images").mkdir()
    Image.new("RGB", wh).save(folder / "images" / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": wh[0], "height": wh[1]}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": [i, 2, 20, 20], "segmentation": segmentation}
            for i, segmentation in enumerate(segmentations)
        ],
    }
    (folder / "set.json").write_text(json.dumps(content))
    return DataConfig("coco", str(folder / "set.json"), str(folder / "images"))


def test_polygons_and_both_kinds_of_run_lengths_are_masks(tmp_path):
    mask = np.zeros((30, 40), bool)
    mask[5:15, 10:20] = True
    runs = [10 * 30 + 5] + [10, 20] * 9 + [10, 30 * 40 - 10 * 30 - 5 - 10 * 10 - 20 * 9]
    forms = [[[10, 5, 20, 5, 20, 15, 10, 15]], encode_rle(mask), {"size": [30, 40], "counts": runs}]
    config = coco_file(tmp_path, [*forms, None, []])
    scene = load_scenes(config, masks=True).scenes[0]
    assert len(scene.masks) == len(scene.boxes) == 5 and scene.masks[3] is scene.masks[4] is None
    for found in scene.masks[:3]:
        assert np.array_equal(found.pixels(), mask)
    assert load_scenes(config).scenes[0].masks == ()


DAMAGED = [
    ({"size": [30, 40], "counts": "zzz"}, "counts"),
    ({"size": [30, 40], "counts": [5, 10]}, "its counts say otherwise"),
    ({"size": [31, 40], "counts": [31 * 40]}, "40x31 pixels in a picture of 40x30"),
    ({"size": [30, 40], "counts": [30 * 40]}, "empty"),
    ([[1, 2, 3, 4]], "three points"),
    ([[1, 2, 3, "x", 5, 6]], "numbers"),
    ([[1, 2, 1e9, 4, 5, 6]], "far out"),
    ([[100, 100, 120, 100, 120, 120]], "empty"),
]


def test_a_damaged_mask_is_named_and_counted_and_its_box_stays(tmp_path, caplog):
    good = [[10, 5, 20, 5, 20, 15]]
    scenes = load_scenes(coco_file(tmp_path, [good, *(damaged for damaged, _ in DAMAGED)]), masks=True)
    assert len(scenes.scenes[0].boxes) == 1 + len(DAMAGED)
    assert [mask is not None for mask in scenes.scenes[0].masks] == [True] + [False] * len(DAMAGED)
    for place_of, ((_, said), sentence) in enumerate(zip(DAMAGED, scenes.broken, strict=True), start=1):
        assert sentence.startswith(f"annotation {place_of}: left without its mask") and said in sentence
    assert f"{len(DAMAGED)} entries left out" in caplog.text


def test_masks_stay_with_their_boxes_where_others_go(tmp_path):
    """Boxes that are no boxes, vague ones and rare names go, with their masks."""
    config = coco_file(tmp_path, [[[x, 5, x + 5, 5, x + 5, 15]] for x in (1, 2, 3)])
    path = tmp_path / "set.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 2, "name": "rare"})
    content["annotations"][0]["category_id"] = 2
    content["annotations"][1]["score"] = 0.1
    path.write_text(json.dumps(content))
    scenes = load_scenes(DataConfig("coco", config.path, config.images, min_per_class=1, ignore_below=0.3), masks=True)
    assert len(scenes.scenes[0].vague_boxes) == 1 and len(scenes.scenes[0].area_labels) == 0
    # Of the two boxes, and then of the vague one, whose mask was guessed as vaguely.
    assert [mask is not None for mask in scenes.scenes[0].masks] == [True, True, False]
    scenes = load_scenes(DataConfig("coco", config.path, config.images, min_per_class=2), masks=True)
    scene, found = SceneSampler(scenes).draw(np.random.default_rng(0))
    starts = [int(np.nonzero(mask.pixels().any(0))[0][0]) for mask in found.masks]
    assert len(scene.boxes) == 2 and starts == [2, 3]
