"""What a run tells while it goes: a line of metrics, TensorBoard, a progress bar, a picture of what the model finds."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from owl_swin.errors import MissingExtraError
from owl_swin.files import write_text

logger = logging.getLogger("owl_swin")


class Journal:
    """``metrics.jsonl`` in the run's folder, the same numbers for TensorBoard if wanted, and a bar on the terminal.

    Lines of steps from ``first`` on are removed first: they belong to a run that was cut off after its last save.
    """

    def __init__(self, folder: Path, *, first: int, steps: int, tensorboard: bool):
        path = folder / "metrics.jsonl"
        kept = "".join(_lines_before(path, first))
        if not path.exists() or path.read_text() != kept:
            write_text(path, kept, what="the metrics of the run")
        self._file = open(path, "a")  # noqa: SIM115
        self._board: Any = _summary_writer(folder, first) if tensorboard else None
        self._bar = Progress(
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._shown = self._bar.add_task("", total=steps, completed=first)

    def __enter__(self) -> "Journal":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self._file.close()
        if self._board is not None:
            self._board.close()

    def advance(self, step: int) -> None:
        """Shows that ``step`` steps are done."""
        self._bar.update(self._shown, completed=step)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Writes a line of numbers for a step."""
        print(json.dumps({"step": step, **numbers}), file=self._file, flush=True)
        self._bar.update(self._shown, description=f"loss {numbers['loss']:.4f}")
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)

    def picture(self, step: int, path: Path) -> None:
        """Puts a finished picture file on the board, too."""
        if self._board is not None:
            import numpy as np
            from PIL import Image

            with Image.open(path) as image:
                self._board.add_image("found", np.asarray(image.convert("RGB")), step, dataformats="HWC")


def _lines_before(path: Path, first: int) -> list[str]:
    kept = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        try:
            if json.loads(line)["step"] < first:
                kept.append(line)
        except (ValueError, KeyError, TypeError):  # cut off in the middle of a line
            logger.warning("%s: left out a damaged line", path)
    return kept


def _summary_writer(folder: Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError("tensorboard = true", "train") from None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=first)
