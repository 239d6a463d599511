"""The OWL heads: fusion of stages on one grid, box forms, class embeddings, objectness, and the score of a query."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import TINY, make_tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from owl_swin.config import HeadsConfig, MasksConfig, SwinConfig
from owl_swin.families.owl_swin import save_checkpoint
from owl_swin.models.heads import (
    INITIAL_SCALE,
    INITIAL_SHIFT,
    BoxHead,
    ClassHead,
    HeadBlock,
    ObjectnessHead,
    PatchFusion,
    cell_centres,
    grid_prior,
)
from owl_swin.models.owl_swin import OwlSwin, encode_from_patches
from owl_swin.scoring import raw_logits
from owl_swin.training.initial import load_init
from owl_swin.types import ImageEmbeddings

pytestmark = pytest.mark.numeric

ENCODER = SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=4)
WIDTH = 6
READ_OF_BLOCKS = ("class_embeds", "pred_boxes", "objectness_logits")


def stage_maps(height, width, batch=1):
    """Maps of the four stages as the encoder makes them: a side of n pixels has ceil(n / stride) tokens."""
    torch.manual_seed(height * 1000 + width)
    strides = [ENCODER.stage_stride(stage) for stage in range(4)]
    return tuple(
        torch.randn(batch, math.ceil(height / stride), math.ceil(width / stride), ENCODER.stage_dim(stage))
        for stage, stride in enumerate(strides)
    )


def patches_of(batch, count, seed=0):
    return torch.randn(batch, count, WIDTH, generator=torch.Generator().manual_seed(seed))


# --- Fusion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stages, stride",
    [((4,), 32), ((3, 4), 16), ((2, 3, 4), 8), ((2, 3, 4), 16), ((2, 3, 4), 32), ((1, 2, 3, 4), 4), ((4, 3), 16)],
)
@pytest.mark.parametrize("height, width", [(32, 32), (33, 70), (100, 37), (1, 200), (31, 33)])
def test_fused_grid_is_that_of_the_stride(stages, stride, height, width):
    fusion = PatchFusion(ENCODER, HeadsConfig(width=WIDTH, stride=stride, stages=stages))
    fused = fusion(stage_maps(height, width, batch=2))
    assert fused.shape == (2, math.ceil(height / stride), math.ceil(width / stride), WIDTH)


@torch.no_grad()
def test_fusion_repeats_coarse_and_averages_fine_stages():
    fusion = PatchFusion(ENCODER, HeadsConfig(width=WIDTH, stride=16, stages=(2, 3, 4)))
    maps = stage_maps(72, 104)  # grids 9x13, 5x7 and 3x4: none a multiple of the next
    fused = fusion(maps)  # the 3x3 convolution starts at zero and adds nothing
    fine, same, coarse = (
        project(norm(maps[stage]))[0]
        for stage, norm, project in zip((1, 2, 3), fusion.norms, fusion.projections, strict=True)
    )
    for row in range(5):
        for col in range(7):
            cells = fine[2 * row : 2 * row + 2, 2 * col : 2 * col + 2].flatten(0, 1)
            expected = fusion.norm(same[row, col] + coarse[row // 2, col // 2] + cells.mean(0))
            assert_close(fused[0, row, col], expected)


@torch.no_grad()
def test_convolution_of_the_fusion_sees_the_eight_neighbours():
    fusion = PatchFusion(ENCODER, HeadsConfig(width=WIDTH, stride=32, stages=(4,)))
    torch.nn.init.normal_(fusion.mix.weight)
    maps = stage_maps(160, 160)
    before = fusion(maps)
    maps[3][0, 2, 2] += torch.randn(ENCODER.stage_dim(3))
    changed = (fusion(maps) != before).any(-1)[0]
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[1:4, 1:4] = True
    assert torch.equal(changed, expected)


# --- Blocks --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_block_starts_as_the_identity_and_sees_three_patches_far_each_way():
    block, patches = HeadBlock(WIDTH), torch.randn(1, 9, 9, WIDTH)
    assert torch.equal(block(patches), patches)
    torch.nn.init.normal_(block.reduce.weight)
    before = block(patches)
    patches[0, 4, 4] += torch.randn(WIDTH)
    changed = (block(patches) != before).any(-1)[0]
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[1:8, 1:8] = True
    assert torch.equal(changed, expected)


@torch.no_grad()
def test_blocks_are_for_class_box_and_objectness_alone(tmp_path):
    without = make_tiny_model(config=replace(TINY, masks=MasksConfig(dim=8, width=16)))
    save_checkpoint(tmp_path / "without.safetensors", without, {})
    with_blocks = OwlSwin(replace(without.config, heads=replace(TINY.heads, blocks=2))).eval()
    given = load_init(with_blocks, str(tmp_path / "without.safetensors"))
    own = with_blocks.state_dict().keys() - given
    assert {name.rpartition(".")[0].partition(".")[0] for name in own} == {"head_blocks"}
    load_init(without, str(tmp_path / "without.safetensors"))  # both in the digits of the file
    pixels = torch.randn(1, 3, 96, 64)
    before, after = without.encode_with_masks(pixels), with_blocks.encode_with_masks(pixels)
    for name in READ_OF_BLOCKS:
        assert_close(getattr(after, name), getattr(before, name))  # a trained model goes on from what it knows
    for block in with_blocks.head_blocks:
        torch.nn.init.normal_(block.reduce.weight)
    after = with_blocks.encode_with_masks(pixels)
    assert not any(torch.allclose(getattr(after, name), getattr(before, name)) for name in READ_OF_BLOCKS)
    assert_close(after.image_embed, before.image_embed)
    assert_close(after.masks.mask_embeds, before.masks.mask_embeds)
    assert_close(after.masks.pixel_embeds, before.masks.pixel_embeds)
    assert_close(after.masks.dense.class_embeds, before.masks.dense.class_embeds)


# --- Boxes ---------------------------------------------------------------------------------------------------------


def test_cell_centres_go_row_by_row_with_x_first():
    assert cell_centres((2, 3)).tolist() == [[0.5, 0.5], [1.5, 0.5], [2.5, 0.5], [0.5, 1.5], [1.5, 1.5], [2.5, 1.5]]


@pytest.mark.parametrize(
    "grid_hw, expected",
    [
        ((1, 1), [[0.5, 0.5, 4.0, 4.0]]),
        ((1, 2), [[0.25, 0.5, 2.0, 4.0], [0.75, 0.5, 2.0, 4.0]]),
        ((4, 1), [[0.5, y, 4.0, 1.0] for y in (0.125, 0.375, 0.625, 0.875)]),
    ],
)
def test_patch_box_without_offset_is_centred_on_its_cell_and_four_strides_wide(grid_hw, expected):
    head = BoxHead(WIDTH, "patch")
    count = grid_hw[0] * grid_hw[1]
    boxes = head(patches_of(1, count), grid_hw, (1 / grid_hw[0], 1 / grid_hw[1]))
    assert_close(boxes[0], torch.tensor(expected))


def test_patch_box_counts_strides_of_the_frame_where_the_last_cell_reaches_past_it():
    # 40 pixels in strides of 16: three cells, the last half outside.
    boxes = BoxHead(WIDTH, "patch")(patches_of(1, 3), (1, 3), (16 / 16, 16 / 40))
    assert_close(boxes[0, :, 0], torch.tensor([8.0, 24.0, 40.0]) / 40)
    assert_close(boxes[0, :, 2], torch.full((3,), 64 / 40))


@pytest.mark.parametrize(
    "offset, expected",
    [
        ([1.0, 0.0, 0.0, 0.0], [0.75, 0.5, 2.0, 4.0]),
        ([0.0, -1.0, 0.0, 0.0], [0.25, -0.5, 2.0, 4.0]),
        ([0.0, 0.0, math.log(0.5), 0.0], [0.25, 0.5, 1.0, 4.0]),
        ([0.0, 0.0, 0.0, math.log(2.0)], [0.25, 0.5, 2.0, 8.0]),
    ],
)
@torch.no_grad()
def test_patch_box_offsets_are_strides_and_factors(offset, expected):
    head = BoxHead(WIDTH, "patch")
    head.mlp[-1].bias.copy_(torch.tensor(offset))
    assert_close(head(patches_of(1, 2), (1, 2), (1.0, 0.5))[0, 0], torch.tensor(expected))


@torch.no_grad()
def test_patch_box_of_a_huge_offset_is_finite():
    head = BoxHead(WIDTH, "patch")
    head.mlp[-1].bias.fill_(1e6)
    assert head(patches_of(1, 1), (1, 1), (1.0, 1.0)).isfinite().all()


def test_prior_of_a_3x3_grid():
    # for p in (1/6, 1/2, 5/6, 1/3): print(round(math.log(p / (1 - p)), 4))
    low, middle, high, third = -1.6094, 0.0, 1.6094, -0.6931
    expected = [[x, y, third, third] for y in (low, middle, high) for x in (low, middle, high)]
    assert_close(grid_prior((3, 3)), torch.tensor(expected), atol=1e-4, rtol=0)


@given(st.integers(1, 80), st.integers(1, 80))
@settings(max_examples=40, deadline=None)
def test_prior_is_each_cell_and_never_saturates(height, width):
    boxes = grid_prior((height, width)).sigmoid()
    assert ((boxes > 0) & (boxes < 1)).all()
    expected = cell_centres((height, width)) / torch.tensor([width, height])
    assert_close(boxes[:, :2], expected, atol=1e-5, rtol=1e-4)
    sizes = torch.tensor([1 / width, 1 / height]).expand(len(boxes), 2)
    assert_close(boxes[:, 2:], sizes, atol=2e-4, rtol=1e-4)  # a grid of one cell stops short of 1


def test_owl_box_without_offset_is_its_cell():
    boxes = BoxHead(WIDTH, "owl")(patches_of(1, 6), (2, 3), (0.1, 0.1))
    assert_close(boxes[0, 0], torch.tensor([1 / 6, 1 / 4, 1 / 3, 1 / 2]))
    assert_close(boxes[0, 5], torch.tensor([5 / 6, 3 / 4, 1 / 3, 1 / 2]))


# --- Class and objectness ------------------------------------------------------------------------------------------


def test_class_embeddings_have_unit_length_and_scale_is_positive():
    torch.manual_seed(0)
    head = ClassHead(WIDTH, 5)
    torch.nn.init.normal_(head.shift_scale.weight, std=2.0)
    embeds, shift, scale = head(patches_of(2, 50))
    assert embeds.shape == (2, 50, 5) and shift.shape == scale.shape == (2, 50)
    assert_close(embeds.norm(dim=-1), torch.ones(2, 50))
    assert (scale > 0).all()
    assert scale.min() < 1 < scale.max()  # both sides of the bend


def test_class_head_starts_at_the_stated_shift_and_scale():
    _, shift, scale = ClassHead(WIDTH, 5)(patches_of(1, 3))
    assert_close(shift, torch.full((1, 3), INITIAL_SHIFT))
    assert_close(scale, torch.full((1, 3), INITIAL_SCALE))


def test_objectness_passes_no_gradient_to_its_input():
    head = ObjectnessHead(WIDTH)
    torch.nn.init.normal_(head.mlp[-1].weight)
    patches = patches_of(1, 4).requires_grad_()
    other = patches.sum()
    (head(patches).sum() + other).backward()
    assert_close(patches.grad, torch.ones_like(patches))  # that of the other term alone
    assert head.mlp[0].weight.grad.abs().sum() > 0


def test_objectness_starts_low_for_every_patch():
    assert_close(ObjectnessHead(WIDTH)(patches_of(2, 3)), torch.full((2, 3), -3.0))


# --- Score ---------------------------------------------------------------------------------------------------------


def embeddings(batch, count, dim=4, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(batch, count, *shape, generator=generator)

    return ImageEmbeddings(
        image_embed=torch.zeros(batch, dim),
        class_embeds=torch.nn.functional.normalize(normal(dim), dim=-1),
        pred_boxes=normal(4),
        objectness_logits=normal(),
        logit_shift=normal(),
        logit_scale=normal().exp(),
        grid_hw=(1, count),
    )


def test_score_is_cosine_plus_shift_times_scale():
    images = embeddings(2, 3)
    queries = torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    logits = raw_logits(images, queries)
    assert logits.shape == (2, 3, 5)
    for b in range(2):
        for p in range(3):
            for q in range(5):
                cosine = sum(float(images.class_embeds[b, p, e] * queries[q, e]) for e in range(4))
                expected = (cosine + float(images.logit_shift[b, p])) * float(images.logit_scale[b, p])
                assert float(logits[b, p, q]) == pytest.approx(expected, abs=1e-5)


def test_score_of_a_batch_is_that_of_each_picture():
    images = embeddings(3, 4)
    queries = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(2))  # its own queries for each picture
    together = raw_logits(images, queries)
    for i in range(3):
        assert_close(together[i], raw_logits(images[i], queries[i]))


def test_score_without_queries_is_empty():
    assert raw_logits(embeddings(1, 3), torch.zeros(0, 4)).shape == (1, 3, 0)


# --- The whole network ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width", [(96, 64), (50, 70)])
@torch.no_grad()
def test_encode_image_fills_the_contract(tiny_model, height, width):
    images = tiny_model.encode_image(torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0)))
    rows, cols = math.ceil(height / 16), math.ceil(width / 16)
    count = rows * cols
    assert images.grid_hw == (rows, cols)
    assert images.class_embeds.shape == (2, count, 16) and images.pred_boxes.shape == (2, count, 4)
    assert images.objectness_logits.shape == images.logit_shift.shape == images.logit_scale.shape == (2, count)
    assert_close(images.image_embed.norm(dim=-1), torch.ones(2))
    assert_close(images.class_embeds.norm(dim=-1), torch.ones(2, count))


@torch.no_grad()
def test_forward_leaves_the_module_unchanged(tiny_model):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in tiny_model.named_modules()}
    tiny_model.encode_image(torch.randn(1, 3, 64, 96))
    tiny_model.encode_text(torch.tensor([[49406, 320, 49407, 0]]))
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())
    assert {name: set(vars(module)) for name, module in tiny_model.named_modules()} == attributes


@torch.no_grad()
def test_boxes_of_a_non_square_picture_use_the_right_side(tiny_model):
    patches = torch.zeros(1, 2, 5, 32)
    images = encode_from_patches(tiny_model, patches, (32, 80))
    centres, sizes = images.pred_boxes[0, :, :2], images.pred_boxes[0, :, 2:]
    # All patches are alike, so boxes differ by whole strides: a fifth in x, a half in y.
    assert_close(centres[1] - centres[0], torch.tensor([0.2, 0.0]))
    assert_close(centres[5] - centres[0], torch.tensor([0.0, 0.5]))
    assert_close(sizes, sizes[:1].expand_as(sizes))
