"""Opening pictures of every kind, and refusing what is none."""

import io
import os
import pickle
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import BAD_FILES, TURNS, bmp_that_skips, encode, noise, png_claiming, tiff_of_tiles, turned
from PIL import Image

from owl_swin.errors import ImageError
from owl_swin.image import MAX_FILE_BYTES, open_image, open_reduced
from owl_swin.tiff import tile_pixels


def corner(image: Image.Image) -> tuple[int, ...]:
    return image.getpixel((0, 0))


# --- Sources -------------------------------------------------------------------------------------------------------


def test_a_picture_is_the_same_from_path_bytes_pil_and_array(tmp_path, picture):
    content = encode(picture)
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    for source in [path, str(path), content, Image.open(path), picture, np.asarray(picture)]:
        opened = open_image(source)
        assert opened.mode == "RGB"
        assert np.array_equal(opened, picture)


def test_opening_leaves_the_caller_s_picture_alone(picture):
    before = picture.copy()
    opened = open_image(picture)
    opened.putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(picture, before)


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_applied(picture, orientation):
    content = turned(picture, orientation)
    assert np.array_equal(open_image(content), picture)


@pytest.mark.parametrize("orientation", [3, 6])
def test_exif_orientation_is_applied_once(picture, orientation):
    assert np.array_equal(open_image(open_image(turned(picture, orientation))), picture)


def test_damaged_exif_does_not_cost_the_picture(picture, recwarn):
    damaged = encode(picture, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert open_image(damaged).size == picture.size
    assert not recwarn.list


# --- Modes ---------------------------------------------------------------------------------------------------------


def grey16(value: int) -> Image.Image:
    return Image.fromarray(np.full((2, 3), value, np.uint16))


def palette(transparent: bool) -> bytes:
    image = Image.new("P", (3, 2), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    return encode(image, **({"transparency": 1} if transparent else {}))


@pytest.mark.parametrize(
    "source, expected",
    [
        (Image.new("1", (3, 2), 1), (255, 255, 255)),
        (Image.new("L", (3, 2), 100), (100, 100, 100)),
        (Image.new("LA", (3, 2), (100, 255)), (100, 100, 100)),
        (Image.new("LA", (3, 2), (100, 0)), (255, 255, 255)),
        (Image.new("La", (3, 2), (100, 255)), (100, 100, 100)),
        (Image.new("RGBA", (3, 2), (200, 0, 0, 255)), (200, 0, 0)),
        (Image.new("RGBA", (3, 2), (200, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (3, 2), (255, 0, 0, 51)), (255, 204, 204)),
        (Image.new("CMYK", (3, 2), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("CMYK", (3, 2), (0, 0, 0, 255)), (0, 0, 0)),
        (Image.new("LAB", (3, 2), (128, 128, 128)), (119, 119, 119)),
        (Image.new("HSV", (3, 2), (0, 255, 255)), (255, 0, 0)),
        (Image.new("I", (3, 2), 65_535), (255, 255, 255)),
        (grey16(0), (0, 0, 0)),
        (grey16(25_700), (100, 100, 100)),
        (grey16(253 * 257), (253, 253, 253)),
        (grey16(65_535), (255, 255, 255)),
        (Image.new("F", (3, 2), 0.4), (102, 102, 102)),  # at most 1: fractions
        (Image.new("F", (3, 2), 102.0), (102, 102, 102)),
        (Image.new("F", (3, 2), float("nan")), (0, 0, 0)),
        (palette(transparent=False), (255, 0, 0)),
        (palette(transparent=True), (255, 255, 255)),
        (encode(Image.new("RGB", (3, 2), "red"), transparency=(255, 0, 0)), (255, 255, 255)),
        (encode(Image.new("L", (3, 2), 9), transparency=9), (255, 255, 255)),
        (encode(Image.new("CMYK", (3, 2), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
        (encode(grey16(25_700)), (100, 100, 100)),
        (encode(grey16(25_700), "TIFF"), (100, 100, 100)),
    ],
)
def test_every_mode_becomes_rgb(source, expected):
    opened = open_image(source)
    assert opened.mode == "RGB"
    assert opened.size == (3, 2)
    assert corner(opened) == expected


def test_of_an_animation_the_first_picture_is_read():
    red, blue = Image.new("P", (3, 2), "red"), Image.new("P", (3, 2), "blue")
    content = encode(red, "GIF", save_all=True, append_images=[blue])
    assert corner(open_image(content)) == (255, 0, 0)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO"])
def test_pictures_of_every_usual_format_are_read(form):
    assert open_image(encode(noise(32, 32), form)).size == (32, 32)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1), (2, 3, 3), (2, 3, 4)])
@pytest.mark.parametrize(
    "dtype, value, expected",
    [
        (np.uint8, 255, 255),
        (np.uint16, 65_535, 255),
        (np.uint16, 4095, 255),
        (np.float32, 1.0, 255),
        (np.float64, 0.4, 102),
        (np.float16, 102.0, 102),
    ],
)
def test_arrays_are_height_width_and_colours(shape, dtype, value, expected):
    opened = open_image(np.full(shape, value, dtype))
    assert opened.size == (3, 2)
    if shape[-1] != 4 or expected == 255:  # else partly transparent
        assert corner(opened) == (expected,) * 3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3), (3, 2, 3)])
def test_tensors_are_colours_height_and_width(shape, dtype):
    tensor = torch.full(shape, 1.0 if dtype.is_floating_point else 255).to(dtype)
    tensor[..., 0] = 0
    opened = open_image(tensor.requires_grad_(dtype.is_floating_point))
    assert opened.size == (3, 2)
    assert (corner(opened), opened.getpixel((1, 0))) == ((0, 0, 0), (255, 255, 255))


def test_a_tensor_is_the_picture_that_it_was_made_of(picture):
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    for source in (tensor, tensor / 255):
        assert np.array_equal(open_image(source), picture)


@pytest.mark.parametrize("wrap", [bytearray, memoryview, io.BytesIO], ids=["bytearray", "memoryview", "file"])
def test_buffers_and_open_files_are_read(picture, wrap):
    assert np.array_equal(open_image(wrap(encode(picture))), picture)


def test_a_file_that_is_open_as_text_is_refused():
    with pytest.raises(ImageError, match="open it in binary mode"):
        open_image(io.StringIO("text"))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    "values, expected",
    [
        ((0, 2048, 4095), (0, 128, 255)),  # 12 bits
        ((0, 128, 255), (0, 128, 255)),  # 8 bits
        ((0, 4096, 65_535), (0, 16, 255)),
    ],
)
def test_grey_of_fewer_bits_than_its_file_is_not_black(values, expected, form):
    content = encode(Image.fromarray(np.array([values], np.uint16)), form)
    assert tuple(open_image(content).getpixel((x, 0))[0] for x in range(3)) == expected


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("highest, expected, said", [(4095, 255, True), (65_535, 255, False), (40, 0, False)])
def test_16_bit_colours_of_12_bits_are_not_black(highest, expected, said, form, caplog):
    pixels = np.full((4, 6, 3), highest, np.uint16)
    assert corner(open_image(in_16_bits(pixels, form))) == (expected,) * 3
    assert ("16-bit colours" in caplog.text) == said
    with Image.open(io.BytesIO(in_16_bits(pixels, form))) as opened:  # by whoever has it
        again = open_image(opened)
        assert corner(open_image(opened)) == (expected,) * 3  # also when it is decoded already
    assert corner(again) == corner(open_image(again)) == (expected,) * 3


def test_16_bit_colours_of_12_bits_are_not_black_beside_what_is_transparent():
    pixels = np.full((4, 6, 4), 4095, np.uint16)
    pixels[..., 3] = 65_535
    pixels[0, 0, 3] = 0
    opened = open_image(in_16_bits(pixels, "PNG"))
    assert opened.getpixel((3, 3)) == corner(opened) == (255, 255, 255)
    pixels[..., :3] = 2047
    assert open_image(in_16_bits(pixels, "PNG")).getpixel((3, 3)) == (119, 119, 119)


@pytest.mark.parametrize("form", [np.array, Image.fromarray], ids=["array", "TIFF"])
@pytest.mark.parametrize("highest", [1.0, 1.0000002, 1.04])
def test_fractions_a_little_above_1_are_fractions(form, highest):
    values = np.array([[0, 0.5, highest]], np.float32)
    assert [open_image(form(values)).getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


@pytest.mark.parametrize("highest, middle", [(4000, 125), (65_535, 128), (200, 100), (262, 131), (4200, 131)])
def test_floats_in_a_file_may_be_of_more_bits(highest, middle):
    values = np.array([[np.nan, highest / 2, highest, -np.inf]], np.float32)
    opened = open_image(encode(Image.fromarray(values), "TIFF"))
    assert opened.getpixel((1, 0))[0] == pytest.approx(middle, abs=1)
    assert opened.getpixel((0, 0))[0] == opened.getpixel((3, 0))[0] == 0


def test_floats_beyond_all_bits_are_refused():
    with pytest.raises(ImageError, match=r"of 8, 12 or 16 bits, got up to 1e\+06"):
        open_image(encode(Image.fromarray(np.array([[0, 1e6]], np.float32)), "TIFF"))


def test_arrays_may_be_views():
    bgr = np.zeros((2, 3, 3), np.uint8)
    bgr[..., 2] = 255
    assert corner(open_image(bgr[..., ::-1])) == (255, 0, 0)


# --- What is no picture --------------------------------------------------------------------------------------------


def in_16_bits(pixels, form):
    """A file of 16-bit colours [h, w, 3 or, in PNG, 4], which Pillow reads and does not write."""
    height, width = pixels.shape[:2]
    if form == "TIFF":
        tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
        tags += [(273, 4, 1, 14), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, pixels.nbytes)]
        content = struct.pack("<3H", 16, 16, 16) + pixels.astype("<u2").tobytes()
        entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
        return (
            b"II*\0" + struct.pack("<I", 8 + len(content)) + content + struct.pack("<H", len(tags)) + entries + bytes(4)
        )

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2"))
    head = struct.pack(">IIBBBBB", width, height, 16, 2 if pixels.shape[2] == 3 else 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


EPS = encode(noise(20, 20), "EPS")
# A photo of IPTC whose one picture is the EPS: size, compression, and the content.
IPTC = (
    b"\x1c\x03\x14\x00\x01\x14\x1c\x03\x1e\x00\x01\x14\x1c\x03\x3c\x00\x02\x01\x00"
    b"\x1c\x03\x78\x00\x01\x01\x1c\x08\x0a" + len(EPS).to_bytes(2, "big") + EPS
)


@pytest.mark.parametrize("content", [EPS, IPTC], ids=["EPS", "IPTC"])
def test_no_file_starts_another_program(tmp_path, monkeypatch, content):
    def started(*arguments, **options):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", started)
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match="not a picture in a format that is read here"):
        open_image(path)


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path, name):
    content, sentence = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError, match=re.escape(f"{path}: ")) as error:
        open_image(path)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ImageError, match=f"^picture: .*{sentence}"):
        open_image(content)


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("missing.jpg", "No such file"),
        ("", "directory"),  # the folder itself
        ("nul\0.jpg", "null"),
        ("x" * 300, "too long"),
    ],
)
def test_a_path_without_a_file_is_named_with_the_reason(tmp_path, name, sentence):
    with pytest.raises(ImageError, match=sentence):
        open_image(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named_with_the_reason(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(encode(noise(8, 8)))
    path.chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        open_image(path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_a_device_without_an_end_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr("owl_swin.image.MAX_FILE_BYTES", 1000)
    with pytest.raises(ImageError, match="more than 1000 bytes, the largest picture file"):
        open_image("/dev/zero")


@pytest.mark.parametrize("order", [">", "<"])
def test_arrays_of_both_byte_orders_are_read(order):
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    assert np.array_equal(open_image(values.astype(f"{order}u2")), open_image(values))
    assert np.array_equal(open_image((values / 60000).astype(f"{order}f4")), open_image(values / 60000))


def test_a_file_beyond_every_picture_is_not_read(tmp_path):
    path = tmp_path / "sparse.jpg"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ImageError, match="the largest picture file"):
        open_image(path)


@pytest.mark.parametrize(
    "array, sentence",
    [
        (np.full((2, 3, 3), -0.1), r"values in \[0, 1\], or in \[0, 255\], got -0.1 to -0.1"),
        (np.full((2, 3), np.nan), "got nan"),
        (np.full((2, 3), 256.0), "got 256 to 256"),
        (np.zeros((2, 3), bool), "must be uint8, uint16 or floats, got bool"),
        (np.zeros((2, 3), np.int64), "got int64"),
        (torch.zeros(2, 3, 3), r"a tensor picture must be .*\[3, H, W\] .* got \[2, 3, 3\]"),
        (torch.zeros(1, 3, 2, 3), r"got \[1, 3, 2, 3\]"),
        (np.zeros((3, 8, 8), np.uint8), r"got uint8 \[3, 8, 8\]"),  # channels first
        (np.zeros((8,), np.uint8), r"got uint8 \[8\]"),
        (np.zeros((1, 2, 3, 3), np.uint8), r"got uint8 \[1, 2, 3, 3\]"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros((5, 0), np.uint8), "no pixels"),
        (np.zeros((1, 89_478_486), np.uint8), "is more than"),
    ],
)
def test_wrong_arrays_are_refused(array, sentence):
    with pytest.raises(ImageError, match=sentence):
        open_image(array)


@pytest.mark.parametrize("source", [None, 3, ["a.jpg"]])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(ImageError, match=f"a picture is a path, .* got {type(source).__name__}"):
        open_image(source)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "content, sentence", [(BAD_FILES["cut.jpg"][0], "cut off"), (BAD_FILES["large.png"][0], "is more than")]
)
def test_an_opened_pil_picture_that_cannot_be_decoded_is_refused(content, sentence):
    with pytest.raises(ImageError, match=sentence):
        open_image(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize(
    "content, sentence",
    [
        (tiff_of_tiles(10_000), "10x10 is more than"),
        (tiff_of_tiles(10_000, 16), "10x10 is more than"),  # the decoder takes the first, Pillow the last
        (tiff_of_tiles(16), "damaged or cut off"),
        (png_claiming(65_536, 1), "has a side of more than 65535 pixels"),
        (bmp_that_skips(40_000_000), "has a side of more than 65535 pixels"),
    ],
)
def test_what_takes_more_memory_than_its_pixels_is_refused(content, sentence):
    with pytest.raises(ImageError, match=sentence):
        open_image(content)


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("big", [False, True])
def test_the_tile_of_a_tiff_counts_in_every_kind_of_it(order, big):
    sign, layout = "<>"[order == "MM"], ("HHQQ" if big else "HHII")
    head = struct.pack(sign + "HHHQ", 43, 8, 0, 16) if big else struct.pack(sign + "HI", 42, 8)
    entries = [struct.pack(sign + layout, tag, 4, 1, side) for tag, side in ((322, 300), (323, 200))]
    if order == "MM":  # a value of 4 bytes stands at the left of its place
        entries = [e[:-8] + e[-4:] + e[-8:-4] if big else e for e in entries]
    content = order.encode() + head + struct.pack(sign + ("Q" if big else "H"), 2) + b"".join(entries)
    assert tile_pixels(io.BytesIO(content)) == 300 * 200


def test_a_pil_picture_without_pixels_is_refused():
    with pytest.raises(ImageError, match="no pixels"):
        open_image(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("name", BAD_FILES)
def test_the_reason_of_an_error_is_apart_from_what_it_is_about(name, tmp_path):
    content, _ = BAD_FILES[name]
    path = tmp_path / "picture: b.jpg"
    path.write_bytes(content)
    errors = []
    for source in (content, path):
        with pytest.raises(ImageError) as caught:
            open_image(source)
        errors.append(caught.value)
    assert errors[0].reason == errors[1].reason
    assert (errors[1].of, str(errors[1])) == (str(path), f"{path}: {errors[1].reason}")
    assert pickle.loads(pickle.dumps(errors[1])).reason == errors[1].reason


# --- Smaller than it is --------------------------------------------------------------------------------------------


def smooth(height, width):
    """A picture that changes slowly, so that a reduced one is like it."""
    y, x = np.mgrid[0:height, 0:width]
    values = np.stack([128 + 100 * np.sin(x / width * 6), 128 + 100 * np.cos(y / height * 5), 128 + 0 * x], -1)
    return Image.fromarray(values.astype(np.uint8))


@pytest.mark.parametrize("orientation, hw", [(1, (300, 1001)), (6, (1001, 300))])
@pytest.mark.parametrize("side, longer", [(125, 126), (126, 251), (250, 251), (500, 501), (501, 1001), (9999, 1001)])
def test_a_large_jpeg_is_decoded_only_as_large_as_it_must_be(orientation, hw, side, longer):
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x112] = orientation
    smooth(300, 1001).save(file, "JPEG", quality=95, exif=exif)
    image, image_hw = open_reduced(file.getvalue(), side)
    assert image_hw == hw
    assert max(image.size) == longer
    whole = open_image(file.getvalue())
    assert (whole.height, whole.width) == hw
    difference = np.asarray(whole.resize(image.size), float) - np.asarray(image, float)
    assert np.abs(difference).mean() < 2


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_what_is_no_jpeg_is_decoded_whole(form):
    file = io.BytesIO()
    smooth(80, 120).save(file, form)
    image, image_hw = open_reduced(file.getvalue(), 32)
    assert image.size == (120, 80) and image_hw == (80, 120)
