"""The mask branch of a model: what it adds, and what it leaves as it was."""

from dataclasses import replace

import pytest
import torch

from owl_swin.config import ConfigError, HeadsConfig, MasksConfig, ModelConfig, SwinConfig, TextConfig
from owl_swin.models.masks import MASK_STRIDE, PLACES, mask_logits
from owl_swin.models.owl_swin import OwlSwin

SWIN = SwinConfig(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8))
HYBRID = replace(SWIN, stem="tf_efficientnet_lite0", depths=(0, 0, 1, 1))
TEXT = TextConfig(width=32, layers=1, heads=2)


def model(image: SwinConfig, masks: MasksConfig | None) -> OwlSwin:
    torch.manual_seed(0)
    heads = HeadsConfig(width=32, stride=16, stages=(3, 4))
    return OwlSwin(ModelConfig(embed_dim=32, image=image, text=TEXT, heads=heads, masks=masks)).eval()


@pytest.mark.parametrize("image", [SWIN, HYBRID], ids=["swin", "hybrid"])
def test_boxes_and_names_are_the_same_with_masks(image):
    pixels = torch.randn(2, 3, 75, 130)
    with torch.no_grad():
        whole = model(image, MasksConfig(dim=8, width=16))
        plain = whole.encode_image(pixels)
        masked = whole.encode_with_masks(pixels)
    assert plain.masks is None and masked.masks is not None
    assert torch.equal(plain.class_embeds, masked.class_embeds) and torch.equal(plain.pred_boxes, masked.pred_boxes)
    patches = plain.class_embeds.shape[1]
    assert masked.masks.pixel_embeds.shape == (2, 8, -(-75 // MASK_STRIDE), -(-130 // MASK_STRIDE))
    assert masked.masks.mask_embeds.shape == (2, patches, 8 + PLACES)
    assert masked.masks.dense.class_embeds.shape == (2, patches, 32)
    one = masked[1].clone()
    assert torch.equal(one.masks.pixel_embeds, masked.masks.pixel_embeds[1])
    assert sum(tensor.nbytes for tensor in one.tensors()) > sum(tensor.nbytes for tensor in plain[1].tensors())


def test_a_model_says_whether_it_has_masks():
    assert model(SWIN, MasksConfig(8, 16)).spec.has_masks and not model(SWIN, None).spec.has_masks
    with pytest.raises(ConfigError, match="at least 1"):
        MasksConfig(dim=0)


def test_a_mask_before_training_is_the_ellipse_in_its_box():
    ask = torch.zeros(1, 2 + PLACES)
    ask[0, 2:] = torch.tensor([2.0, 0.0, 0.0, -2.0, -2.0])
    inside = mask_logits(ask, torch.zeros(2, 40, 80), torch.tensor([[0.5, 0.5, 0.5, 0.5]]))[0] > 0
    rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
    assert (int(rows.min()), int(rows.max())) == (10, 29) and (int(columns.min()), int(columns.max())) == (20, 59)
    assert inside.float().mean() == pytest.approx(0.25 * torch.pi / 4, abs=0.01)


def test_pixels_and_places_add_up():
    ask = torch.tensor([[1.0, -2.0, 0.5, 1.0, -1.0, 0.25, 3.0]])
    pixels = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # [K=2, h=1, w=2]
    # The box spans the frame: u is -0.5 and 0.5 in the two pixels, v is 0.
    found = mask_logits(ask, pixels, torch.tensor([[0.5, 0.5, 1.0, 1.0]]))
    assert found[0, 0].tolist() == pytest.approx([1 + 0.5 - 0.5 + 0.25 * 0.25, -2 + 0.5 + 0.5 + 0.25 * 0.25])
