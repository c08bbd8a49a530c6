"""Free ports of loopback for tests and measurements; no two processes get the same one."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Final

_CHOICE: Final = range(12_000, 20_000)
"""Below the ports of the local platform's servers, and below those that the kernel assigns to outgoing connections,
which could take a port while its server restarts."""
_MAX_CLAIMS: Final = 200
_claims: deque[int] = deque()
_last = _CHOICE.start - 1


def free_ports(count: int) -> list[int]:
    """Return ports on which nothing listens, and which this function returns to no other process meanwhile."""
    return list(islice(_ports(), count))


def free_port() -> int:
    """Return one such port."""
    return next(_ports())


def _ports() -> Iterator[int]:
    global _last
    for _ in _CHOICE:
        _last = _last + 1 if _last + 1 in _CHOICE else _CHOICE.start
        if _is_claimed(_last) and _is_free(_last):
            yield _last
    raise RuntimeError(f"no port of {_CHOICE.start}..{_CHOICE.stop - 1} is free")


def _is_claimed(port: int) -> bool:
    """Claim a port among all processes that use this module, by an abstract socket that only one of them can bind."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0segserve-port-{port}")
    except OSError:
        claim.close()
        return False
    _claims.append(claim.detach())
    if len(_claims) > _MAX_CLAIMS:
        os.close(_claims.popleft())
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
