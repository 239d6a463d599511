"""`owl-swin detect --tile`: pictures of any size."""

import pytest
from PIL import Image
from test_cli import assert_one_sentence, detect, owl_swin, photos  # noqa: F401

from owl_swin.image import open_image


def test_tiles_find_what_the_whole_picture_is_too_small_for(detect, photos, tmp_path, monkeypatch):  # noqa: F811
    arguments = (photos[0], "--query", "cat", "--threshold", "0", "--tile", "64")
    for extra in ((), ("--overlap", "0.5")):
        run = detect(*arguments, *extra, "--format", "jsonl", "--save", tmp_path / "drawn")
        with Image.open(photos[0]) as photo:
            size = photo.size
        (record,) = run.records
        assert (record["width"], record["height"]) == size and record["detections"]
    # A picture beyond the bound of others is drawn smaller, and only tiles read it.
    for module in ("huge", "image", "cli.pictures"):
        monkeypatch.setattr(f"owl_swin.{module}.MAX_PIXELS", 1_000)
    monkeypatch.setattr(open_image, "__kwdefaults__", {"max_pixels": 1_000})
    monkeypatch.setattr("owl_swin.cli.pictures.DRAWN", 48)
    assert_one_sentence(detect(photos[0], "--query", "cat"), "is more than 1000 pixels")
    run = detect(*arguments, "--save", tmp_path / "small")
    (drawn,) = (tmp_path / "small").iterdir()
    with Image.open(drawn) as drawing:
        assert max(drawing.size) == 48
    run = detect(tmp_path / "none.jpg", *arguments, "--format", "jsonl")
    assert run.code == 2 and "none.jpg: cannot read this file" in run.err and len(run.records) == 1
    assert "-: not a picture" in detect("-", *arguments, stdin=b"text").err


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--tile", "8"], "the side of tiles must be a whole number of pixels from 32 to 4096, got 8"),
        (
            ["--tile", "640", "--overlap", "1"],
            "the overlap of tiles must be a share of their side from 0 to 0.9, got 1",
        ),
        (["--overlap", "0.2"], "--overlap is for --tile"),
        (["--tile", "640", "--explain"], "give it without --tile"),
    ],
)
def test_tiles_that_mean_nothing_are_one_sentence(detect, photos, arguments, sentence):  # noqa: F811
    assert_one_sentence(detect(photos[0], "--query", "cat", *arguments), sentence)
