"""The selection of a platform: the default one, and opening it, at once or on first use."""

from __future__ import annotations

import contextlib
import os
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import urlsplit

from segserve.calls.endpoint import URL_VARIABLE, GatewayEndpoint
from segserve_common.errors import SegserveError
from segserve_common.platform_record import RECORD_FILE, STATE_VARIABLE, read_record, state_folder
from segserve_platform.platforms.errors import needs
from segserve_platform.platforms.port import Cluster, Json, Local, Platform, PlatformRef

if TYPE_CHECKING:
    from segserve_common.platform_record import PlatformRecord
    from segserve_platform.platforms.local import LocalPlatform

NEEDED_BY_UP: Final = ("numba", "onnxruntime", "psutil")
"""Modules of the extra `local`, without which a platform does not start."""


def open_platform(ref: PlatformRef | None = None) -> Platform:
    """Return the platform of `ref`, or of `default_platform_ref()` for None. Connects on the first call.

    Raises `NoPlatformError` if the kubeconfig does not select a cluster, and `MissingExtraError` if the extra `local`
    or `cluster` is not installed.
    """
    ref = default_platform_ref() if ref is None else ref
    if isinstance(ref, Local):
        from segserve_platform.platforms.local import LocalPlatform

        return LocalPlatform(ref)
    with needs("cluster"):
        from segserve_platform.platforms.cluster.platform import ClusterPlatform

    return ClusterPlatform.connect(ref)


def default_platform_ref() -> PlatformRef:
    """Return this machine if `SEGSERVE_STATE` is set or a platform is up here, else the kube context.

    Without a kubeconfig, return this machine.
    """
    return Local() if _is_local_named() or running_platform() is not None or not _is_cluster_named() else Cluster()


def _is_local_named() -> bool:
    return bool(os.environ.get(STATE_VARIABLE))


def running_platform(place: Local | None = None) -> PlatformRecord | None:
    """Return the record of the platform that runs on this machine, or None; needs no extra."""
    root = state_folder() if place is None or place.state is None else Path(place.state)
    return read_record(root / RECORD_FILE)


def _is_cluster_named() -> bool:
    named = os.environ.get("KUBECONFIG", "").strip(os.pathsep)
    in_a_pod = bool(os.environ.get("KUBERNETES_SERVICE_HOST"))
    return bool(named) or in_a_pod or Path("~/.kube/config").expanduser().is_file()


PlatformLike: TypeAlias = "Local | Cluster | Platform | None"
"""A platform or a reference to one; None means `default_platform_ref()`, as for the command line."""


class LazyPlatform:
    """A platform that is opened by the first call, and reopened by the first one after `close`. Thread-safe."""

    def __init__(self, platform: PlatformLike = None) -> None:
        self.given = platform
        self._opened: Platform | None = None
        self._lock = threading.Lock()

    def platform(self) -> Platform:
        """Return the platform; raises as `open_platform` does."""
        with self._lock:
            if self._opened is None:
                given = self.given
                self._opened = open_platform(given) if given is None or isinstance(given, Local | Cluster) else given
            return self._opened

    def local_models(self, port: int) -> list[Json]:
        """Return the models of this machine's platform if its gateway has this port; otherwise none, without an error.

        Only files are read.
        """
        with contextlib.suppress(SegserveError, OSError, ImportError):
            platform = self._local()
            version = None if platform is None else platform.version()
            if platform is not None and version is not None and urlsplit(version.url).port == port:
                return platform.models()
        return []

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

    def _local(self) -> LocalPlatform | None:
        if not self.is_local:
            return None
        from segserve_platform.platforms.local import LocalPlatform

        return LocalPlatform(self.given if isinstance(self.given, Local) else None)

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()
