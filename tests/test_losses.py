"""The detection losses against torchvision, slow code and numbers in sight."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torchvision.ops import sigmoid_focal_loss

from owl_swin.training.losses import box_losses, focal_loss, merge_same_boxes

pytestmark = pytest.mark.numeric


@pytest.fixture
def logits():
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * 4


@pytest.fixture
def targets():
    return (torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) < 0.3).float()


@pytest.mark.parametrize("alpha, gamma", [(0.3, 2.0), (0.25, 2.0), (0.5, 0.0), (0.9, 1.5)])
def test_focal_loss_is_that_of_torchvision(logits, targets, alpha, gamma):
    expected = sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma, reduction="none")
    assert_close(focal_loss(logits, targets, alpha=alpha, gamma=gamma), expected)


def test_focal_loss_has_the_gradient_of_torchvision(logits, targets):
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    focal_loss(ours, targets, alpha=0.3, gamma=2.0).sum().backward()
    sigmoid_focal_loss(theirs, targets, alpha=0.3, gamma=2.0, reduction="sum").backward()
    assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("quality", [0.1, 0.5, 0.8])
def test_focal_loss_is_least_where_the_probability_is_the_quality(quality):
    probability = torch.linspace(0.01, 0.99, 99)
    losses = focal_loss(probability.logit(), torch.full((99,), quality), alpha=0.3, gamma=2.0)
    assert probability[losses.argmin()] == pytest.approx(quality)


def test_focal_loss_without_focus_is_weighted_cross_entropy(logits, targets):
    weight = torch.where(targets == 1, 0.3, 0.7)
    expected = F.binary_cross_entropy_with_logits(logits, targets, weight=weight, reduction="none")
    assert_close(focal_loss(logits, targets, alpha=0.3, gamma=0.0), expected)


@pytest.mark.parametrize(
    "logit, target, expected",
    [
        (0.0, 1.0, 0.3 * 0.25 * math.log(2)),
        (0.0, 0.0, 0.7 * 0.25 * math.log(2)),
        (100.0, 1.0, 0.0),
        (-100.0, 0.0, 0.0),
        (-100.0, 1.0, 0.3 * 100),
        (100.0, 0.0, 0.7 * 100),
    ],
)
def test_focal_loss_of_one_element(logit, target, expected):
    loss = focal_loss(torch.tensor(logit), torch.tensor(target), alpha=0.3, gamma=2.0)
    assert float(loss) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_focal_loss_and_its_gradient_are_finite_at_extreme_logits(target):
    logits = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4], requires_grad=True)
    loss = focal_loss(logits, torch.full_like(logits, target), alpha=0.3, gamma=2.0)
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad.isfinite().all()
    assert (logits.grad <= 0).all() if target else (logits.grad >= 0).all()


def test_box_losses_of_equal_boxes_are_zero():
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.1, 0.9, 0.2, 0.2]])
    l1, giou = box_losses(boxes, boxes)
    assert_close(l1, torch.zeros(2))
    assert_close(giou, torch.zeros(2))


def test_box_losses_of_neighbours():
    # Two squares of side 0.2 side by side with a gap of 0.2: no overlap, a third of the hull is empty.
    l1, giou = box_losses(torch.tensor([[0.2, 0.5, 0.2, 0.2]]), torch.tensor([[0.6, 0.5, 0.2, 0.2]]))
    assert_close(l1, torch.tensor([0.4]))
    assert_close(giou, torch.tensor([1 + 1 / 3]))


def test_box_losses_without_boxes_keep_the_graph():
    boxes = torch.zeros(0, 4, requires_grad=True)
    l1, giou = box_losses(boxes, torch.zeros(0, 4))
    (l1.sum() + giou.sum()).backward()
    assert boxes.grad.shape == (0, 4)


def test_a_box_without_size_has_a_finite_gradient():
    boxes = torch.tensor([[0.5, 0.5, 0.0, 0.0]], requires_grad=True)
    l1, giou = box_losses(boxes, torch.tensor([[0.5, 0.5, 0.2, 0.2]]))
    (l1.sum() + giou.sum()).backward()
    assert boxes.grad.isfinite().all()


A, B = [0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]


def shifted(steps, step=0.004):
    """Box A moved right: by one step an IoU of 0.96 remains, by three 0.89."""
    return [0.3 + steps * step, 0.3, 0.2, 0.2]


@pytest.mark.parametrize(
    "boxes, labels, kept, multi_hot",
    [
        ([], [], [], []),
        ([A], [2], [A], [[0, 0, 1]]),
        ([A, B], [0, 1], [A, B], [[1, 0, 0], [0, 1, 0]]),
        ([A, A], [0, 2], [A], [[1, 0, 1]]),  # one thing with two names
        ([A, A], [1, 1], [A], [[0, 1, 0]]),  # annotated twice
        ([A, B, A], [0, 1, 2], [A, B], [[1, 0, 1], [0, 1, 0]]),
        ([shifted(0), shifted(1)], [0, 1], [shifted(0)], [[1, 1, 0]]),
        ([shifted(0), shifted(4)], [0, 1], [shifted(0), shifted(4)], [[1, 0, 0], [0, 1, 0]]),
        # A chain: the last repeats the second, which repeats the first. No name may be lost.
        ([shifted(0), shifted(2), shifted(4)], [0, 1, 2], [shifted(0)], [[1, 1, 1]]),
        ([[0.5, 0.5, 0.0, 0.0]] * 2, [0, 1], [[0.5, 0.5, 0.0, 0.0]] * 2, [[1, 0, 0], [0, 1, 0]]),
    ],
)
def test_merging_of_boxes_that_are_the_same(boxes, labels, kept, multi_hot):
    merged, names = merge_same_boxes(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.long), 3)
    assert_close(merged, torch.tensor(kept).reshape(-1, 4))
    assert names.tolist() == multi_hot
