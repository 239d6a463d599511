"""Entries that a reader left out: each is one sentence "where: why (details)"; here they are counted and said."""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from tarfile import TarError

from owl_swin.errors import DataError, ImageError, MissingExtraError

logger = logging.getLogger("owl_swin")

# How many of them a warning shows.
SHOWN = 3


@contextmanager
def reading(path: str | Path, form: str) -> Iterator[None]:
    """Makes one sentence, a DataError, of whatever a file that is missing, damaged or not ``form`` raises."""
    try:
        yield
    except (DataError, MissingExtraError):
        raise
    except (JSONDecodeError, UnicodeDecodeError, TarError) as error:
        raise DataError(f"{path}: not {form} ({error})") from None
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from None
    except (KeyError, TypeError, ValueError, OverflowError, IndexError, AttributeError) as error:
        raise DataError(f"{path}: not {form} (problem with {error})") from None


def left_out(path: str | Path, broken: Sequence[str]) -> str:
    """A sentence of what was left out of the set at ``path``: how many, and the first ones."""
    entries = "1 entry" if len(broken) == 1 else f"{len(broken)} entries"
    more = "; …" if len(broken) > SHOWN else ""
    return f"{path}: {entries} left out: {'; '.join(broken[:SHOWN])}{more}"


def report_broken(path: str, broken: Sequence[str]) -> None:
    """Warns of what was left out of the set at ``path``."""
    if broken:
        logger.warning("%s", left_out(path, broken))


def reasons(broken: Sequence[str]) -> dict[str, int]:
    """How often each reason occurs, the most frequent first."""
    counts = Counter(_reason(sentence) for sentence in broken)
    return dict(counts.most_common())


def image_reason(error: ImageError) -> str:
    """Why a picture out of an archive, which has no path, cannot be read."""
    return error.reason


def _reason(sentence: str) -> str:
    """The part between "where: " and the details: numbers, quotes and brackets."""
    why = sentence.rpartition(": ")[2] if ": " in sentence else sentence
    return re.split(r"\s*[\[('\"]|\s+-?\d", why, maxsplit=1)[0].strip() or why
