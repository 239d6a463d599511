"""Figures for Prometheus, each application with a registry of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from owl_swin.server.batching import Work

LATENCIES_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)


class Gauged(Protocol):
    """What is read when /metrics is asked for."""

    waiting: int
    held_bytes: int
    batcher: Any
    images: Any
    queries: Any


class Metrics:
    """Counts what happens; /metrics shows it."""

    def __init__(self, gauged: Gauged):
        self._registry = CollectorRegistry()
        common: dict[str, Any] = {"registry": self._registry}
        self._requests = Counter(
            "owl_swin_requests", "Requests that ended.", ["path", "method", "status", "code"], **common
        )
        self._seconds = Histogram(
            "owl_swin_request_seconds", "From the head of a request to the end of its answer.", ["path"],
            buckets=LATENCIES_S, **common,
        )  # fmt: skip
        self.batch_size = Histogram(
            "owl_swin_batch_size", "Pictures that shared a pass through the model.", buckets=SIZES, **common
        )
        self._model_s = Histogram(
            "owl_swin_model_seconds", "What one batch took in the thread of the model.", buckets=LATENCIES_S, **common
        )
        self._dropped = Counter("owl_swin_dropped", "Works whose client went away before they ran.", **common)
        self._registry.register(_Live(gauged))  # type: ignore[arg-type]
        ProcessCollector(registry=self._registry)

    def on_batch(self, works: Sequence[Work], seconds: float) -> None:
        """After a batch."""
        self._model_s.observe(seconds)

    def on_drop(self, n: int) -> None:
        """After works were dropped."""
        self._dropped.inc(n)

    def on_request(self, path: str, method: str, status: int, code: str, seconds: float) -> None:
        """After a request; ``path`` is that of the route, so that there are only so many."""
        self._requests.labels(path, method if method in METHODS else "other", str(status), code).inc()
        self._seconds.labels(path).observe(seconds)

    def page(self) -> bytes:
        """Prometheus' text."""
        return generate_latest(self._registry)


METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"}


class _Live:
    """Figures that are read at the moment of asking."""

    def __init__(self, gauged: Gauged):
        self._gauged = gauged

    def collect(self):
        """The families, for the registry."""
        gauged = self._gauged
        yield GaugeMetricFamily("owl_swin_queue_length", "Works that wait for the model.", len(gauged.batcher))
        yield GaugeMetricFamily("owl_swin_works", "Works of all requests that have not ended.", gauged.waiting)
        yield GaugeMetricFamily("owl_swin_held_bytes", "Bytes of bodies that are held.", gauged.held_bytes)
        lookups = CounterMetricFamily("owl_swin_cache_lookups", "Lookups in the caches.", labels=["cache", "found"])
        size = GaugeMetricFamily("owl_swin_cache_bytes", "Bytes in the caches.", labels=["cache"])
        for name in ("images", "queries"):
            cache = getattr(gauged, name)
            lookups.add_metric([name, "yes"], cache.hits)
            lookups.add_metric([name, "no"], cache.misses)
            size.add_metric([name], cache.n_bytes)
        yield lookups
        yield size
