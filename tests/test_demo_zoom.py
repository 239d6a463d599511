"""What is seen of a photo that is zoomed into, and photos of an archive that are too large to be decoded whole."""

import base64
import io
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from picture_files import noise, turned
from PIL import Image

pytest.importorskip("gradio")

from owl_swin import ImageError, RegionIndex, Tiles, open_image
from owl_swin.demo import archived, examples, filling, inside, naming, photos, results, terms, zoom
from owl_swin.demo.asking import Question
from owl_swin.demo.photos import take_photo
from owl_swin.demo.results import ask_text


def fine(width: int, height: int) -> Image.Image:
    """A picture of which a smaller copy is nearly grey."""
    cells = np.random.default_rng(0).integers(0, 256, (height // 2, width // 2, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture
def photo():
    return take_photo(noise(60, 90), "blocks.png")


def zoomed(photo, box, wide=10, **more):
    return SimpleNamespace(
        **{"number": 7, "box": box, "wide": wide, "of": [photo.name, photo.width, photo.height]} | more
    )


def pixels_of(src: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2]))).convert("RGB")


def unlike(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, int) - np.asarray(other, int)).mean())


def test_a_part_of_a_photo_has_its_own_pixels_and_never_more_than_the_bound(tmp_path, monkeypatch):
    path = tmp_path / "turned & large.jpg"
    path.write_bytes(turned(fine(1700, 1500), 6))
    photo, upright = take_photo(path), open_image(path)
    part = zoom.part_of(photo, zoomed(photo, [99.5, 200.2, 400, 500.7], 5000))
    assert part["number"] == 7 and part["box"] == (99, 200, 400, 501)
    assert unlike(pixels_of(part["src"]), upright.crop(part["box"])) < 5
    assert unlike(photo.preview().resize(upright.size).crop(part["box"]), upright.crop(part["box"])) > 9
    assert pixels_of(zoom.part_of(photo, zoomed(photo, [0, 0, 1000, 500], 250))["src"]).size == (250, 125)
    monkeypatch.setattr(zoom, "MOST_PIXELS", 40_000)
    whole = zoom.part_of(photo, zoomed(photo, [-5, -1e300, 1e300, 1e9], 10**9))
    assert whole["box"] == (0, 0, *upright.size) and math.prod(pixels_of(whole["src"]).size) <= 41_000


@pytest.mark.parametrize(
    "box, more",
    [
        ([0, 0, 10, 10], {"of": ["other.png", 90, 60]}),
        ([0, 0, 10, 10], {"of": None}),
        ([0, 0, 10, 10], {"wide": math.nan}),
        ([0, 0, 10, 10], {"wide": -1}),
        ([0, 0, math.nan, 10], {}),
        ([0, 0, 10], {}),
        (["/etc/passwd", 0, 1, 1], {}),
        ([500, 500, 600, 600], {}),
        ([10, 10, 10, 10], {}),
        (None, {}),
    ],
)
def test_what_is_no_part_of_ones_photo_is_not_given_out(photo, box, more):
    assert zoom.part_of(photo, zoomed(photo, box, **more)) == {"number": 7}
    assert zoom.part_of(None, zoomed(photo, [0, 0, 10, 10])) == {"number": 7}


def test_huge_photos_of_an_archive_are_shown_and_zoomed_into_by_regions(detector, monkeypatch, tmp_path):
    """Beyond the bound of pixels; its thumbnails are of its own pixels where the copy has too few."""
    path = tmp_path / "huge & tiled.png"
    large = fine(1800, 1200)
    large.save(path)
    index = RegionIndex.open(tmp_path / "archive.lance", detector, create=True, tiles=Tiles(1200, 0.1))
    index.add_folder(tmp_path)
    monkeypatch.setattr("owl_swin.huge.MAX_PIXELS", 10**6)
    monkeypatch.setattr(archived, "MOST_KEPT_PIXELS", 10**6)
    monkeypatch.setattr(archived, "SHOWN_PX", 64)
    monkeypatch.setattr(archived, "decoded", None)
    searched = ask_text(detector, results.Searched(filling.Archive(index), threshold=0.0), "a cat")
    stage = results.show_match(searched)
    assert (stage["width"], stage["height"], stage["reduced"]) == (1800, 1200, True)
    copy = pixels_of(stage["src"])
    assert max(copy.size) == 64 and unlike(copy, large.resize(copy.size)) < 30
    photo, match = results.looked_at(searched), searched.matches[searched.chosen]
    box = photos.box_around(match.box_xyxy, (1200, 1800))
    thumbnail = pixels_of(results.show_matches(searched)["items"][searched.chosen]["src"])
    assert unlike(thumbnail, large.crop(box).resize(thumbnail.size)) < 30
    part = zoom.part_of(photo, zoomed(photo, [1000, 700, 1100, 760], 100))
    assert unlike(pixels_of(part["src"]), large.crop(part["box"])) < 5
    path.unlink()
    archived._copies.clear()
    with pytest.raises(ImageError, match="is gone"):
        zoom.part_of(photo, zoomed(photo, [1000, 700, 1100, 760], 100))
    assert str(tmp_path) not in results.show_match(searched)["text"]


@pytest.fixture
def opened(monkeypatch):
    """How often files are opened as pictures, whole or reduced."""
    counted = []
    for module, name in ((photos, "open_image"), (archived, "open_parts")):
        there = getattr(module, name)

        def counts(source, *given, there=there, **options):
            counted.append(source)
            return there(source, *given, **options)

        monkeypatch.setattr(module, name, counts)
    return counted


def test_a_photo_is_decoded_once_for_all_clicks_of_its_tabs(detector, opened, tmp_path):
    fine(1500, 1100).save(tmp_path / "one.png")
    photo = take_photo(tmp_path / "one.png")
    named = naming.ask(detector, naming.Named(Question(photo), terms.with_names(detector, (), ["a cat"])))
    for threshold in (0.02, 0.3):
        naming.show(detector, named, threshold, 0.5)
        zoom.part_of(photo, zoomed(photo, [100, 100, 400, 300]))
    examples.Example.of(photo, (10.0, 10.0, 500.0, 500.0), True)
    looked = inside.look(detector, photo)
    assert opened == [tmp_path / "one.png"]
    opened.clear()
    for place in range(3):
        inside.show(replace(looked, chosen=place, point_xy=(0.2, 0.3)), inside.BLOCK, 0)
    assert all(isinstance(source, bytes) for source in opened)  # the copy that the page has, and no more of the photo


def test_photos_of_results_are_decoded_once_for_all_clicks_on_them(detector, opened, tmp_path):
    for seed in range(2):
        noise(60, 90, seed).save(tmp_path / f"{seed}.png")
    archive = filling.Archive.own(detector)
    archive.index.add_folder(tmp_path)
    searched = ask_text(detector, results.Searched(archive, threshold=0.0), "a cat")
    results.show_matches(searched)
    assert len(searched.matches) > 3 and len(opened) == 2
    for chosen in range(len(searched.matches)):
        assert results.show_match(replace(searched, chosen=chosen))["src"]
    results.show_matches(replace(searched, chosen=1))
    assert len(opened) == 2
    photo = results.looked_at(searched)
    for x in (0, 10, 20):
        assert zoom.part_of(photo, zoomed(photo, [x, 0, x + 20, 20]))["src"]
    assert len(opened) == 3
