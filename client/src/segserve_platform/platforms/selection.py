"""The selection of a platform: the default one, and opening it."""

from __future__ import annotations

import os
from pathlib import Path

from segserve.platform import Cluster, Local, PlatformRef, running_platform
from segserve_common.platform_record import STATE_VARIABLE
from segserve_platform.platforms.errors import needs
from segserve_platform.platforms.port import Platform


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


def _is_cluster_named() -> bool:
    named = os.environ.get("KUBECONFIG", "").strip(os.pathsep)
    in_a_pod = bool(os.environ.get("KUBERNETES_SERVICE_HOST"))
    return bool(named) or in_a_pod or Path("~/.kube/config").expanduser().is_file()
