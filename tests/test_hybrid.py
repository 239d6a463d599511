"""The hybrid Swin: a published convolutional network as the stem, stages 3 and 4 on top of it."""

from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file

from owl_swin.config import HeadsConfig, ModelConfig, SwinConfig, TextConfig
from owl_swin.errors import ConfigError
from owl_swin.families.owl_swin import load_checkpoint, save_checkpoint
from owl_swin.models import efficientnet_lite
from owl_swin.models.hybrid import HybridSwin
from owl_swin.models.layout import without_values
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.models.stem import IMAGENET_MEAN, IMAGENET_STD, ConvStem, fold_norms, published_stem, stage_of
from owl_swin.training.config import OptimConfig
from owl_swin.training.initial import load_init
from owl_swin.training.optim import freeze, part_of

STEM = "tf_efficientnet_lite0"
IMAGE = SwinConfig(stem=STEM, embed_dim=8, depths=(0, 0, 2, 2), num_heads=(1, 1, 2, 4), window_size=4)
CONFIG = ModelConfig(
    name="hybrid",
    embed_dim=16,
    image_size=64,
    image=IMAGE,
    text=TextConfig(16, 1, 2, 8),
    heads=HeadsConfig(width=16, stride=8, stages=(2, 3, 4), upsample="expand"),
)


def randomised_network(name=STEM):
    """timm's network with random statistics in its normalisations, as a trained one has them."""
    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return network


@pytest.mark.parametrize("name", [STEM, "tf_efficientnet_lite2", "resnet10t", "mobilenetv3_small_050"])
def test_the_stem_gives_the_maps_of_the_published_network(name):
    network = randomised_network(name)
    stem = ConvStem(name).eval()
    stem.network.load_state_dict(published_stem(name, network.state_dict()))
    pixels = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    own_mean, own_std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    mean, std = (torch.tensor(value)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        last, maps = network.forward_intermediates((pixels - own_mean) / own_std)
        found, found_last = stem((pixels - mean) / std)
    expected = {96 // m.shape[2]: m for m in maps}
    for stride, own in zip((8, 16, 32), found, strict=True):
        torch.testing.assert_close(own.permute(0, 3, 1, 2), expected[stride], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found_last.permute(0, 3, 1, 2), last, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", sorted(efficientnet_lite.SIZES))
def test_the_stems_that_are_built_here_are_those_of_timm(name):
    with without_values():
        own, theirs = ConvStem(name), fold_norms(timm.create_model(name, num_classes=0))
    assert {k: v.shape for k, v in own.network.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    reductions = {stage["reduction"]: stage["num_chs"] for stage in theirs.feature_info}
    assert (own.dims, own.last_dim) == ([reductions[stride] for stride in (8, 16, 32)], theirs.num_features)
    settings = theirs.pretrained_cfg
    assert (settings["mean"], settings["std"]) == (efficientnet_lite.MEAN, efficientnet_lite.STD)


@pytest.mark.parametrize("side", [33, 47, 63, 65])
def test_odd_sides_are_padded_as_timm_does(side):
    network = randomised_network()
    own = ConvStem(STEM).eval()
    own.network.load_state_dict(published_stem(STEM, network.state_dict()))
    pixels = torch.rand(1, 3, side, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        last, maps = network.forward_intermediates(pixels, indices=[stage_of(network, s) for s in (8, 16, 32)])
        found, found_last = own.network(pixels)
    for mine, its in zip((*found, found_last), (*maps, last), strict=True):
        torch.testing.assert_close(mine.permute(0, 3, 1, 2), its, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name, sentence", [("no_such_network", "knows no network"), ("vit_tiny_patch16_224", "stem")])
def test_what_is_no_stem_is_refused(name, sentence):
    with pytest.raises(ConfigError, match=sentence):
        ConvStem(name)


def test_weights_of_another_network_are_refused():
    with pytest.raises(ConfigError, match="the given weights of"):
        published_stem(STEM, timm.create_model("resnet10t").state_dict())


@pytest.mark.parametrize("hw", [(64, 96), (50, 71), (33, 200), (8, 8)])
def test_maps_have_strides_8_16_and_32_at_any_size(hw):
    maps = HybridSwin(IMAGE).eval()(torch.randn(1, 3, *hw))
    sizes = [(-(-hw[0] // stride), -(-hw[1] // stride)) for stride in (8, 16, 32)]
    assert [tuple(m.shape[1:]) for m in maps] == [(*size, dim) for size, dim in zip(sizes, (16, 32, 64), strict=True)]


@pytest.mark.parametrize("hw", [(64, 96), (50, 71)])
def test_attention_is_that_of_stages_3_and_4(hw):
    blocks = HybridSwin(IMAGE).eval().attention(torch.randn(1, 3, *hw))
    assert [(b.stage, b.block) for b in blocks] == [(2, 0), (2, 1), (3, 0), (3, 1)]
    assert blocks[0].grid_hw == (-(-hw[0] // 16), -(-hw[1] // 16))
    for block in blocks:
        torch.testing.assert_close(block.weights.sum(-1), torch.ones_like(block.weights[..., 0]))


def test_a_whole_hybrid_gives_a_fine_grid_of_patches():
    model = OwlSwin(CONFIG).eval()
    found = model.encode_image(torch.randn(2, 3, 64, 96))
    assert found.grid_hw == (8, 12) and found.class_embeds.shape == (2, 96, 16)
    patches, stem_map = model.encode_patches_and_stem(torch.randn(1, 3, 50, 71))
    assert patches.shape == (1, 7, 9, 16) and stem_map.shape == (1, 2, 3, 1280)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_hybrid_runs_in_fewer_digits(dtype):
    torch.manual_seed(0)
    model = OwlSwin(CONFIG).eval()
    pixels = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = model.encode_image(pixels)
        with torch.autocast("cpu", dtype):
            mixed = model.encode_image(pixels)
        plain = model.to(dtype).encode_image(pixels.to(dtype))
    for found in (mixed, plain):
        torch.testing.assert_close(found.pred_boxes.float(), expected.pred_boxes, atol=0.02, rtol=0.05)
        assert (found.class_embeds.float() * expected.class_embeds).sum(-1).min() > 0.95


def test_expanded_stages_give_every_place_its_own_projection():
    torch.manual_seed(0)
    maps = (torch.zeros(1, 4, 4, 16), torch.zeros(1, 2, 2, 32), torch.randn(1, 1, 1, 64).expand(1, 1, 1, 64))
    for upsample, distinct in (("repeat", 1), ("expand", 16)):
        fusion = OwlSwin(replace(CONFIG, heads=replace(CONFIG.heads, upsample=upsample))).fusion
        rows = fusion(maps)[0].flatten(0, 1)
        assert len(torch.unique(rows.round(decimals=4), dim=0)) == distinct


def test_a_stem_starts_from_a_file_and_is_a_part_of_its_own(tmp_path):
    network = randomised_network()
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / "stem.safetensors")
    model = OwlSwin(CONFIG)
    load_init(model, f"stem:{tmp_path / 'stem.safetensors'}")
    weights = published_stem(STEM, network.state_dict())
    assert torch.equal(model.image_encoder.stem.network.conv_stem.weight, weights["conv_stem.weight"])
    assert {part_of(name) for name, _ in model.image_encoder.stem.named_parameters(prefix="image_encoder.stem")} == {
        "stem"
    }
    with pytest.raises(ConfigError, match="has no stem"):
        load_init(
            OwlSwin(ModelConfig(text=TextConfig(16, 1, 2, 8), image=SwinConfig(depths=(1, 1, 1, 1)))), "stem:timm"
        )


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"depths": (2, 2, 2, 2)}, "stages 1 and 2 have no blocks"),
        ({"depths": (0, 0, 0, 2)}, "at least 1"),
        ({"stem": "patch"}, "at least 1"),
    ],
)
def test_depths_fit_the_stem(change, sentence):
    with pytest.raises(ConfigError, match=sentence):
        replace(IMAGE, **change)


def test_a_hybrid_has_no_stage_1_to_fuse():
    with pytest.raises(ConfigError, match="first stage is 2"):
        replace(CONFIG, heads=replace(CONFIG.heads, stages=(1, 2, 3)))


def test_a_hybrid_goes_through_a_file(tmp_path):
    model = OwlSwin(CONFIG).eval()
    save_checkpoint(tmp_path / "model.safetensors", model, {}, int8=False)
    loaded, _ = load_checkpoint(tmp_path / "model.safetensors")
    pixels = torch.randn(1, 3, 64, 64)
    found, expected = loaded.encode_image(pixels), model.encode_image(pixels)
    torch.testing.assert_close(found.class_embeds, expected.class_embeds, rtol=0, atol=5e-3)


def test_of_a_stem_the_late_layers_of_one_pixel_may_learn_alone():
    model = OwlSwin(CONFIG)
    freeze(model, OptimConfig(stem_lr=1e-4, stem_part="pointwise"))
    learns = {n: p for n, p in model.image_encoder.stem.network.named_parameters() if p.requires_grad}
    assert all(".conv_pw" in name or name.startswith("conv_head") for name in learns)
    assert {p.shape[2:] for p in learns.values() if p.ndim == 4} == {(1, 1)}
    assert not any(name.startswith(("conv_stem", "blocks.0.", "blocks.1.")) for name in learns)
    blocks = sum(map(len, model.image_encoder.stem.network.blocks[2:]))
    assert len(learns) == 2 * (2 * blocks + 1)  # two layers a block, and the last; weights and biases
    assert all(p.requires_grad for n, p in model.named_parameters() if n.startswith("box_head"))
    freeze(model, OptimConfig(stem_lr=1e-4))
    assert all(p.requires_grad for p in model.image_encoder.stem.parameters())
    freeze(model, OptimConfig(stem_part="pointwise"))
    assert not any(p.requires_grad for p in model.image_encoder.stem.parameters())


@pytest.mark.parametrize("name, first", [("resnet26t", "network.layer2"), ("convnext_atto", "network.stages.1")])
def test_late_layers_of_one_pixel_of_timm_s_networks(name, first):
    stem = ConvStem(name)
    names = stem.late_pointwise()
    shapes = {n: p.shape for n, p in stem.named_parameters()}
    assert names and set(names) <= set(shapes) and names[0].startswith(first)
    assert all(len(shapes[n]) < 4 or shapes[n][2:] == (1, 1) for n in names)


def test_an_unknown_part_of_a_stem_is_refused():
    with pytest.raises(ConfigError, match=r"optim\.stem_part must be one of all, pointwise, got 'some'"):
        OptimConfig(stem_part="some")


@pytest.mark.parametrize("side", [16, 17])
def test_gradients_through_a_stride_in_bfloat16_are_those_of_float32(side):
    torch.manual_seed(0)
    conv = efficientnet_lite.SameConv(8, 8, 5, 2, groups=8)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        conv.zero_grad()
        x = torch.randn(2, side, side, 8, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            y = conv(x)
        assert y.dtype == dtype
        y.float().square().sum().backward()
        gradients.append((x.grad.float(), conv.weight.grad.clone()))
    conv.double()(x.detach().double().requires_grad_()).sum().backward()  # without autocast each type is its own
    for own, exact in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(own, exact, rtol=0.05, atol=0.05 * float(exact.abs().max()))
