"""Tiles of a picture, and what was found in them as one result."""

from itertools import pairwise

import pytest
import torch
from picture_files import noise
from torch.testing import assert_close

from owl_swin.detections import Detections
from owl_swin.detector import Detector
from owl_swin.encoded import EncodedImage, View
from owl_swin.errors import ImageError, OwlSwinError, QueryError
from owl_swin.exemplar import Exemplar
from owl_swin.frame import Frame
from owl_swin.postprocess import DetectOptions
from owl_swin.tiling import Tiles, merge_tiles, tile_crops
from owl_swin.types import ImageEmbeddings


@pytest.mark.parametrize(
    "image_hw, tiles, expected",
    [
        ((100, 100), Tiles(100), []),
        ((1, 1), Tiles(100), []),
        ((100, 180), Tiles(100, 0.2), [(0, 0, 100, 100), (80, 0, 180, 100)]),
        ((100, 181), Tiles(100, 0.2), [(0, 0, 100, 100), (40, 0, 140, 100), (81, 0, 181, 100)]),
        ((50, 200), Tiles(100, 0), [(0, 0, 100, 50), (100, 0, 200, 50)]),
        ((1, 200), Tiles(100, 0), [(0, 0, 100, 1), (100, 0, 200, 1)]),
        ((150, 1), Tiles(100, 0.5), [(0, 0, 1, 100), (0, 50, 1, 150)]),
        (
            (130, 120),
            Tiles(100, 0.5),
            [(0, 0, 100, 100), (20, 0, 120, 100), (0, 30, 100, 130), (20, 30, 120, 130)],
        ),
    ],
)
def test_tiles_cover_a_picture_at_even_distances(image_hw, tiles, expected):
    assert tiles.crops(image_hw) == expected


@pytest.mark.parametrize("overlap", [0, 0.2, 0.9])
@pytest.mark.parametrize("width", [33, 63, 64, 65, 999, 4000])
def test_neighbours_share_at_least_the_overlap_and_nothing_is_left_out(overlap, width):
    crops = Tiles(32, overlap).crops((1, width))
    assert crops[0][0] == 0 and crops[-1][2] == width and len(crops) > 1
    for (left, _, right, _), (next_left, *_) in pairwise(crops):
        assert right - left == 32 and left < next_left and right - next_left >= int(32 * overlap)


@pytest.mark.parametrize("size", [31, 4097, 640.0, True, "640", None])
def test_the_side_of_tiles_has_bounds(size):
    with pytest.raises(QueryError, match="the side of tiles must be a whole number of pixels from 32 to 4096, got"):
        Tiles(size)


@pytest.mark.parametrize("overlap", [-0.1, 0.91, 1, float("nan"), True, "0.2"])
def test_the_overlap_of_tiles_has_bounds(overlap):
    with pytest.raises(QueryError, match=r"the overlap of tiles must be a share of their side from 0 to 0.9, got"):
        Tiles(640, overlap)


def test_tiles_may_be_a_side_or_boxes(detector, picture):
    assert tile_crops(None, (9, 9)) == tile_crops([], (9, 9)) == []
    assert tile_crops(32, (32, 64)) == Tiles(32).crops((32, 64)) != []
    assert tile_crops([(0, 0, 9, 9)], (9, 9)) == [(0, 0, 9, 9)]
    for wrong in ("640", b"640", {640}, 640.5, True):
        with pytest.raises(QueryError, match=r"^(tiles are a side in pixels, Tiles|the side of tiles must)"):
            detector.detect(picture, ["cat"], tiles=wrong)


# --- Merging -------------------------------------------------------------------------------------------------------
#
# A picture of 180 x 100 pixels in two tiles that have x from 80 to 100 in common.
WHOLE, LEFT, RIGHT = None, (0, 0, 100, 100), (80, 0, 180, 100)


def found(*rows, hw=(100, 180), names=("cat", "dog")):
    """Detections of (box, score, label), whose patches are their scores in percent."""
    rows = sorted(rows, key=lambda row: -row[1])
    scores = [row[1] for row in rows]
    return Detections(
        torch.tensor([row[0] for row in rows], dtype=torch.float).reshape(-1, 4),
        torch.tensor(scores),
        torch.tensor([row[2] for row in rows], dtype=torch.long),
        names,
        hw,
        torch.tensor([round(100 * score) for score in scores], dtype=torch.long),
    )


def merged(*parts, crops=(WHOLE, LEFT, RIGHT), **options):
    """[(box, score, label)] of the result, best first."""
    result = merge_tiles([found(*part) for part in parts], crops, DetectOptions(threshold=0, **options))
    rows = zip(result.boxes.tolist(), result.scores.tolist(), result.labels.tolist(), strict=True)
    return [(tuple(box), round(score, 2), label) for box, score, label in rows]


CUT_LEFT, CUT_RIGHT = ((40, 20, 100, 60), 0.6, 0), ((80, 22, 140, 60), 0.8, 0)


@pytest.mark.parametrize(
    "whole, left, right, expected",
    [
        ([], [], [], []),
        # Two halves of one thing, the better score.
        ([], [CUT_LEFT], [CUT_RIGHT], [((40, 20, 140, 60), 0.8, 0)]),
        # Their boxes need not reach the border to the pixel.
        ([], [((40, 20, 98, 60), 0.6, 0)], [((82, 20, 140, 60), 0.8, 0)], [((40, 20, 140, 60), 0.8, 0)]),
        # What reaches past the tile was not seen.
        ([], [((40, 20, 180, 60), 0.6, 0)], [((80, 20, 140, 60), 0.8, 0)], [((40, 20, 140, 60), 0.8, 0)]),
        # Another name is another thing.
        ([], [CUT_LEFT], [((80, 20, 140, 60), 0.8, 1)], [((80, 20, 140, 60), 0.8, 1), CUT_LEFT]),
        # Halves at other heights are of two things.
        (
            [],
            [((40, 0, 100, 40), 0.6, 0)],
            [((80, 30, 140, 60), 0.8, 0)],
            [((80, 30, 140, 60), 0.8, 0), ((40, 0, 100, 40), 0.6, 0)],
        ),
        # Of two that could be the other half, the one that fits best is.
        (
            [],
            [CUT_LEFT],
            [((80, 20, 140, 60), 0.5, 0), ((80, 40, 180, 64), 0.4, 0)],
            [((40, 20, 140, 60), 0.6, 0), ((80, 40, 180, 64), 0.4, 0)],
        ),
        # A thing that ends in the overlap is whole in one tile, and a part of it in the other is left away.
        ([], [((70, 20, 98, 40), 0.6, 0)], [((80, 20, 98, 40), 0.7, 0)], [((70, 20, 98, 40), 0.7, 0)]),
        ([], [((95, 20, 100, 40), 0.9, 0)], [((95, 20, 150, 40), 0.3, 0)], [((95, 20, 150, 40), 0.9, 0)]),
        # A thing that both tiles see whole is one.
        ([], [((82, 20, 97, 40), 0.6, 0)], [((82, 20, 97, 41), 0.7, 0)], [((82, 20, 97, 41), 0.7, 0)]),
        # A part of what the whole picture shows is left away, even where its halves do not meet.
        (
            [((20, 10, 160, 90), 0.5, 0)],
            [((25, 10, 100, 80), 0.6, 0)],
            [((80, 60, 155, 90), 0.4, 0)],
            [((20, 10, 160, 90), 0.6, 0)],
        ),
        # What was seen whole is better than what was put together, unless it hardly was seen.
        (
            [((36, 18, 144, 66), 0.4, 0)],
            [CUT_LEFT],
            [CUT_RIGHT],
            [((36, 18, 144, 66), 0.8, 0)],
        ),
        ([((36, 18, 144, 66), 0.1, 0)], [CUT_LEFT], [CUT_RIGHT], [((40, 20, 140, 60), 0.8, 0)]),
        # Nor does a box of next to no score hold or join anything.
        (
            [((20, 10, 160, 90), 0.1, 0)],
            [CUT_LEFT],
            [((80, 20, 140, 60), 0.1, 0)],
            [CUT_LEFT, ((20, 10, 160, 90), 0.1, 0)],
        ),
        ([((10, 10, 170, 90), 0.7, 0)], [CUT_LEFT], [CUT_RIGHT], [((10, 10, 170, 90), 0.8, 0)]),
        # Boxes that fall short of the border are of one thing where they agree in what both tiles show.
        ([], [((10, 20, 94, 60), 0.6, 0)], [((80, 20, 140, 60), 0.8, 0)], [((10, 20, 140, 60), 0.8, 0)]),
        # Neighbours that overlap in the overlap are two.
        (
            [],
            [((20, 20, 92, 60), 0.6, 0)],
            [((88, 20, 160, 60), 0.8, 0)],
            [((88, 20, 160, 60), 0.8, 0), ((20, 20, 92, 60), 0.6, 0)],
        ),
        # But not what lies whole in a larger box.
        (
            [((20, 10, 160, 90), 0.5, 0)],
            [((30, 20, 60, 50), 0.6, 0)],
            [],
            [((30, 20, 60, 50), 0.6, 0), ((20, 10, 160, 90), 0.5, 0)],
        ),
        # Nor what is cut where the larger one does not go on.
        (
            [((20, 10, 99, 90), 0.5, 0)],
            [((70, 20, 100, 50), 0.6, 0)],
            [],
            [((70, 20, 100, 50), 0.6, 0), ((20, 10, 99, 90), 0.5, 0)],
        ),
        # The border of the picture cuts nothing.
        (
            [((0, 10, 160, 90), 0.5, 0)],
            [((0, 20, 40, 50), 0.6, 0)],
            [],
            [((0, 20, 40, 50), 0.6, 0), ((0, 10, 160, 90), 0.5, 0)],
        ),
    ],
)
def test_a_thing_that_a_seam_cuts_comes_out_once(whole, left, right, expected):
    assert merged(whole, left, right) == expected
    # The order of the tiles, and rows for columns, change nothing.
    assert merged(right, whole, left, crops=(RIGHT, WHOLE, LEFT)) == expected
    turned = [[((y0, x0, y1, x1), s, q) for (x0, y0, x1, y1), s, q in part] for part in (whole, left, right)]
    crops = (WHOLE, (0, 0, 100, 100), (0, 80, 100, 180))
    result = merge_tiles([found(*part, hw=(180, 100)) for part in turned], crops, DetectOptions(threshold=0))
    assert [(x0, y0, x1, y1) for y0, x0, y1, x1 in result.boxes.tolist()] == [row[0] for row in expected]


def test_halves_meet_without_an_overlap_too():
    crops = ((0, 0, 90, 100), (90, 0, 180, 100))
    halves = [((40, 20, 90, 60), 0.6, 0)], [((90, 20, 130, 60), 0.8, 0)]
    assert merged(*halves, crops=crops) == [((40, 20, 130, 60), 0.8, 0)]


def test_a_thing_in_a_corner_of_four_tiles_or_over_three_is_one():
    four = [(0, 0, 100, 100), (80, 0, 180, 100), (0, 80, 100, 180), (80, 80, 180, 180)]
    box = (50, 60, 130, 140)
    parts = [
        [((max(box[0], x0), max(box[1], y0), min(box[2], x1), min(box[3], y1)), 0.5, 0)] for x0, y0, x1, y1 in four
    ]
    options = DetectOptions(threshold=0)
    result = merge_tiles([found(*part, hw=(180, 180)) for part in parts], four, options)
    assert result.boxes.tolist() == [list(box)]
    three = [(0, 0, 100, 100), (80, 0, 180, 100), (160, 0, 260, 100)]
    parts = [[((30, 10, 100, 50), 0.5, 0)], [((80, 10, 180, 50), 0.4, 0)], [((160, 10, 240, 50), 0.3, 0)]]
    result = merge_tiles([found(*part, hw=(100, 260)) for part in parts], three, options)
    assert result.boxes.tolist() == [[30, 10, 240, 50]] and result.scores.tolist() == [0.5]
    assert result.best == result[0] and result.patches.tolist() == [50]


def test_settings_hold_for_the_picture_and_not_for_each_tile():
    one, other = [((10, 10, 30, 30), 0.6, 0)], [((150, 10, 170, 30), 0.8, 1)]
    assert merged([], one, other, max_detections=1) == other
    # Names compete only where that is asked for, and no name takes the score of another.
    cat, dog = [((95, 20, 100, 40), 0.9, 0)], [((95, 20, 150, 40), 0.3, 1)]
    assert merged([], cat, dog, nms_across=True) == [*cat, *dog]
    same = [((95, 20, 150, 40), 0.4, 0)], [((95, 20, 150, 40), 0.3, 1)]
    assert merged(same[0], [], same[1], nms_across=True) == same[0]
    # Without suppression all boxes stay, parts too.
    assert merged([], [CUT_LEFT], [CUT_RIGHT], nms_iou=None) == [CUT_RIGHT, CUT_LEFT]


def test_a_thousand_cut_boxes_need_no_memory_of_all_pairs():
    """More than are compared at once, each in its own place along a long picture."""
    hw, n = (40_000, 180), 1000
    rows = [(20 + 35 * i, 40 + 35 * i) for i in range(n)]
    left = [((40, y0, 100, y1), 0.5, 0) for y0, y1 in rows]
    right = [((80, y0, 150, y1), 0.4, 0) for y0, y1 in rows]
    crops = [(0, 0, 100, hw[0]), (80, 0, 180, hw[0])]
    options = DetectOptions(threshold=0, max_detections=2000)
    result = merge_tiles([found(*left, hw=hw), found(*right, hw=hw)], crops, options)
    assert len(result) == n and result.boxes[:, [0, 2]].unique(dim=0).tolist() == [[40, 150]]


# --- Through the detector ------------------------------------------------------------------------------------------


class Painted:
    """A detector whose network finds each red thing of a picture exactly, as far as a frame shows it."""

    def __new__(cls, detector, monkeypatch):
        made = Detector(detector._encoder.pretrained, device="cpu", image_size=96)

        def encode_pixels(pixels, masks=False):
            return [Painted.embeddings(one, made.spec.embed_dim) for one in pixels]

        monkeypatch.setattr(made._encoder, "encode_pixels", encode_pixels)
        return made

    @staticmethod
    def embeddings(pixels, embed_dim):
        red = (pixels[0] > 200) & (pixels[1] < 50)
        height, width = red.shape
        ys, xs = red.nonzero(as_tuple=True)
        box = [0.0, 0.0, 0.0, 0.0]
        if len(ys):
            x0, x1, y0, y1 = xs.min() / width, (xs.max() + 1) / width, ys.min() / height, (ys.max() + 1) / height
            box = [float(v) for v in ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)]
        one = torch.nn.functional.normalize(torch.ones(1, embed_dim), dim=-1)
        return ImageEmbeddings(
            one,
            torch.full((1,), 1.0),
            torch.full((1,), 5.0),
            image_embed=one[0],
            pred_boxes=torch.tensor([box]),
            objectness_logits=torch.full((1,), 3.0),
            grid_hw=(1, 1),
        )


@pytest.mark.parametrize("ask", ["text", "exemplar", None])
def test_a_cut_thing_is_found_once_by_text_by_exemplar_and_without_queries(detector, monkeypatch, picture, ask):
    # In the whole picture the thing is smaller than a pixel of the model; only tiles show it, and each a half.
    image = noise(96, 4000).point(lambda value: value // 4)
    image.paste((255, 0, 0), (2000, 30, 2064, 62))
    crops = [(1000, 0, 2032, 96), (2016, 0, 3000, 96)]
    queries = {"text": ["cat"], "exemplar": [Exemplar(picture)], None: None}[ask]
    painted = Painted(detector, monkeypatch)
    settings = {"threshold": 0, "tiles": crops, "image_size": 1024}
    result = painted.detect(image, queries, **settings)
    in_tiles = [painted.detect(image.crop(crop), queries, threshold=0, image_size=1024) for crop in crops]
    assert [len(one) for one in in_tiles] == [1, 1] and len(result) == 1
    assert_close(result.boxes, torch.tensor([[2000.0, 30, 2064, 62]]), atol=4, rtol=0)


def assert_alike(one, other):
    """The same but for the rounding of batches of other sizes."""
    assert one.labels.tolist() == other.labels.tolist() and one.patches.tolist() == other.patches.tolist()
    assert_close(one.boxes, other.boxes, atol=1e-3, rtol=1e-4)
    assert_close(one.scores, other.scores, atol=1e-5, rtol=1e-4)


def test_every_door_gives_the_same_result(detector):
    image = noise(150, 260, seed=3)
    settings = {"threshold": 0.0, "top_k": 20}
    alone = detector.detect(image, ["cat", "dog"], tiles=Tiles(96, 0.25), **settings)
    assert len(alone) == 20 and alone != detector.detect(image, ["cat", "dog"], **settings)
    encoded = detector.encode_image(image, tiles=Tiles(96, 0.25))
    assert len(encoded.views) == 1 + len(Tiles(96, 0.25).crops((150, 260)))
    prepared = detector.prepare(image, tiles=Tiles(96, 0.25))
    for ready in (encoded, prepared):
        assert_alike(detector.detect(ready, ["cat", "dog"], **settings), alone)
    many = {"tiles": Tiles(96, 0.25), **settings}
    for batch_size in (1, 8):
        found = detector.detect_batch([image] * 2, ["cat", "dog"], batch_size=batch_size, **many)
        found += detector.stream([image] * 2, ["cat", "dog"], batch_size=batch_size, **many)
        assert len(found) == 4
        for one in found:
            assert_alike(one, alone)
    assert detector.detect_batch([image], [["dog"]], **many)[0].names == ("dog",)
    small = noise(60, 90)
    assert detector.detect(small, ["cat"], tiles=96, **settings) == detector.detect(small, ["cat"], **settings)


def test_few_tiles_are_in_memory_at_a_time(detector, monkeypatch):
    sizes = []
    encode = detector._encoder.encode_pixels

    def counted(pixels, masks=False):
        sizes.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(detector._encoder, "encode_pixels", counted)
    detector.detect_batch([noise(96, 960)], ["cat"], tiles=Tiles(96, 0), batch_size=3)
    assert sum(sizes) == 11 and max(sizes) <= 3


def test_pictures_of_a_stream_of_tiles_that_cannot_be_read_are_named(detector, tmp_path, picture):
    found = list(detector.stream([tmp_path / "none.jpg", picture], ["cat"], tiles=32, on_error="return"))
    assert isinstance(found[0], ImageError) and isinstance(found[1], Detections)
    with pytest.raises(ImageError, match=r"none\.jpg"):
        list(detector.stream([tmp_path / "none.jpg"], ["cat"], tiles=32))
    ready = detector.prepare(picture)
    with pytest.raises(OwlSwinError, match="prepared or encoded already"):
        detector.detect_batch([ready], ["cat"], tiles=32)


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1)])
def test_a_line_of_one_pixel_in_tiles(detector, size):
    result = detector.detect(noise(size[1], size[0]), ["cat"], tiles=640, threshold=0)
    assert result.image_hw == size[::-1] and len(result) > 0
    boxes = result.boxes
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= size[0]).all() and (boxes[:, 3] <= size[1]).all()


def test_views_of_one_picture_are_merged_whoever_made_them(detector):
    """An EncodedImage of two tiles by hand: boxes are cut by their tiles and joined."""

    def view(box, crop):
        embeddings = Painted.embeddings(torch.zeros(3, 4, 4), detector.spec.embed_dim)
        embeddings.pred_boxes[:] = torch.tensor(box)
        return View(embeddings, Frame((100, 180), (100, 100), (100, 100), crop))

    encoded = EncodedImage((view([0.7, 0.4, 0.6, 0.4], LEFT), view([0.3, 0.4, 0.6, 0.4], RIGHT)))
    result = detector.detect(encoded, threshold=0)
    assert_close(result.boxes, torch.tensor([[40.0, 20, 140, 60]]))


@pytest.mark.parametrize("image_hw", [(1, 1), (100, 100), (1, 4000), (333, 77), (101, 250)])
@pytest.mark.parametrize("tiles", [Tiles(100, 0), Tiles(40, 0.5), Tiles(32, 0.9)])
def test_tiles_are_counted_before_they_are_made(image_hw, tiles):
    assert tiles.count(image_hw) == len(tiles.crops(image_hw))


def test_views_come_one_after_another_as_encode_image_has_them(detector):
    picture, tiles = noise(100, 150), Tiles(64)
    whole = detector.encode_image(picture, tiles=tiles)
    views = dict(detector.views(picture, tiles=tiles, batch_size=2))
    assert sorted(views) == list(range(len(whole.views))) and len(views) > 2
    for number, view in views.items():
        assert view.frame == whole.views[number].frame
        assert_close(view.embeddings.class_embeds, whole.views[number].embeddings.class_embeds)
    with pytest.raises(QueryError, match="prepared or encoded already"):
        detector.views(whole, tiles=tiles)
