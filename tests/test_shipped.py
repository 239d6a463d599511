"""The model that ships, on photos that an installed package carries."""

from pathlib import Path

import pytest
import skimage
import torch

from owl_swin import Detector, Exemplar
from owl_swin.boxes import pairwise_iou

pytestmark = pytest.mark.numeric

PHOTOS = Path(skimage.__file__).parent / "data"
ABSENT = ["a car", "a bottle", "a horse", "a bicycle", "an umbrella", "a pizza", "a toilet", "a train"]


@pytest.fixture(scope="module")
def shipped() -> Detector:
    return Detector.from_pretrained(device="cpu")


@pytest.mark.parametrize(
    "photo, name", [("camera.png", "a person"), ("astronaut.png", "a person"), ("chelsea.png", "a cat")]
)
def test_it_names_what_is_in_the_photo_and_nothing_that_is_not_there(shipped, photo, name):
    found = shipped.detect(PHOTOS / photo, [name, *ABSENT], threshold=0.5)
    assert {one.name for one in found} == {name}


@pytest.mark.parametrize(
    "photo, name, outline",  # measured by hand
    [
        ("camera.png", "a person", (0, 66, 331, 512)),
        ("chelsea.png", "a cat", (0, 0, 432, 300)),
        ("coffee.png", "a cup", (155, 14, 424, 298)),
    ],
)
def test_a_thing_that_fills_the_photo_is_in_its_box_whole(shipped, photo, name, outline):
    best = shipped.detect(PHOTOS / photo, [name])[0]
    found = torch.tensor([best.box_xyxy])
    assert pairwise_iou(found, torch.tensor([outline]).float())[0].item() > 0.85


def test_the_same_photo_gives_the_same_answer(shipped):
    first, second = (shipped.detect(PHOTOS / "camera.png", ["a person"], threshold=0.1).to_dicts() for _ in range(2))
    assert first == second


def test_a_cat_is_no_dog_but_may_be_what_was_shown(shipped):
    def found(**settings):
        shown = Exemplar(PHOTOS / "chelsea.png", (5, 5, 410, 298), name="my cat")
        answers = shipped.detect(PHOTOS / "chelsea.png", ["a cat", "a dog", shown], **settings)
        return {one.name: one.score for one in answers}

    alone, among = found(rivals=0.0), found()
    assert set(alone) == {"a cat", "a dog", "my cat"}
    assert set(among) == {"a cat", "my cat"}  # by the model's own setting, and a name and an exemplar never compete
    assert among == {name: alone[name] for name in among}
