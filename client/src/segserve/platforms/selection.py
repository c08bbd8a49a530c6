"""The selection of a platform: the default one, and opening it, at once or on first use."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

from segserve.platforms.errors import needs
from segserve.platforms.port import Cluster, Json, Local, Platform, PlatformRef
from segserve_common.errors import SegserveError

if TYPE_CHECKING:
    from segserve.platforms.local import LocalPlatform


def open_platform(ref: PlatformRef | None = None) -> Platform:
    """Return the platform of `ref`, or of `default_platform_ref()` for None. Connects on the first call.

    Raises `NoPlatformError` if the kubeconfig does not select a cluster, and `MissingExtraError` if the extra `local`
    or `cluster` is not installed.
    """
    ref = default_platform_ref() if ref is None else ref
    if isinstance(ref, Local):
        from segserve.platforms.local import LocalPlatform

        return LocalPlatform(ref)
    with needs("cluster"):
        from segserve.platforms.cluster.platform import ClusterPlatform

    return ClusterPlatform.connect(ref)


def default_platform_ref() -> PlatformRef:
    """Return this machine if `SEGSERVE_STATE` is set or a platform is up here, else the kube context.

    Without a kubeconfig, return this machine.
    """
    return Local() if _is_local_named() or _is_local_up() or not _is_cluster_named() else Cluster()


def _is_local_named() -> bool:
    from segserve_operator.adapters.local.files import STATE_VARIABLE

    return bool(os.environ.get(STATE_VARIABLE))


def _is_local_up() -> bool:
    from segserve_operator.adapters.local.files import StateFolder, state_folder

    state = StateFolder(state_folder())
    if not state.platform.exists():
        return False
    try:
        from segserve_operator.adapters.local.platform_record import read_platform
    except ModuleNotFoundError:
        # Without the extra `local`, this installation could not use a platform of this machine anyway.
        return False
    return read_platform(state) is not None


def _is_cluster_named() -> bool:
    named = os.environ.get("KUBECONFIG", "").strip(os.pathsep)
    in_a_pod = bool(os.environ.get("KUBERNETES_SERVICE_HOST"))
    return bool(named) or in_a_pod or Path("~/.kube/config").expanduser().is_file()


PlatformLike: TypeAlias = "Local | Cluster | Platform | None"
"""A platform or a reference to one; None means `default_platform_ref()`, as for the command line."""


class LazyPlatform:
    """A platform that is opened by the first call, and reopened by the first one after `close`. Thread-safe."""

    def __init__(self, platform: PlatformLike = None) -> None:
        self._given = platform
        self._opened: Platform | None = None
        self._lock = threading.Lock()

    def platform(self) -> Platform:
        """Return the platform; raises as `open_platform` does."""
        with self._lock:
            if self._opened is None:
                given = self._given
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

    def is_local_down(self) -> bool:
        """Return whether no platform is up on this machine, where it would be used and could be started."""
        with contextlib.suppress(SegserveError, OSError, ImportError):
            platform = self._local()
            return platform is not None and not platform.runs()
        return False

    def _local(self) -> LocalPlatform | None:
        given = Local() if self._given is None else self._given
        if not isinstance(given, Local):
            return None
        from segserve.platforms.local import LocalPlatform

        return LocalPlatform(given)

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()
