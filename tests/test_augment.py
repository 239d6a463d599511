"""Scenes for training: boxes go where the pixels go, through crop, flip, stretch and mosaic."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from owl_swin.training import augment
from owl_swin.training.augment import MIN_SIDE_PX, Annotated, mosaic, place

NO_BOXES = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)


def scene(picture, boxes, labels, scores=None, odds=None):
    """A picture as place() takes it; all boxes certain and equally often in the middle unless given."""
    ones = np.ones(len(boxes), np.float32)
    return Annotated(picture, boxes, labels, ones if scores is None else scores, ones if odds is None else odds)


def marked(box_xyxy, hw=(80, 120), ink=(255, 255, 255)):
    """A black picture with one filled rectangle, as place() takes it."""
    picture = Image.new("RGB", (hw[1], hw[0]))
    picture.paste(ink, box_xyxy)
    return scene(picture, np.array([box_xyxy], np.float32), np.array([7]))


def extent(mask):
    """xyxy of the pixels that are set."""
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.mark.parametrize("hw", [(64, 96), (96, 64), (40, 40)])
@pytest.mark.parametrize("box_xyxy", [(30, 20, 70, 50), (0, 0, 40, 30), (85, 45, 120, 80), (0, 0, 120, 80)])
def test_the_box_follows_its_pixels(hw, box_xyxy):
    seen = 0
    for seed in range(30):
        canvas = place(marked(box_xyxy), hw, np.random.default_rng(seed), min_kept=0.0)
        bright = canvas.pixels[..., 0] > 127
        assert canvas.pixels.shape == (*hw, 3)
        if len(canvas.boxes):
            np.testing.assert_allclose(canvas.boxes[0], extent(bright), atol=1.5)
            assert canvas.labels.tolist() == [7]
            seen += 1
        elif bright.any():  # left out, so only a sliver may be in sight
            x0, y0, x1, y1 = extent(bright)
            assert min(x1 - x0, y1 - y0) <= MIN_SIDE_PX + 1
    assert seen > 5


def test_half_of_the_pictures_are_flipped():
    left = marked((0, 0, 10, 80))  # a bar at the left edge: at the right where flipped
    flipped = 0
    for seed in range(100):
        canvas = place(left, (80, 120), np.random.default_rng(seed), min_kept=0.0)
        if len(canvas.boxes):
            flipped += bool(canvas.boxes[0, 0] > 60)
    assert 10 < flipped < 60


@pytest.mark.parametrize("side", [1, 2, 3])
def test_boxes_follow_their_pixels_through_a_mosaic(side):
    for seed in range(10):
        rng, drawn = np.random.default_rng(seed), []

        def draw(rng=rng, drawn=drawn):
            drawn.append(len(drawn))
            x, y = int(rng.integers(0, 60)), int(rng.integers(0, 40))
            return replace(marked((x, y, x + 50, y + 35)), labels=np.array([drawn[-1]]))

        canvas = mosaic([draw() for _ in range(side * side)], (150, 210), rng, min_kept=0.0)
        for box, label in zip(canvas.boxes, canvas.labels, strict=True):
            row, col = divmod(int(label), side)  # pictures fill the canvas row by row
            y0, x0 = 150 * row // side, 210 * col // side
            y1, x1 = 150 * (row + 1) // side, 210 * (col + 1) // side
            bright = np.zeros((150, 210), bool)
            bright[y0:y1, x0:x1] = canvas.pixels[y0:y1, x0:x1, 0] > 127
            np.testing.assert_allclose(box, extent(bright), atol=1.5)


def test_mosaic_keeps_every_picture_in_its_own_cell():
    reds = iter((0, 50, 100, 150))

    def draw():
        return scene(Image.new("RGB", (30, 30), (next(reds), 0, 0)), *NO_BOXES)

    canvas = mosaic([draw() for _ in range(4)], (40, 60), np.random.default_rng(0), min_kept=0.5)
    assert canvas.pixels[::20, ::30, 0].tolist() == [[0, 50], [100, 150]]
    assert canvas.boxes.shape == (0, 4) and canvas.labels.shape == (0,)


@pytest.mark.parametrize(
    "box_xyxy, min_kept, kept",
    [
        ([10, 10, 30, 30], 1.0, True),  # wholly inside
        ([40, 10, 60, 30], 0.5, True),  # the left half is inside
        ([40, 10, 60, 30], 0.51, False),
        ([40, 40, 60, 60], 0.25, True),  # a quarter
        ([40, 40, 60, 60], 0.3, False),
        ([50, 0, 90, 40], 0.0, False),  # touches the crop from outside
        ([60, 60, 90, 90], 0.0, False),
        ([10, 10, 13.9, 30], 0.0, False),  # thinner than 4 pixels
        ([10, 10, 14, 14], 0.0, True),
    ],
)
def test_min_kept_is_the_share_of_the_area_in_the_crop(monkeypatch, box_xyxy, min_kept, kept):
    monkeypatch.setattr(augment, "_random_crop", lambda *_: (0.0, 0.0, 50.0, 50.0))
    unflipped = SimpleNamespace(random=lambda: 0.9)
    picture = Image.new("RGB", (100, 100))
    boxes = np.array([box_xyxy], np.float32)
    canvas = place(scene(picture, boxes, np.array([0])), (50, 50), unflipped, min_kept=min_kept)
    expected = [np.clip(box_xyxy, 0, 50).tolist()] if kept else []
    np.testing.assert_allclose(canvas.boxes, np.array(expected).reshape(-1, 4), atol=1e-5)
    assert len(canvas.labels) == kept


def test_a_flip_mirrors_the_box(monkeypatch):
    monkeypatch.setattr(augment, "_random_crop", lambda *_: (0.0, 0.0, 50.0, 50.0))
    flipped = SimpleNamespace(random=lambda: 0.1)
    # twice as high, four times as wide
    canvas = place(marked((5, 10, 20, 40)), (100, 200), flipped, min_kept=0.5)
    assert canvas.boxes.tolist() == [[120.0, 20.0, 180.0, 80.0]]


@given(
    picture_hw=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    hw=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    corners=st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 4), max_size=4),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_any_picture_fits_any_cell_with_boxes_inside(picture_hw, hw, corners, seed):
    height, width = picture_hw
    points = np.array(corners, np.float32).reshape(-1, 4) * np.array([width, height] * 2, np.float32)
    boxes = np.concatenate([np.minimum(points[:, :2], points[:, 2:]), np.maximum(points[:, :2], points[:, 2:])], 1)
    labels = np.arange(len(boxes))
    given_scene = scene(Image.new("RGB", (width, height)), boxes, labels)
    canvas = place(given_scene, hw, np.random.default_rng(seed), min_kept=0.3)
    assert canvas.pixels.shape == (*hw, 3) and canvas.pixels.dtype == np.uint8
    assert canvas.boxes.shape == (len(canvas.labels), 4)
    limit = np.array([hw[1], hw[0]] * 2)
    assert ((canvas.boxes >= -1e-4) & (canvas.boxes <= limit + 1e-4)).all()
    assert (canvas.boxes[:, 2:] - canvas.boxes[:, :2] >= MIN_SIDE_PX - 1e-4).all()


@pytest.mark.parametrize("picture_hw", [(75, 60), (60, 91), (97, 97), (1, 1)])
@pytest.mark.parametrize("hw", [(64, 64), (64, 96), (96, 64), (1, 3)])
def test_a_crop_lies_in_the_picture_and_is_stretched_by_at_most_a_third(picture_hw, hw):
    height, width = picture_hw
    areas = []
    for seed in range(300):
        x0, y0, x1, y1 = augment._random_crop(picture_hw, hw, np.random.default_rng(seed))
        assert x0 >= 0 and y0 >= 0 and x1 <= width + 1e-9 and y1 <= height + 1e-9
        stretch = (x1 - x0) / (y1 - y0) / (hw[1] / hw[0])
        assert 3 / 4 < stretch < 4 / 3
        fits = min(width, height * stretch * hw[1] / hw[0])
        areas.append(((x1 - x0) / fits) ** 2)
    assert min(areas) > 0.39 and max(areas) < 1.01
    assert min(areas) < 0.5 and max(areas) > 0.99


def test_the_same_seed_gives_the_same_scene():
    def drawn(seed):
        return mosaic([marked((30, 20, 70, 50))] * 4, (64, 64), np.random.default_rng(seed), min_kept=0.3)

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert np.array_equal(first.pixels, again.pixels) and np.array_equal(first.boxes, again.boxes)
    assert not np.array_equal(first.pixels, other.pixels)


@pytest.mark.parametrize("hw", [(3, 3), (32, 33), (7, 64)])
def test_cells_of_a_few_pixels(hw):
    canvas = mosaic([marked((30, 20, 70, 50))] * 9, hw, np.random.default_rng(0), min_kept=0.3)
    assert canvas.pixels.shape == (*hw, 3)
    assert ((canvas.boxes[:, 2:] - canvas.boxes[:, :2]) >= MIN_SIDE_PX).all()


def test_a_picture_without_boxes_stays_without():
    empty = scene(Image.new("RGB", (50, 40)), *NO_BOXES)
    canvas = place(empty, (32, 32), np.random.default_rng(0), min_kept=0.6, zoom=1.0)
    assert canvas.boxes.shape == (0, 4) and canvas.labels.shape == (0,)


@pytest.mark.parametrize("hw", [(96, 96), (64, 96), (96, 64)])
@pytest.mark.parametrize("seed", range(8))
def test_a_zoomed_crop_holds_its_object_and_shows_it_large(hw, seed):
    box = np.array([[60, 30, 100, 70]], np.float32)
    picture = Image.new("RGB", (160, 120))
    rng = np.random.default_rng(seed)
    canvas = place(scene(picture, box, np.array([3])), hw, rng, min_kept=0.99, zoom=1.0)
    assert canvas.labels.tolist() == [3]
    sides = (canvas.boxes[0, 2:] - canvas.boxes[0, :2]) / [hw[1], hw[0]]
    assert 0.33 <= sides.max() <= 1


def test_scores_stay_with_their_boxes_and_only_boxes_with_odds_are_shown_large():
    boxes = np.array([[0, 0, 30, 30], [100, 80, 130, 110], [60, 30, 100, 70]], np.float32)
    vague = scene(
        Image.new("RGB", (160, 120)),
        boxes,
        np.array([4, 5, 6]),
        np.array([0.7, 0.0, 0.4], np.float32),
        np.array([0.0, 0.0, 2.0]),
    )
    score_of = {4: 0.7, 5: 0.0, 6: 0.4}
    for seed in range(20):
        canvas = place(vague, (96, 96), np.random.default_rng(seed), min_kept=0.5, zoom=1.0)
        assert 6 in canvas.labels  # the crop is always around it
        assert canvas.scores.tolist() == pytest.approx([score_of[label] for label in canvas.labels])


def test_of_a_vague_box_every_part_that_is_shown_stays_vague():
    picture = Image.new("RGB", (160, 120))
    boxes = np.array([[0, 0, 160, 120], [0, 0, 160, 120], [70, 50, 90, 70]], np.float32)
    scores = np.array([0.6, 0.0, 0.9], np.float32)
    whole = scene(picture, boxes, np.array([1, 2, 3]), scores, np.array([0.0, 0.0, 1.0]))
    for seed in range(10):  # close-ups of the small one, which show a part of the large ones
        canvas = place(whole, (96, 96), np.random.default_rng(seed), min_kept=0.9, zoom=1.0)
        assert canvas.labels.tolist() == [2, 3]
        assert canvas.boxes[0].tolist() == pytest.approx([0, 0, 96, 96], abs=1e-3)
