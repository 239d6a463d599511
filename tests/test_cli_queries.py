"""The options of `owl-swin detect` that say what to find: examples, what it is not, and saved queries."""

import io
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picture_files import encode, noise
from PIL import Image

from owl_swin.cli.main import main
from owl_swin.cli.query_options import QueryOptions, make_queries
from owl_swin.detector import Detector
from owl_swin.errors import OwlSwinError, QueryError
from owl_swin.exemplar import Exemplar
from owl_swin.families.owl_swin import save_checkpoint
from owl_swin.queries import Query
from owl_swin.types import QueryEmbeddings

BOX = (10, 12, 50, 44)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder to stand in, with a picture under several names."""
    monkeypatch.chdir(tmp_path)
    for name in ("mug.png", "mug2.png", "a@b.png", "odd@1,2,3,4", "plain"):
        Path(name).write_bytes(encode(noise(60, 90)))
    Path("broken.png").write_bytes(b"no picture")
    return tmp_path


@pytest.fixture
def detect(monkeypatch, capsys, model_file):
    """Runs `owl-swin detect` in this process with the tiny model: exit code, stdout, stderr."""

    def run(*arguments, model=model_file):
        given = ["owl-swin", "detect", "--model", model, "--threshold", "0.3", *arguments]
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in given])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr()

    return run


def names(asked: QueryOptions) -> list[str]:
    return [query.name if isinstance(query, Query) else query for query in make_queries(asked)]


# --- Which queries the options make --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked, expected",
    [
        (QueryOptions(), []),
        (QueryOptions(["cat", "cat"], "dog, owl"), ["cat", "cat", "dog", "owl"]),
        (QueryOptions(["cat"], like=["mug.png", "mug2.png"]), ["cat", "mug"]),
        (QueryOptions(["cat"], like=["mug.png@10,12,50,44"], name="it"), ["cat", "it"]),
        (QueryOptions(["cat", "dog"], like=["mug.png"], join=True), ["cat"]),
        (QueryOptions(["cat", "dog"], join=True, name="pet"), ["pet"]),
        (QueryOptions(["cat"], negative=["dog"]), ["cat"]),
        (QueryOptions(["cat", "dog"], like=["mug.png"], negative=["cup"]), ["cat", "dog", "mug"]),
    ],
)
def test_texts_come_first_and_all_examples_are_one_query(asked, expected):
    assert names(asked) == expected


def test_the_parts_of_the_query_are_those_given():
    (query,) = make_queries(
        QueryOptions(
            ["red mug"],
            None,
            ["mug.png@10,12,50,44", "mug2.png"],
            ["a cup", "plain", "a@b.png@0,0,9,9"],
            None,
            True,
            0.7,
        )
    )
    assert query.texts == ("red mug",)
    assert [exemplar.box_xyxy for exemplar in query.exemplars] == [BOX, None]
    assert [part if isinstance(part, str) else part.box_xyxy for part in query.negatives] == [
        "a cup",
        None,
        (0, 0, 9, 9),
    ]
    assert query.weight == 0.7


@pytest.mark.parametrize(
    "like, box",
    [
        ("mug.png", None),
        ("mug.png@10,12,50,44", BOX),
        ("mug.png@10.0, 12, 50,44", BOX),
        ("a@b.png", None),
        ("a@b.png@10,12,50,44", BOX),
        ("odd@1,2,3,4", None),  # a file of that very name
        ("odd@1,2,3,4@10,12,50,44", BOX),
        ("plain@10,12,50,44", BOX),
    ],
)
def test_a_box_stands_after_the_last_at_of_a_name_that_may_hold_others(like, box):
    (query,) = make_queries(QueryOptions(like=[like]))
    assert query.exemplars[0].box_xyxy == box


@pytest.mark.parametrize("text", ["a cup", "me@home", "me@1", "@", "1,2,3,4", "x" * 5000])
def test_what_is_no_picture_is_not_meant_as_text(text):
    (query,) = make_queries(QueryOptions(like=["mug.png"], negative=[text]))
    assert query.negatives == (text,)


@pytest.mark.parametrize(
    "asked, sentence",
    [
        (QueryOptions(["cat"], name="it"), "--name is for the query of --like, --join or --not"),
        (QueryOptions(join=True), "there is no text"),
        (QueryOptions(like=["mug.png"], join=True), "there is no text"),
        (QueryOptions(negative=["dog"]), "say with --query or --like what it is"),
        (QueryOptions(["cat", "dog"], negative=["owl"]), "there are 2 texts; give it one --query, or --join"),
        (QueryOptions(queries=" , "), "--queries names nothing"),
        (QueryOptions(["a"], like=["mug.png"], join=True, weight=2), "weight of the query 'a' must be a number in"),
        (QueryOptions(like=["missing.png"]), "missing.png: cannot read this file"),
        (QueryOptions(like=["missing.png@1,2,3,4"]), "missing.png: cannot read this file"),
        (QueryOptions(like=["broken.png"]), "broken.png: not a picture"),
        (QueryOptions(like=[""]), "cannot read this file"),
        (QueryOptions(like=["nul\0.png@1,2,3,4"]), "null"),
        (QueryOptions(like=["mug.png@"]), "after @ stand four numbers, xmin,ymin,xmax,ymax in pixels, got ''"),
        (QueryOptions(like=["mug.png@1,2,x,4"]), "after @ stand four numbers"),
        (QueryOptions(like=["mug.png@1,2,3"]), "--like mug.png@1,2,3: an exemplar's box is four numbers"),
        (QueryOptions(like=["mug.png@1"]), "four numbers"),
        (QueryOptions(like=["mug.png@nan,2,3,4"]), "finite"),
        (QueryOptions(like=["mug.png@50,12,10,44"]), "xmin < xmax"),
        (QueryOptions(like=["mug.png@100,12,150,44"]), "covers no pixel of the picture, which is 90x60"),
        (QueryOptions(["cat"], negative=["missing.png"]), "missing.png: cannot read this file"),
        (QueryOptions(["cat"], negative=["mug.png@5,5,4,9"]), "--not mug.png@5,5,4,9: an exemplar's box is"),
    ],
)
def test_options_that_mean_nothing_get_one_sentence(asked, sentence):
    with pytest.raises(OwlSwinError, match=re.escape(sentence)) as caught:
        make_queries(asked)
    assert "\n" not in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text() | st.builds("{}@{}".format, st.sampled_from(["mug.png", "a@b", ""]), st.text("0123456789.,-@einfa")))
def test_whatever_is_written_is_a_query_or_one_sentence(argument):
    for asked in (QueryOptions(like=[argument]), QueryOptions(["cat"], negative=[argument])):
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))  # "-" reads it
                (query,) = make_queries(asked)
        except OwlSwinError as error:
            assert str(error)
        else:
            assert isinstance(query, Query)


# --- Through the command -------------------------------------------------------------------------------------------


def test_the_command_finds_what_the_detector_finds(detect, model_file):
    code, out, err = detect(
        "mug.png", "--query", "cat", "--like", "mug.png@10,12,50,44", "--like", "mug2.png", "--not", "a cup",
        "--not", "a@b.png@50,30,88,58", "--name", "it", "--format", "jsonl",
    )  # fmt: skip
    assert (code, err) == (0, "")
    picture = noise(60, 90)
    query = Query("it", [], [Exemplar(picture, BOX), Exemplar(picture)], ["a cup", Exemplar(picture, (50, 30, 88, 58))])
    found = Detector.from_pretrained(model_file, device="cpu").detect(picture, ["cat", query], threshold=0.3)
    assert json.loads(out)["detections"] == found.to_dicts()
    assert {row["label"] for row in found.to_dicts()} == {"cat", "it"}


def test_saved_queries_are_asked_as_they_were(detect, model_file):
    asked = ["--query", "owl", "--query", "dog", "--like", "mug.png@10,12,50,44", "--not", "a cup", "--join"]
    code, first, err = detect("mug.png", *asked, "--save-query", "deep/q.safetensors", "--format", "jsonl")
    assert (code, err) == (0, "wrote deep/q.safetensors\n")
    assert detect("mug.png", "--query-file", "deep/q.safetensors", "--format", "jsonl") == (0, first, "")
    _, out, _ = detect(
        "mug.png", "--query", "cat", "--query-file", "deep/q.safetensors", "--query-file", "deep/q.safetensors",
        "--threshold", "0", "--format", "coco",
    )  # fmt: skip
    assert [category["name"] for category in json.loads(out)["categories"]] == ["cat", "owl", "owl"]
    assert QueryEmbeddings.load("deep/q.safetensors").names == ("owl",)


def test_queries_of_another_model_are_one_sentence(detect, tmp_path):
    save_checkpoint("other.safetensors", make_tiny_model(seed=1), {})
    assert detect("mug.png", "--query", "cat", "--save-query", "q.safetensors", model="other.safetensors")[0] == 0
    code, out, err = detect("mug.png", "--query-file", "q.safetensors")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"owl-swin: q\.safetensors: these queries were made by another model .*\n", err)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--like", "mug.png@100,0,120,60"], "--like mug.png@100,0,120,60: the exemplar's box"),
        (["--like", "broken.png"], "broken.png: not a picture"),
        (["--like", "mug.png", "--not", ""], "a text query must name something"),
        (["--query-file", "missing.safetensors"], "missing.safetensors: not a whole safetensors file"),
        (["--query-file", "mug.png"], "mug.png: not a whole safetensors file"),
        (["--save-query", "q.safetensors"], "--save-query keeps what --query, --like and --not ask for"),
        (["--query", "cat", "--save-query", "q.pt"], "q.pt: the file of --save-query must end in .safetensors"),
        (["--query", "cat", "--save-query", "plain/q.safetensors"], "plain: cannot write in this folder"),
        (["--query", "cat", "--explain", "--format", "coco"], "--explain adds nothing to --format coco"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence_before_any_result(detect, folder, arguments, sentence):
    before = sorted(folder.iterdir())
    code, out, err = detect("mug.png", *arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"owl-swin: .+\n", err), err
    assert sentence in err
    assert sorted(folder.iterdir()) == before


# --- Why -----------------------------------------------------------------------------------------------------------


def test_explain_says_which_patch_answered(detect, model_file):
    arguments = ["mug.png", "--queries", "cat, dog", "--explain"]
    record = json.loads(detect(*arguments, "--format", "jsonl")[1])
    found = Detector.from_pretrained(model_file, device="cpu").detect("mug.png", ["cat", "dog"], threshold=0.3)
    assert record["grid"] == [4, 6]
    assert [row.pop("patch") for row in record["detections"]] == found.patches.tolist()
    assert record["detections"] == found.to_dicts()
    head, *rows = detect(*arguments)[1].splitlines()
    assert head.split()[-1] == "patch"
    assert [int(row.split()[-1]) for row in rows] == found.patches.tolist()


def test_explain_and_save_write_a_heat_map_a_query_beside_the_boxes(detect):
    code, _, err = detect("mug.png", "a@b.png", "--queries", "cat, dog", "--explain", "--save", "out")
    assert code == 0
    wanted = [f"{stem}{end}.jpg" for stem in ("mug", "a@b") for end in ("", "-heat-1", "-heat-2")]
    assert err.splitlines() == [f"wrote {Path('out') / name}" for name in wanted]
    assert {Image.open(path).size for path in Path("out").iterdir()} == {(90, 60)}
    code, _, err = detect("mug.png", "--explain", "--save", "without")
    assert [path.name for path in sorted(Path("without").iterdir())] == ["mug-heat-1.jpg", "mug.jpg"]


def test_queries_that_fit_no_model_do_not_reach_a_picture(detector):
    with pytest.raises(QueryError, match="have 8 dimensions"):
        detector.detect(noise(40, 40), QueryEmbeddings(torch.ones(1, 8), ("a",)))
