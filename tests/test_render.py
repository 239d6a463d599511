"""Drawing on a copy, in the place that was found, whatever the name."""

import itertools

import numpy as np
import pytest
import torch
from picture_files import encode, noise, turned
from PIL import Image

from owl_swin.errors import ImageError
from owl_swin.render import draw_detections, draw_heat_map, label_colour
from owl_swin.types import Detections


def found(*boxes, names=("thing",), image_hw=(200, 300)) -> Detections:
    n = len(boxes)
    labels = torch.arange(n) % len(names)
    return Detections(torch.tensor(boxes).view(n, 4).float(), torch.full((n,), 0.5), labels, names, image_hw, labels)


def grey(height=200, width=300) -> Image.Image:
    return Image.new("RGB", (width, height), (128, 128, 128))


def test_nothing_found_draws_nothing(picture):
    assert np.array_equal(draw_detections(picture, found(image_hw=(60, 90))), picture)


def test_the_caller_s_picture_stays_as_it_is():
    image = grey()
    drawn = draw_detections(image, found([20, 60, 120, 160]))
    assert np.array_equal(image, grey())
    assert not np.array_equal(drawn, image)


def test_the_border_lies_on_the_box_and_the_inside_stays_free():
    drawn = draw_detections(grey(), found([20, 60, 120, 160]))
    for x, y in [(20, 60), (119, 60), (20, 159), (119, 159), (70, 159), (20, 110)]:
        assert drawn.getpixel((x, y)) == label_colour(0)
    for x, y in [(70, 110), (120, 110), (70, 160), (19, 110)]:
        assert drawn.getpixel((x, y)) == (128, 128, 128)


def test_the_name_stands_above_the_box_or_inside_when_there_is_no_room():
    def coloured_rows(top):
        drawn = np.asarray(draw_detections(grey(), found([20, top, 280, 190])))
        return np.flatnonzero((drawn[:, 30] == label_colour(0)).all(-1))

    assert coloured_rows(100).min() < 100 - 8
    assert coloured_rows(0).min() == 0
    assert coloured_rows(0)[coloured_rows(0) < 100].max() > 8


def test_the_best_is_drawn_on_top():
    both = draw_detections(grey(), found([20, 60, 120, 160], [20, 60, 120, 160], names=("a", "b")))
    assert both.getpixel((119, 110)) == label_colour(0)


def test_neighbouring_queries_have_different_colours_and_a_query_keeps_its_own():
    colours = [label_colour(i) for i in range(20)]
    assert colours == [label_colour(i) for i in range(20)]
    for one, other in itertools.pairwise(colours):
        assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) > 100
    assert len(set(colours)) == 20


@pytest.mark.parametrize("name", ["", "🦉 owl", "一只猫", "a\nb\tc\x00\x1b[31m", "\ud800", "x" * 10_000, "<b>&amp;"])
def test_any_name_can_be_drawn(name):
    drawn = draw_detections(grey(), found([20, 60, 120, 160], names=(name,)))
    assert drawn.size == (300, 200)


@pytest.mark.parametrize("image_hw", [(1, 1), (1, 400), (400, 1)])
def test_the_thinnest_pictures_can_be_drawn_on(image_hw):
    height, width = image_hw
    drawn = draw_detections(grey(height, width), found([0, 0, width, height], image_hw=image_hw))
    assert drawn.size == (width, height)


def test_boxes_of_a_turned_picture_lie_on_the_upright_one():
    upright = noise(40, 80)
    one = found([10, 10, 60, 30], image_hw=(40, 80))
    assert np.array_equal(draw_detections(turned(upright, 6), one), draw_detections(upright, one))


def test_pictures_that_are_not_rgb_can_be_drawn_on():
    drawn = draw_detections(grey().convert("L"), found([20, 60, 120, 160]))
    assert drawn.mode == "RGB"
    assert drawn.getpixel((20, 60)) == label_colour(0)


def test_detections_of_another_picture_are_refused():
    with pytest.raises(ImageError, match="of a picture of 300x200 pixels, got 200x300"):
        draw_detections(encode(grey(300, 200)), found([20, 60, 120, 160]))


@pytest.mark.parametrize("y0", [0.0, 0.4, 1.3, 2.7])
def test_letters_at_the_upper_border_are_whole(y0):
    # Letters without ascenders start so low in their line that the line starts above the picture.
    at_border, below = (
        np.asarray(draw_detections(grey(), found([0, y, 200, 190], names=("noose",)), with_scores=False)).max(2) < 60
        for y in (y0, 100.0)
    )
    assert below.sum() > 20  # black letters on a bright label
    assert at_border.sum() == below.sum()


def test_scores_may_be_left_away():
    with_score, without = (
        draw_detections(grey(), found([20, 60, 220, 160]), with_scores=shown) for shown in (True, False)
    )
    width = [sum(drawn.getpixel((x, 50)) == label_colour(0) for x in range(300)) for drawn in (with_score, without)]
    assert width[1] < width[0]


# --- Heat maps -----------------------------------------------------------------------------------------------------


def brightness(drawn: Image.Image) -> np.ndarray:
    return np.asarray(drawn.convert("L")).astype(int)


def test_the_highest_score_is_brightest_and_the_lowest_shows_the_picture():
    scores = torch.tensor([[0.1, 0.1, 0.1], [0.1, 0.1, 0.9]])
    drawn = draw_heat_map(grey(), scores)
    assert drawn.size == (300, 200)
    assert drawn.getpixel((40, 40)) == (128, 128, 128)
    red, green, blue = drawn.getpixel((260, 150))
    assert red > 190 and green > 190 and blue < 180
    column = brightness(drawn)[150, 160:250]
    assert column[-1] > column[0]


def test_a_heat_map_leaves_the_picture_visible_and_as_it_is(picture):
    before = np.asarray(picture).copy()
    drawn = draw_heat_map(picture, np.ones((3, 4), np.float32), limits=(0, 1))
    assert np.array_equal(picture, before)
    assert np.corrcoef(brightness(drawn).ravel(), brightness(picture).ravel())[0, 1] > 0.8


def test_limits_make_maps_comparable():
    low, high = (draw_heat_map(grey(), torch.full((2, 2), s), limits=(0, 1)).getpixel((150, 60)) for s in (0.2, 0.9))
    assert sum(high) > sum(low)
    flat = [draw_heat_map(grey(), torch.full((2, 2), s)).getpixel((150, 60)) for s in (0.2, 0.9)]
    assert flat == [(128, 128, 128)] * 2


@pytest.mark.parametrize(
    "image_hw, grid_hw", [((1, 1), (1, 1)), ((1, 400), (2, 9)), ((400, 1), (3, 2)), ((60, 90), (1, 1))]
)
def test_any_picture_and_grid_have_a_heat_map(image_hw, grid_hw):
    drawn = draw_heat_map(grey(*image_hw), torch.rand(grid_hw), title="x" * 1000 + "\n一")
    assert drawn.size == image_hw[::-1]


def test_the_scale_stands_at_the_bottom_where_there_is_room():
    drawn = np.asarray(draw_heat_map(grey(), torch.rand(4, 6), title="mug"))
    assert (drawn[-1, :50] == 0).all()
    assert (drawn[:150] != 0).any(-1).all()


@pytest.mark.parametrize(
    "scores, limits, sentence",
    [
        (torch.zeros(3), None, r"finite numbers \[h, w\], got \[3\]"),
        (torch.zeros(0, 3), None, r"got \[0, 3\]"),
        (torch.full((2, 2), float("nan")), None, "finite"),
        (torch.zeros(2, 2), (1, 0), "two numbers, the lower first"),
        (torch.zeros(2, 2), (0, float("nan")), "two numbers"),
    ],
)
def test_what_is_no_heat_map_is_refused(scores, limits, sentence):
    with pytest.raises(ImageError, match=sentence):
        draw_heat_map(grey(), scores, limits=limits)
