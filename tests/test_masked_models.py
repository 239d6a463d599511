"""A model with a mask branch on its way: saved, rounded, exported, printed."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import TINY, make_tiny_model
from picture_files import noise
from test_cli import owl_swin  # noqa: F401
from typer.testing import CliRunner

from owl_swin.cli.main import app
from owl_swin.config import MasksConfig
from owl_swin.detector import Detector
from owl_swin.errors import CheckpointError, QueryError
from owl_swin.families import of_module
from owl_swin.models.masks import mask_logits
from owl_swin.runtimes import export as exporting
from owl_swin.runtimes.export import export
from owl_swin.runtimes.torch import compiled

ASKED = {"queries": ["a cat"], "threshold": 0.3, "top_k": 10, "masks": True}


@pytest.fixture(scope="module")
def folder(masked_detector, tmp_path_factory):
    return masked_detector.save_pretrained(tmp_path_factory.mktemp("masked") / "whole")


def test_a_saved_model_has_the_same_masks(masked_detector, folder):
    again = Detector.from_pretrained(folder, device="cpu")
    assert again.spec.has_masks and asdict(again.model.config.masks) == asdict(masked_detector.model.config.masks)
    found = again.detect(noise(60, 90), **ASKED)
    assert len(found) and found == masked_detector.detect(noise(60, 90), **ASKED)


@pytest.mark.parametrize("form", ["int8", "bfloat16"])
def test_masks_of_rounded_weights_are_nearly_the_same(masked_detector, tmp_path, form):
    if form == "int8":
        again = Detector.from_pretrained(masked_detector.save_pretrained(tmp_path, int8=True), device="cpu")
    else:
        again = masked_detector.to(dtype=form)
    encoded = [one.encode_image(noise(60, 90), masks=True).embeddings.masks for one in (masked_detector, again)]
    for name in ("mask_embeds", "pixel_embeds"):
        whole, rounded = (getattr(masks, name) for masks in encoded)
        assert rounded.dtype == torch.float32 and (whole - rounded).norm() < 0.2 * whole.norm()
    found = again.detect(noise(60, 90), **ASKED)
    assert len(found) and found.masks.shape == (len(found), 60, 90)


@pytest.fixture(scope="module")
def small_detector() -> Detector:
    """With few blocks, so that tracing is quick."""
    config = replace(TINY, image=replace(TINY.image, depths=(1, 1, 1, 1)), masks=MasksConfig(dim=8, width=16))
    return Detector(make_tiny_model(config=config), device="cpu")


@pytest.fixture(scope="module")
def exported(small_detector, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exported")
    for runtime in ("onnx", "openvino"):
        export(of_module(small_detector.model), root / runtime, runtime)
    return {runtime: root / runtime for runtime in ("onnx", "openvino")}


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_exported_graphs_make_the_masks_of_the_model(exported, small_detector, runtime):
    other = Detector.from_pretrained(exported[runtime])
    assert other.spec == small_detector.spec
    for shape in [(60, 90), (1, 400)]:
        ours, theirs = (one.encode_image(noise(*shape), masks=True).embeddings for one in (small_detector, other))
        assert theirs.masks.dense.class_embeds.shape == ours.masks.dense.class_embeds.shape
        made = [mask_logits(one.masks.mask_embeds, one.masks.pixel_embeds, one.pred_boxes) for one in (ours, theirs)]
        torch.testing.assert_close(made[1], made[0], atol=1e-3, rtol=1e-4)
        for name in ("class_embeds", "logit_shift", "logit_scale"):
            dense = [getattr(one.masks.dense, name) for one in (ours, theirs)]
            torch.testing.assert_close(dense[1], dense[0], atol=1e-4, rtol=1e-4)
    ours, theirs = (
        {int(patch): mask for patch, mask in zip(found.patches, found.masks, strict=True)}
        for found in (one.detect(noise(60, 90), **ASKED) for one in (small_detector, other))
    )
    assert ours.keys() == theirs.keys() and len(ours) > 1
    assert all((ours[patch] == theirs[patch]).float().mean() > 0.999 for patch in ours)
    maps = [one.segment(noise(60, 90), ["a cat", "sky"], threshold=0.3).labels for one in (small_detector, other)]
    assert len(maps[0].unique()) > 1 and (maps[0] == maps[1]).float().mean() > 0.999


def test_who_asks_for_boxes_reads_no_graph_of_masks(exported, tmp_path):
    folder = shutil.copytree(exported["onnx"], tmp_path / "out")
    said = json.loads((folder / "spec.json").read_text())
    assert said["image_graphs"] == ["image.onnx"] and said["mask_graphs"] == ["image_masks.onnx"]
    (folder / "image_masks.onnx").write_bytes(b"cut off")
    other = Detector.from_pretrained(folder)
    assert len(other.detect(noise(60, 90), ["a cat"], threshold=0))
    with pytest.raises(CheckpointError, match=r"image_masks.onnx: cannot be read"):
        other.segment(noise(60, 90), ["a cat"])
    (folder / "image_masks.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"image_masks.onnx is not there"):
        Detector.from_pretrained(folder)
    # As folders were written before graphs made masks.
    del said["mask_graphs"]
    (folder / "spec.json").write_text(json.dumps(said | {"network": said["network"] | {"has_masks": False}}))
    older = Detector.from_pretrained(folder)
    assert len(older.detect(noise(60, 90), ["a cat"], threshold=0))
    with pytest.raises(QueryError, match=r"makes no masks; train one .* or, of an export, write it again"):
        older.detect(noise(60, 90), ["a cat"], masks=True)


def test_masks_are_left_out_when_they_are_not_wanted(small_detector, monkeypatch, tmp_path):
    monkeypatch.setattr(exporting, "traced", lambda *_: b"a graph")
    spec = export(of_module(small_detector.model), tmp_path / "out", masks=False)
    assert not spec.network.has_masks and not list((tmp_path / "out").glob("image_masks*"))
    model = small_detector.save_pretrained(tmp_path / "model")
    run = CliRunner().invoke(app, ["export", str(model), "--to", str(tmp_path / "a.safetensors"), "--no-masks"])
    assert "--no-masks is for --runtime onnx or openvino" in str(run.exception)


def test_a_compiled_model_makes_the_same_masks(small_detector, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda encode, **_: asked.append(encode) or encode)
    other = Detector(compiled(of_module(small_detector.model)), device="cpu")
    assert other.detect(noise(60, 90), **ASKED) == small_detector.detect(noise(60, 90), **ASKED)
    assert [encode.__name__ for encode in asked] == ["encode_with_masks"]


def test_info_shows_the_mask_branch(owl_swin, folder, model_file):  # noqa: F811
    run = owl_swin("info", folder)
    assert run.code == 0 and "mask branch" in run.out
    assert "masks: each patch asks of pixels of 4 px in 8 dimensions" in run.out
    assert "mask" not in owl_swin("info", model_file).out
