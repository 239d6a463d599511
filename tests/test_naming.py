"""Dense names of a stem's classifier, and names of boxes as a softmax."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from test_hybrid import CONFIG, randomised_network
from torch.nn.functional import normalize

from owl_swin.config import ModelConfig, SwinConfig, TextConfig
from owl_swin.errors import ConfigError, DataError
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.training.config import NamingConfig
from owl_swin.training.initial import load_init
from owl_swin.training.naming import NAME_SCALE, DenseNames, name_loss

CHANNELS = 1280  # of the last map of EfficientNet-Lite0


@pytest.fixture
def settings(tmp_path):
    """A classifier that names a cell by the largest of its first three channels; the second class is struck out."""
    weight = torch.zeros(3, CHANNELS)
    weight[:, :3] = 20 * torch.eye(3)
    save_file({"weight": weight, "bias": torch.zeros(3)}, tmp_path / "classifier.safetensors")
    (tmp_path / "names.txt").write_text("cat, house cat\n\ncar\n")
    return NamingConfig(str(tmp_path / "classifier.safetensors"), str(tmp_path / "names.txt"), 1.0, 0.0)


def test_struck_out_classes_are_not_there(settings):
    names = DenseNames(settings, OwlSwin(CONFIG))
    assert names.weight.shape == (2, CHANNELS) and names.embeds.shape == (2, 16)


def test_the_loss_is_least_where_patches_have_the_embedding_of_the_name(settings):
    names = DenseNames(settings, OwlSwin(CONFIG))
    names.embeds = normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), dim=-1)
    stem_map = torch.zeros(1, 2, 2, CHANNELS)
    stem_map[..., 0] = 1.0  # a cat everywhere
    pooled = torch.zeros(1, 2)
    cat, car = (torch.tensor(e).expand(1, 64, 2) for e in ([1.0, 0.0], [0.0, 1.0]))
    right, wrong = (names.losses(names.read(stem_map), embeds, pooled, (8, 8)).item() for embeds in (cat, car))
    assert right == pytest.approx(0, abs=1e-6) and wrong == pytest.approx(NAME_SCALE, rel=1e-3)


@pytest.mark.parametrize("lines, sentence", [("cat\ncar\n", "2 lines for a classifier of 3"), (None, "cannot read")])
def test_names_that_do_not_fit_are_refused(settings, tmp_path, lines, sentence):
    path = tmp_path / "other.txt"
    if lines:
        path.write_text(lines)
    with pytest.raises(DataError, match=sentence):
        DenseNames(NamingConfig(settings.weights, str(path)), OwlSwin(CONFIG))


def test_a_model_without_a_stem_has_nothing_to_name(settings):
    plain = ModelConfig(text=TextConfig(16, 1, 2, 8), image=SwinConfig(depths=(1, 1, 1, 1)))
    with pytest.raises(ConfigError, match="published stem; this model has none"):
        DenseNames(settings, OwlSwin(plain))


@pytest.mark.parametrize("weight, bias", [((3, 7), 3), ((3, CHANNELS), 2), ((3,), 3)])
def test_a_classifier_of_another_network_is_refused(settings, tmp_path, weight, bias):
    save_file({"weight": torch.zeros(weight), "bias": torch.zeros(bias)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=rf"expected weight \[N, {CHANNELS}\]"):
        DenseNames(NamingConfig(str(tmp_path / "other.safetensors"), settings.names), OwlSwin(CONFIG))


def test_name_loss_is_the_weighted_cross_entropy():
    cosines = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    targets = torch.tensor([[0.4, 0.0], [0.0, 1.0]])  # a guessed box is named as surely as a certain one
    assert name_loss(cosines, targets, torch.tensor([1.0, 2.0])).item() == pytest.approx(3 * math.log(2))
    assert name_loss(cosines[:0], targets[:0], torch.zeros(0)).item() == 0


def stem_change(model):
    with torch.no_grad():
        model.image_encoder.stem.network.conv_head.weight.mul_(2)


def test_a_stem_that_learns_is_read_as_it_began(settings):
    model = OwlSwin(CONFIG)
    pixels = torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    frozen, shared = DenseNames(settings, model, stem_learns=True), DenseNames(settings, model)
    assert shared.stem is None
    before = model.image_encoder.stem(pixels)[1]
    stem_change(model)
    assert not torch.allclose(model.image_encoder.stem(pixels)[1], before)
    read = frozen.own_map(pixels)
    assert read.shape == (2, 2, 3, CHANNELS) and not read.requires_grad  # half of the scenes, rounded up
    torch.testing.assert_close(read, before[:2])


def test_the_classifier_reads_the_published_stem_that_it_belongs_to(settings, tmp_path):
    network = randomised_network()
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / "stem.safetensors")
    model = OwlSwin(CONFIG)
    names = DenseNames(replace(settings, stem=str(tmp_path / "stem.safetensors"), share=1.0), model)
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    own = names.own_map(pixels)
    load_init(model, f"stem:{tmp_path / 'stem.safetensors'}")
    torch.testing.assert_close(own, model.image_encoder.stem(pixels)[1])


@pytest.mark.parametrize("share", [0, 1.1, float("nan")])
def test_a_share_of_the_scenes_is_above_0_and_at_most_1(share):
    with pytest.raises(ConfigError, match=r"naming\.share"):
        NamingConfig(share=share)


def test_names_are_learned_in_the_scenes_that_are_read(settings):
    names = DenseNames(settings, OwlSwin(CONFIG))
    said = names.read(torch.rand(1, 2, 2, CHANNELS))
    embeds, pooled = normalize(torch.randn(3, 64, 16), dim=-1), normalize(torch.randn(3, 16), dim=-1)
    expected = names.losses(said, embeds[:1], pooled[:1], (8, 8))
    assert names.losses(said, embeds, pooled, (8, 8)) == expected
