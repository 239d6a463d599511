"""Times as people write them: a date, or an age from now."""

import re
from datetime import datetime, timedelta

from owl_swin.errors import QueryError

AGE = re.compile(r"(\d+(?:\.\d+)?)([hdwy])")
HOURS = {"h": 1, "d": 24, "w": 24 * 7, "y": 24 * 365.25}


def seconds_of(name: str, text: str) -> float:
    """Seconds since 1970 of a date as in 2024-05-31, or of an age as in 12h, 7d, 3w, 1y; ``name`` is what errors call
    it."""
    try:
        if age := AGE.fullmatch(text):
            return (datetime.now() - timedelta(hours=float(age[1]) * HOURS[age[2]])).timestamp()
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise QueryError(
            f"{name} wants a date as in 2024-05-31, or an age as in 12h, 7d, 3w, 1y, got {text!r}"
        ) from None
