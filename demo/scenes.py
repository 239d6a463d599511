"""The large picture and the short video of the README, put together from the sample photos: ``python demo/scenes.py``.

Both are of public-domain photos that come with scikit-image; they are written into the folder that is named.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

# Name, longer side and left upper corner of each photo on the large picture.
PLACES = (
    ("chelsea", 150, 1720, 1100),
    ("chelsea", 620, 140, 860),
    ("astronaut", 420, 1360, 500),
    ("coffee", 520, 760, 120),
)
PICTURE_SIZE = (2400, 1600)
VIDEO_SIZE, FRAMES, RATE = (640, 360), 50, 25


def photo(name: str, longer: int) -> Image.Image:
    """A sample photo, its longer side so many pixels."""
    from skimage import data

    image = Image.fromarray(getattr(data, name)())
    scale = longer / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def large_picture() -> Image.Image:
    """Photos of several sizes on grass."""
    from skimage import data

    grass = np.asarray(Image.fromarray(data.grass()).convert("L"), float) / 255
    tile = np.stack([grass * 120, 60 + grass * 150, grass * 70], -1).clip(0, 255).astype(np.uint8)
    canvas = Image.new("RGB", PICTURE_SIZE)
    for x in range(0, PICTURE_SIZE[0], tile.shape[1]):
        for y in range(0, PICTURE_SIZE[1], tile.shape[0]):
            canvas.paste(Image.fromarray(tile), (x, y))
    for name, longer, x, y in PLACES:
        canvas.paste(photo(name, longer), (x, y))
    return canvas


def write_video(path: Path) -> None:
    """A photo of a cat that moves over the grass."""
    import av

    cat, grass = photo("chelsea", 300), large_picture().crop((0, 0, 700, 400)).resize(VIDEO_SIZE)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height = VIDEO_SIZE
        stream.bit_rate = 2_000_000
        stream.codec_context.thread_count = 3  # a thread makes a slice of each frame: their number changes the file
        for i in range(FRAMES):
            shown = grass.copy()
            shown.paste(cat, (round(20 + (VIDEO_SIZE[0] - cat.width - 40) * i / (FRAMES - 1)), 90))
            file.mux(stream.encode(av.VideoFrame.from_image(shown)))
        file.mux(stream.encode(None))


def main(folder: str) -> None:
    """Writes garden.jpg and pan.mp4."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    large_picture().save(Path(folder) / "garden.jpg", quality=92)
    write_video(Path(folder) / "pan.mp4")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "out")
