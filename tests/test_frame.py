"""The frame of a picture or a crop with its inverse, and what is shown of an exemplar."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close

from owl_swin.boxes import cxcywh_to_xyxy
from owl_swin.frame import (
    FRAME_MULTIPLE,
    PIXEL_MEAN,
    PIXEL_STD,
    Frame,
    exemplar_frame,
    exemplar_side,
    normalise,
    square_around,
)


@pytest.mark.parametrize(
    "image_hw, model_hw",
    [
        ((96, 96), (96, 96)),
        ((60, 90), (64, 96)),
        ((480, 640), (64, 96)),  # 72 lies between 64 and 96
        ((1, 4000), (32, 96)),
        ((4000, 1), (96, 32)),
        ((1, 1), (96, 96)),
        ((5000, 4000), (96, 64)),  # 76.8
    ],
)
def test_fit_keeps_the_aspect_to_multiples_of_32(image_hw, model_hw):
    assert Frame.fit(image_hw, 96) == Frame(image_hw, model_hw, model_hw)


@pytest.mark.parametrize(
    "image_hw, content_hw",
    [
        ((96, 96), (96, 96)),
        ((60, 90), (64, 96)),
        ((480, 640), (72, 96)),
        ((1, 4000), (1, 96)),
        ((4000, 1), (96, 1)),
        ((1, 1), (96, 96)),
    ],
)
def test_letterbox_is_a_square_with_the_picture_at_the_top_left(image_hw, content_hw):
    assert Frame.letterbox(image_hw, 96) == Frame(image_hw, (96, 96), content_hw)


def test_the_whole_frame_is_the_whole_picture_and_padding_is_outside():
    whole = torch.tensor([0.5, 0.5, 1.0, 1.0])
    assert Frame.fit((480, 640), 96).to_image(whole).tolist() == [0, 0, 640, 480]
    # The letterbox of 480x640 ends at 3/4 of the height.
    letterbox = Frame.letterbox((480, 640), 96)
    assert letterbox.to_image(torch.tensor([0.5, 0.375, 1.0, 0.75])).tolist() == [0, 0, 640, 480]
    assert letterbox.to_image(torch.tensor([0.5, 0.9, 0.2, 0.1])).tolist() == [256, 480, 384, 480]


def test_boxes_that_reach_past_the_frame_are_clipped_to_the_picture():
    past = torch.tensor([[0.5, 0.5, 9.0, 9.0], [-3.0, 0.5, 1.0, 1.0]])
    assert Frame.fit((10, 1000), 96).to_image(past).tolist() == [[0, 0, 1000, 10], [0, 0, 0, 10]]


sides = st.integers(1, 30_000)
fractions = st.tuples(*[st.floats(0, 1)] * 4)


@settings(max_examples=100, deadline=None)
@given(st.tuples(sides, sides), st.integers(32, 1024), fractions, st.sampled_from([Frame.fit, Frame.letterbox]))
@example((1, 4000), 640, (0.0, 0.0, 1.0, 1.0), Frame.letterbox)
@example((4000, 1), 640, (0.1, 0.2, 0.9, 1.0), Frame.letterbox)
@example((1, 1), 33, (0.0, 0.0, 1.0, 1.0), Frame.fit)
def test_boxes_go_into_the_frame_and_come_back(image_hw, side, corners, make):
    frame = make(image_hw, side)
    height, width = image_hw
    x0, x1 = sorted(corners[:2])
    y0, y1 = sorted(corners[2:])
    box = torch.tensor([x0 * width, y0 * height, x1 * width, y1 * height], dtype=torch.float64)
    inside = frame.from_image(box)
    assert_close(frame.to_image(inside), box, atol=1e-6, rtol=0)
    # Of the frame, only the part that the picture fills is used.
    used = torch.tensor([frame.content_hw[1] / frame.model_hw[1], frame.content_hw[0] / frame.model_hw[0]])
    assert (cxcywh_to_xyxy(inside) <= used.repeat(2) + 1e-6).all()
    assert (inside >= 0).all()


@settings(max_examples=100, deadline=None)
@given(st.tuples(sides, sides), st.integers(32, 1024))
def test_fit_moves_a_side_by_at_most_16_pixels_unless_it_is_thin(image_hw, long_side):
    frame = Frame.fit(image_hw, long_side)
    for side, model_side in zip(image_hw, frame.model_hw, strict=True):
        wanted = side * long_side / max(image_hw)
        assert model_side % FRAME_MULTIPLE == 0
        assert model_side == FRAME_MULTIPLE or abs(model_side - wanted) <= 16


@pytest.mark.parametrize("make", [Frame.fit, Frame.letterbox])
@pytest.mark.parametrize("image_hw", [(1, 1), (1, 4000), (4000, 1), (60, 90)])
def test_pixels_fill_the_frame(make, image_hw):
    frame = make(image_hw, 96)
    pixels = frame.pixels(Image.new("RGB", image_hw[::-1], (255, 0, 0)))
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, *frame.model_hw)
    height, width = frame.content_hw
    assert (pixels[:, :height, :width] == torch.tensor([255, 0, 0])[:, None, None]).all()
    for padding in (pixels[:, height:], pixels[:, :, width:]):
        assert (normalise(padding.float() / 255).abs() < 0.01).all()  # grey for the network


@pytest.mark.parametrize(
    "box, expected",
    [
        ((40, 40, 60, 60), (30, 30, 70, 70)),  # half of 20 around
        ((40, 45, 60, 55), (30, 30, 70, 70)),  # a square, whatever the box
        ((0, 0, 20, 20), (0, 0, 40, 40)),  # moved inside
        ((90, 90, 100, 100), (80, 80, 100, 100)),
        ((0, 0, 100, 10), (0, 0, 100, 100)),  # cut where the picture is smaller
        ((40.5, 40, 60.5, 60), (30, 30, 71, 71)),
    ],
)
def test_what_is_around_a_box_is_a_square_inside_the_picture(box, expected):
    assert square_around(box, (100, 100), 0.5) == expected


@given(st.tuples(*[st.floats(0, 90, width=16)] * 2), st.tuples(*[st.floats(1, 90, width=16)] * 2), st.floats(0, 2))
def test_what_is_around_a_box_holds_it(corner, size, margin):
    box = (*corner, min(91, corner[0] + size[0]), min(91, corner[1] + size[1]))
    x0, y0, x1, y1 = square_around(box, (91, 91), margin)
    assert 0 <= x0 <= box[0] and 0 <= y0 <= box[1] and box[2] <= x1 <= 91 and box[3] <= y1 <= 91


def test_a_box_of_64_pixels_is_shown_at_its_size_with_a_quarter_around():
    frame = exemplar_frame((500, 800), (300, 200, 364, 264), exemplar_side(16))
    assert frame == Frame((500, 800), (96, 96), (96, 96), (284, 184, 380, 280))
    assert_close(frame.from_image(torch.tensor([300.0, 200, 364, 264])) * 96, torch.tensor([48.0, 48, 64, 64]))


@pytest.mark.parametrize("box", [(0, 0, 50, 300), (100, 0, 150, 300), (3, 5, 33, 300)])
def test_no_exemplar_is_stretched(box):
    frame = exemplar_frame((300, 151), box, 96)
    _, _, width, height = (frame.from_image(torch.tensor(box, dtype=torch.float)) * 96).tolist()
    assert height / width == pytest.approx((box[3] - box[1]) / (box[2] - box[0]), rel=0.03)
    assert height == pytest.approx(64, abs=1)


crops = st.tuples(st.integers(0, 400), st.integers(0, 300), st.integers(1, 400), st.integers(1, 300))


@settings(max_examples=60, deadline=None)
@given(crops, fractions, st.sampled_from([Frame.fit, Frame.letterbox]))
def test_boxes_go_into_the_frame_of_a_crop_and_come_back(crop, corners, make):
    x, y, width, height = crop
    frame = make((600, 800), 96, (x, y, x + width, y + height))
    x0, x1 = sorted(corners[:2])
    y0, y1 = sorted(corners[2:])
    box = torch.tensor([x + x0 * width, y + y0 * height, x + x1 * width, y + y1 * height], dtype=torch.float64)
    inside = frame.from_image(box)
    assert_close(frame.to_image(inside), box, atol=1e-6, rtol=0)
    assert_close(inside, make((height, width), 96).from_image(box - torch.tensor([x, y, x, y])), atol=1e-9, rtol=0)


def test_boxes_of_a_crop_are_clipped_to_the_picture_and_not_to_the_crop():
    frame = Frame.fit((100, 200), 96, (50, 20, 150, 70))
    whole, past = torch.tensor([0.5, 0.5, 1.0, 1.0]), torch.tensor([0.5, 0.5, 2.0, 9.0])
    assert frame.to_image(whole).tolist() == [50, 20, 150, 70]
    assert frame.to_image(past).tolist() == [0, 0, 200, 100]


def test_pixels_of_a_crop_are_those_of_the_cut_picture(picture):
    crop = (10, 5, 74, 37)
    pixels = Frame.fit((60, 90), 96, crop).pixels(picture)
    assert torch.equal(pixels, Frame.fit((32, 64), 96).pixels(picture.crop(crop)))


def test_normalised_mean_is_zero_and_one_deviation_is_one():
    mean, std = torch.tensor(PIXEL_MEAN)[:, None, None], torch.tensor(PIXEL_STD)[:, None, None]
    assert_close(normalise(mean), torch.zeros(3, 1, 1))
    assert_close(normalise(mean + std), torch.ones(3, 1, 1))
