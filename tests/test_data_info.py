"""`owl-swin info` of a data set: the numbers, the text, the sheet to look at."""

import json

import numpy as np
import pytest
from picture_files import turned
from PIL import Image, ImageChops
from training_data import NAMES, grey_noise, write_captions, write_json, write_labelled, write_shapes
from typer.testing import CliRunner

from owl_swin.cli.data_info import data_lines
from owl_swin.cli.main import app
from owl_swin.data import summary as module
from owl_swin.data.config import DataConfig
from owl_swin.data.contact_sheet import CELL, sheet_of_pictures, sheet_of_scenes
from owl_swin.data.pictures import load_pictures
from owl_swin.data.scene import Scene, Scenes
from owl_swin.data.scenes import load_scenes
from owl_swin.data.summary import summarise_pictures, summarise_scenes
from owl_swin.errors import DataError


def scene(path, boxes=(), labels=(), **more):
    return Scene(path, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), **more)


@pytest.fixture
def three(tmp_path):
    """Three pictures: 100 x 50 with two boxes, 200 x 200 without, and one that is cut off."""
    grey_noise(50, 100).save(tmp_path / "a.png")
    grey_noise(200, 200).save(tmp_path / "b.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    boxes = [[0, 0, 50, 50], [0, 0, 10, 10]]
    scenes = [scene(tmp_path / "a.png", boxes, [1, 1]), scene(tmp_path / "b.png"), scene(tmp_path / "cut.png")]
    return Scenes(scenes, [["cat"], ["sofa", "couch"]])


def info(*arguments):
    """The exit code, the output, and the error of `owl-swin info`."""
    run = CliRunner().invoke(app, ["info", *map(str, arguments)])
    return run.exit_code, run.output, run.exception


# --- Numbers ---------------------------------------------------------------------------------------------------------


def test_counts_of_a_set_with_boxes(three):
    about = summarise_scenes(three)
    assert (about["pictures"], about["pictures_without_boxes"], about["boxes"], about["classes"]) == (3, 2, 2, 2)
    assert about["boxes_of_class"] == {"sofa, couch": 2, "cat": 0} and about["classes_without_boxes"] == 1
    assert list(about["boxes_of_class"]) == ["sofa, couch", "cat"]  # the most frequent first
    assert about["boxes_a_picture"] == {"min": 0, "median": 0, "mean": 0.667, "max": 2}
    assert about["box_sizes"] == {"small": 0.5, "medium": 0.5, "large": 0.0}
    assert about["box_percent_of_picture"]["p50"] == pytest.approx(26)  # between 2 % and 50 %
    assert about["frequent_sizes"] == {"100x50": 2, "200x200": 1}  # a cut file still says its size
    assert about["shapes"] == {"portrait": 0.0, "square": 0.3333, "landscape": 0.6667}
    assert about["broken"]["count"] == 0 and about["verified_negatives_a_picture"] is None


def test_check_decodes_every_picture(three):
    about = summarise_scenes(three, check=True)
    assert about["pictures_looked_at"] == 2
    assert about["broken"]["count"] == 1 and "cut.png: the picture is damaged or cut off" in about["broken"]["first"][0]


@pytest.mark.parametrize(
    "side, name", [(31.9, "small"), (32, "medium"), (95.9, "medium"), (96, "large")], ids=lambda value: str(value)
)
def test_borders_of_box_sizes_are_those_of_coco(tmp_path, side, name):
    one = Scenes([scene(tmp_path / "absent.png", [[0, 0, side, side]], [0], stated_wh=(100, 100))], [["cat"]])
    shares = summarise_scenes(one)["box_sizes"]
    assert shares == {key: float(key == name) for key in ("small", "medium", "large")}


def test_relative_boxes_are_measured_in_the_pixels_of_the_picture(tmp_path):
    grey_noise(100, 200).save(tmp_path / "a.png")
    one = Scenes([scene(tmp_path / "a.png", [[0, 0, 0.5, 1]], [0], stated_wh=(1, 1))], [["cat"]])
    about = summarise_scenes(one)
    assert about["box_sizes"]["large"] == 1 and about["box_percent_of_picture"]["p50"] == 50
    assert about["pictures_not_of_stated_size"] == 0


def test_turned_and_scaled_pictures_are_counted(tmp_path):
    (tmp_path / "t.png").write_bytes(turned(Image.new("RGB", (100, 50)), 6))
    scenes = [scene(tmp_path / "t.png", stated_wh=wh) for wh in (None, (100, 50), (400, 200))]
    about = summarise_scenes(Scenes(scenes, [["cat"]]))
    assert about["pictures_turned_by_exif"] == 1 and about["frequent_sizes"] == {"100x50": 1}
    assert about["pictures_not_of_stated_size"] == 1


def test_of_many_pictures_some_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_OPENED", 3)
    path = write_shapes(tmp_path / "shapes", 8)
    scenes = load_scenes(DataConfig("coco", str(path)))
    assert summarise_scenes(scenes)["pictures_looked_at"] == 3
    assert summarise_scenes(scenes, check=True)["pictures_looked_at"] == 8


def test_verified_negatives_and_unknown_names_are_counted(tmp_path):
    some = {"negatives": np.array([0, 1]), "unknown": np.array([1])}
    none = {"negatives": np.zeros(0, np.int64)}
    about = summarise_scenes(Scenes([scene(tmp_path / "a", **some), scene(tmp_path / "b", **none)], [["a"], ["b"]]))
    assert about["verified_negatives_a_picture"]["mean"] == 0.5 and about["pictures_with_unknown_classes"] == 1


def test_counts_of_named_and_captioned_pictures(tmp_path):
    named = summarise_pictures(load_pictures(DataConfig("labelled", str(write_labelled(tmp_path / "set", 6)))))
    assert named["pictures"] == 6 and named["classes"] == 4
    assert sorted(named["pictures_of_class"].values()) == [1, 1, 2, 2] and set(named["pictures_of_class"]) == set(NAMES)
    captioned = summarise_pictures(load_pictures(DataConfig("captions", str(write_captions(tmp_path / "tars", 5)))))
    assert captioned["captions"] == captioned["different_captions"] == 10
    assert captioned["words_a_caption"] == {"min": 4, "median": 5, "mean": 5, "max": 6}


# --- The sheet -------------------------------------------------------------------------------------------------------


def test_the_sheet_shows_pictures_with_their_boxes_in_place(tmp_path):
    picture = Image.new("RGB", (40, 20), "white")
    picture.save(tmp_path / "a.png")
    one = Scenes([scene(tmp_path / "a.png", [[10, 10, 20, 18]], [0])], [["cat"]])
    sheet = sheet_of_scenes(one)
    left, top = ((side - drawn) // 2 for side, drawn in ((sheet.width, CELL), (8 + 8, 0)))
    x0, y0, *_ = ImageChops.difference(sheet, Image.new("RGB", sheet.size, "white")).getbbox()
    assert x0 <= left + 100 and y0 <= top + 100  # the label stands above the box, the file's name below the picture
    assert sheet.getpixel((left + 100, top + 140)) != (255, 255, 255)  # the box's left side at ten times the size
    assert sheet.getpixel((left + 150, top + 140)) == (255, 255, 255)
    assert sheet.height < CELL  # no taller than its pictures need


@pytest.mark.parametrize("n", [1, 3, 30])
def test_sheets_have_as_many_pictures_as_asked_for_or_there_are(tmp_path, n):
    scenes = load_scenes(DataConfig("coco", str(write_shapes(tmp_path / "shapes", 8))))
    assert sheet_of_scenes(scenes, n).width == min(n, 4) * (CELL + 8) + 8
    pictures = load_pictures(DataConfig("captions", str(write_captions(tmp_path / "tars", 5))))
    assert sheet_of_pictures(pictures, n).width == min(n, 5) * (CELL // 2 + 8) + 8


def test_unreadable_pictures_are_passed_over_on_the_sheet(three, tmp_path):
    three.scenes.reverse()
    assert sheet_of_scenes(three).width > 0
    with pytest.raises(DataError, match="no picture of the set can be read"):
        sheet_of_scenes(Scenes([scene(tmp_path / "absent.png")], [["cat"]]))


# --- The command -----------------------------------------------------------------------------------------------------


def test_info_of_a_set_with_boxes(tmp_path):
    path = write_shapes(tmp_path / "shapes", 8)
    code, out, _ = info(path, "--images", path.parent / "images", "--save", tmp_path / "new" / "sheet.jpg")
    assert code == 0
    assert out.startswith(f"{path}  (kind coco, for detection)\n  pictures   8\n")
    assert "boxes      12; a picture has 1.5 on average" in out and "red square" in out and "left out   0" in out
    assert Image.open(tmp_path / "new" / "sheet.jpg").format == "JPEG"


def test_info_of_captions_and_as_json(tmp_path):
    folder = write_captions(tmp_path / "tars", 5)
    assert "captions   10, 10 different; 2 a picture" in info(folder)[1]
    about = json.loads(info(folder, "--format", "json")[1])
    assert (about["kind"], about["for"], about["pictures"], about["captions"]) == ("captions", "alignment", 5, 10)


def test_info_says_what_was_left_out(tmp_path):
    path = write_shapes(tmp_path / "shapes", 4)
    content = json.loads(path.read_text())
    content["annotations"] += [{"id": 99, "image_id": 0, "category_id": 2, "bbox": [5, 5, 0, 0]}] * 2
    (path.parent / "images" / "3.png").unlink()
    out = info(write_json(path, content))[1]
    assert "left out   3\n        2  empty box\n        1  no such picture\n" in out
    assert "e.g. annotation 99: empty box [5, 5, 0, 0]" in out


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["absent.json"], "absent.json: no such file or folder"),
        (["absent", "--images", "x"], "absent: no such file or folder"),
        (["absent"], "absent: no such model"),
        (["{here}"], "neither a model nor a data set"),
        (["{here}/set.json"], "cannot be read as a data set"),
        (["{here}", "--kind", "cooc"], "data.kind must be one of"),
        (["absent.csv"], "absent.csv: cannot be read"),
        (["{here}/good.json", "--save", "sheet.txt"], "must end in .jpg"),
    ],
)
def test_what_is_no_data_gets_one_sentence(tmp_path, arguments, sentence):
    (tmp_path / "set.json").write_text("{")
    write_json(tmp_path / "good.json", {"images": [{"file_name": "a", "label": "b"}]})
    _, _, error = info(*(argument.format(here=tmp_path) for argument in arguments))
    assert sentence in str(error) and "\n" not in str(error)


def test_a_long_table_of_classes_shows_the_most_and_the_least_frequent():
    counts = {f"class {i}": 100 - i for i in range(40)}
    about = {"path": "p", "kind": "labelled", "for": "alignment", "pictures": 1, "classes": 40}
    about |= {
        "classes_with_synonyms": 0,
        "pictures_of_class": counts,
        "broken": {"count": 0, "reasons": {}, "first": []},
    }
    text = "\n".join(data_lines(about))
    assert "class 9\n" in text and "class 10\n" not in text and "class 34\n" not in text and "class 35\n" in text
