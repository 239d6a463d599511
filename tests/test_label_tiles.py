"""Teachers that are shown pictures in tiles: `owl-swin label --tile`."""

import json

import numpy as np
import pytest
import torch
from picture_files import encode, noise
from PIL import Image
from scripted_teacher import DOG_AND_CAT
from teacher_checkpoints import save_grounding_dino
from test_cli import assert_one_sentence, owl_swin  # noqa: F401
from test_cli_label import label  # noqa: F401

from owl_swin import Detections, Tiles
from owl_swin.errors import DataError
from owl_swin.labelling.run import label_pictures
from owl_swin.teachers.detector import DetectorTeacher
from owl_swin.teachers.ensemble import Ensemble
from owl_swin.teachers.load import load_teacher
from owl_swin.teachers.tiled import Tiled

TEXTS = ("dog", "cat")


class SeesWhite:
    """Finds what is white, with a label by its height, in pictures of at most 100 pixels a side."""

    name, identity = "sees white", {"name": "sees white"}

    def __init__(self):
        self.shown = []

    def find(self, pictures, texts, threshold):
        self.shown.append([picture.size for picture in pictures])
        return [self._found(picture, own) for picture, own in zip(pictures, texts, strict=True)]

    def at_scale(self, scale):
        return self

    def _found(self, picture, texts):
        y, x = np.nonzero(np.asarray(picture.convert("L")) == 255)
        seen = len(x) > 0 and max(picture.size) <= 100
        box = [[x.min(), y.min(), x.max() + 1, y.max() + 1]] if seen else []
        return Detections(
            torch.tensor(np.array(box), dtype=torch.float32).reshape(-1, 4),
            torch.tensor([0.9] * len(box)),
            torch.zeros(len(box), dtype=torch.long),
            texts,
            (picture.height, picture.width),
            torch.zeros(len(box), dtype=torch.long),
        )


def with_white(box, size=(250, 130)):
    picture = Image.new("RGB", size, "black")
    picture.paste("white", box)
    return picture


@pytest.mark.parametrize(
    "box",
    [
        (10, 20, 30, 40),  # in one tile
        (80, 20, 92, 40),  # whole in two
        (60, 20, 200, 40),  # cut by two seams
        (80, 40, 90, 100),  # cut by a seam below
        (75, 40, 230, 128),  # in all
    ],
)
@pytest.mark.parametrize("together", [1, 3])
def test_a_thing_is_found_once_in_pixels_of_the_picture(box, together):
    teacher = SeesWhite()
    tiled = Tiled(teacher, Tiles(100, 0.25))
    pictures = [with_white(box), Image.new("RGB", (250, 130)), Image.new("RGB", (90, 70))][:together]
    answers = tiled.find(pictures, [TEXTS] * together, 0.1)
    assert answers[0].boxes.round().tolist() == [list(box)] and answers[0].image_hw == (130, 250)
    assert [len(answer) for answer in answers[1:]] == [0] * (together - 1)
    assert max(map(len, teacher.shown)) == together, "no more views together than there were pictures"


def test_without_a_tile_a_picture_has_its_own_answer():
    picture = with_white((10, 20, 30, 40), (90, 60))
    tiled, alone = Tiled(SeesWhite(), Tiles(100)), SeesWhite()
    assert tiled.find([picture], [TEXTS], 0.1) == alone.find([picture], [TEXTS], 0.1)


@pytest.mark.numeric
def test_a_detector_finds_as_detect_does_in_tiles(detector):
    pictures, tiles = [noise(130, 250, seed=1), noise(60, 90)], Tiles(96)
    for found, picture in zip(
        DetectorTeacher(detector, tiles=tiles).find(pictures, [TEXTS] * 2, 0.3), pictures, strict=True
    ):
        expected = detector.detect(picture, list(TEXTS), tiles=tiles, threshold=0.3)
        assert torch.allclose(found.boxes, expected.boxes, atol=0.01) and len(found) > 2
        assert found.labels.tolist() == expected.labels.tolist()


def test_tiles_are_a_part_of_what_a_teacher_is(detector, tmp_path):
    whole, tiled = DetectorTeacher(detector), DetectorTeacher(detector, tiles=Tiles(96))
    assert "tiles" not in whole.identity and tiled.identity["tiles"] == {"size": 96, "overlap": 0.2}
    assert tiled.at_scale(2).identity["tiles"] == tiled.identity["tiles"]
    folder = save_grounding_dino(tmp_path / "dino")
    teacher = load_teacher(folder, device="cpu", tiles=Tiles(64))
    assert teacher.identity["tiles"] == teacher.at_scale(2).identity["tiles"] == {"size": 64, "overlap": 0.2}
    (found,) = Ensemble([teacher], flip=True).find([noise(60, 90)], [TEXTS], 0.0)
    assert found.image_hw == (60, 90) and (found.boxes[:, 2] <= 90).all()
    # Answers of the one are not taken for those of the other.
    (tmp_path / "a.png").write_bytes(encode(noise(130, 250)))
    (tmp_path / "b.png").write_bytes(encode(noise(100, 250)))

    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label_pictures([tmp_path / "a.png"], tmp_path / "l.json", tiled, DOG_AND_CAT, progress=stop)
    with pytest.raises(DataError, match="teacher"):
        label_pictures([tmp_path / "b.png"], tmp_path / "l.json", whole, DOG_AND_CAT)


def test_the_command_labels_in_tiles(label, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Photos").mkdir()
    (tmp_path / "Photos" / "a.png").write_bytes(encode(noise(130, 250, seed=1)))
    numbers = {}
    for name, arguments in (("whole", ()), ("tiled", ("--tile", "64", "--overlap", "0.5"))):
        run = label("Photos", "--to", f"{name}.json", "--query", "a dog", *arguments)
        assert run.code == 0
        made = json.loads((tmp_path / f"{name}.json").read_text())
        numbers[name] = len(made["annotations"])
        for x, y, w, h in (a["bbox"] for a in made["annotations"]):
            assert x >= 0 and y >= 0 and x + w <= 250.01 and y + h <= 130.01
    assert numbers["tiled"] > numbers["whole"] and made["info"]["teacher"]["tiles"] == {"size": 64, "overlap": 0.5}
    wrong = label("Photos", "--to", "x.json", "--query", "a dog", "--overlap", "0.5")
    assert_one_sentence(wrong, "--overlap is for --tile")
    assert_one_sentence(label("Photos", "--to", "x.json", "--query", "a", "--tile", "5"), "the side of tiles must be")
