"""Queries by example: which patch answers for a box, how several are joined, and boxes that mean nothing."""

import math

import numpy as np
import pytest
import torch
from picture_files import encode, noise, turned
from PIL import Image
from torch.testing import assert_close

from owl_swin.boxes import pairwise_iou
from owl_swin.errors import ImageError, QueryError
from owl_swin.exemplar import Exemplar, check_box, combine, most_object_like, patch_of_box
from owl_swin.frame import Frame, SwinPreprocess, exemplar_frame
from owl_swin.types import ImageEmbeddings, QueryEmbeddings

pytestmark = pytest.mark.numeric

BOX = (10, 12, 50, 44)

# --- Boxes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "box, sentence",
    [
        ((1, 2, 3), "four numbers"),
        ((), "four numbers"),
        ("1234", "four numbers"),
        (5, "four numbers"),
        (("a", 1, 2, 3), "four numbers"),
        ((0, 0, math.nan, 5), "finite"),
        ((0, 0, math.inf, 5), "finite"),
        ((30, 10, 20, 40), "xmin < xmax"),
        ((10, 40, 20, 30), "ymin < ymax"),
        ((10, 10, 10, 40), "xmin < xmax"),
        ((90, 0, 120, 60), "covers no pixel of the picture, which is 90x60"),
        ((-30, -30, 0, 0), "covers no pixel"),
        ((10, 10, 10.5, 10.6), "covers no pixel"),
    ],
)
def test_a_box_that_shows_nothing_gets_one_sentence(detector, picture, box, sentence):
    with pytest.raises(QueryError, match=sentence) as caught:
        detector.encode_queries([Exemplar(picture, box)])
    assert "\n" not in str(caught.value)


def test_a_box_that_reaches_out_of_the_picture_is_cut_to_it():
    assert check_box((-5, 10, 200, 70), (60, 90)).tolist() == [0, 10, 90, 60]


@pytest.mark.parametrize("box", [list(BOX), np.array(BOX), torch.tensor(BOX), tuple(map(float, BOX))])
def test_a_box_is_any_four_numbers(box):
    assert check_box(box, (60, 90)).tolist() == list(BOX)


# --- The patch that answers ----------------------------------------------------------------------------------------


def four_patches(objectness, boxes=None):
    """A picture of 64 x 64 pixels with a grid of 2 x 2; the embedding of patch i is axis i."""
    boxes = boxes or [[0.25, 0.25, 0.5, 0.5], [0.75, 0.25, 0.5, 0.5], [0.25, 0.75, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]]
    zeros = torch.zeros(4)
    return ImageEmbeddings(
        torch.eye(4),
        zeros,
        zeros + 1,
        image_embed=zeros,
        pred_boxes=torch.tensor(boxes),
        objectness_logits=torch.tensor(objectness),
        grid_hw=(2, 2),
    ), Frame.fit((64, 64), 64)


def test_the_patch_with_the_box_answers():
    embeddings, frame = four_patches([0.0, 0.0, 0.0, 9.0])
    assert patch_of_box(embeddings, frame.from_image(torch.tensor([34.0, 0, 64, 30]))).tolist() == [0, 1, 0, 0]


def test_of_nearly_equal_boxes_the_most_object_like_answers():
    boxes = [[0.25, 0.25, 0.5, 0.5], [0.25, 0.25, 0.5, 0.48], [0.25, 0.25, 0.5, 0.2], [0.75, 0.75, 0.5, 0.5]]
    embeddings, frame = four_patches([1.0, 2.0, 9.0, 9.0], boxes)
    assert patch_of_box(embeddings, frame.from_image(torch.tensor([0.0, 0, 32, 32]))).tolist() == [0, 1, 0, 0]


def test_of_equally_object_like_patches_the_least_ordinary_answers():
    embeddings, _ = four_patches([2.0, 2.0, 2.0, 1.0])
    embeddings.class_embeds[0] = embeddings.class_embeds[2] = torch.tensor([0.0, 0, 0, 1])
    assert most_object_like(embeddings, torch.arange(4)) == 1


def test_where_no_box_touches_the_patch_below_answers():
    boxes = [[0.05, 0.05, 0.1, 0.1]] * 4
    embeddings, frame = four_patches([0.0] * 4, boxes)
    assert patch_of_box(embeddings, frame.from_image(torch.tensor([40.0, 40, 60, 60]))).tolist() == [0, 0, 0, 1]
    assert patch_of_box(embeddings, frame.from_image(torch.tensor([60.0, 10, 64, 20]))).tolist() == [0, 1, 0, 0]


# --- Several exemplars ---------------------------------------------------------------------------------------------


def test_one_exemplar_is_itself_and_two_are_their_middle():
    a, b = torch.eye(2)
    assert_close(combine(a[None]), a)
    assert_close(combine(torch.stack([a, b])), torch.tensor([0.5, 0.5]).sqrt())


def test_one_bad_exemplar_of_five_moves_the_median_little():
    good, bad = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0])
    noisy = torch.nn.functional.normalize(good + 0.1 * torch.eye(3)[[0, 1, 2, 2]], dim=-1)
    median = combine(torch.cat([noisy, bad[None]]))
    mean = torch.nn.functional.normalize(torch.cat([noisy, bad[None]]).mean(0), dim=-1)
    assert median @ good > 0.99 > 0.98 > mean @ good
    assert_close(median.norm(), torch.tensor(1.0))


def test_equal_exemplars_are_one(detector, picture):
    one = detector.encode_exemplars([Exemplar(picture, BOX)])
    assert_close(detector.encode_exemplars([Exemplar(picture, BOX)] * 4), one, atol=1e-5, rtol=0)


def test_no_exemplars_get_one_sentence(detector):
    with pytest.raises(QueryError, match="empty"):
        detector.encode_exemplars([])


# --- Through the detector ------------------------------------------------------------------------------------------


def test_texts_and_exemplars_keep_their_order_names_and_routes(detector, picture):
    queries = detector.encode_queries(["cat", Exemplar(picture, BOX, name="this one"), "dog", Exemplar(picture)])
    assert queries.names == ("cat", "this one", "dog", "exemplar")
    assert queries.routes == ("text", "exemplar", "text", "exemplar")
    assert_close(queries.query_embeds.norm(dim=1), torch.ones(4))
    texts = detector.encode_queries(["cat", "dog"]).query_embeds
    assert_close(queries.query_embeds[[0, 2]], texts)
    assert_close(queries.query_embeds[1], detector.encode_exemplars([Exemplar(picture, BOX)]))
    assert not torch.allclose(queries.query_embeds[1], queries.query_embeds[3])


def test_what_the_exemplar_shows_is_found_in_its_own_picture(detector, picture):
    found = detector.detect(picture, [Exemplar(picture)], threshold=0, nms_iou=None)
    embeddings = detector.encode_image(picture).embeddings
    assert (
        found.patches[
            embeddings.class_embeds[found.patches].matmul(detector.encode_exemplars([Exemplar(picture)])).argmax()
        ]
        == embeddings.objectness_logits.argmax()
    )


def test_box_and_picture_are_upright(detector):
    upright = noise(60, 90)
    expected = detector.encode_exemplars([Exemplar(upright, BOX)])
    for orientation in (1, 3, 6, 8):
        assert torch.equal(detector.encode_exemplars([Exemplar(turned(upright, orientation), BOX)]), expected)


def test_the_box_of_an_exemplar_is_found_again_in_its_crop(detector):
    """A crop of a large picture, as large as what is shown of the exemplar, gives the same as the picture itself."""
    large = noise(300, 400, 2)
    box = (210, 170, 274, 202)
    crop = exemplar_frame((300, 400), box, 96).crop_xyxy
    moved = [box[0] - crop[0], box[1] - crop[1], box[2] - crop[0], box[3] - crop[1]]
    there = detector.encode_exemplars([Exemplar(large, box)])
    assert_close(there, detector.encode_exemplars([Exemplar(large.crop(crop), moved)]))
    frame = exemplar_frame((300, 400), box, 96)
    with torch.no_grad():
        seen = detector.model.encode_image(SwinPreprocess(16).normalise(frame.pixels(large)[None]))[0]
    overlaps = pairwise_iou(frame.to_image(seen.pred_boxes), torch.tensor([box], dtype=torch.float))[:, 0]
    good = overlaps >= 0.8 * overlaps.max()
    best = seen.objectness_logits.masked_fill(~good, -torch.inf).argmax()
    assert good.sum() > 0
    assert_close(there, combine(seen.class_embeds[best][None]))


def test_different_boxes_give_different_queries(detector, picture):
    a, b = (detector.encode_exemplars([Exemplar(picture, box)]) for box in (BOX, (50, 30, 88, 58)))
    assert a @ b < 0.999


@pytest.mark.parametrize("size, box", [((1, 300), (0, 0, 300, 1)), ((300, 1), (0, 10, 1, 200)), ((1, 1), (0, 0, 1, 1))])
def test_strange_pictures_can_be_exemplars(detector, size, box):
    picture = Image.new("RGB", size[::-1], "red")
    assert detector.encode_exemplars([Exemplar(picture, box)]).isfinite().all()
    assert detector.encode_exemplars([Exemplar(picture)]).isfinite().all()


def test_an_exemplar_that_is_no_picture_is_refused(detector):
    with pytest.raises(ImageError, match="not a picture"):
        detector.detect(noise(40, 40), [Exemplar(b"text")])


def test_a_single_exemplar_outside_a_list_is_refused(detector, picture):
    with pytest.raises(QueryError, match=r"write \[exemplar\]"):
        detector.encode_queries(Exemplar(picture))


def test_a_batch_may_ask_different_exemplars(detector, picture):
    pictures = [picture, noise(60, 90, 1)]
    asked = [[Exemplar(encode(picture), BOX)], ["cat", Exemplar(picture, BOX)]]
    found = detector.detect_batch(pictures, asked, threshold=0.3)
    for one, image, queries in zip(found, pictures, asked, strict=True):
        alone = detector.detect(image, queries, threshold=0.3)
        assert one.names == alone.names
        assert_close(one.scores, alone.scores, atol=1e-5, rtol=0)
    shared = detector.detect_batch(pictures, [Exemplar(picture, BOX)], threshold=0.3)
    assert [one.names for one in shared] == [("exemplar",)] * 2


def test_routes_are_known_and_one_a_query():
    assert QueryEmbeddings(torch.ones(2, 4), ("a", "b")).routes == ("text", "text")
    for routes in (("text",), ("text", "picture")):
        with pytest.raises(QueryError, match="text, exemplar"):
            QueryEmbeddings(torch.ones(2, 4), ("a", "b"), routes)
