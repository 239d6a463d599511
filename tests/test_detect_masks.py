"""Masks from the network to the caller's pixels: whole pictures, padded frames, crops, tiles."""

from dataclasses import replace

import pytest
import torch
from picture_files import noise
from torch.testing import assert_close

from owl_swin.detections import Detections
from owl_swin.encoded import View
from owl_swin.errors import QueryError
from owl_swin.frame import Frame
from owl_swin.mask_sampling import joined_masks, masks_in_view
from owl_swin.masks import BoxMasks
from owl_swin.models.masks import PLACES
from owl_swin.postprocess import DetectOptions
from owl_swin.tiling import find_in_views, merge_tiles
from owl_swin.types import ImageEmbeddings, MaskEmbeddings, PatchLogitInputs


def view_of(frame: Frame, shown: torch.Tensor, boxes_px) -> View:
    """A view whose every patch has one of the boxes, and whose pixels answer 10 where the picture shows a thing and -10
    where not. ``shown`` is bool [H, W] of the picture; of padding no pixel answers."""
    height, width = frame.model_hw
    x, y = ((torch.arange(n // 4) + 0.5) * 4 for n in (width, height))
    y_span, x_span = frame.spans_hw
    left, top = frame.crop_xyxy[:2] if frame.crop_xyxy else (0, 0)
    columns, rows = (left + x / width * x_span).long(), (top + y / height * y_span).long()
    inside = (rows < frame.image_hw[0])[:, None] & (columns < frame.image_hw[1])
    answers = shown[rows.clamp(max=frame.image_hw[0] - 1)[:, None], columns.clamp(max=frame.image_hw[1] - 1)] & inside
    n = len(boxes_px)
    ask = torch.cat([torch.ones(n, 1), torch.zeros(n, PLACES)], 1)
    class_embeds = torch.eye(n, max(n, 2))
    inputs = PatchLogitInputs(class_embeds, torch.zeros(n), torch.ones(n))
    embeddings = ImageEmbeddings(
        class_embeds,
        torch.zeros(n),
        torch.ones(n),
        image_embed=torch.zeros(2),
        pred_boxes=frame.from_image(torch.tensor(boxes_px, dtype=torch.float32).view(n, 4)),
        objectness_logits=torch.linspace(3, 2, n),
        grid_hw=(1, n),
        masks=MaskEmbeddings(ask, answers[None] * 20.0 - 10, inputs),
    )
    return View(embeddings, frame)


def ellipse(hw, box) -> torch.Tensor:
    """bool [H, W]: the ellipse that touches a box."""
    y, x = ((torch.arange(n) + 0.5) for n in hw)
    x0, y0, x1, y1 = box
    u, v = (2 * x - x0 - x1) / (x1 - x0), (2 * y - y0 - y1) / (y1 - y0)
    return u**2 + v[:, None] ** 2 < 1


def iou(mask: torch.Tensor, other: torch.Tensor) -> float:
    return float((mask & other).sum() / (mask | other).sum())


@pytest.mark.parametrize(
    "frame",
    [
        Frame.fit((150, 300), 320),
        Frame.fit((150, 300), 320, (60, 20, 260, 140)),
        Frame.letterbox((150, 300), 320),
        Frame.letterbox((300, 150), 320, (10, 10, 140, 150)),
        replace(Frame.letterbox((150, 300), 320), padded_hw=(1.0, 1.0)),
    ],
    ids=["whole", "crop", "padded", "crop in a padded frame", "padded by a family"],
)
def test_masks_lie_where_the_thing_is_in_any_frame(frame):
    x0, y0, x1, y1 = frame.crop_xyxy or (0, 0, *frame.image_hw[::-1])
    box = [x0 + 0.2 * (x1 - x0), y0 + 0.3 * (y1 - y0), x0 + 0.8 * (x1 - x0), y0 + 0.9 * (y1 - y0)]
    shown = ellipse(frame.image_hw, box)
    view = view_of(frame, shown, [box])
    found = find_in_views([(0, view)], lambda e: e.objectness_logits[:, None], ["thing"], DetectOptions(masks=True))
    assert found.masks.shape == (1, *frame.image_hw) and found.boxes[0].tolist() == pytest.approx(box, abs=0.01)
    assert iou(found.masks[0], shown) > 0.95


def test_what_a_view_does_not_show_of_a_box_is_outside_of_its_mask():
    frame = Frame.fit((100, 200), 96, (50, 0, 150, 100))
    view = view_of(frame, torch.ones(100, 200, dtype=torch.bool), [[10, 20, 120, 80]])
    (mask,) = masks_in_view(view, torch.tensor([0]), torch.tensor([[10.0, 20, 120, 80]]))
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    assert (int(rows.min()), int(rows.max())) == (20, 79) and int(columns.max()) == 119
    assert int(columns.min()) == pytest.approx(50, abs=3)


def test_masks_of_what_stays_only_and_no_more_than_the_map_can_say(monkeypatch):
    made = []
    ask = torch.Tensor.__matmul__
    shown = torch.ones(400, 400, dtype=torch.bool)
    boxes = [[10.0 + i % 3, 10, 390, 390] for i in range(60)] + [[100, 100, 120, 110]]
    view = view_of(Frame.fit((400, 400), 640), shown, boxes)
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: made.append(len(a)) or ask(a, b))
    found = find_in_views([(0, view)], lambda e: e.objectness_logits[:, None], ["thing"], DetectOptions(masks=True))
    assert len(found) == 2 and sum(made) == 2
    assert found.masks.logits.shape == (2, 128, 128) and found.masks.logits.dtype == torch.float16
    assert masks_in_view(view, torch.tensor([60]), found.boxes[1:]).logits.shape == (1, 28, 28)


def test_many_masks_are_made_a_few_at_a_time(monkeypatch):
    shown = ellipse((96, 96), [10, 10, 90, 80])
    view = view_of(Frame.fit((96, 96), 96), shown, [[10 + i, 10, 90, 80 + i] for i in range(7)])
    patches, boxes = torch.arange(7), view.frame.to_image(view.embeddings.pred_boxes)
    at_once = masks_in_view(view, patches, boxes)
    monkeypatch.setattr("owl_swin.mask_sampling.LOGITS_AT_ONCE", 2000)
    assert masks_in_view(view, patches, boxes) == at_once


@pytest.mark.parametrize("hw", [(60, 90), (1, 4000), (4000, 1), (7, 3), (200, 200)])
def test_boxes_are_the_same_with_masks(masked_detector, hw):
    picture = noise(*hw)
    plain = masked_detector.detect(picture, ["a cat", "a dog"], threshold=0.0, top_k=20)
    found = masked_detector.detect(picture, ["a cat", "a dog"], threshold=0.0, top_k=20, masks=True)
    assert plain.masks is None and replace(found, masks=None) == plain and len(found)
    assert found.masks.shape == (len(found), *hw) and torch.equal(found.masks.boxes_px, found.boxes)
    assert int(found.masks.to_tensor().sum()) > 0 and len(found.rle()) == len(found)


def test_one_mask_or_many_in_every_call(masked_detector):
    pictures = [noise(60, 90), noise(90, 60, 1), noise(60, 90, 2)]
    options = DetectOptions(threshold=0.1, masks=True)
    alone = [masked_detector.detect(one, ["a cat"], options=options) for one in pictures]
    batch = masked_detector.detect_batch(pictures, ["a cat"], options=options)
    assert all(len(one) and one.masks is not None for one in alone)
    for one, other in zip(alone, batch, strict=True):
        assert_close(one.boxes, other.boxes, rtol=0, atol=1e-2)
        assert_close(one.masks.logits, other.masks.logits, rtol=1e-2, atol=1e-2)
    streamed = masked_detector.stream(iter(pictures), ["a cat"], threshold=0.1, masks=True)
    assert list(streamed) == batch
    encoded = masked_detector.encode_images(pictures, masks=True)
    assert masked_detector.detect_batch(encoded, ["a cat"], threshold=0.1, masks=True) == batch
    assert masked_detector.detect(encoded[0], ["a cat"], threshold=0.1) == replace(batch[0], masks=None)
    prepared = masked_detector.prepare(pictures[0])
    assert masked_detector.detect(prepared, ["a cat"], threshold=0.1, masks=True) == alone[0]
    everything = masked_detector.detect(pictures[0], masks=True, threshold=0.1)
    assert everything.masks.shape == (len(everything), 60, 90)


def test_no_detections_have_masks_too(masked_detector):
    none = masked_detector.detect(noise(60, 90), ["a cat"], threshold=1.0, masks=True)
    assert len(none) == 0 and none.masks.shape == (0, 60, 90) and none.rle() == [] and none.polygons() == []


def test_what_was_encoded_without_masks_has_none(masked_detector):
    encoded = masked_detector.encode_image(noise(60, 90))
    assert encoded.nbytes < masked_detector.encode_image(noise(60, 90), masks=True).nbytes
    with pytest.raises(QueryError, match="this picture was encoded without masks; encode it with masks=True"):
        masked_detector.detect(encoded, ["a cat"], masks=True)


def test_a_model_without_masks_says_which_has_them(detector):
    said = "the model 'tiny_for_tests' finds boxes and makes no masks; train one that does"
    picture = noise(60, 90)
    for ask in (
        lambda: detector.detect(picture, ["a cat"], masks=True),
        lambda: detector.detect_batch([picture], ["a cat"], masks=True),
        lambda: detector.stream([picture], ["a cat"], masks=True, on_error="return"),
        lambda: detector.encode_image(picture, masks=True),
        lambda: detector.encode_images([], masks=True),
        lambda: list(detector.views(picture, masks=True)),
    ):
        with pytest.raises(QueryError, match=said):
            ask()
    with pytest.raises(QueryError, match="masks must be True or False, got 1"):
        DetectOptions(masks=1)


def found_in(frame: Frame, shown: torch.Tensor, boxes, scores) -> Detections:
    """What a tile's own boxes and masks are."""
    view = view_of(frame, shown, boxes)
    n = len(boxes)
    found = Detections(
        frame.to_image(view.embeddings.pred_boxes),
        torch.tensor(scores),
        torch.zeros(n, dtype=torch.long),
        ("thing",),
        frame.image_hw,
        torch.arange(n),
    )
    return replace(found, masks=masks_in_view(view, found.patches, found.boxes))


def test_a_thing_that_a_seam_cuts_has_the_masks_of_its_parts():
    hw, thing = (100, 300), [60, 20, 250, 80]
    shown = ellipse(hw, thing)
    crops = [(0, 0, 160, 100), (140, 0, 300, 100)]
    parts = [
        found_in(Frame.fit(hw, 160, crops[0]), shown, [[60, 20, 160, 80]], [0.9]),
        found_in(Frame.fit(hw, 160, crops[1]), shown, [[140, 20, 250, 80]], [0.7]),
    ]
    merged = merge_tiles(parts, crops, DetectOptions(masks=True))
    assert merged.boxes[0].tolist() == pytest.approx(thing, abs=0.01) and merged.masks.shape == (1, *hw)
    assert iou(merged.masks[0], shown) > 0.95


def test_tiles_each_have_their_own_masks():
    hw, crops = (100, 200), [None, (0, 0, 100, 100), (100, 0, 200, 100)]
    things = [[10, 20, 60, 70], [130, 30, 190, 90]]
    shown = ellipse(hw, things[0]) | ellipse(hw, things[1])
    frames = [Frame.fit(hw, 192, crop) for crop in crops]
    parts = [found_in(frames[0], shown, [[10, 20, 60, 70]], [0.5]), found_in(frames[1], shown, things[:1], [0.9])]
    parts.append(found_in(frames[2], shown, things[1:], [0.8]))
    for nms_iou, n in ((0.5, 2), (None, 3)):
        merged = merge_tiles(parts, crops, DetectOptions(masks=True, nms_iou=nms_iou))
        assert len(merged) == n and merged.masks.shape == (n, *hw)
        assert iou(merged.masks.to_tensor().any(0), shown) > 0.95
    assert merge_tiles([part[:0] for part in parts], crops, DetectOptions(masks=True)).masks.shape == (0, *hw)


def test_what_takes_no_part_in_joining_tiles_keeps_no_masks(monkeypatch):
    monkeypatch.setattr("owl_swin.postprocess.NMS_CANDIDATES", 2)
    kept = []
    monkeypatch.setattr("owl_swin.tiling.join_views", lambda views, _: kept.extend(views.values()))
    shown = torch.ones(40, 400, dtype=torch.bool)

    def views():
        for i in range(10):
            crop = (40 * i, 0, 40 * i + 40, 40)
            yield (
                i,
                view_of(
                    Frame.fit((40, 400), 32, crop),
                    shown,
                    [[40 * i + 20 * k, 5, 40 * i + 18 + 20 * k, 30] for k in (0, 1)],
                ),
            )

    options = DetectOptions(masks=True, max_detections=1)
    find_in_views(views(), lambda e: (e.objectness_logits * 0.5)[:, None], ["thing"], options)
    assert len(kept) == 10 and {len(view.found) for view in kept} <= {0, 1, 2}
    assert sum(len(view.found.masks) for view in kept) <= 2 * options.n_candidates


def test_tiles_of_a_picture_have_masks(masked_detector):
    picture = noise(120, 200)
    found = masked_detector.detect(picture, ["a cat"], threshold=0.3, masks=True, tiles=96, top_k=10)
    plain = masked_detector.detect(picture, ["a cat"], threshold=0.3, tiles=96, top_k=10)
    assert len(found) and replace(found, masks=None) == plain
    assert found.masks.shape == (len(found), 120, 200) and torch.equal(found.masks.boxes_px, found.boxes)


def test_a_mask_put_together_of_one_is_the_same():
    masks = BoxMasks(torch.randn(2, 28, 28), torch.tensor([[3.0, 4, 30, 44], [1, 1, 9, 9]]), (50, 50))
    same = joined_masks(masks, masks.boxes_px.flip(0), [[1], [0]])
    assert (same.to_tensor() ^ masks[[1, 0]].to_tensor()).sum() < 10
    assert joined_masks(masks, torch.zeros(0, 4), []).shape == (0, 50, 50)
