"""Many sets in a folder: which files are sets, what is asked, and the mean."""

import pytest
from fake_detector import FakeDetector
from PIL import Image
from training_data import write_json, write_shapes

from owl_swin.errors import DataError
from owl_swin.evaluation.odinw import evaluate_odinw, find_sets

BOX, XYXY = [10, 10, 40, 40], [10, 10, 50, 50]


def write_set(path, names, boxes=(1,), first_id=1, images="."):
    """One picture of 100 x 100 named after the set, and a box of each of the category ids."""
    folder = path.parent / images
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{path.parent.name}.png"
    Image.new("RGB", (100, 100)).save(folder / name)
    return write_json(
        path,
        {
            "images": [{"id": 7, "file_name": name, "width": 100, "height": 100}],
            "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=first_id)],
            "annotations": [{"image_id": 7, "category_id": i, "bbox": BOX} for i in boxes],
        },
    )


def test_a_row_a_set_and_the_mean_of_the_rows(tmp_path):
    write_set(tmp_path / "A" / "test.json", ["cat"], images="images")
    write_set(tmp_path / "B" / "deep" / "test" / "_annotations.coco.json", ["pets", "dog"], [1], first_id=0)
    write_set(tmp_path / "C" / "test.json", ["cat"], boxes=[])
    detector = FakeDetector({"A.png": [(XYXY, 0.9, "cat")]})
    result = evaluate_odinw(detector, tmp_path, draws=20)
    assert [(row["set"], row["AP50"]) for row in result["sets"]] == [("A", 100), ("B/deep", 0), ("C", None)]
    assert result["AP"] == result["AP50"] == 50 and result["ci95"] == [50.0, 50.0]
    assert result["n_images"] == 3 and result["n_boxes"] == 2
    assert result["per_class"] == {"A: cat": 100.0, "B/deep: dog": 0.0}
    assert "mean over 2 sets" in result["protocol"]


def test_the_background_of_id_0_is_asked_only_when_it_has_boxes(tmp_path):
    write_set(tmp_path / "test.json", ["pets", "dog"], [1], first_id=0)
    detector = FakeDetector({})
    evaluate_odinw(detector, tmp_path)
    assert detector.asked == ("dog",)
    write_set(tmp_path / "test.json", ["pets", "dog"], [0], first_id=0)
    evaluate_odinw(detector, tmp_path)
    assert detector.asked == ("pets", "dog")


def test_the_file_without_background_comes_first_and_a_set_holds_no_others(tmp_path):
    for name in ("annotations_without_background.json", "_annotations.coco.json"):
        write_set(tmp_path / "A" / "test" / name, ["cat"])
    write_set(tmp_path / "A" / "old" / "test.json", ["cat"])
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert find_sets(tmp_path, "test") == ([("A", tmp_path / "A" / "test" / "annotations_without_background.json")], [])


def test_the_split_is_chosen(tmp_path):
    write_set(tmp_path / "A" / "valid.json", ["cat"])
    assert find_sets(tmp_path, "valid") == ([("A", tmp_path / "A" / "valid.json")], [])
    with pytest.raises(DataError, match=r"holds no set; looked for .*test\.json"):
        find_sets(tmp_path, "test")


def test_parts_that_models_learn_from_are_no_sets_of_their_own(tmp_path):
    for part in ("train", "valid"):
        write_set(tmp_path / "Rovers" / part / "_annotations.coco.json", ["cat"])
    write_set(tmp_path / "A" / "test" / "_annotations.coco.json", ["cat"])
    found, skipped = find_sets(tmp_path, "test")
    assert [name for name, _ in found] == ["A"]
    assert skipped == [f"{tmp_path / 'Rovers'}: has {part!r} and no 'test'" for part in ("train", "valid")]
    assert evaluate_odinw(FakeDetector({}), tmp_path)["skipped"] == skipped
    for split, name in (("valid", "Rovers"), ("val", "Rovers/valid")):  # which are two words for one part
        assert find_sets(tmp_path, split)[0] == [(name, tmp_path / "Rovers" / "valid" / "_annotations.coco.json")]
    # The folder that is named may be called so itself.
    assert [name for name, _ in find_sets(tmp_path / "Rovers" / "valid", "test")[0]] == ["valid"]


def test_files_of_another_form_are_skipped_and_told(tmp_path):
    write_set(tmp_path / "A" / "test.json", ["cat"])
    write_json(tmp_path / "B" / "test.json", {"images": [{"label": "cat"}]})
    result = evaluate_odinw(FakeDetector({}), tmp_path)
    assert len(result["skipped"]) == 1 and "not a COCO detection file" in result["skipped"][0]
    assert len(result["sets"]) == 1


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        evaluate_odinw(FakeDetector({}), tmp_path / "none")


def test_a_real_detector_is_asked(tmp_path, detector):
    write_shapes(tmp_path / "shapes", 3).rename(tmp_path / "shapes" / "test.json")
    result = evaluate_odinw(detector, tmp_path, draws=3)
    assert result["sets"][0]["n_images"] == 3 and 0 <= result["AP"] <= 100
