"""Timeouts of a client: for each phase of a request, and for the whole call."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from segserve_common.errors import BadRequestError


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Timeouts of a call in seconds.

    `total_s` covers the whole call including retries and pauses; the gateway receives the remainder. The others apply
    to one attempt: `connect_s` to reach the gateway, `read_s` and `write_s` without progress, `pool_s` until a pooled
    connection is free; None leaves them to the total. gRPC uses only the total. Raises `BadRequestError` for values
    that are not above 0.
    """

    total_s: float = 30.0
    connect_s: float | None = 5.0
    read_s: float | None = None
    write_s: float | None = None
    pool_s: float | None = None

    def __post_init__(self) -> None:
        for part in fields(self):
            seconds = getattr(self, part.name)
            if seconds is None and part.name != "total_s":
                continue
            if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
                name = "timeout_s" if part.name == "total_s" else part.name
                raise BadRequestError(f"{name} must be a finite number of seconds above 0, got {seconds!r}")

    def changed(self, by: float | Timeouts | None) -> Timeouts:
        """Return these timeouts changed as `timeout_s=by` asks: replaced, with another total, or unchanged for None."""
        if by is None:
            return self
        return by if isinstance(by, Timeouts) else replace(self, total_s=by)


DEFAULT: Timeouts = Timeouts()
