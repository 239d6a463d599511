"""Pseudo-labels: what a teacher finds becomes a set with scores, whatever stops the run or is wrong with its parts."""

import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest
from picture_files import BAD_FILES, encode, noise, turned
from scripted_teacher import BOX, DOG_AND_CAT, ONE_EACH, Scripted, five_pictures, labels_of

from owl_swin.data.config import DataConfig
from owl_swin.data.scenes import load_scenes
from owl_swin.errors import ConfigError, DataError, OwlSwinError, QueryError
from owl_swin.labelling.names import LabelSpace, label_names
from owl_swin.labelling.run import LabelOptions, label_pictures
from owl_swin.locks import hold_lock
from owl_swin.teachers.detector import DetectorTeacher

# --- The set -------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    return five_pictures(tmp_path / "photos")


def test_a_picture_stays_by_its_best_box_and_a_box_from_a_lower_score_on(tmp_path, photos):
    script = {
        40: [(0, 0.9, BOX), (1, 0.1, BOX), (1, 0.0999, BOX)],
        41: [(0, 0.2999, BOX)],
        43: [(1, 0.3, (-5, 3, 99, 23))],
        44: [(1, 0.8, (50, 3, 99, 23)), (0, 0.31, (0.5, 0, 0.504, 9)), (0, 0.35, BOX)],
    }
    report = label_pictures(photos, tmp_path / "l.json", Scripted(script), DOG_AND_CAT)
    made = labels_of(tmp_path / "l.json")
    assert [image["file_name"] for image in made["images"]] == ["40.png", "43.png", "süd/44.png"]
    assert [(image["width"], image["height"]) for image in made["images"]] == [(40, 30), (43, 30), (44, 30)]
    assert made["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    rows = [(a["image_id"], a["category_id"], a["bbox"], a["score"]) for a in made["annotations"]]
    assert rows == [
        (1, 1, [2, 3, 10, 20], 0.9),
        (1, 2, [2, 3, 10, 20], 0.1),
        (2, 2, [0, 3, 43, 20], 0.3),
        (3, 1, [2, 3, 10, 20], 0.35),
    ]
    assert (report.kept, report.boxes, report.dropped, report.known, report.skipped) == (3, 4, 2, 0, ())
    assert report.root == str(tmp_path / "photos")


def test_the_set_is_read_with_its_scores(tmp_path, photos):
    script = {40: [(0, 0.9, BOX), (1, 0.15, BOX)], 44: [(1, 0.5, BOX)]}
    report = label_pictures(photos, tmp_path / "l.json", Scripted(script), DOG_AND_CAT)
    config = DataConfig("coco", str(tmp_path / "l.json"), images=report.root, ignore_below=0.3)
    first, second = load_scenes(config).scenes
    assert first.scores.tolist() == [pytest.approx(0.9)] and first.boxes.tolist() == [list(BOX)]
    assert first.vague_labels.tolist() == [1] and first.absent(2).tolist() == []
    assert second.source == photos[4] and second.scores.tolist() == [0.5] and second.absent(2).tolist() == [0]


def test_a_file_is_labelled_once_whatever_it_is_called(tmp_path, photos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spellings = [photos[0].relative_to(tmp_path), photos[0], f"./{photos[0].relative_to(tmp_path)}", photos[1]]
    teacher = Scripted({40: [(0, 0.6, BOX)], 41: [(0, 0.6, BOX)]})
    label_pictures(spellings, tmp_path / "l.json", teacher, LabelSpace(label_names(["cat"])))
    assert len(teacher.asked) == len(labels_of(tmp_path / "l.json")["images"]) == 2


def test_several_texts_of_one_name_find_one_box(tmp_path, photos):
    space = LabelSpace(label_names(["sofa, couch", "cat", "couch"]))
    script = {40: [(0, 0.6, BOX), (1, 0.9, (2, 3, 12, 22)), (2, 0.5, BOX)]}
    teacher = Scripted(script)
    label_pictures(photos[:1], tmp_path / "l.json", teacher, space)
    assert teacher.asked == [("sofa", "couch", "cat")]
    made = labels_of(tmp_path / "l.json")
    # "couch" was not asked as a class of its own, so nothing is known of it as one.
    assert [category["name"] for category in made["categories"]] == ["sofa, couch", "cat"]
    assert [(a["category_id"], a["score"]) for a in made["annotations"]] == [(1, 0.9), (2, 0.5)]


def test_a_turned_picture_is_labelled_upright(tmp_path, detector):
    upright = noise(60, 90)
    for name, orientation in (("a.png", 1), ("b.png", 6)):
        (tmp_path / name).write_bytes(turned(upright, orientation))
    space = LabelSpace(label_names(["a dog"]))
    options = LabelOptions(threshold=0.0, picture_threshold=0.0)
    label_pictures(
        [tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "l.json", DetectorTeacher(detector), space, options
    )
    made = labels_of(tmp_path / "l.json")
    assert [(image["width"], image["height"]) for image in made["images"]] == [(90, 60), (90, 60)]
    first, second = ([(a["bbox"], a["score"]) for a in made["annotations"] if a["image_id"] == i] for i in (1, 2))
    assert first == second != []
    scenes = load_scenes(DataConfig("coco", str(tmp_path / "l.json"), images=str(tmp_path)))
    assert [scenes.picture(scene).size for scene in scenes.scenes] == [(90, 60), (90, 60)]


def test_a_detector_answers_as_detect_does(tmp_path, detector, photos):
    space = LabelSpace(label_names(["a dog", "a mug"]))
    label_pictures(photos, tmp_path / "l.json", DetectorTeacher(detector), space, LabelOptions(0.5, 0.5, batch_size=2))
    made = labels_of(tmp_path / "l.json")
    for image, path in zip(made["images"], photos, strict=True):
        found = detector.detect(path, ["a dog", "a mug"], threshold=0.5)
        rows = [a for a in made["annotations"] if a["image_id"] == image["id"]]
        assert len(found) > 0
        assert [a["score"] for a in rows] == pytest.approx(found.scores.tolist(), abs=1e-6)
        assert [a["category_id"] - 1 for a in rows] == found.labels.tolist()


def test_names_that_are_no_text_and_odd_shapes(tmp_path, detector):
    names = [b"caf\xe9.png", "con mèo.png".encode(), b"line\nbreak.png"]
    paths = [os.fsdecode(os.fsencode(tmp_path) + b"/" + name) for name in names]
    for path, shape in zip(paths, [(1, 4000), (300, 2), (60, 90)], strict=True):
        Path(path).write_bytes(encode(noise(*shape)))
    space, options = LabelSpace(label_names(["a dog"])), LabelOptions(0.0, 0.0)
    label_pictures(paths, tmp_path / "l.json", DetectorTeacher(detector), space, options)
    scenes = load_scenes(DataConfig("coco", str(tmp_path / "l.json"), images=str(tmp_path)))
    assert [str(scene.source) for scene in scenes.scenes] == paths
    assert [scene.stated_wh for scene in scenes.scenes] == [(4000, 1), (2, 300), (90, 60)]
    assert all(len(scene.boxes) for scene in scenes.scenes) and scenes.broken == []
    assert label_pictures(paths, tmp_path / "l.json", DetectorTeacher(detector), space, options).known == 3


def test_broken_pictures_are_passed_over_and_said(tmp_path, photos):
    for name, (content, _) in BAD_FILES.items():
        (tmp_path / name).write_bytes(content)
    bad = [tmp_path / name for name in BAD_FILES] + [tmp_path / "gone.jpg"]
    report = label_pictures([*bad, *photos], tmp_path / "l.json", Scripted(ONE_EACH), DOG_AND_CAT)
    assert report.kept == 5
    assert [path for path, _ in report.skipped] == [str(path) for path in bad]
    for (_, reason), (_, said) in zip(report.skipped, BAD_FILES.values(), strict=False):
        assert said in reason


# --- Stopped and gone on with --------------------------------------------------------------------------------------


def run_that_dies(paths, to):
    label_pictures(paths, to, Scripted(ONE_EACH, dies_at=43), DOG_AND_CAT, LabelOptions(batch_size=1))


def test_a_killed_run_goes_on_where_it_was(tmp_path, photos):
    # Of this very process: the scripted teacher computes nothing that threads could hold up.
    process = multiprocessing.get_context("fork").Process(target=run_that_dies, args=(photos, tmp_path / "l.json"))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "l.json").exists()
    journal = tmp_path / "l.json.journal"
    journal.write_bytes(journal.read_bytes()[:-7])  # as if the kill had hit the last line
    teacher = Scripted(ONE_EACH)
    report = label_pictures(photos, tmp_path / "l.json", teacher, DOG_AND_CAT, LabelOptions(batch_size=1))
    assert teacher.seen == [42, 43, 44] and report.known == 2
    label_pictures(photos, tmp_path / "whole.json", Scripted(ONE_EACH), DOG_AND_CAT)
    assert (tmp_path / "l.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("l.json", "l.json.journal", "photos", "whole.json", "whole.json.journal")
    ]


def test_a_finished_run_labels_what_is_new_or_changed(tmp_path, photos):
    label_pictures(photos[:3], tmp_path / "l.json", Scripted(ONE_EACH), DOG_AND_CAT)
    photos[1].write_bytes(encode(noise(30, 44)))
    teacher = Scripted(ONE_EACH)
    report = label_pictures(photos[1:4], tmp_path / "l.json", teacher, DOG_AND_CAT)
    assert teacher.seen == [44, 43] and report.known == 1
    assert [image["width"] for image in labels_of(tmp_path / "l.json")["images"]] == [44, 42, 43]


def test_another_threshold_of_pictures_asks_no_teacher(tmp_path, photos):
    script = {40: [(0, 0.9, BOX)], 41: [(0, 0.2, BOX)]}
    with pytest.raises(DataError, match=r"no picture of 2 has a box .* 0.95; the best is 0.900 \(dog in .*40.png\)"):
        label_pictures(photos[:2], tmp_path / "l.json", Scripted(script), DOG_AND_CAT, LabelOptions(0.1, 0.95))
    teacher = Scripted(script)
    report = label_pictures(photos[:2], tmp_path / "l.json", teacher, DOG_AND_CAT, LabelOptions(0.1, 0.2))
    assert (teacher.seen, report.kept) == ([], 2)


def test_other_settings_do_not_take_the_work_of_an_unfinished_run(tmp_path, photos):
    broken = Scripted({40: [(0, 0.5, BOX)], 41: [(0, float("nan"), BOX)]})
    with pytest.raises(DataError, match="score of nan"):
        label_pictures(photos[:2], tmp_path / "l.json", broken, DOG_AND_CAT, LabelOptions(batch_size=1))
    before = (tmp_path / "l.json.journal").read_bytes()
    with pytest.raises(DataError, match=r"holds 1 pictures of a run with other settings \(teacher: .*\"a\".* \"b\""):
        label_pictures(photos[:2], tmp_path / "l.json", Scripted(ONE_EACH, "b"), DOG_AND_CAT)
    assert (tmp_path / "l.json.journal").read_bytes() == before
    label_pictures(photos[:2], tmp_path / "l.json", Scripted(ONE_EACH), DOG_AND_CAT)
    teacher = Scripted(ONE_EACH, "b")  # once it is finished, another may take its place
    label_pictures(photos[:2], tmp_path / "l.json", teacher, DOG_AND_CAT)
    assert teacher.seen == [40, 41]
    stopped = Scripted({40: [(0, 0.5, BOX)], 41: [(0, float("nan"), BOX)]}, "c")
    with pytest.raises(DataError, match="score of nan"):
        label_pictures(photos[:2], tmp_path / "l.json", stopped, DOG_AND_CAT, LabelOptions(batch_size=1))
    with pytest.raises(DataError, match="holds 1 pictures of a run with other settings"):
        label_pictures(photos[:2], tmp_path / "l.json", Scripted(ONE_EACH, "b"), DOG_AND_CAT)
    again = Scripted(ONE_EACH, "c")
    label_pictures(photos[:2], tmp_path / "l.json", again, DOG_AND_CAT, LabelOptions(batch_size=1))
    assert again.seen == [41]


def test_a_run_that_found_nothing_is_in_nobodys_way(tmp_path, photos):
    with pytest.raises(DataError, match="no box in 5 pictures"):
        label_pictures(photos, tmp_path / "l.json", Scripted({}), LabelSpace(label_names(["dgo"])))
    assert label_pictures(photos, tmp_path / "l.json", Scripted(ONE_EACH), DOG_AND_CAT).kept == 5


def test_labels_that_are_not_from_here_or_were_changed_stay(tmp_path, photos):
    to = tmp_path / "l.json"
    to.write_text("{}")
    with pytest.raises(DataError, match="is there already, and not from a run to go on with; name another file"):
        label_pictures(photos, to, Scripted(ONE_EACH), DOG_AND_CAT)
    assert to.read_text() == "{}" and not (tmp_path / "l.json.journal").exists()
    to.unlink()
    label_pictures(photos, to, Scripted(ONE_EACH), DOG_AND_CAT)
    to.write_text(to.read_text().replace('"dog"', '"my dog"'))
    with pytest.raises(DataError, match="was changed since it was written"):
        label_pictures(photos, to, Scripted(ONE_EACH), DOG_AND_CAT)


def test_two_runs_on_one_output_are_refused(tmp_path, photos):
    lock = hold_lock(tmp_path / ".l.json.lock", busy=DataError, failed=lambda error: error)
    with lock, pytest.raises(DataError, match=rf"process {os.getpid()} on .* is writing these labels"):
        label_pictures(photos, tmp_path / "l.json", Scripted(ONE_EACH), DOG_AND_CAT)
    assert label_pictures(photos, tmp_path / "l.json", Scripted(ONE_EACH), DOG_AND_CAT).kept == 5


@pytest.mark.parametrize("room", [400, 700, 900])
def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, photos, room):
    to, before = tmp_path / "l.json", resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(OwlSwinError, match="File too large"):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
            label_pictures(photos, to, Scripted(ONE_EACH), DOG_AND_CAT, LabelOptions(batch_size=2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not to.exists()
    written = (tmp_path / "l.json.journal").read_bytes().count(b'"image"')
    teacher = Scripted(ONE_EACH)
    report = label_pictures(photos, to, teacher, DOG_AND_CAT)
    assert (report.kept, len(labels_of(to)["images"])) == (5, 5)
    assert written - 1 <= report.known and len(teacher.seen) == 5 - report.known
    assert label_pictures(photos, to, teacher, DOG_AND_CAT).known == 5  # the journal is whole again


def test_a_file_that_is_no_journal_is_left_alone(tmp_path, photos):
    (tmp_path / "l.json.journal").write_text('{"my": "notes"}\n')
    with pytest.raises(DataError, match="not a journal of this command"):
        label_pictures(photos, tmp_path / "l.json", Scripted(ONE_EACH), DOG_AND_CAT)
    assert (tmp_path / "l.json.journal").read_text() == '{"my": "notes"}\n'


# --- What is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, said",
    [
        ((0, float("nan"), BOX), "gave a score of nan, which is not in 0 to 1"),
        ((0, 1.5, BOX), "gave a score of 1.5"),
        ((0, 0.5, (2, 3, float("inf"), 9)), "gave a box with NaN or infinity"),
        ((2, 0.5, BOX), "gave the label 2, and was asked for 2 names"),
        ((-1, 0.5, BOX), "gave the label -1"),
    ],
)
def test_an_answer_that_means_nothing_is_refused(tmp_path, photos, row, said):
    teacher = Scripted({40: [(0, 0.5, BOX)], 41: [row]})
    with pytest.raises(DataError, match=rf"41\.png: the teacher scripted {said}"):
        label_pictures(photos[:2], tmp_path / "l.json", teacher, DOG_AND_CAT)
    assert not (tmp_path / "l.json").exists()
    mended = Scripted(ONE_EACH)
    label_pictures(photos[:2], tmp_path / "l.json", mended, DOG_AND_CAT)
    assert mended.seen == [41]


def test_nothing_to_label_or_to_look_for_is_refused(tmp_path, photos):
    with pytest.raises(DataError, match="no picture to label"):
        label_pictures([], tmp_path / "l.json", Scripted({}), DOG_AND_CAT)
    with pytest.raises(QueryError, match="nothing to look for"):
        label_pictures(photos, tmp_path / "l.json", Scripted({}), LabelSpace(()))
    with pytest.raises(DataError, match="none of 1 pictures can be read"):
        label_pictures([tmp_path / "no.jpg"], tmp_path / "l.json", Scripted({}), DOG_AND_CAT)
    with pytest.raises(DataError, match=r"no box in 5 pictures has a score of 0\.1"):
        label_pictures(photos, tmp_path / "m.json", Scripted({}), DOG_AND_CAT)
    for wrong in ({"threshold": 1.5}, {"picture_threshold": float("nan")}, {"batch_size": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            LabelOptions(**wrong)
