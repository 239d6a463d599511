"""Queries of several parts: how texts, exemplars and negatives of one thing are encoded and kept in a file."""

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import make_tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import noise
from safetensors import safe_open
from safetensors.torch import save_file
from torch.testing import assert_close

from owl_swin.config import CalibrationConfig
from owl_swin.detector import Detector
from owl_swin.errors import QueryError
from owl_swin.exemplar import Exemplar
from owl_swin.models.network import fingerprint
from owl_swin.queries import Query
from owl_swin.types import ExtraEmbeddings, QueryEmbeddings

BOX = (10, 12, 50, 44)
OTHER_BOX = (50, 30, 88, 58)
AS_IT_IS = CalibrationConfig()


@pytest.fixture
def mug(picture) -> Query:
    return Query(
        "my mug", ["a red mug", "a cup"], [Exemplar(picture, BOX), Exemplar(picture)], ["a dog", Exemplar(picture, BOX)]
    )


# --- What a query may be -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts, sentence",
    [
        ({}, "'mug' has neither texts nor exemplars; give it at least one"),
        ({"negatives": ["a cup"]}, "'mug' has only negatives; give it at least one"),
        ({"texts": "a mug"}, r"texts of the query 'mug' must be a list of texts, got the single text 'a mug'"),
        ({"texts": [3]}, "must be a list of texts, got a int in it"),
        ({"texts": [["a mug"]]}, "got a list in it"),
        ({"texts": None}, "got NoneType"),
        ({"exemplars": Exemplar(b"")}, "a list of Exemplars, got a single exemplar"),
        ({"exemplars": ["a mug"]}, "a list of Exemplars, got a str in it"),
        ({"texts": ["a mug"], "negatives": "a cup"}, "a list of texts or Exemplars, got the single text 'a cup'"),
        ({"texts": ["a mug"], "negatives": [None]}, "got a NoneType in it"),
        ({"texts": ["a mug"], "weight": math.nan}, r"weight of the query 'mug' must be a number in \[0, 1\], got nan"),
        ({"texts": ["a mug"], "weight": 1.5}, "weight"),
        ({"texts": ["a mug"], "weight": "1"}, "weight"),
    ],
)
def test_a_query_that_means_nothing_gets_one_sentence(parts, sentence):
    with pytest.raises(QueryError, match=sentence) as caught:
        Query("mug", **parts)
    assert "\n" not in str(caught.value)


def test_the_name_of_a_query_is_a_text():
    with pytest.raises(QueryError, match="name of a query must be a text, got int"):
        Query(3, texts=["a mug"])


@pytest.mark.parametrize(
    "part, sentence",
    [
        ({"texts": ["a mug", " "]}, "must name something"),
        ({"texts": ["a mug"], "negatives": [""]}, "must name something"),
    ],
)
def test_an_empty_text_anywhere_is_refused(detector, picture, part, sentence):
    with pytest.raises(QueryError, match=sentence):
        detector.detect(picture, [Query("mug", **part)])


def test_a_single_query_outside_a_list_is_refused(detector, mug, picture):
    with pytest.raises(QueryError, match=r"write \[query\]"):
        detector.encode_queries(mug)
    for queries in (mug, [mug, ["cat"]]):
        with pytest.raises(QueryError):
            detector.detect_batch([picture, picture], queries)


# --- What becomes of it --------------------------------------------------------------------------------------------


def test_parts_of_a_query_are_joined_by_kind_and_negatives_stay_apart(detector, picture, mug):
    queries = detector.encode_queries(
        ["cat", mug, Exemplar(picture, name="it"), Query("owl", ["owl"], negatives=["cat"])]
    )
    assert queries.names == ("cat", "my mug", "it", "owl")
    assert queries.routes == ("text", "text", "exemplar", "text")
    assert queries.extras.owners.tolist() == [1, 1, 1, 3]
    assert queries.extras.shares.tolist() == [0.5, 0, 0, 0]
    assert queries.extras.routes == ("exemplar", "text", "exemplar", "text")
    texts = detector.encode_queries(["cat", "a red mug", "a cup", "a dog", "owl"]).query_embeds
    mean = torch.nn.functional.normalize(texts[1] + texts[2], dim=0)
    assert_close(queries.query_embeds[[0, 1, 3]], torch.stack([texts[0], mean, texts[4]]), atol=1e-5, rtol=0)
    assert torch.equal(queries.extras.embeds[0], detector.encode_exemplars(mug.exemplars))
    assert_close(queries.extras.embeds[[1, 3]], texts[[3, 0]], atol=1e-5, rtol=0)
    assert_close(queries.extras.embeds[2], detector.encode_exemplars(mug.negatives[1:]))


@pytest.mark.parametrize("weight, route", [(0, "text"), (1, "exemplar")])
def test_at_the_ends_of_the_weight_one_kind_counts_alone(detector, picture, weight, route):
    both = detector.encode_queries([Query("mug", ["a mug"], [Exemplar(picture, BOX)], weight=weight)])
    alone = detector.encode_queries(["a mug" if route == "text" else Exemplar(picture, BOX)])
    assert both.extras is None
    assert both.routes == (route,)
    assert torch.equal(both.query_embeds, alone.query_embeds)


def test_a_query_of_one_part_is_that_part(detector, picture):
    plain = detector.detect(picture, ["a mug", Exemplar(picture, BOX)], threshold=0.1)
    as_query = detector.detect(
        picture, [Query("a mug", ["a mug"]), Query("exemplar", exemplars=[Exemplar(picture, BOX)])], threshold=0.1
    )
    assert plain.names == as_query.names
    assert torch.equal(plain.scores, as_query.scores)
    assert torch.equal(plain.labels, as_query.labels)


# --- Scores --------------------------------------------------------------------------------------------------------


def test_negatives_lower_and_never_answer(detector, picture):
    everything = {"threshold": 0.0, "nms_iou": None, "top_k": 10_000}
    plain = detector.detect(picture, ["a mug", "cat"], **everything)
    fended = detector.detect(picture, [Query("a mug", ["a mug"], negatives=["a cup", "owl"]), "cat"], **everything)
    assert fended.names == ("a mug", "cat")
    assert set(fended.labels.tolist()) == {0, 1}
    for label in (0, 1):
        scores = [
            dict(zip(f.patches[f.labels == label].tolist(), f.scores[f.labels == label].tolist(), strict=True))
            for f in (plain, fended)
        ]
        assert scores[0].keys() == scores[1].keys()
        for patch, score in scores[1].items():
            if label == 1:
                assert score == pytest.approx(scores[0][patch], abs=1e-5)
            else:
                assert score < scores[0][patch]


def test_what_is_its_own_negative_scores_at_most_half(detector, picture):
    found = detector.detect(picture, [Query("mug", ["a mug"], negatives=["a mug"])], threshold=0, nms_iou=None)
    assert 0 < found.scores.max() <= 0.5 + 1e-5


def test_a_batch_may_ask_different_queries(detector, picture, mug):
    asked = [[mug], ["cat", mug, "dog"], None, detector.encode_queries([mug, Query("owl", ["owl"])])]
    pictures = [picture, noise(60, 90, 1), picture, noise(40, 90, 2)]
    found = detector.detect_batch(pictures, asked, threshold=0.2)
    assert [one.names for one in found] == [("my mug",), ("cat", "my mug", "dog"), ("object",), ("my mug", "owl")]
    for one, image, queries in zip(found, pictures, asked, strict=True):
        assert_close(one.scores, detector.detect(image, queries, threshold=0.2).scores, atol=1e-5, rtol=0)
    assert [one.names for one in detector.detect_batch(pictures, [mug, "cat"], threshold=1)] == [("my mug", "cat")] * 4


@pytest.mark.parametrize("queries", [["a mug", "cat", "dog"], None])
def test_similarity_is_the_score_of_every_patch_in_its_place(detector, picture, queries):
    encoded = detector.encode_image(picture)
    maps = detector.similarity(picture, queries)
    assert maps.shape == (3 if queries else 1, *encoded.embeddings.grid_hw)
    assert torch.equal(maps, detector.similarity(encoded, queries))
    found = detector.detect(encoded, queries, threshold=0, nms_iou=None, top_k=10_000)
    assert torch.equal(maps.flatten(1)[found.labels, found.patches], found.scores)


# --- Whole pictures ------------------------------------------------------------------------------------------------


def test_classify_takes_queries_of_texts(detector, picture, mug):
    names = [Query("mug", ["a mug", "a cup"]), "cat"]
    classes = detector.classify(picture, names, templates=("{}",))
    assert classes.names == ("mug", "cat")
    embeds = detector.encode_queries(["a mug", "a cup", "cat"]).query_embeds
    embeds = torch.stack([torch.nn.functional.normalize(embeds[:2].mean(0), dim=0), embeds[2]])
    cosine = embeds @ detector.encode_image(picture).embeddings.image_embed
    expected = (cosine * detector.model.alignment_log_scale.exp()).softmax(0)
    assert_close(classes.probabilities, expected, atol=1e-4, rtol=0)
    with pytest.raises(QueryError, match="'my mug' has other parts"):
        detector.classify(picture, [mug, "cat"])


# --- Together ------------------------------------------------------------------------------------------------------


def test_queries_can_be_put_together(detector, mug):
    first, second = detector.encode_queries(["cat", mug]), detector.encode_queries([mug, "dog"])
    both, once = first + second, detector.encode_queries(["cat", mug, mug, "dog"])
    assert both.names == once.names
    assert both.fingerprint == once.fingerprint
    assert both.extras.owners.tolist() == once.extras.owners.tolist() == [1, 1, 1, 2, 2, 2]
    assert_close(both.query_embeds, once.query_embeds, atol=1e-5, rtol=0)
    plain = detector.encode_queries(["cat"])
    assert (plain + plain).extras is None
    with pytest.raises(QueryError, match="queries of two models"):
        first + replace(second, fingerprint="another")
    with pytest.raises(QueryError, match="queries of 16 and 8 dimensions"):
        plain + QueryEmbeddings(torch.ones(1, 8), ("a",))


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"embeds": torch.full((2, 3), math.nan)}, "NaN or infinity"),
        ({"embeds": torch.ones(3, 3)}, r"expected 2 extra embeddings \[X, E\]"),
        ({"owners": torch.tensor([0])}, "expected 2 extra"),
        ({"owners": torch.tensor([0, 1])}, "index of one of 1 queries"),
        ({"owners": torch.tensor([-1, 0])}, "index of one of 1 queries"),
        ({"owners": torch.tensor([0.0, 0.0])}, "index of one of 1 queries"),
        ({"shares": torch.tensor([0.5, 1.0])}, r"must lie in \[0, 1\)"),
        ({"shares": torch.tensor([0.5, math.nan])}, r"must lie in \[0, 1\)"),
        ({"shares": torch.tensor([0.5, 0.5])}, "at most one extra"),
        ({"routes": ("text", "picture")}, "text, exemplar"),
        ({"embeds": torch.eye(4)[:2]}, "4 dimensions, those of the queries have 3"),
    ],
)
def test_extra_embeddings_that_mean_nothing_are_refused(wrong, sentence):
    good = {
        "embeds": torch.eye(3)[:2],
        "owners": torch.tensor([0, 0]),
        "shares": torch.tensor([0.5, 0.0]),
        "routes": ("exemplar", "text"),
    }
    QueryEmbeddings(torch.eye(3)[:1], ("a",), (), ExtraEmbeddings(**good))
    with pytest.raises(QueryError, match=sentence):
        QueryEmbeddings(torch.eye(3)[:1], ("a",), (), ExtraEmbeddings(**{**good, **wrong}))


# --- In a file -----------------------------------------------------------------------------------------------------


def test_queries_come_back_to_the_bit(detector, mug, picture, tmp_path):
    queries = detector.encode_queries(["cat", mug, Exemplar(picture, name="一只\ud800"), "cat"])
    queries.save(tmp_path / "q.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["q.safetensors"]
    for loaded in (QueryEmbeddings.load(tmp_path / "q.safetensors"), detector.load_queries(tmp_path / "q.safetensors")):
        assert (loaded.names, loaded.routes, loaded.fingerprint) == (queries.names, queries.routes, queries.fingerprint)
        assert torch.equal(loaded.query_embeds, queries.query_embeds)
        for field in ("embeds", "owners", "shares"):
            assert torch.equal(getattr(loaded.extras, field), getattr(queries.extras, field))
        assert loaded.extras.routes == queries.extras.routes
        found, expected = (detector.detect(picture, q, threshold=0.2) for q in (loaded, queries))
        assert torch.equal(found.scores, expected.scores)
        assert torch.equal(found.boxes, expected.boxes)


def test_queries_are_bytes_without_a_disk(detector, mug, tmp_path):
    queries = detector.encode_queries(["cat", mug])
    queries.save(tmp_path / "mug.safetensors")
    content = queries.to_bytes()
    for loaded in (detector.load_queries(content), detector.load_queries((tmp_path / "mug.safetensors").read_bytes())):
        assert torch.equal(loaded.query_embeds, queries.query_embeds) and loaded.names == queries.names
        assert torch.equal(loaded.extras.embeds, queries.extras.embeds) and loaded.routes == queries.routes
    for broken in (b"", content[:100], content[:-1], b"\xff" * 50):
        with pytest.raises(QueryError, match=r"^saved queries: not a whole safetensors file"):
            QueryEmbeddings.load(broken)


def test_texts_alone_come_back_without_extras(detector, tmp_path):
    detector.encode_queries(["cat"]).save(tmp_path / "q.safetensors")
    assert detector.load_queries(tmp_path / "q.safetensors").extras is None


def test_queries_of_another_model_are_refused(detector, picture, tmp_path):
    other = Detector(make_tiny_model(seed=1), device="cpu")
    queries = other.encode_queries(["cat"])
    queries.save(tmp_path / "q.safetensors")
    with pytest.raises(QueryError, match=r"q\.safetensors: these queries were made by another model") as caught:
        detector.load_queries(tmp_path / "q.safetensors")
    assert "\n" not in str(caught.value)
    with pytest.raises(QueryError, match="made by another model"):
        detector.detect(picture, queries)
    replace(queries, fingerprint="").save(tmp_path / "q.safetensors")
    with pytest.raises(QueryError, match="says not which model"):
        detector.load_queries(tmp_path / "q.safetensors")


def test_the_fingerprint_is_that_of_the_weights_and_of_no_setting():
    model = make_tiny_model()
    mark = fingerprint(model)
    assert len(mark) == 64
    assert mark == fingerprint(make_tiny_model()) == Detector(model, device="cpu", image_size=64).fingerprint
    for parameter in (model.alignment_log_scale, model.box_head.state_dict(keep_vars=True).popitem()[1]):
        before = parameter.detach().clone()
        parameter.data.flatten()[-1] += 1e-3
        assert fingerprint(model) != mark
        parameter.data.copy_(before)
    assert fingerprint(model) == mark


GOOD = {
    "query_embeds": torch.eye(3)[:2],
    "extra_embeds": torch.eye(3)[:1],
    "extra_owners": torch.tensor([1]),
    "extra_shares": torch.tensor([0.5]),
}
TOLD = {"names": ["a", "b"], "routes": ["text", "text"], "extra_routes": ["exemplar"], "fingerprint": "x"}
FORMAT = "owl_swin-queries-1"


def write(path, tensors=None, told=None, form=FORMAT):
    tensors = {name: tensor for name, tensor in {**GOOD, **(tensors or {})}.items() if tensor is not None}
    told = told if isinstance(told, str) else json.dumps({**TOLD, **(told or {})})
    save_file(tensors, path, metadata={"format": form, "queries": told})


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"form": "owl_swin-1"}, "holds no queries"),
        ({"tensors": {"query_embeds": torch.full((2, 3), math.nan)}}, "NaN or infinity"),
        ({"tensors": {"query_embeds": 2 * torch.eye(3)[:2]}}, "not of unit length"),
        ({"tensors": {"query_embeds": torch.eye(3)}}, "one embedding for each of 2 names"),
        ({"tensors": {"query_embeds": torch.eye(3)[0]}}, "expected float32 embeddings"),
        ({"tensors": {"query_embeds": torch.eye(3)[:2].half()}}, "expected float32 embeddings"),
        ({"tensors": {"query_embeds": None}}, "query_embeds"),
        ({"tensors": {"extra_embeds": None}}, "extra_embeds"),
        ({"tensors": {"extra_embeds": torch.full((1, 3), math.inf)}}, "NaN or infinity"),
        ({"tensors": {"extra_owners": torch.tensor([2])}}, "index of one of 2 queries"),
        ({"tensors": {"extra_owners": torch.tensor([1.0])}}, "expected int64 owners"),
        ({"tensors": {"extra_shares": torch.tensor([-1.0])}}, r"must lie in \[0, 1\)"),
        ({"tensors": {"more": torch.zeros(1)}}, "unexpected more"),
        ({"told": {"names": ["a"]}}, "1 names have 2 routes"),
        ({"told": {"names": "ab"}}, "must be texts"),
        ({"told": {"names": ["a", 3]}}, "must be texts"),
        ({"told": {"routes": []}}, "2 names have 0 routes"),
        ({"told": {"routes": ["text", "?"]}}, "text, exemplar"),
        ({"told": {"extra_routes": []}}, "expected 0 extra embeddings"),
        ({"told": {"fingerprint": None}}, "must be texts"),
        ({"told": "[]"}, "damaged queries"),
        ({"told": "{"}, "damaged queries"),
        ({"told": "[" * 100_000}, "damaged queries"),
    ],
)
def test_damaged_queries_get_one_sentence_that_names_the_file(tmp_path, change, sentence):
    path = tmp_path / "q.safetensors"
    write(path)
    assert len(QueryEmbeddings.load(path)) == 2
    write(path, **change)
    with pytest.raises(QueryError, match=sentence) as caught:
        QueryEmbeddings.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_happens_to_the_file_it_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "hostile.safetensors"
    write(path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="cut"):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        queries = QueryEmbeddings.load(path)
    except QueryError:
        return
    assert_close(queries.query_embeds.norm(dim=1), torch.ones(2), atol=1e-2, rtol=0)


def test_a_model_or_nothing_in_place_of_queries_is_refused(detector, model_file, tmp_path):
    with pytest.raises(QueryError, match="holds no queries"):
        detector.load_queries(model_file)
    for path in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(QueryError, match="not a whole safetensors file"):
            detector.load_queries(path)


def test_queries_that_cannot_be_written_leave_nothing(detector, tmp_path):
    (tmp_path / "q").mkdir()
    for path in (tmp_path / "q", tmp_path / "missing" / "q"):
        with pytest.raises(QueryError, match="cannot write the queries here"):
            detector.encode_queries(["cat"]).save(path)
    assert [path.name for path in tmp_path.iterdir()] == ["q"]


def test_a_file_of_queries_is_small(detector, mug, tmp_path):
    detector.encode_queries([mug]).save(tmp_path / "q.safetensors")
    assert (tmp_path / "q.safetensors").stat().st_size < 2000
    with safe_open(tmp_path / "q.safetensors", "pt") as file:
        assert file.metadata()["format"] == FORMAT
