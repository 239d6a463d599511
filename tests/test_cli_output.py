"""What goes into `owl-swin detect` and what comes out: folders, patterns, addresses, thresholds, forms, full disks."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from picture_files import BAD_FILES, encode, noise
from test_cli import assert_one_sentence, detect, owl_swin, photos  # noqa: F401

from owl_swin.cli import pictures as module
from owl_swin.cli.pictures import find_pictures, near_name
from owl_swin.cli.printing import printable
from owl_swin.cli.results import FreeNames, stem_of
from owl_swin.cli.table import table_lines
from owl_swin.cli.thresholds import nothing_sentence, reached_threshold, read_thresholds
from owl_swin.data.voc import read_voc
from owl_swin.data.yolo import read_yolo
from owl_swin.detections import Detection
from owl_swin.errors import ImageError, NotFetchedError, QueryError

PNG = encode(noise(40, 60))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of pictures to stand in: b.png, a.JPG, sub/c.png, sub/deep/d.webp, and what is no picture."""
    for name in ("b.png", "a.JPG", "sub/c.png", "sub/deep/d.webp", ".hidden.png", ".cache/e.png", "[x].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- Which pictures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["b.png", "-", "b.png"], ["b.png", "-", "b.png"]),
        (["missing.jpg"], ["missing.jpg"]),  # which opening it says
        (["sub"], ["sub/c.png", "sub/deep/d.webp"]),
        (["."], ["./[x].png", "./a.JPG", "./b.png", "./sub/c.png", "./sub/deep/d.webp"]),
        (["*"], ["[x].png", "a.JPG", "b.png"]),
        (["**/*.*"], ["[x].png", "a.JPG", "b.png", "sub/c.png", "sub/deep/d.webp"]),
        (["su?/[a-c].png"], ["sub/c.png"]),
        (["[x].png"], ["[x].png"]),  # a file of that very name
        (["sub", "b.png"], ["sub/c.png", "sub/deep/d.webp", "b.png"]),
    ],
)
def test_folders_and_patterns_stand_for_their_pictures_in_order(folder, arguments, expected):
    assert find_pictures(arguments) == expected


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["empty"], "empty: there is no picture in this folder"),
        (["*.gif"], r"\*\.gif: no picture fits this pattern"),
        (["-", "b.png", "-"], "which can be read once"),
        (["https://example.com/a.png"], "with --allow-url only"),
        (["HTTP://example.com/a.png"], "with --allow-url only"),
    ],
)
def test_an_argument_without_a_picture_is_refused(folder, arguments, sentence):
    with pytest.raises(ImageError, match=sentence):
        find_pictures(arguments)


def test_a_folder_and_a_file_are_detected_in(detect, folder):  # noqa: F811
    run = detect("sub", "b.png", "--query", "cat", "--format", "jsonl")
    assert [record["image"] for record in run.records] == ["sub/c.png", "sub/deep/d.webp", "b.png"]


def test_a_misspelt_picture_is_named(detect, folder):  # noqa: F811
    assert near_name("sub/cc.png") == "sub/c.png"
    assert near_name("zebra.gif") is None
    assert near_name("nowhere/c.png") is None
    assert near_name("b.png") is None
    assert_one_sentence(
        detect("sub/c.pgn", "--query", "cat"), "c.pgn: cannot read this file (No such file or directory"
    )
    assert_one_sentence(detect("sub/c.pgn", "--query", "cat"), "did you mean sub/c.png?")
    assert_one_sentence(detect("b.png", "--like", "bb.png"), "did you mean b.png?")


@pytest.mark.parametrize(
    "arguments, near",
    [
        (["train", "finetune.tml"], "finetune.toml"),
        (["info", "weights.safetensor"], "weights.safetensors"),
        (["detect", "b.png", "--model", "./weight.safetensors"], "./weights.safetensors"),
        (["detect", "b.png", "--model=weight.safetensors"], "weights.safetensors"),
        (["eval", "detect", "--annotations", "tests.json", "--images", "."], "test.json"),
    ],
)
def test_a_misspelt_file_of_any_command_is_named(owl_swin, folder, arguments, near):  # noqa: F811
    for name in ("finetune.toml", "weights.safetensors", "test.json"):
        (folder / name).touch()
    assert_one_sentence(owl_swin(*arguments), f"did you mean {near}?")


def test_no_other_file_is_named_where_one_cannot_be_written(owl_swin, model_file, folder):  # noqa: F811
    (folder / "out2").touch()
    run = owl_swin("export", model_file, "--to", "notes.txt/out.safetensors")
    assert_one_sentence(run, "cannot write")
    assert "did you mean" not in run.err


def test_an_address_is_fetched_only_where_it_is_allowed(detect, monkeypatch, tmp_path):  # noqa: F811
    asked = []

    def fetch(url, allowed, **limits):
        asked.append((url, allowed))
        if "gone" in url:
            raise NotFetchedError("example.com: answered 404, no picture")
        return PNG

    monkeypatch.setattr(module, "fetch", fetch)
    arguments = ["http://example.com/a.png", "--like", "https://example.com/b.png@1,2,30,30", "--format", "jsonl"]
    assert_one_sentence(detect(*arguments), "with --allow-url only")
    assert asked == []
    run = detect(*arguments, "--allow-url", "--save", tmp_path / "out")
    assert run.code == 0
    assert run.records[0]["image"] == "http://example.com/a.png"
    assert run.records[0]["detections"][0]["label"] == "b"
    assert asked == [("https://example.com/b.png", None), ("http://example.com/a.png", None)]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.jpg"]
    gone = detect("http://example.com/gone.png", "--query", "cat", "--allow-url", "--format", "jsonl")
    assert_one_sentence(gone, "http://example.com/gone.png: example.com: answered 404")


# --- Thresholds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, expected",
    [
        ([], [0.2, 0.2, 0.2]),
        (["0.3"], [0.3, 0.3, 0.3]),
        (["0.3", "0"], [0, 0, 0]),
        (["a dog=0.1"], [0.1, 0.2, 0.1]),
        (["a dog=0.1", "0.5", "x=y=0.4"], [0.1, 0.4, 0.1]),
        (["a dog=1", "a dog=0.25"], [0.25, 0.2, 0.25]),
    ],
)
def test_each_name_may_have_its_threshold(values, expected):
    assert read_thresholds(values, ["a dog", "x=y", "a dog"]) == expected


@pytest.mark.parametrize(
    "value, sentence",
    [
        ("high", r"a number in \[0, 1\], or NAME=NUMBER as in 'a dog=0.3', got 'high'"),
        ("a dog=", "NAME=NUMBER"),
        ("1.5", "must lie in"),
        ("a dog=nan", "must lie in"),
        ("dog=0.1", "no query is called 'dog'; did you mean 'a dog'"),
        ("=0.1", "no query is called ''"),
    ],
)
def test_a_threshold_that_means_nothing_is_refused(value, sentence):
    with pytest.raises(QueryError, match=sentence):
        read_thresholds([value], ["a dog", "a cat"])


def test_a_threshold_of_a_name_is_that_name_s_alone(detect, photos):  # noqa: F811
    asked = [photos[0], "--queries", "cat,dog", "--format", "jsonl"]
    (both,) = detect(*asked).records
    (one,) = detect(*asked, "--threshold", "cat=1").records
    assert {row["label"] for row in both["detections"]} == {"cat", "dog"}
    assert [row for row in both["detections"] if row["label"] == "dog"] == one["detections"]


def test_across_names_the_better_of_two_boxes_stays(detect, photos):  # noqa: F811
    asked = [photos[0], "--queries", "cat,cat", "--format", "jsonl"]
    (each,) = detect(*asked).records
    (across,) = detect(*asked, "--nms-across").records
    assert [row["query"] for row in each["detections"]] == [0, 1] * (len(each["detections"]) // 2)
    assert across["detections"] == each["detections"][::2]


def test_another_precision_finds_the_same_things(detect, photos):  # noqa: F811
    asked = [photos[0], "--query", "cat", "--top-k", "1", "--format", "jsonl"]
    (exact,), (rough,) = detect(*asked).records, detect(*asked, "--dtype", "bfloat16").records
    assert exact != rough
    assert rough["detections"][0]["score"] == pytest.approx(exact["detections"][0]["score"], abs=0.05)
    assert_one_sentence(detect(*asked, "--dtype", "int8"), "dtype must be one of float32, bfloat16")


@pytest.mark.parametrize(
    "score, expected",
    [(0.0734, "0.07"), (0.5, "0.50"), (0.29, "0.28"), (1.0, "1.00"), (0.00278, "0.002"), (3e-7, "0.0000003"), (0, "0")],
)
def test_the_threshold_that_is_offered_is_reached(score, expected):
    assert reached_threshold(score) in (expected, f"{score:.2f}")
    assert float(reached_threshold(score)) <= score


def test_with_thresholds_by_name_the_offer_is_for_the_name():
    best = Detection("a dog", 0.0734, (0, 0, 1, 1), 0)
    assert nothing_sentence(best, [0.2, 0.2]) == "nothing at 0.20; best: a dog 0.07 (use --threshold 0.07)"
    assert nothing_sentence(best, [0.2, 0.125]).endswith(
        'at 0.125 or above; best: a dog 0.07 (use --threshold "a dog=0.07")'
    )
    assert nothing_sentence(None, [0.2]) == "nothing found"


# --- Forms ---------------------------------------------------------------------------------------------------------


def test_csv_has_the_rows_of_jsonl(detect, photos):  # noqa: F811
    records = detect(*photos[:3], "--queries", "cat,dog", "--format", "jsonl").records
    run = detect(*photos[:3], "--queries", "cat,dog", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(run.out)))
    expected = [(record["image"], row) for record in records for row in record["detections"]]
    assert len(rows) == len(expected) > 10
    for row, (image, one) in zip(rows, expected, strict=True):
        assert (row["image"], row["label"], int(row["query"])) == (image, one["label"], one["query"])
        assert float(row["score"]) == pytest.approx(one["score"], abs=1e-5)
        assert float(row["xmax"]) == pytest.approx(one["box"]["xmax"], abs=0.02)


def test_two_queries_of_one_name_can_be_told_apart_in_every_form(detect, photos, tmp_path):  # noqa: F811
    asked = [photos[0], "--query", "cat", "--query", "cat"]
    _, *rows = detect(*asked).out.splitlines()
    assert {row.split()[-1] for row in rows} == {"0", "1"}
    (record,) = detect(*asked, "--format", "jsonl").records
    assert {row["query"] for row in record["detections"]} == {0, 1}
    coco = json.loads(detect(*asked, "--format", "coco").out)
    assert [row["name"] for row in coco["categories"]] == ["cat", "cat"]
    assert {row["category_id"] for row in coco["annotations"]} == {1, 2}
    detect(*asked, "--format", "yolo", "--to", tmp_path / "out")
    assert {line[0] for line in (tmp_path / "out/labels/0.txt").read_text().splitlines()} == {"0", "1"}
    (task,) = json.loads(detect(*asked, "--format", "label-studio").out)
    assert {row["meta"]["query"] for row in task["predictions"][0]["result"]} == {0, 1}


def test_a_set_in_yolo_form_is_whole_once_its_pictures_are_there(detect, photos, tmp_path):  # noqa: F811
    out = tmp_path / "set"
    run = detect(*photos[:2], "--queries", "cat,dog", "--format", "yolo", "--to", out)
    assert (run.code, run.out) == (0, "")
    (out / "images").mkdir()
    for photo in photos[:2]:
        (out / "images" / photo.name).write_bytes(photo.read_bytes())
    scenes = read_yolo(out, "", "train")
    records = detect(*photos[:2], "--queries", "cat,dog", "--format", "jsonl").records
    assert scenes.names == [["cat"], ["dog"]]
    assert [len(scene.boxes) for scene in scenes.scenes] == [len(record["detections"]) for record in records]


def test_a_set_in_voc_form_is_read_again(detect, photos, tmp_path):  # noqa: F811
    run = detect(*photos[:2], "--queries", "cat,dog", "--format", "voc", "--to", tmp_path / "set")
    assert (run.code, run.out) == (0, "")
    (tmp_path / "set" / "JPEGImages").mkdir()
    for photo in photos[:2]:
        (tmp_path / "set" / "JPEGImages" / photo.name).write_bytes(photo.read_bytes())
    scenes = read_voc(tmp_path / "set", "")
    records = detect(*photos[:2], "--queries", "cat,dog", "--format", "jsonl").records
    assert [len(scene.boxes) for scene in scenes.scenes] == [len(record["detections"]) for record in records]
    assert [scene.source.name for scene in scenes.scenes] == ["0.png", "1.png"]


@pytest.mark.parametrize(("form", "label"), [("yolo", "labels/0.txt"), ("voc", "Annotations/0.xml")])
def test_labels_that_somebody_made_are_not_written_over(detect, photos, tmp_path, form, label):  # noqa: F811
    mine = tmp_path / "set" / label
    mine.parent.mkdir(parents=True)
    mine.write_text("by hand")
    asked = [photos[0], "--query", "cat", "--format", form]
    assert_one_sentence(detect(*asked, "--to", tmp_path / "set"), "are not of this command and could be written over")
    assert mine.read_text() == "by hand"
    assert [path for path in (tmp_path / "set").rglob("*") if path.is_file()] == [mine]
    for threshold in ("0.02", "0.9"):  # what it wrote itself it may
        assert detect(*asked, "--to", tmp_path / "out", "--threshold", threshold).code == 0
    assert detect(*asked, "--to", tmp_path / "new", "--threshold", "0.9").code == 0
    assert (tmp_path / "out" / label).read_text() == (tmp_path / "new" / label).read_text()


@pytest.mark.parametrize(("form", "label"), [("yolo", "labels/0.txt"), ("voc", "Annotations/0.xml")])
def test_labels_that_somebody_corrected_are_not_written_over(detect, photos, tmp_path, form, label):  # noqa: F811
    asked = [photos[0], "--query", "cat", "--format", form, "--to", tmp_path / "set"]
    assert detect(*asked, "--threshold", "0.02").code == 0
    ours = tmp_path / "set" / label
    corrected = ours.read_text() + "\n"
    ours.write_text(corrected)
    later = ours.stat().st_mtime + 60
    os.utime(ours, (later, later))
    assert_one_sentence(detect(*asked), f"{ours}: was changed since it was written and could be written over")
    assert ours.read_text() == corrected
    ours.unlink()
    assert detect(*asked, "--threshold", "0.02").code == 0 and ours.read_text() + "\n" == corrected


def test_labels_are_ours_by_their_content_and_not_their_time(detect, photos, tmp_path):  # noqa: F811
    asked = [photos[0], "--query", "cat", "--format", "yolo", "--to", tmp_path / "set"]
    assert detect(*asked).code == 0
    ours = tmp_path / "set" / "labels" / "0.txt"
    content, before = ours.read_text(), ours.stat().st_mtime
    (tmp_path / "set" / "labels" / "folder.txt").mkdir()
    os.utime(ours, (before + 60, before + 60))  # as of a copy
    assert detect(*asked).code == 0
    ours.write_text("by hand")
    os.utime(ours, (before - 3600, before - 3600))  # put back out of an archive
    assert_one_sentence(detect(*asked), f"{ours}: was changed since it was written")
    mark = tmp_path / "set" / ".labels-by-owl-swin"
    ours.write_text(content)
    mark.write_text(mark.read_text() + "\nabc")  # of a run that was killed
    assert detect(photos[1], *asked[1:]).code == 0 and detect(*asked).code == 0
    mark.write_text("owl-swin detect made all .txt files of labels/ that are older than this one.\n")
    assert_one_sentence(detect(*asked), "was written by an earlier version")


def test_labels_of_a_long_name_are_called_as_their_picture(detect, tmp_path):  # noqa: F811
    photo = tmp_path / f"{'x' * 230}.png"
    photo.write_bytes(encode(noise(20, 20)))
    assert detect(photo, "--query", "cat", "--format", "yolo", "--to", tmp_path / "set").code == 0
    assert [path.stem for path in (tmp_path / "set" / "labels").iterdir()] == [photo.stem]


@pytest.mark.parametrize("queries", ["dog", "dog,cat"])
def test_labels_keep_the_names_of_their_numbers(detect, photos, tmp_path, queries):  # noqa: F811
    asked = ["--format", "yolo", "--to", tmp_path / "set"]
    assert detect(photos[0], "--queries", "cat,dog", *asked).code == 0
    there = (tmp_path / "set" / "data.yaml").read_text()
    assert_one_sentence(detect(photos[1], "--queries", queries, *asked), "numbers other names, or in another order")
    assert (tmp_path / "set" / "data.yaml").read_text() == there
    assert not (tmp_path / "set" / "labels" / "1.txt").exists()
    assert detect(photos[1], "--queries", "cat,dog", *asked).code == 0


def test_pictures_of_one_name_do_not_share_a_label_file(detect, folder):  # noqa: F811
    (folder / "sub" / "b.png").write_bytes(PNG)
    run = detect("b.png", "sub/b.png", "--query", "cat", "--format", "yolo", "--to", "out")
    assert sorted(path.name for path in Path("out/labels").iterdir()) == ["b-2.txt", "b.txt"]
    assert run.err == "owl-swin: sub/b.png: goes to b-2.txt, since another picture is called b too\n"


@pytest.mark.parametrize("form", ["table", "jsonl", "csv", "coco", "label-studio"])
def test_a_file_takes_what_stdout_would(detect, photos, tmp_path, form):  # noqa: F811
    asked = [*photos[:2], "--query", "cat", "--format", form]
    run = detect(*asked, "--to", tmp_path / "new" / "out")
    assert (run.code, run.out) == (0, "")
    assert (tmp_path / "new" / "out").read_text() == detect(*asked).out


def test_label_studio_shows_the_pictures_below_its_root(detect, folder):  # noqa: F811
    run = detect("sub", "--query", "a <cat>", "--format", "label-studio", "--label-studio-root", folder)
    tasks = json.loads(run.out)
    assert [task["data"]["image"] for task in tasks] == [
        "/data/local-files/?d=sub/c.png",
        "/data/local-files/?d=sub/deep/d.webp",
    ]
    assert '<Label value="a &lt;cat&gt;" />' in run.err


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--format", "yolo"], "say with --to in which folder"),
        (["--format", "voc"], "say with --to in which folder"),
        (["--label-studio-root", "."], "--label-studio-root is for --format label-studio, not table"),
        (["--format", "label-studio", "--label-studio-root", "none"], "must be the folder that Label Studio serves"),
        (["--format", "label-studio", "--label-studio-root", "sub"], "b.png: does not lie below sub"),
        (["--format", "csv", "--explain"], "--explain adds nothing to --format csv"),
        (["--to", "notes.txt/out"], "cannot write in this folder"),
        (["--format", "yolo", "--to", "notes.txt"], "cannot write in this folder"),
        (["--threshold", "dog=0.3"], "no query is called 'dog'; did you mean 'cat'?"),
    ],
)
def test_options_of_the_output_that_cannot_be_are_one_sentence(detect, folder, arguments, sentence):  # noqa: F811
    before = sorted(folder.rglob("*"))
    assert_one_sentence(detect("b.png", "--query", "cat", *arguments), sentence)
    assert sorted(folder.rglob("*")) == before


# --- One line a line -----------------------------------------------------------------------------------------------


def test_no_name_breaks_a_line(detect, folder):  # noqa: F811
    name = "one\nowl-swin: two\x1b[31m.png"
    Path(name).write_bytes(PNG)
    Path("bad\n.png").write_bytes(BAD_FILES["cut.png"][0])
    shown = "one\\nowl-swin: two\\x1b[31m.png"
    _, row = detect(name, "--query", "cat", "--top-k", "1").out.splitlines()
    assert row.startswith(shown)
    run = detect(name, "bad\n.png", "--query", "cat", "--threshold", "1", "--save", "out")
    assert run.out.splitlines()[0].startswith(f"{shown}: nothing at")
    assert len(run.out.splitlines()) == 1
    assert [line[:9] for line in run.err.splitlines()] == ["owl-swin:", "wrote out", "owl-swin:"]
    assert json.loads(detect(name, "--query", "cat", "--format", "jsonl").out)["image"] == name


def test_no_name_of_a_data_set_breaks_a_line(owl_swin, folder):  # noqa: F811
    images = [{"id": 1, "file_name": "b.png"}, {"id": 2, "file_name": "gone\nowl-swin: forged.png"}]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 9, 9]} for i in (1, 2)]
    content = {"images": images, "categories": [{"id": 1, "name": "cat\nforged"}], "annotations": boxes}
    (folder / "set.json").write_text(json.dumps(content))
    run = owl_swin("info", "set.json", "--images", ".", "--check")
    assert run.code == 0 and "forged" in run.out
    assert not [line for line in run.out.splitlines() if line.lstrip().startswith(("forged", "owl-swin: forged"))]


def test_what_is_printed_is_one_line():
    assert printable("a\nb\r\x85\u2028\x1b[0m\udcff") == "a\\nb\\r\\x85\\u2028\\x1b[0m\\udcff"
    assert printable("一只猫 \N{OWL}") == "一只猫 \N{OWL}"


def test_columns_are_as_wide_as_they_look():
    assert list(table_lines(["name", "n"], [["一只猫", "1"], ["é", "10"]])) == [
        "name     n",
        "一只猫   1",
        "é       10",
    ]


# --- Pipes, closed streams, outputs in the way ---------------------------------------------------------------------


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_more_pictures_than_a_batch_are_found_with_a_closed_stream(detect, photos, monkeypatch, tmp_path, closed):  # noqa: F811
    monkeypatch.setattr(sys, closed, None)
    asked = (*photos, "--query", "cat", "--format", "csv")
    assert detect(*asked, "--to", tmp_path / "out").code == 0
    monkeypatch.setattr(sys, closed, None)
    run = detect(*asked)
    if closed == "stdout":
        assert (run.code, run.err) == (2, "owl-swin: the output cannot be written (stdout is closed)\n")
    else:
        assert (run.code, run.out) == (0, (tmp_path / "out").read_text())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_a_folder_is_passed_over_and_one_that_is_named_is_read(detect, folder):  # noqa: F811
    os.mkfifo(folder / "sub" / "pipe.png")
    run = detect("sub", "--query", "cat", "--format", "jsonl")
    assert [record["image"] for record in run.records] == ["sub/c.png", "sub/deep/d.webp"]
    assert "owl-swin: sub/pipe.png: is no file\n" in run.err
    for more in ((), ("--tile", "64", "--save", "drawn")):
        writer = threading.Thread(target=(folder / "sub" / "pipe.png").write_bytes, args=(PNG,))
        writer.start()
        run = detect("sub/pipe.png", "--query", "cat", "--format", "jsonl", *more)
        writer.join()
        assert [record["image"] for record in run.records] == ["sub/pipe.png"]


def test_stdin_without_an_end_is_not_read_to_its_end(detect, monkeypatch):  # noqa: F811
    monkeypatch.setattr("owl_swin.image.MAX_FILE_BYTES", 1000)
    assert_one_sentence(detect("-", "--query", "cat", stdin=bytes(2000)), "more than 1000 bytes, the largest picture")


@pytest.mark.parametrize(
    "given, sentence",
    [
        (["--to", "b.png"], "--to is for the output as text"),
        (["--to", "notes.txt", "--query-file", "notes.txt"], "notes.txt: is read here and would be written over"),
        (["--to", "q.safetensors", "--save-query", "q.safetensors"], "is named by --to and by --save-query"),
        (["--to", "new", "--save", "new"], "is named by --to and by --save"),
        (["--save", "sub", "--like", "sub/c.png"], "lies in the folder of --save and could be overwritten"),
        (["--save-query", "weights.safetensors"], "weights.safetensors: is read here and would be written over"),
        (["--to", "linked"], "linked: is read here and would be written over"),
    ],
)
def test_nothing_that_is_read_is_written_over(owl_swin, folder, model_file, given, sentence):  # noqa: F811
    (folder / "weights.safetensors").write_bytes(Path(model_file).read_bytes())
    (folder / "linked").symlink_to("weights.safetensors")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    run = owl_swin("detect", "b.png", "--query", "cat", "--model", "weights.safetensors", *given)
    assert_one_sentence(run, sentence)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_other_commands_do_not_write_over_what_they_read_either(owl_swin, folder):  # noqa: F811
    for name in ("truth.json", "mug.jpg"):
        (folder / name).write_bytes(PNG)
    for command in (
        ["eval", "detect", "--annotations", "truth.json", "--images", ".", "--json", "truth.json"],
        ["search", "archive", "--like", "mug.jpg@0,0,20,20", "--save", "mug.jpg"],
        ["label", "sub", "--to", "new.json", "--queries", "truth.json", "--label-studio", "truth.json"],
    ):
        assert_one_sentence(owl_swin(*command), f"{command[-1]}: is read here and would be written over")
    assert (folder / "truth.json").read_bytes() == (folder / "mug.jpg").read_bytes() == PNG


def test_names_that_differ_in_capitals_or_accents_alone_do_not_share_a_file():
    names = FreeNames()
    taken = [names.take(stem) for stem in ("Cat", "cat", "caf\u00e9", "cafe\u0301", "CAT", "cat-2")]
    assert taken == ["Cat", "cat-2", "caf\u00e9", "cafe\u0301-2", "CAT-3", "cat-2-2"]


@pytest.mark.parametrize(
    "source, stem",
    [
        ("https://a.example/b/my%20cat.jpg?key=s3cr3t.x&until=1", "my cat"),
        ("https://a.example/?key=s3cr3t", "picture"),
        ("https://a.example/a%00b.jpg#top", "ab"),
        ("photos/cat.jpg", "cat"),
        ("-", "stdin"),
    ],
)
def test_a_file_about_a_picture_on_the_internet_has_no_key_in_its_name(source, stem):
    assert stem_of(source) == stem


# --- Full disks, Ctrl-C --------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["detect", "info"])
def test_a_full_disk_is_one_sentence(model_file, folder, command):
    given = [model_file] if command == "info" else ["b.png", "--model", model_file, "--format", "coco"]
    program = [sys.executable, "-c", "from owl_swin.cli.main import main; main()", command]
    with open("/dev/full", "w") as full:
        run = subprocess.run([*program, *given], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1] == "owl-swin: the output cannot be written (No space left on device)"
    assert "Traceback" not in run.stderr and "Exception ignored" not in run.stderr


@pytest.mark.parametrize("form", ["table", "coco", "csv"])
@pytest.mark.parametrize("sig, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_leave_what_is_finished(detect, photos, monkeypatch, form, sig, code):  # noqa: F811
    from owl_swin.cli import detect as command

    opened = []

    def open_picture(source, **settings):
        opened.append(source)
        if len(opened) > 9:
            signal.raise_signal(sig)
        return module.open_picture(source, **settings)

    monkeypatch.setattr(command, "open_picture", open_picture)
    run = detect(*photos, "--query", "cat", "--format", form)
    assert run.code == code
    assert run.err == "owl-swin: stopped after 8 of 10 pictures\n"
    shown = [row["file_name"] for row in json.loads(run.out)["images"]] if form == "coco" else run.out
    assert all(str(photo) in shown for photo in photos[:8])
    assert str(photos[8]) not in shown
