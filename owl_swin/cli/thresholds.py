"""--threshold: one number, others for some names, and what to say when nothing reaches them."""

import difflib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from owl_swin.errors import QueryError

if TYPE_CHECKING:
    from owl_swin.detections import Detection


def read_thresholds(values: Sequence[str], names: Sequence[str]) -> list[float]:
    """The threshold of each query, of texts that are a number or NAME=NUMBER; the last one for a name counts.

    A name that no query has raises QueryError, which says the nearest that one has.
    """
    from owl_swin.postprocess import DEFAULT_THRESHOLD

    default, by_name = DEFAULT_THRESHOLD, dict[str, float]()
    for value in values:
        name, equals, number = value.rpartition("=")
        try:
            threshold = float(number)
        except ValueError:
            example = f"{names[0] if names else 'a dog'}=0.3"
            raise QueryError(
                f"--threshold is a number in [0, 1], or NAME=NUMBER as in {example!r}, got {value!r}"
            ) from None
        if not 0 <= threshold <= 1:  # NaN fails this too
            raise QueryError(f"threshold must lie in [0, 1], got {value}")
        if not equals:
            default = threshold
        elif name in names:
            by_name[name] = threshold
        else:
            near = difflib.get_close_matches(name, names, n=1) or names
            raise QueryError(f"--threshold {value}: no query is called {name!r}; did you mean {near[0]!r}?")
    return [by_name.get(name, default) for name in names]


def nothing_sentence(best: "Detection | None", thresholds: Sequence[float]) -> str:
    """What to say of a picture in which nothing reached its threshold: the best answer and the threshold it needs."""
    if best is None:
        return "nothing found"
    lowest, score = min(thresholds), reached_threshold(best.score)
    at = f"{_number(lowest)}" if len(set(thresholds)) == 1 else f"{_number(lowest)} or above"
    option = score if len(set(thresholds)) == 1 else f'"{best.name}={score}"'
    return f"nothing at {at}; best: {best.name} {score} (use --threshold {option})"


def reached_threshold(score: float) -> str:
    """A threshold in a few digits that the score just reaches: 0.07 for 0.0734, 0.002 for 0.00278."""
    if score <= 0:
        return "0"
    digits = max(2, -math.floor(math.log10(score)))
    return f"{math.floor(score * 10**digits) / 10**digits:.{digits}f}"


def _number(threshold: float) -> str:
    return f"{threshold:.2f}" if round(threshold, 2) == threshold else f"{threshold:g}"
