"""How a command line may be wrong or odd: one sentence each, and what it does all the same."""

import io
import sys

import pytest
from picture_files import encode, noise
from test_cli import COMMANDS, SUBCOMMANDS, assert_one_sentence, detect, owl_swin, photos  # noqa: F401

from owl_swin.cli.query_options import QueryOptions, make_queries
from owl_swin.cli.table import table_lines
from owl_swin.errors import ImageError, QueryError
from owl_swin.image import open_image
from owl_swin.queries import Query

PNG = encode(noise(40, 60))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["detct"], "no such command 'detct'; did you mean 'detect'"),
        (["detect"], "missing argument 'IMAGE...'; see `"),
        (["detect", "a.jpg", "--quary", "x"], "no such option: --quary (Possible options: --query, "),
        (["detect", "a.jpg", "--query"], "option '--query' requires an argument"),
        (["detect", "a.jpg", "--top-k", "x"], "invalid value for '--top-k': "),
        (["detect", "a.jpg", "--format", "xml"], "invalid value for '--format': 'xml' is not one of 'table', 'jsonl'"),
        (["label", "Photos"], "missing option '--to'; see `"),
        (["eval", "detct"], "no such command 'detct'; did you mean 'detect'"),
        (["classify", "a.jpg", "--model", "nano"], "nano: is asked by name and has no fixed classes"),
    ],
)
def test_a_wrong_call_is_one_sentence(owl_swin, arguments, sentence):  # noqa: F811
    assert_one_sentence(owl_swin(*arguments), sentence)


def test_a_picture_whose_name_begins_with_a_dash(detect, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "-dash.png").write_bytes(PNG)
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(
        detect("-dash.png", "--query", "cat"), "-dash.png: a name that begins with - is read as options"
    )
    assert detect("./-dash.png", "--query", "cat").code == 0


@pytest.mark.parametrize("command", [*COMMANDS, *SUBCOMMANDS])
def test_helps_name_arguments_and_defaults_alike(owl_swin, command):  # noqa: F811
    usage, _, text = owl_swin(*command.split(), "--help").out.partition("\n\n")
    assert "None:" not in text
    assert "{model}" not in usage and "{config}" not in usage and "{cutouts}" not in usage


@pytest.mark.parametrize(
    "arguments",
    [["-", "--like", "-"], ["a.png", "--like", "-", "--not", "-"], ["-", "--query", "x", "--not", "-@1,1,9,9"]],
)
def test_stdin_is_one_picture_also_among_examples(detect, arguments):  # noqa: F811
    assert_one_sentence(detect(*arguments, stdin=PNG), "- stands for the picture on stdin, which can be read once")


def test_drawings_of_an_earlier_call_in_the_folder_are_no_pictures_of_the_next(detect, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(PNG)
    asked = [".", "--query", "cat", "--save", "out", "--format", "jsonl"]
    first, second = detect(*asked), detect(*asked)
    assert (first.code, second.code) == (0, 0)
    assert second.out == first.out
    assert "2 of 4 pictures left out: an earlier call drew them into out" in second.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.jpg", "b.jpg"}
    assert_one_sentence(detect("out/a.jpg", *asked[1:]), "lies in the folder of --save and could be overwritten")
    (tmp_path / "out" / "mine.png").write_bytes(PNG)  # of another hand
    assert "out/mine.png: lies in the folder of --save" in detect(*asked).err


def test_queries_are_names_with_commas_or_a_file_with_one_a_line(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("# what I look for\na red_mug\n\nsofa, couch\n")
    plain, sofa = make_queries(QueryOptions(queries=str(names)))
    assert plain == "a red_mug"
    assert isinstance(sofa, Query) and (sofa.name, tuple(sofa.texts)) == ("sofa, couch", ("sofa", "couch"))
    (joined,) = make_queries(QueryOptions(queries=str(names), join=True, name="all"))
    assert tuple(joined.texts) == ("a red_mug", "sofa", "couch")
    assert make_queries(QueryOptions(queries="a, b,a")) == ["a", "b", "a"]
    with pytest.raises(QueryError, match=r"nmaes\.txt: expected a file with a name on each line"):
        make_queries(QueryOptions(queries=str(tmp_path / "nmaes.txt")))


def test_a_list_of_names_is_not_written_over(detect, photos, tmp_path):  # noqa: F811
    names = tmp_path / "names.txt"
    names.write_text("cat\n")
    assert_one_sentence(detect(photos[0], "--queries", names, "--to", names), "is read here and would be written over")


@pytest.mark.parametrize(
    "content, said",
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "but HEIC, as phones take it: export it as JPEG"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(99), "but HEIC"),
        (b"%PDF-1.7\n", "but a PDF: export its pages as PNG"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "but an SVG drawing: export it as PNG"),
        (b"\xef\xbb\xbf <!DOCTYPE HTML><title>404</title>", "but a web page"),
        (
            b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(99),
            r"\(JPEG, PNG, WebP, …\)$",
        ),  # a format that is read: damaged
    ],
)
def test_a_file_that_is_no_picture_is_called_what_it_is(content, said):
    with pytest.raises(ImageError, match=f"not a picture in a format that is read here.*{said}"):
        open_image(content)


def test_columns_stay_in_line_where_letters_are_printed_as_escapes(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert list(table_lines(["name", "n"], [["été", "1"]])) == ["name       n", r"\xe9t\xe9  1"]
