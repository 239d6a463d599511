"""A large archive's pictures encoded on several machines by Ray Data; the archive is written by one process only.

Every machine must see the pictures under the same paths and have this package installed.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from owl_swin.detector import Detector
from owl_swin.errors import ArchiveError, MissingExtraError
from owl_swin.index.paths import from_text, to_text
from owl_swin.index.regions import EncodedFile, PictureRegions, encode_files
from owl_swin.index.update import Engine
from owl_swin.signals import kept_signals
from owl_swin.tiling import Tiles

# Pictures that a worker is given at a time.
BATCH = 16
# A picture's numbers, beside its embeddings: boxes, objectness, shift and scale.
NUMBERS = 7


def ray_engine(detector: Detector, regions: int, *, address: str | None = None, workers: int | None = None) -> Engine:
    """An engine for ``RegionIndex.add_folder`` that has pictures read and encoded by workers of a Ray cluster.

    ``address`` is the cluster's, as of `ray start`; None is a Ray that runs already, that of RAY_ADDRESS, or one begun
    on this machine. ``workers``: at most so many, None as many as there is room for. They have a GPU each if the
    detector is on one.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError("indexing on several machines", "cluster") from None

    def engine(paths: Iterable[str], known: Callable[[str], bool], tiles: Tiles | None) -> Iterator[EncodedFile]:
        names = [to_text(path) for path in paths]
        if not names:
            return
        try:
            if not ray.is_initialized():
                with kept_signals():
                    ray.init(address=address, log_to_driver=False, configure_logging=False)
            ray.data.DataContext.get_current().enable_progress_bars = False
            gpus = 1 if detector.device.type == "cuda" else 0
            room = int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1))
            encoded = ray.data.from_items([{"path": name} for name in names]).map_batches(
                _Worker,
                fn_constructor_kwargs={
                    "detector": ray.put(detector.to("cpu")),
                    "device": "cuda" if gpus else "cpu",
                    "regions": regions,
                    "tiles": tiles,
                },
                batch_size=BATCH,
                num_cpus=1,
                num_gpus=gpus,
                concurrency=(1, max(1, min(workers or room, room, -(-len(names) // BATCH)))),
            )
            for batch in encoded.iter_batches(batch_size=BATCH, batch_format="numpy"):
                yield from _from_rows(batch)
        except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ArchiveError(f"Ray cannot encode the pictures ({reason}); what was written stays") from error

    return engine


class _Worker:
    """Reads and encodes the pictures of a batch of paths."""

    def __init__(self, detector: Any, device: str, regions: int, tiles: Tiles | None):
        """``detector`` is Ray's reference to one."""
        import ray

        self._detector, self._regions, self._tiles = ray.get(detector).to(device), regions, tiles

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
        paths = [from_text(text) for text in batch["path"]]
        return _to_rows(list(encode_files(self._detector, paths, self._regions, lambda _: False, self._tiles)))


def _to_rows(files: list[EncodedFile]) -> dict[str, Any]:
    """As columns that Arrow holds: numbers of pictures have different lengths, so they travel as bytes."""
    numbers, embeds = [], []
    for one in files:
        r = one.regions
        columns = [] if r is None else [r.boxes, r.objectness[:, None], r.shift[:, None], r.scale[:, None]]
        numbers.append(np.concatenate(columns, axis=1).astype(np.float32).tobytes() if r is not None else b"")
        embeds.append(r.embeds.astype(np.float32).tobytes() if r is not None else b"")
    rows: dict[str, Any] = {
        name: np.array([getattr(one, name) for one in files])
        for name in ("image_id", "stamp", "modified", "width", "height", "problem")
    }
    rows["path"] = np.array([to_text(one.path) for one in files])
    return rows | {"numbers": np.array(numbers, object), "embeds": np.array(embeds, object)}


def _from_rows(rows: dict[str, np.ndarray[Any, Any]]) -> Iterator[EncodedFile]:
    for i in range(len(rows["path"])):
        path, problem = from_text(str(rows["path"][i])), str(rows["problem"][i])
        if problem:
            yield EncodedFile(path, problem=problem)
            continue
        numbers = np.frombuffer(rows["numbers"][i], np.float32).reshape(-1, NUMBERS)
        embeds = np.frombuffer(rows["embeds"][i], np.float32)
        embeds = embeds.reshape(len(numbers), -1) if len(numbers) else embeds.reshape(0, 1)
        boxes, (objectness, shift, scale) = numbers[:, :4], numbers[:, 4:].T
        yield EncodedFile(
            path,
            str(rows["image_id"][i]),
            str(rows["stamp"][i]),
            float(rows["modified"][i]),
            int(rows["width"][i]),
            int(rows["height"][i]),
            PictureRegions(boxes, objectness, shift, scale, embeds),
        )
