"""A model with a mask branch on its way: saved, rounded, exported, printed."""

from dataclasses import asdict, replace

import pytest
import torch
from picture_files import noise
from test_cli import owl_swin  # noqa: F401

from owl_swin.detector import Detector
from owl_swin.encoder import check_has_masks
from owl_swin.errors import QueryError
from owl_swin.runtimes.export import export_spec

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


def test_an_exported_graph_makes_no_masks_and_says_so(masked_detector):
    pretrained = masked_detector._encoder.pretrained
    exported = export_spec(pretrained, "onnx", [(64, 96)]).network
    assert pretrained.network.spec == replace(exported, has_masks=True, image_size=96)
    with pytest.raises(QueryError, match="makes no masks") as refused:
        check_has_masks(exported)
    assert "graphs are exported without them" in str(refused.value)


def test_info_shows_the_mask_branch(owl_swin, folder, model_file):  # noqa: F811
    run = owl_swin("info", folder)
    assert run.code == 0 and "mask branch" in run.out
    assert "masks: each patch asks of pixels of 4 px in 8 dimensions" in run.out
    assert "mask" not in owl_swin("info", model_file).out
