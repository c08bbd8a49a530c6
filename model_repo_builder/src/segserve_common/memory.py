"""Memory that a process may use, and the share of it that one step of a model gets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

STEP_LIMIT_VARIABLE: Final = "SEGSERVE_STEP_MEMORY_BYTES"
"""Environment variable of Triton's steps: bytes of memory that each of their processes may allocate."""

_SHARE: Final = 4
_LEAST_BYTES: Final = 2**30
_CGROUPS: Final = Path("/sys/fs/cgroup")


class StepMemoryError(ValueError):
    """The environment variable of the steps' limit is not a number of bytes."""


def step_limit_bytes(environment: Mapping[str, str] = os.environ, cgroups: Path = _CGROUPS) -> int:
    """Return how many bytes a step's process may allocate.

    It is what the environment says, or else a quarter of the memory of this container or machine, and at least 1 GiB:
    `pre`, `net` and `post` of one model and Triton itself then fit beside each other. Raises `StepMemoryError`.
    """
    given = environment.get(STEP_LIMIT_VARIABLE)
    if given is None:
        return max(available_bytes(cgroups) // _SHARE, _LEAST_BYTES)
    if not given.isascii() or not given.isdigit() or int(given) < _LEAST_BYTES // 4:
        raise StepMemoryError(
            f"{STEP_LIMIT_VARIABLE} is {given!r}; allowed are whole bytes from {_LEAST_BYTES // 4} on"
        )
    return int(given)


def available_bytes(cgroups: Path = _CGROUPS) -> int:
    """Return the memory of this machine in bytes, or the limit of this process's container if that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Inside a container its own group is mounted as the root; version 2 of cgroups, then version 1.
    limits = (_limit(cgroups / "memory.max"), _limit(cgroups / "memory" / "memory.limit_in_bytes"))
    return min([machine, *(limit for limit in limits if limit is not None)])


def _limit(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
