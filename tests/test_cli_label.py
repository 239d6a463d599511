"""`owl-swin label`: a folder of pictures becomes a data set; what cannot be is one sentence and code 2."""

import json
import os
import signal

import pytest
from picture_files import encode, noise
from PIL import Image
from test_cli import owl_swin  # noqa: F401

from owl_swin.errors import DataError
from owl_swin.locks import hold_lock
from owl_swin.teachers.detector import DetectorTeacher


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The folder to be in, with pictures in Photos and in a folder in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("Photos/a.png", "Photos/Süd/b b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encode(noise(60, 90, seed=len(name))))
    (tmp_path / "names.txt").write_text("a dog\nsofa, couch\n")
    return tmp_path


@pytest.fixture
def label(owl_swin, model_file):  # noqa: F811
    def run(*arguments):
        return owl_swin("label", "--teacher", model_file, "--device", "cpu", *arguments)

    return run


def test_a_folder_becomes_a_set_that_can_be_looked_at_and_trained_on(label, owl_swin, photos):  # noqa: F811
    (photos / "Photos" / "broken.jpg").write_bytes(b"no picture")
    run = label("Photos", "--to", "labels.json", "--queries", "names.txt", "--sheet", "sheet.jpg")
    assert run.code == 0
    made = json.loads((photos / "labels.json").read_text())
    assert [image["file_name"] for image in made["images"]] == ["a.png", "Süd/b b.png"]
    assert [category["name"] for category in made["categories"]] == ["a dog", "sofa, couch"]
    assert all(0.1 <= a["score"] <= 1 for a in made["annotations"])
    assert run.out == f"labels.json: {len(made['annotations'])} boxes in 2 pictures; 0 left out, 1 skipped\n"
    assert (
        "broken.jpg: not a picture" in run.err and 'kind = "coco", path = "labels.json", images = "Photos"' in run.err
    )
    assert Image.open(photos / "sheet.jpg").width > 400
    about = owl_swin("info", "labels.json", "--images", "Photos", "--format", "json")
    assert json.loads(about.out)["boxes"] == len(made["annotations"])
    again = label("Photos", "--to", "labels.json", "--queries", "names.txt", "--sheet", "sheet.jpg")
    assert again.out.endswith("1 skipped, 2 labelled before\n")


def test_a_stopped_run_says_that_the_same_command_goes_on(label, photos, monkeypatch):
    find = DetectorTeacher.find

    def stopped(teacher, pictures, *more):
        signal.raise_signal(signal.SIGTERM)
        return find(teacher, pictures, *more)

    with monkeypatch.context() as patch:
        patch.setattr(DetectorTeacher, "find", stopped)
        run = label("Photos", "--to", "labels.json", "--queries", "names.txt")
    assert run.code == 143 and run.out == ""
    assert run.err == "owl-swin: stopped; the same command goes on from here\n"
    assert label("Photos", "--to", "labels.json", "--queries", "names.txt").code == 0


def test_captions_name_what_is_looked_for(label, photos):
    (photos / "captions.csv").write_text("path,caption\na.png,a photo of a red mug\n")
    (photos / "more").mkdir()
    (photos / "more" / "b b.txt").write_text("two dogs\n")
    for captions, listed, names in (
        ("captions.csv", [], {"red", "mug", "red mug"}),
        ("more", ["--query", "a cat"], {"a cat", "dogs"}),
    ):
        run = label("Photos", "--to", f"{captions}.json", "--captions", captions, *listed, "--picture-threshold", "0")
        assert run.code == 0
        made = json.loads((photos / f"{captions}.json").read_text())
        assert {category["name"] for category in made["categories"]} == names


def test_tasks_for_label_studio_are_written_too(label, photos):
    run = label(
        *("Photos", "--to", "l.json", "--query", "a <dog>"),
        *("--label-studio", "tasks/t.json", "--label-studio-root", "."),
    )
    assert run.code == 0 and '<Label value="a &lt;dog&gt;" />' in run.err
    tasks = json.loads((photos / "tasks" / "t.json").read_text())
    boxes = json.loads((photos / "l.json").read_text())["annotations"]
    assert [one["data"]["image"] for one in tasks] == [
        "/data/local-files/?d=Photos/a.png",
        "/data/local-files/?d=Photos/S%C3%BCd/b%20b.png",
    ]
    assert sum(len(one["predictions"][0]["result"]) for one in tasks) == len(boxes) > 0


def test_several_teachers_and_views(label, photos, model_file):
    views = ("--teacher", model_file, "--agree", "2", "--flip", "--scale", "1", "--scale", "1.5")
    run = label("Photos", "--to", "l.json", "--query", "a dog", *views, "--picture-threshold", "0.1")
    assert run.code == 0
    teacher = json.loads((photos / "l.json").read_text())["info"]["teacher"]
    assert teacher["scales"] == [1, 1.5] and teacher["flip"] and len(teacher["teachers"]) == 2
    run = label("Photos", "--to", "m.json", "--query", "a dog", "--agree", "2")
    assert (
        run.code == 2 and run.err == "owl-swin: agree is how many teachers must agree, from 1 to the 1 given, got 2\n"
    )


def test_thresholds_are_the_published_ones_and_can_be_set(label, photos):
    names = [option for name in ("a dog", "a cat", "x", "mug", "a car") for option in ("--query", name)]
    label("Photos/a.png", "--to", "all.json", *names, "--threshold", "0", "--picture-threshold", "0")
    scores = [a["score"] for a in json.loads((photos / "all.json").read_text())["annotations"]]
    label("Photos/a.png", "--to", "some.json", *names)
    kept = [a["score"] for a in json.loads((photos / "some.json").read_text())["annotations"]]
    assert max(scores) >= 0.3 and min(scores) < 0.1  # else this shows nothing
    assert kept == [score for score in scores if score >= 0.1]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["Photos", "--queries", "name.txt"], "name.txt: expected a file with a name on each line (No such file or "),
        (["Photos"], "there is nothing to look for; give names with --query or --queries, or --captions"),
        (["Potos", "--query", "a dog"], "Potos: no such file or folder; did you mean Photos?"),
        (["Photos", "--query", "a dog", "--to", "-"], "-: the labels and their journal need a file"),
        (
            ["Photos", "--query", "a dog", "--teacher", "Llama"],
            "Llama: holds a model of the kind 'llama'; teachers are ",
        ),
        (
            ["Photos", "--query", "a dog", "--agree", "2"],
            "agree is how many teachers must agree, from 1 to the 1 given",
        ),
        (["Empty", "--query", "a dog"], "Empty: there is no picture in this folder"),
        (["-", "--query", "a dog"], "-: a data set names its pictures; give files or folders"),
        (["http://a.org/b.jpg", "--query", "x"], "http://a.org/b.jpg: a data set names its pictures"),
        (["Photos", "--query", "a dog", "--threshold", "1.5"], "threshold must lie in 0 to 1, got 1.5"),
        (["Photos", "--query", "x", "--sheet", "Photos/Süd/b.jpg"], "Photos/Süd/b.jpg: lies among the pictures; name"),
        (["Photos", "--query", "x", "--label-studio", "labels.json"], "labels.json: is named for the labels and for"),
        (["Photos", "--query", "a dog", "--sheet", "sheet.txt"], "sheet.txt: the sheet's name must end in .jpg"),
        (
            ["Photos", "--query", "x", "--label-studio-root", "Photos"],
            "--label-studio-root is for the tasks of --label",
        ),
        (
            ["Photos", "--query", "x", "--label-studio", "t.json", "--label-studio-root", "Empty"],
            "Photos/a.png: does not lie below Empty",
        ),
        (["Photos", "--query", "a dog", "--teacher", "no-such-model"], "no-such-model"),
        (["Photos", "--query", "a dog", "--to", "Photos"], "Photos: cannot write a file here (Is a directory)"),
        (["Photos", "--query", "a dog", "--to", "/dev/null/l.json"], "/dev/null: cannot write in this folder"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_writes_nothing(label, photos, arguments, said):
    (photos / "Empty").mkdir()
    (photos / "Llama").mkdir()
    (photos / "Llama" / "config.json").write_text('{"model_type": "llama"}')
    before = sorted(os.walk("."))
    run = label("--to", "labels.json", *arguments)
    assert run.code == 2 and run.out == ""
    assert run.err.startswith(f"owl-swin: {said}") and run.err.count("\n") == 1
    assert sorted(os.walk(".")) == before


def test_two_runs_on_one_output(label, photos):
    with hold_lock(photos / ".labels.json.lock", busy=DataError, failed=lambda error: error):
        run = label("Photos", "--to", "labels.json", "--query", "a dog")
    assert run.code == 2 and f"process {os.getpid()} on" in run.err and "is writing these labels" in run.err
