"""Swin weights from inside of other models: detectors and segmenters of transformers, their backbone alone."""

import re
from dataclasses import replace
from functools import cache, partial
from unittest import mock

import pytest
import timm
import torch
import transformers
from conftest import TINY
from fake_hub import FakeHub, serving
from safetensors.torch import load_file, save_file
from swin_libraries import random_pixels, randomise
from torch.testing import assert_close

from owl_swin.config import SwinConfig
from owl_swin.errors import CheckpointError, ConfigError
from owl_swin.families.swin_weights import load_swin
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.training.initial import load_init

SIZES = {"embed_dim": 8, "depths": [2, 1, 2, 2], "num_heads": [1, 2, 2, 4], "window_size": 4}
OURS = SwinConfig(embed_dim=8, depths=(2, 1, 2, 2), num_heads=(1, 2, 2, 4), window_size=4)
BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
CLIP = BERT | {"projection_dim": 16, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}
DINO = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": 4,
    "text_config": transformers.BertConfig(**BERT),
}
OMDET = {
    "encoder_hidden_dim": 16,
    "decoder_hidden_dim": 16,
    "class_embed_dim": 16,
    "encoder_in_channels": [16, 32, 64],
    "vision_features_channels": [16, 16, 16],
    "encoder_dim_feedforward": 16,
    "decoder_dim_feedforward": 16,
    "decoder_num_layers": 1,
    "text_config": transformers.CLIPTextConfig(**CLIP),
    "text_projection_in_dim": 16,
    "text_projection_out_dim": 16,
}


def swin(first=1):
    return transformers.SwinConfig(**SIZES, out_features=[f"stage{i}" for i in range(first, 5)])


def omdet_turbo_of_timm():
    config = transformers.TimmBackboneConfig(
        backbone="swin_tiny_patch4_window7_224", out_indices=[1, 2, 3], img_size=64, always_partition=True
    )
    with mock.patch.object(timm, "create_model", partial(timm.create_model, **SIZES)):
        return transformers.OmDetTurboForObjectDetection(transformers.OmDetTurboConfig(backbone_config=config, **OMDET))


def conv_encoder(model):
    return model.model.backbone.conv_encoder.model


def pixel_level(model):
    return model.model.pixel_level_module.encoder


MODELS = {
    "grounding_dino": (
        lambda: transformers.GroundingDinoForObjectDetection(
            transformers.GroundingDinoConfig(backbone_config=swin(2), **DINO)
        ),
        conv_encoder,
    ),
    "mm_grounding_dino": (
        lambda: transformers.MMGroundingDinoForObjectDetection(
            transformers.MMGroundingDinoConfig(backbone_config=swin(2), **DINO)
        ),
        conv_encoder,
    ),
    "mask2former": (
        lambda: transformers.Mask2FormerForUniversalSegmentation(
            transformers.Mask2FormerConfig(
                backbone_config=swin(),
                feature_size=32,
                mask_feature_size=32,
                hidden_dim=32,
                encoder_feedforward_dim=16,
                encoder_layers=1,
                decoder_layers=2,
                num_attention_heads=2,
                dim_feedforward=16,
                num_queries=4,
            )
        ),
        pixel_level,
    ),
    "maskformer": (
        lambda: transformers.MaskFormerForInstanceSegmentation(
            transformers.MaskFormerConfig(
                fpn_feature_size=32,
                mask_feature_size=32,
                backbone_config=swin(),
                decoder_config=transformers.DetrConfig(
                    d_model=16, decoder_layers=1, encoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16
                ),
            )
        ),
        pixel_level,
    ),
    "oneformer": (
        lambda: transformers.OneFormerForUniversalSegmentation(
            transformers.OneFormerConfig(
                backbone_config=swin(),
                hidden_dim=32,
                mask_dim=32,
                conv_dim=32,
                text_encoder_width=32,
                text_encoder_num_layers=1,
                text_encoder_vocab_size=50,
                encoder_feedforward_dim=16,
                encoder_layers=1,
                decoder_layers=2,
                query_dec_layers=1,
                num_attention_heads=2,
                dim_feedforward=16,
                num_queries=4,
            )
        ),
        pixel_level,
    ),
    "upernet": (
        lambda: transformers.UperNetForSemanticSegmentation(
            transformers.UperNetConfig(
                backbone_config=swin(), hidden_size=16, auxiliary_channels=16, auxiliary_in_channels=32, num_labels=3
            )
        ),
        lambda model: model.backbone,
    ),
    "omdet_turbo": (
        lambda: transformers.OmDetTurboForObjectDetection(
            transformers.OmDetTurboConfig(backbone_config=swin(2), use_timm_backbone=False, **OMDET)
        ),
        lambda model: model.vision_backbone.vision_backbone,
    ),
    "omdet_turbo of timm": (omdet_turbo_of_timm, lambda model: model.vision_backbone),
    "donut": (
        lambda: transformers.VisionEncoderDecoderModel(
            encoder=transformers.DonutSwinModel(transformers.DonutSwinConfig(**SIZES)),
            decoder=transformers.BertLMHeadModel(
                transformers.BertConfig(**BERT, is_decoder=True, add_cross_attention=True)
            ),
        ),
        lambda model: model.encoder,
    ),
    "the backbone alone": (lambda: transformers.SwinBackbone(swin()), lambda model: model),
}


@cache
def original(name):
    build, backbone = MODELS[name]
    model = randomise(build())
    return model, backbone(model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder that transformers saves a model in."""

    @cache
    def save(name):
        path = tmp_path_factory.mktemp("detector")
        original(name)[0].save_pretrained(path)
        return path

    return save


@torch.no_grad()
def original_maps(backbone, pixels):
    """Maps [B, H, W, C] of the last stages, normalised as the model of the backbone wants them."""
    if isinstance(backbone, transformers.DonutSwinModel):
        rows = -(-pixels.shape[2] // 32)
        return [torch.nn.functional.layer_norm(backbone(pixels).last_hidden_state, (64,)).unflatten(1, (rows, -1))]
    found = backbone(pixels)
    return [one.permute(0, 2, 3, 1) for one in getattr(found, "feature_maps", found)]


def stage_norms(backbone, maps):
    norms = getattr(backbone, "hidden_states_norms", None) or getattr(backbone, "layer_norms", None)
    if norms is None:
        return [torch.nn.Identity()]
    return list(norms.values() if isinstance(norms, torch.nn.ModuleDict) else norms)[-len(maps) :]


@pytest.mark.numeric
@pytest.mark.parametrize("hw", [(64, 64), (128, 96), (70, 101)])
@pytest.mark.parametrize("name", MODELS)
def test_maps_of_the_stages_are_those_of_the_original(name, hw, folder):
    if name == "omdet_turbo of timm":  # this backbone takes pictures of one size
        hw = (64, 64)
    if name == "donut":  # and this one none whose last map is smaller than a window
        hw = (hw[0] + 96, hw[1] + 96)
    backbone, pixels = original(name)[1], random_pixels(*hw)
    encoder = load_swin(folder(name))
    expected = original_maps(backbone, pixels)
    with torch.no_grad():
        maps = encoder(pixels)[-len(expected) :]
        norms = stage_norms(backbone, expected)
        maps = [norm(one) for norm, one in zip(norms[:-1], maps[:-1], strict=True)] + [maps[-1]]
    assert_close(maps, expected, atol=1e-4, rtol=1e-4)


def test_files_of_before_transformers_5_are_read_too(folder, tmp_path):
    """The hub's files have no "swin." in their keys, and buffers of the windows."""
    for name in ("grounding_dino", "mask2former"):
        tensors = load_file(folder(name) / "model.safetensors")
        old = {key.replace(".swin.", ".").replace("swin.layernorm", "layernorm"): t for key, t in tensors.items()}
        table = next(key for key in old if key.endswith("attention.self.relative_position_bias_table"))
        old[table.replace("bias_table", "index")] = torch.zeros(16, 16, dtype=torch.long)
        save_file(old, tmp_path / "model.safetensors")
        assert_close(load_swin(tmp_path).state_dict(), load_swin(folder(name)).state_dict(), atol=0, rtol=0)


def test_a_detector_of_microsofts_own_form_is_read(tmp_path):
    """The Swin of the first GroundingDINO's file: Microsoft's names, a norm a stage, and "module." before all."""
    model = randomise(timm.models.swin_transformer.SwinTransformer(img_size=128, **SIZES))
    tensors = {
        re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key): tensor
        for key, tensor in model.state_dict().items()
        if not key.startswith(("norm.", "head."))
    }
    norms = {f"norm{i}.{leaf}": torch.rand(8 * 2**i) for i in (1, 2, 3) for leaf in ("weight", "bias")}
    swin = {f"module.backbone.0.{key}": tensor for key, tensor in (tensors | norms).items()}
    save_file(swin | {"module.transformer.level_embed": torch.ones(2)}, tmp_path / "model.safetensors")
    encoder = load_swin(tmp_path)
    assert encoder.config == replace(OURS, padding="transformers_backbone")
    assert_close(encoder.norm.weight.detach(), norms["norm3.weight"])


def test_one_line_says_what_is_left_out(folder, caplog):
    load_swin(folder("grounding_dino"))
    (line,) = caplog.messages
    assert re.search(
        r": its Swin under model.backbone.conv_encoder.model is read and \d+ of \d+ tensors are left", line
    )
    assert "(bbox_embed.0" in line and line.count("\n") == 0


def test_a_swin_without_a_last_norm_says_so(folder, caplog):
    encoder = load_swin(folder("donut"))
    assert caplog.messages[0].endswith("it has no norm of its last map, which starts as none was learned")
    assert encoder.norm.weight.eq(1).all() and encoder.norm.bias.eq(0).all()


def test_a_detector_that_leaves_the_last_stage_out_has_no_norm_for_it(tmp_path, caplog):
    randomise(
        transformers.SwinBackbone(transformers.SwinConfig(**SIZES, out_features=["stage2", "stage3"]))
    ).save_pretrained(tmp_path)
    encoder = load_swin(tmp_path)
    assert "it has no norm of its last map" in caplog.messages[0] and encoder.norm.weight.eq(1).all()


def test_a_swin_alone_is_read_without_a_word(tmp_path, caplog):
    randomise(transformers.SwinModel(transformers.SwinConfig(**SIZES))).save_pretrained(tmp_path)
    assert load_swin(tmp_path).config == replace(OURS, padding="transformers") and caplog.messages == []


def test_a_file_with_two_of_them_is_refused(folder, tmp_path):
    tensors = load_file(folder("upernet") / "model.safetensors")
    save_file(tensors | {f"teacher.{key}": t.clone() for key, t in tensors.items()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds 2 Swin Transformers, at backbone, teacher\.backbone; give"):
        load_swin(tmp_path)


def test_a_detector_without_a_swin_is_refused(tmp_path):
    save_file({"backbone.conv1.weight": torch.ones(1), "logit_scale": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not Swin weights of .*; the keys are: backbone.conv1.weight, logit_sc"):
        load_swin(tmp_path)


def test_training_starts_from_a_detector_of_the_hub(folder, monkeypatch, tmp_path):
    name = "IDEA-Research/grounding-dino-tiny"
    model = OwlSwin(replace(TINY, image=OURS))
    with serving(FakeHub({(name, "main"): folder("grounding_dino")}), monkeypatch, tmp_path / "cache"):
        load_init(model, f"swin:{name}")
    expected = load_swin(folder("grounding_dino"))
    assert_close(model.image_encoder.state_dict(), expected.state_dict(), atol=0, rtol=0)


def test_a_swin_of_other_sizes_says_what_to_set(folder):
    with pytest.raises(ConfigError, match=r"is a Swin of embed_dim = 8, depths = .*; set these under \[image\]"):
        load_init(OwlSwin(TINY), f"swin:{folder('mm_grounding_dino')}")
