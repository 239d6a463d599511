"""The losses of a batch at once are those scene by scene, to the gradient."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from training_data import detect_settings, train_config
from training_runs import ALONE, model_of

from owl_swin.boxes import xyxy_to_cxcywh
from owl_swin.exemplar import patch_of_box
from owl_swin.models.owl_swin import encode_from_patches
from owl_swin.training.exemplars import embeds_of_boxes
from owl_swin.training.optim import build_optimizer, clip_gradients
from owl_swin.training.tasks.detect import DetectTask

pytestmark = pytest.mark.numeric


def task_of(folder, **detect):
    settings = detect_settings(
        folder, batch_size=5, detect={"mosaic": [0.5, 0.5], "matching": "aligned", "exemplars": 3} | detect
    )
    return DetectTask(train_config(settings), model_of(settings).eval(), ALONE)


def crowded(batch, seed):
    """The batch with other boxes: many, some alike, some vague, one scene with none and one with only vague ones."""
    generator = torch.Generator().manual_seed(seed)
    boxes, labels, scores = [], [], []
    for place, asked in enumerate(batch.asked):
        count = (7, 0, 4, 12, 1)[place]
        sizes = torch.rand(count, 2, generator=generator) ** 2 * 0.9 + 0.02
        own = torch.cat([torch.rand(count, 2, generator=generator), sizes], 1)
        if count > 6:  # chains of the same box under several names
            own[1], own[2], own[5] = own[0], own[0] * 1.02, own[4]
        columns = asked[torch.randint(len(asked), (count,), generator=generator)] if len(asked) else asked[:0]
        sure = torch.rand(len(columns), generator=generator)
        sure[sure < 0.3] = 0
        boxes.append(own[: len(columns)])
        labels.append(columns)
        scores.append(torch.zeros_like(sure) if place == 2 else sure)
    return replace(batch, boxes=boxes, labels=labels, scores=scores)


def losses_and_gradients(task, batch, together):
    task.together = together
    task.model.zero_grad()
    losses = task.step_losses(batch)
    losses["loss"].backward()
    return losses, [p.grad for p in task.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("changes", [{}, {"quality": True, "name_weight": 0.5}, {"exemplars": 0, "negatives": 0}])
@pytest.mark.parametrize("seed", range(4))
def test_all_scenes_at_once_lose_what_each_would(tmp_path, changes, seed):
    task = task_of(tmp_path, **changes)
    batch = crowded(task.batch(seed), seed)
    apart, their_gradients = losses_and_gradients(task, batch, together=False)
    at_once, gradients = losses_and_gradients(task, batch, together=True)
    assert at_once.keys() == apart.keys() and ("name" in apart) == ("name_weight" in changes)
    for name, value in apart.items():
        assert_close(at_once[name], value, rtol=1e-5, atol=1e-6)
    assert len(gradients) == len(their_gradients) > 0
    for mine, its in zip(gradients, their_gradients, strict=True):
        assert (mine - its).norm() <= 1e-4 * its.norm() + 1e-7


def test_scenes_without_any_box_are_background(tmp_path):
    task = task_of(tmp_path)
    batch = task.batch(0)
    nothing = replace(
        batch,
        boxes=[torch.zeros(0, 4)] * 5,
        labels=[torch.zeros(0, dtype=torch.long)] * 5,
        scores=[torch.zeros(0)] * 5,
    )
    apart, _ = losses_and_gradients(task, nothing, together=False)
    at_once, _ = losses_and_gradients(task, nothing, together=True)
    assert at_once["l1"] == at_once["giou"] == 0 < at_once["class"]
    assert_close(at_once["class"], apart["class"])


def test_a_processor_goes_scene_by_scene_and_so_do_masks(tmp_path):
    task = task_of(tmp_path)
    assert not task.together
    card = DetectTask(task.config, task.model, replace(ALONE, device=torch.device("cuda")))
    assert card.together
    other = replace(task.config, detect=replace(task.config.detect, matching="centre"))
    assert not DetectTask(other, task.model, replace(ALONE, device=torch.device("cuda"))).together


@pytest.mark.parametrize("away", [False, True])
def test_exemplars_at_once_take_the_patches_that_each_would(tmp_path, away):
    task = task_of(tmp_path)
    shown = task.batch(1).exemplars
    pixels = shown.pixels.float() / 255
    images = encode_from_patches(task.model, task.encode_patches(pixels), (pixels.shape[2], pixels.shape[3]))
    boxes = xyxy_to_cxcywh(shown.boxes)
    if away:  # no box of the picture touches the exemplar's
        images = replace(images, pred_boxes=images.pred_boxes + 7)
        boxes = torch.tensor([[0.1, 0.9, 0.01, 0.01], [0.99, 0.02, 0.01, 0.01], [0.5, 0.5, 0.2, 0.2]])[: len(boxes)]
    own = torch.stack([patch_of_box(images[k], box) for k, box in enumerate(boxes)])
    assert_close(embeds_of_boxes(images, boxes), own, rtol=0, atol=0)


def test_gradients_of_a_stem_are_clipped_apart():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.image_encoder = torch.nn.Module()
            self.image_encoder.stem = torch.nn.Linear(2, 1, bias=False)
            self.head = torch.nn.Linear(2, 1, bias=False)

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.image_encoder.stem.weight.grad, model.head.weight.grad = (
        torch.tensor([[30.0, 40.0]]),
        torch.tensor([[3.0, 4]]),
    )
    norm = clip_gradients(model, optimizer, 1.0)
    assert_close(norm, torch.tensor((50.0**2 + 5.0**2) ** 0.5))
    assert_close(model.image_encoder.stem.weight.grad, torch.tensor([[0.6, 0.8]]))
    assert_close(model.head.weight.grad, torch.tensor([[0.6, 0.8]]))


def test_without_a_stem_that_learns_all_gradients_share_one_limit(tmp_path):
    task = task_of(tmp_path)
    optimizer = build_optimizer(task.model, task.config.optim)
    task.step_losses(task.batch(0))["loss"].backward()
    own = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = clip_gradients(task.model, optimizer, 1e-3)
    assert norm > 1e-3
    assert_close(torch.stack([p.grad.norm() for p in own]).norm(), torch.tensor(1e-3), rtol=1e-3, atol=0)
