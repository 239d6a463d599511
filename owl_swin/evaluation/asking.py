"""How the classes of a set are asked for: by name, or by an exemplar of another picture."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from owl_swin.detector import Detector
from owl_swin.errors import DataError
from owl_swin.evaluation.coco import query_text
from owl_swin.evaluation.oneshot import make_bank
from owl_swin.types import QueryEmbeddings

# (record of the asked picture) → queries, whose names are the set's own, or None when it cannot be asked.
Ask = Callable[[dict[str, Any]], QueryEmbeddings | None]


def make_ask(
    detector: Detector,
    truth: dict[str, Any],
    images: str | Path,
    *,
    route: str = "text",
    shots: int = 1,
    exemplars: str | Path | None = None,
    exemplar_images: str | Path | None = None,
) -> Ask:
    """Asks for every class of the set, by "text" or by "exemplar" (``shots`` of them, drawn once for each picture)."""
    names: Sequence[str] = list(dict.fromkeys(c["name"] for c in truth["categories"]))
    if route == "exemplar":
        bank = make_bank(detector, truth, images, exemplars, exemplar_images)
        return lambda record: bank.queries(names, record, shots=shots)
    if route != "text":
        raise DataError(f"classes are asked for by text or exemplar, not by {route!r}")
    if not names:
        return lambda record: None
    encoded = detector.encode_queries([query_text(name) for name in names])
    queries = QueryEmbeddings(encoded.query_embeds, tuple(names))
    return lambda record: queries
