"""The dataclasses that travel."""

import dataclasses

import pytest
import torch

from owl_swin.errors import QueryError
from owl_swin.types import Classification, Detection, Detections, QueryEmbeddings


def detections(n: int = 3) -> Detections:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1.234567, 2, 30, 4], [5, 5, 6, 6]])
    scores, labels = torch.tensor([0.9, 0.5, 0.25]), torch.tensor([1, 0, 2])
    return Detections(boxes[:n], scores[:n], labels[:n], ("cat", "caterpillar", "cat"), (40, 50), torch.arange(n))


def test_nothing_found_is_an_empty_detections():
    found = detections(0)
    assert len(found) == 0
    assert list(found) == []
    assert found.to_dicts() == []
    assert found.boxes.shape == (0, 4)


def test_rows_carry_the_caller_s_strings():
    assert list(detections()) == [
        Detection("caterpillar", pytest.approx(0.9), (0, 0, 10, 10)),
        Detection("cat", 0.5, pytest.approx((1.234567, 2, 30, 4))),
        Detection("cat", 0.25, (5, 5, 6, 6)),
    ]


def test_dicts_have_the_shape_of_the_transformers_pipeline():
    assert detections().to_dicts()[1] == {
        "label": "cat",
        "score": 0.5,
        "box": {"xmin": 1.23, "ymin": 2.0, "xmax": 30.0, "ymax": 4.0},
    }


@pytest.mark.parametrize(
    "keep, expected",
    [
        (slice(0, 0), []),
        (slice(1, None), [0, 2]),
        (torch.tensor([True, False, True]), [1, 2]),
        (torch.tensor([2, 0]), [2, 1]),
    ],
)
def test_a_part_keeps_rows_together_and_names_whole(keep, expected):
    part = detections()[keep]
    assert part.labels.tolist() == expected
    assert part.names == ("cat", "caterpillar", "cat")
    assert len(part.boxes) == len(part.scores) == len(part.patches) == len(expected)


@pytest.mark.parametrize("field", ["boxes", "scores", "labels", "patches"])
def test_detections_of_uneven_length_are_refused(field):
    with pytest.raises(QueryError, match=r"expected boxes \[N, 4\]"):
        dataclasses.replace(detections(), **{field: getattr(detections(), field)[:2]})


def test_detections_cannot_be_edited():
    with pytest.raises(dataclasses.FrozenInstanceError):
        detections().scores = torch.zeros(3)


@pytest.mark.parametrize(
    "embeds, names, sentence",
    [
        (torch.zeros(2, 4), ("a",), "expected one embedding for each of 1 names"),
        (torch.zeros(4), ("a", "b", "c", "d"), "expected one embedding"),
        (torch.tensor([[1.0, float("nan")]]), ("a",), "NaN or infinity"),
        (torch.tensor([[1.0, float("inf")]]), ("a",), "NaN or infinity"),
    ],
)
def test_query_embeddings_that_mean_nothing_are_refused(embeds, names, sentence):
    with pytest.raises(QueryError, match=sentence):
        QueryEmbeddings(embeds, names)


def test_query_embeddings_count_their_names():
    assert len(QueryEmbeddings(torch.zeros(0, 4), ())) == 0
    assert len(QueryEmbeddings(torch.zeros(2, 4), ("a", "a"))) == 2


def test_ranked_puts_the_likeliest_first_and_keeps_the_order_of_equals():
    ranked = Classification(torch.tensor([0.2, 0.5, 0.2, 0.1]), ("a", "b", "c", "d")).ranked()
    assert [name for name, _ in ranked] == ["b", "a", "c", "d"]
    assert ranked[0][1] == 0.5
