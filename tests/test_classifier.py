"""Published Swin classifiers of transformers, timm and torchvision, with their heads."""

import json

import pytest
import timm
import torch
import torchvision
import transformers
from PIL import Image
from safetensors.torch import save_file
from swin_libraries import random_pixels, randomise
from torch.testing import assert_close

from owl_swin import load_classifier, load_swin
from owl_swin.errors import CheckpointError
from owl_swin.families.picture_settings import PictureSettings, of_timm, of_torchvision, of_transformers

SIZES = {"embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4}


def of_library(library, classes=5):
    if library == "transformers":
        config = transformers.SwinConfig(**SIZES, num_labels=classes, image_size=32)
        return randomise(transformers.SwinForImageClassification(config))
    if library == "timm":
        return randomise(timm.models.swin_transformer.SwinTransformer(img_size=32, num_classes=classes, **SIZES))
    return randomise(torchvision.models.SwinTransformer([4, 4], 8, [2, 2], [1, 2], [4, 4], num_classes=classes))


@pytest.mark.parametrize("library", ["transformers", "timm", "torchvision"])
def test_logits_are_the_library_s(library, tmp_path):
    model = of_library(library)
    tensors = model.state_dict()
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "model.safetensors")
    pixels = random_pixels(32, 32, batch=3)
    with torch.no_grad():
        expected = model(pixels)
        expected = expected.logits if library == "transformers" else expected
        found = load_classifier(tmp_path / "model.safetensors", device="cpu")(pixels)
    assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("hw", [(48, 32), (70, 75)])
def test_other_sizes_than_the_square_too(hw, tmp_path):
    model = of_library("transformers")
    model.save_pretrained(tmp_path)
    pixels = random_pixels(*hw)
    with torch.no_grad():
        expected = model(pixels, interpolate_pos_encoding=True).logits
        assert_close(load_classifier(tmp_path, device="cpu")(pixels), expected, rtol=0, atol=1e-4)


def test_timm_s_older_head_is_read(tmp_path):
    model = of_library("timm")
    tensors = {key.replace("head.fc.", "head."): value for key, value in model.state_dict().items()}
    save_file(tensors, tmp_path / "old.safetensors")
    pixels = random_pixels(32, 32)
    with torch.no_grad():
        found = load_classifier(tmp_path / "old.safetensors", device="cpu")(pixels)
        assert_close(found, model(pixels), rtol=0, atol=1e-4)


def test_names_come_from_the_files(tmp_path):
    model = of_library("transformers", 3)
    model.config.id2label = {0: "tench", 1: "Möwe", 2: "a, b"}
    model.save_pretrained(tmp_path)
    classifier = load_classifier(tmp_path, device="cpu")
    assert classifier.names == ("tench", "Möwe", "a, b")
    found = classifier.classify(Image.new("RGB", (1, 4000), "red"))
    assert float(found.probabilities.sum()) == pytest.approx(1)
    assert {name for name, _ in found.ranked()} == set(classifier.names)


def test_a_folder_of_timm_says_names_and_frame(tmp_path):
    model = of_library("timm", 2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "swin_tiny_patch4_window7_224",
        "label_names": ["n01", "n02"],
        "label_descriptions": {"n01": "tench"},
        "pretrained_cfg": {"input_size": [3, 32, 32], "crop_pct": 0.5, "interpolation": "bilinear", "mean": [0, 0, 0]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    classifier = load_classifier(tmp_path, device="cpu")
    assert classifier.names == ("tench", "n02")
    assert classifier.settings.cropped == 0.5
    config["label_names"].append("n03")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="has 2 classes and 3 names"):
        load_classifier(tmp_path)


@pytest.mark.parametrize(
    "content", ["pixels", 5, {"size": "large"}, {"size": {"height": 0, "width": 3}}, {"resample": 99}]
)
def test_settings_that_make_no_sense_are_one_sentence(content, tmp_path):
    of_library("transformers").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as failure:
        load_classifier(tmp_path)
    assert "\n" not in str(failure.value)


def test_what_names_no_classes_is_refused(tmp_path):
    model = of_library("transformers")
    model.swin.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="without the layer that names classes"):
        load_classifier(tmp_path)
    tensors = model.state_dict()
    tensors["classifier.bias"] = torch.zeros(3)
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"of another shape: head\.bias"):
        load_classifier(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        load_classifier("swin_huge_patch4")


@pytest.mark.parametrize(
    "name, asked",
    [
        ("swin_large_patch4_window7_224_22kto1k", "swin_large_patch4_window7_224.ms_in22k_ft_in1k"),
        ("swin_base_patch4_window12_384_22k", "swin_base_patch4_window12_384.ms_in22k"),
        ("swin_tiny_patch4_window7_224", "swin_tiny_patch4_window7_224.ms_in1k"),
        ("timm/swin_tiny_patch4_window7_224", "swin_tiny_patch4_window7_224"),
    ],
)
def test_the_authors_names_mean_timm_s(name, asked, monkeypatch):
    seen = []

    def create_model(name, pretrained):
        seen.append(name)
        return of_library("timm", 1000)

    monkeypatch.setattr(timm, "create_model", create_model)
    classifier = load_classifier(name, device="cpu")
    assert seen == [asked]
    assert classifier.names[0] == "tench, Tinca tinca"
    assert (classifier.settings.cropped, classifier.settings.size_hw[0]) in ((0.9, 224), (1.0, 384))
    load_swin(name)
    assert seen == [asked] * 2


def test_torchvision_s_names_and_frame(monkeypatch):
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: of_library("torchvision", 1000))
    classifier = load_classifier("torchvision/swin_t", device="cpu")
    assert classifier.names[0] == "tench"
    assert classifier.settings.size_hw == (224, 224)
    assert classifier.settings.cropped == 224 / 232


# --- How pictures are shown ----------------------------------------------------------------------------------------


def gradient(width, height):
    """A smooth picture, where half a pixel here or there makes little difference."""
    x, y = torch.meshgrid(torch.linspace(0, 255, width), torch.linspace(0, 255, height), indexing="xy")
    return Image.fromarray(torch.stack([x, y, (x + y) / 2], -1).byte().numpy())


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (64, 64), (300, 40)])
def test_pictures_are_shown_as_each_library_shows_them(size):
    picture = gradient(*size)
    transformers_s = transformers.ViTImageProcessorPil(size={"height": 32, "width": 48}, resample=3)
    expected = transformers_s(picture, return_tensors="pt")["pixel_values"][0]
    config = {"size": {"height": 32, "width": 48}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    assert_close(of_transformers(config, 1).pixels(picture), expected, rtol=0, atol=1e-5)
    torchvision_s = torchvision.transforms._presets.ImageClassification(crop_size=32, resize_size=40)
    found = of_torchvision(torchvision_s).pixels(picture)
    assert (found - torchvision_s(picture)).abs().mean() < 0.1
    timm_s = timm.data.create_transform((3, 32, 32), interpolation="bicubic", crop_pct=0.9)
    found = of_timm({"input_size": (3, 32, 32), "crop_pct": 0.9, "interpolation": "bicubic"}).pixels(picture)
    assert (found - timm_s(picture)).abs().mean() < 0.1


def test_a_shortest_edge_is_a_crop():
    config = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
    assert of_transformers(config, 1) == PictureSettings((32, 32), 0.8)
    assert of_transformers({}, 384) == PictureSettings((384, 384))
    assert of_transformers({"do_normalize": False}, 8).mean == (0, 0, 0)
