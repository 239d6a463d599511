"""Settings from TOML: what is right comes in frozen, what is wrong gets one sentence."""

import dataclasses
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TINY

from owl_swin.config import (
    CalibrationConfig,
    HeadsConfig,
    ModelConfig,
    SwinConfig,
    TextConfig,
    from_mapping,
    read_toml,
    to_mapping,
)
from owl_swin.errors import ConfigError

MODEL_FILES = sorted(Path(__file__).parent.parent.glob("configs/model/*.toml"))


@dataclasses.dataclass(frozen=True)
class Part:
    kind: str
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Whole:
    name: str = "x"
    count: int = 1
    rate: float = 0.5
    on: bool = False
    limit: int | None = None
    sizes: tuple[int, ...] = ()
    parts: tuple[Part, ...] = ()
    shares: dict[str, float] = dataclasses.field(default_factory=dict)


def test_an_empty_file_is_all_defaults(tmp_path):
    path = tmp_path / "empty.toml"
    path.write_text("")
    assert read_toml(path, ModelConfig) == ModelConfig()


def test_values_are_read_into_their_kinds():
    config = from_mapping(
        Whole, {"rate": 2, "limit": 3, "sizes": [1, 2], "parts": [{"kind": "a"}], "shares": {"a": 1, "b": 0.5}}
    )
    assert config == Whole(rate=2.0, limit=3, sizes=(1, 2), parts=(Part("a"),), shares={"a": 1.0, "b": 0.5})
    assert isinstance(config.rate, float)
    assert from_mapping(Whole, {"limit": None}).limit is None


@pytest.mark.parametrize("config", [ModelConfig(), TINY])
def test_plain_values_and_back_are_the_same_config(config):
    assert from_mapping(ModelConfig, to_mapping(config)) == config


@pytest.mark.parametrize("path", [p for p in MODEL_FILES if not p.stem.endswith("_card")], ids=lambda p: p.stem)
def test_every_model_file_that_ships_can_be_read(path):
    assert read_toml(path, ModelConfig).name


def test_defaults_are_swin_t():
    config = SwinConfig()
    assert [config.stage_dim(stage) for stage in range(4)] == [96, 192, 384, 768]
    assert [config.stage_stride(stage) for stage in range(4)] == [4, 8, 16, 32]


def test_a_config_cannot_be_edited():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().embed_dim = 3


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("embed_dimm = 3", "unknown key 'embed_dimm'; did you mean 'embed_dim'?"),
        ("[image]\ndepth = [2, 2]", "unknown key 'image.depth'; did you mean 'image.depths'?"),
        ("[heads]\nzzz = 1", "unknown key 'heads.zzz'; known are blocks, box_form, stages, stride, upsample, width"),
        ("embed_dim = '512'", "'embed_dim' must be int, got '512'"),
        ("embed_dim = 5.5", "'embed_dim' must be int, got 5.5"),
        ("embed_dim = true", "'embed_dim' must be int, got True"),
        ("name = 3", "'name' must be str, got 3"),
        ("image = 3", "'image' must be a table, got 3"),
        ("[image]\nmlp_ratio = 'x'", "'image.mlp_ratio' must be float, got 'x'"),
        ("[image]\nmlp_ratio = true", "'image.mlp_ratio' must be float, got True"),
        ("[image]\ndepths = 2", "'image.depths' must be a list, got 2"),
        ("[image]\ndepths = [2, '2']", "'image.depths[1]' must be int, got '2'"),
        ("[image]\nembed_dim = 97", "image.num_heads: 3 does not divide 97 channels"),
        ("image_size = 5", "image_size must be at least 32 pixels, got 5"),
        ("embed_dim = ", "not a TOML file"),
        ("embed_dim = 1\nembed_dim = 2", "not a TOML file"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path, text, sentence):
    path = tmp_path / "model.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(f"{path}: {sentence}")) as error:
        read_toml(path, ModelConfig)
    assert str(error.value).count(str(path)) == 1


@pytest.mark.parametrize(
    "mapping, sentence",
    [
        ({"parts": [{"weight": 1}]}, "missing 1 required positional argument: 'kind'"),
        ({"parts": [3]}, "'parts[0]' must be a table, got 3"),
        ({"shares": [1]}, "'shares' must be a table"),
        ({"shares": {"a": "x"}}, "'shares.a' must be float"),
        ({"on": 1}, "'on' must be bool, got 1"),
        ({"limit": "x"}, "'limit' must be int"),
        ([], "'the file' must be a table, got []"),
    ],
)
def test_wrong_values_are_named_by_their_key(mapping, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        from_mapping(Whole, mapping)


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("missing.toml", None, "cannot read this configuration file (No such file"),
        ("", None, "cannot read this configuration file (Is a directory"),
        ("nul\0.toml", None, "null"),
        ("bytes.toml", b"\xff\xfe\x00", "not a TOML file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        read_toml(tmp_path / name, ModelConfig)


@pytest.mark.parametrize(
    "config, change, sentence",
    [
        (SwinConfig(), {"depths": ()}, "one number a stage"),
        (SwinConfig(), {"depths": (2, 2)}, "one number a stage"),
        (SwinConfig(), {"depths": (2, 2, 0, 2)}, "at least 1"),
        (SwinConfig(), {"num_heads": (3, 6, 12, 0)}, "0 does not divide 768"),
        (SwinConfig(), {"num_heads": (3, 6, 12, 25)}, "25 does not divide 768"),
        (SwinConfig(), {"embed_dim": 0}, "at least 1"),
        (SwinConfig(), {"window_size": 0}, "at least 1"),
        (SwinConfig(), {"patch_size": 0}, "at least 1"),
        (SwinConfig(), {"mlp_ratio": -1.0}, "must be positive"),
        (SwinConfig(), {"norm_eps": math.nan}, "must be positive"),
        (SwinConfig(), {"drop_path_rate": 1.0}, r"must be in \[0, 1\)"),
        (SwinConfig(), {"drop_path_rate": math.nan}, r"must be in \[0, 1\)"),
        (
            SwinConfig(),
            {"padding": "reflect"},
            "must be one of masked, torchvision, timm, transformers, .*, got 'reflect'",
        ),
        (TextConfig(), {"heads": 0}, "at least 1"),
        (TextConfig(), {"layers": -1}, "at least 1"),
        (TextConfig(), {"width": 0}, "at least 1"),
        (TextConfig(), {"vocab_size": 0}, "at least 1"),
        (TextConfig(), {"heads": 7}, "7 does not divide text.width 512"),
        (TextConfig(), {"context_length": 2}, "at least 3"),
        (HeadsConfig(), {"width": 0}, "at least 1"),
        (HeadsConfig(), {"stages": ()}, "counted from 1"),
        (HeadsConfig(), {"stages": (0, 4)}, "counted from 1"),
        (HeadsConfig(), {"box_form": "polar"}, "must be one of patch, owl, got 'polar'"),
        (ModelConfig(), {"heads": HeadsConfig(stages=(3, 5))}, "the encoder has 4 stages"),
        (HeadsConfig(), {"blocks": -1}, "heads.blocks must not be negative, got -1"),
        (ModelConfig(), {"heads": HeadsConfig(stride=8)}, r"one of heads.stages \[16, 32\], got 8"),
        (ModelConfig(), {"embed_dim": 0}, "at least 1"),
        (ModelConfig(), {"image_size": 31}, "at least 32"),
    ],
)
def test_settings_that_make_no_model_are_refused(config, change, sentence):
    with pytest.raises(ConfigError, match=sentence):
        replace(config, **change)


def test_a_byte_order_mark_before_the_toml_is_read_over(tmp_path):
    path = tmp_path / "model.toml"
    path.write_text('\ufeffname = "marked"\n', encoding="utf-8")
    assert read_toml(path, ModelConfig).name == "marked"


def test_scores_of_maps_are_calibrated_on_their_own():
    held = to_mapping(CalibrationConfig(text_scale=2.0, map_text_scale=0.5, map_text_bias=-1.0, map_exemplar_bias=3.0))
    read = from_mapping(CalibrationConfig, held)
    assert read.of_maps == CalibrationConfig(0.5, -1.0, 1.0, 3.0)
    old = {name: value for name, value in held.items() if not name.startswith("map_")}  # as files had it
    assert from_mapping(CalibrationConfig, old).of_maps == CalibrationConfig()
    with pytest.raises(ConfigError, match=r"calibration\.map_exemplar_scale must be a positive number, got -1\.0"):
        CalibrationConfig(map_exemplar_scale=-1.0)
    with pytest.raises(ConfigError, match=r"calibration\.text_bias must be a finite number, got nan"):
        CalibrationConfig(text_bias=float("nan"))
