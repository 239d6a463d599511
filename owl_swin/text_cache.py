"""Embeddings of long lists of texts, kept on disk: a new process that asks for the same list reads them.

A file holds what one call of a text encoder gave for one batch of token ids, and its name is the hash of the ids and of
all that decides what comes out. So an answer from the disk is to the bit the one that would be computed. What cannot be
read or written is computed: the cache never fails.
"""

import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from owl_swin.errors import ConfigError, OwlSwinError, brief
from owl_swin.files import read_safetensors, write_safetensors

# Where the cache is; "off" for none.
VARIABLE = "OWL_SWIN_TEXT_CACHE"
OFF = ("off", "0", "no", "false")
FORMAT = "owl_swin-texts-1"
# All files together; those that were not used for the longest go first. One call uses half of it at most: of a list
# that does not fit the end would push out the beginning, each time.
MAX_BYTES = 512 * 2**20
# To read a file takes about as long as to encode a few texts; short lists differ from call to call.
LEAST_TEXTS = 64
FILE_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")
# What a writer that was killed left behind is removed when it is so old.
PART_NAME, PART_AGE_S = re.compile(r"\.[0-9a-f]{12}\.part"), 3600.0

Encode = Callable[[Tensor], Tensor]


class TextCache:
    """A folder of embeddings, of which several processes may be users at once."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES):
        self.folder, self._max_bytes = folder, max_bytes
        self._writable = True

    def embeddings(self, batches: Sequence[Tensor], made_by: Sequence[str], encode: Encode) -> Iterator[Tensor]:
        """The embeddings [n, E], on the CPU if they were read, of batches of ids [n, L], as ``encode`` makes them.

        ``made_by`` is all that decides what ``encode`` gives: weights, settings, precision and device.
        """
        n_bytes = 0
        for ids in batches:
            if n_bytes > self._max_bytes // 2:
                yield encode(ids)
                continue
            path = self.folder / f"{_key(ids, made_by)}.safetensors"
            embeds = _read(path, len(ids))
            if embeds is None:
                embeds = encode(ids)
                self._write(path, embeds)
            n_bytes += embeds.nbytes
            yield embeds

    def _write(self, path: Path, embeds: Tensor) -> None:
        if not self._writable:
            return
        kept = embeds.detach().cpu().contiguous()
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._make_room(kept.nbytes)
            about = {"format": FORMAT, "key": path.stem, "sha256": _digest(kept)}
            write_safetensors(path, {"embeds": kept}, about, what="embeddings of texts", error=OwlSwinError)
        except (OSError, ValueError, OwlSwinError):  # a disk that is full or read only stays so for a while
            self._writable = False

    def _make_room(self, n_bytes: int) -> None:
        """Removes what was not used for the longest until so many bytes more fit; other files are left alone."""
        files: list[tuple[float, int, str]] = []
        now = time.time()
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(OSError):  # another process has just removed it
                    found = entry.stat(follow_symlinks=False)
                    if FILE_NAME.fullmatch(entry.name):
                        files.append((found.st_mtime, found.st_size, entry.path))
                    elif PART_NAME.fullmatch(entry.name) and now - found.st_mtime > PART_AGE_S:
                        os.unlink(entry.path)  # noqa: PTH108
        over = sum(size for _, size, _ in files) + n_bytes - self._max_bytes
        for _, size, path in sorted(files):
            if over <= 0:
                return
            with suppress(OSError):
                os.unlink(path)  # noqa: PTH108
            over -= size


def open_text_cache(place: str | os.PathLike[str] | bool | None = None) -> TextCache | None:
    """The cache in a folder; None or True: in that of OWL_SWIN_TEXT_CACHE, or in the user's folder for caches.

    False, the variable "off", or a user without a folder of his own: no cache.
    """
    if place is False:
        return None
    if place is None or place is True:
        place = os.environ.get(VARIABLE, "").strip()
        if place.lower() in OFF:
            return None
    elif not isinstance(place, (str, os.PathLike)):
        raise ConfigError(f"text_cache must be a folder, or False for none, got {brief(place)}")
    try:
        return TextCache((Path(place).expanduser() if place else _default_folder()).absolute())
    except (RuntimeError, ValueError):  # nobody knows where this user is at home
        return None


def _default_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "owl_swin" / "texts"


def computed_by(device: torch.device) -> list[str]:
    """What else than a network decides the last bits of what it gives: programs, processor and settings of PyTorch."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    settings = (
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.mkldnn.enabled,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type),
    )
    version = ""
    with suppress(metadata.PackageNotFoundError):  # a copy of the source that nobody installed
        version = metadata.version("owl_swin")
    return [version, torch.__version__, device.type, where, *map(str, settings)]


@lru_cache(maxsize=1)
def _processor() -> str:
    """What the processor is called, and what of it PyTorch uses."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def _key(ids: Tensor, made_by: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, *made_by, str(ids.dtype), list(ids.shape)]).encode())
    digest.update(ids.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _read(path: Path, n: int) -> Tensor | None:
    """The embeddings of a file, which then counts as used; None where there is none, or it is damaged."""
    try:
        tensors, about = read_safetensors(path, error=OwlSwinError)
        embeds = tensors["embeds"]
    except (OSError, OwlSwinError, KeyError):
        return None
    if about != {"format": FORMAT, "key": path.stem, "sha256": _digest(embeds)} or embeds.ndim != 2 or len(embeds) != n:
        return None
    with suppress(OSError):
        os.utime(path)
    return embeds


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.view(torch.uint8).numpy().data).hexdigest()
