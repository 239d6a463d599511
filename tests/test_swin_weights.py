"""Published Swin weights, under every library's names, read into our encoder."""

import json
import re
from dataclasses import replace

import huggingface_hub
import pytest
import timm
import timm.models.swin_transformer
import timm.models.swin_transformer_v2
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from swin_libraries import LIBRARIES, NARROW, encoder_from, randomise
from torch.testing import assert_close

from owl_swin.config import SwinConfig
from owl_swin.errors import CheckpointError, ConfigError
from owl_swin.families import swin_weights
from owl_swin.families.swin_weights import SWIN_SIZES, convert_state_dict, infer_config, load_swin, swin_config

TINY = SwinConfig(embed_dim=16, depths=(2, 1), num_heads=(1, 2), window_size=3)


def tiny(library):
    return randomise(LIBRARIES[library][0](TINY, (48, 48)))


def microsoft_tensors():
    """timm's model under the names, and with the buffers, of Microsoft's own files."""
    tensors = {
        key.replace("layers.1.downsample", "layers.0.downsample"): t for key, t in tiny("timm").state_dict().items()
    }
    tensors = {key.replace("head.fc", "head"): tensor for key, tensor in tensors.items()}
    buffers = {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(9, 9, dtype=torch.long)}
    return tensors | buffers | {"layers.0.blocks.1.attn_mask": torch.zeros(16, 9, 9)}


def save_tensors(tensors, folder):
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors")


def classifier():
    model = transformers.SwinForImageClassification(tiny("transformers").config)
    model.swin.load_state_dict(tiny("transformers").state_dict())
    return model


LAYOUTS = {
    "torchvision": lambda folder: save_tensors(tiny("torchvision").state_dict(), folder),
    "timm": lambda folder: save_tensors(tiny("timm").state_dict(), folder),
    "timm as Microsoft published it": lambda folder: save_tensors(microsoft_tensors(), folder),
    "transformers in memory": lambda folder: save_tensors(tiny("transformers").state_dict(), folder),
    "transformers on disk": lambda folder: tiny("transformers").save_pretrained(folder),
    "transformers with classifier": lambda folder: classifier().save_pretrained(folder),
    "transformers in memory with classifier": lambda folder: save_tensors(classifier().state_dict(), folder),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_every_layout_load(layout, tmp_path):
    library = layout.split()[0]
    LAYOUTS[layout](tmp_path)
    expected = encoder_from(tiny(library).state_dict())
    for source in (tmp_path, str(tmp_path), tmp_path / "model.safetensors"):
        encoder = load_swin(source)
        assert encoder.config == replace(TINY, padding=library) and not encoder.training
        assert_close(dict(encoder.state_dict()), dict(expected.state_dict()), atol=0, rtol=0)


def test_files_on_disk_still_have_the_names_of_transformers_before_5(tmp_path):
    tiny("transformers").save_pretrained(tmp_path)
    with open(tmp_path / "model.safetensors", "rb") as file:
        keys = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert "encoder.layers.0.blocks.0.attention.self.query.weight" in keys


def test_our_padding_and_drop_path_can_be_asked_for(tmp_path):
    LAYOUTS["torchvision"](tmp_path)
    encoder = load_swin(tmp_path, padding="masked", drop_path_rate=0.2)
    assert encoder.config == replace(TINY, padding="masked", drop_path_rate=0.2)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in encoder.parameters())


@pytest.mark.parametrize("library", LIBRARIES)
def test_half_precision_files_become_float32(library, tmp_path):
    save_tensors({key: tensor.half() for key, tensor in tiny(library).state_dict().items()}, tmp_path)
    assert {p.dtype for p in load_swin(tmp_path).parameters()} == {torch.float32}


def without(key):
    return lambda tensors: {k: t for k, t in tensors.items() if k != key}


def having(key, *shape, fill=0.0):
    return lambda tensors: tensors | {key: torch.full(shape, fill)}


@pytest.mark.parametrize(
    "library, damage, message",
    [
        ("torchvision", lambda tensors: {}, "not Swin weights .* the keys are: nothing"),
        ("torchvision", lambda tensors: {"conv1.weight": torch.ones(2)}, "not Swin weights .*: conv1.weight"),
        ("torchvision", without("features.1.0.mlp.3.bias"), "missing: features.1.0.mlp.3.bias$"),
        (
            "torchvision",
            without("features.3.0.attn.relative_position_bias_table"),
            "missing: features.3.0.attn.relative",
        ),
        ("timm", without("norm.weight"), "missing: norm.weight$"),
        ("transformers", without("encoder.layers.1.blocks.0.attention.k_proj.bias"), "missing: .*1.*k_proj.bias$"),
        ("timm", having("absolute_pos_embed", 1, 2), "unexpected: absolute_pos_embed$"),
        ("transformers", having("embeddings.position_embeddings", 1, 2), "unexpected: embeddings.position_embeddings$"),
        ("timm", having("layers.5.blocks.0.norm1.weight", 2), "whole blocks .* are missing"),
        ("timm", having("norm.weight", 5), r"of another shape: norm.weight \[5\] instead of \[32\]$"),
        (
            "transformers",
            having("encoder.layers.0.blocks.0.attention.q_proj.weight", 4, 4),
            r"\[4, 4\] instead of \[16, 16\]",
        ),
        ("timm", having("patch_embed.proj.weight", 16, 1, 4, 4), "3 colours, got 4x4 with 1$"),
        ("timm", having("patch_embed.proj.weight", 16), r"patch_embed.proj.weight must have 4 axes, got shape \[16\]$"),
        ("timm", having("layers.1.blocks.0.attn.relative_position_bias_table", 9, 2), r"different sizes \[2, 3\]"),
        ("timm", having("layers.1.blocks.0.attn.relative_position_bias_table", 25, 3), "3 does not divide 32 channels"),
        ("timm", having("norm.weight", 32, fill=float("nan")), "not finite: norm.weight$"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_one_sentence(library, damage, message, tmp_path):
    save_tensors(damage(tiny(library).state_dict()), tmp_path)
    with pytest.raises(CheckpointError, match=message) as refusal:
        load_swin(tmp_path)
    assert str(refusal.value).startswith(f"{tmp_path}: ") and "\n" not in str(refusal.value)


def test_weights_of_another_size_name_the_first_few_keys():
    with pytest.raises(CheckpointError, match=r"missing: .*, .*, .* and \d+ more; of another shape: .* and \d+ more$"):
        convert_state_dict(tiny("torchvision").state_dict(), NARROW)


@pytest.mark.parametrize(
    "build",
    [
        lambda: torchvision.models.swin_v2_t(),
        lambda: timm.models.swin_transformer_v2.SwinTransformerV2(),
        lambda: transformers.Swinv2Model(transformers.Swinv2Config()),
    ],
    ids=LIBRARIES,
)
def test_swin_v2_is_refused(build):
    with torch.device("meta"):
        keys = build().state_dict().keys()
    with pytest.raises(CheckpointError, match="Swin Transformer V2, another architecture"):
        infer_config(dict.fromkeys(keys, torch.zeros(1)))


@pytest.mark.parametrize(
    "source, content, message",
    [
        ("weights.pth", b"\x80\x04.", "convert them to safetensors"),
        ("weights.pt", b"PK", "convert them to safetensors"),
        ("weights.bin", b"", "convert them to safetensors"),
        ("weights.bin", None, "no such file; give"),
        ("weights.safetensors", b"", "not a whole safetensors file"),
        ("weights.safetensors", b"\xff" * 100, "not a whole safetensors file"),
        ("weights.safetensors", None, "no such file; give"),
        ("", None, "holds no weights; a model's folder has model.safetensors"),
        ("nowhere", None, "no such file; give"),
    ],
)
def test_files_that_cannot_be_read_are_refused(source, content, message, tmp_path):
    if content is not None:
        (tmp_path / source).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_swin(tmp_path / source)


@pytest.mark.parametrize(
    "name, message",
    [
        ("", "no such file; give"),
        ("swin_t", "no such file; give"),
        ("a/b/c", "no such file; give"),
        ("a\0b", "no such file; give"),
        ("x" * 5000, "no such file; give"),
        ("timm/swinv2_tiny_window8_256", "Swin Transformer V2"),
        ("microsoft/swinv2-tiny-patch4-window8-256", "Swin Transformer V2"),
        ("torchvision/swin_v2_t", "Swin Transformer V2"),
        ("timm/resnet50", "is no Swin Transformer"),
        ("torchvision/vit_b_16", "is no Swin Transformer"),
        ("torchvision/swin_x", "torchvision cannot provide these weights"),
        ("timm/swin_nano", "timm cannot provide these weights"),
    ],
)
def test_names_that_mean_no_swin_are_refused(name, message):
    with pytest.raises(CheckpointError, match=message):
        load_swin(name)


def fake_libraries(monkeypatch, answer):
    """What torchvision and timm would download is made by ``answer``."""
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: answer("torchvision"))
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: answer("timm"))


def fake_hub(monkeypatch, folder):
    """Every model of the hub is that of ``folder``."""
    monkeypatch.setattr(swin_weights, "fetch_snapshot", lambda name, **settings: folder)


NAMES = {
    "torchvision": "torchvision/swin_t",
    "timm": "timm/swin_tiny_patch4_window7_224.ms_in1k",
    "transformers": "microsoft/swin-tiny-patch4-window7-224",
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_name_is_loaded_through_its_library(library, monkeypatch, tmp_path):
    fake_libraries(monkeypatch, tiny)
    tiny("transformers").save_pretrained(tmp_path)
    fake_hub(monkeypatch, tmp_path)
    encoder = load_swin(NAMES[library])
    assert encoder.config == replace(TINY, padding=library)
    assert_close(
        dict(encoder.state_dict()), dict(encoder_from(tiny(library).state_dict()).state_dict()), atol=0, rtol=0
    )


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_failed_download_is_one_sentence(library, monkeypatch):
    def answer(library):
        raise OSError("no route to host\nand a long story")

    fake_libraries(monkeypatch, answer)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **settings: answer("transformers"))
    reason = (
        "cannot be fetched from the hub" if library == "transformers" else f"{library} cannot provide these weights"
    )
    with pytest.raises(CheckpointError, match=f"{reason} .no route to host.") as failure:
        load_swin(NAMES[library])
    assert "\n" not in str(failure.value)


def test_a_hub_model_of_another_kind_is_refused(monkeypatch, tmp_path):
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    fake_hub(monkeypatch, tmp_path)
    with pytest.raises(CheckpointError, match=r"google/vit-base-patch16-224: not Swin weights of .* the keys are"):
        load_swin("google/vit-base-patch16-224")


def test_an_incomplete_hub_model_is_refused(monkeypatch, tmp_path):
    tiny("transformers").save_pretrained(tmp_path)
    save_tensors(without("layernorm.bias")(tiny("transformers").state_dict()), tmp_path)
    fake_hub(monkeypatch, tmp_path)
    with pytest.raises(CheckpointError, match=r"missing: layernorm\.bias$"):
        load_swin(NAMES["transformers"])


def test_pickles_on_the_hub_are_not_read(monkeypatch, tmp_path):
    tiny("transformers").config.save_pretrained(tmp_path)
    torch.save(tiny("transformers").state_dict(), tmp_path / "pytorch_model.bin")
    fake_hub(monkeypatch, tmp_path)
    with pytest.raises(CheckpointError, match=r"^microsoft/.* weights are pickled .pytorch_model.bin.*save_pretrained"):
        load_swin(NAMES["transformers"])


@pytest.mark.parametrize(
    "name, size, window, padding",
    [
        ("T", "T", 7, "masked"),
        ("torchvision/swin_b", "B", 7, "torchvision"),
        ("timm/swin_small_patch4_window7_224.ms_in22k", "S", 7, "timm"),
        ("timm/swin_large_patch4_window12_384.ms_in22k_ft_in1k", "L", 12, "timm"),
        ("microsoft/swin-base-patch4-window12-384", "B", 12, "transformers"),
    ],
)
def test_swin_config_knows_sizes_and_published_names(name, size, window, padding):
    assert swin_config(name) == replace(SWIN_SIZES[size], window_size=window, padding=padding)


@pytest.mark.parametrize("name", ["", "XL", "tiny", "timm/swin_s3_tiny_224", "timm/swinv2_tiny_window8_256", "a/b"])
def test_swin_config_refuses_other_names(name):
    with pytest.raises(ConfigError, match=re.escape(f"{name}: no Swin size; give T, S, B, L")):
        swin_config(name)
