"""To Label Studio for correction, and back in: exports are read as sets, whole, small, turned and with gaps."""

import json

import numpy as np
import pytest
from picture_files import encode, noise
from scripted_teacher import DOG_AND_CAT, Scripted, five_pictures

from owl_swin.data.config import DataConfig
from owl_swin.data.guess import guess_kind
from owl_swin.data.scenes import load_scenes
from owl_swin.data.truth import read_truth
from owl_swin.errors import DataError, OwlSwinError
from owl_swin.labelling.label_set import label_studio_tasks
from owl_swin.labelling.run import label_pictures


def rectangle(label, x, y, width, height, **more):
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": [label]}
    result = {"type": "rectanglelabels", "original_width": 200, "original_height": 100}
    return {**result, "value": {**value, **more}}


def task(image, *results, number=1, **more):
    return {"id": number, "data": {"image": image}, "annotations": [{"result": list(results), **more}]}


@pytest.fixture
def read(tmp_path):
    """Reads tasks of pictures of 200 x 100 pixels."""

    def read(*tasks, names=("a.png",)):
        for name in names:
            (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "photos" / name).write_bytes(encode(noise(100, 200)))
        (tmp_path / "export.json").write_text(json.dumps(tasks))
        assert guess_kind(str(tmp_path / "export.json")) == "label_studio"
        return load_scenes(DataConfig("label_studio", str(tmp_path / "export.json"), images=str(tmp_path / "photos")))

    return read


def on_picture(scenes, scene):
    return np.round(scene.boxes_on(scenes.picture(scene)), 2).tolist()


def test_what_was_labelled_comes_back_as_it_was_corrected(tmp_path):
    photos = five_pictures(tmp_path / "photos")
    script = {40: [(0, 0.9, (2, 3, 12, 23)), (1, 0.6, (20, 5, 31, 15.5))], 44: [(1, 0.5, (1, 2, 33, 14))]}
    report = label_pictures(photos, tmp_path / "l.json", Scripted(script), DOG_AND_CAT)
    tasks = label_studio_tasks(report.pictures, made_by="scripted", root=tmp_path)
    assert [one["data"]["image"] for one in tasks] == [
        "/data/local-files/?d=photos/40.png",
        "/data/local-files/?d=photos/s%C3%BCd/44.png",
    ]
    for one in tasks:  # somebody accepts what was predicted, but for the first box
        (predicted,) = one["predictions"]
        one["annotations"] = [{"result": [row for row in predicted["result"] if row["score"] < 0.9]}]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    scenes = load_scenes(DataConfig("label_studio", str(tmp_path / "export.json"), images=str(tmp_path / "photos")))
    assert [scene.source for scene in scenes.scenes] == [photos[0], photos[4]]
    assert scenes.names == [["cat"]] and scenes.broken == []
    assert [on_picture(scenes, scene) for scene in scenes.scenes] == [[[20, 5, 31, 15.5]], [[1, 2, 33, 14]]]
    assert all(scene.scores is None for scene in scenes.scenes)
    truth = read_truth(tmp_path / "export.json", tmp_path / "photos")
    assert [a["bbox"] for a in truth["annotations"]] == [
        pytest.approx([20, 5, 11, 10.5]),
        pytest.approx([1, 2, 32, 12]),
    ]


@pytest.mark.parametrize(
    "image",
    [
        "/data/local-files/?d=more/b%20%C3%BC.png",
        "/data/upload/7/0a1b2c3d-b%20%C3%BC.png",
        "https://host.example/x/more/b%20%C3%BC.png?sig=1",
        "Photos/more/b ü.png",
        "C:\\Photos\\more\\b ü.png",
        "b ü.png",
    ],
)
def test_pictures_are_found_by_whatever_they_are_called(read, image):
    names = ["more/b ü.png"] if "more" in image else ["b ü.png"]
    scenes = read(task(image, rectangle("dog", 10, 20, 30, 40)), names=names)
    assert scenes.scenes[0].source.name == "b ü.png"
    assert on_picture(scenes, scenes.scenes[0]) == [[20, 20, 80, 60]]


def test_turned_rectangles_and_polygons_have_the_box_around_them(read):
    polygon = {"type": "polygonlabels", "value": {"points": [[10, 10], [30, 20], [20, 50]], "polygonlabels": ["cat"]}}
    turned = rectangle("dog", 50, 20, 10, 30, rotation=90)  # of 20 x 30 pixels, now 30 to the left and 20 down
    scenes = read(task("a.png", polygon, turned))
    assert on_picture(scenes, scenes.scenes[0]) == [[20, 10, 60, 50], [70, 20, 100, 40]]
    assert scenes.names == [["cat"], ["dog"]]


def test_the_small_export_is_read_too(read):
    row = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["sofa, couch"]}
    small = {"id": 1, "image": "a.png", "annotation_id": 3, "annotator": 1, "label": [row], "choice": "good"}
    scenes = read(small)
    assert on_picture(scenes, scenes.scenes[0]) == [[20, 20, 80, 60]] and scenes.names == [["sofa", "couch"]]


def test_the_annotation_that_counts_and_what_is_left_out(read):
    dog, cat = rectangle("dog", 0, 0, 50, 50), rectangle("cat", 0, 0, 50, 50)
    two = task("a.png", cat)
    two["annotations"] = [{"result": [dog]}, {"result": [cat]}, {"result": [], "was_cancelled": True}]
    marked = {**two, "annotations": [{"result": [dog], "ground_truth": True}, {"result": [cat]}]}
    empty = task("b.png")
    waiting = {"id": 7, "data": {"image": "c.png"}, "annotations": [], "predictions": [{"result": [dog]}]}
    odd = task(
        "d.png", rectangle("dog", 10, 10, 0, 5), rectangle("dog", "x", 0, 5, 5), {"type": "choices", "value": {}}
    )
    brush = task("e.png", {"type": "brushlabels", "value": {"rle": [1], "brushlabels": ["dog"]}}, cat, number=9)
    names = [f"{letter}.png" for letter in "abcde"]
    scenes = read(two, marked, empty, waiting, odd, brush, {"id": 8, "data": {}}, names=names)
    found = [[scenes.names[label][0] for label in scene.labels] for scene in scenes.scenes]
    assert found == [["cat"], ["dog"], [], [], ["cat"]]
    assert scenes.scenes[2].absent(2).tolist() == [0, 1]  # somebody has looked: nothing is there
    assert [sentence.split(" [")[0].split(" {")[0] for sentence in scenes.broken] == [
        "task 7: has no annotation",
        "task 1: empty box",
        "task 1: not four numbers",
        "task 9: brushlabels without a box (dog)",
        "task 8: names no picture",
    ]


@pytest.mark.parametrize("content", ["[]", "{}", '[{"data": 3}]', "[1]"])
def test_what_is_no_export_is_refused(tmp_path, content):
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(DataError, match="no export of Label Studio"):
        load_scenes(DataConfig("label_studio", str(tmp_path / "export.json")))


def test_a_picture_that_label_studio_does_not_serve_is_refused(tmp_path):
    photos = five_pictures(tmp_path / "photos")
    report = label_pictures(photos[:1], tmp_path / "l.json", Scripted({40: [(0, 0.9, (2, 3, 12, 23))]}), DOG_AND_CAT)
    (tmp_path / "other").mkdir()
    with pytest.raises(OwlSwinError, match="does not lie below"):
        label_studio_tasks(report.pictures, made_by="scripted", root=tmp_path / "other")


def test_an_address_that_is_none_costs_its_task_alone(read):
    value = {"x": 10, "y": 10, "width": 20, "height": 20, "rectanglelabels": ["cat"]}
    huge = {**value, "width": 10**400}
    tasks = [
        {"data": {"image": image}, "annotations": [{"result": [{"type": "rectanglelabels", "value": one}]}]}
        for image, one in (("http://[::1/b.png", value), ("a.png", value), ("a.png", huge))
    ]
    scenes = read(*tasks)
    assert [len(scene.boxes) for scene in scenes.scenes] == [1, 0]
    assert len(scenes.broken) == 2
