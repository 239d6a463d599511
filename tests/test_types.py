"""The dataclasses that travel."""

import dataclasses
import sys

import numpy as np
import pytest
import torch

from owl_swin.errors import MissingExtraError, QueryError
from owl_swin.types import BlockAttention, Classification, Detection, Detections, QueryEmbeddings


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
        Detection("caterpillar", pytest.approx(0.9), (0, 0, 10, 10), 1),
        Detection("cat", 0.5, pytest.approx((1.234567, 2, 30, 4)), 0),
        Detection("cat", 0.25, (5, 5, 6, 6), 2),
    ]


def test_dicts_have_the_shape_of_the_transformers_pipeline():
    assert detections().to_dicts()[1] == {
        "label": "cat",
        "query": 0,
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


@pytest.mark.parametrize("n", [0, 3])
def test_supervision_takes_the_detections(n):
    from supervision import Detections as SupervisionDetections

    theirs = detections(n).to_supervision()
    assert isinstance(theirs, SupervisionDetections)
    assert len(theirs) == n
    np.testing.assert_array_equal(theirs.xyxy, detections(n).boxes.numpy())
    np.testing.assert_array_equal(theirs.confidence, detections(n).scores.numpy())
    assert theirs.class_id.tolist() == [1, 0, 2][:n]
    assert theirs["class_name"].tolist() == ["caterpillar", "cat", "cat"][:n]


def test_supervision_keeps_working_with_what_it_got():
    theirs = detections().to_supervision()
    assert theirs[theirs.confidence > 0.4].class_id.tolist() == [1, 0]
    assert theirs.area.tolist() == pytest.approx([100, 28.765433 * 2, 1])
    assert len(theirs.merge([theirs, detections(0).to_supervision()])) == 3
    assert len(theirs.with_nms(0.5, class_agnostic=True)) == 3


def test_pandas_has_a_row_for_each_detection():
    table = detections().to_pandas()
    assert list(table.columns) == ["label", "score", "xmin", "ymin", "xmax", "ymax", "query", "patch"]
    assert table.iloc[0].tolist() == ["caterpillar", pytest.approx(0.9), 0, 0, 10, 10, 1, 0]
    assert table.groupby("label").score.max().to_dict() == {"cat": 0.5, "caterpillar": pytest.approx(0.9)}
    empty = detections(0).to_pandas()
    assert len(empty) == 0
    assert (empty.dtypes == table.dtypes).all()


@pytest.mark.parametrize("package", ["supervision", "pandas"])
def test_a_package_that_is_not_there_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package}\..* pip install 'owl_swin\[interop\]'"):
        getattr(detections(), f"to_{package}")()


def test_a_patch_attends_within_its_window_and_nowhere_else():
    patches = torch.tensor([[0, 1, -1], [2, 3, -1]])  # a map of 2 x 2 patches in two windows, each filled up by one
    weights = torch.zeros(2, 1, 3, 3)
    weights[1, 0, 1] = torch.tensor([0.25, 0.75, 0.0])
    seen = BlockAttention(0, 1, (2, 2), (1, 3), (0, 0), patches, weights)
    assert seen.of_patch(1, 1).tolist() == [[[0.0, 0.0], [0.25, 0.75]]]
    with pytest.raises(QueryError, match=r"2 rows and 2 columns of patches, got \(2, 0\)"):
        seen.of_patch(2, 0)
