"""Readers of alignment sets: webdataset tars, tables, COCO captions, class folders; broken entries and memory."""

import io
import json
import logging
import tarfile

import pytest
import torch
from picture_files import BAD_FILES, encode, turned
from PIL import Image
from training_data import COLOURS, one_shape, write_json

from owl_swin.data import pictures as module
from owl_swin.data.captions import expand_braces, shards
from owl_swin.data.config import ALIGN_KINDS, DETECT_KINDS, DataConfig
from owl_swin.data.pictures import load_pictures
from owl_swin.errors import ConfigError, DataError

PNG = encode(one_shape("red square"))


def tar(path, members):
    """A tar of (name, content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members:
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def texts(path, **more):
    """The texts of a set of kind "captions", sorted."""
    return sorted(load_pictures(DataConfig("captions", str(path), **more)).texts)


def saved(path, name="red square"):
    path.parent.mkdir(parents=True, exist_ok=True)
    one_shape(name).save(path)
    return path


# --- webdataset ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "members, expected",
    [
        ([("a.png", PNG), ("a.txt", " a cat \n")], [["a cat"]]),
        ([("a.txt", "a cat"), ("a.png", PNG)], [["a cat"]]),
        ([("a.png", PNG), ("a.json", '{"caption": "a cat", "width": 3}')], [["a cat"]]),
        ([("a.png", PNG), ("a.json", '{"captions": ["a cat", "a pet"]}')], [["a cat", "a pet"]]),
        ([("a.png", PNG), ("a.json", '{"caption": "json"}'), ("a.txt", "text")], [["json"]]),
        ([("a.png", PNG), ("a.json", '{"width": 3}'), ("a.txt", "text")], [["text"]]),
        ([("a.png", PNG), ("a.txt", "text"), ("a.json", '{"width": 3}')], [["text"]]),
        ([("x/a.png", PNG), ("x/a.txt", "one"), ("y/a.PNG", PNG), ("y/a.txt", "two")], [["one"], ["two"]]),
        # The key ends at the first dot.
        ([("a.png", PNG), ("a.txt", "one"), ("a.seg.png", PNG), ("a.cls", "7")], [["one"]]),
        ([("./v1.0/a.png", PNG), ("./v1.0/a.txt", "one")], [["one"]]),
    ],
)
def test_a_shard_gives_its_pictures_with_their_captions(tmp_path, members, expected):
    assert texts(tar(tmp_path / "s.tar", members)) == expected


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("{a}", ["a"]),
    ],
)
def test_braces_are_expanded(pattern, names):
    assert expand_braces(pattern) == names


def test_shards_of_folders_patterns_and_several_parts(tmp_path):
    for name in ("train-0", "train-1", "val-0"):
        tar(tmp_path / f"{name}.tar", [("a.png", PNG), ("a.txt", name)])
    found = {
        "": ["train-0", "train-1"],
        "/train-{0..1}.tar": ["train-0", "train-1"],
        "/*-0.tar": ["train-0", "val-0"],
        f"/val-0.tar::{tmp_path}/train-0.tar": ["val-0", "train-0"],
    }
    for pattern, names in found.items():
        assert [path.stem for path in shards(f"{tmp_path}{pattern}", "train")] == names
    assert texts(tmp_path, split="val") == [["val-0"]]


@pytest.mark.parametrize(
    "members, sentence",
    [
        ([("b.png", PNG)], "s.tar b: has no text"),
        ([("b.png", PNG), ("b.txt", " ")], "s.tar b: has no text"),
        ([("b.png", PNG), ("b.json", "{")], "s.tar b: has no text"),
        ([("b.png", PNG), ("b.json", "[1]")], "s.tar b: has no text"),
        ([("b.png", PNG), ("b.json", '{"caption": 3}')], "s.tar b: has no text"),
        ([("b.txt", "a dog")], "s.tar b: caption without a picture"),
        *(
            ([("b.jpg", content), ("b.txt", "a dog")], f"s.tar b: {said}")
            for content, said in ((b"", "the file is empty"),)
        ),
        ([("b.jpg", BAD_FILES["cut.jpg"][0]), ("b.txt", "a dog")], "s.tar b: the picture is damaged or cut off"),
        ([("b.jpg", b"<html>"), ("b.txt", "a dog")], "s.tar b: not a picture"),
    ],
)
def test_broken_samples_are_left_out_and_said(tmp_path, caplog, members, sentence):
    path = tar(tmp_path / "s.tar", [("a.png", PNG), ("a.txt", "a cat"), *members])
    with caplog.at_level(logging.WARNING, "owl_swin"):
        pictures = load_pictures(DataConfig("captions", str(path)))
    assert pictures.texts == [["a cat"]]
    assert len(pictures.broken) == 1 and pictures.broken[0].startswith(sentence)
    assert "1 entry left out" in caplog.text and sentence in caplog.text


def test_a_shard_that_is_cut_off_gives_what_it_holds(tmp_path):
    path = tar(tmp_path / "s.tar", [("a.png", PNG), ("a.txt", "a cat"), ("b.png", PNG), ("b.txt", "a dog")])
    with tarfile.open(path) as file:
        path.write_bytes(path.read_bytes()[: file.getmember("b.png").offset_data + 100])
    pictures = load_pictures(DataConfig("captions", f"{path}::{tmp_path}/absent.tar"))
    assert pictures.texts == [["a cat"]]
    assert ["not a whole tar file" in sentence for sentence in pictures.broken] == [True, True]


# --- Tables and COCO captions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize("columns", [("path", "caption"), ("filepath", "title")])
def test_a_table_has_a_caption_a_line(tmp_path, separator, columns):
    for name in ("a.png", "b.png"):
        saved(tmp_path / name)
    rows = [("id", *columns), ("1", "a.png", "a cat"), ("2", "b.png", '"a dog, a bone; more"'), ("3", "a.png", "a pet")]
    (tmp_path / "t.csv").write_text("\ufeff" + "".join(separator.join(row) + "\n" for row in rows))
    config = DataConfig("csv", str(tmp_path / "t.csv"), path_column=columns[0], caption_column=columns[1])
    pictures = load_pictures(config)
    assert sorted(pictures.texts) == [["a cat", "a pet"], ["a dog, a bone; more"]]
    assert pictures.captioned and sorted(pictures.labels.tolist()) == [0, 1]


def test_a_table_without_the_columns_says_what_to_set(tmp_path):
    (tmp_path / "t.csv").write_text("file,words\na.png,a cat\n")
    with pytest.raises(DataError, match=r"no columns 'path' and 'caption'; set data\.path_column .* 'file,words'"):
        load_pictures(DataConfig("csv", str(tmp_path / "t.csv")))


def test_lines_of_json_have_a_caption_or_several(tmp_path):
    for name in ("a.png", "b.png"):
        saved(tmp_path / "images" / name)
    rows = [{"path": "a.png", "caption": "a cat"}, {"path": "b.png", "caption": ["a dog", "", "a pet"]}]
    (tmp_path / "t.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    pictures = load_pictures(DataConfig("jsonl", str(tmp_path / "t.jsonl"), str(tmp_path / "images")))
    assert sorted(pictures.texts) == [["a cat"], ["a dog", "a pet"]] and pictures.broken == ()


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("{", "line 2: not a JSON object"),
        ("[1]", "line 2: not a JSON object"),
        ('{"path": "a.png"}', "line 2: has no caption"),
        ('{"caption": "a cat"}', "line 2: has no path"),
        ('{"path": 3, "caption": "a cat"}', "line 2: has no path"),
        ('{"path": "absent.png", "caption": "a cat"}', "absent.png: cannot read this file"),
    ],
)
def test_broken_lines_are_left_out_and_said(tmp_path, line, sentence):
    saved(tmp_path / "a.png")
    (tmp_path / "t.jsonl").write_text('{"path": "a.png", "caption": "a cat"}\n' + line)
    pictures = load_pictures(DataConfig("jsonl", str(tmp_path / "t.jsonl")))
    assert pictures.texts == [["a cat"]] and len(pictures.broken) == 1 and sentence in pictures.broken[0]


def test_coco_captions_are_put_together_by_picture(tmp_path):
    saved(tmp_path / "val" / "a.png")
    images = [{"id": 4, "file_name": "a.png"}, {"id": 5, "file_name": "b.png"}, {"id": 6}]
    annotations = [{"image_id": 4, "caption": c} for c in ("one", "two", " ")] + [{"image_id": 9, "caption": "three"}]
    path = write_json(tmp_path / "captions.json", {"images": images, "annotations": annotations})
    pictures = load_pictures(DataConfig("coco_captions", str(path), str(tmp_path / "val")))
    assert pictures.texts == [["one", "two"]]
    assert sorted(sentence.partition(": ")[2] for sentence in pictures.broken) == [
        "has no caption 4",
        "has no id or file_name",
        "has no text",
        "unknown picture 9",
    ]


# --- Class names -----------------------------------------------------------------------------------------------------


def test_folders_are_classes(tmp_path):
    saved(tmp_path / "train" / "red_square" / "a.png")
    saved(tmp_path / "train" / "red_square" / "deep" / "b.PNG")
    saved(tmp_path / "train" / "n02" / "c.png", "blue square")
    (tmp_path / "train" / "n02" / "notes.txt").write_text("no picture")
    saved(tmp_path / "val" / "red_square" / "a.png")
    write_json(tmp_path / "names.json", {"n02": "blue square, azure tile"})
    pictures = load_pictures(DataConfig("folders", str(tmp_path)))
    assert sorted(pictures.texts) == [["blue square", "azure tile"], ["red square"]] and pictures.broken == ()
    assert not pictures.captioned and sorted(pictures.labels.bincount().tolist()) == [1, 2]
    assert len(load_pictures(DataConfig("folders", str(tmp_path / "val"))).images) == 1


@pytest.mark.parametrize("kind", ["labelled", "folders", "captions", "jsonl", "crops"])
def test_pictures_are_upright_in_every_kind(tmp_path, kind):
    # Red above green when shown; the file has it turned by a quarter.
    upright = Image.new("RGB", (40, 40), COLOURS["green"])
    upright.paste(COLOURS["red"], (0, 0, 40, 20))
    content = turned(upright, 6)
    file = tmp_path / "all" / "cat" / "a.png"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    record = {"id": 1, "file_name": "cat/a.png", "label": "cat", "width": 40, "height": 40}
    annotation = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 40, 40]}
    coco = {"images": [record], "annotations": [annotation], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "t.jsonl").write_text('{"path": "cat/a.png", "caption": "cat"}')
    paths = {
        "labelled": write_json(tmp_path / "set.json", coco),
        "crops": tmp_path / "set.json",
        "folders": tmp_path / "all",
        "captions": tar(tmp_path / "s.tar", [("a.png", content), ("a.txt", "cat")]),
        "jsonl": tmp_path / "t.jsonl",
    }
    image = load_pictures(DataConfig(kind, str(paths[kind]), str(tmp_path / "all"), size=40)).images[0]
    assert image[:, 5, 20].tolist() == list(COLOURS["red"]) and image[:, 35, 20].tolist() == list(COLOURS["green"])


def test_crops_follow_the_stated_size(tmp_path):
    picture = Image.new("RGB", (100, 50), "white")
    picture.paste(COLOURS["blue"], (60, 10, 90, 40))
    picture.save(tmp_path / "a.png")
    annotation = {"image_id": 1, "category_id": 1, "bbox": [240, 40, 120, 120]}  # of the picture at four times the size
    images = [{"id": 1, "file_name": "a.png", "width": 400, "height": 200}]
    content = {"images": images, "annotations": [annotation], "categories": [{"id": 1, "name": "sofa, couch"}]}
    path = write_json(tmp_path / "set.json", content)
    pictures = load_pictures(DataConfig("crops", str(path), str(tmp_path), size=36))
    assert pictures.texts == [["sofa", "couch"]]
    assert (pictures.images[0, :, 6:30, 6:30] == torch.tensor(COLOURS["blue"])[:, None, None]).all()
    assert (pictures.images[0, :, 0, 0] == 255).all()


@pytest.mark.parametrize("kind", ["labelled", "cutouts", "crops", "folders"])
def test_unreadable_pictures_are_left_out_and_said(tmp_path, kind):
    folder = tmp_path / "cat"
    saved(folder / "good.png")
    (folder / "bad.png").write_bytes(b"no picture")
    images = [
        {"id": i, "file_name": f"cat/{n}.png", "label": "cat", "name": "cat"} for i, n in enumerate(("good", "bad"))
    ]
    annotations = [{"image_id": i, "category_id": 1, "bbox": [0, 0, 30, 30]} for i in range(2)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    path = write_json(tmp_path / "set.json", content)
    pictures = load_pictures(DataConfig(kind, str(tmp_path if kind == "folders" else path), str(tmp_path)))
    assert pictures.texts == [["cat"]] and set(pictures.labels.tolist()) == {0}
    assert len(pictures.broken) == 1 and "bad.png: not a picture" in pictures.broken[0]


# --- Bounds ----------------------------------------------------------------------------------------------------------


def members(n):
    return [member for i in range(n) for member in ((f"{i}.png", PNG), (f"{i}.txt", f"caption {i}"))]


def test_a_set_that_needs_too_much_memory_is_refused(tmp_path, monkeypatch):
    path = tar(tmp_path / "s.tar", members(4))
    monkeypatch.setattr(module, "MAX_BYTES", 3 * 3 * 16**2)
    assert len(load_pictures(DataConfig("captions", str(path), size=16, max_pictures=3)).images) == 3
    with pytest.raises(DataError, match=r"more than 3 pictures, which at 16 pixels .* memory; set data\.max_pictures"):
        load_pictures(DataConfig("captions", str(path), size=16))


def test_texts_of_captions_follow_the_pictures_that_are_kept(tmp_path):
    pictures = load_pictures(DataConfig("captions", str(tar(tmp_path / "s.tar", members(5))), max_pictures=3))
    assert sorted(pictures.texts) == [["caption 0"], ["caption 1"], ["caption 2"]]
    assert pictures.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ALIGN_KINDS)
def test_an_absent_or_empty_set_gets_one_sentence(tmp_path, kind):
    (tmp_path / "empty").mkdir()
    for name in ("absent.json", "empty"):
        with pytest.raises(DataError) as caught:
            load_pictures(DataConfig(kind, str(tmp_path / name)))
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_kinds_for_detection_alone_are_refused(tmp_path):
    for kind in set(DETECT_KINDS) - set(ALIGN_KINDS):
        with pytest.raises(DataError, match="are not for alignment"):
            load_pictures(DataConfig(kind, str(tmp_path), names="names.txt" if kind == "label_maps" else ""))


@pytest.mark.parametrize("change", [{"size": 0}, {"max_pictures": -1}, {"min_per_class": -1}, {"max_per_class": -1}])
def test_bounds_that_mean_nothing_are_refused(change):
    with pytest.raises(ConfigError, match="must be"):
        DataConfig("captions", "a", **change)
