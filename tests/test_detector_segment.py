"""Detector.segment and `owl-swin segment --query`: maps of what is named or shown."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from colour_detector import RIGHT, colour_detector
from picture_files import noise, turned
from PIL import Image, ImageDraw
from test_cli import assert_one_sentence, owl_swin  # noqa: F401

from owl_swin import Detector, Exemplar, Query, QueryEmbeddings, QueryError, Tiles
from owl_swin.config import CalibrationConfig
from owl_swin.errors import ImageError
from owl_swin.families.owl_swin import save_checkpoint
from owl_swin.map_formats import to_segments
from owl_swin.semantic_map import NOTHING

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)


@pytest.fixture(scope="module")
def colours() -> Detector:
    return colour_detector()


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """Blue above, green below, a red disc, and a grey border at the right."""
    image = Image.new("RGB", (400, 240), BLUE)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 140, 400, 240), fill=GREEN)
    draw.ellipse((60, 60, 180, 180), fill=RED)
    draw.rectangle((330, 0, 400, 240), fill=GREY)
    return image


def truth(image: Image.Image, *colours) -> np.ndarray:
    """The label of each pixel that has one of the colours."""
    pixels, labels = np.asarray(image), np.full((image.height, image.width), NOTHING)
    for label, colour in enumerate(colours):
        labels[(pixels == colour).all(-1)] = label
    return labels


def agreement(found, labels) -> float:
    return float((found.labels.numpy() == labels).mean())


def test_each_pixel_shows_a_name_or_nothing(colours, scene):
    found = colours.segment(scene, ["sky", "green", "red", "blue"])
    assert found.names == ("sky", "green", "red", "blue") and found.image_hw == (240, 400)
    assert agreement(found, truth(scene, BLUE, GREEN, RED)) > 0.985
    sure = torch.tensor(RIGHT).sigmoid().item()
    assert found.scores[20, 20].item() == pytest.approx(sure, abs=1e-4)
    assert found.labels[120, 380] == NOTHING and found.scores[120, 380] == 0
    assert list(found.shares()) == [0, 1, NOTHING, 2]
    assert torch.equal(found.mask("red"), found.labels == 2) and not found.mask("blue").any()
    with pytest.raises(QueryError, match="does not know 'rot'"):
        found.mask("rot")


def test_scores_are_calibrated_apart_from_those_of_boxes(scene):
    calibrated = colour_detector(CalibrationConfig(text_bias=9.0, map_text_scale=0.5, map_text_bias=-1.5))
    score = torch.tensor(0.5 * RIGHT - 1.5).sigmoid().item()
    found = calibrated.segment(scene, ["sky"], threshold=score - 0.01)
    assert found.scores[20, 20].item() == pytest.approx(score, abs=1e-4)
    assert (calibrated.segment(scene, ["sky"], threshold=score + 0.01).labels == NOTHING).all()
    assert (calibrated.segment(scene, ["sky", "red"], threshold={"sky": 0.9}).labels != 0).all()


def test_what_is_shown_is_found_as_what_is_named(colours, scene):
    example = Exemplar(Image.new("RGB", (64, 64), RED), (0, 0, 64, 64), "disc")
    found = colours.segment(scene, [example, Query("land", exemplars=[Exemplar(scene, (0, 190, 60, 240))])])
    assert found.names == ("disc", "land")
    assert agreement(found, truth(scene, RED, GREEN)) > 0.97


def test_a_negative_takes_its_part_of_the_map(colours):
    image = Image.new("RGB", (128, 64), RED)
    ImageDraw.Draw(image).rectangle((64, 0, 128, 64), fill=(255, 60, 0))  # nearer to red than to yellow
    both = colours.segment(image, ["red"])
    assert (both.labels == 0).all()
    shown = Exemplar(Image.new("RGB", (64, 64), (255, 60, 0)), (0, 0, 64, 64))
    found = colours.segment(image, [Query("red", texts=["red"], negatives=[shown])], threshold=0.45)
    assert (found.labels[:, :50] == 0).all() and (found.labels[:, 80:] == NOTHING).all()


def test_saved_queries_and_encoded_pictures_are_asked_as_in_detect(colours, scene, tmp_path):
    colours.encode_queries(["sky", "red"]).save(tmp_path / "asked.safetensors")
    asked = colours.load_queries(tmp_path / "asked.safetensors")
    expected = colours.segment(scene, ["sky", "red"])
    encoded = colours.encode_image(scene, masks=True)
    for found in (colours.segment(encoded, asked), colours.segment(colours.prepare(scene), asked)):
        assert torch.equal(found.labels, expected.labels) and torch.equal(found.scores, expected.scores)
    tiled = colours.segment(scene, asked, tiles=Tiles(100, 0.3))
    in_tiles = colours.encode_image(scene, tiles=Tiles(100, 0.3), masks=True)
    assert torch.equal(colours.segment(in_tiles, asked).labels, tiled.labels)
    assert torch.equal(colours.segment(colours.prepare(scene, tiles=Tiles(100, 0.3)), asked).labels, tiled.labels)


def test_tiles_see_what_is_too_small_for_the_whole(colours):
    image = Image.new("RGB", (1500, 600), BLUE)
    for x in range(200, 1400, 300):
        ImageDraw.Draw(image).rectangle((x, 300, x + 23, 323), fill=RED)
    labels = truth(image, BLUE, RED)
    whole, tiled = (colours.segment(image, ["sky", "red"], tiles=tiles) for tiles in (None, Tiles(400, 0.25)))
    small = labels == 1
    missed = [(found.labels.numpy() != labels)[small].mean() for found in (whole, tiled)]
    assert missed[0] > 0.2 and missed[1] < 0.1
    assert agreement(tiled, labels) > 0.998


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (1, 1), (7, 3)])
def test_pictures_of_any_shape_have_a_map(colours, size):
    for tiles in (None, 64):
        found = colours.segment(Image.new("RGB", size, GREEN), ["sky", "green"], tiles=tiles)
        assert found.image_hw == size[::-1] and (found.labels == 1).all()


def test_a_turned_file_has_an_upright_map(colours, scene):
    found = colours.segment(io.BytesIO(turned(scene, 6)), ["sky", "green", "red"])
    assert agreement(found, truth(scene, BLUE, GREEN, RED)) > 0.985


@pytest.mark.parametrize(
    "queries, said",
    [
        ([], "a map needs names to choose from"),
        (None, "a map needs names to choose from"),
        ("sky", r"write \['sky'\]"),
        (QueryEmbeddings(torch.zeros(0, 3), ()), "a map needs names to choose from"),
        (QueryEmbeddings(torch.ones(1, 5), ("x",)), "these query embeddings have 5 dimensions"),
    ],
)
def test_queries_that_name_nothing_are_refused(colours, scene, queries, said):
    with pytest.raises(QueryError, match=said):
        colours.segment(scene, queries)


def test_what_cannot_be_segmented_is_refused_in_one_sentence(colours, detector, scene, monkeypatch):
    with pytest.raises(QueryError, match="makes no masks; train one that does"):
        detector.segment(scene, ["sky"])
    with pytest.raises(QueryError, match="encoded without masks; encode it with masks=True"):
        colours.segment(colours.encode_image(scene), ["sky"])
    with pytest.raises(QueryError, match="segment takes one picture, got a list of 2"):
        colours.segment([scene, scene], ["sky"])
    with pytest.raises(QueryError, match="threshold must lie in"):
        colours.segment(scene, ["sky"], threshold=2)
    with pytest.raises(ImageError, match="pixels, the largest"):
        colours.segment(Image.new("1", (20_000, 20_000)), ["sky"])


def test_a_small_random_model_gives_a_map(masked_detector, picture):
    found = masked_detector.segment(picture, ["a cat", "a dog"], threshold=0.0)
    assert found.image_hw == (60, 90) and set(found.labels.unique().tolist()) <= {0, 1}
    assert found.scores.min() > 0 and found.scores.max() < 1


def test_segments_are_those_of_pycocotools(colours, scene):
    coco = pytest.importorskip("pycocotools.mask")
    found = colours.segment(scene, ["green", "sky", "red"])
    segments = to_segments(found)
    assert [one["name"] for one in segments] == ["sky", "green", "red"]
    for one in segments:
        mask = found.mask(one["name"]).numpy()
        assert one["segmentation"]["counts"] == coco.encode(np.asfortranarray(mask))["counts"].decode()
        assert one["area"] == mask.sum() and one["share"] == pytest.approx(mask.mean(), abs=1e-6)
        assert one["score"] == pytest.approx(found.scores.numpy()[mask].mean(), abs=1e-5)
    everything = colours.segment(Image.new("RGB", (5, 4), RED), ["red"])
    assert to_segments(everything)[0]["segmentation"] == {"size": [4, 5], "counts": "0d0"}
    assert to_segments(colours.segment(Image.new("RGB", (5, 4), GREY), ["red"])) == []


def test_a_smaller_copy_has_a_smaller_map(colours, scene):
    found = colours.segment(scene, ["sky", "green", "red"])
    assert torch.equal(found.resized((120, 200)).labels, found.labels[1::2, 1::2])
    assert found.resized(found.image_hw) is found and found.resized((1, 1)).image_hw == (1, 1)


# --- The command line ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masked_file(masked_detector, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("masked") / "masked.safetensors"
    save_checkpoint(path, masked_detector.model, {"name": "masked_for_tests"})
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "turned.png").write_bytes(turned(noise(40, 90), 6))
    noise(1, 300).save(folder / "strip.png")
    noise(50, 50).save(folder / "straße.jpg")
    return folder


def test_named_maps_are_written_as_those_of_fixed_classes(owl_swin, masked_file, photos, tmp_path):  # noqa: F811
    out = tmp_path / "maps"
    named = ("--query", "a dog", "--query", "ein Hund", "--exemplar", f"{photos / 'straße.jpg'}@5,5,40,40")
    run = owl_swin(
        "segment", photos, *named, "--threshold", "0", "--model", masked_file, "--save", out, "--device", "cpu"
    )
    assert run.code == 0 and len(run.out.splitlines()) == 3
    detector = Detector.from_pretrained(masked_file, device="cpu")
    asked = ["a dog", "ein Hund", Exemplar(photos / "straße.jpg", (5, 5, 40, 40), "straße")]
    for stem, size in {"turned": (90, 40), "strip": (300, 1), "straße": (50, 50)}.items():
        values, legend = np.array(Image.open(out / f"{stem}.png")), json.loads((out / f"{stem}.json").read_text())
        assert values.shape == (size[1], size[0]) and (out / f"{stem}-drawn.jpg").is_file()
        expected = detector.segment(legend["image"], asked, threshold=0).labels.numpy()
        assert (values == expected).all()
        assert {one["name"] for one in legend["classes"]} <= {"a dog", "ein Hund", "straße"}


def test_a_panoptic_set_of_tiles_has_each_name_once(owl_swin, masked_file, photos, tmp_path):  # noqa: F811
    out = tmp_path / "set"
    named = ("--queries", "a dog, a cat, a dog", "--threshold", "0", "--threshold", "a cat=1", "--tile", "64")
    form = ("--format", "coco-panoptic", "--device", "cpu")
    (photos / "broken.jpg").write_bytes(b"no picture")
    run = owl_swin("segment", photos, *named, "--model", masked_file, "--save", out, *form)
    assert run.code == 2 and "broken.jpg" in run.err
    content = json.loads((out / "panoptic.json").read_text())
    assert [one["name"] for one in content["categories"]] == ["a dog", "a cat"]
    assert len(content["annotations"]) == 3
    for annotation in content["annotations"]:
        assert [one["category_id"] for one in annotation["segments_info"]] == [1]
        assert (np.array(Image.open(out / "panoptic" / annotation["file_name"]))[..., 0] == 1).all()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((), "say with --query what may be seen"),
        (("--threshold", "0.5", "--model", "MODEL"), "--threshold, --tile and --dtype are for what is named"),
        (("--query", "a dog", "--model", "PLAIN"), "makes no masks; train one that does"),
        (("--query", "a dog", "--threshold", "cat=0.5", "--model", "MODEL"), "no query is called 'cat'"),
        (("--query", "a dog", "--tile", "3", "--model", "MODEL"), "the side of tiles must be"),
        (("--not", "a dog", "--model", "MODEL"), "--not says what a thing is not"),
    ],
)
def test_calls_that_contradict_themselves_are_one_sentence(
    owl_swin,  # noqa: F811
    masked_file,
    model_file,
    photos,
    tmp_path,
    arguments,
    sentence,
):
    files = {"MODEL": masked_file, "PLAIN": model_file}
    run = owl_swin("segment", photos, *(files.get(one, one) for one in arguments), "--save", tmp_path / "maps")
    assert_one_sentence(run, sentence)
