"""How long a client waits, for each part of a call and for all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from segserve_common.errors import BadRequestError


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that a call may take.

    `total_s` is for the whole call with its retries and waits, and the gateway is told what is left of it. The others
    are for one try: `connect_s` to reach the gateway, `read_s` and `write_s` without any progress, `pool_s` for a
    connection of the pool to become free; None leaves them to the total. gRPC knows only the total.
    Raises `BadRequestError` for what is not above 0.
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
                raise BadRequestError(f"{name} is a finite number of seconds above 0, got {seconds!r}")

    def changed(self, by: float | Timeouts | None) -> Timeouts:
        """Return what `timeout_s=by` means here: other timeouts, another total, or for None the same."""
        if by is None:
            return self
        return by if isinstance(by, Timeouts) else replace(self, total_s=by)


DEFAULT: Timeouts = Timeouts()
