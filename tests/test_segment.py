"""`owl-swin segment` and `classify`, and the files that they write."""

import json

import numpy as np
import pytest
import torch
from fake_hub import FakeHub, serving
from picture_files import noise, turned
from PIL import Image
from test_classifier import of_library
from test_pixel_decoders import NAMES, upernet
from typer.testing import CliRunner

from owl_swin import SemanticMap, load_segmenter
from owl_swin.cli.main import app
from owl_swin.cli.map_results import PanopticMaps, closing
from owl_swin.errors import CheckpointError, ImageError, OwlSwinError
from owl_swin.families.closed_set import is_segmenter
from owl_swin.families.picture_settings import PictureSettings
from owl_swin.map_formats import class_colour, to_label_image, to_legend, to_panoptic_image
from owl_swin.render import draw_semantic_map


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmenter")
    upernet().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"size": {"height": 64, "width": 64}, "resample": 2}')
    return folder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    (folder / "turned.png").write_bytes(turned(noise(40, 90), 6))
    (folder / "broken.jpg").write_bytes(b"no picture")
    noise(1, 400).save(folder / "strip.png")
    noise(30, 30).save(folder / "below" / "strip.png")
    noise(50, 50).save(folder / "straße.jpg")
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def labels():
    return SemanticMap(torch.tensor([[0, 0, 2], [-1, 2, 2]], dtype=torch.int16), torch.ones(2, 3), ("a", "b", "c"))


def test_a_map_becomes_a_palette_with_its_legend(labels):
    image = to_label_image(labels)
    assert image.mode == "P"
    assert np.array(image).tolist() == [[0, 0, 2], [255, 2, 2]]
    assert image.convert("RGB").getpixel((2, 0)) == class_colour(2)
    legend = to_legend(labels)
    assert [(one["name"], one["id"], one["share"]) for one in legend["classes"]] == [("c", 2, 0.5), ("a", 0, 0.333333)]
    assert (legend["width"], legend["height"], legend["nothing"]) == (3, 2, 255)


def test_more_classes_than_a_palette_has_take_16_bits():
    found = SemanticMap(torch.tensor([[299, -1]], dtype=torch.int16), torch.ones(1, 2), tuple(map(str, range(300))))
    image = to_label_image(found)
    assert np.array(image).tolist() == [[299, 65535]]
    assert to_legend(found)["nothing"] == 65535


def test_a_map_becomes_panoptic_segments(labels):
    image, segments = to_panoptic_image(labels)
    pixels = np.array(image).astype(int)
    assert (pixels @ [1, 256, 65536]).tolist() == [[1, 1, 3], [0, 3, 3]]
    assert segments == [
        {"id": 3, "category_id": 3, "area": 3, "bbox": [1, 0, 2, 2], "iscrowd": 0},
        {"id": 1, "category_id": 1, "area": 2, "bbox": [0, 0, 2, 1], "iscrowd": 0},
    ]


def test_colours_of_classes_are_all_different():
    assert len({class_colour(label) for label in range(255)} | {(0, 0, 0)}) == 256


def test_what_shows_nothing_keeps_its_colours(labels):
    picture = noise(2, 3)
    drawn = draw_semantic_map(picture, labels)
    assert drawn.getpixel((0, 1)) == picture.getpixel((0, 1))
    assert drawn.getpixel((2, 0)) == tuple(
        pytest.approx(0.4 * own + 0.6 * colour, abs=1.5)
        for own, colour in zip(picture.getpixel((2, 0)), class_colour(2), strict=True)
    )
    with pytest.raises(ImageError, match="of a picture of 3x2 pixels"):
        draw_semantic_map(noise(9, 9), labels)


def test_folders_become_maps_beside_one_another(model, photos, tmp_path):
    out = tmp_path / "maps"
    result = run("segment", photos, "--model", model, "--save", out, "--device", "cpu")
    assert result.exit_code == 2  # one is broken
    assert "broken.jpg" in result.stderr
    assert len(result.stdout.splitlines()) == 4
    sizes = {"turned": (90, 40), "strip": (400, 1), "strip-2": (30, 30), "straße": (50, 50)}
    assert sorted(path.name for path in out.iterdir()) == sorted(
        name for stem in sizes for name in (f"{stem}.png", f"{stem}.json", f"{stem}-drawn.jpg")
    )
    segmenter = load_segmenter(model, device="cpu")
    for stem, size in sizes.items():
        values, legend = np.array(Image.open(out / f"{stem}.png")), json.loads((out / f"{stem}.json").read_text())
        assert values.shape == (size[1], size[0])
        assert (legend["width"], legend["height"]) == size
        expected = segmenter.segment(legend["image"])
        assert (values == expected.labels.numpy()).all()
        assert {one["name"] for one in legend["classes"]} == {NAMES[i] for i in np.unique(values)}
        assert sum(one["share"] for one in legend["classes"]) == pytest.approx(1, abs=1e-5)


def test_a_panoptic_set_is_whole(model, photos, tmp_path):
    out = tmp_path / "set"
    result = run("segment", photos, "--model", model, "--save", out, "--format", "coco-panoptic", "--device", "cpu")
    assert result.exit_code == 2
    content = json.loads((out / "panoptic.json").read_text())
    assert [one["name"] for one in content["categories"]] == NAMES
    images = {one["id"]: one for one in content["images"]}
    assert len(images) == len(content["annotations"]) == 4
    for annotation in content["annotations"]:
        pixels = np.array(Image.open(out / "panoptic" / annotation["file_name"])).astype(int) @ [1, 256, 65536]
        image = images[annotation["image_id"]]
        assert pixels.shape == (image["height"], image["width"])
        areas = dict(zip(*np.unique(pixels, return_counts=True), strict=True))
        assert areas == {one["id"]: one["area"] for one in annotation["segments_info"]}


def test_a_run_that_is_killed_leaves_no_segments_of_before_beside_new_maps(labels, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OwlSwinError("no space is left")

    whole = PanopticMaps(tmp_path / "set", labels.names)
    whole.add("a.png", labels, lambda: None)
    whole.close()
    killed = PanopticMaps(tmp_path / "set", labels.names)
    assert (tmp_path / "set" / "panoptic.json").exists()  # nothing is new yet
    with monkeypatch.context() as patch:
        patch.setattr("owl_swin.cli.map_results.write_image", refused)
        with pytest.raises(OwlSwinError), closing(killed):
            killed.add("b.png", labels, lambda: None)
    assert len(json.loads((tmp_path / "set" / "panoptic.json").read_text())["images"]) == 1
    killed.add("b.png", labels, lambda: None)
    assert not (tmp_path / "set" / "panoptic.json").exists()


def test_the_drawing_of_a_very_long_picture_is_smaller_and_its_map_is_not(model, tmp_path):
    Image.new("RGB", (40_000, 2)).save(tmp_path / "scan.png")
    result = run("segment", tmp_path / "scan.png", "--model", model, "--save", tmp_path / "maps", "--device", "cpu")
    assert result.exit_code == 0
    assert Image.open(tmp_path / "maps" / "scan.png").size == (40_000, 2)
    assert Image.open(tmp_path / "maps" / "scan-drawn.jpg").width < 8193


def test_a_model_of_the_hub_comes_with_how_it_sees_pictures(model, monkeypatch, tmp_path):
    with serving(FakeHub({("someone/upernet", "main"): model}), monkeypatch, tmp_path / "cache"):
        segmenter = load_segmenter("someone/upernet", device="cpu")
    assert segmenter.names == tuple(NAMES)
    assert segmenter.settings == PictureSettings((64, 64), resampling=Image.Resampling.BILINEAR)


def test_maps_of_another_hand_are_not_written_over(model, photos, tmp_path):
    out = tmp_path / "maps"
    out.mkdir()
    noise(40, 90).convert("L").save(out / "turned.png")  # an annotator's map of the same picture
    (out / "turned-2.json").write_text('{"shapes": []}')  # as LabelMe names what it drew in one
    noise(40, 90).save(out / "turned-3-drawn.jpg")
    before = {path: path.read_bytes() for path in out.iterdir()}
    for _ in range(2):  # its own of before it writes over
        result = run("segment", photos / "turned.png", "--model", model, "--save", out, "--device", "cpu")
        assert result.exit_code == 0
        assert {path: path.read_bytes() for path in before} == before
        new = {path.name for path in out.iterdir()} - {path.name for path in before}
        assert new == {"turned-3.png", "turned-3.json", "turned-3-drawn-2.jpg"}
    assert Image.open(out / "turned-3.png").mode == "P"


@pytest.mark.parametrize("theirs", ["panoptic.json", "panoptic/turned.png"])
def test_a_panoptic_set_of_another_hand_is_not_written_over(model, photos, tmp_path, theirs):
    command = ("segment", photos / "turned.png", "--model", model, "--format", "coco-panoptic", "--device", "cpu")
    for _ in range(2):  # its own of before it writes over
        assert run(*command, "--save", tmp_path / "ours").exit_code == 0
    (tmp_path / "set" / "panoptic").mkdir(parents=True)
    mine = tmp_path / "set" / theirs
    mine.write_text('{"annotations": [], "info": {"description": "by hand"}}')
    result = run(*command, "--save", tmp_path / "set")
    assert isinstance(result.exception, OwlSwinError) and "are not of this command and could be written over" in str(
        result.exception
    )
    assert "by hand" in mine.read_text() and sum(path.is_file() for path in (tmp_path / "set").rglob("*")) == 1


def test_photos_are_not_overwritten_by_their_maps(model, photos):
    result = run("segment", photos / "strip.png", "--model", model, "--save", photos)
    assert isinstance(result.exception, OwlSwinError)
    assert "could be overwritten" in str(result.exception)


def test_a_detector_is_no_segmenter(model_file, photos, tmp_path):
    result = run("segment", photos, "--model", model_file, "--save", tmp_path / "maps")
    assert isinstance(result.exception, CheckpointError)
    assert "a segmenter is transformers' UPerNet" in str(result.exception)


def test_classify_names_pictures(photos, tmp_path):
    model = of_library("transformers", 3)
    model.config.id2label = {0: "tench", 1: "Möwe", 2: "a\nb"}
    model.save_pretrained(tmp_path / "classifier")
    arguments = ("classify", photos, "--model", tmp_path / "classifier", "--device", "cpu")
    result = run(*arguments, "--format", "jsonl", "--top-k", 2)
    assert result.exit_code == 2
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [len(one["classes"]) for one in records] == [2] * 4
    for one in records:
        scores = [found["score"] for found in one["classes"]]
        assert scores == sorted(scores, reverse=True)
    table = run(*arguments).stdout.splitlines()
    assert table[0].split() == ["picture", "class", "score"]
    assert len(table) == 1 + 4 * 3


def test_a_published_network_is_measured_by_its_own_names(model, tmp_path):
    assert is_segmenter(model) and not is_segmenter("nano") and not is_segmenter(tmp_path)
    segmenter = load_segmenter(model, device="cpu")
    (tmp_path / "images").mkdir()
    (tmp_path / "maps").mkdir()
    for name, picture in (("0", noise(50, 70)), ("ü", noise(40, 60))):
        picture.save(tmp_path / "images" / f"{name}.png")
        said = segmenter.segment(tmp_path / "images" / f"{name}.png").labels.numpy()
        Image.fromarray(said.astype(np.uint8)).save(tmp_path / "maps" / f"{name}.png")
    place = ["--annotations", tmp_path / "maps", "--images", tmp_path / "images"]
    found = run("eval", "segment", *place, "--model", model, "--device", "cpu")
    result = json.loads(found.stdout)
    assert found.exit_code == 0 and result["mIoU"] == 100 and set(result["per_class"]) <= set(segmenter.names)
    assert result["protocol"].startswith("semantic mIoU, fixed classes")
    refused = run("eval", "segment", *place, "--model", model, "--threshold", 0.5)
    assert "asked by name" in str(refused.exception)
