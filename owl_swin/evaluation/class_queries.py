"""Queries for the classes of a set: by name, or by an exemplar of another picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from owl_swin.data.naming import spoken_names
from owl_swin.detector import Detector
from owl_swin.errors import DataError
from owl_swin.evaluation.exemplar_bank import make_bank
from owl_swin.queries import Query
from owl_swin.types import QueryEmbeddings

# (record of a picture) → queries for it, whose names are the set's own, or None when there are none.
ClassQueries = Callable[[dict[str, Any]], QueryEmbeddings | None]


def text_query(category: dict[str, Any]) -> str | Query:
    """What a class is asked by: each of its names, as training says them ("sofa, couch" are two)."""
    name = category["name"]
    names = category.get("names") or spoken_names(name) or [name]
    return names[0] if len(names) == 1 else Query(name, texts=names)


def encode_classes(detector: Detector, truth: dict[str, Any]) -> QueryEmbeddings | None:
    """Queries for all classes of a set, called by its own names; None for a set without classes."""
    if not truth["categories"]:
        return None
    encoded = detector.encode_queries([text_query(category) for category in truth["categories"]])
    return QueryEmbeddings(encoded.query_embeds, tuple(category["name"] for category in truth["categories"]))


def make_class_queries(
    detector: Detector,
    truth: dict[str, Any],
    *,
    route: str = "text",
    shots: int = 1,
    exemplars: str | Path | None = None,
    exemplar_images: str | Path | None = None,
) -> ClassQueries:
    """Queries for every class of the set, by "text" or by "exemplar" (``shots``, drawn once for each picture)."""
    if route == "exemplar":
        bank = make_bank(detector, truth, exemplars, exemplar_images)
        names = [category["name"] for category in truth["categories"]]
        return lambda record: bank.queries(names, record, shots=shots)
    if route != "text":
        raise DataError(f"classes are asked for by text or exemplar, not by {route!r}")
    queries = encode_classes(detector, truth)
    return lambda record: queries
