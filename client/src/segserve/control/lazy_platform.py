"""The platform behind a client's `models`, `pools` and `rollouts`: opened when it is first needed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeAlias

from segserve.platforms.platform_ref import Cluster, Local, open_platform

if TYPE_CHECKING:
    from segserve.platforms.port import Platform

PlatformLike: TypeAlias = "Local | Cluster | Platform | None"
"""Which platform is meant; None: as for the command line, see `segserve.platforms.platform_ref.default_place`."""


class Plane:
    """A platform that is opened at the first call, and again at the first one after `close`; safe for threads."""

    def __init__(self, platform: PlatformLike = None) -> None:
        self._given = platform
        self._opened: Platform | None = None
        self._lock = threading.Lock()

    def platform(self) -> Platform:
        """Return the platform that is meant; raises as `open_platform`."""
        with self._lock:
            if self._opened is None:
                given = self._given
                self._opened = open_platform(given) if given is None or isinstance(given, Local | Cluster) else given
            return self._opened

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()
