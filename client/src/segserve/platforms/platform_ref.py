"""Which platform is meant: this machine's or a cluster's, and what holds where nothing says so."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from segserve.platforms.extras import needs

if TYPE_CHECKING:
    from segserve.platforms.port import Platform


@dataclass(frozen=True, slots=True)
class Local:
    """The platform of this machine; `state` is its folder, where it is not that of `SEGSERVE_STATE` or the usual."""

    state: Path | None = None


@dataclass(frozen=True, slots=True)
class Cluster:
    """A namespace of a cluster; what is None is as kubectl has it: kubeconfig, its context, that one's namespace."""

    context: str | None = None
    namespace: str | None = None
    kubeconfig: Path | None = None


Place: TypeAlias = Local | Cluster


def open_platform(place: Place | None = None) -> Platform:
    """Return the platform of a place; None: see `default_place`. Nothing is asked of it yet.

    Raises `NoPlatformError` for a cluster that nothing names well, and `MissingExtraError` where the extra `local` or
    `cluster` is not installed.
    """
    place = default_place() if place is None else place
    if isinstance(place, Local):
        from segserve.platforms.local import LocalPlatform

        return LocalPlatform(place)
    with needs("cluster"):
        from segserve.platforms.cluster.platform import ClusterPlatform

    return ClusterPlatform.connect(place)


def default_place() -> Place:
    """Return this machine where `SEGSERVE_STATE` names its platform or one is up here, else the kube context.

    Without a kubeconfig it is this machine.
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
        from segserve_operator.local_platform.supervisor import read_platform
    except ModuleNotFoundError:
        return False
    return read_platform(state) is not None


def _is_cluster_named() -> bool:
    named = os.environ.get("KUBECONFIG", "").strip(os.pathsep)
    in_a_pod = bool(os.environ.get("KUBERNETES_SERVICE_HOST"))
    return bool(named) or in_a_pod or Path("~/.kube/config").expanduser().is_file()
