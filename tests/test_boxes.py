"""Box mathematics: values that can be checked by hand, then properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from owl_swin.boxes import (
    area,
    clip,
    cxcywh_to_xyxy,
    paired_giou,
    paired_iou,
    pairwise_giou,
    pairwise_iou,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)

pytestmark = pytest.mark.numeric

SQUARE = torch.tensor([[0.0, 0, 2, 2]])  # side two, at the origin
CONVERSIONS = [cxcywh_to_xyxy, xyxy_to_cxcywh, xywh_to_xyxy, xyxy_to_xywh]

coordinates = st.floats(-1e4, 1e4, allow_nan=False, width=32)
sizes = st.floats(0, 1e4, allow_nan=False, width=32)
boxes_xywh = st.lists(st.tuples(coordinates, coordinates, sizes, sizes), min_size=1, max_size=6)


def xyxy(rows) -> torch.Tensor:
    return xywh_to_xyxy(torch.tensor(rows, dtype=torch.float64))


@pytest.mark.parametrize("convert", CONVERSIONS)
def test_no_boxes_stay_no_boxes(convert):
    assert convert(torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize(
    "cxcywh, expected",
    [
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([2, 3, 4, 2], [0, 2, 4, 4]),
        ([0.5, 0.5, 1, 1], [0, 0, 1, 1]),
        ([-1, 1, 2, 6], [-2, -2, 0, 4]),
    ],
)
def test_centre_and_size_give_the_corners_and_back(cxcywh, expected):
    cxcywh, expected = torch.tensor(cxcywh).double(), torch.tensor(expected).double()
    assert_close(cxcywh_to_xyxy(cxcywh), expected)
    assert_close(xyxy_to_cxcywh(expected), cxcywh)


@pytest.mark.parametrize(
    "xywh, expected",
    [
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([1, 2, 3, 4], [1, 2, 4, 6]),
        ([-1, -1, 1, 1], [-1, -1, 0, 0]),
    ],
)
def test_corner_and_size_give_the_corners_and_back(xywh, expected):
    xywh, expected = torch.tensor(xywh).double(), torch.tensor(expected).double()
    assert_close(xywh_to_xyxy(xywh), expected)
    assert_close(xyxy_to_xywh(expected), xywh)


def test_conversions_keep_leading_axes():
    boxes = torch.arange(24.0).view(2, 3, 4)
    for convert in CONVERSIONS:
        assert_close(convert(boxes)[1, 2], convert(boxes[1, 2]))


@pytest.mark.parametrize(
    "box, expected",
    [
        ([0, 0, 0, 0], 0),
        ([1, 1, 3, 4], 6),
        ([1, 1, 1, 4], 0),
        ([3, 1, 1, 4], 0),  # inverted
        ([3, 4, 1, 1], 0),  # inverted both ways, where a plain product would be positive
    ],
)
def test_area(box, expected):
    assert area(torch.tensor(box)) == expected


@pytest.mark.parametrize(
    "box, expected",
    [
        ([0, 0, 0, 0], 0.0),
        ([0, 0, 2, 2], 1.0),
        ([1, 0, 3, 2], 1 / 3),
        ([1, 1, 2, 2], 1 / 4),
        ([2, 0, 4, 2], 0.0),  # touches
        ([5, 5, 6, 6], 0.0),
    ],
)
def test_iou_with_the_square_of_side_two(box, expected):
    assert pairwise_iou(SQUARE, torch.tensor([box]).float()).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "box, expected",
    [
        ([0, 0, 2, 2], 1.0),
        ([1, 0, 3, 2], 1 / 3),  # the hull is the union
        ([1, 1, 3, 3], 1 / 7 - 2 / 9),
        ([2, 0, 4, 2], 0.0),
        ([4, 0, 6, 2], -4 / 12),
        ([0, 0, 0, 0], -0.0),  # inside the square: hull and union are the square
    ],
)
def test_giou_with_the_square_of_side_two(box, expected):
    box = torch.tensor([box]).float()
    assert pairwise_giou(SQUARE, box).item() == pytest.approx(expected)
    assert paired_giou(SQUARE, box).item() == pytest.approx(expected)


@pytest.mark.parametrize("measure", [pairwise_iou, pairwise_giou])
@pytest.mark.parametrize("n, m", [(0, 0), (0, 3), (2, 0), (2, 3)])
def test_pairs_have_a_row_for_each_of_the_first_and_a_column_for_each_of_the_second(measure, n, m):
    assert measure(SQUARE.repeat(n, 1), SQUARE.repeat(m, 1)).shape == (n, m)


def test_two_empty_boxes_have_finite_measures():
    empty = torch.zeros(1, 4)
    assert pairwise_iou(empty, empty).item() == 0
    assert pairwise_giou(empty, empty).item() == 0


@settings(max_examples=50, deadline=None)
@given(boxes_xywh, boxes_xywh)
def test_giou_lies_in_minus_one_to_one_and_never_above_iou(a, b):
    iou, giou = pairwise_iou(xyxy(a), xyxy(b)), pairwise_giou(xyxy(a), xyxy(b))
    assert ((iou >= 0) & (iou <= 1)).all()
    assert ((giou >= -1) & (giou <= 1)).all()
    assert (giou <= iou + 1e-12).all()
    assert_close(iou, pairwise_iou(xyxy(b), xyxy(a)).T)


@settings(max_examples=50, deadline=None)
@given(boxes_xywh)
def test_conversions_are_inverse_to_one_another(rows):
    boxes = torch.tensor(rows, dtype=torch.float64)
    assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes, atol=1e-9, rtol=0)
    assert_close(xyxy_to_xywh(xywh_to_xyxy(boxes)), boxes, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "box, expected",
    [
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([1, 1, 3, 2], [1, 1, 3, 2]),
        ([-5, -5, 99, 99], [0, 0, 4, 3]),  # width 4, height 3: x and y have their own limits
        ([6, 6, 9, 9], [4, 3, 4, 3]),
    ],
)
def test_clip_to_a_picture_of_height_three_and_width_four(box, expected):
    assert clip(torch.tensor(box), (3, 4)).tolist() == expected


def test_functions_leave_their_input_unchanged():
    boxes = torch.tensor([[-1.0, 2, 30, 4]])
    for function in [*CONVERSIONS, area, lambda b: clip(b, (3, 4)), lambda b: pairwise_giou(b, b)]:
        function(boxes)
        assert boxes.tolist() == [[-1, 2, 30, 4]]


def test_iou_row_by_row_is_the_diagonal_of_all_pairs():
    a, b = xyxy([[0, 0, 2, 2], [0, 0, 2, 2], [5, 5, 0, 0]]), xyxy([[1, 0, 2, 2], [9, 9, 1, 1], [5, 5, 0, 0]])
    assert_close(paired_iou(a, b), torch.tensor([1 / 3, 0, 0]).double())
    assert_close(paired_iou(a, b), pairwise_iou(a, b).diagonal())
