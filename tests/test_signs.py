"""Signs and posters: cut-outs that `paste` takes, the same for the same seed, and of the size that is asked for."""

import json

import numpy as np
import pytest
from picture_files import noise
from PIL import Image, ImageFont
from typer.testing import CliRunner

from owl_swin.cli.main import app
from owl_swin.data import signs
from owl_swin.data.cutouts import find_cutouts
from owl_swin.data.paste import Sizes, paste_scenes
from owl_swin.data.signs import make_signs
from owl_swin.errors import DataError, OwlSwinError


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "photos" / "noise.png"
    path.parent.mkdir()
    noise(120, 200).save(path)
    return path


def test_a_sign_is_a_plate_with_writing_and_each_fourth_a_poster(photograph, tmp_path):
    folder = make_signs(tmp_path / "signs", count=12, photographs=[photograph])
    found = find_cutouts(folder)
    assert [name for _, name, _ in found] == ["poster"] * 3 + ["sign"] * 9
    for path, name, _ in found:
        with Image.open(path) as cutout:
            assert cutout.mode == "RGBA"
            assert cutout.getchannel("A").getbbox() == (0, 0, *cutout.size)  # nothing transparent around it
            pixels = np.asarray(cutout)
        inside = pixels[pixels[..., 3] == 255][:, :3].astype(int)
        assert len(inside) > 0.4 * pixels.shape[0] * pixels.shape[1]
        if name == "sign":  # the writing stands out against its ground
            assert np.abs(inside - np.median(inside, axis=0)).sum(1).max() > 150


def test_the_seed_makes_the_cutouts(photograph, tmp_path):
    made = [
        make_signs(tmp_path / str(i), count=4, photographs=[photograph], seed=seed) for i, seed in enumerate((3, 3, 4))
    ]
    pixels = [[np.asarray(Image.open(path)).tobytes() for path in sorted(folder.iterdir())] for folder in made]
    assert pixels[0] == pixels[1]
    assert not set(pixels[0]) & set(pixels[2])


@pytest.mark.parametrize("name", ["mine.png", "sign-00000.png"])
def test_a_folder_with_pictures_is_left_alone(tmp_path, name):
    noise(8, 8).save(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(DataError, match="has pictures in it; name an empty folder"):
        make_signs(tmp_path, count=1)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_what_a_stopped_call_left_is_made_again(tmp_path):
    whole = {path.name: path.read_bytes() for path in make_signs(tmp_path / "whole", count=4).iterdir()}
    make_signs(tmp_path / "stopped", count=2, seed=1)
    assert {path.name: path.read_bytes() for path in make_signs(tmp_path / "stopped", count=4).iterdir()} == whole
    with pytest.raises(DataError, match="has pictures in it"):
        make_signs(tmp_path / "stopped", count=3)  # the fourth is one more than asked for


def test_a_file_that_is_no_font_is_one_sentence(tmp_path):
    (tmp_path / "a.ttf").write_bytes(b"no font")
    with pytest.raises(DataError, match=r"a\.ttf: cannot be read as a font"):
        make_signs(tmp_path / "signs", count=1, fonts=[tmp_path / "a.ttf"])


def test_a_font_without_letters_is_left_out(tmp_path, monkeypatch):
    words, symbols = ImageFont.load_default(48), ImageFont.load_default(48)
    one_box = words.getmask("A")
    monkeypatch.setattr(symbols, "getmask", lambda letter: one_box)
    fonts = {tmp_path / "words.ttf": words, tmp_path / "symbols.ttf": symbols}
    monkeypatch.setattr(signs, "_read_font", fonts.__getitem__)
    made = make_signs(tmp_path / "signs", count=2, fonts=[tmp_path / "symbols.ttf", tmp_path / "words.ttf"])
    own = make_signs(tmp_path / "own", count=2)
    assert [path.read_bytes() for path in sorted(made.iterdir())] == [p.read_bytes() for p in sorted(own.iterdir())]
    with pytest.raises(DataError, match="none of the 1 fonts has Latin letters"):
        make_signs(tmp_path / "none", count=1, fonts=[tmp_path / "symbols.ttf"])


def test_things_have_the_sizes_that_are_asked_for(photograph, tmp_path):
    found = find_cutouts(make_signs(tmp_path / "signs", count=6))
    target = paste_scenes(found, [photograph], tmp_path / "set", pictures=60, most_things=1, sizes=Sizes((0.1, 0.4)))
    data = json.loads(target.read_text())
    shares = np.array([max(a["bbox"][2:]) / 200 for a in data["annotations"]])
    assert len(shares) == 60
    assert 0.09 <= shares.min() < 0.13 and 0.35 < shares.max() <= 0.41
    assert 0.3 < (shares < 0.2).mean() < 0.7  # as many up to twice the smallest size as from there to twice that


def test_the_commands_make_a_set_of_signs(photograph, tmp_path):
    signs, scenes = tmp_path / "signs", tmp_path / "set"
    made = CliRunner().invoke(app, ["signs", "--to", str(signs), "--count", "4", "--posters", str(photograph.parent)])
    assert made.exit_code == 0 and made.stdout.strip() == str(signs), made.output
    arguments = [
        "paste",
        str(signs),
        "--on",
        str(photograph.parent),
        "--on",
        str(photograph.parent),
        "--to",
        str(scenes),
    ]
    made = CliRunner().invoke(app, [*arguments, "--pictures", "3", "--sizes", "0.2,0.5", "--image-size", "100"])
    assert made.exit_code == 0, made.output
    data = json.loads((scenes / "annotations.json").read_text())
    assert {one["name"] for one in data["categories"]} == {"sign", "poster"}
    assert [(one["width"], one["height"]) for one in data["images"]] == [(100, 60)] * 3


@pytest.mark.parametrize("sizes", ["0.2", "a,b", "0,0.5", "0.5,0.2", "0.5,1.5", "nan,0.5", "0.1,0.2,0.3"])
def test_sizes_that_mean_nothing_are_one_sentence(sizes, photograph, tmp_path):
    folder = make_signs(tmp_path / "signs", count=1)
    arguments = ["paste", str(folder), "--on", str(photograph.parent), "--to", str(tmp_path / "set"), "--sizes", sizes]
    raised = CliRunner().invoke(app, arguments).exception
    assert isinstance(raised, OwlSwinError) and "sizes must be two numbers" in str(raised)


@pytest.mark.parametrize("option", ["--posters", "--fonts"])
def test_a_folder_that_has_none_is_one_sentence(option, tmp_path):
    raised = CliRunner().invoke(app, ["signs", "--to", str(tmp_path / "s"), option, str(tmp_path / "no")]).exception
    assert isinstance(raised, OwlSwinError) and f"{tmp_path / 'no'}: not a folder of" in str(raised)
