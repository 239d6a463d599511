"""Pasted scenes: boxes are of what can be seen, and the same seed gives the same set."""

import json

import numpy as np
import pytest
from PIL import Image

from owl_swin.cli.main import app
from owl_swin.data import paste
from owl_swin.data.cutouts import Cutout, find_cutouts
from owl_swin.data.paste import paste_scenes
from owl_swin.errors import DataError, ImageError, OwlSwinError
from owl_swin.rle import decode_rle

COLOURS = {"red mug": (255, 0, 0), "blue cup": (0, 0, 255)}


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (120, 80), (90, 90, 90)).save(folder / "grey.png")
    return folder


@pytest.fixture
def cutouts(tmp_path):
    folder = tmp_path / "cutouts"
    folder.mkdir()
    for name, colour in COLOURS.items():
        picture = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
        picture.paste((*colour, 255), (10, 5, 30, 35))  # 20 wide, 30 high within transparent borders
        picture.save(folder / f"{name.replace(' ', '_')}-1.png")
    return folder


def test_a_box_holds_just_what_is_seen(cutouts, photographs, tmp_path):
    found = find_cutouts(cutouts)
    assert sorted(name for _, name, _ in found) == sorted(COLOURS)
    target = paste_scenes(found, [photographs / "grey.png"], tmp_path / "set", pictures=8, most_things=1)
    data = json.loads(target.read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    assert len(data["images"]) == len(data["annotations"]) == 8
    for record, annotation in zip(data["images"], data["annotations"], strict=True):
        pixels = np.asarray(Image.open(target.parent / "images" / record["file_name"]).convert("RGB")).astype(int)
        own = np.abs(pixels - COLOURS[names[annotation["category_id"]]]).sum(-1) < 200
        ys, xs = np.nonzero(own)
        x, y, w, h = annotation["bbox"]
        assert abs(x - xs.min()) <= 2 and abs(y - ys.min()) <= 2
        assert abs(x + w - 1 - xs.max()) <= 2 and abs(y + h - 1 - ys.max()) <= 2
        assert h / w == pytest.approx(1.5, rel=0.25)
        mask = decode_rle(annotation["segmentation"])
        assert mask.shape == own.shape and mask.sum() == annotation["area"]
        assert (mask == own).mean() > 0.98


def test_the_mask_of_what_is_covered_in_part_is_what_is_seen(cutouts, photographs, tmp_path):
    target = paste_scenes(find_cutouts(cutouts), [photographs / "grey.png"], tmp_path / "set", pictures=12)
    annotations = json.loads(target.read_text())["annotations"]
    masks = {}
    for annotation in annotations:
        masks.setdefault(annotation["image_id"], []).append(decode_rle(annotation["segmentation"]))
        x, y, w, h = annotation["bbox"]
        assert masks[annotation["image_id"]][-1][y : y + h, x : x + w].sum() == annotation["area"]
    assert any(len(own) > 1 for own in masks.values())
    assert all(np.sum(own, 0).max() == 1 for own in masks.values())


def test_a_run_that_is_stopped_leaves_no_boxes_of_before_on_new_pictures(cutouts, photographs, tmp_path, monkeypatch):
    found, photos, folder = find_cutouts(cutouts), [photographs / "grey.png"], tmp_path / "set"
    paste_scenes(found, photos, folder, pictures=3)
    kept = (folder / "annotations.json").read_bytes()
    with pytest.raises(ImageError):  # before anything is written
        paste_scenes(found, [photographs / "none.png"], folder, pictures=3)
    assert (folder / "annotations.json").read_bytes() == kept
    write, written = paste.write_image, []

    def until_the_disk_is_full(path, *arguments, **settings):
        if len(written) == 2:
            raise OwlSwinError("No space left on device")
        written.append(path)
        write(path, *arguments, **settings)

    with monkeypatch.context() as patch, pytest.raises(OwlSwinError, match="No space"):
        patch.setattr(paste, "write_image", until_the_disk_is_full)
        paste_scenes(found, photos, folder, pictures=3, seed=1)
    assert not (folder / "annotations.json").exists()
    paste_scenes(find_cutouts(cutouts, ["blue cup"]), photos, folder, pictures=3)  # and the folder is still ours


def test_a_cut_out_is_called_by_its_file_but_for_the_number_of_a_copy(cutouts):
    for name in ("t-shirt", "x-ray_machine-2", "red mug-12"):
        (cutouts / f"{name}.png").write_bytes((cutouts / "red_mug-1.png").read_bytes())
    assert {name for _, name, _ in find_cutouts(cutouts)} == {"red mug", "blue cup", "t-shirt", "x-ray machine"}


def test_the_seed_makes_the_set(cutouts, photographs, tmp_path):
    made = [
        paste_scenes(find_cutouts(cutouts), [photographs / "grey.png"], tmp_path / str(i), pictures=5, seed=seed)
        for i, seed in enumerate((3, 3, 4))
    ]
    texts = [path.read_text() for path in made]
    assert texts[0] == texts[1] != texts[2]


def test_a_covered_thing_has_no_box(cutouts, photographs, tmp_path):
    target = paste_scenes(
        find_cutouts(cutouts), [photographs / "grey.png"], tmp_path / "set", pictures=40, most_things=8
    )
    data = json.loads(target.read_text())
    held = [sum(a["image_id"] == r["id"] for a in data["annotations"]) for r in data["images"]]
    assert 0 < max(held) <= 8 and sum(held) > 40


def test_the_command_writes_a_set_that_training_reads(cutouts, photographs, tmp_path):
    from typer.testing import CliRunner

    from owl_swin.data.config import DataConfig
    from owl_swin.data.scenes import load_scenes

    arguments = ["paste", str(cutouts), "--on", str(photographs), "--to", str(tmp_path / "set"), "--pictures", "3"]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    scenes = load_scenes(DataConfig("coco", str(tmp_path / "set" / "annotations.json")))
    assert len(scenes.scenes) == 3 and sorted(names[0] for names in scenes.names) == sorted(COLOURS)
    ran = CliRunner().invoke(app, [*arguments, "--without", "red mug"])
    assert ran.exit_code == 0, ran.output
    assert load_scenes(DataConfig("coco", str(tmp_path / "set" / "annotations.json"))).names == [["blue cup"]]


@pytest.mark.parametrize("theirs", ["annotations.json", "images/000000.jpg"])
def test_a_set_of_another_hand_is_not_written_over(theirs, cutouts, photographs, tmp_path):
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    (folder / theirs).write_text('{"images": [], "annotations": [], "categories": []}')
    before = (folder / theirs).read_text()
    with pytest.raises(OwlSwinError, match="could be written over; name another folder for --to"):
        paste_scenes(find_cutouts(cutouts), [photographs / "grey.png"], folder, pictures=1)
    assert (folder / theirs).read_text() == before
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()] == [theirs]


@pytest.mark.parametrize("wrong", ["absent", "names", "empty"])
def test_what_cannot_be_pasted_is_said(wrong, cutouts, photographs, tmp_path):
    if wrong == "absent":
        with pytest.raises(DataError, match="neither a folder"):
            find_cutouts(tmp_path / "nowhere")
    elif wrong == "names":
        with pytest.raises(DataError, match="no cut-out called 'green mug'"):
            find_cutouts(cutouts, ["green mug"])
        with pytest.raises(DataError, match="no cut-out called 'green mug'"):
            find_cutouts(cutouts, without=["green mug"])
    else:
        Image.new("RGBA", (4, 4)).save(cutouts / "nothing.png")
        with pytest.raises(ImageError, match="shows nothing"):
            paste_scenes([Cutout(cutouts / "nothing.png", "x")], [photographs / "grey.png"], tmp_path / "s", pictures=1)
        with pytest.raises(DataError, match="needs cut-outs and photographs"):
            paste_scenes([], [photographs / "grey.png"], tmp_path / "s", pictures=1)
