"""Folders of pictures to index, and what an archive of them must hold."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from picture_files import encode, noise

from owl_swin import RegionIndex
from owl_swin.index.lock import only_writer
from owl_swin.index.store import RegionFilter


def fill(folder: Path, n: int = 6) -> Path:
    """Pictures of different content and shape."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        (folder / f"{i}.png").write_bytes(encode(noise(48 + 8 * i, 80, seed=i)))
    return folder


def held(index: RegionIndex) -> list[str]:
    """The keys of all regions, of which no two may be equal, and of whole pictures only."""
    store = index._store
    keys = sorted(key for rows in store.scan(RegionFilter()) for key in rows.keys)
    assert len(keys) == len(set(keys))
    assert len(keys) == sum(picture.n_regions for picture in store.pictures())
    return keys


@contextlib.contextmanager
def held_until_waited_for(uri: str, monkeypatch) -> Iterator[threading.Event]:
    """Holds the lock of an archive until somebody has found it taken, however late that is; the event says so."""
    waited = threading.Event()
    with contextlib.ExitStack() as holder:
        holder.enter_context(only_writer(uri, wait=False))
        monkeypatch.setattr("owl_swin.locks.sleep", lambda _: (waited.set(), holder.close()))
        yield waited


def counts(report) -> tuple[int, int, int, int, int]:
    return report.added, report.changed, report.removed, report.unchanged, len(report.skipped)
