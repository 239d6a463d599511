"""`owl-swin index` and `owl-swin search`, run as a user runs them."""

import json
import os
import re
import sys
import time
from pathlib import Path

import pytest
from archives import held_until_waited_for
from picture_files import encode, noise
from PIL import Image

from owl_swin.cli.main import main
from owl_swin.detector import Detector
from owl_swin.index.region_index import RegionIndex
from owl_swin.render import label_colour


@pytest.fixture
def run(monkeypatch, capsys, model_file):
    """Runs the command in this process with the tiny model: exit code, stdout, stderr."""

    def command(name, *arguments, model=model_file):
        given = ["owl-swin", name, "--model", model, *arguments]
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in given])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr()

    return command


def fill_photos(folder: Path) -> None:
    """Four pictures and a broken one."""
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes(encode(noise(60, 90, seed=i)))
    (folder / "broken.jpg").write_bytes(b"no")


@pytest.fixture
def archive(tmp_path, monkeypatch, run):
    """An archive that the command made of "photos", and the folder with both to stand in."""
    monkeypatch.chdir(tmp_path)
    fill_photos(Path("photos"))
    code, out, err = run("index", "photos", "--to", "a.lance")
    assert code == 0 and "4 added, 0 changed, 0 removed, 0 unchanged, 1 skipped" in out
    assert "broken.jpg: not a picture" in err
    return "a.lance"


@pytest.fixture(scope="module")
def one_for_all(tmp_path_factory, model_file):
    folder = tmp_path_factory.mktemp("read")
    fill_photos(folder / "photos")
    with RegionIndex.open(folder / "a.lance", Detector.from_pretrained(model_file, device="cpu"), create=True) as made:
        made.add_folder(folder / "photos")
    return folder


@pytest.fixture
def kept(one_for_all, monkeypatch):
    """The same, for tests that leave it as it is."""
    monkeypatch.chdir(one_for_all)
    return "a.lance"


@pytest.fixture
def detector(model_file):
    """The model as the command reads it: the file holds rounded weights, which are another model's by fingerprint."""
    return Detector.from_pretrained(model_file, device="cpu")


def lines(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def test_index_again_and_forget(archive, run):
    assert "4 unchanged" in run("index", "photos", "--to", archive)[1]
    assert "photos: 4 pictures forgotten" in run("index", "photos", "--to", archive, "--forget")[1]
    assert "0 regions of 0 pictures" in run("index", "photos", "--to", archive, "--forget")[1]


def test_forgetting_says_for_whom_it_waits(archive, run, monkeypatch):
    with held_until_waited_for(archive, monkeypatch):
        code, out, err = run("index", "photos", "--to", archive, "--forget", "--wait")
    assert code == 0 and "4 pictures forgotten" in out
    assert f"waiting for process {os.getpid()}" in err


def test_lines_of_json_hold_what_search_finds(kept, run, detector):
    code, out, _ = run("search", kept, "--query", "a red mug", "--limit", "3", "--offset", "1", "--format", "jsonl")
    assert code == 0
    with RegionIndex.open(kept, detector) as index:
        matches = index.search("a red mug", limit=3, offset=1)
    rows = lines(out)
    assert [row["region"] for row in rows] == [match.region for match in matches]
    assert [row["place"] for row in rows] == [2, 3, 4]
    assert rows[0]["score"] == pytest.approx(matches[0].score, abs=1e-6)
    assert list(rows[0]["box"]) == ["xmin", "ymin", "xmax", "ymax"]
    assert rows[0]["image"] == str(Path("photos").absolute() / Path(rows[0]["image"]).name)


def test_queries_are_asked_as_detect_asks_them(kept, run, tmp_path, detector):
    saved = tmp_path / "q.safetensors"
    detector.encode_queries(["kept"]).save(saved)
    region = lines(run("search", kept, "--query", "x", "--limit", "1", "--format", "jsonl")[1])[0]["region"]
    code, out, _ = run(
        *(
            "search",
            kept,
            "--query",
            "a",
            "--queries",
            "b, c",
            "--like",
            "photos/0.png@10,10,50,50",
            "--not",
            "cup",
        ),
        *("--query-file", saved, "--more-like", region, "--limit", "2", "--format", "jsonl", "--per-image", "1"),
    )
    assert code == 0
    assert [row["query"] for row in lines(out)[::2]] == ["a", "b", "c", "0", "kept", region]
    assert lines(out)[-2]["region"] == region


def test_the_table_and_nothing_found(kept, run):
    _, out, _ = run("search", kept, "--query", "dog", "--limit", "2")
    head, first, second = out.splitlines()
    assert head.split() == ["query", "place", "score", "xmin", "ymin", "xmax", "ymax", "picture"]
    assert first.split()[:2] == ["dog", "1"] and second.endswith(".png")
    code, out, err = run("search", kept, "--query", "dog", "--threshold", "1", "--save", "sheet.jpg")
    assert code == 0 and "not written" in err
    (lower,) = re.fullmatch(r"dog: nothing found; best: (\S+) \(use --threshold \1\)\n", out).groups()
    assert first.split()[0] in run("search", kept, "--query", "dog", "--threshold", lower)[1]
    assert run("search", kept, "--query", "dog", "--offset", "999")[1] == "dog: nothing found\n"
    assert run("search", kept, "--query", "dog", "--offset", "999", "--threshold", "1e-9")[1] == "dog: nothing found\n"


def test_the_contact_sheet_shows_the_boxes_also_of_pictures_that_are_gone(archive, run):
    for picture in sorted(Path("photos").glob("[01].png")):
        picture.unlink()
    code, _, err = run("search", archive, "--query", "dog", "--limit", "7", "--save", "out/sheet.png")
    assert code == 0 and "wrote out/sheet.png" in err
    with Image.open("out/sheet.png") as sheet:
        assert sheet.width == 5 * 308 + 8  # five in a row
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 24)}
    assert label_colour(0) in colours  # the box of the first query
    assert (211, 211, 211) in colours  # a picture that is gone


def test_filters_of_time_and_place(archive, run):
    old = time.time() - 9 * 86400
    os.utime("photos/1.png", (old, old))
    run("index", "photos", "--to", archive)

    def found(*arguments):
        _, out, _ = run("search", archive, "--query", "x", "--limit", "99", "--format", "jsonl", *arguments)
        return {Path(row["image"]).name for row in lines(out)}

    assert found("--older-than", "7d") == {"1.png"} == found("--path-glob", "1.*")
    assert found("--newer-than", "7d") == {"0.png", "2.png", "3.png"} == found("--path-glob", "photos/[!1].png")
    assert found("--newer-than", "2999-01-01") == set() == found("--min-size", "90")


def test_no_name_of_a_file_breaks_a_line(tmp_path, run):
    folder = tmp_path / "new\nline"
    fill_photos(folder)
    (folder / "broken.jpg").rename(folder / "bro\nken.jpg")
    code, out, err = run("index", folder, "--to", tmp_path / "a.lance")
    assert code == 0 and [line.count(": ") for line in out.splitlines()] == [1, 1]
    assert len(err.splitlines()) == 1 and r"new\nline/bro\nken.jpg: not a picture" in err


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("search", "none.lance", "--query", "x"), "there is no archive here"),
        (("search", "a.lance"), "--query or --like"),
        (("search", "a.lance", "--query", "x", "--newer-than", "soon"), "--newer-than wants a date"),
        (("search", "a.lance", "--query", "x", "--limit", "0"), "limit must be a whole number"),
        (("search", "a.lance", "--query", "x", "--save", "sheet.gif"), "must end in .jpg or .png"),
        (("search", "a.lance", "--more-like", "x-1"), "no region 'x-1'"),
        (("search", "a.lance", "--query", "x", "--older-than", "99999999999y"), "--older-than wants a date"),
        (("search", "a.lance", "--eval", "--save", "sheet.jpg"), "--eval gives figures instead of answers"),
        (("index", "nowhere", "--to", "a.lance"), "cannot be read"),
        (("index", "photos/0.png", "--to", "a.lance"), "expected a folder of pictures, got a file"),
        (("index", "photos", "--to", "a.lance", "--workers", "2"), "are for --engine ray"),
        (("index", "photos", "--to", "a.lance", "--engine", "ray", "--workers", "0"), "--workers must be at least 1"),
        (("index", "photos", "--to", "photos"), "other things in it"),
        (("index", "photos", "--to", "b.lance", "--forget"), "there is no archive here"),
        (("index", "photos", "--to", "a.lance", "--image-size", "64"), "encoded at 96 pixels"),
    ],
)
def test_mistakes_are_one_sentence(kept, run, arguments, sentence):
    code, out, err = run(*arguments)
    assert code == 2 and out == ""
    assert sentence in err and len(err.splitlines()) == 1


def test_another_models_archive_says_whose_it_is(kept, run):
    code, _, err = run("search", kept, "--query", "x", model="nano")
    assert code == 2 and "of the model 'tiny_for_tests'" in err and "--model" in err


def test_eval_measures_recall(kept, run):
    code, out, _ = run("search", kept, "--eval")
    told = json.loads(out)
    assert code == 0 and told["recall_at_10"] == 1.0 and told["n_images"] == 4
    assert told["n_queries"] == min(100, told["n_regions"])
    assert json.loads(run("search", kept, "--eval", "--query", "a", "--query", "b")[1])["n_queries"] == 2
    for more in (["--path-glob", "*"], ["--newer-than", "7d"], ["--min-size", "9"], ["--exact"], ["--offset", "3"]):
        code, out, err = run("search", kept, "--eval", *more)
        assert code == 2 and out == "" and "--eval asks the whole archive" in err


def test_the_shipped_model_scores_in_search_as_in_detect(tmp_path):
    pytest.importorskip("skimage")
    import skimage

    photos = Path(skimage.__file__).parent / "data"
    detector = Detector.from_pretrained("nano", device="cpu")
    (tmp_path / "photos").mkdir()
    for name in ("astronaut.png", "coffee.png"):
        (tmp_path / "photos" / name).symlink_to(photos / name)
    with RegionIndex.open(tmp_path / "a.lance", detector, create=True) as index:
        index.add_folder(tmp_path / "photos")
        queries = detector.encode_queries(["a person", "a cup"])
        for label, query in enumerate(["a person", "a cup"]):
            for match in index.search(query, limit=5):
                found = detector.detect(match.path, queries, threshold=0, nms_iou=None, top_k=5000)
                found = found[found.labels == label]
                near = (found.boxes - found.boxes.new_tensor(match.box_xyxy)).abs().sum(1).argmin()
                assert float(found.scores[near]) == pytest.approx(match.score, abs=1e-3)
