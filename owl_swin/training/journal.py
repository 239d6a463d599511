"""What a run shows while it goes: a line of metrics, TensorBoard, progress on stderr, a picture of what it finds."""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from owl_swin.errors import MissingExtraError, OwlSwinError
from owl_swin.files import write_text

logger = logging.getLogger("owl_swin")

# Where stderr is no terminal, a line of progress at most every so often.
LINE_EVERY_S = 10.0


class Journal:
    """``metrics.jsonl`` in the run's folder, the same numbers for TensorBoard if wanted, and progress on stderr: a bar
    on a terminal, lines elsewhere.

    Lines of steps from ``first`` on are removed first: they belong to a run that was cut off after its last save.
    """

    def __init__(self, folder: Path, *, first: int, steps: int, tensorboard: bool):
        self._path = folder / "metrics.jsonl"
        kept = "".join(_lines_before(self._path, first))
        if not self._path.exists() or self._path.read_text() != kept:
            write_text(self._path, kept, what="the metrics of the run")
        self._file = open(self._path, "a")  # noqa: SIM115
        self._board: Any = _summary_writer(folder, first) if tensorboard else None
        self._first, self._started = first, time.monotonic()
        self._progress: _Bar | _Lines = (_Bar if sys.stderr.isatty() else _Lines)(first, steps)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        self._file.close()
        if self._board is not None:
            self._board.close()

    def advance(self, step: int) -> None:
        """Shows that ``step`` steps are done."""
        self._progress.advance(step)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Writes a line of numbers for a step, and how many steps a second there were so far."""
        rate = (step + 1 - self._first) / max(time.monotonic() - self._started, 1e-9)
        numbers = numbers | {"steps_per_s": round(rate, 3)}
        try:
            print(json.dumps({"step": step, **numbers}), file=self._file, flush=True)
            if self._board is not None:
                for name, value in numbers.items():
                    self._board.add_scalar(name, value, step)
        except OSError as error:
            raise OwlSwinError(f"{self._path}: cannot write the metrics here ({error.strerror or error})") from None
        self._progress.loss(numbers["loss"])

    def picture(self, step: int, picture: Image.Image) -> None:
        """Puts a picture on the board, too."""
        if self._board is not None:
            import numpy as np

            self._board.add_image("found", np.asarray(picture.convert("RGB")), step, dataformats="HWC")


class _Bar:
    """Progress on a terminal."""

    def __init__(self, first: int, steps: int):
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress("{task.description}", *columns, console=Console(stderr=True))
        self._row = self._bar.add_task("", total=steps, completed=first)
        self._bar.start()

    def advance(self, step: int) -> None:
        self._bar.update(self._row, completed=step)

    def loss(self, value: float) -> None:
        self._bar.update(self._row, description=f"loss {value:.4f}")

    def stop(self) -> None:
        self._bar.stop()


class _Lines:
    """Progress in a file or a pipe: a line now and then, and one at the end."""

    def __init__(self, first: int, steps: int, file: TextIO | None = None):
        self._first, self._done, self._steps = first, first, steps
        self._started = self._said = time.monotonic()
        self._said_step, self._loss = -1, ""
        self._file = file

    def advance(self, step: int) -> None:
        self._done = step
        if time.monotonic() - self._said >= LINE_EVERY_S:
            self._say()

    def loss(self, value: float) -> None:
        self._loss = f"  loss {value:.4f}"

    def stop(self) -> None:
        if self._done > self._first and self._said_step != self._done:
            self._say()

    def _say(self) -> None:
        now = time.monotonic()
        pace = (now - self._started) / (self._done - self._first)
        left = f"  {_clock(pace * (self._steps - self._done))} left" if self._done < self._steps else ""
        line = f"step {self._done}/{self._steps}{self._loss}  {_clock(now - self._started)} elapsed{left}"
        print(line, file=self._file or sys.stderr, flush=True)
        self._said, self._said_step = now, self._done


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _lines_before(path: Path, first: int) -> list[str]:
    kept = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        try:
            if json.loads(line)["step"] < first:
                kept.append(line if line.endswith("\n") else line + "\n")
        except (ValueError, KeyError, TypeError):  # cut off in the middle of a line
            logger.warning("%s: left out a damaged line", path)
    return kept


def _summary_writer(folder: Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError("tensorboard = true", "train") from None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=first)
