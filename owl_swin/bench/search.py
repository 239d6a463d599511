"""Times of search in archives of synthetic regions, and how much their index forgets."""

import contextlib
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from owl_swin.bench.synthetic import EMBED_DIM, PER_PICTURE, Synthetic, batches
from owl_swin.config import CalibrationConfig
from owl_swin.index import lance
from owl_swin.index.lance import LanceStore
from owl_swin.index.ranking import Choice, best_of_nearest, one_query, search_vector
from owl_swin.index.store import Card, RegionFilter, Regions
from owl_swin.models.network import Spec
from owl_swin.types import QueryEmbeddings

BEST = 10
PROTOCOL = (
    "Synthetic regions of 256 dimensions, 20 a picture, in 5000 kinds whose frequencies fall as 1 / rank, with shifts, "
    "scales and cosines spread as measured on photographs. Half of the queries are further regions of these kinds "
    "(what an exemplar gives), half lie at cosine 0.35 to a kind (what a name gives). Each asks for 10 answers: index, "
    "exact scores and choice, all but the encoding of the query; the files have been read before. recall_at_10 is the "
    "share of the 10 best by exact score of all regions."
)


def benchmark_search(
    spec: Spec,
    sizes: Sequence[int] = (10_000, 100_000, 1_000_000),
    *,
    queries: int = 200,
    probes: Sequence[int] = (80, 160, 240),
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """A row for each size and number of partitions that are read, in a LanceDB of a temporary folder.

    ``spec`` is of a model whose embeddings have 256 dimensions: its calibration makes the scores.
    """
    machine = f"{platform.machine()}, {_n_cores()} cores"
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="owl_swin-bench-") as folder:
            for row in _one_size(spec, Path(folder) / "bench.lance", size, queries, probes):
                rows.append(row)
                progress(" ".join(f"{key} {value}" for key, value in row.items()))
    return {"protocol": PROTOCOL, "machine": machine, "rows": rows}


def _n_cores() -> int:
    """Cores that this process may use, where the system says so; macOS and Windows do not."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_size(spec: Spec, path: Path, size: int, n_queries: int, probes: Sequence[int]) -> Iterator[dict[str, Any]]:
    made = Synthetic(0)
    with contextlib.closing(
        LanceStore(str(path), create=Card("synthetic", "", 320, EMBED_DIM, spec.search_norm))
    ) as store:
        written, build_s, index_s = _written(store, made, size, spec.search_norm)
        queries = _queries(made, n_queries)
        best = _exact(np.concatenate(written), queries, spec.calibration)
        indexed = size >= lance.INDEX_FROM
        held = {
            "n_regions": size,
            "write_s": round(build_s, 1),
            "index_s": round(index_s, 1),
            "bytes_per_region": sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) // size,
            "partitions": size // lance.PARTITION if indexed else 0,
        }
        for n_probes in probes if indexed else (0,):
            yield {**held, "probes": n_probes, **_timed(store, spec.calibration, queries, best, n_probes)}


def _written(
    store: LanceStore, made: Synthetic, size: int, search_norm: float
) -> tuple[list[np.ndarray[Any, Any]], float, float]:
    """Vectors of all regions that were written, and the seconds that writing and settling took."""
    written, build_s = [], 0.0
    for pictures, regions in batches(made, size):
        written.append(regions.vectors(search_norm))
        start = time.perf_counter()
        store.write(pictures, regions)
        build_s += time.perf_counter() - start
    start = time.perf_counter()
    store.settle()
    return written, build_s, time.perf_counter() - start


def _timed(
    store: LanceStore, calibration: CalibrationConfig, queries: QueryEmbeddings, best: Sequence[set[int]], n_probes: int
) -> dict[str, float]:
    """Recall and times of all queries."""
    times, shares = [], []
    for i in range(-10, len(queries)):  # the first few warm up
        one = one_query(queries, max(i, 0))
        start = time.perf_counter()
        _, rows = best_of_nearest(store, calibration, one, RegionFilter(), Choice(), BEST, probes=n_probes or None)
        if i >= 0:
            times.append(1000 * (time.perf_counter() - start))
            shares.append(len(best[i] & _numbers(rows)) / BEST)
    half = len(queries) // 2
    return {
        "recall_at_10": round(float(np.mean(shares)), 4),
        "recall_exemplars": round(float(np.mean(shares[:half])), 4),
        "recall_names": round(float(np.mean(shares[half:])), 4),
        "p50_ms": round(float(np.median(times)), 2),
        "p95_ms": round(float(np.percentile(times, 95)), 2),
    }


def _queries(made: Synthetic, n: int) -> QueryEmbeddings:
    embeds = torch.from_numpy(np.concatenate([made.embeds(n // 2), made.names(n - n // 2)]))
    routes = ("exemplar",) * (n // 2) + ("text",) * (n - n // 2)
    return QueryEmbeddings(embeds, tuple(map(str, range(n))), routes)


def _exact(vectors: np.ndarray, queries: QueryEmbeddings, calibration: CalibrationConfig) -> list[set[int]]:
    """Numbers of the best regions of each query."""
    directions = np.stack([search_vector(one_query(queries, i), calibration) for i in range(len(queries))])
    best: list[list[tuple[float, int]]] = [[] for _ in range(len(queries))]
    for first in range(0, len(vectors), 50_000):
        logits = vectors[first : first + 50_000].astype(np.float32) @ directions.T  # [rows, Q]
        top = np.argpartition(-logits, BEST, axis=0)[:BEST]
        for q in range(len(queries)):
            found = [(float(logits[i, q]), first + int(i)) for i in top[:, q]]
            best[q] = sorted(best[q] + found, reverse=True)[:BEST]
    return [{number for _, number in one} for one in best]


def _numbers(rows: Regions) -> set[int]:
    pairs = zip(rows.image_id, rows.number, strict=True)
    return {int(image_id, 16) * PER_PICTURE + int(number) for image_id, number in pairs}
