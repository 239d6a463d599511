"""`task = "probe"`: a linear classifier and nearest neighbours on features of a frozen model."""

import json

import pytest
import torch
from safetensors.torch import load_file
from training_data import to_toml, train_config, write_captions, write_labelled, write_model
from typer.testing import CliRunner

from owl_swin.cli.main import app
from owl_swin.errors import ConfigError, DataError, OwlSwinError
from owl_swin.evaluation import probe
from owl_swin.evaluation.probe import Labelled, fit_linear, neighbour_votes, run_probe
from owl_swin.training.loop import train


def clusters(n, seed, spread=0.3):
    """Features around three far points, in places and units that a fit must not depend on."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    labels = torch.arange(n) % 3
    features = centres[labels] + spread * torch.randn(n, 2, generator=generator)
    return Labelled(features * torch.tensor([100.0, 0.01]) + 50, labels)


def test_a_linear_layer_tells_clusters_apart():
    weight, bias, decay = fit_linear(clusters(300, 0), 3, (1e-4, 1e3))
    tested = clusters(90, 1)
    assert decay == 1e-4  # the other one learns nothing
    assert ((tested.features @ weight.T + bias).argmax(1) == tested.labels).float().mean() > 0.97


def test_the_fit_is_a_minimum_of_the_regression():
    data = clusters(60, 0, spread=2.0)
    weight, bias, _ = fit_linear(data, 3, (0.01,))
    std = data.features.std(0, correction=0)
    scaled = (data.features - data.features.mean(0)) / std
    w = (weight * std).requires_grad_()
    b = (bias + weight @ data.features.mean(0)).requires_grad_()
    loss = torch.nn.functional.cross_entropy(scaled @ w.T + b, data.labels) + 0.005 * w.square().sum()
    loss.backward()
    assert w.grad.abs().max() < 1e-3
    assert b.grad.abs().max() < 1e-3


@pytest.mark.parametrize("neighbours, expected", [(1, 0), (3, 1), (50, 1)])
def test_neighbours_vote_by_their_cosine(neighbours, expected):
    known = Labelled(torch.tensor([[1.0, 0.0], [10.0, 2.0], [5.0, 1.0]]), torch.tensor([0, 1, 1]))
    votes = neighbour_votes(known, torch.tensor([[7.0, 0.1]]), neighbours, 0.07)
    assert votes.argmax().item() == expected
    cosines = torch.nn.functional.cosine_similarity(known.features, torch.tensor([[7.0, 0.1]]))
    own = ((cosines - cosines.max()) / 0.07).exp()
    if neighbours > 1:
        assert votes[0].tolist() == pytest.approx([own[0].item(), (own[1] + own[2]).item()], rel=1e-4)


def settings(folder, data, **changes):
    return {
        "task": "probe",
        **write_model(folder),
        "output": str(folder / "run"),
        "batch_size": 8,
        "image_size": 32,
        "data": data,
        "probe": {"test": "", "neighbours": 3},
    } | changes


@pytest.fixture
def labelled(tmp_path):
    path = write_labelled(tmp_path / "set", 40)
    return {"kind": "labelled", "path": str(path), "images": str(path.parent / "images"), "size": 32}


def test_a_run_writes_its_table_and_keeps_its_features(labelled, tmp_path, monkeypatch):
    toml = tmp_path / "probe.toml"
    toml.write_text(to_toml(settings(tmp_path, [labelled])))
    result = CliRunner().invoke(app, ["train", str(toml)], catch_exceptions=False)
    assert result.stdout == f"{tmp_path / 'run'}\n"
    assert "linear top-1" in result.stderr
    (report,) = json.loads((tmp_path / "run" / "probe.json").read_text())
    assert report["n_train"] + report["n_images"] == 40
    assert report["n_images"] >= 4
    assert report["annotations"] == "set/labelled.json"
    low, high = report["ci95"]
    assert low <= report["top1"] <= high
    assert report["top1"] <= report["top5"]
    layers = load_file(tmp_path / "run" / "probe.safetensors")
    assert layers["0.weight"].shape[0] == len(layers["0.bias"]) == report["n_classes"]

    def not_again(*_):
        raise AssertionError("features are made once")

    monkeypatch.setattr(probe, "_encoded", not_again)
    again = run_probe(train_config(settings(tmp_path, [labelled])))
    assert again[0].to_json() == report
    with pytest.raises(AssertionError, match="made once"):
        run_probe(train_config(settings(tmp_path, [labelled], image_size=64)))


def test_pictures_that_are_learned_from_are_not_tested(labelled, tmp_path):
    with pytest.raises(ConfigError, match="the very pictures that are learned from"):
        run_probe(train_config(settings(tmp_path, [labelled], probe={"test": "val"})))


def test_what_could_not_be_read_of_the_test_is_said(labelled, tmp_path):
    path = write_labelled(tmp_path / "other", 10)
    next((tmp_path / "other" / "images").iterdir()).write_bytes(b"no picture")
    other = {**labelled, "path": str(path), "images": str(path.parent / "images")}
    (report,) = run_probe(train_config(settings(tmp_path, [labelled], probe={"test_data": [other]})))
    assert report["n_images"] == 9 and len(report["broken"]) == 1


def test_figures_are_those_of_the_written_classifier(labelled, tmp_path):
    config = train_config(settings(tmp_path, [labelled], probe={"test": "", "features": "last"}))
    (report,) = run_probe(config)
    features = load_file(tmp_path / "run" / "features.safetensors")
    layers = load_file(tmp_path / "run" / "probe.safetensors")
    _, tested, _ = probe._parts(config.data[0], None)
    logits = features["1"].float() @ layers["0.weight"].T + layers["0.bias"]
    assert 100 * (logits.argmax(1) == tested.labels).float().mean().item() == pytest.approx(report["top1"], abs=0.01)


@pytest.mark.parametrize(
    "change, error, sentence",
    [
        ({"probe": {"test": "train"}}, ConfigError, "also learned from"),
        ({"probe": {"test_data": 3}}, ConfigError, r"probe\.test_data"),
        ({"probe": {"features": "all"}}, ConfigError, "features must be one of patches, last"),
        ({"probe": {"neighbours": 0}}, ConfigError, "neighbours must be at least 1"),
        ({"probe": {"weight_decays": []}}, ConfigError, "weight_decays must be numbers"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change, error, sentence, labelled, tmp_path):
    with pytest.raises(error, match=sentence):
        run_probe(train_config(settings(tmp_path, [labelled], **change)))


def test_another_set_can_be_what_is_tested(labelled, tmp_path):
    other = write_labelled(tmp_path / "other", 9)
    content = json.loads(other.read_text())
    content["images"][0]["label"] = "never learned"
    other.write_text(json.dumps(content))
    test = {"kind": "labelled", "path": str(other), "images": str(other.parent / "images"), "size": 32}
    (report,) = run_probe(train_config(settings(tmp_path, [labelled], probe={"test_data": [test]})))
    assert report["n_train"] == 40
    assert report["n_images"] == 8
    assert report["notes"] == ["pictures of classes that are not learned, left out: 1"]
    with pytest.raises(ConfigError, match="one set for each of the 1 of data, got 2"):
        train_config(settings(tmp_path, [labelled], probe={"test_data": [test] * 2}))


def test_sets_that_have_no_classes_or_too_few_pictures_are_refused(labelled, tmp_path):
    captions = {"kind": "captions", "path": str(write_captions(tmp_path / "captions")), "size": 32}
    with pytest.raises(ConfigError, match="needs pictures with classes"):
        run_probe(train_config(settings(tmp_path, [captions])))
    with pytest.raises(DataError, match="so none can be kept back"):
        run_probe(train_config(settings(tmp_path, [labelled | {"max_per_class": 2}])))


def test_a_probe_has_no_steps(labelled, tmp_path):
    toml = tmp_path / "probe.toml"
    toml.write_text(to_toml(settings(tmp_path, [labelled])))
    result = CliRunner().invoke(app, ["train", str(toml), "--stop-after", "3"])
    assert isinstance(result.exception, OwlSwinError)
    with pytest.raises(ConfigError, match="run_probe"):
        train(train_config(settings(tmp_path, [labelled])))
