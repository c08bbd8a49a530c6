"""The processors that a server may use: all of its machine's, or its container's limit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

CPUS_VARIABLE: Final = "SEGSERVE_CPUS"
"""Environment variable of a container: its limit of processors, rounded up. Its processes see the node's processors."""


def cpu_limit(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return the limit of this container, at least 1 and at most what its machine has; None without one."""
    limit = environment.get(CPUS_VARIABLE, "")
    return min(max(int(limit), 1), _machine_cpus()) if limit.isascii() and limit.isdigit() else None


def available_cpus(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many processors this process may use at a time, at least 1."""
    return cpu_limit(environment) or _machine_cpus()


def _machine_cpus() -> int:
    return max(len(os.sched_getaffinity(0)), 1)
