"""Average precision and zero-shot accuracy against cases whose figures are known."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_detector import FakeDetector
from picture_files import exif_behind_the_pixels, turned
from PIL import Image
from training_data import COLOURS, NAMES, grey_noise, one_shape, write_json, write_labelled, write_shapes

from owl_swin.data.scene import read_header
from owl_swin.data.truth import read_truth
from owl_swin.detector import TEMPLATES
from owl_swin.errors import DataError
from owl_swin.evaluation.class_queries import encode_classes
from owl_swin.evaluation.classification import class_embeddings, class_titles, evaluate_classification
from owl_swin.evaluation.detection import evaluate_detection
from owl_swin.evaluation.lvis import evaluate_lvis
from owl_swin.evaluation.precision import average_precision, interval, mean_over_classes, resampled_ap50
from owl_swin.evaluation.sets import encode_set
from owl_swin.image import open_image

pytestmark = pytest.mark.numeric

BOX, FAR = [10, 10, 40, 40], [60, 60, 30, 30]  # xywh


def truth(*boxes, n_images=2, categories=(3, 8)):
    """A COCO data set of pictures 0, 1, … of 100 x 100 pixels; a box is (picture, category, xywh[, iscrowd])."""
    annotations = [
        {"id": i, "image_id": box[0], "category_id": box[1], "bbox": box[2], "area": box[2][2] * box[2][3]}
        | {"iscrowd": box[3] if len(box) > 3 else 0}
        for i, box in enumerate(boxes)  # the first has id 0, as in many files
    ]
    return {
        "info": {},
        "images": [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in range(n_images)],
        "annotations": annotations,
        "categories": [{"id": category, "name": f"class {category}"} for category in categories],
    }


def answer(image, category, bbox, score):
    return {"image_id": image, "category_id": category, "bbox": bbox, "score": score}


def measured(data, rows, **settings):
    """The figures of result rows as one dict."""
    found = average_precision(data, rows, **settings)
    ci95 = found.intervals["AP50"]
    return {**found.figures, "per_class": found.per_class, "ci95": list(ci95) if ci95 else None}


# --- Average precision ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [truth(), truth((0, 3, BOX, 1))], ids=["no boxes", "a crowd alone"])
def test_a_set_without_boxes_has_no_figures(data):
    expected = dict.fromkeys(["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]) | {"per_class": {}}
    expected |= {"ci95": None}
    assert measured(data, []) == measured(data, [answer(0, 3, BOX, 0.9)]) == expected


def test_without_answers_every_figure_is_zero():
    figures = measured(truth((0, 3, BOX)), [])
    assert figures.pop("AP_small") is figures.pop("AP_large") is None
    zeros = dict.fromkeys(["AP", "AP50", "AP75", "AP_medium"], 0.0)
    assert figures == zeros | {"per_class": {"class 3": 0.0}, "ci95": [0.0, 0.0]}


# COCO reads the precision at 101 recalls, 0.00 to 1.00: 51 of them are at most one half.
HALF = 100 * 51 / 101


@pytest.mark.parametrize(
    "boxes, answers, expected",
    [
        pytest.param([(0, 3, BOX)], [(0, 3, BOX, 0.5)], 100, id="perfect"),
        pytest.param([(0, 3, BOX), (1, 3, BOX)], [(0, 3, BOX, 0.5), (1, 3, BOX, 0.4)], 100, id="perfect twice"),
        pytest.param([(0, 3, BOX)], [(0, 3, FAR, 0.5)], 0, id="elsewhere"),
        pytest.param([(0, 3, BOX)], [(0, 8, BOX, 0.5)], 0, id="another class"),
        pytest.param([(0, 3, BOX)], [(1, 3, BOX, 0.5)], 0, id="another picture"),
        pytest.param([(0, 3, BOX)], [(0, 3, FAR, 0.9), (0, 3, BOX, 0.5)], 50, id="false above true"),
        pytest.param([(0, 3, BOX)], [(0, 3, FAR, 0.4), (0, 3, BOX, 0.5)], 100, id="false below true"),
        pytest.param([(0, 3, BOX)], [(1, 3, BOX, 0.9), (0, 3, BOX, 0.5)], 50, id="false in a picture without boxes"),
        pytest.param([(0, 3, BOX)], [(0, 3, BOX, 0.9), (0, 3, BOX, 0.8)], 100, id="duplicate at the end"),
        pytest.param(
            [(0, 3, BOX), (1, 3, BOX)],
            [(0, 3, BOX, 0.9), (0, 3, BOX, 0.8), (1, 3, BOX, 0.7)],
            HALF + (100 - HALF) * 2 / 3,
            id="duplicate between",
        ),
        pytest.param([(0, 3, BOX), (1, 3, BOX)], [(0, 3, BOX, 0.9)], HALF, id="missed box"),
        pytest.param(
            [(0, 3, BOX), (0, 3, FAR, 1)], [(0, 3, [65, 65, 9, 9], 0.9), (0, 3, BOX, 0.8)], 100, id="answer in a crowd"
        ),
        pytest.param([(0, 3, BOX), (0, 3, FAR, 1)], [(0, 3, BOX, 0.8)], 100, id="a crowd need not be found"),
    ],
)
def test_ap_of_known_cases(boxes, answers, expected):
    figures = measured(truth(*boxes), [answer(*row) for row in answers])
    assert figures["AP50"] == figures["AP"] == pytest.approx(expected, abs=0.01)
    assert figures["per_class"] == {"class 3": pytest.approx(expected, abs=0.01)}


def test_a_class_without_boxes_does_not_count():
    rows = [answer(0, 3, BOX, 0.5), answer(0, 8, BOX, 0.9), answer(1, 8, FAR, 0.8)]
    figures = measured(truth((0, 3, BOX)), rows)
    assert figures["AP50"] == 100 and figures["per_class"] == {"class 3": 100.0}


def test_ap50_is_the_mean_over_classes():
    rows = [answer(0, 3, BOX, 0.5), answer(1, 8, FAR, 0.9), answer(1, 8, BOX, 0.5)]
    figures = measured(truth((0, 3, BOX), (1, 8, BOX)), rows)
    assert figures["per_class"] == {"class 3": 100.0, "class 8": 50.0}
    assert figures["AP50"] == 75


def test_a_loose_box_counts_at_the_loose_thresholds():
    # 62 % of the width: found at IoU 0.50, 0.55 and 0.60, missed at the other seven.
    figures = measured(truth((0, 3, [0, 0, 50, 50])), [answer(0, 3, [0, 0, 31, 50], 0.5)])
    assert figures["AP"] == 30 and figures["AP50"] == 100


def test_sizes_are_those_of_the_annotated_area():
    # Areas of 900, 1,600 and 10,000 pixels; only the middle one is found, and its answer is as small as the first.
    boxes = [(0, 3, [0, 0, 30, 30]), (0, 3, [50, 50, 40, 40]), (1, 3, [0, 0, 100, 100])]
    figures = measured(truth(*boxes), [answer(0, 3, [50, 50, 31, 31], 0.5)])
    assert figures["AP_small"] == figures["AP_large"] == 0
    assert figures["AP_medium"] == 30  # 60 % overlap: found at IoU 0.50, 0.55 and 0.60
    assert figures["AP75"] == 0 and figures["AP50"] == pytest.approx(100 * 34 / 101, abs=0.01)


def test_an_answer_too_many_does_not_count():
    rows = [answer(0, 3, FAR, 0.9), answer(0, 3, BOX, 0.5)]
    figures = measured(truth((0, 3, BOX)), rows, max_detections=1)
    assert figures["AP50"] == 0 and figures["ci95"] == [0.0, 0.0]


def test_classes_of_one_name_are_told_apart():
    data = truth((0, 3, BOX), (0, 8, BOX))
    data["categories"][1]["name"] = "class 3"
    figures = measured(data, [answer(0, 3, BOX, 0.5)])
    assert figures["per_class"] == {"class 3 (3)": 100.0, "class 3 (8)": 0.0}


def test_a_set_of_one_picture():
    figures = measured(truth((0, 3, BOX), n_images=1), [answer(0, 3, BOX, 0.5)])
    assert figures["AP"] == 100 and figures["ci95"] == [100.0, 100.0]


def random_case(seed, *, n_images=25, crowds=0.2):
    """Boxes and answers of all fates: found well and badly, twice, missed, and where nothing is."""
    rng = np.random.default_rng(seed)
    boxes, rows = [], []
    for image in range(n_images):
        for _ in range(rng.integers(0, 5)):
            category = int(rng.choice([3, 8, 9]))
            x, y, w, h = (float(v) for v in rng.uniform([0, 0, 10, 10], [60, 60, 40, 40]))
            boxes.append((image, category, [x, y, w, h], int(rng.random() < crowds)))
            for _ in range(rng.integers(0, 3)):
                jittered = rng.normal([x, y, w, h], 3).tolist()
                rows.append(answer(image, category, jittered, float(rng.random())))
        for _ in range(rng.integers(0, 3)):
            rows.append(answer(image, int(rng.choice([3, 8, 9])), rng.uniform(5, 50, 4).tolist(), float(rng.random())))
    return truth(*boxes, n_images=n_images, categories=(3, 8, 9)), rows


@pytest.mark.parametrize("seed", range(6))
def test_bootstrap_of_every_picture_once_is_ap50(monkeypatch, seed):
    data, rows = random_case(seed)
    each_once = SimpleNamespace(integers=lambda low, high, n: np.arange(n))
    monkeypatch.setattr(np.random, "default_rng", lambda _: each_once)
    figures = measured(data, rows, draws=1)
    assert 5 < figures["AP50"] < 95
    assert figures["ci95"] == pytest.approx([figures["AP50"]] * 2, abs=0.011)


@pytest.mark.parametrize("seed", range(3))
def test_interval_holds_the_figure_and_narrows_with_more_pictures(seed):
    small, large = (measured(*random_case(seed, n_images=n)) for n in (10, 160))
    for figures in (small, large):
        low, high = figures["ci95"]
        assert low < figures["AP50"] < high
    assert large["ci95"][1] - large["ci95"][0] < small["ci95"][1] - small["ci95"][0]


def test_the_callers_data_is_left_alone():
    data = truth((0, 3, BOX))
    before = json.dumps(data)
    measured(data, [answer(0, 3, BOX, 0.5)])
    assert json.dumps(data) == before


# --- Detection over files ------------------------------------------------------------------------------------------


def told_from(path):
    """A detector that has read the answers."""
    data = json.loads(path.read_text())
    names = {category["id"]: category["name"] for category in data["categories"]}
    told = {}
    for annotation in data["annotations"]:
        x, y, w, h = annotation["bbox"]
        row = ([x, y, x + w, y + h], 0.9, names[annotation["category_id"]])
        told.setdefault(f"{annotation['image_id']}.png", []).append(row)
    return FakeDetector(told)


@pytest.fixture
def shapes(tmp_path):
    return write_shapes(tmp_path / "shapes", 5)


def test_right_answers_score_100(shapes):
    result = evaluate_detection(told_from(shapes), shapes, shapes.parent / "images")
    assert result["AP"] == result["AP50"] == 100 and result["ci95"] == [100.0, 100.0]
    assert result["n_images"] == 5 and result["n_boxes"] == 7
    assert set(result["per_class"]) <= set(NAMES) and set(result["per_class"].values()) == {100.0}
    assert result["annotations"] == "shapes.json" and "COCO box AP" in result["protocol"] and result["broken"] == []


def test_no_answers_score_zero(shapes):
    assert evaluate_detection(FakeDetector({}), shapes, shapes.parent / "images")["AP"] == 0


def test_progress_is_told_to_the_end(shapes):
    seen = []
    progress = lambda done, total: seen.append((done, total))  # noqa: E731
    evaluate_detection(told_from(shapes), shapes, shapes.parent / "images", progress=progress)
    assert seen == [(i, 5) for i in range(1, 6)]


def test_only_the_chosen_classes_are_asked_and_count(shapes):
    detector = told_from(shapes)
    result = evaluate_detection(detector, shapes, shapes.parent / "images", classes=[NAMES[1], NAMES[0]])
    assert set(detector.asked) == {NAMES[0], NAMES[1]}
    assert set(result["per_class"]) == {NAMES[0], NAMES[1]}
    assert result["n_images"] == 5 and result["n_boxes"] == 4
    assert result["AP"] == 100


def test_an_unknown_class_is_named_with_the_known_ones(shapes):
    with pytest.raises(DataError, match=r"no class 'red sqare'; its classes are red square, green circle"):
        evaluate_detection(FakeDetector({}), shapes, shapes.parent / "images", classes=["red sqare"])


def test_sizes_that_differ_from_the_file_are_scaled(tmp_path):
    # The file says 200 x 50, the picture is 100 x 100: half as wide and twice as high.
    grey_noise(100, 100).save(tmp_path / "0.png")
    data = truth((0, 3, [100, 10, 80, 20]), n_images=1)
    data["images"][0] |= {"width": 200, "height": 50}
    detector = FakeDetector({"0.png": [([50, 20, 90, 60], 0.9, "class 3")]})
    result = evaluate_detection(detector, write_json(tmp_path / "data.json", data), tmp_path)
    assert result["AP"] == 100


def test_a_broken_picture_is_listed_and_counts_as_nothing_found(shapes):
    (shapes.parent / "images" / "0.png").write_bytes(b"no picture")
    (shapes.parent / "images" / "4.png").unlink()
    result = evaluate_detection(told_from(shapes), shapes, shapes.parent / "images")
    assert len(result["broken"]) == 2 and "0.png" in result["broken"][0] and "4.png" in result["broken"][1]
    assert result["n_images"] == 5 and result["per_class"][NAMES[1]] == 100
    assert result["per_class"][NAMES[0]] == pytest.approx(100 * 34 / 101, abs=0.01)  # one of three red squares is left


@pytest.mark.parametrize("missing", ["annotations", "categories", "images"])
def test_an_empty_set_has_no_figures(tmp_path, missing):
    data = truth((0, 3, BOX)) | {missing: []}
    Image.new("RGB", (100, 100)).save(tmp_path / "0.png")
    Image.new("RGB", (100, 100)).save(tmp_path / "1.png")
    result = evaluate_detection(FakeDetector({}), write_json(tmp_path / "data.json", data), tmp_path)
    assert result["AP"] is None and result["AP50"] is None and result["ci95"] is None
    assert result["n_boxes"] == 0


def test_annotations_of_other_pictures_do_not_count(tmp_path):
    Image.new("RGB", (100, 100)).save(tmp_path / "0.png")
    data = truth((0, 3, BOX), (77, 3, BOX), n_images=1)
    detector = FakeDetector({"0.png": [([10, 10, 50, 50], 0.9, "class 3")]})
    result = evaluate_detection(detector, write_json(tmp_path / "data.json", data), tmp_path)
    assert result["n_boxes"] == 1 and result["AP"] == 100


def test_annotations_may_leave_out_id_area_and_iscrowd(tmp_path):
    Image.new("RGB", (100, 100)).save(tmp_path / "0.png")
    data = truth(n_images=1)
    data["annotations"] = [{"image_id": 0, "category_id": 3, "bbox": BOX}]
    detector = FakeDetector({"0.png": [([10, 10, 50, 50], 0.9, "class 3")]})
    assert evaluate_detection(detector, write_json(tmp_path / "data.json", data), tmp_path)["AP"] == 100


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        '{"images": [], "annotations": 3, "categories": []}',
        '{"images": [], "annotations": [], "categories": [{"id": 1}]}',
    ],
)
def test_a_file_of_another_form_gets_one_sentence(tmp_path, content):
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"data\.json: not a COCO detection file") as caught:
        evaluate_detection(FakeDetector({}), path, tmp_path)
    assert "\n" not in str(caught.value)


def test_the_shipped_kind_of_detector_fits(shapes, detector):
    result = evaluate_detection(detector, shapes, shapes.parent / "images", draws=5)
    assert 0 <= result["AP"] <= 100 and result["n_images"] == 5


# --- Classification ------------------------------------------------------------------------------------------------


class FakeClassifier:
    """Texts and pictures by their colour: one axis a colour that is named, or that the picture's middle has."""

    spec = SimpleNamespace(has_image_embed=True)

    def encode_queries(self, prompts):
        assert all("{}" not in prompt for prompt in prompts)
        rows = torch.tensor([[float(colour in prompt) for colour in COLOURS] for prompt in prompts])
        return SimpleNamespace(query_embeds=rows)

    def encode_images(self, images, batch_size, masks=False):
        assert len(images) <= batch_size
        return [SimpleNamespace(embeddings=SimpleNamespace(image_embed=self._embed(image))) for image in images]

    def _embed(self, image):
        picture = open_image(image)
        middle = np.array(picture.getpixel((picture.width // 2, picture.height // 2)))
        away = torch.tensor([float(np.abs(middle - colour).sum()) for colour in COLOURS.values()])
        return torch.nn.functional.one_hot(away.argmin(), len(COLOURS)).float()


@pytest.fixture
def labelled(tmp_path):
    return write_labelled(tmp_path / "set", 8)


def relabel(path, **changes):
    """Gives pictures another label, by their number."""
    data = json.loads(path.read_text())
    for number, label in changes.items():
        data["images"][int(number[1:])]["label"] = label
    return write_json(path, data)


def test_right_names_score_100(labelled):
    result = evaluate_classification(FakeClassifier(), labelled, labelled.parent / "images")
    assert result["top1"] == result["top5"] == 100 and result["ci95"] == [100.0, 100.0]
    assert result["n_images"] == 8 and result["n_classes"] == 4
    assert result["per_class"] == dict.fromkeys(NAMES, 100.0)


def test_classes_may_be_shown_by_other_pictures(labelled, tmp_path):
    shown = write_labelled(tmp_path / "shown", 4)
    folders = {"examples": shown, "example_images": shown.parent / "images"}
    result = evaluate_classification(FakeClassifier(), labelled, labelled.parent / "images", **folders)
    assert result["top1"] == 100 and "shown by other pictures" in result["protocol"]
    relabel(shown, _0="green circle", _1="red square")  # each is shown by a picture of the other
    result = evaluate_classification(FakeClassifier(), labelled, labelled.parent / "images", **folders)
    assert result["top1"] == 50 and result["per_class"]["red square"] == 0
    with pytest.raises(DataError, match="has no picture of the class 'yellow circle'"):
        relabel(shown, _3="red square")
        evaluate_classification(FakeClassifier(), labelled, labelled.parent / "images", **folders)


def test_pictures_that_are_judged_are_no_examples(labelled):
    for path in (labelled, labelled.parent / "." / labelled.name):
        with pytest.raises(DataError, match="is the file that is judged"):
            evaluate_classification(FakeClassifier(), labelled, labelled.parent / "images", examples=path)


def test_a_wrong_name_costs_its_share(labelled):
    relabel(labelled, _0="green circle", _1="blue square")  # a red and a green picture
    result = evaluate_classification(FakeClassifier(), labelled, labelled.parent / "images")
    assert result["top1"] == 75 and result["top5"] == 100  # of four names, each is among the best five
    assert result["per_class"]["green circle"] == 50 and result["per_class"]["red square"] == 100
    assert result["ci95"][0] < 75 < result["ci95"][1]


def test_top5_is_among_the_best_five(tmp_path):
    colours = [*COLOURS, *COLOURS]
    names = [f"{colour} thing {i}" for i, colour in enumerate(colours)]  # eight names, two a colour
    for i, colour in enumerate(colours):
        one_shape(NAMES[list(COLOURS).index(colour)]).save(tmp_path / f"{i}.png")
    records = [{"file_name": f"{i}.png", "label": name} for i, name in enumerate(names)]
    path = write_json(tmp_path / "set.json", {"images": records})
    result = evaluate_classification(FakeClassifier(), path, tmp_path)
    assert result["top1"] == 50  # of two names that say the same, the first is answered
    assert result["top5"] == 100


def test_a_picture_that_cannot_be_read_is_left_out_and_told(labelled):
    (labelled.parent / "images" / "3.png").write_bytes(b"no picture")
    result = evaluate_classification(FakeClassifier(), labelled, labelled.parent / "images")
    assert result["n_images"] == 7 and result["top1"] == 100
    assert len(result["broken"]) == 1 and "3.png" in result["broken"][0]


def test_classes_that_share_their_first_name_are_told_apart(labelled):
    names = [["crane", "bird"], ["crane", "machine"], ["dog"], ["dog"]]
    assert class_titles(names) == ["crane, bird", "crane, machine", "dog (2)", "dog (3)"]
    relabel(labelled, **{f"_{i}": f"square, {NAMES[i]}" for i in (0, 2)})
    result = evaluate_classification(FakeClassifier(), labelled, labelled.parent / "images")
    assert {"square, red square", "square, blue square"} < result["per_class"].keys()


def test_only_the_chosen_classes_are_asked(labelled):
    relabel(labelled, _0="green circle")
    result = evaluate_classification(
        FakeClassifier(), labelled, labelled.parent / "images", classes=["green circle", "blue square"]
    )
    assert result["n_images"] == 5 and result["n_classes"] == 2
    assert set(result["per_class"]) == {"green circle", "blue square"}
    # The red picture is nearest to neither; both tie and the first in the list of classes is answered.
    assert result["per_class"]["blue square"] == 100


def test_an_unknown_class_is_refused(labelled):
    with pytest.raises(DataError, match="has no class 'zebra'"):
        evaluate_classification(FakeClassifier(), labelled, labelled.parent / "images", classes=["zebra"])


def test_a_class_is_the_mean_of_its_names_in_all_templates(detector):
    embeds = class_embeddings(detector, [["cat"], ["dog", "hound"]])
    prompts = [template.replace("{}", name) for name in ("dog", "hound") for template in TEMPLATES]
    mean = detector.encode_queries(prompts).query_embeds.mean(0)
    torch.testing.assert_close(embeds[1], mean / mean.norm())
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(2))


def write_manifest(folder, labels):
    """A sheet of 2 x 3 tiles, one shape each."""
    sheet = Image.new("RGB", (3 * 24, 2 * 24))
    for place in range(5):
        sheet.paste(one_shape(NAMES[place % 4], 24), (place % 3 * 24, place // 3 * 24))
    sheet.save(folder / "sheet.png")
    content = {"tile_px": 24, "sheet_grid": [2, 3], "classes": [f"{name}, {name} thing" for name in NAMES]}
    return write_json(folder / "manifest.json", content | {"val": [{"sheet": "sheet.png", "labels": labels}]})


@pytest.mark.parametrize(
    "labels, top1", [([0, 1, 2, 3, 0], 100), ([0, 1, 2, 3, 1], 80), ([1, 0, 3, 2, 3], 0), ([], None)]
)
def test_tiles_of_a_sheet_are_pictures(tmp_path, labels, top1):
    result = evaluate_classification(FakeClassifier(), write_manifest(tmp_path, labels))
    assert result["top1"] == top1 and result["n_images"] == len(labels) and result["n_classes"] == 4
    assert set(result["per_class"]) == {NAMES[label] for label in labels}


@pytest.mark.parametrize(
    "pictures, among, n_images, n_classes",
    [("all", "all", 5, 4), ("heldout", "all", 2, 4), ("trained", "trained", 3, 2), ("heldout", "trained", 0, 2)],
)
def test_held_out_classes_are_asked_apart(tmp_path, pictures, among, n_images, n_classes):
    path = write_manifest(tmp_path, [0, 1, 2, 3, 0])
    write_json(path, json.loads(path.read_text()) | {"heldout": [3, 1]})
    result = evaluate_classification(FakeClassifier(), path, pictures=pictures, among=among)
    assert (result["n_images"], result["n_classes"]) == (n_images, n_classes)
    assert result["top1"] == (100 if n_images else None)
    if pictures == "heldout" and n_images:
        assert set(result["per_class"]) == {NAMES[1], NAMES[3]}


def test_a_group_of_classes_that_is_not_there_is_refused(labelled, tmp_path):
    with pytest.raises(DataError, match="no group of classes 'seen'"):
        evaluate_classification(FakeClassifier(), write_manifest(tmp_path, [0]), among="seen")
    with pytest.raises(DataError, match="no group of classes 'heldout'"):
        evaluate_classification(FakeClassifier(), labelled, labelled.parent / "images", pictures="heldout")


def test_progress_counts_pictures(labelled):
    seen = []
    progress = lambda done, total: seen.append((done, total))  # noqa: E731
    evaluate_classification(FakeClassifier(), labelled, labelled.parent / "images", progress=progress)
    assert seen == [(8, 8)]


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "not a manifest of sheets or a file of labelled pictures"),
        ("{}", "not a manifest of sheets or a file of labelled pictures"),
        ('{"images": [{"file_name": "a"}]}', "not a manifest of sheets or a file of labelled pictures"),
        ('{"tile_px": 3}', "not a manifest of sheets or a file of labelled pictures"),
    ],
)
def test_an_unknown_form_gets_one_sentence(tmp_path, content, message):
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        evaluate_classification(FakeClassifier(), path, tmp_path)


def test_a_split_that_is_not_there_gets_one_sentence(tmp_path):
    with pytest.raises(DataError, match="test"):
        evaluate_classification(FakeClassifier(), write_manifest(tmp_path, [0]), split="test")


def test_labelled_pictures_need_their_folder(labelled):
    with pytest.raises(DataError, match="--images"):
        evaluate_classification(FakeClassifier(), labelled)


# --- Sets as they come ---------------------------------------------------------------------------------------------


def one_picture(folder, *, annotations, categories=None, size=(100, 100), **changes):
    """A COCO file of the picture 0.png, 100 x 100."""
    Image.new("RGB", (100, 100)).save(folder / "0.png")
    record = {"id": 0, "file_name": "0.png", "width": size[0], "height": size[1]}
    categories = categories or [{"id": 1, "name": "cat"}]
    content = {"images": [record], "annotations": annotations, "categories": categories} | changes
    return write_json(folder / "set.json", content)


def test_a_class_of_several_names_is_asked_by_each_of_them(tmp_path, detector):
    annotation = {"image_id": 0, "category_id": 1, "bbox": BOX}
    path = one_picture(tmp_path, annotations=[annotation], categories=[{"id": 1, "name": "sofa, couch"}])
    fake = FakeDetector({"0.png": [([10, 10, 50, 50], 0.9, "sofa, couch")]})
    result = evaluate_detection(fake, path, tmp_path)
    assert result["per_class"] == {"sofa, couch": 100.0} and fake.queries[0].texts == ("sofa", "couch")
    asked = encode_classes(detector, read_truth(path, tmp_path)).query_embeds[0]
    mean = detector.encode_queries(["sofa", "couch"]).query_embeds.mean(0)
    torch.testing.assert_close(asked, mean / mean.norm())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("speaks_of", ["shown", "stored"])
def test_boxes_of_turned_pictures_are_found_where_they_are(tmp_path, detector, orientation, speaks_of):
    upright = Image.new("RGB", (96, 64), "white")
    upright.paste("black", (10, 5, 30, 25))
    (tmp_path / "t.png").write_bytes(turned(upright, orientation))
    stored = Image.fromarray(np.asarray(Image.open(tmp_path / "t.png").convert("RGB")))  # without its EXIF
    seen = stored if speaks_of == "stored" and orientation >= 5 else upright
    record = {"id": 0, "file_name": "t.png", "width": seen.width, "height": seen.height}
    path = one_picture(tmp_path, annotations=[], images=[record])
    [(_, encoded)] = encode_set(detector, read_truth(path, tmp_path), [])
    queries = detector.encode_queries(["cat"])
    found, expected = (detector.detect(one, queries, threshold=0) for one in (encoded, seen))
    assert found.image_hw == (seen.height, seen.width)
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-3, rtol=1e-4)


def test_an_exif_turn_behind_the_pixels_of_a_png_is_found(tmp_path):
    (tmp_path / "t.png").write_bytes(exif_behind_the_pixels(turned(Image.new("RGB", (96, 64)), 6)))
    assert read_header(tmp_path / "t.png") == ((64, 96), 6)


def test_what_is_no_box_in_the_picture_need_not_be_found(tmp_path):
    boxes = [BOX, [70, 70, 0, 9], [120, 10, 20, 20], [90, 60, 40, 30]]
    annotations = [{"image_id": 0, "category_id": 1, "bbox": box} for box in boxes]
    path = one_picture(tmp_path, annotations=annotations)
    # The last box reaches 30 pixels out of the picture: what is inside of it, 10 pixels, is the box.
    found = FakeDetector({"0.png": [([10, 10, 50, 50], 0.9, "cat"), ([90, 60, 100, 90], 0.8, "cat")]})
    result = evaluate_detection(found, path, tmp_path)
    assert result["AP"] == 100 and result["n_boxes"] == 2 and result["broken"] == []
    assert "2 entries left out: annotation number 2: empty box [70, 70, 0, 9]" in result["notes"][0]


@pytest.mark.parametrize("lvis", [False, True])
def test_ids_may_be_texts(tmp_path, lvis):
    annotation = {"image_id": "img-a", "category_id": "kitty", "bbox": BOX}
    record = {"id": "img-a", "file_name": "0.png", "width": 100, "height": 100}
    if lvis:
        record |= {"neg_category_ids": ["doggy"], "not_exhaustive_category_ids": ["kitty"]}
    categories = [{"id": "kitty", "name": "cat"}, {"id": "doggy", "name": "dog"}]
    path = one_picture(tmp_path, annotations=[annotation], categories=categories, images=[record])
    told = {"0.png": [([60, 60, 90, 90], 0.95, "cat"), ([10, 10, 50, 50], 0.9, "cat"), ([0, 0, 9, 9], 0.3, "dog")]}
    result = (evaluate_lvis if lvis else evaluate_detection)(FakeDetector(told), path, tmp_path)
    assert result["AP50"] == (100 if lvis else 50) and result["per_class"].keys() == {"cat"}
    assert result["ci95"] == [result["AP50"]] * 2


def test_pictures_without_a_stated_size_are_taken_as_they_are(tmp_path):
    annotation = {"image_id": 0, "category_id": 1, "bbox": BOX}
    path = one_picture(tmp_path, annotations=[annotation], images=[{"id": 0, "file_name": "0.png"}])
    assert evaluate_detection(FakeDetector({"0.png": [([10, 10, 50, 50], 0.9, "cat")]}), path, tmp_path)["AP"] == 100


@pytest.mark.parametrize(
    "content, sentence",
    [
        ([{"image_id": 0, "category_id": 1, "bbox": BOX, "score": 0.5}], r"a list of detections \(a results file\)"),
        ([], "a list of 0 things; expected a data set: an object with"),
        ({"categories": [{"id": 1, "name": 5}]}, "the name of category 1 must be a text, got 5"),
        ({"annotations": [{"image_id": 0, "category_id": 7, "bbox": BOX}]}, "none of its 1 annotations can be used"),
        (
            {"annotations": [{"image_id": 0, "category_id": 1, "bbox": [0.1, 0.1, 0.4, 0.4]}]},
            r"not pixels but fractions of the picture \[0\.1",
        ),
    ],
)
def test_a_file_that_is_no_set_is_told_by_its_cause(tmp_path, content, sentence):
    path = one_picture(
        tmp_path, **({"annotations": []} | content if isinstance(content, dict) else {"annotations": []})
    )
    if isinstance(content, list):
        write_json(path, content)
    with pytest.raises(DataError, match=sentence):
        evaluate_detection(FakeDetector({}), path, tmp_path)


def test_a_wrong_folder_is_said_before_any_work(tmp_path):
    path = one_picture(tmp_path, annotations=[{"image_id": 0, "category_id": 1, "bbox": BOX}])
    fake = FakeDetector({})
    with pytest.raises(DataError, match=r"none of its 1 pictures is there, the first would be .*elsewhere.0\.png"):
        evaluate_detection(fake, path, tmp_path / "elsewhere")
    assert fake.asked is None


# --- Intervals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [-0.8, 0.0, 0.8])
def test_the_interval_takes_the_bias_of_the_draws_away(bias):
    # Draws around 30 + 2 * bias with a deviation of 2: the statistic reads that much too high, so what is measured,
    # 30, is as much above what it measures.
    draws = np.random.default_rng(0).normal(30 + 2 * bias, 2, 200_000)
    expected = (30 - 2 * bias - 1.96 * 2, 30 - 2 * bias + 1.96 * 2)
    assert interval(draws, 30.0) == pytest.approx(expected, abs=0.25)


def test_the_interval_of_ap_is_as_wide_as_the_spread_of_what_is_found():
    # 100 pictures with a box each, of which 60 are found and nothing else: AP is the share found, and its spread over
    # sets of 100 pictures is that of a binomial, 4.9.
    data = truth(*[(i, 3, BOX) for i in range(100)], n_images=100)
    figures = measured(data, [answer(i, 3, BOX, 0.5) for i in range(60)], draws=1000)
    assert figures["AP50"] == pytest.approx(60, abs=0.5)
    assert figures["ci95"] == pytest.approx([60 - 1.96 * 4.9, 60 + 1.96 * 4.9], abs=2)


def test_draws_that_all_lie_above_the_figure_do_not_leave_it_outside():
    low, high = interval(np.linspace(5, 9, 200), 4.65)
    assert low == 4.65 and 5 < high < 9


def test_few_boxes_of_many_classes_do_not_lift_the_interval_off_the_figure():
    # In a draw a class is missing, or there twice: plain percentiles lie above the figure.
    rng = np.random.default_rng(3)
    boxes = [(int(image), 10 + c, BOX) for c in range(12) for image in rng.choice(40, 2, replace=False)]
    rows = [answer(image, category, BOX, 0.3) for image, category, _ in boxes[::2]]
    rows += [answer(i, 10 + c, FAR, float(rng.random())) for i in range(40) for c in range(12) if rng.random() < 0.2]
    data = truth(*boxes, n_images=40, categories=range(10, 22))
    plain = np.percentile(mean_over_classes(resampled_ap50(data, rows)), [2.5, 97.5])
    figures = measured(data, rows)
    low, high = figures["ci95"]
    assert low < figures["AP50"] < high
    assert low + high < plain.sum() - 1


# --- What has to be said with a figure -------------------------------------------------------------------------------


def test_why_there_is_no_average_precision_is_said(tmp_path):
    annotation = {"image_id": 0, "category_id": 1, "bbox": BOX}
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    path = one_picture(tmp_path, annotations=[annotation], categories=categories)
    result = evaluate_detection(FakeDetector({}), path, tmp_path, classes=["dog"])
    assert result["AP"] is None and result["notes"] == ["no average precision: no box of 1 classes is in 1 pictures"]
    assert evaluate_detection(FakeDetector({}), path, tmp_path, classes=["cat"])["notes"] == []


def test_a_protocol_that_does_not_fit_the_set_says_so(tmp_path):
    annotation = {"image_id": 0, "category_id": 1, "bbox": BOX}
    path = one_picture(tmp_path, annotations=[annotation])
    assert "use detect" in evaluate_lvis(FakeDetector({}), path, tmp_path)["notes"][0]
    record = {"id": 0, "file_name": "0.png", "width": 100, "height": 100, "neg_category_ids": []}
    path = one_picture(tmp_path, annotations=[annotation], images=[record])
    assert evaluate_lvis(FakeDetector({}), path, tmp_path)["notes"] == []
    assert "use lvis" in evaluate_detection(FakeDetector({}), path, tmp_path)["notes"][0]


@pytest.mark.parametrize("seed", range(3))
def test_reading_a_file_changes_no_figure(tmp_path, seed):
    data, rows = random_case(seed)
    for i, record in enumerate(data["images"]):
        Image.new("L", (100, 100)).save(tmp_path / f"{i}.png")
        record["file_name"] = f"{i}.png"
    read = read_truth(write_json(tmp_path / "set.json", data), tmp_path)
    assert measured(read, rows) == measured(data, rows)
