"""Picture files that the tests make on the spot: whole, turned, damaged, and lying about their size."""

import io
import struct
import zlib

import numpy as np
from PIL import ExifTags, Image

# What a camera did to the upright picture, for each EXIF orientation that undoes it.
TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """An RGB picture of large coloured blocks."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    """The bytes of a picture file."""
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def turned(upright: Image.Image, orientation: int) -> bytes:
    """A PNG whose EXIF orientation turns its pixels back into ``upright``."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    turn = TURNS[orientation]
    return encode(upright if turn is None else upright.transpose(turn), exif=exif)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def tiff_of_tiles(*sides: int, picture: int = 10) -> bytes:
    """A grey TIFF of picture x picture pixels in one empty tile, of each of these sides in turn."""
    tags = [(256, picture), (257, picture), (258, 8), (259, 8), (262, 1), (277, 1)]
    tags += [(tag, side) for side in sides for tag in (322, 323)] + [(324, 8), (325, 1)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def bmp_that_skips(width: int, height: int = 1) -> bytes:
    """A compressed BMP whose only step skips 255 rows."""
    palette, steps = bytes(4 * 256), b"\0\2\0\xff\0\1"
    start = 14 + 40 + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(steps), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(steps), 0, 0, start) + head + palette + steps


# Content that is no whole picture → a part of the sentence that says so.
BAD_FILES = {
    "empty.jpg": (b"", "empty"),
    "text.jpg": (b"this is not a picture", "not a picture"),
    "no.jpg": (b"no", "not a picture"),  # shorter than what says of which format a file is
    "html.png": (b"<html><body>404</body></html>", "not a picture"),
    "cut.jpg": (encode(noise(60, 90), "JPEG")[:700], "damaged or cut off"),
    "cut.png": (encode(noise(60, 90))[:120], "damaged or cut off"),
    "cut.gif": (encode(noise(60, 90).convert("P"), "GIF")[:900], "damaged or cut off"),
    "header_only.png": (encode(noise(60, 90))[:8], "not a picture"),
    "bomb.png": (png_claiming(20_000, 20_000), "the largest picture"),
    "large.png": (png_claiming(10_000, 10_000), "10000x10000 is more than"),
}


def exif_behind_the_pixels(png: bytes) -> bytes:
    """The PNG with its EXIF chunk moved to where some tools write it: just before the end."""
    chunks, place = [], 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        chunks.append(png[place : place + length + 12])
        place += length + 12
    exif = [chunk for chunk in chunks if chunk[4:8] == b"eXIf"]
    others = [chunk for chunk in chunks if chunk[4:8] != b"eXIf"]
    return png[:8] + b"".join([*others[:-1], *exif, others[-1]])
