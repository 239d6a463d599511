"""Parts of a picture that may be too large to be decoded whole.

Up to the bound of ``open_image`` a picture is decoded whole, as everywhere. A larger file is read by regions, with
rasterio (GDAL), where its format allows that: JPEG, PNG and JPEG 2000 from top to bottom, and TIFF by its tiles or
strips. The memory is then that of one row of tiles. Other formats are decoded whole up to MAX_WHOLE_PIXELS.
"""

import io
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import ExifTags, Image
from torch import Tensor

from owl_swin.errors import ImageError, MissingExtraError, first_line
from owl_swin.frame import HW, Crop, Frame, crop_hw
from owl_swin.image import (
    MAX_PIXELS,
    ImageSource,
    file_content,
    open_header,
    open_image,
    open_reduced,
    rgb_of,
    stored_size,
    to_8_bits,
)
from owl_swin.orientation import SWAPS_SIDES, UPRIGHT, stored_box

# Of a picture that is decoded whole: 1 GiB in Pillow.
MAX_WHOLE_PIXELS = 2**28
# Of a picture that is read by regions.
MAX_REGION_PIXELS = 2**36
# Of a tile or strip of a file, which is decoded whole.
MAX_BLOCK_PIXELS = 2**25
# Formats of Pillow that are read by regions, and what GDAL calls them.
REGION_DRIVERS = {"TIFF": "GTiff", "JPEG": "JPEG", "MPO": "JPEG", "PNG": "PNG", "JPEG2000": "JP2OpenJPEG"}
# The picture stands for itself alone: no file beside it is read or written, and a damaged one is an error.
GDAL_SETTINGS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_CACHEMAX": 64,  # MiB
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "YES",
    "GDAL_ALLOW_LARGE_LIBJPEG_MEM_ALLOC": "YES",
}
# The whole picture is first read at so many times the model's size, and then resized like any picture.
OVERSAMPLING = 2
# Rows of the whole picture that are read at a time.
ROWS = 256

ToPixels = Callable[[Image.Image, Frame], Tensor]


class Parts(Protocol):
    """A picture, whole or not, that shows parts of itself."""

    @property
    def image_hw(self) -> HW:
        """Height and width of the upright picture."""
        ...

    def shown(self, frames: Sequence[Frame], pixels: ToPixels) -> Iterator[tuple[int, Tensor]]:
        """What each frame shows, with its number, in the order in which the file has it."""
        ...

    def reduced(self, side: int) -> Image.Image:
        """The whole picture, upright, its longer side at most so long."""
        ...

    def part(self, box_xyxy: Crop, side: int) -> Image.Image:
        """What is in a box of the picture, upright, its longer side at most so long."""
        ...


@contextmanager
def open_parts(source: ImageSource, *, large: bool = True, side: int | None = None) -> Iterator[Parts]:
    """The picture of a source. With ``large`` it may be beyond the bound of ``open_image``; with ``side`` the whole of
    it needs no more pixels on its longer side, and a part in proportion."""
    if side is not None and not large:
        yield WholePicture(*open_reduced(source, side))
        return
    if not large or not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        yield whole_picture(open_image(source, max_pixels=MAX_WHOLE_PIXELS if large else MAX_PIXELS))
        return
    name = str(source) if isinstance(source, (str, os.PathLike)) else "picture"
    head = _head(source)
    if head is None or head.width * head.height <= MAX_PIXELS:
        yield whole_picture(open_image(source)) if side is None else WholePicture(*open_reduced(source, side))
        return
    driver, n_pixels = REGION_DRIVERS.get(str(head.format)), head.width * head.height
    problem = f"{head.width}x{head.height} is more than {MAX_WHOLE_PIXELS} pixels, the most of a {head.format}"
    if driver is not None and _has_rasterio():
        if n_pixels > MAX_REGION_PIXELS:
            raise ImageError(
                f"{head.width}x{head.height} is more than {MAX_REGION_PIXELS} pixels, the most in tiles", of=name
            )
        with _dataset(source, name, driver) as dataset:
            problem = _why_not(dataset, head)
            if not problem:
                yield RegionPicture(dataset, name, head.orientation)
                return
    elif driver is not None and n_pixels > MAX_WHOLE_PIXELS:
        raise MissingExtraError(f"a picture of {n_pixels} pixels", "huge")
    if n_pixels > MAX_WHOLE_PIXELS:
        raise ImageError(problem, of=name)
    yield whole_picture(open_image(source, max_pixels=MAX_WHOLE_PIXELS))


@dataclass(frozen=True, slots=True)
class WholePicture:
    """A picture that was decoded whole, if perhaps smaller than it is, which is ``image_hw``."""

    image: Image.Image
    image_hw: HW

    def shown(self, frames: Sequence[Frame], pixels: ToPixels) -> Iterator[tuple[int, Tensor]]:
        """What each frame shows, in order."""
        return ((number, pixels(self.image, frame)) for number, frame in enumerate(frames))

    def reduced(self, side: int) -> Image.Image:
        """The whole picture, its longer side at most so long."""
        return _at_most(self.image, side)

    def part(self, box_xyxy: Crop, side: int) -> Image.Image:
        """What is in a box of the picture, its longer side at most so long."""
        height, width = self.image_hw
        across, down = self.image.width / width, self.image.height / height
        x0, y0, x1, y1 = box_xyxy
        left, top = int(x0 * across), int(y0 * down)
        right, bottom = max(left + 1, math.ceil(x1 * across)), max(top + 1, math.ceil(y1 * down))
        return _at_most(self.image.crop((left, top, right, bottom)), side)


def _at_most(image: Image.Image, side: int) -> Image.Image:
    """The picture itself, or a smaller copy where a side is longer."""
    if max(image.size) <= side:
        return image
    small = image.copy()
    small.thumbnail((side, side))
    return small


def whole_picture(image: Image.Image) -> WholePicture:
    """A picture in its own size."""
    return WholePicture(image, (image.height, image.width))


@dataclass(slots=True)
class RegionPicture:
    """A picture that is read by regions of its file. ``orientation`` is EXIF's."""

    dataset: Any  # rasterio.DatasetReader
    name: str
    orientation: int
    _brightest: int | None = field(default=None)  # of 16-bit values

    @property
    def image_hw(self) -> HW:
        """Height and width of the upright picture."""
        height, width = self.dataset.height, self.dataset.width
        return (width, height) if self.orientation in SWAPS_SIDES else (height, width)

    def shown(self, frames: Sequence[Frame], pixels: ToPixels) -> Iterator[tuple[int, Tensor]]:
        """What each frame shows: first the whole picture, then parts from the top of the file to its end."""
        crops = {}
        for number, frame in enumerate(frames):
            if frame.crop_xyxy is None:
                small = self.reduced(OVERSAMPLING * max(frame.content_hw))
                yield number, pixels(small, replace(frame, image_hw=(small.height, small.width)))
            else:
                crops[number] = stored_box(frame.crop_xyxy, self.image_hw, self.orientation)
        for number, part in self._read(crops):
            frame = frames[number]
            assert frame.crop_xyxy is not None
            yield number, pixels(part, replace(frame, image_hw=crop_hw(frame.crop_xyxy), crop_xyxy=None))

    def reduced(self, side: int) -> Image.Image:
        """The whole picture, upright, its longer side at most so long."""
        return self._shrunk((0, 0, self.dataset.width, self.dataset.height), side)

    def part(self, box_xyxy: Crop, side: int) -> Image.Image:
        """What is in a box of the picture, upright, its longer side at most so long."""
        return self._shrunk(stored_box(box_xyxy, self.image_hw, self.orientation), side)

    def _shrunk(self, box: Crop, side: int) -> Image.Image:
        x0, y0, x1, y1 = box
        factor = max(1, max(x1 - x0, y1 - y0) // side)
        # The overviews of a file are those of its own, or a JPEG's decoder makes them at little cost.
        plain = factor > 1 and self.dataset.overviews(1) and self._is_plain()
        small = self._turned(self._overview(box, factor) if plain else self._by_rows(box, factor))
        small.thumbnail((side, side))
        return small

    def _overview(self, box: Crop, factor: int) -> Image.Image:
        from rasterio.enums import Resampling

        x0, y0, x1, y1 = box
        small_hw = math.ceil((y1 - y0) / factor), math.ceil((x1 - x0) / factor)
        return self._rgb(self._window(*box, out_shape=small_hw, resampling=Resampling.average))

    def _by_rows(self, box: Crop, factor: int) -> Image.Image:
        """A box of the stored picture, of which ``factor`` x ``factor`` pixels become one."""
        x0, y0, x1, y1 = box
        small = Image.new("RGB", (math.ceil((x1 - x0) / factor), math.ceil((y1 - y0) / factor)))
        for top, values in self._rows(box, factor * max(1, ROWS // factor)):
            small.paste(self._rgb(values).reduce(factor), (0, (top - y0) // factor))
        return small

    def _rows(self, box: Crop, step: int) -> Iterator[tuple[int, np.ndarray]]:
        """A box of the stored picture, [bands, h, w], so many rows at a time."""
        x0, y0, x1, y1 = box
        for top in range(y0, y1, step):
            yield top, self._window(x0, top, x1, min(top + step, y1))

    def _window(self, x0: int, y0: int, x1: int, y1: int, **resized: Any) -> np.ndarray:
        from rasterio.windows import Window

        with self._one_sentence():
            return self.dataset.read(self._bands(), window=Window(x0, y0, x1 - x0, y1 - y0), **resized)

    def _read(self, crops: dict[int, Crop]) -> Iterator[tuple[int, Image.Image]]:
        """Boxes of the stored picture; rows that several have in common are decoded once."""
        if not crops:
            return
        left, right = min(box[0] for box in crops.values()), max(box[2] for box in crops.values())
        top, rows = 0, np.zeros((0, 0, 0), np.uint8)  # the rows [bands, h, w] at hand, and where they begin
        for number, (x0, y0, x1, y1) in sorted(crops.items(), key=lambda item: (item[1][1], item[1][3], item[1][0])):
            end = top + rows.shape[1]
            if y0 >= end or not rows.size:
                top = end = y0
                rows = rows[:, :0]
            if y1 > end:
                rows = rows[:, y0 - top :]
                more = self._window(left, end, right, y1)
                rows, top = (np.concatenate([rows, more], axis=1) if rows.size else more), y0
            yield number, self._turned(self._rgb(rows[:, y0 - top : y1 - top, x0 - left : x1 - left]))

    def _bands(self) -> list[int]:
        return colour_bands(self.dataset)

    def _palette(self) -> dict[int, tuple[int, int, int, int]] | None:
        from rasterio.enums import ColorInterp

        kinds = self.dataset.colorinterp
        return self.dataset.colormap(kinds.index(ColorInterp.palette) + 1) if ColorInterp.palette in kinds else None

    def _turned(self, image: Image.Image) -> Image.Image:
        turn = UPRIGHT.get(self.orientation)
        return image if turn is None else image.transpose(turn)

    def _is_plain(self) -> bool:
        """Whether the numbers in the file are brightness in 8 bits, of which a mean can be made."""
        return set(self.dataset.dtypes) == {"uint8"} and self._palette() is None and self._bits() == 8

    def _rgb(self, values: np.ndarray) -> Image.Image:
        """Values [bands, h, w] as an RGB picture."""
        if (palette := self._palette()) is not None:
            table = np.zeros((int(values.max(initial=0)) + 1, 4), np.uint8)
            for index, colour in palette.items():
                if index < len(table):
                    table[index] = colour
            values = table[values[0]].transpose(2, 0, 1)
        values = self._of_8_bits(values)
        array = values[0] if len(values) == 1 else np.ascontiguousarray(values.transpose(1, 2, 0))
        return rgb_of(Image.fromarray(array))

    def _of_8_bits(self, values: np.ndarray) -> np.ndarray:
        """Values of 1 to 16 bits as such of 8; what is white at 0 is turned round."""
        if values.dtype == np.uint16:
            if self._brightest is None:
                whole = (0, 0, self.dataset.width, self.dataset.height)
                self._brightest = max(int(rows.max()) for _, rows in self._rows(whole, ROWS))
            values = to_8_bits(values, highest=self._brightest)
        bits = self._bits()
        if bits < 8 and self._palette() is None:
            values = (values.astype(np.uint16) * 255 // (2**bits - 1)).astype(np.uint8)
        if self.dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES" and len(values) == 1:
            values = 255 - values
        return values

    def _bits(self) -> int:
        return int(self.dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8))

    @contextmanager
    def _one_sentence(self) -> Iterator[None]:
        import rasterio
        from rasterio.errors import RasterioError

        try:
            with rasterio.Env(**GDAL_SETTINGS):
                yield
        except (RasterioError, MemoryError) as error:
            reason = first_line(error.__cause__ or error)
            raise ImageError(f"the picture is damaged or cut off ({reason})", of=self.name) from None


@dataclass(frozen=True, slots=True)
class _Head:
    format: str | None
    width: int
    height: int
    orientation: int


def _head(source: Any) -> _Head | None:
    """What a file says of itself; None where it cannot be read, which ``open_image`` says better."""
    try:
        is_path = isinstance(source, (str, os.PathLike))
        with open(source, "rb") if is_path else io.BytesIO(source) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = open_header(file)
            # A PNG's own getexif decodes the picture, since it may stand behind.
            exif = _exif_of_png(file) if image.format == "PNG" else Image.Image.getexif(image)
            return _Head(image.format, *stored_size(image), exif.get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's decoders have no root in common
        return None


def _exif_of_png(file: BinaryIO) -> Image.Exif:
    """What the chunk eXIf says, wherever in the file it stands."""
    exif, place = Image.Exif(), 8
    while True:
        file.seek(place)
        length, kind = int.from_bytes(file.read(4)), file.read(4)
        if kind == b"eXIf":
            exif.load(file.read(length))
        if kind in (b"eXIf", b"IEND", b""):
            return exif
        place += length + 12


def _has_rasterio() -> bool:
    try:
        import rasterio  # noqa: F401
    except ImportError:
        return False
    return True


def colour_bands(dataset: Any) -> list[int]:
    """The bands that make a colour, counted from 1: of a palette, or red, green and blue, or grey, and alpha. None
    where there are no such."""
    from rasterio.enums import ColorInterp as Kind

    kinds = dataset.colorinterp
    for wanted in ((Kind.palette,), (Kind.red, Kind.green, Kind.blue), (Kind.gray,)):
        if set(wanted) <= set(kinds):
            alpha = [Kind.alpha] if Kind.alpha in kinds and wanted != (Kind.palette,) else []
            return [kinds.index(kind) + 1 for kind in (*wanted, *alpha)]
    return []


def _why_not(dataset: Any, head: _Head) -> str:
    """Why a file cannot be read by regions; "" where it can."""
    if (dataset.width, dataset.height) != (head.width, head.height):
        return "its head names two sizes"
    if max(height * width for height, width in dataset.block_shapes) > MAX_BLOCK_PIXELS:
        return f"a tile or strip of the file has more than {MAX_BLOCK_PIXELS} pixels; write it with smaller ones"
    if not colour_bands(dataset) or not set(dataset.dtypes) <= {"uint8", "uint16"}:
        kinds = zip(dataset.colorinterp, dataset.dtypes, strict=True)
        bands = ", ".join(f"{kind.name} {of}" for kind, of in kinds)
        return f"so large a picture must be grey, RGB or of a palette, with 8 or 16 bits, got {bands}"
    return ""


@contextmanager
def _dataset(source: Any, name: str, driver: str) -> Iterator[Any]:
    """The file as rasterio has it."""
    import rasterio
    from rasterio.errors import RasterioError
    from rasterio.io import MemoryFile

    with ExitStack() as stack:
        with warnings.catch_warnings(), rasterio.Env(**GDAL_SETTINGS):
            warnings.simplefilter("ignore")  # that it lies nowhere on earth
            try:
                if isinstance(source, (str, os.PathLike)):
                    dataset = stack.enter_context(rasterio.open(Path(source).resolve(), driver=driver))
                else:
                    memory = stack.enter_context(MemoryFile(file_content(source)))
                    dataset = stack.enter_context(memory.open(driver=driver))
            except RasterioError as error:
                raise ImageError(f"the picture is damaged or cut off ({error})", of=name) from None
        yield dataset
