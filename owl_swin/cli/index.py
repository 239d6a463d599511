"""`owl-swin index`: pictures of folders into an archive that `owl-swin search` asks."""

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from owl_swin.cli import options
from owl_swin.cli.printing import LINE_S, emit_line, note, printable, said_when_stopped, say
from owl_swin.errors import QueryError
from owl_swin.index.match import IndexProgress, IndexReport
from owl_swin.index.store import NoArchiveError


class Engine(StrEnum):
    """What encodes the pictures."""

    LOCAL = "local"
    RAY = "ray"


def index(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders of pictures, with all in them.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="ARCHIVE",
            help="A folder such as photos.lance, an object-storage URI, or milvus://host:19530/collection. It is made "
            "if it is not there. Object storage has no locks: one machine at a time may write to an archive there.",
        ),
    ],
    model: options.Model = "nano",
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    image_size: Annotated[
        int | None, typer.Option(help="Longer side in pixels; by default the archive's, or the model's for a new one.")
    ] = None,
    content_only: options.ContentOnly = False,
    tile: Annotated[
        int | None,
        typer.Option(
            help="Of a new archive: show the model the pictures in tiles of so many pixels a side too, which finds "
            "small things and reads pictures of any size; by default as the archive has it.",
        ),
    ] = None,
    overlap: options.Overlap = None,
    regions: Annotated[int, typer.Option(help="Most regions of a picture, and of each tile of it.")] = 20,
    engine: Annotated[Engine, typer.Option(help="Encode in this process, or on a Ray cluster.")] = Engine.LOCAL,
    ray_address: Annotated[
        str | None, typer.Option(help="The cluster of --engine ray; by default RAY_ADDRESS, or a Ray on this machine.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Most workers of --engine ray.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="If another process writes to the archive, wait until it is done.")
    ] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Take the pictures of these folders out of the archive instead.")
    ] = False,
) -> None:
    """Bring an archive up to date with folders of pictures: what is new or changed is encoded, what is gone forgotten.

    It may be stopped at any moment; the same command goes on from there.

    Example: owl-swin index Photos --to photos.lance
    """
    if engine is Engine.LOCAL and not (ray_address is None and workers is None):
        raise QueryError("--ray-address and --workers are for --engine ray; give it too, or leave them out")
    if workers is not None and workers < 1:
        raise QueryError(f"--workers must be at least 1, got {workers}")
    from owl_swin.detector import Detector
    from owl_swin.index.region_index import RegionIndex, read_card

    tiles = options.make_tiles(tile, overlap)
    found = read_card(to)
    if forget and found is None:
        raise NoArchiveError(to)
    size = found.image_size if found is not None and image_size is None else image_size
    detector = Detector.from_pretrained(
        model, device=device, image_size=size, runtime=runtime, content_only=content_only
    )
    waiting = _say_waiting if wait else None
    with RegionIndex.open(to, detector, create=not forget, tiles=tiles) as archive:
        for folder in folders:
            if forget:
                emit_line(f"{folder}: {archive.forget(folder, wait=wait, waiting=waiting)} pictures forgotten")
                continue
            encode = None
            if engine is Engine.RAY:
                from owl_swin.index.cluster import ray_engine

                encode = ray_engine(detector, regions, address=ray_address, workers=workers)
            kept = "stopped; what is in the archive stays, and the same command goes on from there"
            with said_when_stopped(kept), _Progress(str(folder)) as progress:
                report = archive.add_folder(
                    folder, progress=progress.show, regions=regions, engine=encode, wait=wait, waiting=waiting
                )
            for path, reason in report.skipped:
                say(f"{path}: {reason}")
            emit_line(f"{folder}: {_summary(report)}")
        stats = archive.stats()
        emit_line(f"{to}: {stats.n_regions} regions of {stats.n_images} pictures")


class _Progress:
    """A bar on the terminal with rate and time left; where stderr is no terminal, a line now and then."""

    def __init__(self, folder: str):
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._tty = sys.stderr.isatty()
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"))
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not self._tty)
        self._task = self._bar.add_task(escape(printable(folder)), total=None, figures="")
        self._folder = folder
        self._line = time.monotonic()

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, now: IndexProgress) -> None:
        """Shows how far it has come."""
        left = "" if now.seconds_left is None else f", {_duration(now.seconds_left)} left"
        figures = f"{now.regions} regions, {now.rate:.1f} pictures/s{left}"
        if self._tty:
            self._bar.update(self._task, completed=now.done, total=now.total, figures=figures)
        elif time.monotonic() - self._line > LINE_S:
            self._line = time.monotonic()
            note(f"{self._folder}: {now.done} of {now.total} pictures, {figures}")


def _summary(report: IndexReport) -> str:
    parts = [f"{getattr(report, name)} {name}" for name in ("added", "changed", "removed", "unchanged")]
    if report.skipped:
        parts.append(f"{len(report.skipped)} skipped")
    return f"{', '.join(parts)}; {report.regions} regions stored"


def _say_waiting(holder: str) -> None:
    say(f"waiting for {holder}, which is writing to the archive")


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
