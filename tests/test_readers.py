"""Readers of detection sets: LVIS, Pascal VOC, YOLO, Visual Genome; EXIF turns, synonyms, every kind of breakage."""

import itertools
import logging
import re

import numpy as np
import pytest
from picture_files import turned
from PIL import Image
from training_data import write_json

from owl_swin.data.broken import reasons
from owl_swin.data.config import ALIGN_KINDS, DETECT_KINDS, DataConfig
from owl_swin.data.guess import guess_kind
from owl_swin.data.naming import find_classes, place_pictures, spoken_names
from owl_swin.data.pictures import load_pictures
from owl_swin.data.scene import Scene
from owl_swin.data.scenes import load_scenes
from owl_swin.errors import ConfigError, DataError, brief
from owl_swin.image import open_image


def picture(path, width=100, height=50):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), "grey").save(path)
    return path


def coco_set(folder, annotations, *, categories=None, images=None):
    """A COCO file and its one picture of 100 x 50, unless ``images`` has others."""
    picture(folder / "a.png")
    images = [{"id": 1, "file_name": "a.png", "width": 100, "height": 50}] if images is None else images
    categories = categories or [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "cow"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return str(write_json(folder / "set.json", content))


def box(bbox=(10, 10, 20, 20), category=1, **more):
    return {"id": 7, "image_id": 1, "category_id": category, "bbox": list(bbox), **more}


# --- What a scene says of names without boxes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels, negatives, unknown, absent",
    [
        ([], None, [], [0, 1, 2, 3]),
        ([1, 1], None, [], [0, 2, 3]),
        ([1], None, [3], [0, 2]),
        ([1], [], [], []),
        ([1], [2, 3], [], [2, 3]),
        ([1], [1, 2, 3], [3], [2]),
    ],
)
def test_absent_names_are_those_that_were_looked_for_and_not_found(labels, negatives, unknown, absent):
    rows = [np.array(values, dtype=np.int64) for values in (labels, negatives or [], unknown)]
    scene = Scene(
        "a", np.zeros((len(labels), 4)), rows[0], negatives=None if negatives is None else rows[1], unknown=rows[2]
    )
    assert scene.absent(4).tolist() == absent


def test_a_plain_set_knows_every_absent_name(tmp_path):
    scene = load_scenes(DataConfig("coco", coco_set(tmp_path, [box()]))).scenes[0]
    assert scene.negatives is None and scene.unknown.tolist() == [] and scene.absent(3).tolist() == [1, 2]


def test_lvis_tells_verified_negatives_and_names_with_missing_boxes(tmp_path):
    image = {"id": 1, "file_name": "a.png", "width": 100, "height": 50}
    image |= {"neg_category_ids": [9], "not_exhaustive_category_ids": [4]}
    categories = [
        {"id": 4, "name": "aerosol_can", "synonyms": ["aerosol_can", "spray_can"]},
        {"id": 6, "name": "sofa, couch, sofa"},
        {"id": 9, "name": "bow_(weapon)", "synonyms": []},
    ]
    path = coco_set(tmp_path, [box(category=4)], images=[image], categories=categories)
    scenes = load_scenes(DataConfig("lvis", path))
    assert scenes.names == [["aerosol can", "spray can"], ["sofa", "couch"], ["bow (weapon)"]]
    scene = scenes.scenes[0]
    assert scene.labels.tolist() == [0] and scene.negatives.tolist() == [2] and scene.unknown.tolist() == [0]
    assert scene.absent(3).tolist() == [2]  # nobody looked for a sofa
    assert load_scenes(DataConfig("coco", path)).scenes[0].negatives.tolist() == [2]


@pytest.mark.parametrize("kind", ["coco", "lvis"])
def test_unsure_boxes_of_every_form_of_coco_are_vague(tmp_path, kind):
    image = {"id": 1, "file_name": "a.png", "width": 100, "height": 50, "neg_category_ids": []}
    guessed = [box() | {"score": 0.9}, box(bbox=[50, 5, 20, 20]) | {"id": 2, "score": 0.2}]
    path = coco_set(tmp_path, guessed, images=[image])
    [scene] = load_scenes(DataConfig(kind, path, ignore_below=0.5)).scenes
    assert scene.scores.tolist() == pytest.approx([0.9]) and scene.vague_boxes.tolist() == [[50, 5, 70, 25]]
    assert len(load_pictures(DataConfig("crops", path, ignore_below=0.5)).images) == 1


def test_a_file_without_negatives_is_no_lvis(tmp_path):
    with pytest.raises(DataError, match="no image record has 'neg_category_ids'; read it as kind 'coco'"):
        load_scenes(DataConfig("lvis", coco_set(tmp_path, [box()])))


@pytest.mark.parametrize("key", ["iscrowd", "isgroupof"])
def test_groups_leave_their_name_unknown(tmp_path, key):
    scene = load_scenes(DataConfig("coco", coco_set(tmp_path, [box(category=2, **{key: 1})]))).scenes[0]
    assert len(scene.boxes) == 0 and scene.unknown.tolist() == [1] and scene.absent(3).tolist() == [0, 2]


# --- COCO: names, places, sizes --------------------------------------------------------------------------------------


def test_classes_of_the_same_names_are_one(tmp_path, caplog):
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "cat"}]
    path = coco_set(tmp_path, [box(category=1), box(category=2), box(category=3)], categories=categories)
    with caplog.at_level(logging.WARNING, "owl_swin"):
        scenes = load_scenes(DataConfig("coco", path))
    assert scenes.names == [["cat"], ["dog"]] and scenes.scenes[0].labels.tolist() == [0, 1, 0]
    assert "1 classes have the names of others" in caplog.text


def test_rare_names_go_with_their_boxes(tmp_path):
    path = coco_set(tmp_path, [box(category=2), box(category=3), box((0, 0, 9, 9), category=3)])
    scenes = load_scenes(DataConfig("coco", path, min_per_class=2))
    assert scenes.names == [["cow"]] and scenes.scenes[0].labels.tolist() == [0, 0]
    assert len(scenes.scenes[0].boxes) == 2


@pytest.mark.parametrize(
    "stated, placed",
    [
        ("a.png", "a.png"),
        ("images/v1/patch8/a.png", "patch8/a.png"),
        ("http://host/val/b.png", "b.png"),
        ("c.png", "c.png"),
    ],
)
def test_pictures_are_found_where_the_copy_has_them(tmp_path, stated, placed):
    if placed != "c.png":
        picture(tmp_path / placed)
    assert place_pictures(tmp_path, [stated]) == [tmp_path / placed]


def test_pictures_lie_beside_the_file_when_no_folder_is_given(tmp_path):
    path = coco_set(tmp_path, [box()])
    assert load_scenes(DataConfig("coco", path)).scenes[0].source == tmp_path / "a.png"
    picture(tmp_path / "images" / "a.png")
    assert load_scenes(DataConfig("coco", path)).scenes[0].source == tmp_path / "images" / "a.png"


def test_boxes_are_scaled_from_the_stated_size_to_the_stored_one(tmp_path):
    images = [{"id": 1, "file_name": "a.png", "width": 400, "height": 200}]  # stored at a quarter
    scenes = load_scenes(DataConfig("coco", coco_set(tmp_path, [box((40, 40, 80, 80))], images=images)))
    scene = scenes.scenes[0]
    assert scene.boxes_on(scenes.picture(scene)).tolist() == [[10, 10, 30, 30]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("speaks_of", ["shown", "stored"])
def test_boxes_fit_pictures_that_exif_turns(tmp_path, orientation, speaks_of):
    # A black square on white, 100 x 50 when upright; its box is found by looking at the pixels.
    upright = Image.new("RGB", (100, 50), "white")
    upright.paste("black", (10, 5, 30, 25))
    (tmp_path / "t.png").write_bytes(turned(upright, orientation))
    stored = Image.open(tmp_path / "t.png").convert("RGB")
    # A turn that keeps the size cannot be told from it: the boxes are taken as of the picture shown.
    seen = stored if speaks_of == "stored" and orientation >= 5 else upright
    x0, y0, x1, y1 = Image.eval(seen, lambda value: 255 - value).getbbox()
    images = [{"id": 1, "file_name": "t.png", "width": seen.width, "height": seen.height}]
    scenes = load_scenes(DataConfig("coco", coco_set(tmp_path, [box((x0, y0, x1 - x0, y1 - y0))], images=images)))
    found = scenes.picture(scenes.scenes[0])
    assert np.array_equal(np.asarray(found), np.asarray(seen))
    assert scenes.scenes[0].boxes_on(found).tolist() == [[x0, y0, x1, y1]]


def test_pictures_without_a_stated_size_are_taken_as_shown(tmp_path):
    (tmp_path / "t.png").write_bytes(turned(Image.new("RGB", (100, 50)), 6))
    path = coco_set(tmp_path, [box()], images=[{"id": 1, "file_name": "t.png"}])
    scenes = load_scenes(DataConfig("coco", path))
    assert scenes.picture(scenes.scenes[0]).size == open_image(tmp_path / "t.png").size == (100, 50)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "a.png"}]}, "picture 1: given twice"),
        ({"images": [{"id": 1, "file_name": "a.png"}, {"id": 2}]}, "picture 2: no file name"),
        ({"images": [{"id": 1, "file_name": "a.png"}, "b.png"]}, "image record number 2: not in COCO's form"),
        ({"images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]}, "b.png: no such picture"),
        ({"annotations": [box(), {"id": 8}]}, "annotation 8: not in COCO's form (problem with 'category_id')"),
        ({"annotations": [box(), 3]}, "annotation number 2: not in COCO's form"),
        ({"annotations": [box(), box((10, 10, 0, 5))]}, "annotation 7: empty box [10, 10, 0, 5]"),
        ({"annotations": [box(), box(category=[1])]}, "annotation 7: not in COCO's form"),
        (
            {"images": [{"id": 1, "file_name": "a.png", "neg_category_ids": [44]}]},
            "unknown category 44 in neg_category",
        ),
        ({"images": [{"id": 1, "file_name": "a.png", "neg_category_ids": 3}]}, "neg_category_ids is no list"),
        ({"categories": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]}, "category 1: given twice"),
        ({"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": " "}]}, "category 2: has no name"),
    ],
)
def test_a_broken_entry_is_left_out_and_said(tmp_path, caplog, change, sentence):
    path = coco_set(tmp_path, **{"annotations": [box()], **change})
    with caplog.at_level(logging.WARNING, "owl_swin"):
        scenes = load_scenes(DataConfig("coco", path))
    assert len(scenes.scenes) == 1 and scenes.scenes[0].boxes.tolist() == [[10, 10, 30, 30]]
    assert len(scenes.broken) == 1 and sentence in scenes.broken[0]
    assert "1 entry left out" in caplog.text and sentence in caplog.text


def test_nothing_left_is_an_error_that_says_the_first_problem(tmp_path):
    path = coco_set(tmp_path, [], images=[{"id": 1, "file_name": "gone.png"}])
    with pytest.raises(DataError, match=r"holds 0 pictures and 3 names, need both; .*gone\.png: no such picture"):
        load_scenes(DataConfig("coco", path))


# --- Pascal VOC ------------------------------------------------------------------------------------------------------


def voc_object(name="cat", corners=(11, 11, 30, 30), **more):
    fields = dict(zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    inner = "".join(f"<{key}>{value}</{key}>" for key, value in fields.items())
    extra = "".join(f"<{key}>{value}</{key}>" for key, value in more.items())
    return f"<object><name>{name}</name><bndbox>{inner}</bndbox>{extra}</object>"


def write_voc(root, **objects):
    """A VOC folder: for each file stem its objects; pictures are 100 x 50."""
    for stem, content in objects.items():
        picture(root / "JPEGImages" / f"{stem}.jpg")
        xml = root / "Annotations" / f"{stem}.xml"
        xml.parent.mkdir(exist_ok=True)
        size = "<size><width>100</width><height>50</height></size>"
        xml.write_text(f"<annotation><filename>{stem}.jpg</filename>{size}{content}</annotation>")
    return root


def test_voc_corners_count_from_one_and_names_are_said_in_words(tmp_path):
    root = write_voc(tmp_path, a=voc_object("diningtable", (1, 1, 100, 50)) + voc_object("cat"), b="")
    for path in (root, root / "Annotations"):
        scenes = load_scenes(DataConfig("voc", str(path)))
        assert scenes.names == [["cat"], ["dining table"]] and scenes.broken == []
        first, second = scenes.scenes
        assert first.source == root / "JPEGImages" / "a.jpg"
        assert first.boxes.tolist() == [[0, 0, 100, 50], [10, 10, 30, 30]] and first.labels.tolist() == [1, 0]
        assert second.boxes.shape == (0, 4)


def test_an_image_set_list_names_the_pictures(tmp_path):
    root = write_voc(tmp_path, a=voc_object(), b=voc_object("dog"), c="")
    names = root / "ImageSets" / "Main" / "val.txt"
    names.parent.mkdir(parents=True)
    names.write_text("b\nc  -1\n")
    scenes = load_scenes(DataConfig("voc", str(names)))
    assert [scene.source.stem for scene in scenes.scenes] == ["b", "c"] and scenes.names == [["dog"]]


def test_difficult_objects_leave_their_name_unknown(tmp_path):
    root = write_voc(tmp_path, a=voc_object() + voc_object("dog", difficult=1))
    scene = load_scenes(DataConfig("voc", str(root))).scenes[0]
    assert scene.labels.tolist() == [0] and scene.unknown.tolist() == [1] and scene.absent(2).tolist() == []


@pytest.mark.parametrize(
    "content, sentence",
    [
        (voc_object(corners=(30, 30, 10, 10)), "bad.xml object 1: empty box ['30', '30', '10', '10']"),
        (voc_object(corners=("nan", 1, 2, 3)), "bad.xml object 1: not four numbers"),
        (voc_object(corners=("", 1, 2, 3)), "bad.xml object 1: not four numbers"),
        (voc_object(name=""), "bad.xml object 1: has no name"),
        ("<object>", "bad.xml: not an XML file"),
    ],
)
def test_broken_voc_entries_are_left_out_and_said(tmp_path, content, sentence):
    scenes = load_scenes(DataConfig("voc", str(write_voc(tmp_path, bad=content, good=voc_object()))))
    assert scenes.scenes[-1].boxes.tolist() == [[10, 10, 30, 30]]
    assert len(scenes.broken) == 1 and sentence in scenes.broken[0]


def test_a_listed_picture_without_its_files_is_said(tmp_path):
    root = write_voc(tmp_path, a=voc_object(), b=voc_object())
    (root / "JPEGImages" / "b.jpg").unlink()
    (root / "train.txt").write_text("a\nb\nabsent\n")
    scenes = load_scenes(DataConfig("voc", str(root / "train.txt")))
    assert [scene.source.stem for scene in scenes.scenes] == ["a"]
    assert sorted(reasons(scenes.broken)) == ["no such picture", "not an XML file that can be read"]


# --- YOLO ------------------------------------------------------------------------------------------------------------


def write_yolo(root, names=("cat", "traffic_light"), split="train", **labels):
    """images/SPLIT and labels/SPLIT with data.yaml; a picture whose labels are None has no file of them."""
    for stem, content in labels.items():
        picture(root / "images" / split / f"{stem}.png")
        if content is not None:
            file = root / "labels" / split / f"{stem}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
    (root / "data.yaml").write_text(f"path: /elsewhere\n{split}: images/{split}\nnames: {list(names)}\n")
    return root


def test_yolo_boxes_are_fractions_of_the_picture_whatever_its_size(tmp_path):
    root = write_yolo(tmp_path, a="0 0.5 0.5 0.2 0.4\n\n1 0.05 0.5 0.2 1\n", b=None, c="")
    for path in (root, root / "data.yaml"):
        scenes = load_scenes(DataConfig("yolo", str(path)))
        assert scenes.names == [["cat"], ["traffic light"]] and scenes.broken == []
        first, *others = scenes.scenes
        boxes = first.boxes_on(scenes.picture(first))
        assert np.allclose(boxes, [[40, 15, 60, 35], [0, 0, 15, 50]], atol=1e-4)  # the second is cut to the picture
        assert [len(scene.boxes) for scene in others] == [0, 0]


def test_a_polygon_becomes_the_box_around_it(tmp_path):
    scenes = load_scenes(DataConfig("yolo", str(write_yolo(tmp_path, a="0 0.1 0.2 0.5 0.2 0.3 0.8\n"))))
    assert np.allclose(scenes.scenes[0].boxes, [[0.1, 0.2, 0.5, 0.8]])


def test_lines_of_a_guessed_yolo_set_end_with_a_score(tmp_path):
    lines = "0 0.5 0.5 0.2 0.4 0.9\n1 0.2 0.2 0.1 0.1 0.3\n1 0.1 0.2 0.5 0.2 0.3 0.8 0.6\n"
    root = str(write_yolo(tmp_path, a=lines))
    [scene] = load_scenes(DataConfig("yolo", root, ignore_below=0.5)).scenes
    assert scene.labels.tolist() == [0, 1] and scene.scores.tolist() == pytest.approx([0.9, 0.6])
    assert scene.boxes[1].tolist() == pytest.approx([0.1, 0.2, 0.5, 0.8])
    assert scene.vague_labels.tolist() == [1] and scene.vague_boxes[0].tolist() == pytest.approx(
        [0.15, 0.15, 0.25, 0.25]
    )


def test_vague_boxes_are_for_kinds_whose_boxes_have_scores():
    with pytest.raises(ConfigError, match="which coco, lvis, yolo, crops may have, not voc"):
        DataConfig("voc", "a", ignore_below=0.3)


def test_names_may_be_numbered_and_folders_may_be_written_from_below(tmp_path):
    picture(tmp_path / "valid" / "images" / "a.png")
    (tmp_path / "valid" / "labels").mkdir()
    (tmp_path / "valid" / "labels" / "a.txt").write_text("7 0.5 0.5 1 1")
    (tmp_path / "data.yaml").write_text("names: {3: dog, 7: 'sofa, couch'}\nvalid: ../valid/images\n")
    scenes = load_scenes(DataConfig("yolo", str(tmp_path), split="val"))
    assert scenes.names == [["dog"], ["sofa", "couch"]] and scenes.scenes[0].labels.tolist() == [1]


def test_a_list_of_classes_is_enough(tmp_path):
    for folder in ("", "images"):
        picture(tmp_path / folder / "a.png")
        (tmp_path / "a.txt").write_text("1 0.5 0.5 1 1")
        (tmp_path / "classes.txt").write_text("cat\ndog\n")
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / "a.txt").write_text("1 0.5 0.5 1 1")
        scenes = load_scenes(DataConfig("yolo", str(tmp_path)))
        assert scenes.names == [["cat"], ["dog"]] and scenes.scenes[0].labels.tolist() == [1]


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("5 0.5 0.5 0.1 0.1", "train/bad.txt line 1: unknown class 5"),
        ("0 0.5 0.5 0.1", "line 1: not 'class cx cy w h'"),
        ("0 0.5 0.5 0.1 0.1 1.9", "line 1: its score must lie in 0 to 1, got 1.9"),
        ("0.7 0.5 0.5 0.1 0.1", "line 1: not numbers"),
        ("inf 0.5 0.5 0.1 0.1", "line 1: not numbers"),
        ("0 50 25 10 10", "line 1: not fractions of the picture"),
        ("0 0.5 0.5 0 0.1", "line 1: empty box"),
        ("0 nan 0.5 0.1 0.1", "line 1: not four numbers"),
        ("cat 0.5 0.5 0.1 0.1", "line 1: not numbers"),
    ],
)
def test_broken_yolo_lines_are_left_out_and_said(tmp_path, line, sentence):
    scenes = load_scenes(DataConfig("yolo", str(write_yolo(tmp_path, bad=f"{line}\n0 0.5 0.5 0.2 0.4\n"))))
    assert len(scenes.scenes[0].boxes) == 1
    assert len(scenes.broken) == 1 and sentence in scenes.broken[0]


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("names: [", "not a YAML file"),
        ("names: [a]", "has no split 'train'; it has none"),
        ("- a", "not a set of kind"),
    ],
)
def test_a_wrong_yaml_gets_one_sentence(tmp_path, content, sentence):
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(DataError, match=sentence) as caught:
        load_scenes(DataConfig("yolo", str(tmp_path / "data.yaml")))
    assert "\n" not in str(caught.value)


# --- Visual Genome ---------------------------------------------------------------------------------------------------


def test_objects_have_free_names_and_nothing_is_a_verified_negative(tmp_path):
    picture(tmp_path / "VG_100K_2" / "12.jpg")
    thing = {"x": 10, "y": 10, "w": 20, "h": 20, "names": ["Man", "player"]}
    path = write_json(tmp_path / "objects.json", [{"image_id": 12, "objects": [thing, {**thing, "names": ["hat"]}]}])
    scenes = load_scenes(DataConfig("visual_genome", str(path)))
    assert scenes.names == [["man"], ["player"], ["hat"]]
    scene = scenes.scenes[0]
    assert scene.source == tmp_path / "VG_100K_2" / "12.jpg" and scene.labels.tolist() == [0, 1, 2]
    assert scene.boxes.tolist() == [[10, 10, 30, 30]] * 3 and scene.absent(3).tolist() == []


def test_regions_are_phrases_and_sizes_come_from_the_file_beside(tmp_path):
    picture(tmp_path / "3.jpg")
    region = {"x": -5, "y": 0, "width": 500, "height": 40, "phrase": "A red kite in the sky."}
    path = write_json(tmp_path / "region_descriptions.json", [{"id": 3, "regions": [region]}])
    write_json(tmp_path / "image_data.json", [{"image_id": 3, "width": 200, "height": 100}])
    scenes = load_scenes(DataConfig("visual_genome", str(path)))
    assert scenes.names == [["a red kite in the sky"]]
    assert scenes.scenes[0].boxes.tolist() == [[0, 0, 200, 40]] and scenes.scenes[0].stated_wh == (200, 100)


@pytest.mark.parametrize(
    "record, sentence",
    [
        (
            {"image_id": 1, "objects": [{"x": 1, "y": 1, "w": 0, "h": 5, "names": ["hat"]}]},
            "entry 1: empty box [1, 1, 0, 5]",
        ),
        ({"image_id": 1, "objects": [{"x": 1, "names": ["hat"]}]}, "picture 1 entry 1: not four numbers"),
        ({"image_id": 1, "objects": [{"x": 1, "y": 1, "w": 3, "h": 5, "names": []}]}, "entry 1: has no name"),
        ({"image_id": 1}, "record number 2: neither objects nor regions"),
        (7, "record number 2: neither objects nor regions"),
    ],
)
def test_broken_visual_genome_entries_are_left_out_and_said(tmp_path, record, sentence):
    picture(tmp_path / "1.jpg")
    good = {"image_id": 1, "objects": [{"x": 1, "y": 1, "w": 5, "h": 5, "names": ["cat"]}]}
    scenes = load_scenes(DataConfig("visual_genome", str(write_json(tmp_path / "objects.json", [good, record]))))
    assert len(scenes.scenes[0].boxes) == 1
    assert len(scenes.broken) == 1 and sentence in scenes.broken[0]


# --- All kinds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DETECT_KINDS)
def test_an_absent_or_empty_set_gets_one_sentence(tmp_path, kind):
    (tmp_path / "empty").mkdir()
    names = tmp_path / "names.txt"
    names.write_text("wall\n")
    for name in ("absent.json", "empty"):
        with pytest.raises(DataError) as caught:
            load_scenes(DataConfig(kind, str(tmp_path / name), names=str(names) if kind == "label_maps" else ""))
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_kinds_for_alignment_alone_have_no_boxes(tmp_path):
    for kind in set(ALIGN_KINDS) - set(DETECT_KINDS):
        with pytest.raises(DataError, match="have no boxes to detect"):
            load_scenes(DataConfig(kind, str(tmp_path)))


@pytest.mark.parametrize(
    "text, names",
    [
        ("cat", ["cat"]),
        ("sofa, couch", ["sofa", "couch"]),
        ("traffic_light", ["traffic light"]),
        (" a ,, a", ["a"]),
        ("", []),
    ],
)
def test_names_are_split_at_commas_and_said_in_words(text, names):
    assert spoken_names(text) == names


def test_what_was_left_out_is_counted_by_reason():
    broken = ["annotation 1: empty box [0, 0]", "annotation 2: empty box [3, 3]", "a.txt line 3: unknown class 7"]
    assert reasons([]) == {}
    assert reasons(broken) == {"empty box": 2, "unknown class": 1}


def test_kinds_are_guessed_from_what_lies_there(tmp_path):
    (tmp_path / "nothing").mkdir()
    image = {"id": 1, "file_name": "a.png"}
    files = {
        "coco": {"images": [image], "annotations": [box()], "categories": []},
        "lvis": {"images": [image | {"neg_category_ids": []}], "annotations": [], "categories": []},
        "coco_captions": {"images": [image], "annotations": [{"caption": "a"}]},
        "labelled": {"images": [image | {"label": "cat"}]},
        "cutouts": {"images": [image | {"name": "cat"}]},
        "sheets": {"tile_px": 4},
        "visual_genome": [{"objects": []}],
    }
    for kind, content in files.items():
        assert guess_kind(str(write_json(tmp_path / "one.json", content))) == kind
    assert guess_kind(str(write_voc(tmp_path / "voc", a=""))) == "voc"
    assert guess_kind(str(write_yolo(tmp_path / "yolo", a=""))) == "yolo"
    picture(tmp_path / "classes" / "cat" / "a.png")
    assert guess_kind(str(tmp_path / "classes")) == "folders"
    by_name = {"a.csv": "csv", "a.tsv": "csv", "a.jsonl": "jsonl", "a-{0..3}.tar": "captions", "d.yaml": "yolo"}
    assert {name: guess_kind(name) for name in by_name} == by_name
    for nothing in ("nano", "absent.json", str(tmp_path / "nothing"), str(write_json(tmp_path / "x.json", {"a": 1}))):
        assert guess_kind(nothing) is None


# --- Files as editors and exporters leave them ------------------------------------------------------------------------


def with_mark(path):
    """Puts the UTF-8 byte order mark before a file."""
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    return str(path)


def test_a_byte_order_mark_is_read_over_everywhere(tmp_path):
    path = coco_set(tmp_path / "coco", [box()])
    assert load_scenes(DataConfig("coco", with_mark(tmp_path / "coco" / "set.json"))).scenes[0].labels.tolist() == [0]
    assert guess_kind(path) == "coco"
    yolo = write_yolo(tmp_path / "yolo", a="0 0.5 0.5 0.2 0.4\n")
    with_mark(yolo / "data.yaml")
    with_mark(next(yolo.rglob("a.txt")))
    scenes = load_scenes(DataConfig("yolo", str(yolo / "data.yaml")))
    assert scenes.broken == [] and scenes.scenes[0].labels.tolist() == [0]
    root = write_voc(tmp_path / "voc", a=voc_object())
    with_mark(root / "Annotations" / "a.xml")
    (root / "list.txt").write_text("a\n")
    assert load_scenes(DataConfig("voc", with_mark(root / "list.txt"))).names == [["cat"]]
    picture(tmp_path / "1.jpg")
    record = {"image_id": 1, "objects": [{"x": 1, "y": 1, "w": 5, "h": 5, "names": ["cat"]}]}
    path = with_mark(write_json(tmp_path / "objects.json", [record]))
    assert load_scenes(DataConfig("visual_genome", path)).names == [["cat"]]
    (tmp_path / "t.jsonl").write_text('{"path": "1.jpg", "caption": "a cat"}')
    assert load_pictures(DataConfig("jsonl", with_mark(tmp_path / "t.jsonl"))).texts == [["a cat"]]


@pytest.mark.parametrize("bbox", [None, []])
def test_a_polygon_without_a_box_gets_the_box_around_it(tmp_path, bbox):
    thing = box(bbox or (), segmentation=[[10, 12, 30, 12, 20, 40], [28, 10, 35, 10, 35, 20]])
    if bbox is None:
        del thing["bbox"]
    scenes = load_scenes(DataConfig("coco", coco_set(tmp_path, [thing])))
    assert scenes.scenes[0].boxes.tolist() == [[10, 10, 35, 40]] and scenes.broken == []


@pytest.mark.parametrize(
    "segmentation",
    [
        [10, 10, 35, 10, 35, 40, 10, 40],  # one polygon, not in a list of its own
        {"size": [50, 100], "counts": [510, *[30, 20] * 24, 30, 3260]},
        {"size": [50, 100], "counts": "n?n0d" + 48 * "0" + "XU3"},
    ],
)
def test_a_mask_without_a_box_gets_the_box_around_it(tmp_path, segmentation):
    thing = box(segmentation=segmentation)
    del thing["bbox"]
    scenes = load_scenes(DataConfig("coco", coco_set(tmp_path, [thing])))
    assert scenes.scenes[0].boxes.tolist() == [[10, 10, 35, 40]] and scenes.broken == []


@pytest.mark.parametrize(
    "segmentation",
    [{}, {"size": [50, 100], "counts": "?"}, {"size": 3, "counts": []}, {"size": [5, 5], "counts": [25]}],
)
def test_a_damaged_or_empty_mask_is_noted(tmp_path, segmentation):
    thing = box(segmentation=segmentation)
    del thing["bbox"]
    scenes = load_scenes(DataConfig("coco", coco_set(tmp_path, [thing])))
    assert len(scenes.scenes[0].boxes) == 0 and scenes.broken == ["annotation 7: not four numbers None"]


def test_the_pixel_in_the_corner_is_no_fraction_where_no_box_is(tmp_path):
    corner = box((0, 0, 1, 1))
    scenes = load_scenes(DataConfig("coco", coco_set(tmp_path / "pixels", [corner, box((5, 5, 1, 1))])))
    assert scenes.scenes[0].boxes.tolist() == [[0, 0, 1, 1], [5, 5, 6, 6]] and scenes.broken == []
    scenes = load_scenes(DataConfig("coco", coco_set(tmp_path / "fractions", [corner, box((0.1, 0.2, 0.3, 0.5))])))
    assert len(scenes.scenes[0].boxes) == 0 and len(scenes.broken) == 2


def test_names_of_pictures_may_be_written_as_under_windows(tmp_path):
    for name in ("in/a.png", "b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert place_pictures(tmp_path, ["in\\a.png"]) == [tmp_path / "in/a.png"]
    assert place_pictures(tmp_path, ["D:\\set\\b.png"]) == [tmp_path / "b.png"]


@pytest.mark.parametrize(
    "names, sentence",
    [
        ("cat", "names must be a list of class names, or a number: name a line, got 'cat'"),
        ("3", "names must be a list of class names, or a number: name a line, got '3'"),
        ("[cat, [dog, owl]]", "the name of class 1 must be a text, got ['dog', 'owl']"),
        ("[cat, ' ']", "the name of class 1 must be a text, got ' '"),
        ("{0: cat, 1: }", "the name of class 1 must be a text, got ''"),
    ],
)
def test_names_of_a_yolo_set_that_are_none_are_refused(tmp_path, names, sentence):
    path = write_yolo(tmp_path, a="0 0.5 0.5 0.2 0.4\n") / "data.yaml"
    path.write_text(f"train: images/train\nnames: {names}\n")
    with pytest.raises(DataError, match=re.escape(sentence)):
        load_scenes(DataConfig("yolo", str(path)))


def test_names_of_a_yolo_set_are_texts_whatever_yaml_takes_them_for(tmp_path):
    path = write_yolo(tmp_path, a="1 0.5 0.5 0.2 0.4\n") / "data.yaml"
    path.write_text("train: images/train\nnames: {0: no, 1: 5, 2: 1.50, 3: null, 4: 2024-01-02}\n")
    assert load_scenes(DataConfig("yolo", str(path))).names == [["no"], ["5"], ["1.50"], ["null"], ["2024-01-02"]]


def test_a_voc_file_in_an_encoding_that_nobody_knows_is_left_out(tmp_path):
    root = write_voc(tmp_path, a=voc_object(), b=voc_object())
    (root / "Annotations" / "b.xml").write_text("<?xml version='1.0' encoding='klingon'?><annotation/>")
    scenes = load_scenes(DataConfig("voc", str(root)))
    assert len(scenes.scenes) == 1 and "b.xml: not an XML file that can be read (unknown encoding" in scenes.broken[0]


@pytest.mark.parametrize("kind", ["coco", "lvis", "visual_genome"])
def test_a_file_of_lists_within_lists_is_one_sentence(tmp_path, kind):
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(DataError, match="lists within lists, deeper than can be read"):
        load_scenes(DataConfig(kind, str(tmp_path / "deep.json")))
    with pytest.raises(DataError, match="lists within lists, deeper than can be read"):
        guess_kind(str(tmp_path / "deep.json"))


HUGE = 10**400  # JSON holds it, a float does not


@pytest.mark.parametrize("wrong", [{"bbox": [1, 2, HUGE, 4]}, {"bbox": None, "segmentation": [[1, 2, HUGE, 9, 5, 5]]}])
def test_a_number_beyond_all_floats_costs_its_box_alone(tmp_path, wrong):
    scenes = load_scenes(DataConfig("coco", coco_set(tmp_path, [box(), box() | wrong, box(area=HUGE, category=2)])))
    assert len(scenes.broken) == 1 and len(scenes.scenes[0].boxes) == 2


@pytest.mark.parametrize("key", ["names", "path", "train"])
def test_a_yaml_whose_aliases_stand_for_billions_is_one_short_sentence(tmp_path, key):
    bomb = "\n".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise("abcdefghijkl"))
    said = {"names": "[cat]", "path": ".", "train": "images"} | {key: "*l"}
    lines = [f"a: &a [x, x]\n{bomb}", *(f"{one}: {value}" for one, value in said.items())]
    (tmp_path / "data.yaml").write_text("\n".join(lines))
    with pytest.raises(DataError, match="must be a text, got") as caught:
        load_scenes(DataConfig("yolo", str(tmp_path / "data.yaml")))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "value, shown",
    [
        pytest.param(10**5000, "int of thousands of digits", id="many digits"),
        ({"b": [1, (2,)], "a": {3}}, "{'b': [1, (2,)], 'a': {3}}"),
        ([[[[1]]]], "[[[[...]]]]"),
        (list(range(1000)), repr(list(range(1000)))[:200] + "…"),
        ("x" * 500, "'" + "x" * 199 + "…"),
        (b"x" * 500, "500 bytes"),
    ],
)
def test_a_wrong_value_is_written_in_short(value, shown):
    assert brief(value) == shown


def test_ids_are_said_as_the_file_has_them(tmp_path):
    scenes = load_scenes(DataConfig("coco", coco_set(tmp_path, [box() | {"image_id": "1"}, box(category="1")])))
    assert scenes.broken == ["annotation 7: unknown picture '1'", "annotation 7: unknown category '1'"]


def test_second_copies_are_noted_and_dropped(tmp_path):
    twice = [box(), box(), box(segmentation=[[10, 10, 30, 10, 30, 30]]), box(category=2)]
    scenes = load_scenes(DataConfig("coco", coco_set(tmp_path / "coco", twice)))
    assert scenes.scenes[0].labels.tolist() == [0, 0, 1]  # one of another outline is another thing
    assert scenes.broken == ["annotation 7: given twice"] and scenes.scenes[0].unknown.tolist() == []
    line = "0 0.5 0.5 0.2 0.4\n"
    scenes = load_scenes(DataConfig("yolo", str(write_yolo(tmp_path / "yolo", a=line + line))))
    assert len(scenes.scenes[0].boxes) == 1 and "a.txt line 2: given twice" in scenes.broken[0]
    scenes = load_scenes(DataConfig("voc", str(write_voc(tmp_path / "voc", a=voc_object() * 2))))
    assert len(scenes.scenes[0].boxes) == 1 and scenes.broken == ["a.xml object 2: given twice"]
    picture(tmp_path / "1.jpg")
    (tmp_path / "t.csv").write_text("path,caption\n1.jpg,a cat\n1.jpg,a cat\n1.jpg,a pet\n")
    pictures = load_pictures(DataConfig("csv", str(tmp_path / "t.csv")))
    assert pictures.texts == [["a cat", "a pet"]] and pictures.broken == ("line 3: given twice",)


def test_boxes_in_fractions_of_the_picture_are_noted(tmp_path):
    scenes = load_scenes(DataConfig("coco", coco_set(tmp_path, [box((0.1, 0.2, 0.3, 0.5)), box((0, 0, 2, 1))])))
    assert scenes.scenes[0].boxes.tolist() == [[0, 0, 2, 1]] and scenes.scenes[0].unknown.tolist() == [0]
    assert scenes.broken == ["annotation 7: not pixels but fractions of the picture [0.1, 0.2, 0.3, 0.5]"]


CLASSES = ["sofa, couch", "dog", "crane, bird", "crane, machine", "traffic_light"]


@pytest.mark.parametrize(
    "wanted, rows",
    [
        (["sofa", "couch"], [0]),
        (["sofa, couch"], [0]),
        (["dog", "couch"], [1, 0]),
        (["crane, machine", "bird"], [3, 2]),
        (["traffic light"], [4]),
        (["traffic_light"], [4]),
        ([], []),
    ],
)
def test_a_class_is_called_by_its_whole_name_or_one_of_its_names(wanted, rows):
    assert find_classes(wanted, CLASSES, "set.json") == rows


def test_a_name_of_two_classes_or_none_is_refused():
    with pytest.raises(DataError, match=r"'crane' is a name of 'crane, bird' and 'crane, machine'"):
        find_classes(["crane"], CLASSES, "set.json")
    with pytest.raises(DataError, match=r"set.json: has no class 'cat'; its classes are sofa, couch, dog"):
        find_classes(["cat"], CLASSES, "set.json")
