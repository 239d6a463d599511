"""Masks of boxes: pixels, run lengths, polygons, and how they travel with detections."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_masks

from owl_swin.detections import Detections
from owl_swin.errors import QueryError
from owl_swin.masks import MOST_LOGIT, BoxMasks


def masks_of(*boxes, hw=(40, 50), logits=1.0, side=4) -> BoxMasks:
    """Masks that fill their boxes, or have these logits [S, S]."""
    maps = torch.as_tensor(logits).expand(len(boxes), side, side)
    return BoxMasks(maps, torch.tensor(boxes, dtype=torch.float32).view(-1, 4), hw)


def disc(side: int, radius: float) -> torch.Tensor:
    """Logits of a disc in the middle of a box, its radius in halves of the side."""
    u = (torch.arange(side) + 0.5) / side * 2 - 1
    return 10 * (radius - (u[:, None] ** 2 + u**2).sqrt())


def found_with(masks: BoxMasks, **changes) -> Detections:
    n = len(masks)
    labels = torch.zeros(n, dtype=torch.long)
    scores = torch.linspace(0.9, 0.5, n)
    found = Detections(masks.boxes_px, scores, labels, ("a cat",), masks.image_hw, torch.arange(n), masks=masks)
    return replace(found, **changes)


def test_no_masks_are_an_empty_sequence():
    none = BoxMasks.empty((40, 50))
    assert none.shape == (0, 40, 50) and none.numpy().shape == (0, 40, 50) and list(none) == []
    assert none.rle() == [] and none.polygons() == [] and BoxMasks.cat([none, none]) == none


@pytest.mark.parametrize(
    "box, columns, rows",
    [
        ([10, 5, 20, 8], (10, 20), (5, 8)),
        ([10.4, 5.6, 20.6, 8.4], (10, 21), (6, 8)),  # the middle of the pixel is in the box
        ([10.6, 5, 10.9, 8], (11, 12), (5, 8)),  # narrower than a pixel
        ([49.9, 39.9, 50, 40], (49, 50), (39, 40)),
        ([-5, -5, 3, 3], (0, 3), (0, 3)),
        ([45, 35, 90, 90], (45, 50), (35, 40)),
        ([0, 0, 50, 40], (0, 50), (0, 40)),
    ],
)
def test_a_full_mask_has_the_pixels_of_its_box(box, columns, rows):
    expected = torch.zeros(40, 50, dtype=torch.bool)
    expected[slice(*rows), slice(*columns)] = True
    assert torch.equal(masks_of(box)[0], expected)


def test_a_pixel_belongs_to_a_mask_where_the_logit_between_the_parts_is_above_zero():
    # Middles of the two columns lie at x = 25 and 75: 1 and -1 meet at 50, 3 and -1 at 62.5.
    for left, width in ((1.0, 50), (3.0, 62)):
        mask = masks_of([0, 0, 100, 2], hw=(2, 100), side=2, logits=[[left, -1.0], [left, -1.0]])[0]
        assert mask[0].tolist() == [True] * width + [False] * (100 - width)


def test_pixels_are_those_of_bilinear_interpolation():
    torch.manual_seed(0)
    for side, height, width in ((1, 7, 9), (5, 40, 31), (28, 20, 20), (16, 1, 90), (16, 90, 1)):
        logits = torch.randn(1, side, side).half()
        whole = F.interpolate(logits[None].float(), (height, width), mode="bilinear", align_corners=False)[0, 0] > 0
        mask = masks_of([0, 0, width, height], hw=(height, width), logits=logits, side=side)[0]
        assert (mask ^ whole).sum() <= 1  # of a logit next to 0


def test_masks_behave_as_a_sequence_of_arrays():
    masks = masks_of([0, 0, 10, 10], [5, 5, 30, 20], [20, 20, 50, 40])
    assert len(masks) == 3 and masks.shape == (3, 40, 50)
    whole = masks.to_tensor()
    assert whole.dtype == torch.bool and torch.equal(torch.stack(list(masks)), whole)
    assert torch.equal(masks[-1], whole[2]) and torch.equal(masks[torch.tensor(1)], whole[1])
    for rows in (slice(1, 3), [2, 0], torch.tensor([True, False, True]), np.array([1])):
        assert np.array_equal(masks[rows].numpy(), whole.numpy()[rows])
    assert masks[:2] != masks and masks[[0, 1, 2]] == masks and masks.to("cpu") == masks
    with pytest.raises(IndexError):
        masks[3]
    with pytest.raises(TypeError, match="masks are called by a number, a slice, a list of numbers or a mask, got 'a'"):
        masks["a"]


def test_masks_of_other_shapes_are_refused():
    with pytest.raises(QueryError, match=r"expected logits \[N, S, S\] and boxes_px \[N, 4\], got"):
        BoxMasks(torch.zeros(2, 3, 4), torch.zeros(2, 4), (5, 5))
    with pytest.raises(QueryError, match=r"expected masks \[N, H, W\] of \[1, 30, 50\], got \[1, 40, 50\]"):
        found_with(masks_of([0, 0, 9, 9]), image_hw=(30, 50))


def test_logits_stay_finite():
    masks = masks_of([0, 0, 10, 10], logits=[[1e9, -1e9], [-torch.inf, torch.inf]], side=2)
    assert masks.logits.abs().max() == MOST_LOGIT and 40 < masks[0].sum() < 60


def test_masks_of_a_huge_picture_take_no_memory_for_its_pixels():
    boxes = torch.tensor([[0, 0, 5000, 4000.0]]).expand(300, 4)
    masks = BoxMasks(torch.ones(300, 128, 128), boxes, (4000, 5000))
    assert masks.nbytes < 10 * 2**20 and masks.shape == (300, 4000, 5000)
    assert (
        masks[:1].rle()[0]["counts"]
        == coco_masks.encode(np.ones((4000, 5000, 1), np.uint8, order="F"))[0]["counts"].decode()
    )


def test_masks_are_made_one_by_one(monkeypatch):
    made = []
    runs = BoxMasks._runs
    monkeypatch.setattr(BoxMasks, "_runs", lambda self, i: made.append(i) or runs(self, i))
    masks = masks_of([0, 0, 9, 9], [5, 5, 30, 20])
    rows = iter(masks)
    assert made == [] and next(rows).any() and made == [0]


MASKS = {
    "nothing": np.zeros((4, 5)),
    "everything": np.ones((4, 5)),
    "first pixel": np.eye(4, 5) * (np.arange(4)[:, None] == 0),
    "last pixel": np.flip(np.eye(4, 5) * (np.arange(4)[:, None] == 0)),
    "columns that meet": np.repeat([[0, 1, 1, 0, 1]], 4, 0),
    "checks": np.indices((7, 9)).sum(0) % 2,
    "a row": np.ones((1, 900)) * (np.arange(900) % 97 > 5),
    "a column": np.ones((900, 1)),
    "noise": np.random.default_rng(0).random((67, 301)) > 0.7,
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_run_lengths_are_those_of_pycocotools(mask):
    mask = np.asarray(mask, dtype=np.uint8)
    height, width = mask.shape
    side = max(height, width)  # one logit a pixel
    logits = torch.full((side, side), -1.0)
    logits[:height, :width] = torch.from_numpy(mask) * 2.0 - 1
    masks = masks_of([0, 0, side, side], hw=(height, width), logits=logits, side=side)
    assert np.array_equal(masks[0].numpy(), mask)
    expected = coco_masks.encode(np.asfortranarray(mask))
    assert masks.rle() == [{"size": [height, width], "counts": expected["counts"].decode()}]


def test_a_part_of_the_picture_has_the_run_lengths_of_the_whole():
    boxes = [[0, 0, 9, 40], [10, 3, 30, 33], [41, 0, 50, 40], [20, 39, 21, 40]]
    masks = masks_of(*boxes, logits=disc(8, 1.1), side=8)
    for encoded, mask in zip(masks.rle(), masks.numpy(), strict=True):
        assert np.array_equal(coco_masks.decode(encoded), mask)
        assert coco_masks.encode(np.asfortranarray(mask))["counts"].decode() == encoded["counts"]


def test_polygons_drawn_again_are_the_masks():
    masks = masks_of([10.3, 5.2, 40.7, 38.1], logits=disc(28, 0.8), side=28)
    ((outline,),) = masks.polygons()
    assert len(outline) < 60 and len(masks.polygons(0)[0][0]) > 100
    drawn = coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects([outline], 40, 50))).astype(bool)
    mask = masks[0].numpy()
    assert (drawn & mask).sum() / (drawn | mask).sum() > 0.93


def test_polygons_reach_the_border_of_the_box_and_fill_holes():
    (rectangle,) = masks_of([10, 5, 40, 38]).polygons()[0]
    assert {tuple(corner) for corner in np.reshape(rectangle, (-1, 2))} == {(10, 5), (40, 5), (40, 38), (10, 38)}
    ring = torch.minimum(disc(28, 0.9), -disc(28, 0.4))
    (outline,) = masks_of([0, 0, 40, 40], logits=ring, side=28).polygons()[0]
    assert np.reshape(outline, (-1, 2)).min() == pytest.approx(2, abs=0.5)
    two = torch.full((8, 8), -1.0)
    two[1:4, 1:4], two[5:7, 5:7] = 1, 1
    large, small = masks_of([0, 0, 40, 40], logits=two, side=8).polygons()[0]
    assert max(large) < 22 < min(small)
    assert masks_of([0, 0, 40, 40], logits=-1.0).polygons() == [[]]


def test_masks_travel_with_their_detections():
    found = found_with(masks_of([0, 0, 10, 10], [5, 5, 30, 20], [20, 20, 50, 40]))
    assert found[[2, 0]].masks == found.masks[[2, 0]] and found[1:].rle() == found.rle()[1:]
    assert found == replace(found) and found != replace(found, masks=None)
    assert found.to("cpu").masks == found.masks and found[:0].masks.shape == (0, 40, 50)
    larger = found_with(masks_of([1, 1, 2, 2], side=6), scores=torch.tensor([0.7]))
    merged = Detections.merge([found, larger, Detections.empty(("a cat",), (40, 50))])
    assert merged.boxes.tolist() == merged.masks.boxes_px.tolist() and len(merged) == 4
    assert torch.equal(merged.masks.to_tensor().flatten(1).sum(1), torch.tensor([100, 375, 1, 600]))
    with pytest.raises(QueryError, match="only some of these results have masks"):
        Detections.merge([found, replace(larger, masks=None)])


def test_masks_of_the_picture_in_another_size():
    found = found_with(masks_of([2, 0, 50, 40], logits=disc(16, 0.8), side=16))
    small = found.scaled_to((20, 25))
    assert small.boxes.tolist() == [[1, 0, 25, 20]] and small.masks.shape == (1, 20, 25)
    assert int(small.masks[0].sum()) == pytest.approx(int(found.masks[0].sum()) / 4, rel=0.1)


def test_detections_without_masks_say_so():
    found = replace(found_with(masks_of([0, 0, 10, 10])), masks=None)
    for ask in (found.rle, found.polygons):
        with pytest.raises(QueryError, match="these detections have no masks; detect with masks=True"):
            ask()
