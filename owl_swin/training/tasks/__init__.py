"""What can be trained: a task a file, all behind one protocol, which is all that the loop knows of them."""

from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor, nn


class Task(Protocol):
    """What is trained, on what, and what comes of it.

    ``model`` is trained, averaged and kept; ``extra`` holds parameters that only training needs.
    """

    @property
    def model(self) -> nn.Module: ...

    @property
    def extra(self) -> nn.Module: ...

    def batch(self, index: int) -> Any:
        """This process's share of a batch: a function of the seed and the index alone. One thread asks at a time."""
        ...

    def step_losses(self, batch: Any) -> dict[str, Tensor]:
        """The losses of a batch, of which "loss" is minimised and the others are shown; all are numbers."""
        ...

    def evaluate(self, averaged: nn.Module) -> dict[str, float]:
        """Figures of the averaged model on what it is not trained on; may be empty."""
        ...

    def preview(self, averaged: nn.Module, batch: Any) -> Image.Image | None:
        """A picture of what the averaged model makes of a batch, where a task has one to show."""
        ...

    def write_result(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Writes what the run is for into its folder: ``weights`` are the parameters of ``model``, averaged."""
        ...
