"""Training the mask branch: what each loss measures, what a box alone teaches, and what stays as it was."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_training import ALONE, metrics, model_of
from training_data import detect_settings, one_shape, train_config

from owl_swin import Detector
from owl_swin.config import CalibrationConfig
from owl_swin.frame import normalise
from owl_swin.models.masks import mask_logits
from owl_swin.training.config import OptimConfig
from owl_swin.training.loop import train
from owl_swin.training.mask_losses import (
    affinity_loss,
    projection_loss,
    rgb_to_lab,
    true_mask_losses,
    windows_around,
)
from owl_swin.training.mask_teaching import dense_targets, pick_patches, shown_by_patches
from owl_swin.training.matched import MatchedScene
from owl_swin.training.matcher import Match
from owl_swin.training.tasks.detect import DetectTask
from owl_swin.training.true_masks import TrueMasks

MASKS = "\n[masks]\ndim = 8\nwidth = 16\n"


def with_masks(folder: Path, **changes):
    """Settings of a detection run on shapes whose model has a mask branch."""
    settings = detect_settings(folder, **changes)
    path = Path(settings["model"])
    path.write_text(path.read_text() + MASKS)
    return settings


# --- Losses --------------------------------------------------------------------------------------------------------


def test_a_window_holds_a_box_and_its_surroundings_in_the_frame():
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.25], [0.0, 0.0, 0.01, 0.01], [0.5, 0.5, 1.0, 1.0]])
    windows = windows_around(boxes, (16, 16), margin=0.25)
    places = [(rows[own.any(1)], cols[own.any(0)]) for rows, cols, own in zip(*_parts(windows), strict=True)]
    assert places[0][0].tolist() == list(range(4, 12)) and places[0][1].tolist() == list(range(2, 14))
    assert places[1][0].tolist() == places[1][1].tolist() == [0, 1, 2]
    assert places[2][0].tolist() == list(range(16))
    inside = [
        (rows[own].tolist(), own.sum().item()) for rows, own in zip(windows.rows, windows.inside_rows, strict=True)
    ]
    assert inside[0][0] == [6, 7, 8, 9] and inside[1][0] == [0] and inside[2][1] == 16


def _parts(windows):
    return windows.rows, windows.columns, windows.valid


def test_a_window_of_a_large_map_is_looked_at_here_and_there():
    windows = windows_around(torch.tensor([[0.5, 0.5, 1.0, 1.0]]), (320, 320), margin=0.25)
    rows = windows.rows[0].tolist()
    assert rows == sorted(set(rows)) and rows[0] == 0 and rows[-1] >= 310 and windows.valid.all()


def window_of(inside_rows, inside_columns, hw=(32, 32)):
    box = torch.tensor([[
        (inside_columns[0] + inside_columns[1]) / 2 / hw[1],
        (inside_rows[0] + inside_rows[1]) / 2 / hw[0],
        (inside_columns[1] - inside_columns[0]) / hw[1],
        (inside_rows[1] - inside_rows[0]) / hw[0],
    ]])  # fmt: skip
    return windows_around(box, hw, margin=1.0)


def drawn(windows, rows, columns):
    """Logits of a sure mask of these rows and columns of a 32 x 32 map, in the window."""
    logits = torch.full((1, 32, 32), -20.0)
    logits[0, rows[0] : rows[1], columns[0] : columns[1]] = 20.0
    return windows.look(logits, torch.zeros(1, dtype=torch.long))


def test_the_projection_of_a_mask_that_touches_the_sides_of_its_box_costs_nothing():
    windows = window_of((8, 16), (10, 20))
    assert projection_loss(drawn(windows, (8, 16), (10, 20)), windows).item() == pytest.approx(0, abs=1e-5)
    cross = torch.maximum(drawn(windows, (8, 16), (14, 16)), drawn(windows, (12, 13), (10, 20)))
    assert projection_loss(cross, windows).item() == pytest.approx(0, abs=1e-5)
    # Half as wide: 1 - 2·5 / (5 + 10) on one axis.
    assert projection_loss(drawn(windows, (8, 16), (10, 15)), windows).item() == pytest.approx(1 / 3, abs=1e-4)
    assert projection_loss(drawn(windows, (8, 16), (8, 20)), windows).item() == pytest.approx(1 - 20 / 22, abs=1e-4)


def test_neighbours_of_one_colour_are_to_agree_and_others_may_differ():
    windows = window_of((8, 16), (10, 20))
    mask = drawn(windows, (8, 16), (10, 15))
    plain = torch.zeros(1, 3, *mask.shape[1:])
    edge = torch.where(mask > 0, 100.0, 0.0)[:, None].expand(-1, 3, -1, -1)
    assert affinity_loss(mask, edge, windows, 0.3).item() == pytest.approx(0, abs=1e-5)
    assert affinity_loss(mask, plain, windows, 0.3) > 0.5
    assert affinity_loss(-mask.abs(), plain, windows, 0.3).item() == pytest.approx(0, abs=1e-5)
    assert affinity_loss(torch.zeros_like(mask), plain, windows, 0.3).item() == pytest.approx(0.6931, abs=1e-4)
    # Colours 2.4 apart are exp(-1.2) = 0.301 alike, 2.41 apart are less alike than 0.3.
    for apart, pairs in ((2.40, True), (2.41, False)):
        colours = plain.clone()
        colours[:, 0] = torch.arange(mask.shape[2]) % 2 * apart
        assert (affinity_loss(mask, colours, windows, 0.3) > affinity_loss(mask, colours * 99, windows, 0.3)) == pairs


def test_dice_and_focal_loss_against_a_true_mask():
    windows = window_of((8, 16), (10, 20))
    truth = (drawn(windows, (8, 16), (10, 20)) > 0).float()
    dice, focal = true_mask_losses(drawn(windows, (8, 16), (10, 20)), truth, windows)
    assert dice.item() == pytest.approx(0, abs=1e-5) and focal.item() == pytest.approx(0, abs=1e-5)
    dice, focal = true_mask_losses(drawn(windows, (8, 16), (10, 15)), truth, windows)
    assert dice.item() == pytest.approx(1 - 2 * 40 / (40 + 80), abs=1e-4)
    assert focal.item() == pytest.approx(0.5 * 20 * 40 / windows.valid.sum().item(), rel=1e-3)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        # skimage.color.rgb2lab of each
        ((1.0, 1.0, 1.0), (100.0, 0.0, 0.0)),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        ((1.0, 0.0, 0.0), (53.2406, 80.0923, 67.2028)),
        ((0.2, 0.4, 0.6), (42.0099, -0.1471, -32.8445)),
    ],
)
def test_colours_in_cielab(rgb, lab):
    assert rgb_to_lab(torch.tensor(rgb).view(3, 1, 1)).flatten().tolist() == pytest.approx(lab, abs=0.02)


def test_patches_are_picked_for_every_box_before_any_is_picked_twice():
    match = Match(torch.arange(9), torch.tensor([0, 0, 0, 0, 0, 0, 1, 2, 2]), torch.ones(9))
    for seed in range(5):
        torch.manual_seed(seed)
        assert sorted(match.targets[pick_patches(match, 2, 3)].tolist()) == [0, 1, 2]
        assert sorted(match.targets[pick_patches(match, 2, 16)].tolist()) == [0, 0, 1, 2, 2]
    assert len(pick_patches(Match(*(torch.zeros(0, dtype=torch.long),) * 2, torch.zeros(0)), 2, 3)) == 0


# --- Names of places -----------------------------------------------------------------------------------------------


def scene_of(boxes, names, vague=()):
    """Boxes cxcywh with one of three names each; ``vague`` has (box, column)."""
    return MatchedScene(
        asked=torch.tensor([0, 1, 2]),
        rare=torch.ones(3),
        boxes=torch.tensor(boxes).view(-1, 4),
        names=torch.eye(3)[list(names)],
        rows=torch.arange(len(names)),
        match=Match(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0)),
        vague_boxes=torch.tensor([box for box, _ in vague]).view(-1, 4),
        vague_columns=torch.tensor([column for _, column in vague], dtype=torch.long),
        vague_rows=torch.arange(len(vague)) + len(names),
    )


def test_a_place_has_the_name_of_the_smallest_thing_that_it_shows():
    scene = scene_of([[0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 0.2, 0.2]], (0, 1), vague=[([0.1, 0.9, 0.2, 0.2], 2)])
    centres = torch.tensor([[0.5, 0.5], [0.5, 0.3], [0.1, 0.9]])
    shown = torch.tensor([[True, True], [True, False], [False, False]])
    may = torch.tensor([[True, True], [True, False], [True, False]])
    targets, owners, learns = dense_targets(scene, shown, may, centres)
    assert owners.tolist() == [1, 0, -1]
    assert targets.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    # In the middle of both, the larger thing is an open question; at the edge of the large one, its name is; the
    # third name is open in its vague box alone.
    assert learns.tolist() == [[0, 1, 1], [1, 1, 1], [0, 1, 0]]


def test_patches_show_what_the_true_mask_covers_and_else_the_middle_of_the_box(tmp_path):
    model = model_of(with_masks(tmp_path)).eval()
    with torch.no_grad():
        images = model.encode_with_masks(torch.zeros(1, 3, 64, 64))  # a grid of 4 x 4 patches, cells of 16 x 16
    scene = scene_of([[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 1.0]], (0, 1))
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    centres = (torch.stack([columns, rows], -1).flatten(0, 1) + 0.5) / 4
    maps = torch.zeros(1, 16, 16, dtype=torch.uint8)
    maps[0, :8] = 255
    shown, may = shown_by_patches(images[0], scene, TrueMasks(torch.tensor([0]), maps), centres, warm=False)
    assert shown[:, 0].view(4, 4).any(1).tolist() == [True, True, False, False]
    assert torch.equal(shown[:, 0], may[:, 0])  # a true mask leaves no question open
    assert shown[:, 1].view(4, 4).tolist() == [[False] * 4, [True, True, False, False]] * 1 + [
        [True, True, False, False],
        [False] * 4,
    ]
    assert may[:, 1].view(4, 4).all(0).tolist() == [True, True, False, False]


# --- Runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def only_masks_run(tmp_path_factory):
    """A short run on a trained-looking model in which all but the branch is frozen: (settings, folder)."""
    folder = tmp_path_factory.mktemp("only_masks")
    optim = {"image_lr": 0.0, "heads_lr": 0.0, "masks_lr": 4e-3, "warmup_steps": 2, "ema_decay": 0.9}
    detect = {"mosaic": [1.0], "name_weight": 0.5, "exemplars": 2}
    settings = with_masks(folder, optim=optim, detect=detect, masks={"warmup_steps": 2}, steps=4, precision="bfloat16")
    return settings, train(train_config(settings))


def test_boxes_and_names_stay_to_the_bit_where_only_masks_learn(only_masks_run):
    settings, folder = only_masks_run
    before, after = model_of(settings).state_dict(), load_file(folder / "state.safetensors")
    for name, value in before.items():
        same = torch.equal(after[f"model.{name}"], value) and torch.equal(after.get(f"ema.{name}", value), value)
        assert same != name.startswith("masks."), name
    moved = {name for name in after if name.startswith("optim.")}
    assert moved and all(name.startswith("optim.model.masks.") for name in moved)
    parts = {"loss", "mask", "dice", "mask_focal", "projection", "affinity", "dense_name"}
    lines = metrics(folder)
    assert all(parts <= line.keys() and not {"class", "l1", "giou", "objectness"} & line.keys() for line in lines)


def test_the_model_file_finds_what_it_found_before(only_masks_run, tmp_path):
    from owl_swin.families.owl_swin import save_checkpoint

    settings, _ = only_masks_run
    model, before = model_of(settings), tmp_path / "before.safetensors"
    model.config = replace(model.config, image_size=128, calibration=CalibrationConfig(text_scale=2.0, text_bias=1.0))
    save_checkpoint(before, model, {"name": "before"})
    toml = Path(settings["model"]).read_text().replace("image_size = 96", "image_size = 128")
    (tmp_path / "model.toml").write_text(toml)
    more = {"model": str(tmp_path / "model.toml"), "init": [str(before)], "output": str(tmp_path / "run"), "steps": 1}
    folder = train(train_config(settings | more))
    first, second = (
        Detector.from_pretrained(path).detect(one_shape("red square", side=90), ["red square", "a circle"], threshold=0)
        for path in (before, folder / "model.safetensors")
    )
    assert len(first) and torch.equal(first.boxes, second.boxes) and torch.equal(first.scores, second.scores)


def test_masks_learn_beside_boxes_at_a_rate_of_their_own(tmp_path):
    settings = with_masks(tmp_path)
    model = model_of(settings)
    task = DetectTask(train_config(settings), model, ALONE)
    parts = task.step_losses(task.batch(0))
    parts["loss"].backward()
    assert {"class", "l1", "mask", "dense_name"} <= parts.keys()
    assert model.masks is not None and model.masks.mask.weight.grad.abs().sum() > 0
    assert model.masks.dense_head.embed.weight.grad.abs().sum() > 0
    frozen = DetectTask(train_config(settings | {"optim": {"masks_lr": 0.0}}), model, ALONE)
    assert "mask" not in frozen.step_losses(frozen.batch(0))
    assert OptimConfig(heads_lr=1e-3).masks == 1e-3 and OptimConfig(heads_lr=0.0, masks_lr=1e-4).masks == 1e-4


def test_scenes_without_boxes_teach_the_branch_too(tmp_path):
    settings = with_masks(tmp_path, optim={"image_lr": 0.0, "heads_lr": 0.0, "masks_lr": 1e-3})
    path = Path(settings["data"][0]["path"])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    model = model_of(settings)
    task = DetectTask(train_config(settings), model, ALONE)
    parts = task.step_losses(task.batch(0))
    parts["loss"].backward()
    assert parts["mask"] == 0 and parts["dense_name"] > 0 and parts["loss"].isfinite()


def test_what_each_place_shows_starts_as_what_its_box_holds(tmp_path):
    from owl_swin.training.tasks.image import start_model

    settings = with_masks(tmp_path)
    model, _ = start_model(train_config(settings), torch.device("cpu"))
    assert torch.equal(model.masks.dense_head.embed.weight, model.class_head.embed.weight)
    with torch.no_grad():
        model.masks.dense_head.embed.weight.add_(1)
    from owl_swin.families.owl_swin import save_checkpoint

    save_checkpoint(tmp_path / "own.safetensors", model, {"name": "own"}, exact=True)
    again, _ = start_model(train_config(settings | {"init": [str(tmp_path / "own.safetensors")]}), torch.device("cpu"))
    assert torch.equal(again.masks.dense_head.embed.weight, model.masks.dense_head.embed.weight)


def test_true_masks_teach_where_a_set_has_them(tmp_path):
    settings = with_masks(tmp_path, batch_size=2, detect={"mosaic": [0.0, 1.0]})
    path = Path(settings["data"][0]["path"])
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h]]  # half of the box
    path.write_text(json.dumps(content))
    task = DetectTask(train_config(settings), model_of(settings), ALONE)
    shares = []
    for batch in map(task.batch, range(6)):
        for boxes, masks in zip(batch.boxes, batch.masks, strict=True):
            assert masks.rows.tolist() == list(range(len(boxes)))
            shares += (masks.maps.float().mean((1, 2)) / 255 / boxes[:, 2:].prod(1)).tolist()
    # What is cut off at an edge may be more or less of a half.
    assert len(shares) > 20 and np.median(shares) == pytest.approx(0.5, abs=0.05)
    parts = task.step_losses(batch)
    assert parts["dice"] > 0.1 and parts["projection"] == parts["affinity"] == 0


def test_a_box_alone_teaches_the_outline_of_what_stands_out(tmp_path):
    """Of circles and squares on grey the boxes are alike; their masks are not."""
    optim = {"image_lr": 0.0, "heads_lr": 0.0, "masks_lr": 1e-2}
    settings = with_masks(tmp_path, optim=optim, batch_size=4, detect={"mosaic": [1.0]}, masks={"warmup_steps": 20})
    model = model_of(settings)
    task = DetectTask(train_config(settings), model, ALONE)
    batch = task.batch(0)
    optimizer = torch.optim.AdamW(model.masks.parameters(), 1e-2)
    for step in range(50):
        loss = task.step_losses(replace(batch, index=step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        images = model.eval().encode_with_masks(normalise(batch.pixels.float() / 255))
    inner, corners = [], {"square": [], "circle": []}
    for place, (boxes, columns) in enumerate(zip(batch.boxes, batch.labels, strict=True)):
        masks = images.masks.map(lambda tensor, place=place: tensor[place])
        middles = (boxes[:, 1] * images.grid_hw[0]).long() * images.grid_hw[1] + (
            boxes[:, 0] * images.grid_hw[1]
        ).long()
        found = mask_logits(masks.mask_embeds[middles], masks.pixel_embeds, boxes) > 0
        for box, column, mask in zip(boxes, columns, found, strict=True):
            y, x = (
                ((torch.arange(n) + 0.5) / n - box[i]) * 2 / box[i + 2] for i, n in ((1, len(mask)), (0, len(mask[0])))
            )
            radius = y.square()[:, None] + x.square()[None]
            corner = (y.abs() < 0.95)[:, None] & (x.abs() < 0.95)[None] & (radius > 1.2)
            inner.append(mask[radius < 0.6].float().mean().item())
            corners[task.names[int(batch.classes[column])].split()[1]].append(mask[corner].float().mean().item())
    assert min(inner) > 0.8 and np.mean(corners["square"]) > 0.8 and np.mean(corners["circle"]) < 0.3
