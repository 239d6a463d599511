"""Orientations of EXIF: how a stored picture is turned upright, and where a box of it is stored."""

from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from owl_swin.frame import HW, Crop

# Orientations in which height and width of the stored picture change places.
SWAPS_SIDES = (5, 6, 7, 8)
# What turns the stored picture upright, by its EXIF orientation.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def stored_box(box: "Crop", image_hw: "HW", orientation: int) -> "Crop":
    """Where a box of the upright picture, which has this height and width, lies in the stored one."""
    height, width = image_hw
    x0, y0, x1, y1 = box
    if orientation in (2, 3, 7, 6):  # the stored picture runs from the right
        x0, x1 = width - x1, width - x0
    if orientation in (3, 4, 7, 8):  # and from the bottom
        y0, y1 = height - y1, height - y0
    return (y0, x0, y1, x1) if orientation in SWAPS_SIDES else (x0, y0, x1, y1)
