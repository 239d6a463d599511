"""OWL-ViT and OWLv2 behind our Detector, against transformers' own forward on checkpoints that it saved."""

import pytest
import torch
from owl_checkpoints import save_owl
from picture_files import noise

from owl_swin.detector import Detector
from owl_swin.families import load

TEXTS = ["a red mug", "a dog", "Émile's very old bicycle in the rain", "x"]
# Family, side of a patch, size that the model was made for, and the size that it is used at.
SHAPES = [
    ("owlvit", 32, 96, 96),
    ("owlvit", 16, 64, 96),
    ("owlvit", 14, 56, 56),
    ("owlv2", 16, 64, 64),
    ("owlv2", 16, 96, 64),
    ("owlv2", 14, 56, 84),
]
PICTURES = [(60, 90), (131, 77), (64, 64), (5, 300), (20, 31), (1, 1)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folder and transformers' model of each kind, made once."""
    made = {}

    def checkpoint(family, patch, size):
        key = (family, patch, size)
        if key not in made:
            folder = tmp_path_factory.mktemp("owl") / "tiny"
            made[key] = folder, save_owl(folder, family, patch=patch, size=size)
        return made[key]

    return checkpoint


def their_pixels(family, pictures, size):
    import transformers

    kind = {"owlvit": transformers.OwlViTImageProcessor, "owlv2": transformers.Owlv2ImageProcessor}[family]
    processor = kind(size={"height": size, "width": size})
    return torch.cat([processor(one, return_tensors="pt").pixel_values for one in pictures])


@pytest.mark.parametrize("family, patch, trained, size", SHAPES)
def test_pixels_logits_and_boxes_are_those_of_transformers(checkpoints, family, patch, trained, size):
    folder, theirs = checkpoints(family, patch, trained)
    pretrained = load(folder)
    network, preprocess = pretrained.network, pretrained.preprocess
    pictures = [noise(height, width) for height, width in PICTURES]
    pixels = their_pixels(family, pictures, size)
    frames = [preprocess.frame((one.height, one.width), size) for one in pictures]
    seen = torch.stack([preprocess.pixels(one, frame) for one, frame in zip(pictures, frames, strict=True)])
    torch.testing.assert_close(preprocess.normalise(seen), pixels, atol=1e-3, rtol=0)

    ids = pretrained.tokenize(TEXTS)
    expected = theirs(
        input_ids=ids.repeat(len(pictures), 1), pixel_values=pixels, interpolate_pos_encoding=size != trained
    )
    with torch.no_grad():
        images = network.encode_image(preprocess.normalise(seen))
        queries = network.encode_text(ids)
    logits = (images.class_embeds @ queries.T + images.logit_shift[..., None]) * images.logit_scale[..., None]
    assert logits.std() > 0.3
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(images.pred_boxes, expected.pred_boxes, atol=1e-5, rtol=0)
    if family == "owlv2":
        torch.testing.assert_close(images.objectness_logits, expected.objectness_logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["owlvit", "owlv2"])
@pytest.mark.parametrize("image_hw", [(60, 90), (131, 77), (3, 200)])
def test_boxes_lie_in_pixels_where_transformers_puts_them(checkpoints, family, image_hw):
    import transformers

    folder, theirs = checkpoints(family, 16, 64)
    detector = Detector.from_pretrained(folder)
    picture = noise(*image_hw)
    encoded = detector.encode_image(picture)
    expected = theirs(
        input_ids=detector._encoder.pretrained.tokenize(TEXTS), pixel_values=their_pixels(family, [picture], 64)
    )
    kind = {"owlvit": transformers.OwlViTImageProcessor, "owlv2": transformers.Owlv2ImageProcessor}[family]
    boxes = kind().post_process_object_detection(expected, 0.0, [image_hw])[0]["boxes"]
    height, width = image_hw
    inside = boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
    torch.testing.assert_close(encoded.boxes_px(), inside, atol=0.02, rtol=0)
    score = expected.logits[0].sigmoid()
    torch.testing.assert_close(
        detector.score(encoded, detector.encode_queries(TEXTS)).sigmoid(), score, atol=1e-4, rtol=0
    )
