"""Another family of models behind the same Detector: other frames, another tokenizer, no attention to show."""

from dataclasses import replace

import pytest
import torch
from picture_files import noise
from PIL import Image

from owl_swin.config import CalibrationConfig
from owl_swin.detector import Detector
from owl_swin.errors import ConfigError, QueryError
from owl_swin.exemplar import Exemplar
from owl_swin.families import load, of_module
from owl_swin.frame import Frame
from owl_swin.models.network import Pretrained, Spec
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.types import ImageEmbeddings

COLOURS = ("red", "green", "blue")
SPEC = Spec("colours", "four_quarters", 3, "f" * 64, 64, 32, False, True, True, False, 9.0, CalibrationConfig(), 1.0)


class FourQuarters:
    """Says of each quarter of a square frame how red, green and blue it is."""

    spec = SPEC

    def encode_image(self, pixels):
        batch = len(pixels)
        quarters = torch.nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(2).transpose(1, 2)  # [B, 4, 3]
        boxes = torch.tensor([[x, y, 0.5, 0.5] for y in (0.25, 0.75) for x in (0.25, 0.75)])
        return ImageEmbeddings(
            quarters,
            torch.full((batch, 4), -0.5),
            torch.full((batch, 4), 20.0),
            image_embed=torch.nn.functional.normalize(quarters.mean(1), dim=-1),
            pred_boxes=boxes.expand(batch, 4, 4),
            objectness_logits=quarters.amax(-1) * 20 - 10,
            grid_hw=(2, 2),
        )

    def encode_text(self, ids):
        return torch.eye(3)[ids[:, 0]]


class Squares:
    """Whole pictures in a square frame, padded; exemplars too."""

    oversampling = None

    def frame(self, image_hw, image_size, crop_xyxy=None):
        return Frame.letterbox(image_hw, image_size, crop_xyxy)

    def exemplar(self, image_hw, box_xyxy, image_size):
        return self.frame(image_hw, image_size)

    def pixels(self, image, frame):
        return frame.pixels(image)

    def normalise(self, pixels):
        return pixels.float() / 255


def tokenize(texts):
    return torch.tensor([[COLOURS.index(text.split()[-1])] for text in texts])


COLOUR_MODEL = Pretrained(FourQuarters(), Squares(), tokenize, {"name": "colours 1"})  # type: ignore[arg-type]


def picture() -> Image.Image:
    """100 x 100 pixels: red at the top left, blue at the bottom right, black elsewhere."""
    image = Image.new("RGB", (100, 100))
    image.paste((255, 0, 0), (0, 0, 50, 50))
    image.paste((0, 0, 255), (50, 50, 100, 100))
    return image


def test_a_detector_asks_nothing_of_a_network_but_its_protocol():
    detector = Detector(COLOUR_MODEL, device="cpu")
    assert (detector.name, detector.image_size, detector.spec) == ("colours 1", 64, SPEC)
    found = detector.detect(picture(), ["blue", "red", "green"], threshold=0.9)
    assert [(one.name, one.box_xyxy) for one in found] == [("red", (0, 0, 50, 50)), ("blue", (50, 50, 100, 100))]
    assert detector.detect_batch([picture()], [["red"]], threshold=0.9)[0].names == ("red",)
    shown = detector.detect(picture(), [Exemplar(picture(), (50, 50, 100, 100))], threshold=0.9)
    assert [one.box_xyxy for one in shown] == [(50, 50, 100, 100)]
    assert detector.classify(picture().crop((0, 0, 50, 50)), ["blue", "red"]).ranked()[0][0] == "red"
    with pytest.raises(QueryError, match="a model of the family 'four_quarters' has no attention to show"):
        detector.attention(picture())


def test_padding_of_a_family_is_no_part_of_the_picture():
    wide = picture().resize((200, 100))
    found = Detector(COLOUR_MODEL, device="cpu").detect(wide, ["red"], threshold=0.4)
    assert [one.box_xyxy for one in found] == [(0, 0, 100, 100)]  # the upper left quarter of the square of 200


def test_a_family_may_be_given_another_card():
    assert Detector(replace(COLOUR_MODEL, card={}), device="cpu").name == "colours"
    assert Detector(COLOUR_MODEL, card={"name": "mine"}, device="cpu").name == "mine"


def test_what_is_loaded_is_all_that_a_detector_needs(model_file, tiny_model):
    loaded = load(model_file)
    assert isinstance(loaded.network, OwlSwin) and loaded.card == {"name": "tiny_for_tests"}
    frame = loaded.preprocess.frame((60, 90), 96)
    assert loaded.network.encode_image(
        loaded.preprocess.normalise(loaded.preprocess.pixels(noise(60, 90), frame)[None])
    )
    assert loaded.tokenize(["a cat"]).shape == (1, 12)
    assert len(loaded.look_inside(loaded.network, torch.zeros(1, 3, 64, 64))) == sum(tiny_model.config.image.depths)


@pytest.mark.parametrize("wrong", ["nano", None, torch.nn.Linear(2, 2)])
def test_what_is_no_network_is_refused(wrong):
    for take in (of_module, Detector):
        with pytest.raises(ConfigError, match=f"got {type(wrong).__name__}; Detector.from_pretrained reads names"):
            take(wrong)
