"""The port to a platform, implemented by this machine and by clusters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from segserve_operator.api.resources import Resource

Json: TypeAlias = dict[str, Any]

MODEL: Final = "SegmentationModel"
POOL: Final = "TritonPool"
ROLLOUT: Final = "SegmentationRollout"
_NOT_APPLIED: Final = ("status",)


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


@dataclass(frozen=True, slots=True)
class ParsedResource:
    """One resource, typed and as written; relative addresses are relative to `folder`."""

    resource: Resource
    value: Json
    source: str
    folder: Path

    @property
    def title(self) -> str:
        """Kind and name as commands print them."""
        return f"{self.resource.kind.lower()}/{self.resource.metadata.name}"

    def complete(self) -> Json:
        """Return the manifest with all defaults and absolute addresses, without status."""
        manifest = {key: value for key, value in self.resource.to_dict().items() if key not in _NOT_APPLIED}
        manifest["metadata"] = {key: value for key, value in manifest["metadata"].items() if value}
        second = manifest["spec"].get("instances") or {}
        for named in (manifest["spec"].get("artifact"), manifest["spec"].get("golden"), second.get("artifact")):
            _make_absolute(named, self.folder)
        return manifest


@dataclass(frozen=True, slots=True)
class LogRequest:
    """The logs to show: those of the model `name` and the `container` triton or agent, or all for None. `lines` is per
    log.
    """

    name: str | None = None
    container: str | None = None
    previous: bool = False
    follow: bool = False
    lines: int = 50


@dataclass(frozen=True, slots=True)
class DoctorCheck:
    """One requirement of a platform: its name, what was found, and advice if it is not met.

    `fix` is a command that fixes it, if there is one.
    """

    what: str
    good: bool
    seen: str
    advice: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class PlatformVersion:
    """A platform that is up: where it is, its URL, and the version of segserve there ("" if that cannot be seen)."""

    place: str
    url: str
    version: str


class Platform(Protocol):
    """A place where resources are stored and served. Requests that fail raise a `ControlError` that says what helps."""

    def apply(self, resources: Sequence[ParsedResource], *, force: bool = False) -> list[str]:
        """Create or change all resources or none; return for each: created, configured or unchanged.

        `force` takes over fields that another tool has set, if the platform tracks field ownership.
        """
        ...

    def check_namespace(self, resources: Iterable[ParsedResource]) -> None:
        """Raise if a resource belongs to another namespace than the platform's."""
        ...

    def delete(self, kind: str, name: str) -> str:
        """Request the deletion of a resource and return its outcome; raises `NotFoundError`."""
        ...

    def runs(self) -> bool:
        """Return whether a platform runs that carries out requests, so that waiting makes sense."""
        ...

    def version(self) -> PlatformVersion | None:
        """Return the version of the platform, or None if none is up."""
        ...

    def models(self) -> list[Json]:
        """Return all models, sorted by name."""
        ...

    def model(self, name: str) -> Json:
        """Return one model; raises `NotFoundError`."""
        ...

    def find(self, kind: str, name: str) -> Json | None:
        """Return a model or pool, or None if it does not exist."""
        ...

    def pools(self) -> list[Json]:
        """Return all pools, sorted by name."""
        ...

    def pool(self, name: str) -> Json:
        """Return one pool; raises `NotFoundError`."""
        ...

    def rollouts(self) -> list[Json]:
        """Return the records of rollouts as resources, sorted by name."""
        ...

    def rollout(self, name: str) -> Json | None:
        """Return the record of a rollout, or None if it does not exist."""
        ...

    def chunks(self, rollout: str, count: int) -> list[str]:
        """Return the first `count` chunks of a record's oldest evidence, packed; [] if any of them is missing."""
        ...

    def bundle(self, rollout: str) -> bytes | None:
        """Return the bundle of a rollout that was rolled back, as .tar.gz; None if there is none."""
        ...

    def annotate(self, kind: str, name: str, annotations: Mapping[str, str]) -> None:
        """Set annotations of a resource and keep its others; raises `NotFoundError`."""
        ...

    def user(self) -> str:
        """Return the name of the user who sends the requests; empty if the platform does not know it."""
        ...

    def states(self, kind: str, name: str) -> Iterator[Json | None]:
        """Yield a resource now, after each change and at least every second, without end; None if it does not exist."""
        ...

    def logs(self, request: LogRequest) -> Iterator[str]:
        """Yield log lines, each with its origin; without end if they are followed."""
        ...

    def gateway(self, model: str) -> AbstractContextManager[str | None]:
        """Make the gateway of a model reachable inside the block; yields its URL, or None for the default URL."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...

    def checks(self) -> Iterator[DoctorCheck]:
        """Yield the checks of the platform's requirements, in the order in which to fix them."""
        ...


def _make_absolute(named: dict[str, Any] | None, folder: Path) -> None:
    if named is not None and not urlsplit(named["uri"]).scheme:
        named["uri"] = (folder / named["uri"]).resolve().as_uri()
