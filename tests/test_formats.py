"""Detections in the forms that other programs read."""

import csv
import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from owl_swin.data.voc import read_voc
from owl_swin.data.yolo import read_yolo
from owl_swin.detections import Detections
from owl_swin.errors import OwlSwinError, QueryError
from owl_swin.formats import to_coco, to_csv, to_fiftyone, to_record, to_voc, to_yolo, yolo_data
from owl_swin.label_studio import label_studio_address, label_studio_interface, to_label_studio


def found(*rows, names=("cat", "dog"), image_hw=(100, 200)) -> Detections:
    """Detections from rows of (label, score, x0, y0, x1, y1)."""
    table = torch.tensor(rows).view(len(rows), 6)
    labels = table[:, 0].long()
    return Detections(table[:, 2:], table[:, 1], labels, names, image_hw, labels)


ONE = found([1, 0.75, 10, 20, 60, 45], [0, 0.5, 0, 0, 200, 100])
TWO = found([0, 0.25, 1, 2, 3, 4], names=("cat", "mug"), image_hw=(10, 10))
NOTHING = found(image_hw=(30, 40))


def test_a_record_of_nothing_found():
    assert to_record("a.jpg", NOTHING) == {"image": "a.jpg", "width": 40, "height": 30, "detections": []}


def test_a_record_has_the_picture_its_size_and_its_rows():
    assert to_record("a.jpg", ONE) == {
        "image": "a.jpg",
        "width": 200,
        "height": 100,
        "detections": [
            {
                "label": "dog",
                "query": 1,
                "score": 0.75,
                "box": {"xmin": 10.0, "ymin": 20.0, "xmax": 60.0, "ymax": 45.0},
            },
            {"label": "cat", "query": 0, "score": 0.5, "box": {"xmin": 0.0, "ymin": 0.0, "xmax": 200.0, "ymax": 100.0}},
        ],
    }


def test_coco_of_no_pictures():
    assert to_coco([], []) == {"images": [], "categories": [], "annotations": []}


def test_coco_counts_ids_from_one_and_writes_corner_and_size():
    assert to_coco(["a.jpg", "b.jpg", "c.jpg"], [ONE, NOTHING, TWO]) == {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 200, "height": 100},
            {"id": 2, "file_name": "b.jpg", "width": 40, "height": 30},
            {"id": 3, "file_name": "c.jpg", "width": 10, "height": 10},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "mug"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 2,
                "bbox": [10.0, 20.0, 50.0, 25.0],
                "area": 1250.0,
                "iscrowd": 0,
                "score": 0.75,
                "query": 1,
            },
            {
                "id": 2,
                "image_id": 1,
                "category_id": 1,
                "bbox": [0.0, 0.0, 200.0, 100.0],
                "area": 20000.0,
                "iscrowd": 0,
                "score": 0.5,
                "query": 0,
            },
            {
                "id": 3,
                "image_id": 3,
                "category_id": 1,
                "bbox": [1.0, 2.0, 2.0, 2.0],
                "area": 4.0,
                "iscrowd": 0,
                "score": 0.25,
                "query": 0,
            },
        ],
    }


def test_two_queries_of_one_name_stay_apart_in_coco():
    twice = found([0, 0.75, 0, 0, 1, 1], [1, 0.5, 0, 0, 1, 1], names=("cat", "cat"))
    coco = to_coco(["a.jpg", "b.jpg"], [twice, twice])
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]
    assert [row["category_id"] for row in coco["annotations"]] == [1, 2, 1, 2]
    assert [row["query"] for row in coco["annotations"]] == [0, 1, 0, 1]


def test_pictures_that_were_asked_different_lists_share_the_categories_of_their_names():
    first = found([1, 0.75, 0, 0, 1, 1], names=("cat", "dog"))
    second = found([0, 0.75, 0, 0, 1, 1], [2, 0.5, 0, 0, 1, 1], names=("dog", "cat", "dog"))
    coco = to_coco(["a.jpg", "b.jpg"], [first, second])
    assert [(row["id"], row["name"]) for row in coco["categories"]] == [(1, "cat"), (2, "dog"), (3, "dog")]
    assert [row["category_id"] for row in coco["annotations"]] == [2, 2, 3]
    assert [row["query"] for row in coco["annotations"]] == [1, 0, 2]


def test_a_public_reader_of_coco_takes_the_annotations_as_results(tmp_path):
    from faster_coco_eval import COCO, COCOeval_faster

    truth = to_coco(["a.jpg", "b.jpg"], [ONE, TWO])
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    coco = COCO(str(tmp_path / "truth.json"))
    keys = ("image_id", "category_id", "bbox", "score")
    results = coco.loadRes([{key: row[key] for key in keys} for row in truth["annotations"]])
    evaluation = COCOeval_faster(coco, results, "bbox")
    evaluation.run()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_label_studio_writes_percent_of_the_picture():
    (task,) = to_label_studio(["a.jpg"], [ONE], model_version="nano")
    (prediction,) = task["predictions"]
    assert task["data"] == {"image": "a.jpg"}
    assert prediction["model_version"] == "nano"
    assert prediction["score"] == 0.75
    assert prediction["result"][0] == {
        "id": "box1",
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": 200,
        "original_height": 100,
        "value": {
            "x": 5.0,
            "y": 20.0,
            "width": 25.0,
            "height": 25.0,
            "rotation": 0,
            "rectanglelabels": ["dog"],
        },
        "score": 0.75,
        "meta": {"query": 1},
    }


def test_label_studio_of_nothing_found_is_a_task_without_boxes():
    (task,) = to_label_studio(["a.jpg"], [NOTHING])
    assert task["predictions"] == [{"model_version": "owl_swin", "score": 0.0, "result": []}]


@pytest.mark.parametrize(
    "name, address",
    [
        ("a.jpg", "/data/local-files/?d=photos/a.jpg"),
        ("./b/../a b&c%.jpg", "/data/local-files/?d=photos/a%20b%26c%25.jpg"),
        ("é.jpg", "/data/local-files/?d=photos/%C3%A9.jpg"),
        ("\udcff.jpg", "/data/local-files/?d=photos/%FF.jpg"),
    ],
)
def test_label_studio_serves_what_lies_below_its_root(tmp_path, monkeypatch, name, address):
    (tmp_path / "photos" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "photos")
    (task,) = to_label_studio([name], [ONE], root=tmp_path)
    assert task["data"]["image"] == address


@pytest.mark.parametrize("name", ["photos/../../a.jpg", "/elsewhere/a.jpg", "..", "nul\0.jpg"])
def test_label_studio_serves_nothing_else(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OwlSwinError, match=r"does not lie below .*, the folder that Label Studio serves"):
        label_studio_address(name, tmp_path / "photos")


def test_label_studio_finds_a_picture_that_a_link_leads_to(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    assert label_studio_address(tmp_path / "link" / "a.jpg", tmp_path / "photos") == "/data/local-files/?d=a.jpg"


def test_the_labelling_interface_has_each_name_once():
    view = ET.fromstring(label_studio_interface(["a <dog>", "cat", "cat", "\x01"]))
    assert [(child.tag, child.get("name")) for child in view] == [("Image", "image"), ("RectangleLabels", "label")]
    assert view[0].get("value") == "$image"
    assert view[1].get("toName") == "image"
    assert [label.get("value") for label in view[1]] == ["a <dog>", "cat", "\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize("form", [to_coco, to_label_studio])
def test_every_form_is_plain_json(form):
    assert json.loads(json.dumps(form(["a.jpg"], [ONE]))) == form(["a.jpg"], [ONE])


@pytest.mark.parametrize("form", [to_coco, to_label_studio, to_csv])
def test_a_name_for_each_result(form):
    with pytest.raises(QueryError, match="a name for each Detections, got 1 names for 2"):
        form(["a.jpg"], [ONE, TWO])
    for names, results in (("a.jpg", [ONE]), (["a.jpg"], ONE), (Path("a.jpg"), ONE)):
        with pytest.raises(QueryError, match=r"for one picture write \[name\], \[found\]"):
            form(names, results)


def test_a_name_may_be_a_path():
    path = Path("photos") / "a.jpg"
    assert to_record(path, ONE) == to_record("photos/a.jpg", ONE)
    assert to_voc(path, ONE) == to_voc("photos/a.jpg", ONE)
    for form in (to_coco, to_label_studio, to_csv):
        assert form([path], [ONE]) == form(["photos/a.jpg"], [ONE])


def test_label_studio_shows_a_picture_on_the_internet_where_it_is(tmp_path):
    (task,) = to_label_studio(["https://example.com/a.jpg"], [ONE], root=tmp_path)
    assert task["data"]["image"] == "https://example.com/a.jpg"


def test_fiftyone_s_boxes_are_corner_and_size_in_parts_of_the_picture():
    assert to_fiftyone(NOTHING) == []
    assert to_fiftyone(ONE) == [
        {"label": "dog", "bounding_box": [0.05, 0.2, 0.25, 0.25], "confidence": 0.75, "query": 1},
        {"label": "cat", "bounding_box": [0.0, 0.0, 1.0, 1.0], "confidence": 0.5, "query": 0},
    ]


# --- YOLO, VOC, CSV ------------------------------------------------------------------------------------------------


def test_yolo_has_the_index_of_the_query_and_parts_of_the_picture():
    assert to_yolo(NOTHING) == ""
    assert to_yolo(ONE) == "1 0.175000 0.325000 0.250000 0.250000\n0 0.500000 0.500000 1.000000 1.000000\n"
    assert to_yolo(ONE, with_scores=True).splitlines()[0] == "1 0.175000 0.325000 0.250000 0.250000 0.750000"


NAMES = ("cat", 'a "quoted" \\ name: # 1', "\N{OWL} owl", "- x", "one\nline\x85\x07", "no", "cat")


def test_the_names_of_yolo_s_data_file_are_the_caller_s():
    import yaml

    content = yaml.safe_load(yolo_data(NAMES))
    assert content["names"] == dict(enumerate(NAMES))
    assert (content["train"], content["val"]) == ("images", "images")


def test_the_library_reads_its_own_yolo(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images" / "a.jpg").touch()
    (tmp_path / "labels" / "a.txt").write_text(to_yolo(ONE))
    (tmp_path / "data.yaml").write_text(yolo_data(ONE.names))
    scenes = read_yolo(tmp_path, "", "train")
    assert scenes.broken == []
    assert scenes.names == [["cat"], ["dog"]]
    assert scenes.scenes[0].labels.tolist() == [1, 0]
    assert scenes.scenes[0].boxes.tolist() == [pytest.approx([0.05, 0.2, 0.3, 0.45]), [0, 0, 1, 1]]


def test_supervision_reads_our_yolo(tmp_path):
    from PIL import Image
    from supervision import DetectionDataset

    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (200, 100)).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a.txt").write_text(to_yolo(ONE))
    (tmp_path / "data.yaml").write_text(yolo_data(["cat", "dog"]))
    data = DetectionDataset.from_yolo(str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "data.yaml"))
    ((_, _, boxes),) = list(data)
    assert boxes.class_id.tolist() == [1, 0]
    assert boxes.xyxy.tolist() == [pytest.approx([10, 20, 60, 45]), pytest.approx([0, 0, 200, 100])]


def test_the_library_reads_its_own_voc(tmp_path):
    (tmp_path / "a.xml").write_text(to_voc("photos/a.jpg", ONE))
    (tmp_path / "a.jpg").touch()
    scenes = read_voc(tmp_path, "")
    assert scenes.broken == []
    assert scenes.scenes[0].source == tmp_path / "a.jpg"
    assert [scenes.names[row][0] for row in scenes.scenes[0].labels] == ["dog", "cat"]
    assert scenes.scenes[0].boxes.tolist() == [pytest.approx([10, 20, 60, 45]), pytest.approx([0, 0, 200, 100])]


def test_voc_has_what_a_reader_of_voc_asks_for():
    root = ET.fromstring(to_voc("photos/a.jpg", ONE))
    assert [root.findtext(tag) for tag in ("folder", "filename", "path")] == ["photos", "a.jpg", "photos/a.jpg"]
    assert [root.findtext(f"size/{tag}") for tag in ("width", "height", "depth")] == ["200", "100", "3"]
    thing = root.find("object")
    assert [thing.findtext(tag) for tag in ("name", "difficult", "truncated", "score", "query")] == [
        "dog",
        "0",
        "0",
        "0.75",
        "1",
    ]
    assert [child.text for child in thing.find("bndbox")] == ["11", "21", "60", "45"]


def test_a_sliver_is_one_pixel_in_voc():
    sliver = found([0, 0.5, 199.8, 99.7, 200, 100], [0, 0.5, 10.2, 10.2, 10.3, 10.3])
    boxes = [[child.text for child in box] for box in ET.fromstring(to_voc("a", sliver)).iter("bndbox")]
    assert boxes == [["200", "100", "200", "100"], ["11", "11", "11", "11"]]


@pytest.mark.parametrize("name", ["<b>&amp;", "a\nb", "\x00\x1b", "\ud800", "\N{OWL}", "]]>"])
def test_any_name_is_whole_xml(name):
    root = ET.fromstring(to_voc(name, found([0, 0.5, 0, 0, 1, 1], names=(name,))).encode())
    shown = name.replace("\x00", "\ufffd").replace("\x1b", "\ufffd").replace("\ud800", "\ufffd")
    assert root.findtext("object/name") == shown


def test_csv_has_a_row_a_detection():
    assert to_csv([], []) == "image,width,height,query,label,score,xmin,ymin,xmax,ymax\n"
    assert to_csv(["a.jpg", "b.jpg", "c.jpg"], [ONE, NOTHING, TWO], header=False).splitlines() == [
        "a.jpg,200,100,1,dog,0.75,10.0,20.0,60.0,45.0",
        "a.jpg,200,100,0,cat,0.5,0.0,0.0,200.0,100.0",
        "c.jpg,10,10,0,cat,0.25,1.0,2.0,3.0,4.0",
    ]


@pytest.mark.parametrize("name", ["a,b", 'a "b"', "a\nb", "a\r\nb", "", "\N{OWL}"])
def test_any_name_comes_back_from_csv(name):
    import pandas

    text = to_csv([name], [found([0, 0.5, 0, 0, 1, 1], names=(name,))])
    assert [(row["image"], row["label"]) for row in csv.DictReader(io.StringIO(text, newline=""))] == [(name, name)]
    table = pandas.read_csv(io.StringIO(text, newline=""), keep_default_na=False)
    assert table[["image", "query", "xmax"]].to_numpy().tolist() == [[name, 0, 1.0]]
