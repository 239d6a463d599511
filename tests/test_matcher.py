"""The matching against hand-made cases and against every possible pairing."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from owl_swin.models.heads import cell_centres
from owl_swin.training.matcher import centre_match, class_cost, hungarian_match

pytestmark = pytest.mark.numeric

ALPHA, GAMMA = 0.3, 2.0


def slow_giou(a, b):
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    ax0, ay0, ax1, ay1 = ax - aw / 2, ay - ah / 2, ax + aw / 2, ay + ah / 2
    bx0, by0, bx1, by1 = bx - bw / 2, by - bh / 2, bx + bw / 2, by + bh / 2
    common = max(0, min(ax1, bx1) - max(ax0, bx0)) * max(0, min(ay1, by1) - max(ay0, by0))
    union = aw * ah + bw * bh - common
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return common / union - (hull - union) / hull


def slow_class_cost(logits, labels):
    """Focal loss as the target's patch less that as background, mean over the target's queries."""
    saved = []
    for logit, label in zip(logits, labels, strict=True):
        if label:
            p = 1 / (1 + math.exp(-logit))
            as_target = -ALPHA * (1 - p) ** GAMMA * math.log(p)
            as_background = -(1 - ALPHA) * p**GAMMA * math.log(1 - p)
            saved.append(as_target - as_background)
    return sum(saved) / len(saved)


def slow_costs(logits, boxes, labels, targets):
    """Cost [P][G] of every pair, by the book."""
    return [
        [
            slow_class_cost(logit, label)
            + sum(abs(b - t) for b, t in zip(box, target, strict=True))
            - slow_giou(box, target)
            for label, target in zip(labels, targets, strict=True)
        ]
        for logit, box in zip(logits, boxes, strict=True)
    ]


def cheapest(costs):
    """The least total over every way to give each of the fewer side a partner of its own."""
    if len(costs) < len(costs[0]):
        costs = [list(column) for column in zip(*costs, strict=True)]
    rows, cols = len(costs), len(costs[0])
    return min(sum(costs[p][g] for g, p in enumerate(chosen)) for chosen in itertools.permutations(range(rows), cols))


def test_without_targets_nothing_is_matched():
    patches, targets = hungarian_match(torch.zeros(4, 2), torch.rand(4, 4), torch.zeros(0, 2), torch.zeros(0, 4))
    assert len(patches) == len(targets) == 0
    assert patches.dtype == targets.dtype == torch.long


def test_a_box_goes_to_the_patch_that_drew_it():
    boxes = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]])
    patches, targets = hungarian_match(torch.zeros(3, 1), boxes, torch.ones(2, 1), boxes[[2, 0]])
    assert dict(zip(targets.tolist(), patches.tolist(), strict=True)) == {0: 2, 1: 0}


def test_of_two_equal_boxes_the_one_with_the_right_name_answers():
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4]]).repeat(2, 1)
    logits = torch.tensor([[3.0, -3.0], [-3.0, 3.0]])
    labels = torch.tensor([[0.0, 1.0]])
    patches, _ = hungarian_match(logits, boxes, labels, boxes[:1])
    assert patches.tolist() == [1]


def test_a_patch_answers_once_though_it_is_best_for_both():
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]])
    targets = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.52, 0.5, 0.2, 0.2]])
    patches, matched = hungarian_match(torch.zeros(2, 1), boxes, torch.ones(2, 1), targets)
    assert sorted(patches.tolist()) == [0, 1] and sorted(matched.tolist()) == [0, 1]


def test_more_targets_than_patches_leaves_targets_over():
    patches, targets = hungarian_match(
        torch.zeros(1, 1), torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.ones(3, 1), torch.rand(3, 4) * 0.1 + 0.45
    )
    assert patches.tolist() == [0] and len(targets) == 1


def test_class_cost_of_one_name_and_of_two():
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    labels = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    expected = [slow_class_cost(logits[0].tolist(), label.tolist()) for label in labels]
    assert class_cost(logits, labels, alpha=ALPHA, gamma=GAMMA)[0].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_patch_is_matched_last(bad):
    boxes = torch.full((3, 4), 0.5)
    boxes[0] = bad
    patches, _ = hungarian_match(torch.zeros(3, 1), boxes, torch.ones(2, 1), torch.full((2, 4), 0.5))
    assert patches.tolist() == [1, 2]


@given(
    n_patches=st.integers(1, 5),
    n_targets=st.integers(1, 5),
    n_queries=st.integers(1, 3),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None)
def test_total_cost_is_the_least_of_all_pairings(n_patches, n_targets, n_queries, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n_patches, n_queries, generator=generator) * 2
    boxes = torch.rand(n_patches, 4, generator=generator) * 0.8 + 0.1
    targets = torch.rand(n_targets, 4, generator=generator) * 0.8 + 0.1
    labels = (torch.rand(n_targets, n_queries, generator=generator) < 0.5).float()
    labels[torch.arange(n_targets), torch.randint(n_queries, (n_targets,), generator=generator)] = 1
    chosen, matched = hungarian_match(logits, boxes, labels, targets, alpha=ALPHA, gamma=GAMMA)
    assert len(chosen) == min(n_patches, n_targets)
    assert len(set(chosen.tolist())) == len(chosen) and len(set(matched.tolist())) == len(matched)
    costs = slow_costs(logits.tolist(), boxes.tolist(), labels.tolist(), targets.tolist())
    total = sum(costs[p][g] for p, g in zip(chosen.tolist(), matched.tolist(), strict=True))
    assert total == pytest.approx(cheapest(costs), abs=1e-4)


@pytest.mark.parametrize(
    "boxes, pairs",
    [
        ([], []),
        ([[0.5, 0.5, 1.0, 1.0]], [(5, 0), (6, 0), (9, 0), (10, 0)]),  # the middle of a 4x4 grid
        ([[0.125, 0.125, 0.01, 0.01]], [(0, 0)]),  # smaller than a cell: the nearest patch
        ([[0.5, 0.5, 1.0, 1.0], [0.375, 0.375, 0.1, 0.1]], [(5, 1), (6, 0), (9, 0), (10, 0)]),  # the smaller box wins
    ],
)
def test_centre_matching_on_a_grid_of_four(boxes, pairs):
    centres = cell_centres((4, 4)) / 4
    patches, targets = centre_match(centres, torch.tensor(boxes).reshape(-1, 4))
    assert list(zip(patches.tolist(), targets.tolist(), strict=True)) == pairs
