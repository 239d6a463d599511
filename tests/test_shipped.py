"""The model that ships, on the photo that `make detect` uses."""

from pathlib import Path

import pytest
import skimage

from owl_swin import Detector

pytestmark = pytest.mark.numeric

PHOTO = Path(skimage.__file__).parent / "data" / "camera.png"


@pytest.fixture(scope="module")
def shipped() -> Detector:
    return Detector.from_pretrained(device="cpu")


def test_it_names_the_person_in_the_photo_and_nothing_that_is_not_there(shipped):
    found = shipped.detect(PHOTO, ["a person", "a cat", "a car"], threshold=0.5)
    assert {one.name for one in found} == {"a person"}


def test_the_same_photo_gives_the_same_answer(shipped):
    first, second = (shipped.detect(PHOTO, ["a person"], threshold=0.1).to_dicts() for _ in range(2))
    assert first == second
