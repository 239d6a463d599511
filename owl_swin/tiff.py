"""The directory of a TIFF, as far as it says how much memory its decoder takes."""

from typing import BinaryIO, Literal

TILE_WIDTH, TILE_HEIGHT = 322, 323
# Bytes of a value, by the code of its type: whole numbers only.
N_BYTES = {1: 1, 6: 1, 3: 2, 8: 2, 4: 4, 9: 4, 16: 8, 17: 8}


def tile_pixels(file: BinaryIO) -> int:
    """Pixels of one tile of the first picture of a TIFF; 0 if it has none.

    Of a side that is given twice the longest counts, since Pillow reads the last and the decoder the first.
    """
    place = file.tell()
    try:
        sides = _tile_sides(file)
    finally:
        file.seek(place)
    return sides[TILE_WIDTH] * sides[TILE_HEIGHT]


def _tile_sides(file: BinaryIO) -> dict[int, int]:
    file.seek(0)
    order: Literal["little", "big"] = "little" if file.read(2) == b"II" else "big"

    def number(n_bytes: int) -> int:
        return int.from_bytes(file.read(n_bytes), order)

    is_big = number(2) == 43  # BigTIFF
    if is_big:
        number(4)
    file.seek(number(8 if is_big else 4))
    sides = {TILE_WIDTH: 0, TILE_HEIGHT: 0}
    for _ in range(number(8) if is_big else number(2)):
        if len(head := file.read(4)) < 4:
            break
        tag, kind = int.from_bytes(head[:2], order), int.from_bytes(head[2:], order)
        number(8 if is_big else 4)  # how many values
        value = file.read(8 if is_big else 4)
        if tag in sides:
            sides[tag] = max(sides[tag], int.from_bytes(value[: N_BYTES.get(kind, 4)], order))
    return sides
