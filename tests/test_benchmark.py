"""The training benchmark: what it reports follows from what it measured."""

import json
from dataclasses import replace

import pytest
from training_data import TINY_MODEL

from owl_swin.bench import training
from owl_swin.bench.detection import benchmark_detection
from owl_swin.bench.training import benchmark_training
from owl_swin.cli.main import app
from owl_swin.config import ModelConfig, read_toml
from owl_swin.errors import ConfigError

pytestmark = pytest.mark.numeric


@pytest.fixture
def tiny_toml(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_MODEL)
    return path


@pytest.mark.parametrize("slower", [1, 3000])
def test_a_row_for_us_and_one_for_timm(tiny_toml, tmp_path, monkeypatch, slower):
    from typer.testing import CliRunner

    timed = training.seconds_of
    monkeypatch.setattr(training, "seconds_of", lambda work, device: slower * timed(work, device))

    out = tmp_path / "bench.json"
    arguments = ["bench", "train", "--model", str(tiny_toml), "--image-size", "32", "--batch-size", "2"]
    ran = CliRunner().invoke(app, [*arguments, "--rounds", "2", "--device", "cpu", "--json", str(out)])
    assert ran.exit_code == 0, ran.output
    result = json.loads(out.read_text())
    assert set(result["images_per_s"]) == set(result["gflops"]) == {"owl_swin", "timm"}
    ours, theirs = result["images_per_s"]["owl_swin"], result["images_per_s"]["timm"]
    assert result["ratio_to_timm"] == pytest.approx(ours / theirs, rel=2e-3)
    for name, share in result["share_of_matrix_rate"].items():
        assert share == pytest.approx(result["gflops"][name] / result["matrix_gflops"], rel=2e-3)
    assert result["matrix_side"] == 256 or slower == 1


def test_a_model_that_timm_has_not_is_refused(tiny_toml):
    config = read_toml(tiny_toml, ModelConfig)
    hybrid = replace(config, image=replace(config.image, stem="tf_efficientnet_lite0", depths=(0, 0, 2, 2)))
    with pytest.raises(ConfigError, match="no Swin with the stem tf_efficientnet_lite0"):
        benchmark_training(hybrid)


def test_a_system_that_is_none_is_named_with_those_that_are():
    with pytest.raises(ConfigError, match=r"no system is called 'OWLv3'; known are Swin-T owl_swin, .*OWLv2 B/16"):
        benchmark_detection(systems=["OWLv2 B/16", "OWLv3"])


@pytest.mark.parametrize("change", [{"rounds": 0}, {"batch_size": 0}, {"precision": "float16"}])
def test_a_measurement_that_means_nothing_is_refused(tiny_toml, change):
    with pytest.raises(ConfigError):
        benchmark_training(read_toml(tiny_toml, ModelConfig), **change)
