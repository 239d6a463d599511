"""The command line: results on stdout, one sentence on stderr, exit codes that tell, nothing half-written."""

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
from picture_files import BAD_FILES, encode, noise, turned
from PIL import Image

from owl_swin.cli.main import app, main
from owl_swin.detector import Detector
from owl_swin.errors import OwlSwinError

COMMANDS = [command.name for command in app.registered_commands]
SUBCOMMANDS = [
    f"{group.name} {command.name or command.callback.__name__}"
    for group in app.registered_groups
    for command in group.typer_instance.registered_commands
]


@dataclass
class Run:
    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def owl_swin(monkeypatch, capsys):
    """Runs the command in this process."""

    def run(*arguments, stdin: bytes = b"") -> Run:
        monkeypatch.setattr(sys, "argv", ["owl-swin", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return Run(stop.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def detect(owl_swin, model_file):
    """`owl-swin detect` with the tiny model and a threshold that something passes."""

    def run(*arguments, **stdin) -> Run:
        return owl_swin("detect", "--model", model_file, "--threshold", "0.6", *arguments, **stdin)

    return run


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    """Ten pictures of several sizes: more than the command reads at once."""
    paths = [tmp_path / f"{i}.png" for i in range(10)]
    for i, path in enumerate(paths):
        path.write_bytes(encode(noise(40 + 5 * i, 96 - 3 * i, seed=i)))
    return paths


def assert_one_sentence(run: Run, sentence: str) -> None:
    assert run.code == 2
    assert run.out == ""
    assert re.fullmatch(r"owl-swin: .+\n", run.err), run.err
    assert sentence in run.err


# --- Help ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [*COMMANDS, *SUBCOMMANDS])
def test_the_help_of_each_command_holds_an_example(owl_swin, command):
    run = owl_swin(*command.split(), "--help")
    assert run.code == 0
    assert f"Example: owl-swin {command} " in " ".join(run.out.split())


def test_the_version_is_one_line(owl_swin):
    run = owl_swin("--version")
    assert (run.code, run.out, run.err) == (0, f"owl-swin {version('owl_swin')}\n", "")


def test_without_arguments_the_commands_are_listed(owl_swin):
    run = owl_swin()
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", run.out + run.err, re.MULTILINE)


@pytest.mark.parametrize(
    "arguments", [["detect"], ["detect", "a.jpg", "--treshold", "0.2"], ["detect", "a.jpg", "--top-k", "x"], ["find"]]
)
def test_a_wrong_call_ends_with_code_2_and_says_how_to_get_help(owl_swin, arguments):
    run = owl_swin(*arguments)
    assert run.code == 2
    assert run.out == ""
    assert "--help" in run.err


# --- Forms of the output -------------------------------------------------------------------------------------------


def test_a_json_line_a_picture_in_order_sorted_and_clipped(detect, photos, model_file):
    run = detect(*photos, "--query", "cat", "--query", "dog", "--format", "jsonl")
    assert run.code == 0
    assert run.err == ""
    assert [record["image"] for record in run.records] == [str(path) for path in photos]
    detector = Detector.from_pretrained(model_file, device="cpu")
    for path, record in zip(photos, run.records, strict=True):
        width, height = Image.open(path).size
        assert list(record) == ["image", "width", "height", "detections"]
        assert (record["width"], record["height"]) == (width, height)
        rows = record["detections"]
        found = detector.detect(path, ["cat", "dog"], threshold=0.6)
        assert [row["label"] for row in rows] == [one.name for one in found]
        assert [row["score"] for row in rows] == pytest.approx([one.score for one in found], abs=1e-4)
        for row, one in zip(rows, found, strict=True):
            assert tuple(row["box"].values()) == pytest.approx(one.box_xyxy, abs=0.05)
            assert list(row["box"]) == ["xmin", "ymin", "xmax", "ymax"]
            assert 0 <= row["box"]["xmin"] <= row["box"]["xmax"] <= width
            assert 0 <= row["box"]["ymin"] <= row["box"]["ymax"] <= height
        assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert sum(len(record["detections"]) for record in run.records) > 10


@pytest.mark.parametrize("form", ["jsonl", "coco", "label-studio", "table"])
def test_two_runs_write_the_same_bytes(detect, photos, form):
    arguments = [*photos[:3], "--queries", "cat, dog", "--format", form]
    first, second = detect(*arguments), detect(*arguments)
    assert first.code == 0
    assert len(first.out) > 100
    assert first.out == second.out


def test_coco_is_valid(detect, photos):
    run = detect(*photos, "--queries", "cat,dog", "--format", "coco")
    coco = json.loads(run.out)
    images = {image["id"]: image for image in coco["images"]}
    assert [image["file_name"] for image in coco["images"]] == [str(path) for path in photos]
    assert [category["name"] for category in coco["categories"]] == ["cat", "dog"]
    assert len({row["id"] for row in coco["annotations"]}) == len(coco["annotations"]) > 10
    for row in coco["annotations"]:
        x, y, width, height = row["bbox"]
        assert row["category_id"] in {category["id"] for category in coco["categories"]}
        assert min(x, y) >= 0
        assert min(width, height) > 0
        assert x + width <= images[row["image_id"]]["width"] + 0.01
        assert y + height <= images[row["image_id"]]["height"] + 0.01
        assert row["area"] == pytest.approx(width * height, abs=0.01)
        assert row["iscrowd"] == 0


def test_label_studio_is_in_percent(detect, photos):
    run = detect(*photos, "--queries", "cat,dog", "--format", "label-studio")
    tasks = json.loads(run.out)
    values = [row["value"] for task in tasks for row in task["predictions"][0]["result"]]
    assert [task["data"]["image"] for task in tasks] == [str(path) for path in photos]
    assert {task["predictions"][0]["model_version"] for task in tasks} == {"tiny_for_tests"}
    assert len(values) > 10
    for value in values:
        assert min(value["x"], value["y"]) >= 0
        assert min(value["width"], value["height"]) > 0
        assert value["x"] + value["width"] <= 100.001
        assert value["y"] + value["height"] <= 100.001


def test_the_table_has_a_row_a_box_and_says_when_nothing_was_found(detect, photos):
    run = detect(photos[0], "--query", "cat", "--top-k", 2)
    head, *rows = run.out.splitlines()
    assert head.split() == ["picture", "label", "score", "xmin", "ymin", "xmax", "ymax", "query"]
    assert [row.split()[:2] for row in rows] == [[str(photos[0]), "cat"]] * 2


def test_nothing_found_is_an_empty_list(detect, photos):
    (record,) = detect(photos[0], "--query", "cat", "--threshold", "1", "--format", "jsonl").records
    assert record["detections"] == []


@pytest.mark.parametrize("form", ["table", "jsonl", "csv", "coco"])
def test_where_nothing_was_found_the_best_answer_is_said_and_its_threshold_shows_it(detect, photos, form):
    run = detect(photos[0], "--queries", "dog,cat", "--threshold", "0.99", "--format", form)
    assert run.code == 0
    said = run.out if form == "table" else run.err.removeprefix("owl-swin: ")
    pattern = r"(.*): nothing at 0\.99; best: (dog|cat) (0\.\d\d) \(use --threshold (0\.\d\d)\)\n"
    path, label, score, threshold = re.fullmatch(pattern, said).groups()
    assert (path, score) == (str(photos[0]), threshold)
    (record,) = detect(photos[0], "--queries", "dog,cat", "--threshold", threshold, "--format", "jsonl").records
    assert record["detections"][0]["label"] == label
    higher = str(float(threshold) + 0.01)
    (record,) = detect(photos[0], "--queries", "dog,cat", "--threshold", higher, "--format", "jsonl").records
    assert record["detections"] == []


def test_many_pictures_without_detections_are_counted(detect, photos):
    run = detect(*photos, *photos[:3], "--query", "cat", "--threshold", "1", "--format", "jsonl")
    lines = run.err.splitlines()
    assert len(lines) == 11
    assert lines[0].startswith(f"owl-swin: {photos[0]}: nothing at 1.00; best: cat ")
    assert lines[-1] == "owl-swin: nothing in 3 more pictures"


# --- Ways to ask ---------------------------------------------------------------------------------------------------


def test_queries_are_asked_in_the_order_given_and_kept_as_written(detect, photos):
    run = detect(
        photos[0], "--query", "cat", "--query", "cat", "--query", "🦉", "--queries", "一只猫, dog,", "--format", "coco"
    )
    assert [category["name"] for category in json.loads(run.out)["categories"]] == ["cat", "cat", "🦉", "一只猫", "dog"]


def test_without_queries_objects_are_found(detect, photos):
    (record,) = detect(photos[0], "--threshold", "0", "--format", "jsonl").records
    assert {row["label"] for row in record["detections"]} == {"object"}


def test_a_dash_reads_a_picture_from_stdin(detect, photos):
    named = detect(photos[0], "--query", "cat", "--format", "jsonl").records
    piped = detect("-", "--query", "cat", "--format", "jsonl", stdin=photos[0].read_bytes()).records
    assert piped == [{**named[0], "image": "-"}]


def test_an_nms_iou_of_1_keeps_all(detect, photos):
    counts = [
        len(detect(photos[0], "--query", "cat", "--nms-iou", nms_iou, "--format", "jsonl").records[0]["detections"])
        for nms_iou in (0.1, 0.8, 1)
    ]
    assert counts == sorted(counts)
    assert counts[0] < counts[2]


# --- Drawings ------------------------------------------------------------------------------------------------------


def test_save_writes_a_drawing_for_each_picture(detect, photos, tmp_path):
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "0.jpg"
    twin.write_bytes(turned(noise(50, 70), 6))
    run = detect(
        photos[0], twin, "-", "--query", "cat", "--save", tmp_path / "out" / "deep", stdin=photos[1].read_bytes()
    )
    assert run.code == 0
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "out" / "deep").iterdir()}
    assert sizes == {"0.jpg": (96, 40), "0-2.jpg": (70, 50), "stdin.jpg": (93, 45)}
    assert run.err.count("wrote ") == 3


def test_save_does_not_write_over_the_pictures(detect, photos, tmp_path):
    content = photos[0].read_bytes()
    run = detect(photos[0], "--query", "cat", "--save", tmp_path)
    assert_one_sentence(run, "lies in the folder of --save and could be overwritten; name another folder")
    assert photos[0].read_bytes() == content
    assert sorted(tmp_path.iterdir()) == sorted(photos)


def test_save_does_not_write_over_other_pictures_of_its_folder(detect, photos, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "0.jpg").write_bytes(turned(noise(50, 70), 6))
    (mine / "0-2.jpg").write_bytes(b"no picture at all")
    before = {path: path.read_bytes() for path in mine.iterdir()}
    for threshold in ("0.9", "0.02"):  # what it drew itself it draws anew
        run = detect(photos[0], "--query", "cat", "--save", mine, "--threshold", threshold)
        assert (run.code, run.err.count("wrote ")) == (0, 1)
        assert {path: path.read_bytes() for path in before} == before
        assert {path.name for path in mine.iterdir()} == {"0.jpg", "0-2.jpg", "0-3.jpg"}
        size = (mine / "0-3.jpg").stat().st_size
    assert detect(photos[0], "--query", "cat", "--save", tmp_path / "new", "--threshold", "0.02").code == 0
    assert (tmp_path / "new" / "0.jpg").stat().st_size == size


@pytest.mark.parametrize("place", ["file", "file/folder"])
def test_save_into_a_file_is_refused(detect, photos, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    assert_one_sentence(detect(photos[0], "--query", "cat", "--save", tmp_path / place), "cannot write in this folder")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_drawing_that_cannot_be_written_leaves_nothing_half_written(detect, photos, tmp_path):
    (tmp_path / "out" / "0.jpg" / "taken").mkdir(parents=True)
    run = detect(photos[0], "--query", "cat", "--save", tmp_path / "out", "--format", "coco")
    assert run.code == 2 and json.loads(run.out)["annotations"]  # what was found is not lost
    assert run.err == f"owl-swin: {tmp_path / 'out' / '0.jpg'}: cannot write the drawing here (Is a directory)\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0.jpg"]


def test_what_was_found_before_an_error_is_kept(detect, photos, tmp_path):
    (tmp_path / "out" / "2.jpg" / "taken").mkdir(parents=True)
    asked = ("--query", "cat", "--save", tmp_path / "out", "--format", "jsonl", "--to", tmp_path / "found.jsonl")
    run = detect(*photos[:4], *asked)
    assert run.code == 2 and "cannot write the drawing" in run.err and "stopped after" in run.err
    found = [json.loads(line)["image"] for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert found == [str(path) for path in photos[:3]]


def test_an_error_before_anything_was_found_leaves_the_output_of_before(detect, photos, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OwlSwinError("no memory is left on the device")

    (tmp_path / "found.jsonl").write_text("of before")
    monkeypatch.setattr(Detector, "encode_images", refused)
    run = detect(*photos[:2], "--query", "cat", "--format", "jsonl", "--to", tmp_path / "found.jsonl")
    assert_one_sentence(run, "no memory is left")
    assert (tmp_path / "found.jsonl").read_text() == "of before"


def test_a_name_that_leaves_no_room_for_endings_is_cut(detect, tmp_path):
    for end in "ab":
        noise(20, 20).save(tmp_path / f"{'ü' * 120}{end}.png")
    run = detect(tmp_path, "--query", "cat", "--save", tmp_path / "out", "--explain")
    assert run.code == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(names) == 4 and all(len(os.fsencode(name)) < 256 for name in names)


# --- Bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_picture_is_one_sentence(detect, tmp_path, name):
    content, sentence = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    run = detect(tmp_path / name, "--query", "cat", "--format", "jsonl", "--save", tmp_path / "out")
    assert_one_sentence(run, f"{tmp_path / name}: ")
    assert sentence in run.err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "name, sentence",
    [("missing.jpg", "No such file"), ("", "there is no picture in this folder"), ("nul\0.jpg", "null")],
)
def test_a_path_without_a_picture_is_one_sentence(detect, tmp_path, name, sentence):
    assert_one_sentence(detect(tmp_path / name, "--query", "cat", "--format", "jsonl"), sentence)


@pytest.mark.parametrize("form", ["table", "jsonl", "coco"])
def test_a_closed_stdout_is_one_sentence(model_file, photos, monkeypatch, capsys, tmp_path, form):
    def closed(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["owl-swin", "detect", *map(str, arguments)])
            patch.setattr(sys, "stdout", None)
            with pytest.raises(SystemExit) as stop:
                main()
        return stop.value.code or 0, capsys.readouterr().err

    asked = (photos[0], "--model", model_file, "--query", "cat", "--format", form)
    assert closed(*asked) == (2, "owl-swin: the output cannot be written (stdout is closed)\n")
    assert closed(*asked, "--to", tmp_path / "out") == (0, "")
    assert (tmp_path / "out").stat().st_size


def test_what_stdin_holds_is_called_by_its_dash(detect):
    assert_one_sentence(detect("-", "--query", "cat", "--format", "jsonl", stdin=b"text"), "owl-swin: -: not a picture")


def test_an_empty_name_is_one_sentence(detect):
    assert_one_sentence(detect("", "--query", "cat"), "got an empty name")


def test_a_pattern_gives_every_picture_once_also_where_links_go_in_circles(detect, photos, tmp_path):
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    (tmp_path / "in" / "deeper" / "a.png").write_bytes(photos[0].read_bytes())
    (tmp_path / "in" / "deeper" / "back").symlink_to("..")
    (tmp_path / "in" / "b.png").write_bytes(photos[0].read_bytes())
    (tmp_path / "in" / "c.png").symlink_to("b.png")  # a link to a file is a picture of its own
    run = detect(tmp_path / "in" / "**" / "*.png", "--query", "cat", "--format", "jsonl")
    assert [record["image"] for record in run.records] == [
        str(tmp_path / "in" / name) for name in ("b.png", "c.png", "deeper/a.png")
    ]


def test_an_empty_stdin_is_one_sentence(detect):
    assert_one_sentence(detect("-", "--query", "cat", "--format", "jsonl"), "nothing came in on stdin")


def test_of_a_batch_the_good_pictures_come_out_and_the_code_tells(detect, photos, tmp_path):
    bad = [tmp_path / "empty.jpg", tmp_path / "text.jpg"]
    for path in bad:
        path.write_bytes(BAD_FILES[path.name][0])
    mixed = [*photos[:2], bad[0], *photos[2:8], bad[1], *photos[8:]]
    run = detect(*mixed, "--query", "cat", "--format", "jsonl", "--save", tmp_path / "out")
    assert run.code == 2
    assert [record["image"] for record in run.records] == [str(path) for path in photos]
    errors = [line for line in run.err.splitlines() if line.startswith("owl-swin: ")]
    assert errors == [
        f"owl-swin: {bad[0]}: the file is empty",
        f"owl-swin: {bad[1]}: not a picture in a format that is read here (JPEG, PNG, WebP, …)",
        "owl-swin: 2 of 12 pictures could not be read",
    ]
    assert len(list((tmp_path / "out").iterdir())) == 10


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--query", ""], "a text query must name something, got ''"),
        (["--query", " \n"], "a text query must name something"),
        (["--query", "\x01\x1b"], "a text query must name something"),
        (["--queries", " , "], "--queries names nothing"),
        (["--threshold", "nan"], "threshold must lie in [0, 1], got nan"),
        (["--threshold", "-0.5"], "threshold must lie in [0, 1], got -0.5"),
        (["--threshold", "1.5"], "threshold must lie in [0, 1], got 1.5"),
        (["--nms-iou", "nan"], "nms_iou must be a number in [0, 1], got nan"),
        (["--rivals", "2"], "rivals must be a number in [0, 1], got 2.0"),
        (["--objectness", "7"], "objectness must be a number in [0, 1], got 7.0"),
        (["--top-k", "0"], "top_k must be a whole number, at least 1, got 0"),
        (["--device", "gpu"], "device 'gpu' cannot be used here"),
        (["--model", "missing.safetensors"], "missing.safetensors: no such model"),
        (["--model", "nanoo"], "nanoo: no such model (did you mean nano?)"),
    ],
)
def test_a_wrong_setting_is_one_sentence_before_any_picture(detect, photos, tmp_path, arguments, sentence):
    run = detect(photos[0], "--format", "jsonl", "--save", tmp_path / "out", *arguments)
    assert_one_sentence(run, sentence)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [["detect", "a.png", "--model"], ["info"], ["export", "--to", "x.safetensors"]])
def test_a_damaged_model_is_one_sentence(owl_swin, model_file, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Path("bad.safetensors").write_bytes(model_file.read_bytes()[:-100])
    assert_one_sentence(owl_swin(*command, "bad.safetensors"), "bad.safetensors: not a whole safetensors file")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]


@pytest.mark.parametrize("command", ["train", "distil-text"])
@pytest.mark.parametrize(
    "text, sentence", [(None, "cannot read this configuration file"), ("zzz = 1", "unknown key 'zzz'")]
)
def test_a_wrong_run_file_is_one_sentence(owl_swin, tmp_path, command, text, sentence):
    if text is not None:
        (tmp_path / "run.toml").write_text(text)
    assert_one_sentence(owl_swin(command, tmp_path / "run.toml"), sentence)


def test_a_result_that_cannot_be_written_is_one_sentence_before_the_work(owl_swin, model_file, tmp_path):
    (tmp_path / "file").write_text("")
    run = owl_swin(
        "eval",
        "detect",
        "--annotations",
        "missing.json",
        "--images",
        tmp_path,
        "--model",
        model_file,
        "--json",
        tmp_path / "file" / "out.json",
    )
    assert_one_sentence(run, f"{tmp_path / 'file'}: cannot write in this folder")


# --- info and export -----------------------------------------------------------------------------------------------


def test_info_prints_the_model_and_the_versions(owl_swin, model_file):
    run = owl_swin("info", model_file)
    assert run.code == 0
    assert run.out.startswith(f"tiny_for_tests  ({model_file}, ")
    assert "longer side 96 px; a patch is 16 px; embeddings of 16" in run.out
    assert f"  python {sys.version.split()[0]}\n" in run.out
    for package in ("owl_swin", "torch", "transformers"):
        assert f"  {package} {version(package)}\n" in run.out


def test_export_writes_a_model_that_finds_the_same(owl_swin, detect, model_file, photos, tmp_path):
    copy = tmp_path / "new" / "copy.safetensors"
    run = owl_swin("export", model_file, "--to", copy)
    assert run.code == 0
    assert run.out.startswith(f"{copy}  ")
    asked = [photos[0], "--query", "cat", "--format", "jsonl"]
    assert detect(*asked, "--model", copy).out == detect(*asked).out


@pytest.mark.parametrize(
    "place, sentence",
    [
        ("copy.pt", "the file to write must end in .safetensors"),
        ("file/copy.safetensors", "cannot write in this folder"),
        ("folder.safetensors", "cannot write a file here (Is a directory)"),
    ],
)
def test_export_to_a_place_that_cannot_be_written_is_one_sentence(owl_swin, model_file, tmp_path, place, sentence):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.safetensors").mkdir()
    assert_one_sentence(owl_swin("export", model_file, "--to", tmp_path / place), sentence)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.safetensors"]


# --- A process of its own ------------------------------------------------------------------------------------------


def test_the_real_command_writes_results_to_stdout_and_sentences_to_stderr(model_file, tmp_path):
    # A name that is no text, a query that is too long, and a picture that is cut off: all in one start of Python.
    odd = os.fsencode(tmp_path) + b"/\xff.png"
    Path(os.fsdecode(odd)).write_bytes(encode(noise(60, 90)))
    (tmp_path / "cut.jpg").write_bytes(BAD_FILES["cut.jpg"][0])
    command = [sys.executable, "-c", "from owl_swin.cli.main import main; main()", "detect"]
    settings = ["--model", model_file, "--query", "cat " * 2500, "--threshold", "0.6", "--top-k", "1"]
    run = subprocess.run(
        [*command, *settings, odd, tmp_path / "cut.jpg", "-"],
        input=encode(noise(40, 40)),
        capture_output=True,
        check=False,
    )
    assert run.returncode == 2
    out, err = run.stdout.decode(), run.stderr.decode()
    assert [line.split()[0] for line in out.splitlines()] == ["picture", f"{tmp_path}/\\udcff.png", "-"]
    lines = [line for line in err.splitlines() if "of 3 pictures" not in line or "could not" in line]  # how far it is
    assert len(lines) == 4, err
    assert all(line.startswith("owl-swin: ") for line in err.splitlines())
    assert "only the first 2000 are read" in err
    assert "longer than 12 tokens and was cut" in err
    assert f"{tmp_path / 'cut.jpg'}: the picture is damaged or cut off" in err
    assert "1 of 3 pictures could not be read" in err
