"""Entries that a reader left out: each is one sentence "where: why (details)"; here they are counted and said."""

import logging
import re
from collections import Counter
from collections.abc import Sequence

from owl_swin.errors import ImageError

logger = logging.getLogger("owl_swin")

# How many of them a warning shows.
SHOWN = 3


def report_broken(path: str, broken: Sequence[str]) -> None:
    """Warns of what was left out of the set at ``path``: how many, and the first ones."""
    if broken:
        entries = "1 entry" if len(broken) == 1 else f"{len(broken)} entries"
        more = "; …" if len(broken) > SHOWN else ""
        logger.warning("%s: %s left out: %s%s", path, entries, "; ".join(broken[:SHOWN]), more)


def reasons(broken: Sequence[str]) -> dict[str, int]:
    """How often each reason occurs, the most frequent first."""
    counts = Counter(_reason(sentence) for sentence in broken)
    return dict(counts.most_common())


def image_reason(error: ImageError) -> str:
    """Why a picture out of an archive, which has no path, cannot be read."""
    return str(error).removeprefix("picture: ")


def _reason(sentence: str) -> str:
    """The part between "where: " and the details: numbers, quotes and brackets."""
    why = sentence.rpartition(": ")[2] if ": " in sentence else sentence
    return re.split(r"\s*[\[('\"]|\s+-?\d", why, maxsplit=1)[0].strip() or why
