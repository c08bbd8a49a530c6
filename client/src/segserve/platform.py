"""The platform behind a client: what names it, where its gateway is, and opening it on first use."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import urlsplit

from segserve.calls.endpoint import URL_VARIABLE, GatewayEndpoint
from segserve_common.errors import SegserveError
from segserve_common.platform_record import RECORD_FILE, read_record, state_folder

if TYPE_CHECKING:
    from segserve_common.platform_record import PlatformRecord
    from segserve_platform.platforms.port import Platform

NEEDED_BY_UP: Final = ("numba", "onnxruntime", "psutil")
"""Modules of the extra `local`, without which a platform does not start."""


@dataclass(frozen=True, slots=True)
class Local:
    """The platform of this machine; `state` is its folder, by default `SEGSERVE_STATE` or the user's state folder."""

    state: Path | None = None


@dataclass(frozen=True, slots=True)
class Cluster:
    """A namespace of a cluster. Defaults are kubectl's: the usual kubeconfig, its current context, that context's
    namespace.
    """

    context: str | None = None
    namespace: str | None = None
    kubeconfig: Path | None = None


PlatformRef: TypeAlias = Local | Cluster
PlatformLike: TypeAlias = "Local | Cluster | Platform | None"
"""A platform or a reference to one; None means the one that the command line would use."""


def running_platform(place: Local | None = None) -> PlatformRecord | None:
    """Return the record of the platform that runs on this machine, or None; needs no extra."""
    root = state_folder() if place is None or place.state is None else Path(place.state)
    return read_record(root / RECORD_FILE)


class LazyPlatform:
    """A platform that is opened by the first call, and reopened by the first one after `close`. Thread-safe."""

    def __init__(self, platform: PlatformLike = None) -> None:
        self.given = platform
        self._opened: Platform | None = None
        self._lock = threading.Lock()

    def platform(self) -> Platform:
        """Return the platform; raises `NoPlatformError` or `MissingExtraError` if it cannot be opened."""
        with self._lock:
            if self._opened is None:
                from segserve_platform.platforms.selection import open_platform

                given = self.given
                self._opened = open_platform(given) if given is None or isinstance(given, Local | Cluster) else given
            return self._opened

    def name_advice(self, model: str, port: int) -> str:
        """Return what to add to the error of a model that the gateway at this port of this machine does not serve.

        Only files are read; empty if they are not readable, or of a platform whose gateway has another port.
        """
        if not self.is_local:
            return ""
        with contextlib.suppress(SegserveError, OSError, ImportError):
            from segserve_platform.platforms.local import LocalPlatform
            from segserve_platform.platforms.waiting import name_advice

            platform = LocalPlatform(self.given if isinstance(self.given, Local) else None)
            version = platform.version()
            if version is not None and urlsplit(version.url).port == port:
                return name_advice(model, platform.models())
        return ""

    @property
    def is_local(self) -> bool:
        """Whether it is, or may be, the platform of this machine."""
        return self.given is None or isinstance(self.given, Local)

    def running(self) -> PlatformRecord | None:
        """Return the record of this machine's platform if that is the one and it runs; one file is read."""
        return running_platform(self.given) if self.given is None or isinstance(self.given, Local) else None

    def running_url(self) -> str | None:
        """Return the URL of the gateway of `running()`."""
        record = self.running()
        return None if record is None else record.url

    def unreachable_advice(self, endpoint: GatewayEndpoint) -> str:
        """Return why this URL was tried, at which nothing listens, and what helps; reads the platform's record."""
        of_environment = endpoint.source == "environment"
        if not endpoint.is_loopback or not self.is_local:
            return f"; {URL_VARIABLE} names it" if of_environment else ""
        up, port = self.running_url(), endpoint.port
        if up is not None and urlsplit(up).port == port:
            return "; the platform of this machine is up, but its gateway does not listen: `segserve logs` shows why"
        if up is not None:
            way = f"unset {URL_VARIABLE}" if of_environment else "leave out the URL"
            return f"; the platform of this machine is at {up}: {way} to use it"
        start = "`segserve up` starts it"
        if not all(map(find_spec, NEEDED_BY_UP)):
            start += " after pip install 'segserve[local]'"
        down = f"no platform is up on this machine: {start}"
        if endpoint.source != "default":
            return f"; {URL_VARIABLE} names it; {down}" if of_environment else f"; {down}"
        ways = f"(Client(url), {URL_VARIABLE}, `--url`)"
        return f"; it is the default, because {URL_VARIABLE} is not set and {down}, or name a gateway {ways}"

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()
