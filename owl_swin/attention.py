"""What the patches of a picture attend to in one block of a network."""

from dataclasses import dataclass

from torch import Tensor

from owl_swin.errors import QueryError


@dataclass(frozen=True, slots=True)
class BlockAttention:
    """What the patches of one picture attend to in one Swin block; ``stage`` and ``block`` count from 0.

    ``grid_hw`` is the map of patches there, cut in windows of ``window_hw`` after moving it up and left by
    ``shift_hw``. ``patches [W, N]`` says which patch of the map, row by row, each place of each window is, -1 for one
    that only fills a window up. ``weights [W, heads, N, N]``: a row is one patch and adds up to 1.
    """

    stage: int
    block: int
    grid_hw: tuple[int, int]
    window_hw: tuple[int, int]
    shift_hw: tuple[int, int]
    patches: Tensor
    weights: Tensor

    def of_patch(self, row: int, column: int) -> Tensor:
        """Where one patch looks: weights [heads, h, w] over the whole map, 0 outside its window."""
        height, width = self.grid_hw
        if not (0 <= row < height and 0 <= column < width):
            raise QueryError(f"this map has {height} rows and {width} columns of patches, got ({row}, {column})")
        window, place = (self.patches == row * width + column).nonzero()[0].tolist()
        here = self.patches[window]
        out = self.weights.new_zeros(self.weights.shape[1], height * width)
        out[:, here[here >= 0]] = self.weights[window, :, place][:, here >= 0]
        return out.view(-1, height, width)
