"""Other frames and precisions of OWL-ViT and OWLv2: without padding, larger, of fewer bits."""

import pytest
import torch
from owl_checkpoints import save_owl
from picture_files import noise

from owl_swin.detector import Detector
from owl_swin.exemplar import Exemplar
from owl_swin.families import load
from owl_swin.families.owl_preprocess import Owlv2Preprocess, OwlVitPreprocess

TEXTS = ["a red mug", "a dog"]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folder of an OWLv2 checkpoint and transformers' model of it."""
    folder = tmp_path_factory.mktemp("owl")
    return folder, save_owl(folder, "owlv2", size=96)


def without_padding(theirs, pixels, rows, columns):
    """Logits and boxes that transformers' modules give when the tower is shown the upper left patches alone."""
    side = theirs.num_patches_height
    kept = (torch.arange(side)[:, None] * side + torch.arange(side))[:rows, :columns].flatten()
    tower = theirs.owlv2.vision_model
    tokens = tower.embeddings(pixels)
    tokens = tower.pre_layernorm(torch.cat([tokens[:, :1], tokens[:, 1:][:, kept]], 1))
    tokens = tower.post_layernorm(tower.encoder(inputs_embeds=tokens).last_hidden_state)
    patches = theirs.layer_norm(tokens[:, 1:] * tokens[:, :1])
    boxes = theirs.sigmoid(theirs.box_head(patches) + theirs.box_bias[kept])
    return patches, boxes


@pytest.mark.parametrize(
    "image_hw, grid_hw", [((40, 96), (3, 6)), ((96, 33), (6, 3)), ((131, 57), (6, 3)), ((3, 300), (1, 6))]
)
def test_patches_of_nothing_but_padding_are_left_out(both, image_hw, grid_hw):
    folder, theirs = both
    whole, cut = load(folder), load(folder, content_only=True)
    picture = noise(*image_hw)
    frame = cut.preprocess.frame(image_hw, 96)
    assert frame.model_hw == (16 * grid_hw[0], 16 * grid_hw[1])
    pixels = cut.preprocess.pixels(picture, frame)
    square = whole.preprocess.pixels(picture, whole.preprocess.frame(image_hw, 96))
    torch.testing.assert_close(pixels, square[:, : frame.model_hw[0], : frame.model_hw[1]])
    assert square[:, frame.content_hw[0] + 1 :].abs().sum() == square[:, :, frame.content_hw[1] + 1 :].abs().sum() == 0

    with torch.no_grad():
        seen = cut.network.encode_image(cut.preprocess.normalise(pixels[None]))
        embeds = cut.network.encode_text(cut.tokenize(TEXTS))
    patches, boxes = without_padding(theirs, whole.preprocess.normalise(square[None]), *grid_hw)
    expected = theirs.class_predictor(patches, embeds[None])[0]
    logits = (seen.class_embeds @ embeds.T + seen.logit_shift[..., None]) * seen.logit_scale[..., None]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    height, width = image_hw
    expected_px = (boxes * max(image_hw))[0]
    x, y, w, h = expected_px.unbind(-1)
    expected_px = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1).clamp(min=0)
    expected_px = expected_px.minimum(torch.tensor([width, height, width, height]))
    torch.testing.assert_close(frame.to_image(seen.pred_boxes[0]), expected_px, atol=0.05, rtol=0)
    assert seen.grid_hw == grid_hw


def test_a_square_picture_has_no_padding_to_leave_out(both):
    folder, _ = both
    whole, cut = Detector.from_pretrained(folder), Detector.from_pretrained(folder, content_only=True)
    square = noise(70, 70)
    assert cut.detect(square, TEXTS, threshold=0.1) == whole.detect(square, TEXTS, threshold=0.1)
    wide = noise(40, 90)
    assert cut.detect(wide, TEXTS, threshold=0.1) != whole.detect(wide, TEXTS, threshold=0.1)
    assert cut.similarity(wide, TEXTS).shape == whole.similarity(wide, TEXTS).shape
    assert len(cut.detect(wide, [Exemplar(wide, (5, 5, 60, 30))], threshold=0.0)) > 0


def test_pictures_of_different_grids_go_together(both):
    folder, _ = both
    detector = Detector.from_pretrained(folder, content_only=True)
    pictures = [noise(*hw) for hw in [(40, 90), (90, 40), (60, 60), (40, 90)]]
    together = detector.detect_batch(pictures, TEXTS, threshold=0.3)
    for picture, found in zip(pictures, together, strict=True):
        alone = detector.detect(picture, TEXTS, threshold=0.3)
        torch.testing.assert_close(found.boxes, alone.boxes)
        torch.testing.assert_close(found.scores, alone.scores)


@pytest.mark.parametrize("kind", [OwlVitPreprocess, Owlv2Preprocess])
@pytest.mark.parametrize("asked, side", [(96, 98), (100, 98), (32, 28), (1000, 994), (50, 50)])
def test_a_frame_has_whole_patches_unless_it_is_what_the_model_was_made_for(kind, asked, side):
    preprocess = kind(patch_size=14, trained_size=50)
    assert preprocess.frame((30, 40), asked).model_hw == (side, side)


def test_a_crop_is_shown_as_a_picture_of_its_own(both):
    folder, _ = both
    preprocess = load(folder).preprocess
    picture, crop = noise(80, 100), (20, 8, 90, 50)
    frame = preprocess.frame((80, 100), 96, crop)
    cut = picture.crop(crop)
    alone = preprocess.pixels(cut, preprocess.frame((42, 70), 96))
    assert torch.equal(preprocess.pixels(picture, frame), alone)
    assert frame.to_image(torch.tensor([0.5, 0.3, 1.0, 0.6])).tolist() == pytest.approx([20, 8, 90, 50])


@pytest.mark.parametrize("dtype", ["bfloat16", "half"])
@pytest.mark.parametrize("family", ["owlvit", "owlv2"])
def test_fewer_bits_give_nearly_the_same_scores_in_float32(dtype, family, tmp_path):
    save_owl(tmp_path, family)
    exact, rounded = Detector.from_pretrained(tmp_path), Detector.from_pretrained(tmp_path, dtype=dtype)
    assert exact.dtype == torch.float32
    picture = noise(50, 80)
    scores = [one.score(one.encode_image(picture), one.encode_queries(TEXTS)) for one in (exact, rounded)]
    assert scores[1].dtype == torch.float32
    torch.testing.assert_close(scores[1].sigmoid(), scores[0].sigmoid(), atol=0.1, rtol=0)
    objectness = [one.encode_image(picture).objectness_logits().sigmoid() for one in (exact, rounded)]
    torch.testing.assert_close(*objectness, atol=0.1, rtol=0)
    larger = rounded.encode_image(picture, image_size=128).embeddings
    assert larger.grid_hw == (8, 8)
    assert larger.pred_boxes.dtype == torch.float32
