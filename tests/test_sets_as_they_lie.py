"""Sets as other programs leave them on a disk: labels beside pictures, copies, links, quotes, marks without boxes."""

import csv
import json
import unicodedata

import numpy as np
import pytest
from fake_detector import FakeDetector
from PIL import Image
from test_label_studio import rectangle, task
from test_readers import box, coco_set, picture, voc_object, write_voc, write_yolo
from training_data import write_json

from owl_swin.data.config import DataConfig, check_mosaic
from owl_swin.data.label_maps import read_label_maps
from owl_swin.data.naming import pictures_in, place_pictures
from owl_swin.data.pictures import load_pictures
from owl_swin.data.scene import read_header, upright_size
from owl_swin.data.scenes import load_scenes
from owl_swin.data.summary import summarise_scenes
from owl_swin.data.truth import read_truth
from owl_swin.errors import ConfigError, DataError
from owl_swin.evaluation.answers import collect_answers
from owl_swin.evaluation.class_queries import make_class_queries
from owl_swin.image import open_image
from owl_swin.labelling.captions import n_grams

# --- YOLO ------------------------------------------------------------------------------------------------------------


def test_labels_may_lie_beside_their_pictures_in_a_folder_called_images(tmp_path):
    root = tmp_path / "images" / "mine"
    picture(root / "images" / "a.jpg")
    (root / "images" / "a.txt").write_text("0 0.5 0.5 0.2 0.4\n")
    (root / "classes.txt").write_text("cat\n")
    for path in (root, root / "classes.txt"):
        [scene] = load_scenes(DataConfig("yolo", str(path))).scenes
        assert np.allclose(scene.boxes, [[0.4, 0.3, 0.6, 0.7]])
    (root / "labels").mkdir()
    (root / "labels" / "a.txt").write_text("0 0.5 0.5 1 1\n")  # the place that the form has for them goes first
    [scene] = load_scenes(DataConfig("yolo", str(root))).scenes
    assert scene.boxes.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("shape, points", [("[2, 2]", ".45 .48 .55 .52"), ("[2, 3]", ".45 .48 1 .55 .52 2")])
def test_points_of_a_pose_are_no_polygon(tmp_path, shape, points):
    root = write_yolo(tmp_path, a=f"0 .5 .5 .2 .2 {points}\n1 .5 .5 .4 .4 {points} .7\n0 .3 .3 .2 .2\n")
    with open(root / "data.yaml", "a") as file:
        file.write(f"kpt_shape: {shape}\n")
    [scene] = load_scenes(DataConfig("yolo", str(root))).scenes
    assert np.allclose(scene.boxes, [[0.4, 0.4, 0.6, 0.6], [0.3, 0.3, 0.7, 0.7], [0.2, 0.2, 0.4, 0.4]])
    assert scene.scores.tolist() == pytest.approx([1, 0.7, 1])


@pytest.mark.parametrize("shape", ["[2]", "17", "[0, 3]", "[2, 5]", "[a, b]"])
def test_a_shape_of_a_pose_that_is_none_gets_one_sentence(tmp_path, shape):
    root = write_yolo(tmp_path, a="")
    with open(root / "data.yaml", "a") as file:
        file.write(f"kpt_shape: {shape}\n")
    with pytest.raises(DataError, match="kpt_shape must be a number of points and 2 or 3"):
        load_scenes(DataConfig("yolo", str(root)))


def test_a_label_file_that_cannot_be_read_says_nothing_of_any_class(tmp_path):
    root = write_yolo(tmp_path, names=("cat", "dog"), a="0 0.5 0.5 0.2 0.4\n", b="")
    (root / "labels" / "train" / "b.txt").write_bytes(b"\xff\xfe0\x00")
    truth = read_truth(root / "data.yaml", root / "images" / "train")
    detector = FakeDetector({})
    answers = collect_answers(detector, truth, make_class_queries(detector, truth))
    assert answers.present.tolist() == [[True, False], [False, False]]
    assert np.isnan(answers.best).tolist() == [[False, False], [True, True]]


# --- Pascal VOC ------------------------------------------------------------------------------------------------------


def test_a_copy_of_a_voc_file_speaks_of_its_own_picture(tmp_path):
    root = write_voc(tmp_path, a=voc_object(), a_flip=voc_object(corners=(71, 11, 90, 30)))
    copy = root / "Annotations" / "a_flip.xml"
    copy.write_text(copy.read_text().replace("a_flip.jpg", "a.jpg"))
    sources = [scene.source.name for scene in load_scenes(DataConfig("voc", str(root))).scenes]
    assert sources == ["a.jpg", "a_flip.jpg"]
    picture(root / "JPEGImages" / "a.png")  # of two with its name the file may choose
    own = root / "Annotations" / "a.xml"
    own.write_text(own.read_text().replace("a.jpg", "a.png"))
    assert load_scenes(DataConfig("voc", str(root))).scenes[0].source.name == "a.png"


def test_names_in_an_image_set_list_may_have_spaces(tmp_path):
    root = write_voc(tmp_path, **{"my dog": voc_object("dog"), "b": voc_object(), "c 1": ""})
    names = root / "ImageSets" / "Main" / "val.txt"
    names.parent.mkdir(parents=True)
    names.write_text("my dog\nb  -1\nc 1 1\nc 1\n")
    scenes = load_scenes(DataConfig("voc", str(names)))
    assert [scene.source.stem for scene in scenes.scenes] == ["my dog", "b", "c 1", "c 1"] and not scenes.broken


# --- COCO ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "synonyms, names",
    [
        (["automobile"], ["car", "automobile"]),
        (["automobile", "car"], ["automobile", "car"]),
        ("auto", ["car", "auto"]),
        (None, ["car"]),
        ([3, "auto"], ["car", "auto"]),
    ],
)
def test_a_class_is_called_by_its_name_too_whatever_its_synonyms_are(tmp_path, synonyms, names):
    path = coco_set(tmp_path, [box()], categories=[{"id": 1, "name": "car", "synonyms": synonyms}])
    assert load_scenes(DataConfig("coco", path)).names == [names]


def test_boxes_outside_a_picture_whose_size_is_not_stated_are_not_there_to_be_found(tmp_path):
    images = [{"id": 1, "file_name": "a.png"}]
    given = [box((500, 500, 50, 50)), box((90, 40, 50, 50), id=8), box((1, 1, 5, 5), id=9)]
    truth = read_truth(coco_set(tmp_path, given, images=images), tmp_path)
    assert [(a["bbox"], a["area"]) for a in truth["annotations"]] == [([90, 40, 10, 10], 100), ([1, 1, 5, 5], 25)]
    assert "empty box [500" in truth["notes"][0]


# --- Label Studio ----------------------------------------------------------------------------------------------------


def export(tmp_path, *tasks):
    for name in "ab":
        picture(tmp_path / f"{name}.png", 200, 100)
    return load_scenes(DataConfig("label_studio", str(write_json(tmp_path / "export.json", list(tasks)))))


def test_a_mark_without_a_box_leaves_its_name_unknown(tmp_path):
    brush = {"type": "brushlabels", "value": {"format": "rle", "rle": [0, 1], "brushlabels": ["cat"]}}
    scenes = export(tmp_path, task("a.png", rectangle("cat", 10, 10, 20, 20)), task("b.png", brush, number=2))
    assert [scene.unknown.tolist() for scene in scenes.scenes] == [[], [0]]
    assert scenes.scenes[1].absent(1).tolist() == [] and "brushlabels without a box" in scenes.broken[0]


@pytest.mark.parametrize(
    "rotation, expected", [(0, [40, 30, 160, 70]), (90, [80, -10, 120, 110]), (30, [47.08, 15.36, 152.92, 84.64])]
)
def test_an_ellipse_has_the_box_around_it(tmp_path, rotation, expected):
    value = {"x": 50, "y": 50, "radiusX": 30, "radiusY": 20, "rotation": rotation, "ellipselabels": ["plate"]}
    mark = {"type": "ellipselabels", "original_width": 200, "original_height": 100, "value": value}
    [scene] = export(tmp_path, task("a.png", mark)).scenes
    inside = np.clip(expected, 0, [200, 100, 200, 100])
    assert np.allclose(scene.boxes * [200, 100, 200, 100], [inside], atol=0.01)
    # The outline itself, turned in pixels, reaches as far.
    turn, around = np.radians(rotation), np.linspace(0, 2 * np.pi, 10_000)
    x, y = 60 * np.cos(around), 20 * np.sin(around)
    across, down = 100 + x * np.cos(turn) - y * np.sin(turn), 50 + x * np.sin(turn) + y * np.cos(turn)
    assert np.allclose([across.min(), down.min(), across.max(), down.max()], expected, atol=0.01)


# --- Tables, lines and captions --------------------------------------------------------------------------------------


def captioned(tmp_path, name, content):
    for stem in "abc":
        picture(tmp_path / f"{stem}.png")
    (tmp_path / name).write_bytes(content.encode())
    kind = "jsonl" if name.endswith("jsonl") else "csv"
    return load_pictures(DataConfig(kind, str(tmp_path / name), path_column="path", caption_column="caption"))


def test_quotes_that_do_not_pair_cost_no_line(tmp_path):
    lines = ["path\tcaption", 'a.png\t"hi there', "b.png\ta dog", 'c.png\ta "cat"']
    assert captioned(tmp_path, "t.tsv", "\n".join(lines) + "\n").texts == [['"hi there'], ['a "cat"'], ["a dog"]]


def test_quotes_that_pair_by_chance_swallow_no_rows(tmp_path):
    content = 'path\tcaption\na.png\t"hi there\nb.png\ta dog\nc.png\ta screen of 6"\n'
    found = captioned(tmp_path, "t.tsv", content).texts
    assert sorted(map(tuple, found)) == [('"hi there',), ("a dog",), ('a screen of 6"',)]


def test_one_odd_quote_leaves_the_other_rows_as_they_are(tmp_path):
    content = 'path,caption\nb.png,"red" car\na.png,"two\nlines"\n'
    assert sorted(map(tuple, captioned(tmp_path, "t.csv", content).texts)) == [("red car",), ("two\nlines",)]


def test_a_quote_that_is_never_closed_in_a_large_table_is_one_line(tmp_path):
    rows = "".join(f'a.png,"thing {i}, here"\r\n' for i in range(csv.field_size_limit() // 20))
    found = captioned(tmp_path, "t.csv", 'path,caption\r\nb.png,"a dog\r\n' + rows + "c.png,one, two\r\n")
    assert found.texts[0] == ['"a dog'] and found.texts[1][:2] == ["thing 0, here", "thing 1, here"]
    assert len(found.texts) == 2 and "has 3 columns of 2" in found.broken[0]


def test_a_field_in_quotes_may_have_several_lines(tmp_path):
    assert captioned(tmp_path, "t.csv", 'path,caption\na.png,"a\ndog, ""big"""\n').texts == [['a\ndog, "big"']]


@pytest.mark.parametrize("sign", ["\u2028", "\x85", "\x0b", "\x1c"])
def test_lines_of_json_end_where_json_says(tmp_path, sign):
    if ord(sign) < 32:
        row = json.dumps({"path": "a.png", "caption": f"a{sign}dog"})
    else:
        row = json.dumps({"path": "a.png", "caption": f"a{sign}dog"}, ensure_ascii=False)
    found = captioned(tmp_path, "t.jsonl", row + "\r\n" + "[" * 100_000 + "\n")
    assert found.texts == [[f"a{sign}dog"]] and len(found.broken) == 1


@pytest.mark.parametrize(
    "caption, names",
    [
        ("crème brûlée", ("crème", "brûlée", "crème brûlée")),
        ("हिन्दी पुस्तक", ("हिन्दी", "पुस्तक", "हिन्दी पुस्तक")),
        ("หมาสีดำ", ("หมาสีดำ",)),
        ("a dog ❤️ a cat 1️⃣", ("dog", "cat")),
    ],
)
def test_accents_and_vowels_that_are_signs_of_their_own_belong_to_their_word(caption, names):
    for form in ("NFC", "NFD"):
        found = n_grams([unicodedata.normalize(form, caption)])
        assert found == tuple(unicodedata.normalize("NFC", name) for name in names)


# --- Folders and files -----------------------------------------------------------------------------------------------


def test_linked_folders_are_read_and_hidden_ones_are_not(tmp_path):
    elsewhere = picture(tmp_path / "elsewhere" / "a.png").parent
    photos = picture(tmp_path / "photos" / "b.png").parent
    picture(photos / ".ipynb_checkpoints" / "b-checkpoint.png")
    (photos / "train").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "back").symlink_to(photos, target_is_directory=True)  # a circle
    assert [path.relative_to(photos).as_posix() for path in pictures_in(photos)] == ["b.png", "train/a.png"]
    assert [path.name for path in pictures_in(photos, deep=False)] == ["b.png"]


def test_label_maps_are_no_pictures_of_themselves(tmp_path):
    picture(tmp_path / "set" / "images" / "a.jpg")
    (tmp_path / "set" / "maps").mkdir()
    Image.fromarray(np.ones((50, 100), np.uint8)).save(tmp_path / "set" / "maps" / "a.png")
    (tmp_path / "names.txt").write_text("wall\nsky\n")
    config = DataConfig("label_maps", str(tmp_path / "set" / "maps"), names=str(tmp_path / "names.txt"))
    assert load_scenes(config).scenes[0].source == tmp_path / "set" / "images" / "a.jpg"
    (tmp_path / "set" / "images").rename(tmp_path / "set" / "photos")
    with pytest.raises(DataError, match="no map in it is called as a picture"):
        load_scenes(config)


def test_label_maps_may_lie_among_their_pictures(tmp_path):
    picture(tmp_path / "mixed" / "a.jpg")
    picture(tmp_path / "a.jpg")  # of that name, and not of that map
    Image.fromarray(np.ones((50, 100), np.uint8)).save(tmp_path / "mixed" / "a.png")
    (tmp_path / "names.txt").write_text("wall\nsky\n")
    [scene] = load_scenes(DataConfig("label_maps", str(tmp_path / "mixed"), names=str(tmp_path / "names.txt"))).scenes
    assert scene.source == tmp_path / "mixed" / "a.jpg"


@pytest.mark.parametrize("ignore, nothing", [([70_000], None), ([-1], None), ([255], -3)])
def test_values_that_no_label_map_has_get_one_sentence(tmp_path, ignore, nothing):
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="label maps have values of 0 to"):
        read_label_maps(tmp_path, tmp_path, names=["wall"], ignore=ignore, nothing=nothing)


@pytest.mark.parametrize("orientation, turned", [(0, 0), (1, 0), (3, 1), (6, 1), (9, 0)])
def test_an_orientation_that_exif_does_not_have_turns_nothing(tmp_path, orientation, turned):
    path = coco_set(tmp_path, [box()])
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", (100, 50)).save(tmp_path / "a.png", exif=exif)
    about = summarise_scenes(load_scenes(DataConfig("coco", path)))
    assert about["pictures_turned_by_exif"] == turned
    assert about["pictures_not_of_stated_size"] == (1 if orientation == 6 else 0)


def test_shares_that_are_no_numbers_are_refused():
    with pytest.raises(ConfigError, match="weight must be positive"):
        DataConfig("coco", "a.json", weight=float("nan"))
    with pytest.raises(ConfigError, match="mosaic must be probabilities"):
        check_mosaic("detect", (float("nan"),))


def test_pictures_of_one_name_in_two_folders_stay_two(tmp_path):
    for name in ("a.jpg", "x/y/a.jpg", "x/b.jpg"):
        picture(tmp_path / "ph" / name)
    # As a command calls them that ran beside the folder.
    assert place_pictures(tmp_path / "ph", ["ph/a.jpg", "ph/x/y/a.jpg"]) == [
        tmp_path / "ph" / "a.jpg",
        tmp_path / "ph" / "x" / "y" / "a.jpg",
    ]
    assert place_pictures(tmp_path / "ph", ["ph\\a.jpg", "ph\\x\\b.jpg"])[1] == tmp_path / "ph" / "x" / "b.jpg"
    # Two names of a flat copy that are alike cost the others nothing.
    names = [f"d{i}/{i}.jpg" for i in range(50)] + ["e/0.jpg"]
    for i in range(50):
        picture(tmp_path / "flat" / f"{i}.jpg", 2, 2)
    places = place_pictures(tmp_path / "flat", names)
    assert sum(place.is_file() for place in places) == 49 and len(set(places)) == 51
    one, other = place_pictures(tmp_path / "ph" / "x" / "y", ["p/a.jpg", "q/a.jpg"])
    assert one != other  # nothing is there under either name, rather than one picture twice


def test_two_tasks_are_never_one_picture(tmp_path):
    mark = rectangle("cat", 10, 10, 20, 20)
    scenes = export(tmp_path, task("p/a.png", mark), task("p/x/a.png", number=2), task("p/a.png", mark, number=3))
    assert [scene.source.name for scene in scenes.scenes] == ["a.png", "a.png"]
    assert "task 2: p/x/a.png and p/a.png are both a.png here" in scenes.broken[0]


@pytest.mark.parametrize("form", ["TIFF", "JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_form_has_one_size_and_one_turn(tmp_path, form, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.new("RGB", (90, 40), "red")
    stored.paste("blue", (0, 0, 45, 20))
    path = tmp_path / f"turned.{form.lower()}"
    stored.save(path, exif=exif)
    assert read_header(path) == ((90, 40), orientation)
    upright = open_image(path)
    assert upright_size(path) == upright.size == ((40, 90) if orientation > 4 else (90, 40))
    # Boxes that speak of the upright picture, and boxes that speak of it as it is stored.
    for wh, shown in ((upright.size, upright), *([((90, 40), stored)] if orientation > 4 else [])):
        record = {"id": 1, "file_name": path.name, "width": wh[0], "height": wh[1]}
        scenes = load_scenes(DataConfig("coco", coco_set(tmp_path, [box((1, 1, 5, 5))], images=[record])))
        [scene] = scenes.scenes
        assert scenes.picture(scene).size == wh
        assert scenes.picture(scene).getpixel((3, 3))[2] == pytest.approx(shown.getpixel((3, 3))[2], abs=20)
