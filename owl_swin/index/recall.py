"""How much the index forgets: the best regions that it brings against the best of all."""

import time
from typing import Any

import numpy as np

from owl_swin.errors import ArchiveError
from owl_swin.index.ranking import one_query
from owl_swin.index.region_index import RegionIndex
from owl_swin.types import QueryEmbeddings

# Regions that stand for queries, where there are no others.
SAMPLE = 100
BEST = 10


def measure_recall(index: RegionIndex, queries: QueryEmbeddings | None = None) -> dict[str, Any]:
    """Mean share of the ten best regions by exact search that ``search`` brings too, and the times of both.

    Without queries, 100 regions of the archive are searched for by their own embeddings, spread evenly over it.
    """
    embeds = queries if queries is not None else index.sample(SAMPLE)
    if embeds is None:
        raise ArchiveError("the archive holds no regions, so there is nothing to measure")
    start = time.perf_counter()
    exact = index.search_all(embeds, limit=BEST)
    exact_s = time.perf_counter() - start
    shares, times = [], []
    for i in range(len(embeds)):
        start = time.perf_counter()
        found = index.search(one_query(embeds, i), limit=BEST)
        times.append(time.perf_counter() - start)
        best = {match.region for match in exact[i]}
        shares.append(len(best & {match.region for match in found}) / max(1, len(best)))
    stats = index.stats()
    return {
        "protocol": f"mean share of the {BEST} best regions by exact score that search without --exact finds",
        "queries": "given" if queries is not None else "regions of the archive",
        "n_queries": len(embeds),
        "n_images": stats.n_images,
        "n_regions": stats.n_regions,
        "recall_at_10": round(float(np.mean(shares)), 4),
        "p50_ms": round(1000 * float(np.median(times)), 2),
        "p95_ms": round(1000 * float(np.percentile(times, 95)), 2),
        "exact_ms_per_query": round(1000 * exact_s / len(embeds), 2),
    }
