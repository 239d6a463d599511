"""Drawing on a copy, in the place that was found, whatever the name."""

import itertools

import numpy as np
import pytest
import torch
from picture_files import encode, noise, turned
from PIL import Image

from owl_swin.detections import Detections
from owl_swin.errors import ImageError
from owl_swin.render import _ink, _Placed, draw_detections, draw_heat_map, label_colour, picture_grid


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


def letters(drawn: Image.Image) -> int:
    """Pixels of black letters, as labels of the first query have them."""
    return int((np.asarray(drawn).max(2) < 60).sum())


@pytest.mark.parametrize(
    "first, second",
    [
        ([20, 60, 120, 160], [20, 60, 120, 160]),
        ([20, 60, 120, 160], [24, 62, 130, 170]),
        ([0, 0, 300, 200], [0, 0, 300, 200]),
        ([20, 60, 120, 160], [20, 30, 120, 55]),  # a box where the label of the first would stand
        ([200, 60, 300, 160], [250, 60, 300, 160]),
    ],
)
def test_labels_are_whole_where_boxes_lie_on_one_another(first, second):
    alone = [draw_detections(grey(), found(box, names=("noose",)), with_scores=False) for box in (first, second)]
    both = draw_detections(grey(), found(first, second, names=("noose",)), with_scores=False)
    assert sum(map(letters, alone)) > 40
    assert letters(both) == sum(map(letters, alone))


def test_no_label_of_many_lies_on_another_or_outside():
    rng = np.random.default_rng(0)
    placed = _Placed(640, 480)
    places = []
    for corner in rng.integers(0, 400, (300, 2)):
        box = (*corner.tolist(), *(corner + rng.integers(5, 200, 2)).clip(max=[639, 479]).tolist())
        width = int(rng.integers(20, 90))
        place = placed.find(box, width, 14)
        if place is not None:
            places.append((*place, place[0] + width, place[1] + 14))
    assert len(places) > 100
    assert min(x0 for x0, *_ in places) >= 0 and max(x1 for _, _, x1, _ in places) <= 640
    assert min(y0 for _, y0, _, _ in places) >= 0 and max(y1 for *_, y1 in places) <= 480
    for one, other in itertools.combinations(places, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one, other)


def test_where_there_is_no_room_the_best_have_their_labels():
    placed = _Placed(100, 20)
    assert [placed.find((0, 0, 50, 19), 60, 15) is not None for _ in range(3)] == [True, False, False]
    assert placed.find((0, 0, 50, 19), 101, 5) is None


def test_a_name_that_is_wider_than_the_picture_is_cut():
    drawn = draw_detections(grey(200, 90), found([10, 60, 80, 160], names=("x" * 39,), image_hw=(200, 90)))
    label = np.asarray(drawn)[:60]
    coloured = (label == label_colour(0)).all(-1)
    assert coloured.any(0).sum() > 60
    assert not coloured[:, [0, -1]].all()
    assert letters(drawn) > 40


@pytest.mark.parametrize("label", range(12))
def test_letters_stand_out_from_their_label(label):
    colours = np.array([label_colour(label), (0, 0, 0) if _ink(label_colour(label)) == "black" else (255, 255, 255)])
    shares = colours / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ [0.2126, 0.7152, 0.0722])
    assert (light + 0.05) / (dark + 0.05) > 4.5  # WCAG 2, AA


# --- Sheets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["W" * 60, "one two three four five six seven", "W W W W W W W W W W W W W W"])
def test_texts_of_a_sheet_stay_below_their_pictures(text):
    cells = [grey(40, 60), grey(40, 60)]
    sheet = np.asarray(picture_grid(cells, [text, ""], cell=80, columns=2, lines=2).convert("L"))
    dark = (sheet < 100).any(0)
    assert dark[8:88].any()
    assert not dark[:6].any() and not dark[90:].any()


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
