"""The Swin encoder against three libraries, the paper's numbers and slow obvious code."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from swin_libraries import (
    CPU,
    LIBRARIES,
    NARROW,
    SMALL,
    count_multiply_adds,
    encoder_from,
    random_pixels,
    randomise,
    torchvision_maps,
)
from torch.testing import assert_close

from owl_swin.config import PADDINGS, SwinConfig
from owl_swin.families.swin_weights import SWIN_SIZES, swin_config
from owl_swin.models import swin
from owl_swin.models.swin import SwinBlock, SwinEncoder, WindowAttention
from owl_swin.models.windows import PLAN_BYTES, cut_windows, join_windows, window_plan

pytestmark = pytest.mark.numeric


@pytest.fixture
def small():
    return randomise(SwinEncoder(SMALL))


# --- Parity with the libraries -------------------------------------------------------------------------------------

PARITY = [(library, *case) for library in LIBRARIES for case in [((224, 224), 7), ((384, 384), 12), ((200, 331), 7)]]


# The last size makes a map smaller than its window: transformers fails there, timm then has a smaller bias table.
@pytest.mark.parametrize("library, hw, window", [*PARITY, ("torchvision", (97, 230), 7)])
def test_every_stage_map_equals_the_library_s(library, hw, window):
    build, maps = LIBRARIES[library]
    config = replace(NARROW, window_size=window, padding=library)
    model = randomise(build(config, hw))
    encoder = encoder_from(model.state_dict())
    pixels = random_pixels(*hw)
    with torch.no_grad():
        assert encoder.config == config
        assert_close(encoder(pixels), tuple(maps(model, pixels)), atol=1e-4, rtol=1e-4)


def test_the_full_swin_t_of_torchvision():
    model = randomise(torchvision.models.swin_t())
    encoder = encoder_from(model.state_dict())
    pixels = random_pixels(224, 224)
    with torch.no_grad():
        assert encoder.config == swin_config("torchvision/swin_t")
        assert_close(encoder(pixels), tuple(torchvision_maps(model, pixels)), atol=1e-4, rtol=1e-4)
        assert_close(model.head(encoder(pixels)[-1].mean((1, 2))), model(pixels), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("padding", [padding for padding in PADDINGS if not padding.endswith("_backbone")])
def test_paddings_agree_where_nothing_is_filled(padding):
    masked, other = (randomise(SwinEncoder(replace(NARROW, padding=p))) for p in ("masked", padding))
    pixels = random_pixels(224, 224)
    with torch.no_grad():
        assert_close(masked(pixels), other(pixels), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padding", ["timm", "transformers"])
def test_a_backbone_differs_where_one_window_covers_a_map(padding):
    """Its windows are shifted there too: test_swin_detectors.py compares them with their libraries."""
    alone, backbone = (randomise(SwinEncoder(replace(NARROW, padding=p))) for p in (padding, f"{padding}_backbone"))
    pixels = random_pixels(224, 224)  # the map of stage 4 is one window
    with torch.no_grad():
        maps, others = alone(pixels), backbone(pixels)
    assert_close(maps[:3], others[:3], atol=1e-5, rtol=1e-5)
    assert (maps[3] - others[3]).abs().max() > 1e-2


# --- The paper's numbers -------------------------------------------------------------------------------------------


# Table 1 of arXiv:2103.14030 and the authors' list of models; with the classifier of 1000 classes.
@pytest.mark.parametrize(
    "size, side, window, parameters, multiply_adds",
    [
        ("T", 224, 7, 28.3e6, 4.5e9),
        ("S", 224, 7, 49.6e6, 8.7e9),
        ("B", 224, 7, 87.8e6, 15.4e9),
        ("L", 224, 7, 196.5e6, 34.5e9),
        ("B", 384, 12, 87.8e6, 47.0e9),
    ],
)
def test_sizes_and_cost_are_the_paper_s(size, side, window, parameters, multiply_adds):
    config = replace(SWIN_SIZES[size], window_size=window)
    with torch.device("meta"):
        encoder, classifier = SwinEncoder(config), torch.nn.Linear(config.stage_dim(3), 1000)
        pixels, pooled = torch.empty(1, 3, side, side), torch.empty(1, config.stage_dim(3))
    counted = sum(p.numel() for p in [*encoder.parameters(), *classifier.parameters()])
    assert counted == pytest.approx(parameters, rel=0.01)
    cost = count_multiply_adds(encoder, pixels) + count_multiply_adds(classifier, pooled)
    assert cost == pytest.approx(multiply_adds, rel=0.01)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("h, w", [(7, 7), (14, 28), (56, 56), (112, 56)])
def test_cost_of_a_block_is_linear_in_pixels(h, w, shifted):
    c, m = 32, 7
    block = SwinBlock(c, 4, m, 4.0, 0.0, 1e-5).to("meta")
    plan = window_plan((h, w), m, shifted, "masked", torch.device("meta"))
    cost = count_multiply_adds(block, torch.empty(1, h, w, c, device="meta"), plan)
    attention, mlp = 4 * h * w * c**2 + 2 * m**2 * h * w * c, 8 * h * w * c**2
    assert cost == attention + mlp


@pytest.mark.parametrize("with_gradient", [False, True])
def test_worked_example_of_the_attention_formula(with_gradient):
    """softmax(Q K^T / sqrt(d)) V of two patches, step by step; numbers by hand."""
    q = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    k = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    v = torch.tensor([[0.0, 2.0], [1.0, 3.0]])
    attention = WindowAttention(dim=2, num_heads=1, window_size=2)
    # A patch (1, 0) has the first rows, a patch (0, 1) the second: the weights are the transposed matrices.
    patches = torch.eye(2)[None, None]
    with torch.no_grad():
        attention.qkv.weight.copy_(torch.cat([q.T, k.T, v.T]))
        attention.qkv.bias.zero_()
        attention.proj.weight.copy_(torch.eye(2))
        attention.proj.bias.zero_()
    bias = torch.zeros(1, 1, 2, 2)
    # Q K^T = [[4, 2], [10, 4]]; by sqrt(2): [[2.828, 1.414], [7.071, 2.828]]; a row of two is a sigmoid of the gap.
    weights = torch.tensor([[0.8044, 0.1956], [0.9858, 0.0142]])
    expected = torch.tensor([[0.1956, 2.1956], [0.0142, 2.0142]])
    with torch.set_grad_enabled(with_gradient):
        found, out = attention.weights(patches, bias), attention(patches, bias)
    assert_close(found[0, 0, 0], weights, rtol=0, atol=1e-4)
    assert_close(out[0, 0], expected, rtol=0, atol=1e-4)


def test_worked_example_of_counting_patches():
    """Patches of 16 pixels: 256x256 is 256 tokens, 1920x1920 is 14,400, which is 3,164 times the pairs; in windows the
    pairs grow as the pixels do."""
    counts = {}
    for side in (256, 1920):
        embed = torch.nn.Conv2d(3, 1, 16, stride=16, device="meta")
        grid = embed(torch.empty(1, 3, side, side, device="meta")).shape[2:]
        plan = window_plan(tuple(grid), 8, False, "masked", CPU)
        counts[side] = grid.numel(), len(plan.kinds) * plan.relative_index.numel()
    (tokens, pairs), (more_tokens, more_pairs) = counts.values()
    assert (tokens, more_tokens) == (256, 14_400)
    assert more_tokens**2 / tokens**2 == pytest.approx(3164, abs=0.5)
    assert more_pairs / pairs == pytest.approx((1920 / 256) ** 2, rel=0.02)


def test_worked_example_32_pixels_window_4():
    encoder = SwinEncoder(SwinConfig(embed_dim=64, depths=(2, 2), num_heads=(2, 4), window_size=4, patch_size=4))
    pixels = random_pixels(32, 32)
    assert encoder.patch_embed(pixels).permute(0, 2, 3, 1).shape == (1, 8, 8, 64)
    assert window_plan((8, 8), 4, True, "masked", CPU).shift_hw == (2, 2)
    assert [tuple(x.shape) for x in encoder(pixels)] == [(1, 8, 8, 64), (1, 4, 4, 128)]


# --- Windows -------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    window=st.integers(1, 8),
    shifted=st.booleans(),
    padding=st.sampled_from(PADDINGS),
)
def test_join_windows_undoes_cut_windows(height, width, window, shifted, padding):
    x = torch.arange(2.0 * height * width * 3).view(2, height, width, 3)
    plan = window_plan((height, width), window, shifted, padding, CPU)
    windows = cut_windows(x, plan)
    assert windows.shape[2] == plan.window_hw[0] * plan.window_hw[1] <= window**2
    assert join_windows(windows, plan, (height, width)).equal(x)


def slow_block(block, x, window, shifted):
    """One block in words: a patch attends to the patches of its own window, which are those of the shifted grid.

    ``x`` [H, W, C]. Nothing is rolled, filled or masked: windows are groups of rows and columns.
    """
    height, width, _ = x.shape
    heads, table = block.attn.num_heads, block.attn.relative_position_bias_table
    shift = [window // 2 if shifted and size > window else 0 for size in (height, width)]
    patches = [(row, column) for row in range(height) for column in range(width)]
    windows = {}
    for row, column in patches:
        windows.setdefault(((row - shift[0]) // window, (column - shift[1]) // window), []).append((row, column))
    attended = {}
    for members in windows.values():
        normed = block.norm1(torch.stack([x[patch] for patch in members]))
        q, k, v = block.attn.qkv(normed).view(len(members), 3, heads, -1).unbind(1)  # [N, heads, C/heads]
        for i, (row, column) in enumerate(members):
            logits = []
            for j, (other_row, other_column) in enumerate(members):
                place = (row - other_row + window - 1) * (2 * window - 1) + column - other_column + window - 1
                logits.append((q[i] * k[j]).sum(-1) / q.shape[-1] ** 0.5 + table[place])
            weights = torch.stack(logits).exp()  # [N, heads]
            mixed = (weights[..., None] * v).sum(0) / weights.sum(0)[:, None]
            attended[row, column] = block.attn.proj(mixed.flatten())
    x = x + torch.stack([attended[patch] for patch in patches]).view(x.shape)
    return x + block.mlp(block.norm2(x))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("hw", [(8, 8), (4, 4), (1, 1), (3, 2), (2, 9), (7, 6), (5, 10)])
def test_a_block_equals_slow_obvious_attention_over_real_patches(hw, shifted):
    block = randomise(SwinBlock(8, 2, 4, 2.0, 0.0, 1e-5))
    inputs = [torch.randn(*hw, 8, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in range(2)]
    fast = block(inputs[0][None], window_plan(hw, 4, shifted, "masked", CPU))[0]
    slow = slow_block(block, inputs[1], 4, shifted)
    assert_close(fast, slow, atol=1e-5, rtol=1e-5)
    weights = torch.randn(*hw, 8, generator=torch.Generator().manual_seed(3))
    fast_grads = torch.autograd.grad((fast * weights).sum(), [inputs[0], *block.parameters()])
    slow_grads = torch.autograd.grad((slow * weights).sum(), [inputs[1], *block.parameters()])
    assert_close(fast_grads, slow_grads, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shifted", [False, True])
def test_the_fill_of_windows_has_no_influence(shifted, monkeypatch):
    block = randomise(SwinBlock(8, 2, 4, 2.0, 0.0, 1e-5))
    x, plan = torch.randn(1, 6, 7, 8), window_plan((6, 7), 4, shifted, "masked", CPU)
    expected = block(x, plan)
    pad = F.pad
    monkeypatch.setattr(F, "pad", lambda x, amounts: pad(x, amounts, value=7.0))
    assert cut_windows(x, plan).eq(7.0).any()
    assert block(x, plan).equal(expected)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_can_be_looked_at_in_fewer_digits(padding, dtype):
    config = SwinConfig(embed_dim=8, depths=(2, 2, 1, 1), num_heads=(1, 2, 2, 2), window_size=4, padding=padding)
    encoder, pixels = randomise(SwinEncoder(config)), torch.randn(1, 3, 50, 70)
    exact = encoder.attention(pixels)
    rounded = encoder.to(dtype).attention(pixels.to(dtype))
    for mine, own in zip(rounded, exact, strict=True):
        assert_close(mine.weights.float(), own.weights, atol=0.1, rtol=0)


# --- The encoder as users meet it ----------------------------------------------------------------------------------


def module_state(module):
    """Every attribute of every submodule, tensors by value."""
    attributes = {(name, key): value for name, m in module.named_modules() for key, value in vars(m).items()}
    tensors = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    plain = {key: repr(value) for key, value in attributes.items() if key[1] not in ("_parameters", "_modules")}
    return plain, tensors


def test_forward_leaves_the_module_unchanged(small):
    plain, tensors = module_state(small)
    small(random_pixels(33, 65))
    assert module_state(small)[0] == plain
    assert_close(module_state(small)[1], tensors, atol=0, rtol=0)


def test_the_same_pixels_give_the_same_maps_whatever_came_between(small):
    pixels = random_pixels(33, 65)
    first = small(pixels)
    small(random_pixels(8, 8))
    assert all(a.equal(b) for a, b in zip(first, small(pixels), strict=True))


ANY_SIZES = [((1, 1), (1, 1)), ((1, 4000), (1, 1000)), ((33, 65), (9, 17))]


@pytest.mark.parametrize(
    "padding, hw, grid_hw",
    [(padding, hw, grid_hw) for padding in ("masked", "timm", "transformers") for hw, grid_hw in ANY_SIZES]
    + [("torchvision", (4, 4), (1, 1)), ("torchvision", (4, 4000), (1, 1000)), ("torchvision", (33, 65), (8, 16))],
)
def test_any_height_and_width_goes_through(padding, hw, grid_hw):
    encoder = randomise(SwinEncoder(replace(SMALL, padding=padding)))
    maps = encoder(random_pixels(*hw))
    assert [tuple(x.shape) for x in maps] == [(1, *grid_hw, 8), (1, *[-(-n // 2) for n in grid_hw], 16)]
    assert all(x.isfinite().all() for x in maps)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("chunk_values", [1, 2 * 16 * 8 * 4])  # one window, four windows at a time
def test_streaming_in_chunks_changes_nothing(chunk_values, padding, monkeypatch):
    encoder = randomise(SwinEncoder(replace(SMALL, padding=padding)))
    pixels = random_pixels(75, 90, batch=2)
    whole = encoder(pixels)  # with gradients: never in chunks
    monkeypatch.setattr(swin, "CHUNK_VALUES", chunk_values)
    with torch.no_grad():
        assert_close(encoder(pixels), whole, atol=1e-5, rtol=1e-5)


def test_a_batch_equals_its_pictures_one_by_one(small):
    pixels = random_pixels(50, 70, batch=3)
    with torch.no_grad():
        singles = [small(picture[None]) for picture in pixels]
        assert_close(small(pixels), tuple(map(torch.cat, zip(*singles, strict=True))), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padding", PADDINGS)
def test_gradients_reach_every_pixel_and_weight(padding):
    encoder = randomise(SwinEncoder(replace(SMALL, padding=padding)))
    pixels = random_pixels(40, 72).requires_grad_()
    maps = encoder(pixels)
    sum((x * torch.randn_like(x)).sum() for x in maps).backward()
    assert pixels.grad.ne(0).all()
    assert all(p.grad.isfinite().all() and p.grad.ne(0).any() for p in encoder.parameters())


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("hw", [(64, 64), (40, 72), (16, 200), (100, 36), (224, 160)])
def test_streamed_windows_give_what_all_at_once_give(padding, hw, monkeypatch):
    encoder = randomise(SwinEncoder(replace(SMALL, padding=padding)))
    pixels = random_pixels(*hw, batch=3)
    with torch.no_grad():
        expected = encoder.train()(pixels)
        monkeypatch.setattr(swin, "CHUNK_VALUES", 3 * 16 * SMALL.embed_dim)  # a few windows in a chunk
        before = pixels.clone()
        found = encoder.eval()(pixels)
    assert torch.equal(pixels, before)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_training_works_after_detecting_at_the_same_size(small):
    pixels = random_pixels(44, 52)
    window_plan.cache_clear()
    with torch.inference_mode():
        small(pixels)
    small(pixels)[-1].sum().backward()


@pytest.mark.parametrize("padding", PADDINGS)
def test_attention_is_what_the_blocks_attend_to(padding, monkeypatch):
    encoder = randomise(SwinEncoder(replace(SMALL, padding=padding)))
    pixels = random_pixels(72, 100)
    attended = []

    def obvious(q, k, v, attn_mask):
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + attn_mask).softmax(-1)
        attended.append(weights)
        return weights @ v

    with torch.no_grad():
        seen = encoder.attention(pixels)
        monkeypatch.setattr(F, "scaled_dot_product_attention", obvious)
        encoder.train()(pixels)  # all windows of a block at once
    assert [(one.stage, one.block) for one in seen] == [(s, b) for s, n in enumerate(SMALL.depths) for b in range(n)]
    for one, weights in zip(seen, attended, strict=True):
        assert_close(one.weights.flatten(), weights.flatten(), atol=1e-6, rtol=1e-5)
        real = one.patches[one.patches >= 0]
        assert sorted(real.tolist()) == list(range(one.grid_hw[0] * one.grid_hw[1]))  # each patch in one window


def test_a_patch_attends_to_itself_and_its_window_alone(small):
    with torch.no_grad():
        plain, shifted = small.attention(random_pixels(64, 64))[:2]  # 16 x 16 patches
    m = SMALL.window_size
    assert plain.shift_hw == (0, 0) and shifted.shift_hw == (m // 2, m // 2)
    looks = plain.of_patch(0, 0)
    assert_close(looks.sum((1, 2)), torch.ones(len(looks)))
    assert (looks[:, :m, :m] > 0).all()
    assert looks.count_nonzero() == len(looks) * m * m
    # Moved by half a window, the corner's window holds the four corners of the map; the mask parts them.
    half = m // 2
    assert (shifted.of_patch(0, 0)[:, half:] < 1e-6).all()


def test_neighbours_meet_only_through_the_shift():
    encoder = randomise(SwinEncoder(replace(SMALL, depths=(1,), num_heads=(1,))))
    shifted = randomise(SwinEncoder(replace(SMALL, depths=(2,), num_heads=(1,))))
    pixels = random_pixels(32, 32)
    changed = pixels.clone()
    changed[..., 15] += 1  # last column of the left windows
    right = {
        name: (m(pixels)[0] - m(changed)[0])[:, :, 4:].abs().max() for name, m in [("one", encoder), ("two", shifted)]
    }
    assert right["one"] == 0 and right["two"] > 1e-3


@pytest.mark.parametrize("padding", PADDINGS)
def test_the_plan_of_a_huge_map_is_small(padding):
    """A mask for each window of a picture of 4096 pixels a side would take 200 MiB."""
    plan = window_plan((1024, 1024), 7, True, padding, CPU)
    assert sum(part.nbytes for part in plan if isinstance(part, torch.Tensor)) < 2**20
    assert len(plan.mask) <= 9 and len(plan.kinds) == len(plan.kind) == 147**2


@pytest.mark.parametrize("padding", ["masked", "torchvision"])
@pytest.mark.parametrize("map_hw", [(20, 33), (8, 30), (3, 40)])
def test_every_window_has_the_mask_that_its_patches_make(map_hw, padding):
    """A mask of its own for each window, from the regions that the shift brings together and the filled-in patches."""
    window = 4
    plan = window_plan(map_hw, window, True, padding, CPU)
    rows = torch.arange(map_hw[0] * map_hw[1], dtype=torch.float).view(1, *map_hw, 1) + 1
    numbers = cut_windows(rows, plan)[0, ..., 0].long()  # 0: filled in
    masks = plan.mask[plan.kind] if plan.mask is not None else torch.zeros(1).expand(len(numbers), 1, 1)
    for patches, mask in zip(numbers, masks, strict=True):
        y, x = (patches - 1) // map_hw[1], (patches - 1) % map_hw[1]
        near = ((y[:, None] - y).abs() < plan.window_hw[0]) & ((x[:, None] - x).abs() < plan.window_hw[1])
        real = patches > 0
        both = real[:, None] & real
        assert torch.equal((mask == 0).expand(len(patches), -1)[both], near[both])  # no patch sees one across the map
        if padding == "masked":
            assert (mask.expand(len(patches), -1)[:, ~real] != 0).all()


def test_the_encoder_compiles_as_one_graph(small):
    pixels = random_pixels(44, 52)
    with torch.no_grad():
        compiled = torch.compile(small, backend="eager", fullgraph=True)(pixels)
    for one, expected in zip(compiled, small(pixels), strict=True):
        assert_close(one, expected.detach(), atol=1e-5, rtol=0)


def test_plans_are_kept_up_to_a_bound_in_bytes():
    window_plan.cache_clear()
    for side in range(100, 400, 3):
        window_plan((side, side + 1), 12, True, "masked", CPU)
    held = window_plan.cache
    assert 1 < len(held) < 100 and held.currsize <= PLAN_BYTES
    window_plan.cache_clear()


# --- Stochastic depth ----------------------------------------------------------------------------------------------


def test_depth_is_stochastic_in_training_alone():
    pixels = random_pixels(32, 32).repeat(8, 1, 1, 1)
    dropping, plain = (randomise(SwinEncoder(replace(SMALL, drop_path_rate=rate))) for rate in (0.9, 0.0))
    assert all(a.equal(b) for a, b in zip(dropping(pixels), plain(pixels), strict=True))
    torch.manual_seed(0)
    last = dropping.train()(pixels)[-1]
    assert not last[0].allclose(last[1])  # whole pictures lose other branches


def test_drop_path_rates_rise_evenly_from_0():
    encoder = SwinEncoder(replace(SMALL, drop_path_rate=0.3))
    rates = [getattr(block.drop_path, "p", 0) for blocks in encoder.stages for block in blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
