"""Maps of what pixels show, made by hand so that every value is known."""

import random
import weakref

import pytest
import torch
import torch.nn.functional as F

from owl_swin import segmentation
from owl_swin.encoded import View
from owl_swin.errors import ImageError, QueryError
from owl_swin.frame import Frame, crop_hw
from owl_swin.segmentation import affinities, map_thresholds, segment_views
from owl_swin.semantic_map import NOTHING
from owl_swin.tiling import Tiles, tile_crops
from owl_swin.types import ImageEmbeddings, MaskEmbeddings, PatchLogitInputs

AB = ("a", "b")


def view(logits, frame, pixels=None):
    """A view whose patches have these logits [Q, h, w] in this frame, and its pixels these embeddings [K, 4h, 4w]."""
    q, *grid_hw = logits.shape
    flat = logits.flatten(1).T  # [P, Q]: an embedding of one dimension a query
    patches = PatchLogitInputs(flat, torch.zeros(len(flat)), torch.ones(len(flat)))
    if pixels is None:
        pixels = torch.zeros(1, 4 * grid_hw[0], 4 * grid_hw[1])
    return View(
        ImageEmbeddings(
            *(torch.zeros(len(flat), q), torch.zeros(len(flat)), torch.ones(len(flat))),
            image_embed=torch.zeros(q),
            pred_boxes=torch.zeros(len(flat), 4),
            objectness_logits=torch.zeros(len(flat)),
            grid_hw=tuple(grid_hw),
            masks=MaskEmbeddings(torch.zeros(len(flat), 6), pixels, patches),
        ),
        frame,
    )


def segment(views, names=AB, threshold=0.5, crops=()):
    numbered = views if isinstance(views, list) and isinstance(views[0], tuple) else enumerate(views)
    return segment_views(
        numbered, lambda _: list(crops), lambda dense: dense.class_embeds, names, map_thresholds(names, threshold)
    )


def flat(values, grid_hw=(4, 4)):
    """Logits [Q, h, w], the same everywhere."""
    return torch.tensor(values)[:, None, None].expand(-1, *grid_hw)


def whole(image_hw, values, side=64):
    frame = Frame.fit(image_hw, side)
    return view(flat(values, tuple(s // 16 for s in frame.model_hw)), frame)


def tiled(image_hw, crops, values_of, values=(0.0, 0.0)):
    """The whole and its tiles, numbered; each tile says what ``values_of`` gives for its number."""
    frames = [Frame.fit(image_hw, 64, crop) for crop in crops]
    tiles = [
        view(flat(values_of(i), tuple(s // 16 for s in frame.model_hw)), frame) for i, frame in enumerate(frames, 1)
    ]
    return list(enumerate([whole(image_hw, list(values)), *tiles]))


def test_pixels_take_a_share_of_nine_patches():
    alike = affinities(torch.zeros(3, 8, 12), (2, 3))
    assert alike.shape == (9, 8, 12)
    assert torch.allclose(alike.sum(0), torch.ones(8, 12))
    # The quadratic B-spline, an eighth of a patch before and after the middle of the own one.
    before, own, after = 0.5 * 0.375**2, 0.75 - 0.125**2, 0.5 * 0.625**2
    assert alike[4, 2, 2].item() == pytest.approx(own * own)
    assert alike[[3, 5], 2, 2].tolist() == pytest.approx([own * before, own * after])
    torch.manual_seed(0)
    assert torch.allclose(affinities(torch.randn(3, 8, 12), (2, 3)).sum(0), torch.ones(8, 12))


def test_pixels_take_from_the_patches_that_are_like_them():
    pixels = torch.zeros(1, 8, 8)
    pixels[0, :, 5:] = 1  # the edge runs through the right patch, one pixel from its border
    weights = affinities(pixels, (2, 2))
    to_the_left = weights[[0, 3, 6]].sum(0)
    assert (to_the_left[:, 4] > 0.5).all()  # of the right patch by place, of the left one by what it is
    assert (to_the_left[:, 5:] < 0.02).all()


def slow(logits, pixels, image_hw):
    """Scores [Q, H, W] of the pixels of a picture, pixel after pixel."""
    logits = logits.sigmoid()
    q, rows, columns = logits.shape
    _, height, width = pixels.shape
    weights, sharp = affinities(pixels, (rows, columns)), torch.zeros(q, height, width)
    for y in range(height):
        for x in range(width):
            for k in range(9):
                row = min(max(y * rows // height + k // 3 - 1, 0), rows - 1)
                column = min(max(x * columns // width + k % 3 - 1, 0), columns - 1)
                sharp[:, y, x] += weights[k, y, x] * logits[:, row, column]
    return F.interpolate(sharp[None], image_hw, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("image_hw", [(50, 70), (3, 200), (16, 9)])
def test_a_map_in_blocks_is_the_map_of_all_pixels_at_once(image_hw, monkeypatch):
    monkeypatch.setattr(segmentation, "BLOCK", 16)
    monkeypatch.setattr(segmentation, "BLOCK_VALUES", 3 * 16**2)  # three names at a time
    torch.manual_seed(0)
    frame = Frame.fit(image_hw, 64)
    logits = 2 * torch.randn(7, *(side // 16 for side in frame.model_hw))
    pixels = torch.randn(4, *(side // 4 for side in frame.model_hw))
    thresholds = [0.1, 0.9, 0.5, 0.5, 0.5, 0.5, 1.0]
    found = segment([view(logits, frame, pixels)], "abcdefg", thresholds)
    scores = slow(logits, pixels, image_hw)
    scores[scores < torch.tensor(thresholds)[:, None, None]] = 0
    best, label = scores.max(0)
    assert torch.equal(found.labels.long(), torch.where(best > 0, label, NOTHING))
    assert torch.allclose(found.scores, best, atol=1e-5)
    assert found.labels.unique().numel() > 3
    assert found.names == tuple("abcdefg")


def test_names_that_cannot_win_are_not_computed(monkeypatch):
    asked = []
    at = segmentation.Layer.at
    monkeypatch.setattr(
        segmentation.Layer, "at", lambda self, block, names: asked.append(names.tolist()) or at(self, block, names)
    )
    found = segment([whole((40, 40), [1.0, -9.0, 3.0, 2.0])], "abcd", [0.5, 0.1, 0.99, 0.5])
    assert asked == [[3]]  # a is beaten by d, b and c do not reach their thresholds
    assert (found.labels == 3).all()


def test_edges_are_those_of_the_picture():
    size, stride = 128, 16
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    discs = ((x % 64 - 30) ** 2 + (y % 64 - 35) ** 2 < 14**2).float()
    share = F.avg_pool2d(discs[None, None], stride)[0, 0]
    logits = torch.stack([6 * share - 3, 3 - 6 * share])
    torch.manual_seed(0)
    noise = torch.randn(8, size // 4, size // 4)
    shown = F.avg_pool2d(discs[None], 4) + 0.1 * noise
    sharp, smooth, misled = (
        (segment([view(logits, Frame.fit((size, size), size), pixels)], threshold=0.0).labels != 1 - discs).float()
        for pixels in (shown, torch.zeros(8, size // 4, size // 4), noise)
    )
    assert sharp.mean() < 0.25 * smooth.mean()
    assert misled.mean() < 1.1 * smooth.mean()  # pixels that say nothing do no harm


def test_nothing_is_where_no_name_reaches_its_threshold():
    found = segment([whole((20, 30), [-1.0, -2.0])])
    assert (found.labels == NOTHING).all() and (found.scores == 0).all()
    found = segment([whole((20, 30), [-1.0, -2.0])], threshold={"a": 0.9, "b": 0.1})
    assert (found.labels == 1).all()
    assert torch.allclose(found.scores, torch.tensor(-2.0).sigmoid())
    assert (segment([whole((20, 30), [-50.0, -60.0])], threshold=0).labels == 0).all()


def test_queries_of_one_name_are_one_in_the_map():
    logits = torch.stack(
        [
            torch.cat([flat([value], (4, 2))[0] for value in pair], 1)
            for pair in ((9.0, -9.0), (-9.0, -9.0), (-9.0, 9.0))
        ]
    )
    found = segment([view(logits, Frame.fit((64, 64), 64))], ("dog", "sky", "dog"))
    assert found.names == ("dog", "sky")
    assert (found.labels[:, [0, -1]] == 0).all()


@pytest.mark.parametrize("names, said", [((), "a map needs names"), (["x"] * 40_000, "at most 32767 names, got 40000")])
def test_too_few_and_too_many_names_are_refused(names, said):
    with pytest.raises(QueryError, match=said):
        map_thresholds(names, 0.2)


def test_a_map_that_does_not_fit_in_memory_is_refused():
    with pytest.raises(ImageError, match="100000x10000 pixels does not fit"):
        segment([whole((10_000, 100_000), [0.0, 0.0])])


def test_padding_is_no_part_of_the_map():
    frame = Frame.letterbox((50, 100), 64)  # the lower half is padding
    logits = torch.full((2, 4, 4), -9.0)
    logits[0, :2], logits[1, 2:] = 9.0, 9.0
    found = segment([view(logits, frame)], threshold=0.0)
    assert found.image_hw == (50, 100)
    assert (found.labels[:40] == 0).all()


def test_tiles_say_what_they_show_and_the_whole_the_rest():
    found = segment(
        tiled((200, 300), [(100, 50, 180, 130)], lambda _: [3.0, -3.0], (-2.0, 2.0)), crops=[(100, 50, 180, 130)]
    )
    assert (found.labels[60:120, 110:170] == 0).all()
    outside = torch.ones(200, 300, dtype=torch.bool)
    outside[50:130, 100:180] = False
    assert (found.labels[outside] == 1).all()
    assert found.scores[90, 140].item() == pytest.approx(torch.tensor(3.0).sigmoid().item())


def test_tiles_at_a_border_of_the_picture_do_not_fade_there():
    crops = [(0, 0, 100, 100), (80, 0, 180, 100)]
    found = segment(tiled((100, 180), crops, lambda _: [3.0, -3.0], (-9.0, 9.0)), crops=crops)
    assert (found.labels == 0).all()
    assert found.scores.min().item() == pytest.approx(found.scores.max().item(), abs=1e-6)


def test_no_seam_is_seen_where_tiles_meet():
    image_hw = (120, 600)
    crops = tile_crops(Tiles(160, 0.25), image_hw)
    assert len(crops) > 3
    # Neighbours see the same place a little differently, as they do.
    found = segment(tiled(image_hw, crops, lambda i: [1.0 + i % 2, -9.0]), crops=crops)
    assert (found.labels == 0).all()
    steps = found.scores.diff(dim=1).abs().amax()
    assert 0 < steps < 0.015 < found.scores.max() - found.scores.min()


def test_tiles_come_in_any_order_and_are_forgotten_when_they_are_painted(monkeypatch):
    monkeypatch.setattr(segmentation, "BLOCK", 64)
    image_hw = (500, 200)
    crops = tile_crops(Tiles(100, 0.2), image_hw)
    torch.manual_seed(0)
    values = torch.randn(len(crops) + 1, 2)
    one = tiled(image_hw, crops, lambda i: values[i].tolist())
    shuffled = one[:1] + random.Random(0).sample(one[1:], len(crops))
    expected = segment(one, threshold=0.4, crops=crops)
    other = segment(shuffled, threshold=0.4, crops=crops)
    assert torch.equal(expected.labels, other.labels) and torch.equal(expected.scores, other.scores)
    assert set(expected.labels.unique().tolist()) == {-1, 0, 1}

    held, most = weakref.WeakSet(), 0

    def logits_of(dense):
        held.add(made := dense.class_embeds.clone())
        return made

    def counted():
        nonlocal most
        for pair in one:
            yield pair
            most = max(most, len(held))

    segment_views(counted(), lambda _: crops, logits_of, AB, map_thresholds(AB, 0.4))
    assert len(crops) == 18 and most <= 2 * 3 + 1  # of six rows of three tiles two, and the whole


def test_the_colours_of_a_crop_lie_where_it_is():
    crop = (30, 10, 94, 74)
    logits = torch.full((2, 4, 4), -9.0)
    logits[0, :, :2], logits[1, :, 2:] = 9.0, 9.0
    frames = [Frame.fit((100, 120), 64), Frame.fit((100, 120), 64, crop)]
    assert crop_hw(crop) == (64, 64)
    views = [view(torch.full((2, *(s // 16 for s in frames[0].model_hw)), -9.0), frames[0]), view(logits, frames[1])]
    found = segment(views, crops=[crop])
    assert (found.labels[20:60, 40:58] == 0).all() and (found.labels[20:60, 66:84] == 1).all()
    assert (found.labels[:, :30] == NOTHING).all() and (found.labels[80:] == NOTHING).all()
