"""The platform behind a client by name, and whether that of this machine runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from segserve_common.platform_record import RECORD_FILE, read_record, state_folder

if TYPE_CHECKING:
    from segserve_common.platform_record import PlatformRecord


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


def running_platform(place: Local | None = None) -> PlatformRecord | None:
    """Return the record of the platform that runs on this machine, or None; needs no extra."""
    root = state_folder() if place is None or place.state is None else Path(place.state)
    return read_record(root / RECORD_FILE)
