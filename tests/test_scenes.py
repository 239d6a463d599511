"""Reading of data sets: COCO files and tile sheets with boxes, and labelled or captioned pictures."""

import io
import json
import logging
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from training_data import (
    COLOURS,
    NAMES,
    detect_settings,
    grey_noise,
    one_shape,
    train_config,
    write_captions,
    write_json,
    write_labelled,
    write_shapes,
)

from owl_swin.config import ModelConfig, read_toml
from owl_swin.data.config import DataConfig
from owl_swin.data.pictures import load_pictures
from owl_swin.data.scenes import PictureCache, Scene, Scenes, load_scenes, read_coco, readable
from owl_swin.errors import DataError
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.training.distributed import Process
from owl_swin.training.sampling import SceneSampler
from owl_swin.training.tasks.detect import DetectTask

CATEGORIES = [{"id": 90, "name": "cat"}, {"id": 7, "name": "dog"}]  # gaps, and not in order


def coco(tmp_path, annotations, images=None, categories=CATEGORIES):
    images = [{"id": 5, "file_name": "a.png", "width": 100, "height": 50}] if images is None else images
    content = {"images": images, "annotations": annotations, "categories": categories}
    return write_json(tmp_path / "coco.json", content)


def annotation(bbox, *, category=90, image=5, **more):
    return {"id": 11, "image_id": image, "category_id": category, "bbox": bbox, **more}


def colour_of(pixels):
    """The name of the colour in the middle of [3, S, S]."""
    middle = pixels[:, pixels.shape[1] // 2, pixels.shape[2] // 2].float()
    return min(COLOURS, key=lambda name: float((middle - torch.tensor(COLOURS[name]).float()).abs().sum()))


# --- COCO ----------------------------------------------------------------------------------------------------------


def test_a_picture_without_annotations_is_a_scene_without_boxes(tmp_path):
    scenes = read_coco(coco(tmp_path, []), tmp_path)
    assert scenes.scenes[0].boxes.shape == (0, 4) and scenes.scenes[0].labels.shape == (0,)
    assert scenes.scenes[0].source == tmp_path / "a.png"
    assert scenes.broken == []


def test_xywh_becomes_xyxy_and_ids_with_gaps_become_rows(tmp_path):
    path = coco(tmp_path, [annotation([10, 20, 30, 5]), annotation([1, 2, 3, 4], category=7)])
    scenes = read_coco(path, tmp_path)
    assert scenes.names == [["dog"], ["cat"]]  # in the order of their ids
    assert scenes.scenes[0].boxes.tolist() == [[10, 20, 40, 25], [1, 2, 4, 6]]
    assert scenes.scenes[0].labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "bbox, expected",
    [
        ([-10, -5, 30, 20], [0, 0, 20, 15]),
        ([90, 40, 30, 20], [90, 40, 100, 50]),
        ([-5, -5, 500, 500], [0, 0, 100, 50]),
        ([99.5, 0, 1, 1], [99.5, 0, 100, 1]),
    ],
)
def test_boxes_are_cut_to_the_picture(tmp_path, bbox, expected):
    scenes = read_coco(coco(tmp_path, [annotation(bbox)]), tmp_path)
    assert scenes.scenes[0].boxes.tolist() == [expected]


@pytest.mark.parametrize("bbox", [[10, 10, 0, 5], [10, 10, 5, 0], [10, 10, -5, 5], [100, 10, 5, 5], [10, -9, 5, 5]])
def test_empty_boxes_are_left_out_and_listed(tmp_path, bbox):
    scenes = read_coco(coco(tmp_path, [annotation(bbox), annotation([1, 1, 5, 5])]), tmp_path)
    assert scenes.scenes[0].boxes.tolist() == [[1, 1, 6, 6]]
    assert len(scenes.broken) == 1 and "annotation 11: empty box" in scenes.broken[0]
    assert scenes.scenes[0].unknown.tolist() == [1]  # something is there, only the box is lost


@pytest.mark.parametrize("bbox", [[float("nan"), 1, 5, 5], [1, 1, float("inf"), 5], [1, 2, 3], ["a", 1, 2, 3], None, 7])
def test_boxes_that_are_not_four_numbers_are_left_out_and_listed(tmp_path, bbox):
    scenes = read_coco(coco(tmp_path, [annotation(bbox), annotation([1, 1, 5, 5])]), tmp_path)
    assert scenes.scenes[0].boxes.tolist() == [[1, 1, 6, 6]]
    assert len(scenes.broken) == 1 and "annotation 11: not four numbers" in scenes.broken[0]


def test_unknown_categories_are_left_out_and_listed(tmp_path):
    scenes = read_coco(coco(tmp_path, [annotation([1, 1, 5, 5], category=8)]), tmp_path)
    assert len(scenes.scenes[0].boxes) == 0
    assert scenes.broken == ["annotation 11: unknown category 8"]


def test_annotations_of_unknown_pictures_are_left_out_and_listed(tmp_path):
    # Ids that are text on one side and numbers on the other would otherwise leave a set without boxes, silently.
    scenes = read_coco(coco(tmp_path, [annotation([1, 1, 5, 5], image="5")]), tmp_path)
    assert len(scenes.scenes[0].boxes) == 0
    assert scenes.broken == ["annotation 11: unknown picture '5'"]


def test_crowds_are_left_out_without_complaint(tmp_path):
    path = coco(tmp_path, [annotation([1, 1, 5, 5], iscrowd=1), annotation([2, 2, 5, 5], iscrowd=0)])
    scenes = read_coco(path, tmp_path)
    assert scenes.scenes[0].boxes.tolist() == [[2, 2, 7, 7]]
    assert scenes.scenes[0].unknown.tolist() == [1]  # more of them are there
    assert scenes.broken == []


def test_what_was_left_out_is_said(tmp_path, caplog):
    grey_noise(50, 100).save(tmp_path / "a.png")
    path = coco(tmp_path, [annotation([1, 1, 0, 0]), annotation([1, 1, 5, 5], category=8)])
    with caplog.at_level(logging.WARNING, "owl_swin"):
        load_scenes(DataConfig("coco", str(path), str(tmp_path)))
    assert "2 entries left out" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "not json",
        "{}",
        '{"images": [], "annotations": []}',
        '{"images": 3, "annotations": [], "categories": []}',
        '{"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}',
        '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}',
        '{"images": [{"id": 1, "file_name": "a", "width": 9, "height": 9}], "annotations": [], "categories": []}',
        '{"images": [{"id": 1, "file_name": "a", "width": 9, "height": 9}], "categories": [{"id": 1, "name": "a"}],'
        ' "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2]}]}',
        b"\xff\xfe\x00",
    ],
)
@pytest.mark.parametrize("kind", ["coco", "sheets"])
def test_a_file_of_another_form_gets_one_sentence(tmp_path, content, kind):
    path = tmp_path / "set.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        load_scenes(DataConfig(kind, str(path), str(tmp_path)))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_gets_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"absent\.json: cannot be read"):
        load_scenes(DataConfig("coco", str(tmp_path / "absent.json"), str(tmp_path)))


def test_sets_without_boxes_are_refused(tmp_path):
    with pytest.raises(DataError, match="no boxes"):
        load_scenes(DataConfig("captions", str(tmp_path)))


# --- Tile sheets ---------------------------------------------------------------------------------------------------


def write_sheets(folder, *, tile=20, rows=2, cols=3):
    """One sheet of 2 x 3 tiles of 20 pixels, five in use, of three of the four names."""
    labels = [3, 0, 2, 0, 3]
    sheet = Image.new("RGB", (cols * tile, rows * tile))
    for place, label in enumerate(labels):
        sheet.paste(one_shape(NAMES[label], tile), (place % cols * tile, place // cols * tile))
    folder.mkdir(exist_ok=True)
    sheet.save(folder / "sheet.png")
    part = {"sheet": "sheet.png", "labels": labels, "boxes_xyxy": [[3, 3, 17, 17 - place] for place in range(5)]}
    classes = ["red square, scarlet tile", "green circle", "blue square", "yellow circle, sun"]
    manifest = {"tile_px": tile, "sheet_grid": [rows, cols], "classes": classes, "train": [part]}
    return write_json(folder / "manifest.json", manifest)


def test_each_tile_of_a_sheet_is_a_scene(tmp_path):
    scenes = load_scenes(DataConfig("sheets", str(write_sheets(tmp_path))))
    # Only names that occur, so that a name which the split never shows is no negative.
    assert scenes.names == [["red square", "scarlet tile"], ["blue square"], ["yellow circle", "sun"]]
    assert [int(scene.labels[0]) for scene in scenes.scenes] == [2, 0, 1, 0, 2]
    assert scenes.scenes[4].boxes.tolist() == [[3, 3, 17, 13]]
    for scene, colour in zip(scenes.scenes, ("yellow", "red", "blue", "red", "yellow"), strict=True):
        picture = scenes.picture(scene)
        assert picture.size == (20, 20)
        assert picture.getpixel((10, 10)) == COLOURS[colour]


def test_classes_of_sheets_get_other_names_or_are_left_out(tmp_path, caplog):
    path, names = write_sheets(tmp_path), tmp_path / "names.txt"
    names.write_text("square\ncircle\nsquare\n\n")  # red, green and blue; yellow is left out
    scenes = load_scenes(DataConfig("sheets", str(path), names=str(names)))
    assert scenes.names == [["square"]] and "made one" not in caplog.text
    assert [scene.labels.tolist() for scene in scenes.scenes] == [[0]] * 3
    assert [scenes.picture(scene).getpixel((10, 10)) for scene in scenes.scenes] == [
        COLOURS[colour] for colour in ("red", "blue", "red")
    ]
    pictures = load_pictures(DataConfig("sheets", str(path), names=str(names), size=20))
    assert [pictures.texts[label] for label in pictures.labels] == [["square"]] * 3


@pytest.mark.parametrize("lines, sentence", [("a\nb\n", "2 lines for sheets of 4 classes"), (None, "cannot read")])
def test_names_that_do_not_fit_the_sheets_get_one_sentence(tmp_path, lines, sentence):
    path, names = write_sheets(tmp_path), tmp_path / "names.txt"
    if lines:
        names.write_text(lines)
    with pytest.raises(DataError, match=sentence):
        load_scenes(DataConfig("sheets", str(path), names=str(names)))


@pytest.mark.parametrize("kind", ["sheets", "coco"])
def test_decoded_pictures_are_kept_while_there_is_room(tmp_path, kind):
    path = write_sheets(tmp_path / "sheets") if kind == "sheets" else write_shapes(tmp_path / "shapes")
    scenes = load_scenes(DataConfig(kind, str(path), str(path.parent / "images")), PictureCache(10**7))
    first = np.asarray(scenes.picture(scenes.scenes[0]))
    scenes.scenes[0].source.unlink()
    assert np.array_equal(np.asarray(scenes.picture(scenes.scenes[0])), first)


def test_without_room_nothing_is_kept(tmp_path):
    scenes = read_coco(write_shapes(tmp_path / "shapes"), tmp_path / "shapes" / "images")
    scenes.cache = PictureCache(10)
    scenes.picture(scenes.scenes[0])
    scenes.scenes[0].source.unlink()
    assert readable(scenes, scenes.scenes[0]) is None


def test_all_sets_of_a_run_share_one_bound(tmp_path):
    cache = PictureCache(3 * 50 * 50)
    paths = [write_shapes(tmp_path / name, 1) for name in "ab"]
    for path in paths:
        grey_noise(50, 50).save(path.parent / "images" / "0.png")
    first, second = (load_scenes(DataConfig("coco", str(path)), cache) for path in paths)
    for scenes in (first, second):
        scenes.picture(scenes.scenes[0])
        scenes.scenes[0].source.unlink()
    assert readable(first, first.scenes[0]) is not None and readable(second, second.scenes[0]) is None
    assert cache.bytes == cache.max_bytes


def test_a_run_sets_the_bound_of_all_its_sets(tmp_path):
    settings = detect_settings(tmp_path, cache_gib=0.5)
    config = train_config(settings | {"data": 2 * settings["data"]})
    task = DetectTask(config, OwlSwin(read_toml(config.model, ModelConfig)), Process(0, 1, torch.device("cpu")))
    first, second = task.sets
    assert first.cache is second.cache and first.cache.max_bytes == 2**29
    task.batch(0)
    assert 0 < first.cache.bytes < 2**29


# --- Unreadable pictures -------------------------------------------------------------------------------------------


def scene_of(path):
    return Scene(path, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))


def test_an_unreadable_picture_is_noted_once(tmp_path, caplog):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    scenes = Scenes([scene_of(tmp_path / "bad.png")], [["cat"]])
    with caplog.at_level(logging.WARNING, "owl_swin"):
        assert readable(scenes, scenes.scenes[0]) is None
        assert readable(scenes, scenes.scenes[0]) is None
    assert len(scenes.broken) == 1 and "bad.png" in scenes.broken[0]
    assert caplog.text.count("bad.png") == 1


def test_training_goes_on_without_the_unreadable_pictures(tmp_path):
    grey_noise(40, 40).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    scenes = [scene_of(tmp_path / name) for name in ("good.png", "bad.png", "absent.png")]
    sampler, rng = SceneSampler(Scenes(scenes, [["cat"]])), np.random.default_rng(0)
    assert {sampler.draw(rng)[0].source.name for _ in range(20)} == {"good.png"}


def test_a_set_of_unreadable_pictures_alone_is_refused(tmp_path):
    sampler = SceneSampler(Scenes([scene_of(tmp_path / "absent.png")], [["cat"]]))
    with pytest.raises(DataError, match=r"none of 100 pictures .*absent\.png"):
        sampler.draw(np.random.default_rng(0))


# --- Pictures for alignment ----------------------------------------------------------------------------------------


def test_labelled_pictures_have_the_names_of_their_label(tmp_path):
    path = write_labelled(tmp_path / "set", 8)
    pictures = load_pictures(DataConfig("labelled", str(path), str(path.parent / "images"), size=24))
    assert pictures.images.shape == (8, 3, 24, 24) and pictures.images.dtype == torch.uint8
    assert sorted(pictures.texts) == sorted([[name] for name in NAMES]) and not pictures.captioned
    for image, label in zip(pictures.images, pictures.labels, strict=True):
        assert pictures.texts[label][0].startswith(colour_of(image))


def test_a_label_may_have_several_names(tmp_path):
    one_shape("red square").save(tmp_path / "a.png")
    path = write_json(tmp_path / "set.json", {"images": [{"file_name": "a.png", "label": "red square, scarlet tile"}]})
    assert load_pictures(DataConfig("labelled", str(path), str(tmp_path))).texts == [["red square", "scarlet tile"]]


def test_max_per_class_bounds_every_class(tmp_path):
    path = write_labelled(tmp_path / "set", 10)  # 3, 3, 2 and 2
    config = DataConfig("labelled", str(path), str(path.parent / "images"), max_per_class=2)
    assert load_pictures(config).labels.bincount().tolist() == [2, 2, 2, 2]


def test_a_wide_picture_is_cut_to_its_middle_square(tmp_path):
    picture = Image.new("RGB", (90, 30), COLOURS["red"])
    picture.paste(COLOURS["green"], (30, 0, 60, 30))
    picture.save(tmp_path / "wide.png")
    path = write_json(tmp_path / "set.json", {"images": [{"file_name": "wide.png", "label": "green"}]})
    pixels = load_pictures(DataConfig("labelled", str(path), str(tmp_path), size=30)).images[0]
    assert (pixels.permute(1, 2, 0) == torch.tensor(COLOURS["green"])).all()


def test_crops_are_the_boxes_with_some_surroundings(tmp_path):
    path = write_shapes(tmp_path / "shapes", 8)
    pictures = load_pictures(DataConfig("crops", str(path), str(path.parent / "images"), size=32))
    assert len(pictures.images) == 12  # one or two a picture
    for image, label in zip(pictures.images, pictures.labels, strict=True):
        assert pictures.texts[label][0].startswith(colour_of(image))


def test_crops_leave_out_crowds_and_small_boxes(tmp_path):
    grey_noise(50, 100).save(tmp_path / "a.png")
    boxes = [annotation([0, 0, 20, 20], iscrowd=1), annotation([0, 0, 20, 15]), annotation([0, 0, 16, 16])]
    pictures = load_pictures(DataConfig("crops", str(coco(tmp_path, boxes)), str(tmp_path)))
    assert len(pictures.images) == 1


def test_captioned_pictures_have_a_label_each(tmp_path):
    folder = write_captions(tmp_path / "tars", 5)
    pictures = load_pictures(DataConfig("captions", str(folder), size=20))
    assert pictures.captioned and pictures.labels.tolist() == [0, 1, 2, 3, 4]
    assert len(pictures.texts) == 5 and all(len(own) == 2 for own in pictures.texts)
    for image, label in zip(pictures.images, pictures.labels, strict=True):
        assert pictures.texts[label][0].startswith(colour_of(image))


def test_folders_in_a_tar_are_passed_over(tmp_path):
    folder = write_captions(tmp_path / "tars", 2)
    with tarfile.open(folder / "train-000.tar", "a") as tar:
        member = tarfile.TarInfo("folder")
        member.type = tarfile.DIRTYPE
        tar.addfile(member, io.BytesIO())
    assert len(load_pictures(DataConfig("captions", str(folder))).images) == 2


def test_captions_of_another_split_are_not_read(tmp_path):
    folder = write_captions(tmp_path / "tars", 2)
    with pytest.raises(DataError, match="no picture of split 'val'"):
        load_pictures(DataConfig("captions", str(folder), split="val"))


def test_cutouts_stand_before_several_backgrounds(tmp_path):
    cutout = Image.new("RGBA", (30, 30))
    cutout.paste((*COLOURS["blue"], 255), (8, 8, 22, 22))
    cutout.save(tmp_path / "blue.png")
    path = write_json(tmp_path / "all.json", {"images": [{"file_name": "blue.png", "name": "blue square"}]})
    pictures = load_pictures(DataConfig("cutouts", str(path), str(tmp_path), size=30))
    assert len(pictures.images) == 3 and pictures.texts == [["blue square"]]
    assert (pictures.images[:, :, 15, 15] == torch.tensor(COLOURS["blue"])).all()
    corners = pictures.images[:, :, 0, 0]
    assert not torch.equal(corners[0], corners[1]) and not torch.equal(corners[1], corners[2])


@pytest.mark.parametrize("size", [20, 12])
def test_tiles_of_sheets_become_pictures(tmp_path, size):
    pictures = load_pictures(DataConfig("sheets", str(write_sheets(tmp_path)), size=size))
    assert pictures.images.shape == (5, 3, size, size)
    for image, label in zip(pictures.images, pictures.labels, strict=True):
        assert pictures.texts[label][0].startswith(colour_of(image))


def test_reading_twice_gives_the_same_order(tmp_path):
    path = write_labelled(tmp_path / "set", 8)
    config = DataConfig("labelled", str(path), str(path.parent / "images"))
    first, again = load_pictures(config), load_pictures(config)
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)


@pytest.mark.parametrize("kind", ["sheets", "crops", "labelled", "cutouts"])
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"images": []}', '{"images": [{"label": "a"}]}', b"\xff\xfe\x00"])
def test_pictures_of_another_form_get_one_sentence(tmp_path, kind, content):
    path = tmp_path / "set.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        load_pictures(DataConfig(kind, str(path), str(tmp_path)))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_sheet_of_another_size_than_stated_gets_one_sentence(tmp_path):
    path = write_sheets(tmp_path)
    manifest = json.loads(path.read_text()) | {"tile_px": 21}
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="cannot be read as 'sheets'"):
        load_pictures(DataConfig("sheets", str(path)))


def test_a_broken_tar_gets_one_sentence(tmp_path):
    (tmp_path / "train-000.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match="cannot be read as 'captions'"):
        load_pictures(DataConfig("captions", str(tmp_path)))


def test_guessed_boxes_keep_their_scores_and_unsure_ones_are_vague(tmp_path):
    grey_noise(40, 40).save(tmp_path / "a.png")
    boxes = [("cat", 0.9), ("dog", 0.3), ("dog", 0.5), ("cat", 1.5), ("cat", None)]
    annotations = [
        {"id": i, "image_id": 1, "category_id": ("cat", "dog").index(name), "bbox": [i, 0, 10, 10], "score": score}
        for i, (name, score) in enumerate(boxes)
    ]
    data = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 40}],
        "annotations": annotations,
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
    }
    (tmp_path / "set.json").write_text(json.dumps(data))
    scenes = load_scenes(DataConfig("coco", str(tmp_path / "set.json"), ignore_below=0.4))
    scene = scenes.scenes[0]
    assert scene.labels.tolist() == [0, 1] and scene.scores.tolist() == pytest.approx([0.9, 0.5])
    assert scene.vague_labels.tolist() == [1] and scene.vague_boxes.tolist() == [[1, 0, 11, 10]]
    assert scene.unknown.tolist() == [0]  # of the two cats whose scores are no scores
    assert len(scenes.broken) == 2 and "annotation 3: its score must lie in 0 to 1" in scenes.broken[0]


def test_rare_names_are_drawn_and_shown_large_more_often(tmp_path):
    grey_noise(40, 40).save(tmp_path / "a.png")
    common = [Scene(tmp_path / "a.png", np.array([[0, 0, 9, 9]], np.float32), np.array([0])) for _ in range(99)]
    rare = Scene(tmp_path / "a.png", np.array([[0, 0, 9, 9], [9, 9, 20, 20]], np.float32), np.array([0, 1]))
    scenes = Scenes([*common, rare], [["person"], ["toaster"]])
    shares = []
    for repeat in (0.0, 0.25):
        sampler, rng = SceneSampler(scenes, repeat), np.random.default_rng(0)
        shares.append(sum(sampler.draw(rng)[0] is rare for _ in range(2000)) / 2000)
    assert shares[0] == pytest.approx(1 / 100, abs=0.006)
    assert shares[1] == pytest.approx(5 / 104, abs=0.015)  # sqrt(0.25 / 0.01) = 5 times as often
    assert sampler.rarity[1] > 3 * sampler.rarity[0]
