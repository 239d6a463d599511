"""Pixel decoders: parity of UPerNet, the maps of any encoder, the published table, pictures of any shape."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from swin_libraries import count_multiply_adds, random_pixels, randomise
from torch import nn
from torch.testing import assert_close

from owl_swin import load_segmenter
from owl_swin.closed_set import winners
from owl_swin.config import SwinConfig
from owl_swin.errors import CheckpointError, ImageError, QueryError
from owl_swin.families.swin_weights import SWIN_SIZES
from owl_swin.models.closed_set import Segmenter
from owl_swin.models.hybrid import HybridSwin
from owl_swin.models.pixel_decoders import DECODERS, UperDecoder, make_decoder
from owl_swin.models.swin import SwinEncoder

SIZES = {"embed_dim": 8, "depths": [2, 1, 2, 2], "num_heads": [1, 2, 2, 4], "window_size": 4}
NAMES = ["wall", "Straße", "sky\n", "面", "a, b"]


def upernet(*, first=1, **settings):
    backbone = transformers.SwinConfig(**SIZES, out_features=[f"stage{i}" for i in range(first, 5)])
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=12, auxiliary_channels=6, num_labels=len(NAMES), **settings
    )
    config.id2label = dict(enumerate(NAMES))
    model = randomise(transformers.UperNetForSemanticSegmentation(config))
    for name, buffer in model.named_buffers():  # batch statistics as after training
        if name.endswith("running_mean"):
            nn.init.normal_(buffer)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 2)
    return model


@pytest.fixture(scope="session")
def upernets(tmp_path_factory):
    """UPerNet on all stages of a Swin, and on its last three, with another pyramid and no auxiliary head."""
    folder = tmp_path_factory.mktemp("upernet")
    models = {"all": upernet(), "three": upernet(first=2, pool_scales=[1, 4], use_auxiliary_head=False)}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        settings = {"size": {"height": 64, "width": 64}, "resample": 2}
        (folder / name / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder, models


@pytest.mark.parametrize("name, hw", [("all", (64, 64)), ("all", (50, 97)), ("three", (33, 4)), ("three", (128, 70))])
def test_upernet_gives_the_logits_of_transformers(upernets, name, hw):
    folder, models = upernets
    pixels = random_pixels(*hw, batch=2)
    with torch.no_grad():
        expected, found = models[name](pixels).logits, load_segmenter(folder / name, device="cpu")(pixels)
    assert_close(found, expected, rtol=0, atol=1e-4 * max(1.0, float(expected.abs().max())))


def test_names_and_frame_are_those_of_the_files(upernets):
    segmenter = load_segmenter(upernets[0] / "all", device="cpu")
    assert segmenter.names == tuple(NAMES)
    assert segmenter.settings.size_hw == (64, 64)
    assert isinstance(segmenter.network.decoder, UperDecoder)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda config, _: config.update(model_type="segformer"), "a model of the kind 'segformer'"),
        (lambda config, _: config.update(backbone_config={"model_type": "convnext"}), "'upernet on convnext'"),
        (lambda config, _: config.update(pool_scales=[0]), "pool_scales must be whole numbers"),
        (lambda config, _: config.update(id2label=[1]), None),
        (lambda _, tensors: tensors.pop("decode_head.classifier.weight"), "classifier.weight must have 4 axes"),
        (lambda _, tensors: tensors.pop("decode_head.bottleneck.conv.weight"), "missing: decoder.pyramid.0.weight"),
        (
            lambda _, tensors: [tensors.pop(key) for key in list(tensors) if "stage4" in key],
            "does not read the last map",
        ),
    ],
)
def test_damaged_segmenters_are_refused_with_one_sentence(upernets, change, sentence, tmp_path):
    folder = shutil.copytree(upernets[0] / "all", tmp_path / "model")
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    change(config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    if sentence is None:  # without a list of names the numbers are the names
        assert load_segmenter(folder, device="cpu").names == ("0", "1", "2", "3", "4")
        return
    with pytest.raises(CheckpointError, match=sentence):
        load_segmenter(folder, device="cpu")


def test_what_is_no_segmenter_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_segmenter(tmp_path / "not here")
    (tmp_path / "config.json").write_text("{")
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read as JSON"):
        load_segmenter(tmp_path)


# --- Decoders of any encoder ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_take_the_maps_of_every_encoder(name):
    swin = SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4)
    hybrid = replace(swin, stem="efficientnet_lite0", depths=(0, 0, 1, 1))
    for encoder, dims, stride in (
        (SwinEncoder(swin), [8, 16, 32, 64], 4),
        (HybridSwin(hybrid), [16, 32, 64], 8),
    ):
        network = Segmenter(encoder, make_decoder(name, dims, 6), 3).eval()
        with torch.no_grad():
            maps = network.maps(random_pixels(72, 40))
            logits = network(random_pixels(72, 40))
        assert maps.shape == (1, 3, -(-72 // stride), -(-40 // stride))
        assert logits.shape == (1, 3, 72, 40)
        assert logits.isfinite().all()


def test_every_stage_and_weight_has_a_part_in_what_is_learned():
    dims = [4, 8, 16]
    for name in DECODERS:
        decoder = make_decoder(name, dims, 6)
        maps = [torch.randn(2, side, side + 1, dim) for side, dim in zip((12, 6, 3), dims, strict=True)]
        for x in maps:
            x.requires_grad_()
        (decoder(maps) * torch.randn(2, 6, 12, 13)).sum().backward()
        assert all(x.grad.abs().sum() > 0 for x in maps)
        assert all(p.grad.abs().sum() > 0 for p in decoder.parameters())


# --- The published table -------------------------------------------------------------------------------------------


def count_parameters(module):
    return sum(p.numel() for p in module.parameters())


def segmenter(decoder, size, *, auxiliary=False):
    config = SWIN_SIZES[size]
    dims = [config.stage_dim(stage) for stage in range(4)]
    with torch.device("meta"):
        network = Segmenter(SwinEncoder(config), make_decoder(decoder, dims), 150)
        # The convolution, normalisation and classifier on stage 3 that UPerNet has while it is trained.
        head = nn.Sequential(nn.Conv2d(dims[2], 256, 3, bias=False), nn.BatchNorm2d(256), nn.Conv2d(256, 150, 1))
    return network, count_parameters(network) + auxiliary * count_parameters(head)


@pytest.mark.parametrize("decoder, published, auxiliary", [("uper", 121.3e6, True), ("ssformer", 87.5e6, False)])
def test_both_rows_of_the_table_are_swin_b(decoder, published, auxiliary):
    counts = {size: segmenter(decoder, size, auxiliary=auxiliary)[1] for size in SWIN_SIZES}
    assert min(counts, key=lambda size: abs(counts[size] - published)) == "B"
    assert counts["B"] == pytest.approx(published, abs=0.05e6)


@pytest.fixture(scope="session")
def encoder_cost():
    """Multiply-adds of Swin-B at 512²: all, and as the table counts them."""
    config = SWIN_SIZES["B"]
    with torch.device("meta"):
        encoder, pixels = SwinEncoder(config), torch.empty(1, 3, 512, 512)
    all_of_them = count_multiply_adds(encoder, pixels)
    attention = filled = 0
    for stage, depth in enumerate(config.depths):
        side, dim, n = 128 // 2**stage, config.stage_dim(stage), 49
        padded = -(-side // 7) * 7
        attention += depth * 2 * padded**2 * n * dim  # two products of matrices in every window
        filled += depth * 8 * dim**2 * (padded**2 - side**2)  # an MLP on what only fills windows up
    return all_of_them, all_of_them - attention - filled


@pytest.mark.parametrize("decoder, published, ours", [("uper", 297.2e9, 310.9e9), ("ssformer", 91.01e9, 104.7e9)])
def test_the_table_counts_neither_attention_nor_what_fills_windows_up(decoder, published, ours, encoder_cost):
    network, _ = segmenter(decoder, "B")
    config = SWIN_SIZES["B"]
    maps = [torch.empty(1, 128 // 2**i, 128 // 2**i, config.stage_dim(i), device="meta") for i in range(4)]
    cost = count_multiply_adds(nn.Sequential(network.decoder, network.classifier).eval(), maps)
    assert cost + encoder_cost[0] == pytest.approx(ours, rel=1e-3)
    # What is left, a thousandth, is normalisation and ReLU, which the table's counter adds.
    assert 0 < 1 - (cost + encoder_cost[1]) / published < 2e-3


# --- Pictures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_hw", [(1, 1), (7, 90), (61, 40), (3, 5)])
def test_bands_give_what_all_logits_at_once_give(image_hw, monkeypatch):
    logits = torch.randn(4, 9, 13, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.interpolate(logits[None], size=image_hw, mode="bilinear", align_corners=False)[0]
    expected = whole.softmax(0).max(0)
    for values in (1, 2000, 2**25):
        monkeypatch.setattr("owl_swin.closed_set.BAND_VALUES", values)
        labels, scores = winners(logits, image_hw)
        assert_close(scores, expected.values, rtol=0, atol=1e-5)
        assert (labels == expected.indices).float().mean() > 0.99


@pytest.mark.parametrize(
    "size, frame", [((640, 480), (64, 96)), ((480, 640), (96, 64)), ((4000, 1), (32, 256)), ((1, 4000), (256, 32))]
)
def test_pictures_of_any_shape_keep_it(upernets, size, frame, monkeypatch):
    from PIL import Image

    seen = []
    monkeypatch.setattr(Segmenter, "maps", lambda _, pixels: seen.append(pixels.shape[2:]) or torch.zeros(1, 5, 8, 8))
    picture = Image.new("RGB", size)
    found = load_segmenter(upernets[0] / "all", device="cpu").segment(picture)
    assert found.image_hw == (size[1], size[0])
    assert tuple(seen[0]) == frame
    assert found.shares() == {0: 1.0}


def test_sizes_that_make_no_sense_are_refused(upernets):
    segmenter = load_segmenter(upernets[0] / "all", device="cpu")
    with pytest.raises(QueryError, match="image_size"):
        segmenter.segment(torch.zeros(3, 8, 8), image_size=8)
    with pytest.raises(ImageError):
        segmenter.segment(b"no picture")
