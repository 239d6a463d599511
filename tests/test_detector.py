"""What users of the Detector rely on: order, labels, coordinates, and the same answer every time."""

import logging
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import TURNS, encode, noise, turned
from PIL import Image
from torch.testing import assert_close

from owl_swin.detections import Detections
from owl_swin.detector import Detector
from owl_swin.errors import CheckpointError, ConfigError, ImageError, MissingExtraError, QueryError
from owl_swin.exemplar import Exemplar
from owl_swin.models.network import fingerprint
from owl_swin.queries import Query
from owl_swin.scoring import ANYTHING
from owl_swin.tokenizer import cut_before
from owl_swin.types import QueryEmbeddings

pytestmark = pytest.mark.numeric

# Every pair of a patch and a query.
ALL = {"threshold": 0.0, "nms_iou": None, "top_k": 100_000}
# A threshold that some pass and some do not: scores of the tiny model lie around 0.5.
SOME = {"threshold": 0.6, "nms_iou": 0.7}


def score_table(found: Detections) -> torch.Tensor:
    """Scores [P, Q] of a picture of which every pair was asked for; a pair that did not answer is NaN."""
    table = torch.full((int(found.patches.max()) + 1, len(found.names)), math.nan)
    table[found.patches, found.labels] = found.scores
    return table


def assert_same(found: Detections, expected: Detections, atol: float = 0.0) -> None:
    """Equal names and rows; rows of nearly equal score may have changed places when ``atol`` is not 0."""
    assert found.names == expected.names
    assert found.image_hw == expected.image_hw
    assert len(found) == len(expected)
    rows = [sorted(zip(one.patches.tolist(), one.labels.tolist(), strict=True)) for one in (found, expected)]
    assert rows[0] == rows[1]
    if atol == 0:
        assert torch.equal(found.patches, expected.patches)
    order = [(one.patches * len(one.names) + one.labels).argsort() for one in (found, expected)]
    assert_close(found.scores[order[0]], expected.scores[order[1]], atol=atol, rtol=0)
    assert_close(found.boxes[order[0]], expected.boxes[order[1]], atol=100 * atol, rtol=0)


# --- One picture ---------------------------------------------------------------------------------------------------


def test_nothing_found_is_an_empty_detections(detector, picture):
    found = detector.detect(picture, ["cat", "dog"], threshold=1.0)
    assert len(found) == 0
    assert found.names == ("cat", "dog")
    assert found.image_hw == (60, 90)


def test_detections_are_sorted_clipped_and_above_the_threshold(detector, picture):
    found = detector.detect(picture, ["cat", "dog"], **SOME)
    assert 2 < len(found) < 48
    assert (found.scores.diff() <= 0).all()
    assert (found.scores >= 0.6).all()
    assert (found.boxes[:, :2] >= 0).all()
    assert (found.boxes[:, 2:] <= torch.tensor([90, 60])).all()
    assert (found.boxes[:, :2] < found.boxes[:, 2:]).all()


def test_the_model_answers_to_picture_and_query(detector, picture):
    # Without this, most tests below could not fail.
    table = score_table(detector.detect(picture, ["cat", "dog"], **ALL))
    other = score_table(detector.detect(noise(60, 90, seed=1), ["cat", "dog"], **ALL))
    assert (table[:, 0] - table[:, 1]).abs().nanmean() > 0.01
    assert (table - other).abs().nanmean() > 0.01
    assert table[:, 0].nan_to_num(0.5).std() > 0.05


def test_without_queries_the_most_object_like_is_found(detector, picture):
    encoded = detector.encode_image(picture)
    found = detector.detect(picture, **ALL)
    assert found.names == (ANYTHING,)
    assert_close(found.scores, encoded.embeddings.objectness_logits.sigmoid()[found.patches])
    assert len(detector.detect(picture, threshold=1.0)) == 0


@pytest.mark.parametrize("queries", [["cat", "dog"], None])
def test_objectness_keeps_the_patches_that_reach_it(detector, picture, queries):
    objectness = detector.encode_image(picture).embeddings.objectness_logits.sigmoid()
    limit = float(objectness.median())
    every, found = detector.detect(picture, queries, **ALL), detector.detect(picture, queries, objectness=limit, **ALL)
    assert 0 < len(found) < len(every)
    assert_same(found, every[objectness[every.patches] >= limit], atol=1e-6)
    assert len(detector.detect(picture, queries, objectness=1.0, **ALL)) == 0


def test_each_query_may_have_its_threshold(detector, picture):
    every = detector.detect(picture, ["cat", "dog"], **ALL)
    found = detector.detect(picture, ["cat", "dog"], threshold=[0.7, 0.4], nms_iou=None)
    assert_same(found, every[every.scores >= torch.tensor([0.7, 0.4])[every.labels]])


def test_fewer_boxes_are_the_best_of_more(detector, picture):
    more = detector.detect(picture, ["cat", "dog"], **SOME)
    for top_k in (1, 3):
        assert_same(detector.detect(picture, ["cat", "dog"], top_k=top_k, **SOME), more[:top_k])


# --- Labels --------------------------------------------------------------------------------------------------------


def test_names_that_contain_one_another_or_repeat_are_told_apart_by_index(detector, picture):
    names = ["cat", "caterpillar", "cat", "a cat"]
    found = detector.detect(picture, names, **ALL)
    table = score_table(found)
    assert found.names == tuple(names)
    assert torch.equal(table[:, 0].nan_to_num(), table[:, 2].nan_to_num())
    assert (table[:, 0] - table[:, 1]).abs().nanmean() > 0.001
    for detection, label in zip(found, found.labels.tolist(), strict=True):
        assert detection.name == names[label]


def test_the_same_name_twice_is_found_twice(detector, picture):
    found = detector.detect(picture, ["cat", "cat"], **SOME)
    once = detector.detect(picture, ["cat"], **SOME)
    for label in (0, 1):
        part = found[found.labels == label]
        assert_close(part.scores, once.scores, atol=1e-5, rtol=0)
        assert torch.equal(part.boxes, once.boxes)


@pytest.mark.parametrize("name", ["  Cat\n", "a\x00\x1bcat", "🦉", "一只猫", "!😀", "e\u0301", "x" * 10_000])
def test_any_name_is_asked_and_kept_as_the_caller_wrote_it(detector, picture, name):
    found = detector.detect(picture, [name, "dog"], **ALL)
    assert found.names == (name, "dog")
    assert found.scores.isfinite().all()


@settings(max_examples=8, deadline=None)
@given(st.permutations(range(5)))
def test_permuting_queries_permutes_scores(detector, order):
    names = ["cat", "dog", "a red mug", "cat", "!😀"]
    encoded = detector.encode_image(noise(60, 90))
    table = score_table(detector.detect(encoded, names, **ALL))
    permuted = score_table(detector.detect(encoded, [names[i] for i in order], **ALL))
    assert_close(permuted, table[:, order], atol=1e-5, rtol=0, equal_nan=True)


# --- Coordinates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", TURNS)
def test_boxes_are_those_of_the_upright_picture(detector, orientation):
    upright = noise(40, 96)
    expected = detector.detect(upright, ["cat"], **SOME)
    found = detector.detect(turned(upright, orientation), ["cat"], **SOME)
    assert found.image_hw == (40, 96)
    assert_same(found, expected)


@pytest.mark.parametrize("image_hw", [(1, 4000), (4000, 1), (1, 1), (3, 2), (33, 1000)])
def test_any_aspect_ratio_has_its_boxes_inside(detector, image_hw):
    height, width = image_hw
    found = detector.detect(noise(height, width), ["cat"], threshold=0.0, nms_iou=None)
    assert found.image_hw == image_hw
    assert len(found) > 0
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2:] <= torch.tensor([width, height])).all()
    assert found.boxes[:, 2].max() > width / 2
    assert found.boxes[:, 3].max() > height / 2


def test_twenty_megapixels_give_the_boxes_of_the_small_picture_scaled_up(detector):
    large = noise(3648, 5472)
    small = large.resize((96, 64), Image.Resampling.BILINEAR)
    found, expected = (detector.detect(np.asarray(image), ["cat"], **ALL) for image in (large, small))
    assert_same(found, replace(expected, boxes=expected.boxes * 57, image_hw=(3648, 5472)), atol=1e-5)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_any_kind_of_picture_is_read(detector, picture, mode):
    image = picture.convert("L").convert(mode) if mode in ("I;16", "F", "1") else picture.convert(mode)
    assert detector.detect(image, ["cat"], **ALL).image_hw == (60, 90)


# --- The same answer every time --------------------------------------------------------------------------------------


def test_the_same_input_gives_the_same_output_bit_for_bit(detector, picture):
    first, second = (detector.detect(picture, ["cat", "dog"], **SOME) for _ in range(2))
    for field in ("boxes", "scores", "labels", "patches"):
        assert torch.equal(getattr(first, field), getattr(second, field))


@pytest.mark.parametrize("asked", [["cat", "dog"], [Exemplar(noise(50, 40), (5, 5, 30, 40))]], ids=["text", "exemplar"])
@pytest.mark.parametrize(
    "around",
    [
        torch.enable_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.device("meta"),
    ],
    ids=["gradients", "inference mode", "autocast", "default device"],
)
def test_the_answer_does_not_depend_on_what_its_caller_has_set(detector, picture, around, asked):
    expected = detector.detect(picture, asked, **SOME, tiles=64)
    with around():
        found, queries = detector.detect(picture, asked, **SOME, tiles=64), detector.encode_queries(asked)
    assert found == expected
    assert not found.scores.requires_grad and not queries.query_embeds.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_default_precision_of_a_program_is_not_the_detector_s(detector, picture, dtype):
    expected = detector.detect(picture, ["cat"], **SOME)
    torch.set_default_dtype(dtype)
    try:
        assert detector.detect(picture, ["cat"], **SOME) == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_errors_come_back_out_of_other_processes():
    for error in (ImageError("is cut off", of="a.jpg"), MissingExtraError("a chart", "bench")):
        back = pickle.loads(pickle.dumps(error))
        assert (type(back), str(back), back.reason) == (type(error), str(error), error.reason)


def test_detecting_leaves_the_model_unchanged(picture):
    model = make_tiny_model()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    Detector(model, device="cpu").detect(picture, ["cat"])
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), make_tiny_model().parameters(), strict=True))


def test_a_picture_is_the_same_alone_and_in_a_batch_of_mixed_sizes(detector):
    sizes = [(60, 90), (90, 60), (64, 96), (1, 400), (60, 90), (33, 33), (640, 960)]
    pictures = [noise(*image_hw, seed=i) for i, image_hw in enumerate(sizes)]
    together = detector.detect_batch(pictures, ["cat", "dog"], batch_size=3, **ALL)
    assert [found.image_hw for found in together] == sizes
    for picture, found in zip(pictures, together, strict=True):
        assert_same(found, detector.detect(picture, ["cat", "dog"], **ALL), atol=1e-4)


def test_query_embeddings_can_be_kept(detector, picture):
    queries = detector.encode_queries(["cat", "dog"])
    assert queries.names == ("cat", "dog")
    assert_close(queries.query_embeds.norm(dim=-1), torch.ones(2))
    for image in (picture, noise(50, 50, seed=3)):
        assert_same(detector.detect(image, queries, **SOME), detector.detect(image, ["cat", "dog"], **SOME))


def test_an_encoded_picture_can_be_asked_again(detector, picture):
    encoded = detector.encode_image(picture)
    for queries in (["cat"], ["dog", "a red mug"], None):
        assert_same(detector.detect(encoded, queries, **SOME), detector.detect(picture, queries, **SOME))
    assert_same(detector.detect_batch([picture, encoded], ["cat"])[1], detector.detect(picture, ["cat"]))


def test_over_long_text_is_cut_with_a_warning_and_equals_its_cut_form(detector, picture, caplog):
    cut_before.clear()
    words = ["cat", "dog", "mug", "owl", "tree", "car", "bus", "man", "cup", "hat"]  # ten: what twelve tokens hold
    with caplog.at_level(logging.WARNING, "owl_swin"):
        long = detector.encode_queries([" ".join(words + ["lamp"] * 30)])
    assert [record.getMessage().endswith("is longer than 12 tokens and was cut") for record in caplog.records] == [True]
    caplog.clear()
    detector.encode_queries([" ".join(words + ["lamp"] * 30)])  # said already
    cut = detector.encode_queries([" ".join(words)])
    assert not caplog.records
    assert torch.equal(long.query_embeds, cut.query_embeds)


# --- Batches -------------------------------------------------------------------------------------------------------


def test_no_pictures_give_no_results(detector):
    assert detector.detect_batch([], ["cat"]) == []
    assert detector.detect_batch([]) == []
    assert detector.detect_batch([], []) == []
    assert detector.encode_images([]) == []


def test_a_batch_is_a_list_in_the_order_of_the_pictures(detector):
    sizes = [(40 + i, 96 - 3 * i) for i in range(10)]
    found = detector.detect_batch([noise(*image_hw) for image_hw in sizes], ["cat"], threshold=1.0)
    assert isinstance(found, list)
    assert [one.image_hw for one in found] == sizes
    assert all(isinstance(one, Detections) for one in found)
    assert isinstance(detector.detect_batch([noise(40, 40)], ["cat"]), list)


def test_every_picture_may_have_its_own_queries(detector):
    pictures = [noise(60, 90, seed=i) for i in range(5)]
    ragged = [["cat"], ["dog", "cat", "a red mug"], None, detector.encode_queries(["owl", "owl"]), ("cat",)]
    together = detector.detect_batch(pictures, ragged, **ALL)
    assert [len(found.names) for found in together] == [1, 3, 1, 2, 1]
    for picture, queries, found in zip(pictures, ragged, together, strict=True):
        assert (found.labels < len(found.names)).all()
        assert_same(found, detector.detect(picture, queries, **ALL), atol=1e-4)


@pytest.mark.parametrize(
    "queries, sentence",
    [
        ([["cat"]], "got 1 lists of queries for 2 pictures; give one list a picture"),
        ([["cat"], ["cat"], ["cat"]], "got 3 lists of queries for 2 pictures"),
        ([["cat"], []], "the list of queries is empty"),
        ([["cat"], "dog"], r"write \['dog'\]"),
        ([["cat"], ["dog", " "]], "a text query must name something"),
        ([["cat"], [3]], "a text query must be a string, got int"),
        ([], "the list of queries is empty"),
    ],
)
def test_queries_that_do_not_fit_the_pictures_are_refused(detector, picture, queries, sentence):
    with pytest.raises(QueryError, match=sentence):
        detector.detect_batch([picture, picture], queries)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_holds_at_least_one(detector, picture, batch_size):
    with pytest.raises(QueryError, match="batch_size must be at least 1"):
        detector.detect_batch([picture], ["cat"], batch_size=batch_size)


def test_one_bad_picture_is_named(detector, picture):
    with pytest.raises(ImageError, match="the file is empty"):
        detector.detect_batch([picture, b""], ["cat"])


# --- What means nothing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "queries, sentence",
    [
        ([], "the list of queries is empty; leave queries out"),
        ("cat", r"queries must be a list of texts, got the single text 'cat'; write \['cat'\]"),
        ([""], "a text query must name something, got ''"),
        (["cat", " \n"], "a text query must name something"),
        (["\x00\x1b"], "a text query must name something"),
        ([3], "must be a string, got int"),
        ([None], "must be a string, got NoneType"),
        (QueryEmbeddings(torch.zeros(1, 8), ("cat",)), "have 8 dimensions, the model has 16; encode the queries with"),
    ],
)
def test_queries_that_mean_nothing_are_refused(detector, picture, queries, sentence):
    with pytest.raises(QueryError, match=sentence):
        detector.detect(picture, queries)


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"threshold": math.nan}, "threshold must lie in"),
        ({"threshold": -0.1}, "threshold must lie in"),
        ({"threshold": 1.5}, "threshold must lie in"),
        ({"threshold": [0.5, 0.5]}, "one for each of the 1 queries"),
        ({"nms_iou": math.nan}, "nms_iou must be a number"),
        ({"objectness": math.nan}, r"objectness must be a number in \[0, 1\], got nan"),
        ({"objectness": 2}, "objectness must be a number"),
        ({"top_k": 0}, "top_k must be a whole number"),
    ],
)
def test_settings_that_mean_nothing_are_refused(detector, picture, wrong, sentence):
    for queries in (["cat"], None):
        with pytest.raises(QueryError, match=sentence):
            detector.detect(picture, queries, **wrong)


@pytest.mark.parametrize("image", [encode(noise(60, 90), "JPEG")[:700], "missing.jpg", np.full((4, 4, 3), -1.0), None])
def test_what_is_no_picture_is_refused(detector, image):
    with pytest.raises(ImageError):
        detector.detect(image, ["cat"])


# --- Classifying ---------------------------------------------------------------------------------------------------


def test_probabilities_add_up_to_one_in_the_order_of_the_names(detector, picture):
    names = ["cat", "dog", "a red mug"]
    classes = detector.classify(picture, names)
    assert classes.names == tuple(names)
    assert classes.probabilities.sum().item() == pytest.approx(1)
    back = detector.classify(detector.encode_image(picture), names[::-1])
    assert_close(back.probabilities.flip(0), classes.probabilities, atol=1e-5, rtol=0)
    assert classes.probabilities.std() > 0.01


def test_the_likeliest_name_is_the_nearest_to_the_picture(detector, picture):
    names = ["cat", "dog", "a red mug"]
    cosine = detector.encode_queries(names).query_embeds @ detector.encode_image(picture).embeddings.image_embed
    classes = detector.classify(picture, names, templates=("{}",))
    assert_close(classes.probabilities, (cosine * detector.spec.alignment_scale).softmax(0))


def test_one_name_is_certain_and_the_same_name_twice_is_even(detector, picture):
    assert detector.classify(picture, ["cat"]).probabilities.tolist() == [1]
    assert_close(detector.classify(picture, ["cat", "cat"]).probabilities, torch.tensor([0.5, 0.5]))


def test_a_name_with_braces_is_put_in_as_it_is(detector, picture):
    assert detector.classify(picture, ["{}", "{cat}", "%s"]).names == ("{}", "{cat}", "%s")


def test_classes_may_be_shown(detector, picture):
    other = picture.rotate(180)
    whole = Query("whole", exemplars=[Exemplar(picture), Exemplar(picture)])
    classes = detector.classify(picture, [Exemplar(other, name="turned"), whole])
    assert classes.names == ("turned", "whole") and classes.ranked()[0][0] == "whole"
    part = detector.classify(picture.crop((10, 10, 30, 30)), [whole, Exemplar(picture, (10, 10, 30, 30))])
    assert part.ranked()[0][0] == "exemplar"


@pytest.mark.parametrize(
    "names, sentence",
    [
        (["cat", Exemplar("there.png")], "these classes are of both kinds"),
        ([Query("cat", texts=["cat"], exemplars=[Exemplar("there.png")])], "the query 'cat' has other parts"),
        ([Query("cat", texts=["cat"], negatives=["dog"])], "the query 'cat' has other parts"),
    ],
)
def test_classes_of_both_kinds_are_refused(detector, picture, names, sentence):
    with pytest.raises(QueryError, match=sentence):
        detector.classify(picture, names)


@pytest.mark.parametrize(
    "names, templates, sentence",
    [
        ([], ("{}",), "list of names is empty; give the names that the picture may have"),
        ("cat", ("{}",), r"names must be a list of texts, got the single text 'cat'; write \['cat'\]"),
        (["cat", ""], ("{}",), "must name something"),
        (["cat"], (), "every template must hold {}"),
        (["cat"], ("a photo",), "every template must hold {}"),
        (["cat"], (5,), "every template must hold {}"),
        (None, ("{}",), "names must be a list of texts, Exemplars or Queries, got NoneType"),
    ],
)
def test_names_and_templates_that_mean_nothing_are_refused(detector, picture, names, templates, sentence):
    with pytest.raises(QueryError, match=sentence):
        detector.classify(picture, names, templates=templates)


@pytest.mark.parametrize("single", [Exemplar(b"x" * 9_000_000), Query("mug", ["mug"], [Exemplar(b"x" * 9_000_000)])])
def test_a_single_class_outside_a_list_gets_a_short_sentence(detector, picture, single):
    with pytest.raises(QueryError, match=r"names must be a list, got a single \w+; write \[\w+\]") as caught:
        detector.classify(picture, single)
    assert len(str(caught.value)) < 200 and len(repr(single)) < 300


# --- Where it comes from -------------------------------------------------------------------------------------------


def test_a_detector_from_a_file_finds_what_the_model_finds(model_file, detector, picture):
    loaded = Detector.from_pretrained(model_file, device="cpu")
    assert loaded.card == {"name": "tiny_for_tests"}
    found, expected = (score_table(one.detect(picture, ["cat", "dog"], **ALL)) for one in (loaded, detector))
    assert (found - expected).abs().nanmean() < 0.05  # int8 rows


def test_the_spec_says_what_other_rooms_may_know(detector, tiny_model):
    spec = detector.spec
    assert (spec.name, spec.family, detector.name) == ("tiny_for_tests", "owl_swin", "tiny_for_tests")
    assert (spec.embed_dim, spec.image_size, spec.stride, spec.any_size) == (16, 96, 16, True)
    assert (spec.has_objectness, spec.has_image_embed, spec.has_masks) == (True, True, False)
    assert spec.fingerprint == fingerprint(tiny_model) and spec.calibration == tiny_model.config.calibration
    assert Detector(tiny_model, card={"name": "of the card"}, device="cpu").name == "of the card"


def test_a_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such model"):
        Detector.from_pretrained(tmp_path / "missing")


@pytest.mark.parametrize("source", [None, 3, b"nano"])
def test_a_model_that_is_no_name_is_refused(source):
    with pytest.raises(CheckpointError, match="a model is named by a text or a path, got"):
        Detector.from_pretrained(source)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", ""])
def test_a_device_that_is_not_there_is_named(tiny_model, device):
    with pytest.raises(ConfigError, match=f"device '{device}' cannot be used here"):
        Detector(tiny_model, device=device)


@pytest.mark.parametrize("size", [0, 31, 5000, 64.0, -1])
def test_an_image_size_outside_its_range_is_refused(tiny_model, size):
    with pytest.raises(QueryError, match="image_size must be a whole number from 32 to 4096"):
        Detector(tiny_model, device="cpu", image_size=size)


def test_a_larger_image_size_gives_more_patches(tiny_model, picture):
    small, large = (Detector(tiny_model, device="cpu", image_size=size).encode_image(picture) for size in (64, 128))
    assert len(large.embeddings.class_embeds) > len(small.embeddings.class_embeds)
