"""The dataclasses that travel."""

import dataclasses
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from owl_swin.attention import BlockAttention
from owl_swin.detections import Detection, Detections
from owl_swin.errors import MissingExtraError, QueryError
from owl_swin.types import Classification, QueryEmbeddings


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


def test_one_detection_is_taken_by_its_number():
    found = detections()
    assert found[0] == Detection("caterpillar", pytest.approx(0.9), (0, 0, 10, 10), 1)
    assert [found[i] for i in range(3)] == list(found)
    assert found[-1] == found[np.int64(2)]
    for past in (3, -4):
        with pytest.raises(IndexError):
            found[past]
    with pytest.raises(IndexError):
        detections(0)[0]


def test_equal_detections_are_equal():
    assert detections() == detections()
    assert detections(0) == detections(0) != detections(1)
    assert detections() != replace(detections(), names=("cat", "caterpillar", "dog"))
    assert detections() != replace(detections(), scores=torch.tensor([0.9, 0.5, 0.26]))
    assert detections() != list(detections())


def test_empty_detections_are_made_without_tensors():
    assert Detections.empty(("cat", "caterpillar", "cat"), (40, 50)) == detections(0)
    assert Detections.empty().to_dicts() == []
    assert Detections.empty(image_hw=(4, 5)).image_hw == (4, 5)


def test_results_of_the_same_queries_are_merged_best_first():
    merged = Detections.merge([detections(), detections(1), detections(0)])
    assert merged.names == ("cat", "caterpillar", "cat")
    assert merged.scores.tolist() == pytest.approx([0.9, 0.9, 0.5, 0.25])
    assert merged.labels.tolist() == [1, 1, 0, 2]
    assert Detections.merge([detections()]) == detections()


def test_results_of_other_queries_are_merged_with_all_names():
    dog = Detection("dog", 0.95, (1, 1, 2, 2), 0)
    other = Detections(
        torch.tensor([[1.0, 1, 2, 2]]),
        torch.tensor([0.6]),
        torch.tensor([0]),
        ("dog",),
        (40, 50),
        torch.tensor([7]),
        dog,
    )
    merged = Detections.merge([detections(2), other])
    assert merged.names == ("cat", "caterpillar", "cat", "dog")
    assert [(one.name, one.query) for one in merged] == [("caterpillar", 1), ("dog", 3), ("cat", 0)]
    assert merged.patches.tolist() == [0, 7, 1]
    assert merged.best == replace(dog, query=3)


@pytest.mark.parametrize("parts", [detections(), [detections(), None], [detections()[0]]])
def test_what_is_no_list_of_results_is_not_merged(parts):
    with pytest.raises(QueryError, match="merge takes a list of Detections"):
        Detections.merge(parts)


def test_results_are_merged_as_they_come():
    assert Detections.merge(one for one in [detections()]) == detections()


@pytest.mark.parametrize("number", [torch.tensor(1), np.array(1), np.int64(1), torch.tensor([0.1, 0.9, 0.2]).argmax()])
def test_a_number_of_any_library_calls_one_detection(number):
    assert detections()[number] == list(detections())[1]


@pytest.mark.parametrize(
    "keep, rows",
    [
        (slice(None, None, -1), [2, 1, 0]),
        (slice(-2, None), [1, 2]),
        ((2, 0), [2, 0]),
        (range(2), [0, 1]),
        ([], []),
        (np.array([2, 0]), [2, 0]),
        ([True, False, True], [0, 2]),
        (np.array([False, True, False]), [1]),
        (torch.tensor([], dtype=torch.bool), None),
    ],
)
def test_a_part_of_the_detections_is_called_as_in_numpy(keep, rows):
    if rows is None:  # a mask of another length
        with pytest.raises(IndexError):
            detections()[keep]
    else:
        assert detections()[keep].patches.tolist() == rows


@pytest.mark.parametrize("keep", ["cat", "", 1.0, True, None, ..., [0.5], [[0]], [None], torch.zeros(3)])
def test_what_calls_no_detection_is_refused_in_a_sentence(keep):
    with pytest.raises(TypeError, match="detections are called by a number, a slice, a list of numbers or a mask, got"):
        detections()[keep]


@pytest.mark.parametrize(
    "parts, got", [([], "nothing"), ([detections(), replace(detections(), image_hw=(1, 2))], "2x1, 50x40")]
)
def test_results_for_several_pictures_are_not_merged(parts, got):
    with pytest.raises(QueryError, match=f"only results for one picture can be merged, got {got}"):
        Detections.merge(parts)


def test_detections_go_to_a_device_whole():
    there = detections().to("meta")
    assert {tensor.device.type for tensor in (there.boxes, there.scores, there.labels, there.patches)} == {"meta"}
    assert detections().to("cpu") == detections()


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
