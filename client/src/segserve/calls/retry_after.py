"""Reads `Retry-After`, in both of its forms."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def retry_after_s(text: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds that a server asks to wait for: a number of them, or an HTTP date; None for anything else.

    A date that has passed is 0. `now` is the time of day, by default this machine's.
    """
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        return _until(text, now)
    return seconds if 0 <= seconds < math.inf else None


def _until(date: str, now: datetime | None) -> float | None:
    try:
        then = parsedate_to_datetime(date)
    except (ValueError, TypeError, IndexError):
        return None
    aware = then if then.tzinfo is not None else then.replace(tzinfo=UTC)
    return max(0.0, (aware - (now or datetime.now(UTC))).total_seconds())
