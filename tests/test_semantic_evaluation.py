"""Mean intersection over union: against a count by hand, and sets of label maps in every form."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from picture_files import noise, turned
from PIL import Image
from training_data import write_json

from owl_swin.closed_set import ImageSegmenter
from owl_swin.data.label_maps import IGNORED, read_label_maps, read_value_names
from owl_swin.data.map_files import read_label_map
from owl_swin.errors import DataError, ImageError
from owl_swin.evaluation.semantic import evaluate_segmentation, same_names
from owl_swin.image import open_image
from owl_swin.map_formats import panoptic_categories, to_label_image, to_panoptic_image
from owl_swin.rle import encode_rle
from owl_swin.semantic_map import NOTHING, SemanticMap

pytestmark = pytest.mark.numeric

NAMES = ("wall", "door, double door", "tree")


class Scripted(ImageSegmenter):
    """Says of a picture what it was told for its size; the labels are of its own names."""

    def segment(self, image, *, image_size=None):
        picture = open_image(image)
        labels = torch.tensor(self.network[picture.size[::-1]], dtype=torch.int16)
        return SemanticMap(labels, torch.ones(labels.shape), self.names)


def scripted(told):
    return Scripted(told, NAMES, None)


def write_maps(folder, maps, values=np.uint8):
    """A picture and a label map of each array of values."""
    (folder / "maps").mkdir(parents=True)
    (folder / "images").mkdir()
    for number, labels in enumerate(maps):
        height, width = np.shape(labels)
        noise(height, width).save(folder / "images" / f"{number}.jpg")
        Image.fromarray(np.array(labels, dtype=values)).save(folder / "maps" / f"{number}.png")
    return folder / "maps", folder / "images"


def measured(model, place, **settings):
    report = evaluate_segmentation(model, *place, **{"names": NAMES, "draws": 20} | settings)
    assert not report.broken
    return report


def test_figures_are_those_of_a_count_by_hand(tmp_path):
    place = write_maps(tmp_path, [[[0, 0, 1, 1], [0, 2, 255, 1]], [[2, 2, 2], [2, 2, 0]]])
    said = {(2, 4): [[0, 0, 0, 1], [2, 2, 2, -1]], (2, 3): [[2, 2, 2], [0, 2, 2]]}
    report = measured(scripted(said), place)
    # wall: 2 right of 4, said 4 times: 2 of 6; door: 1 right of 3, said once: 1 of 3; tree: 5 right of 6, said 7 times.
    assert report.per_class == {"wall": 33.33, "door, double door": 33.33, "tree": 62.5}
    assert report["mIoU"] == 43.06 and report["pixel_accuracy"] == 61.54
    assert report["mean_accuracy"] == pytest.approx(100 * (2 / 4 + 1 / 3 + 5 / 6) / 3, abs=0.01)
    assert (report["n_images"], report["n_pixels"]) == (2, 13)
    assert report["confused"][0] == {"shown": "wall", "said": "tree", "share": 0.5}
    low, high = report["ci95"]
    assert low <= 43.06 <= high and low < high


def test_figures_are_those_of_single_pixels(tmp_path):
    rng = np.random.default_rng(0)
    shapes = [(5 + i, 9) for i in range(6)]
    maps = [rng.choice([0, 1, 2, 255], shape, p=[0.5, 0.3, 0.1, 0.1]) for shape in shapes]
    said = {one.shape: np.where(rng.random(one.shape) < 0.6, one, rng.integers(-1, 3, one.shape)) for one in maps}
    said = {shape: np.where(one == 255, 1, one).tolist() for shape, one in said.items()}
    report = measured(scripted(said), write_maps(tmp_path, maps))
    counts = Counter(
        (t, s)
        for one in maps
        for truth, answer in zip(one.tolist(), said[one.shape], strict=True)
        for t, s in zip(truth, answer, strict=True)
        if t != 255
    )
    shares = []
    for label in range(3):
        union = sum(n for pair, n in counts.items() if label in pair)
        shares.append(100 * counts[label, label] / union)
    assert list(report.per_class.values()) == pytest.approx(shares, abs=0.006)
    assert report["mIoU"] == pytest.approx(np.mean(shares), abs=0.006)
    right = sum(counts[label, label] for label in range(3))
    assert report["pixel_accuracy"] == pytest.approx(100 * right / sum(counts.values()), abs=0.006)


def test_a_class_that_is_neither_shown_nor_said_does_not_count(tmp_path):
    report = measured(scripted({(1, 2): [[0, 0]]}), write_maps(tmp_path, [[[0, 0]]]))
    assert report["mIoU"] == 100 and report.per_class == {"wall": 100.0}


def test_base_and_novel_classes_have_figures_of_their_own(tmp_path):
    place = write_maps(tmp_path, [[[0, 0, 1, 2]]])
    report = measured(scripted({(1, 4): [[0, 1, 1, 0]]}), place, novel=["door"])
    assert (report["mIoU_base"], report["mIoU_novel"]) == (pytest.approx(100 / 6, abs=0.01), 50)
    assert report["mIoU_harmonic"] == pytest.approx(25, abs=0.01)
    chosen = measured(scripted({(1, 4): [[0, 1, 1, 0]]}), place, base=["wall"], novel=["door"])
    assert chosen["n_pixels"] == 3 and chosen["mIoU_base"] == 50
    for wrong in ({"base": ["wall"]}, {"novel": NAMES}, {"novel": ["door"], "base": ["door"]}):
        with pytest.raises(DataError, match="base classes"):
            measured(scripted({}), place, **wrong)


def test_what_shows_none_of_the_names_is_judged_where_the_set_has_it(tmp_path):
    place = write_maps(tmp_path, [[[0, 0, 1, 255]]])  # as Pascal VOC: 0 is background
    report = measured(scripted({(1, 4): [[-1, 0, 0, 1]]}), place, nothing=0)
    assert report.per_class == {"wall": 50.0, "(nothing)": 50.0}
    assert report["mIoU"] == 50 and report["n_pixels"] == 3


def test_some_classes_alone(tmp_path):
    place = write_maps(tmp_path, [[[0, 0, 1, 2]]])
    report = measured(scripted({(1, 4): [[0, 2, 1, 0]]}), place, classes=["tree", "wall"])
    assert report["n_pixels"] == 3 and report.per_class == {"wall": 33.33, "tree": 0.0}


def test_names_of_another_model_are_the_same_by_a_synonym():
    rows, notes = same_names(("Double door", "sky", "wall"), NAMES)
    assert rows == [1, NOTHING, 0] and notes == ["the model does not know 1 of the classes: tree"]
    rows, notes = same_names(("screen", "Screen door"), ("screen door, screen", "screen, projection screen"))
    assert rows == [1, 0] and notes == []
    with pytest.raises(DataError, match="knows none of the set's classes"):
        same_names(("sky",), NAMES)


def test_maps_without_names_are_those_of_the_model(tmp_path):
    place = write_maps(tmp_path, [[[0, 1, 2, 3]]])
    report = measured(scripted({(1, 4): [[0, 0, 1, 2]]}), place, names=None, ignore=[0])
    assert report["mIoU"] == 100 and list(report.per_class) == list(NAMES)


def test_pictures_that_cannot_be_read_are_listed(tmp_path):
    place = write_maps(tmp_path, [[[0, 0]], [[1] * 40] * 12, [[1, 1, 2, 2]], [[1] * 5]])
    (place[1] / "0.jpg").write_bytes(b"")
    noise(12, 80).save(place[1] / "1.jpg")
    (place[0] / "3.png").write_bytes(b"")
    model = scripted({(12, 80): [[1] * 80] * 12, (1, 4): [[1, 1, 2, 2]]})
    report = evaluate_segmentation(model, *place, names=NAMES, draws=5)
    assert [sentence.split(": ")[1] for sentence in report.broken] == [
        "the file is empty",
        "has 80x12 pixels and its map 40x12, another shape",
        "not a picture in a format that is read here",
    ]
    # Of the first one nothing is found; the second and the last do not count.
    assert report.per_class == {"wall": 0.0, "door, double door": 100.0, "tree": 100.0} and report["n_pixels"] == 6


def test_an_exif_turn_is_undone_where_the_map_is_of_stored_pixels(tmp_path):
    folder, images = write_maps(tmp_path, [[[0, 0, 0], [2, 2, 2]]])
    (images / "0.jpg").write_bytes(turned(noise(2, 3), 6))
    assert measured(scripted({(2, 3): [[0, 0, 0], [2, 2, 2]]}), (folder, images))["mIoU"] == 100


def test_a_map_of_another_size_is_compared_at_its_own(tmp_path):
    folder, images = write_maps(tmp_path, [np.repeat([[0, 2]], 4, 0).repeat(4, 1)])
    noise(2, 4).save(images / "0.jpg")
    assert measured(scripted({(2, 4): [[0, 0, 2, 2]] * 2}), (folder, images))["mIoU"] == 100


# --- Sets ----------------------------------------------------------------------------------------------------------


def labels_of(maps, place=0):
    return maps.pictures[place].labels().tolist()


def test_values_are_named_in_order_but_for_those_apart(tmp_path):
    place = write_maps(tmp_path, [[[0, 1, 2, 3]]])
    assert labels_of(read_label_maps(*place, names=["a", "b", "c"], ignore=[0])) == [[IGNORED, 0, 1, 2]]
    assert labels_of(read_label_maps(*place, names=["a", "b"], ignore=[3], nothing=0)) == [[NOTHING, 0, 1, IGNORED]]
    assert labels_of(read_label_maps(*place, names={3: "x", 0: "y", 1: "x"}, ignore=[2])) == [[0, 1, IGNORED, 1]]
    with pytest.raises(DataError, match=r"0\.png: its value 3 has no name, the last that has one is 2.*--ignore 0"):
        labels_of(read_label_maps(*place, names=["a", "b", "c"]))


@pytest.mark.parametrize("values", [np.uint8, np.uint16])
def test_maps_of_8_and_16_bits(tmp_path, values):
    place = write_maps(tmp_path, [[[0, 1], [1, 255]]], values)
    assert labels_of(read_label_maps(*place, names=["a", "b"])) == [[0, 1], [1, IGNORED]]


def test_maps_that_segment_writes_are_read(tmp_path):
    folder, images = write_maps(tmp_path, [[[0, 0, 0]], [[0, 0]]])
    found = SemanticMap(torch.tensor([[2, -1, 0]], dtype=torch.int16), torch.ones(1, 3), NAMES)
    to_label_image(found).save(folder / "0.png")
    assert labels_of(read_label_maps(folder, images, names=NAMES)) == [[2, IGNORED, 0]]
    image, segments = to_panoptic_image(found)
    (tmp_path / "panoptic").mkdir()
    image.save(tmp_path / "panoptic" / "0.png")
    records = [{"id": 1, "file_name": "0.jpg"}, {"id": 2, "file_name": "1.jpg"}]
    annotations = [{"image_id": 1, "file_name": "0.png", "segments_info": segments}]
    content = {"images": records, "annotations": annotations, "categories": panoptic_categories(NAMES)}
    maps = read_label_maps(write_json(tmp_path / "panoptic.json", content), images)
    assert maps.names == NAMES and len(maps.pictures) == 1 and labels_of(maps) == [[2, IGNORED, 0]]


def test_of_two_masks_the_smaller_one_counts(tmp_path):
    large, small = np.zeros((3, 4), dtype=bool), np.zeros((3, 4), dtype=bool)
    large[:, :3], small[1, 1:] = True, True
    things = [(1, small, 3), (2, large, 9)]
    annotations = [
        {"id": i, "image_id": 1, "category_id": i, "bbox": [0, 0, 4, 3], "area": area, "segmentation": encode_rle(mask)}
        for i, mask, area in things
    ]
    annotations.append({"id": 3, "image_id": 1, "category_id": 1, "bbox": [3, 0, 1, 1]})
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 4, "height": 3}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "table"}],
    }
    noise(3, 4).save(tmp_path / "1.png")
    maps = read_label_maps(write_json(tmp_path / "set.json", content), tmp_path)
    assert maps.has_nothing and labels_of(maps) == [[1, 1, 1, IGNORED], [1, 0, 0, 0], [1, 1, 1, NOTHING]]


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("a.txt", "wall\n\n door, double door \n", ["wall", "door, double door"]),
        ("a.txt", "0: wall\n12:\tStraße\n", {0: "wall", 12: "Straße"}),
        ("objectInfo150.txt", "Idx\tRatio\tName\n1\t0.2\twall\n2\t0.1\tsky \n", {1: "wall", 2: "sky"}),
        ("a.json", '["wall", "sky"]', ["wall", "sky"]),
        ("a.json", '{"0": "wall", "7": "sky"}', {0: "wall", 7: "sky"}),
    ],
)
def test_lists_of_names(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_value_names(tmp_path / name) == expected


@pytest.mark.parametrize("name, text", [("a.txt", " \n"), ("a.json", "{}"), ("a.json", "[["), ("a.json", '{"a": "b"}')])
def test_lists_that_hold_no_names(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=r"a\.(txt|json): "):
        read_value_names(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read"):
        read_value_names(tmp_path / "none.txt")


def test_sets_that_are_none(tmp_path):
    folder, images = write_maps(tmp_path, [[[0, 1]]])
    with pytest.raises(DataError, match="name the list of what they mean"):
        read_label_maps(folder, images)
    (images / "0.jpg").rename(images / "9.jpg")
    with pytest.raises(DataError, match="no map in it is called as a picture"):
        read_label_maps(folder, images, names=NAMES)
    with pytest.raises(DataError, match="no such folder"):
        read_label_maps(folder, tmp_path / "none", names=NAMES)
    with pytest.raises(DataError, match="expected a folder of label maps"):
        read_label_maps(tmp_path / "none", images, names=NAMES)
    for content in ("[]", "{}", json.dumps({"annotations": [{"segments_info": []}]})):
        (tmp_path / "set.json").write_text(content)
        with pytest.raises(DataError, match=r"set\.json"):
            read_label_maps(tmp_path / "set.json", images)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\nxxxx", None])
def test_maps_that_are_none_are_said(tmp_path, content):
    path = tmp_path / "map.png"
    noise(3, 4).save(path) if content is None else path.write_bytes(content)
    with pytest.raises(ImageError, match=r"map\.png"):
        read_label_map(path)
