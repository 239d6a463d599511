"""Parts of pictures that are too large to be decoded whole."""

import sys

import numpy as np
import pytest
import rasterio
import torch
from picture_files import TURNS, encode, exif_behind_the_pixels, noise, png_claiming, turned
from PIL import ExifTags, Image

import owl_swin.huge as huge
from owl_swin.errors import ImageError, MissingExtraError
from owl_swin.frame import Frame, SwinPreprocess
from owl_swin.huge import RegionPicture, WholePicture, open_parts
from owl_swin.image import open_image
from owl_swin.orientation import stored_box
from owl_swin.tiling import Tiles


@pytest.fixture
def small_bounds(monkeypatch):
    """Bounds that pictures of a test are beyond: 5 000 pixels for one that is read by regions."""
    monkeypatch.setattr(huge, "MAX_PIXELS", 5_000)


def smooth(height=150, width=210):
    """A picture without edges, which every decoder of JPEG shows alike."""
    return noise(height, width, seed=5).resize((8, 8)).resize((width, height), Image.Resampling.BICUBIC)


def tiff(array, **profile):
    """A TIFF of an array [bands, h, w] as GDAL writes it."""
    with rasterio.io.MemoryFile() as memory:
        bands, height, width = array.shape
        with memory.open(driver="GTiff", count=bands, height=height, width=width, dtype=array.dtype, **profile) as file:
            file.write(array)
        return memory.read()


def planes(image):
    """[3, h, w]"""
    return np.asarray(image).transpose(2, 0, 1)


def views(source, tiles):
    """Pixels of the whole picture and of its tiles, and whether they were read by regions."""
    with open_parts(source) as parts:
        preprocess = SwinPreprocess(16)
        frames = [Frame.fit(parts.image_hw, 96, crop) for crop in (None, *tiles.crops(parts.image_hw))]
        shown = list(parts.shown(frames, preprocess.pixels))
        assert sorted(number for number, _ in shown) == list(range(len(frames)))
        return [pixels for _, pixels in sorted(shown, key=lambda one: one[0])], isinstance(parts, RegionPicture)


def assert_same_as_whole(content, tolerance, monkeypatch):
    """By regions all views are those of the picture when it is decoded whole."""
    tiles = Tiles(64, 0.25)
    by_region, is_region = views(content, tiles)
    monkeypatch.setattr(huge, "MAX_PIXELS", 10**6)
    whole, is_whole = views(content, tiles)
    assert is_region and not is_whole and len(by_region) == len(whole) > 10
    for one, other in zip(by_region[1:], whole[1:], strict=True):
        assert one.shape == other.shape and (one.int() - other.int()).abs().max() <= tolerance
    # The whole picture is brought to the model's size in two steps instead of one.
    assert (by_region[0].float() - whole[0].float()).abs().mean() <= 3


@pytest.mark.parametrize(
    "content, tolerance",
    [
        (encode(smooth(), "JPEG", quality=95), 6),
        (encode(smooth(), "JPEG", quality=95, progressive=True), 6),
        (encode(smooth().convert("L"), "JPEG", quality=95), 6),
        (encode(smooth()), 0),
        (encode(smooth().convert("RGBA")), 0),
        (encode(smooth().convert("LA")), 0),
        (encode(smooth().quantize(64)), 0),
        (encode(smooth().convert("L"), "TIFF", compression="tiff_lzw"), 0),
        (encode(smooth().convert("1"), "TIFF", compression="group4"), 0),
        (encode(smooth(), "TIFF", compression="tiff_deflate"), 0),
        (tiff(planes(smooth()), tiled=True, blockxsize=64, blockysize=32, compress="lzw", photometric="rgb"), 0),
        (tiff(planes(smooth()), compress="deflate", interleave="band", photometric="rgb"), 0),
        (tiff(np.asarray(smooth().convert("L"), np.uint16)[None] * 16, tiled=True, blockxsize=16, blockysize=16), 2),
    ],
    ids=[
        "jpeg",
        "progressive jpeg",
        "grey jpeg",
        "png",
        "png with alpha",
        "grey png with alpha",
        "png with palette",
        "grey tiff",
        "fax",
        "striped tiff",
        "tiled tiff",
        "tiff in planes",
        "tiff of 12 bits",
    ],
)
def test_by_regions_a_picture_looks_as_it_does_whole(content, tolerance, small_bounds, monkeypatch):
    assert_same_as_whole(content, tolerance, monkeypatch)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_by_regions_a_turned_picture_is_upright(orientation, small_bounds, tmp_path):
    upright = smooth()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    turn = TURNS[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    for form, tolerance in (("JPEG", 6), ("PNG", 0), ("TIFF", 0)):
        path = tmp_path / f"turned.{form}"
        stored.save(path, form, exif=exif, **({"quality": 95} if form == "JPEG" else {}))
        with open_parts(path) as parts:
            assert isinstance(parts, RegionPicture) and parts.image_hw == (150, 210)
            crops = [(10, 20, 74, 84), (0, 0, 64, 64), (146, 86, 210, 150), (50, 140, 51, 150)]
            frames = [Frame((150, 210), (64, 64), (64, 64), crop) for crop in crops]
            shown = dict(parts.shown(frames, lambda image, frame: torch.from_numpy(np.array(image))))
            for number, (x0, y0, x1, y1) in enumerate(crops):
                expected = np.asarray(upright)[y0:y1, x0:x1].astype(int)
                assert np.abs(shown[number].numpy() - expected).max() <= tolerance
                part = np.asarray(parts.part((x0, y0, x1, y1), 10**4)).astype(int)
                assert np.abs(part - expected).max() <= tolerance
            assert np.abs(np.asarray(parts.reduced(10**4)).astype(int) - np.asarray(upright)).max() <= tolerance


@pytest.mark.parametrize("orientation, expected", [(1, (1, 2, 4, 7)), (3, (6, 13, 9, 18)), (6, (2, 6, 7, 9))])
def test_where_a_box_of_the_upright_picture_is_stored(orientation, expected):
    assert stored_box((1, 2, 4, 7), (20, 10), orientation) == expected


def test_rows_of_the_file_are_decoded_once_and_few_at_a_time(small_bounds, monkeypatch, tmp_path):
    path = tmp_path / "large.png"
    smooth(1000, 200).save(path)
    rows = []
    with open_parts(path) as parts:
        read = parts.dataset.read

        class Counted:
            def __getattr__(self, name):
                return getattr(dataset, name)

            def read(self, *args, window=None, **kwargs):
                rows.extend([] if window is None else [window.height])
                return read(*args, window=window, **kwargs)

        dataset, parts.dataset = parts.dataset, Counted()
        frames = [Frame((1000, 200), (32, 32), (32, 32), crop) for crop in Tiles(100, 0.3).crops((1000, 200))]
        assert len(list(parts.shown(frames, lambda image, frame: torch.zeros(1)))) == len(frames)
    assert sum(rows) == 1000 and max(rows) == 100


def test_a_large_picture_is_found_in_with_tiles_only(detector, monkeypatch, tmp_path):
    path = tmp_path / "large.jpg"
    smooth().save(path, quality=95)
    content = path.read_bytes()
    for module in ("huge", "image"):
        monkeypatch.setattr(f"owl_swin.{module}.MAX_PIXELS", 5_000)
    monkeypatch.setattr(open_image, "__kwdefaults__", {"max_pixels": 5_000})
    with pytest.raises(ImageError, match="210x150 is more than 5000 pixels"):
        detector.detect(path, ["cat"])
    for source in (path, str(path), content, memoryview(content)):
        found = detector.detect(source, ["cat"], tiles=64, threshold=0, top_k=5)
        assert found.image_hw == (150, 210) and len(found) == 5 and len(found.patches.unique()) == 5


def test_bounds_of_what_is_decoded_whole_and_of_what_is_read_by_regions(small_bounds, monkeypatch, tmp_path):
    webp = tmp_path / "large.webp"
    noise(100, 100).save(webp)
    with open_parts(webp) as parts:
        assert isinstance(parts, WholePicture)
    monkeypatch.setattr(huge, "MAX_WHOLE_PIXELS", 9_000)
    for source in (webp, noise(100, 100), np.zeros((100, 100), np.uint8)):
        with pytest.raises(ImageError, match="100x100 is more than 9000 pixels"), open_parts(source):
            pass
    png = tmp_path / "large.png"
    noise(100, 100).save(png)
    monkeypatch.setattr(huge, "MAX_REGION_PIXELS", 9_999)
    with pytest.raises(ImageError, match=r"large\.png: 100x100 is more than 9999 pixels"), open_parts(png):
        pass
    # Without the library a picture is decoded whole as far as that goes.
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with (
        pytest.raises(MissingExtraError, match=r"a picture of 10000 pixels needs .* 'owl_swin\[huge\]'"),
        open_parts(png),
    ):
        pass
    monkeypatch.setattr(huge, "MAX_WHOLE_PIXELS", 10_000)
    with open_parts(png) as parts:
        assert isinstance(parts, WholePicture) and parts.image_hw == (100, 100)


@pytest.mark.parametrize(
    "content, reason",
    [
        (encode(smooth(), "JPEG")[:2000], "damaged or cut off"),
        (encode(noise(150, 210))[:700], "damaged or cut off"),
        (encode(smooth(), "TIFF")[:20_000], "damaged or cut off"),
        (png_claiming(20_000, 20_000), "damaged or cut off"),
        (b"no picture", "not a picture"),
        (b"", "empty"),
        (tiff(np.zeros((5, 100, 100), np.uint8)), "not a picture in a format"),
        (
            tiff(np.zeros((1, 100, 100), np.float32)),
            "must be grey, RGB or of a palette, with 8 or 16 bits, got gray float32",
        ),
    ],
)
def test_a_large_file_that_cannot_be_read_is_named_in_one_sentence(
    content, reason, small_bounds, monkeypatch, detector, tmp_path
):
    monkeypatch.setattr(huge, "MAX_WHOLE_PIXELS", 5_000)
    path = tmp_path / "large.tif"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        detector.detect(path, ["cat"], tiles=64)
    assert reason in str(caught.value) and str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_file_of_one_strip_is_decoded_whole_where_that_is_possible(small_bounds, monkeypatch, tmp_path):
    path = tmp_path / "large.tif"
    smooth(100, 200).save(path, compression="tiff_deflate", strip_size=10**6)
    monkeypatch.setattr(huge, "MAX_BLOCK_PIXELS", 19_999)
    with open_parts(path) as parts:
        assert isinstance(parts, WholePicture)
    monkeypatch.setattr(huge, "MAX_WHOLE_PIXELS", 19_999)
    with (
        pytest.raises(ImageError, match=r"large\.tif: a tile or strip of the file has more than 19999 pixels; write"),
        open_parts(path),
    ):
        pass


def test_orientation_behind_the_pixels_of_a_png_is_seen(small_bounds):
    with open_parts(exif_behind_the_pixels(turned(smooth(), 6))) as parts:
        assert isinstance(parts, RegionPicture) and parts.image_hw == (150, 210)


def test_a_part_is_read_small_where_it_is_large_and_no_more_rows_than_it_has(small_bounds, tmp_path, monkeypatch):
    """Of a picture read by regions, of one decoded whole, and of a JPEG that was decoded at a part of its size."""
    path = tmp_path / "large.png"
    smooth(400, 300).save(path)
    read = []
    window = RegionPicture._window
    monkeypatch.setattr(
        RegionPicture, "_window", lambda self, *box, **how: read.append(box) or window(self, *box, **how)
    )
    with open_parts(path, side=50) as parts:
        part = parts.part((100, 200, 300, 400), 60)
        assert part.size == (60, 60) and {(x0, x1) for x0, _, x1, _ in read} == {(100, 300)}
        assert min(y0 for _, y0, _, _ in read) == 200
    monkeypatch.setattr(huge, "MAX_PIXELS", 10**6)
    expected = np.asarray(smooth(400, 300).crop((100, 200, 300, 400)).resize((60, 60)), int)
    assert np.abs(np.asarray(part, int) - expected).max() <= 8
    for form, side, size in (("PNG", 50, (200, 200)), ("JPEG", 100, (50, 50))):
        smooth(400, 300).save(path, form)
        with open_parts(path, side=side) as parts:
            assert isinstance(parts, WholePicture) and parts.image_hw == (400, 300)
            part = parts.part((100, 200, 300, 400), 10**4)
            assert part.size == size
            assert np.abs(np.asarray(part.resize((60, 60)), int) - expected).max() <= 12
