"""Logits and boxes of patches → Detections, with numbers that can be followed by hand."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from torch.testing import assert_close

from owl_swin.boxes import xyxy_to_cxcywh
from owl_swin.config import CalibrationConfig
from owl_swin.errors import QueryError
from owl_swin.frame import Frame
from owl_swin.models.network import Spec
from owl_swin.nms import not_suppressed
from owl_swin.postprocess import DetectOptions, detect_options, find_detections, rival_scores, said_suppression

SPEC = Spec("any", "owl_swin", 3, "f" * 64, 64, 32, True, True, True, False, 9.0, CalibrationConfig(), 1.0)

pytestmark = pytest.mark.numeric

FRAME = Frame((100, 200), (96, 192), (96, 192))  # a picture of 100x200, height first
# In pixels of the picture: two that overlap by 0.8, and one apart.
BOXES_XYXY_PX = torch.tensor([[0.0, 0, 100, 50], [0, 0, 100, 40], [150, 50, 190, 90]])
BOXES = FRAME.from_image(BOXES_XYXY_PX)
NAMES = ("cat", "dog")


def logits(*rows) -> torch.Tensor:
    """Logits [P, Q] whose scores are ``rows``."""
    return torch.tensor(rows).logit()


def find(logits, boxes, names, frame=FRAME, **settings):
    options = detect_options(DetectOptions(nms_iou=None), settings)
    return find_detections(logits, frame.to_image(boxes), names, frame.image_hw, options)


def detect(scores, names=NAMES, boxes=BOXES, **settings):
    return find(logits(*scores), boxes, names, **{"threshold": 0.5, **settings})


SCORES = ([0.9, 0.2], [0.8, 0.7], [0.1, 0.6])


def test_nothing_above_the_threshold_is_an_empty_detections():
    found = detect(SCORES, threshold=0.95)
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.names == NAMES
    assert found.image_hw == (100, 200)


@pytest.mark.parametrize(
    "thresholds, expected", [(0.95, ("cat", 0.9, 0)), ([0.95, 0.1], ("cat", 0.9, 0)), (0.5, ("cat", 0.9, 0))]
)
def test_the_best_answer_is_said_also_below_its_threshold(thresholds, expected):
    best = detect(SCORES, threshold=thresholds).best
    assert (best.name, best.score, best.query) == (expected[0], pytest.approx(expected[1]), expected[2])
    assert best.box_xyxy == pytest.approx((0, 0, 100, 50))


def test_of_what_cannot_answer_there_is_no_best():
    never = torch.full((3, 2), -torch.inf)
    outside = FRAME.from_image(torch.tensor([[300.0, 300, 400, 400]] * 3))
    assert find(never, BOXES, NAMES, threshold=0.0).best is None
    assert find(torch.zeros(3, 2), outside, NAMES, threshold=0.0).best is None
    never[1, 1] = -50.0
    assert find(never, BOXES, NAMES, threshold=0.5).best.query == 1


@pytest.mark.parametrize("n_patches, n_queries", [(0, 2), (3, 0)])
def test_no_patches_or_no_queries_give_an_empty_detections(n_patches, n_queries):
    empty = torch.zeros(n_patches, n_queries)
    found = find(empty, BOXES[:n_patches], NAMES[:n_queries], threshold=0.0, nms_iou=0.5, top_k=5)
    assert len(found) == 0
    assert found.best is None


def test_every_pair_at_or_above_the_threshold_is_found_best_first():
    found = detect(SCORES, threshold=0.5)
    assert_close(found.scores, torch.tensor([0.9, 0.8, 0.7, 0.6]))
    assert found.patches.tolist() == [0, 1, 1, 2]
    assert found.labels.tolist() == [0, 0, 1, 1]  # patch 1 answers both queries
    assert_close(found.boxes, BOXES_XYXY_PX[[0, 1, 1, 2]])


def test_a_score_equal_to_the_threshold_counts():
    assert len(find(torch.zeros(1, 1), BOXES[:1], ("a",), threshold=0.5)) == 1


def test_equal_scores_keep_the_order_of_patches_and_queries():
    found = find(torch.zeros(3, 2), BOXES, NAMES, threshold=0.1)
    assert found.patches.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    "thresholds, expected",
    [
        ([0.5, 0.5], [(0, 0), (1, 0), (1, 1), (2, 1)]),
        ([0.85, 0.65], [(0, 0), (1, 1)]),
        ([1.0, 0.1], [(1, 1), (2, 1), (0, 1)]),
        (torch.tensor([0.85, 1.0]), [(0, 0)]),
    ],
)
def test_each_query_may_have_its_threshold(thresholds, expected):
    found = detect(SCORES, threshold=thresholds)
    assert list(zip(found.patches.tolist(), found.labels.tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    "nms_iou, expected",
    [
        (None, [(0, 0), (1, 0), (1, 1), (2, 1)]),
        (1.0, [(0, 0), (1, 0), (1, 1), (2, 1)]),
        (0.81, [(0, 0), (1, 0), (1, 1), (2, 1)]),
        (0.79, [(0, 0), (1, 1), (2, 1)]),  # patch 1 loses as a cat, not as a dog
        (0.0, [(0, 0), (1, 1), (2, 1)]),
    ],
)
def test_nms_drops_the_worse_of_two_boxes_of_one_query(nms_iou, expected):
    found = detect(SCORES, nms_iou=nms_iou)
    assert list(zip(found.patches.tolist(), found.labels.tolist(), strict=True)) == expected


def test_nms_of_a_thousand_queries_is_that_of_each_alone():
    torch.manual_seed(0)
    frame = Frame((5000, 5000), (640, 640), (640, 640))
    corners = 4000 + torch.randint(0, 60, (600, 1)) * 15 + torch.rand(600, 2) * 8
    boxes = xyxy_to_cxcywh(torch.cat([corners, corners + 6 + torch.rand(600, 2) * 6], 1) / 5000)
    last = torch.rand(600, 1) * 4
    many = torch.cat([torch.full((600, 999), -9.0), last], 1)
    alone = find(last, boxes, ("x",), frame, threshold=0.5, nms_iou=0.5, top_k=600)
    among = find(many, boxes, ["x"] * 1000, frame, threshold=0.5, nms_iou=0.5, top_k=600)
    assert 0 < len(alone) < 600
    assert among.patches.tolist() == alone.patches.tolist()


@pytest.mark.parametrize("iou", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_suppression_is_that_of_torchvision(iou):
    torch.manual_seed(1)
    corners = torch.rand(500, 2) * 100
    boxes, scores = torch.cat([corners, corners + torch.rand(500, 2) * 60], 1), torch.rand(500)
    groups = torch.randint(0, 5, (500,))
    expected = torchvision.ops.batched_nms(boxes.double(), scores.double(), groups, iou)
    assert not_suppressed(boxes, scores, groups, iou).tolist() == sorted(expected.tolist())
    assert not_suppressed(boxes[:0], scores[:0], groups[:0], iou).tolist() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_suppression_works_wherever_the_operators_of_torchvision_lie():
    program = """
import os, torch, owl_swin.nms as nms
from types import SimpleNamespace
boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9]])
for origin in ("", "/nowhere/__init__.py"):  # in a process each, since operators that are loaded stay
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, origin
        continue
    nms.find_spec = lambda name: SimpleNamespace(origin=origin)
    assert not hasattr(torch.ops.torchvision, "nms")
    assert nms.not_suppressed(boxes, torch.tensor([0.1, 0.2]), torch.zeros(2, dtype=torch.long), 0.5).tolist() == [1]
    break
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("nms_iou", [None, 0.5])
@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 300])
def test_top_k_keeps_the_best(top_k, nms_iou):
    everything, found = detect(SCORES, nms_iou=nms_iou), detect(SCORES, nms_iou=nms_iou, top_k=top_k)
    assert found.patches.tolist() == everything.patches[:top_k].tolist()


def test_top_k_is_filled_from_behind_many_overlapping_boxes():
    many = BOXES[:1].repeat(100, 1)
    scores = [[0.9]] * 100 + [[0.6]]
    found = detect(scores, names=("cat",), boxes=torch.cat([many, BOXES[2:]]), nms_iou=0.5, top_k=2)
    assert found.patches.tolist() == [0, 100]


def test_a_logit_of_minus_infinity_never_answers():
    masked = torch.tensor([[-torch.inf], [-1e4], [torch.nan]])
    assert find(masked, BOXES, ("a",), threshold=0.0).patches.tolist() == [1]


def test_boxes_are_clipped_and_those_outside_the_picture_are_no_detections():
    boxes = torch.tensor([[0.5, 0.5, 4.0, 4.0], [1.5, 0.5, 0.2, 0.2], [0.5, -0.5, 0.2, 1.0], [0.0, 0.0, 0.5, 0.5]])
    found = detect([[0.9], [0.9], [0.9], [0.8]], names=("a",), boxes=boxes)
    assert found.patches.tolist() == [0, 3]
    assert_close(found.boxes, torch.tensor([[0.0, 0, 200, 100], [0, 0, 50, 25]]))


def test_a_box_that_is_not_a_number_is_no_detection():
    boxes = torch.tensor([[torch.nan, 0.5, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]])
    assert detect([[0.9], [0.8]], names=("a",), boxes=boxes, nms_iou=0.5).patches.tolist() == [1]


def test_names_that_contain_one_another_or_repeat_are_told_apart_by_index():
    found = detect([[0.1, 0.9, 0.8], [0.7, 0.1, 0.1]], names=("cat", "caterpillar", "cat"), boxes=BOXES[:2])
    assert [d.name for d in found] == ["caterpillar", "cat", "cat"]
    assert found.labels.tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"threshold": float("nan")}, r"threshold must lie in \[0, 1\], got nan"),
        ({"threshold": -0.1}, "threshold must lie in"),
        ({"threshold": 1.1}, "threshold must lie in"),
        ({"threshold": [0.5, float("nan")]}, "threshold must lie in"),
        ({"threshold": [0.5]}, "one for each of the 2 queries"),
        ({"threshold": [0.5, 0.5, 0.5]}, "one for each of the 2 queries"),
        ({"threshold": []}, "one for each of the 2 queries"),
        ({"threshold": [[0.5, 0.5]]}, "threshold must be a number in"),
        ({"threshold": None}, "threshold must be a number"),
        ({"threshold": "0.5"}, "threshold must be a number"),
        ({"nms_iou": float("nan")}, r"nms_iou must be a number in \[0, 1\], got nan"),
        ({"nms_iou": -0.1}, "nms_iou must be a number"),
        ({"nms_iou": 1.1}, "nms_iou must be a number"),
        ({"nms_iou": "0.5"}, "nms_iou must be a number"),
        ({"nms_iou": np.array([0.1, 0.2])}, "nms_iou must be a number"),
        ({"nms_iou": False}, "nms_iou must be a number"),  # which would suppress whatever touches
        ({"nms_across": "false"}, "nms_across must be True or False"),
        pytest.param({"threshold": 10**5000}, "threshold must be a number", id="many digits"),
        ({"threshold": True}, "threshold must be a number"),
        ({"top_k": True}, "top_k must be a whole number"),
        ({"top_k": 0}, "top_k must be a whole number, at least 1, got 0"),
        ({"top_k": -1}, "top_k must be"),
        ({"top_k": 2.5}, "top_k must be"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, sentence):
    with pytest.raises(QueryError, match=sentence):
        detect(SCORES, **settings)


def test_one_threshold_is_given_to_every_query():
    assert_close(DetectOptions(threshold=0.25).thresholds(["a"] * 3), torch.tensor([0.25, 0.25, 0.25]))
    assert DetectOptions(threshold=0.25).thresholds([]).shape == (0,)


def test_thresholds_may_be_given_by_name():
    options = DetectOptions(threshold={"dog": 0.65, "cat": np.float32(0.5)})
    assert_close(options.thresholds(("cat", "dog", "owl", "cat")), torch.tensor([0.5, 0.65, 0.2, 0.5]))
    found = detect(SCORES, threshold={"cat": 0.85, "dog": 0.65})
    assert list(zip(found.patches.tolist(), found.labels.tolist(), strict=True)) == [(0, 0), (1, 1)]
    with pytest.raises(QueryError, match="threshold names 'dgo', which is none of the queries"):
        detect(SCORES, threshold={"dgo": 0.5})
    for wrong in ({"cat": 1.5}, {"cat": None}):
        with pytest.raises(QueryError, match=r"the threshold of 'cat' must be a number in \[0, 1\]"):
            DetectOptions(threshold=wrong)


@pytest.mark.parametrize("across, expected", [(False, [(0, 0), (1, 1), (2, 1)]), (True, [(0, 0), (2, 1)])])
def test_suppression_across_names_leaves_one_name_a_place(across, expected):
    found = detect(SCORES, nms_iou=0.5, nms_across=across)
    assert list(zip(found.patches.tolist(), found.labels.tolist(), strict=True)) == expected


def test_options_are_checked_once_and_settings_take_their_place():
    options = DetectOptions(threshold=[0.5, np.int64(1)], max_detections=np.int64(7))
    assert options.threshold == (0.5, 1.0)
    changed = detect_options(options, {"top_k": 3, "nms_iou": None})
    assert (changed.threshold, changed.max_detections, changed.nms_iou) == ((0.5, 1.0), 3, None)
    assert detect_options() == DetectOptions()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.nms_iou = 0.3
    with pytest.raises(TypeError, match="treshold"):
        detect_options(None, {"treshold": 0.5})


def test_a_wrong_value_is_shown_in_short():
    with pytest.raises(QueryError) as caught:
        DetectOptions(nms_iou=b"x" * 1_000_000)
    assert len(str(caught.value)) < 300


# Of one name: the best, two that overlap it by 0.9 and 0.6, one by 0.45, one apart. What a vote gives is by hand.
CROWD = torch.tensor([[0.0, 0, 100, 50], [0, 0, 100, 45], [0, 0, 60, 50], [0, 0, 45, 50], [150, 50, 190, 90]])
CROWD_SCORES = torch.tensor([[0.8], [0.4], [0.5], [0.7], [0.3]])
VOTES = torch.tensor([0.8, 0.4 * 0.9**2, 0.5 * 0.6**2])


def vote(scores=CROWD_SCORES, boxes=CROWD, **settings):
    return detect(scores.tolist(), names=("cat",), boxes=FRAME.from_image(boxes), **settings)


def test_suppressed_boxes_vote_by_score_and_overlap():
    found = vote(threshold=0.6, nms_iou=0.4, box_voting=True)
    expected = (VOTES[:, None] * CROWD[:3]).sum(0) / VOTES.sum()
    assert_close(found.boxes, expected[None], atol=1e-3, rtol=0)
    assert found.scores.tolist() == pytest.approx([0.8]) and found.patches.tolist() == [0]
    plain = vote(threshold=0.6, nms_iou=0.4)
    assert_close(plain.boxes, CROWD[:1], atol=1e-3, rtol=0)


def test_a_threshold_moves_no_voted_box():
    low, high = (vote(threshold=t, nms_iou=0.5, box_voting=True) for t in (0.1, 0.75))
    assert len(low) > len(high) == 1
    assert torch.equal(low.boxes[:1], high.boxes)


def test_only_the_scores_of_its_own_query_move_a_box():
    scores = [[0.8, 0.01], [0.01, 0.7], [0.01, 0.01], [0.01, 0.01], [0.01, 0.01]]
    found = detect(scores, boxes=FRAME.from_image(CROWD), nms_iou=0.4, box_voting=True)
    assert found.labels.tolist() == [0, 1]
    assert (found.boxes - CROWD[:2]).abs().max() < 3


@pytest.mark.parametrize("nms_iou", [None, 1])
def test_where_nothing_is_suppressed_nothing_votes(nms_iou):
    assert_close(vote(threshold=0.1, nms_iou=nms_iou, box_voting=True).boxes[0], CROWD[0], atol=1e-3, rtol=0)
    assert said_suppression(dataclasses.replace(SPEC, box_voting=True), nms_iou) == "no NMS"


@pytest.mark.parametrize("wrong", [[float("nan")] * 4, [0.5, 0.5, float("nan"), 0.2]])
def test_a_box_that_is_not_a_number_has_no_vote(wrong):
    frame_boxes = torch.cat([FRAME.from_image(CROWD), torch.tensor([wrong])])
    scores = torch.cat([CROWD_SCORES, torch.tensor([[0.9]])])
    found = detect(scores.tolist(), names=("cat",), boxes=frame_boxes, threshold=0.6, nms_iou=0.4, box_voting=True)
    assert torch.equal(found.boxes, vote(threshold=0.6, nms_iou=0.4, box_voting=True).boxes)


@pytest.mark.parametrize("nms_iou", [None, 0.5])
def test_no_bound_is_too_large(nms_iou):
    everything = detect(SCORES, nms_iou=nms_iou)
    assert len(detect(SCORES, nms_iou=nms_iou, top_k=10**30)) == len(everything) > 0


def test_a_box_of_no_score_keeps_its_place():
    logits = torch.full((5, 1), -200.0)  # whose score is 0 in float32
    found = find(logits, FRAME.from_image(CROWD), ("cat",), threshold=0.0, nms_iou=0.5, box_voting=True)
    assert found.scores.tolist() == [0, 0, 0]
    assert_close(found.boxes, CROWD[[0, 3, 4]], atol=1e-3, rtol=0)


def test_votes_are_weighed_in_pieces(monkeypatch):
    whole = vote(threshold=0.1, nms_iou=0.95, box_voting=True)
    monkeypatch.setattr("owl_swin.postprocess.VOTES_AT_ONCE", 12)
    assert_close(vote(threshold=0.1, nms_iou=0.95, box_voting=True).boxes, whole.boxes)
    assert len(vote(threshold=0.99, nms_iou=0.5, box_voting=True)) == 0


RIVALS = ([0.9, 0.3], [0.8, 0.2], [0.1, 0.6])


def rivals(scores=RIVALS, texts=(True, True), boxes=BOXES, **settings):
    """What is found, as {(name, patch): score}, best first."""
    options = detect_options(DetectOptions(nms_iou=0.5, threshold=0.05), settings)
    pixels = FRAME.to_image(boxes)
    found = find_detections(logits(*scores), pixels, NAMES, FRAME.image_hw, options, texts)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    places = zip(found.labels.tolist(), found.patches.tolist(), strict=True)
    return dict(zip([(NAMES[label], patch) for label, patch in places], found.scores.tolist(), strict=True))


EVERYTHING = {("cat", 0): 0.9, ("dog", 2): 0.6, ("dog", 0): 0.3, ("cat", 2): 0.1}


def test_a_second_name_of_a_thing_loses_by_how_far_the_first_is_ahead():
    assert rivals(rivals=0.0) == pytest.approx(EVERYTHING)
    assert rivals(rivals=1.0) == pytest.approx({("cat", 0): 0.9, ("dog", 2): 0.6, ("dog", 0): 0.3 * 0.3 / 0.9})
    less = EVERYTHING | {("dog", 0): 0.3 * (0.3 / 0.9) ** 0.5, ("cat", 2): 0.1 * (0.1 / 0.6) ** 0.5}
    assert rivals(rivals=0.5, threshold=0.0) == pytest.approx(less)


def test_a_threshold_hears_of_rivals_and_changes_no_score():
    everything = rivals(rivals=1.0, threshold=0.0)
    assert len(everything) == 4
    for threshold in (0.01, 0.09, 0.11, 0.29, 0.5, 0.8):
        passed = {place: score for place, score in everything.items() if score >= threshold}
        assert rivals(rivals=1.0, threshold=threshold) == passed


def test_answers_change_places_where_a_rival_takes_enough():
    # The dog of the first patch, 0.8, is a cat of 0.9 rather, and falls behind the dog of the third, 0.75.
    scores = [[0.9, 0.8], [0.01, 0.01], [0.02, 0.75]]
    assert list(rivals(scores, rivals=0.0, threshold=0.1)) == [("cat", 0), ("dog", 0), ("dog", 2)]
    found = rivals(scores, rivals=1.0, threshold=0.1)
    assert list(found) == [("cat", 0), ("dog", 2), ("dog", 0)] and found["dog", 0] == pytest.approx(0.8 * 0.8 / 0.9)


def test_a_rival_is_another_patch_of_the_thing_or_none_at_all():
    # The dog's own patch says nothing of a cat, but one whose box overlaps it by 0.8 does.
    scores = [[0.9, 0.01], [0.01, 0.4], [0.01, 0.01]]
    assert rivals(scores, rivals=1.0) == pytest.approx({("cat", 0): 0.9, ("dog", 1): 0.4 * 0.4 / 0.9})
    apart = BOXES.clone()
    apart[1] = BOXES[2]
    assert rivals(scores, boxes=apart, rivals=1.0) == pytest.approx({("cat", 0): 0.9, ("dog", 1): 0.4})


def test_names_that_fit_as_well_lose_nothing():
    same = [[0.6, 0.6], [0.1, 0.1], [0.01, 0.01]]
    assert rivals(same, rivals=1.0) == pytest.approx({("cat", 0): 0.6, ("dog", 0): 0.6})


def test_a_rival_counts_though_it_does_not_reach_its_own_threshold():
    assert rivals(rivals=1.0, threshold=[0.95, 0.05]) == pytest.approx({("dog", 2): 0.6, ("dog", 0): 0.1})


@pytest.mark.parametrize("texts", [(True, False), (False, True), (False, False), ()])
def test_only_texts_compete(texts):
    assert rivals(rivals=1.0, texts=texts) == pytest.approx(EVERYTHING)


def test_where_nothing_is_suppressed_nothing_competes():
    assert rivals(rivals=1.0, nms_iou=None) == rivals(rivals=0.0, nms_iou=None)
    assert len(rivals(rivals=1.0, nms_iou=None)) > 4
    assert said_suppression(dataclasses.replace(SPEC, rivals=0.4), None) == "no NMS"


@pytest.mark.parametrize("nms_iou", [0.5, None])
def test_where_nothing_passes_nothing_competes(nms_iou):
    assert rivals(rivals=0.5, threshold=0.99, nms_iou=nms_iou) == {}
    away = FRAME.from_image(torch.tensor([[300.0, 300, 400, 400]] * 3))
    assert rivals(rivals=0.5, boxes=away, nms_iou=nms_iou) == {}


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_what_a_rival_outdoes_takes_no_place_of_others(most):
    whole = rivals(rivals=1.0, threshold=0.0)
    assert list(rivals(rivals=1.0, threshold=0.0, top_k=most).items()) == list(whole.items())[:most]
    swapped = [[0.9, 0.3], [0.8, 0.2], [0.29, 0.26]]  # the second best answer, a dog of 0.3, falls to 0.1
    order = [("cat", 0), ("cat", 2), ("dog", 2), ("dog", 0)]
    assert list(rivals(swapped, rivals=1.0, top_k=most)) == order[:most]


def test_the_best_are_the_same_however_many_are_asked_for(monkeypatch):
    scores = torch.rand(60, 5, generator=torch.Generator().manual_seed(0)).logit()
    boxes = BOXES_XYXY_PX.repeat(20, 1) + 60 * torch.rand(60, 4, generator=torch.Generator().manual_seed(1))
    names, texts = ["a", "b", "c", "d", "e"], [True, True, False, True, True]

    def found(most):
        options = DetectOptions(threshold=0.0, nms_iou=0.6, rivals=1.0, max_detections=most)
        return find_detections(scores, boxes, names, (900, 900), options, texts)

    whole = found(300)
    assert len(whole) > 20
    monkeypatch.setattr("owl_swin.postprocess.RIVALS_AT_ONCE", 1)
    for most in (1, 2, 7, 20):
        few = found(most)
        assert_close(few.scores, whole.scores[:most])
        assert_close(few.patches, whole.patches[:most])
        assert_close(few.labels, whole.labels[:most])


def test_an_answer_under_its_own_threshold_takes_no_place_of_others(monkeypatch):
    monkeypatch.setattr("owl_swin.postprocess.RIVALS_AT_ONCE", 1)
    # The dog of 0.6 falls to 0.45, under its threshold, and is more than the bird of 0.4 elsewhere.
    scores = torch.tensor([[0.8, 0.6, 0.01], [0.01, 0.01, 0.4]]).logit()
    boxes = BOXES_XYXY_PX[[0, 2]]
    options = DetectOptions(threshold=[0.95, 0.5, 0.05], nms_iou=0.5, rivals=1.0, max_detections=1)
    found = find_detections(scores, boxes, ["cat", "dog", "bird"], FRAME.image_hw, options, [True] * 3)
    assert [(one.name, round(one.score, 4)) for one in found] == [("bird", 0.4)]


def test_a_score_of_nothing_has_no_share_of_a_rival():
    nothing = logits([0.5, 0.5], [0.5, 0.5], [0.5, 0.5]) * 0 - 200  # sigmoid(-200) is 0
    found = find_detections(
        nothing,
        BOXES_XYXY_PX,
        NAMES,
        FRAME.image_hw,
        DetectOptions(threshold=0.0, rivals=1.0),
        (True, True),
    )
    assert len(found) and found.scores.tolist() == [0.0] * len(found)


def test_rivals_are_found_in_pieces(monkeypatch):
    scores = torch.rand(40, 5, generator=torch.Generator().manual_seed(0))
    boxes = BOXES_XYXY_PX.repeat(14, 1)[:40] + torch.rand(40, 4, generator=torch.Generator().manual_seed(1))
    patches, labels = torch.arange(40), torch.arange(40) % 5
    compete = torch.tensor([True, True, False, True, True])
    whole = rival_scores(scores.logit(), boxes, patches, labels, compete)
    for k in range(40):
        near = torchvision.ops.box_iou(boxes[k : k + 1], boxes)[0] >= 0.7
        others = [q for q in range(5) if compete[q] and q != k % 5]
        assert whole[k] == pytest.approx(float(scores[near][:, others].max()), abs=1e-6)
    monkeypatch.setattr("owl_swin.postprocess.VOTES_AT_ONCE", 90)
    assert_close(rival_scores(scores.logit(), boxes, patches, labels, compete), whole)


@pytest.mark.parametrize(
    "given, overlap, voting", [({}, 0.3, True), ({"nms_iou": None, "box_voting": False}, None, False)]
)
def test_what_is_left_to_the_model_is_its_own(given, overlap, voting):
    spec = dataclasses.replace(SPEC, nms_iou=0.3, box_voting=True, rivals=0.4)
    chosen = DetectOptions(**given).of_model(spec)
    assert (chosen.nms_iou, chosen.box_voting, chosen.rivals) == (overlap, voting, 0.4)
    said = "NMS 0.3 with box voting, rivals 0.4" if overlap else "no NMS"
    assert said_suppression(spec, given.get("nms_iou", "model")) == said


@pytest.mark.parametrize(
    "wrong",
    [
        {"nms_iou": "some"},
        {"rivals": "some"},
        {"rivals": -1},
        {"rivals": None},
        {"box_voting": 1},
        {"nms_iou": True + 1},
    ],
)
def test_suppression_that_means_nothing_is_refused(wrong):
    with pytest.raises(QueryError, match=next(iter(wrong))):
        DetectOptions(**wrong)
