"""Photos on the pages: those that people bring, and a few in the public domain to try things with."""

import base64
import io
import secrets
import threading
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cachetools import LRUCache, cached
from PIL import Image, ImageOps

from owl_swin import ImageError, open_image

SHOWN_PX = 1280
THUMBNAIL_PX = 200
FINE: dict[str, Any] = {"quality": 92, "subsampling": 0}
# Decoded photos that are kept for the next click, of all visitors together: a photo of 20 megapixels has 60 MB.
MOST_DECODED_BYTES = 400_000_000


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo on a page: its file or pixels, and what the browser is shown of it (``src``, at most SHOWN_PX long).

    ``key`` is what the page calls it by: several may have one name, as all that are pasted have.
    """

    source: Path | Image.Image
    name: str
    width: int
    height: int
    src: str
    key: str = field(default_factory=lambda: secrets.token_hex(8), compare=False)

    def open(self) -> Image.Image:
        """The photo itself, upright; not to be drawn on."""
        return self.source if isinstance(self.source, Image.Image) else decoded(self.source)

    def part(self, box_xyxy: tuple[int, int, int, int], side: int) -> Image.Image:
        """What is in a box; its longer side needs no more than ``side`` pixels."""
        return part_in(self.open(), box_xyxy, side)

    def preview(self) -> Image.Image:
        """What the browser is shown of it."""
        return open_image(base64.b64decode(self.src.partition(",")[2]))


def meant(photo: Photo | None, event: Any) -> bool:
    """Whether an event of the page is about this photo, as far as it says of which (``stage.of``): by the time that it
    comes another may be there."""
    of = getattr(event, "of", None)
    return of is None or (photo is not None and of == photo.key)


@dataclass(frozen=True, slots=True)
class Sample:
    """A photo to try, with names that may be in it and the box of one thing, xyxy pixels."""

    path: Path
    title: str
    queries: str
    box_xyxy: tuple[float, float, float, float]


# Of the photos in scikit-image those that its notes call public domain or CC0: a portrait by NASA; a cat, by Stefan van
# der Walt; coffee, by Rachel Michetti; a photographer, by Lav Varshney; a launch by SpaceX; a clock, by van der Walt.
SAMPLES = (
    ("astronaut.png", "Astronaut", "a person, a face, a flag, a spaceship, a helmet", (166, 56, 280, 210)),
    ("chelsea.png", "Cat", "a cat, an eye, a nose, a dog", (65, 20, 370, 285)),
    ("coffee.png", "Coffee", "a cup of coffee, a spoon, a saucer, a table", (170, 65, 440, 305)),
    ("camera.png", "Photographer", "a person, a camera, a tripod, a tower", (70, 65, 310, 510)),
    ("rocket.jpg", "Launch", "a rocket, a tower, smoke", (290, 80, 350, 330)),
    ("clock_motion.png", "Clock", "a clock, a wall", (115, 45, 335, 275)),
)


@cache
def samples() -> tuple[Sample, ...]:
    """The samples that are on this machine: none where scikit-image is not installed."""
    found = find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        return ()
    folder = Path(next(iter(found.submodule_search_locations))) / "data"
    return tuple(Sample(folder / name, *rest) for name, *rest in SAMPLES if (folder / name).is_file())  # type: ignore[arg-type]


def _bytes_of(image: Image.Image) -> int:
    return image.width * image.height * len(image.getbands())


@cached(
    LRUCache(MOST_DECODED_BYTES, getsizeof=_bytes_of), key=lambda source, of=None: of or source, lock=threading.Lock()
)
def decoded(source: str | Path | bytes, of: str | None = None) -> Image.Image:
    """The upright photo in a file whose content stays, as that of samples and uploads does; or that with a content
    called ``of``, wherever it lies."""
    return open_image(source)


def part_in(image: Image.Image, box_xyxy: tuple[int, int, int, int], side: int) -> Image.Image:
    """What is in a box; where its longer side has far more than ``side`` pixels, in fewer."""
    x0, y0, x1, y1 = box_xyxy
    part = image.crop(box_xyxy)
    return part.reduce(factor) if (factor := max(x1 - x0, y1 - y0) // (2 * side)) > 1 else part


def take_photo(source: str | Path | Image.Image, name: str = "") -> Photo:
    """A photo from a file, or from pixels; ImageError, which calls it by its ``name``, if it is none."""
    kept = open_image(source) if isinstance(source, Image.Image) else Path(source)
    shown = name or (kept.name if isinstance(kept, Path) else "photo")
    try:
        image = decoded(kept) if isinstance(kept, Path) else kept
    except ImageError as error:
        raise ImageError(error.reason, of=shown) from None
    return Photo(kept, shown, image.width, image.height, data_uri(image, SHOWN_PX))


def data_uri(image: Image.Image, side: int, *, crisp: bool = False, fine: bool = False) -> str:
    """The picture, at most ``side`` pixels long, inside a URL; a JPEG, or ``crisp`` a PNG, as drawings need.

    A ``fine`` JPEG has the colour of each pixel.
    """
    if max(image.size) > side:
        scale = side / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    content = io.BytesIO()
    form = "PNG" if crisp else "JPEG"
    image.save(content, form, **FINE if fine else {"quality": 85})
    return f"data:image/{form.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def box_around(
    box_xyxy: tuple[float, float, float, float], image_hw: tuple[int, int], *, margin: float = 0.15
) -> tuple[int, int, int, int]:
    """Whole pixels of a box and a little around it, within the picture."""
    x0, y0, x1, y1 = box_xyxy
    height, width = image_hw
    room = margin * max(x1 - x0, y1 - y0)
    left, top = round(max(0, min(x0 - room, width - 1))), round(max(0, min(y0 - room, height - 1)))
    right, bottom = round(min(width, x1 + room)), round(min(height, y1 + room))
    return left, top, max(right, left + 1), max(bottom, top + 1)


def crop_uri(image: Image.Image, box_xyxy: tuple[float, float, float, float]) -> str:
    """A thumbnail of the box and a little around it."""
    return data_uri(image.crop(box_around(box_xyxy, (image.height, image.width))), THUMBNAIL_PX)


@cache
def sample_items() -> list[dict[str, str]]:
    """The samples as items of a strip."""
    return [
        {"src": data_uri(open_image(one.path), THUMBNAIL_PX), "title": one.title, "caption": one.title}
        for one in samples()
    ]


def board(side: int = 240) -> Photo:
    """All samples on one board, mirrored, to look for one of them in."""
    columns = 3
    sheet = Image.new("RGB", (columns * side, -(-len(samples()) // columns) * side), "white")
    for place, one in enumerate(samples()):
        row, column = divmod(place, columns)
        tile = ImageOps.fit(ImageOps.mirror(open_image(one.path)), (side, side))
        sheet.paste(tile, (column * side, row * side))
    return take_photo(sheet, "board of samples")
