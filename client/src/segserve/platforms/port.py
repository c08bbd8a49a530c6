"""The port to a platform: what the machine's own one and a cluster both can do."""

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
    """The platform of this machine; `state` is its folder, where it is not that of `SEGSERVE_STATE` or the usual."""

    state: Path | None = None


@dataclass(frozen=True, slots=True)
class Cluster:
    """A namespace of a cluster; what is None is as kubectl has it: kubeconfig, its context, that one's namespace."""

    context: str | None = None
    namespace: str | None = None
    kubeconfig: Path | None = None


PlatformRef: TypeAlias = Local | Cluster


@dataclass(frozen=True, slots=True)
class ParsedResource:
    """One resource: typed, and as it was written; `folder` is where its relative addresses begin."""

    resource: Resource
    value: Json
    source: str
    folder: Path

    @property
    def title(self) -> str:
        """Kind and name as commands print them."""
        return f"{self.resource.kind.lower()}/{self.resource.metadata.name}"

    def complete(self) -> Json:
        """Return the manifest with all defaults, and addresses that do not depend on a folder."""
        manifest = {key: value for key, value in self.resource.to_dict().items() if key not in _NOT_APPLIED}
        manifest["metadata"] = {key: value for key, value in manifest["metadata"].items() if value}
        second = manifest["spec"].get("instances") or {}
        for named in (manifest["spec"].get("artifact"), manifest["spec"].get("golden"), second.get("artifact")):
            _make_absolute(named, self.folder)
        return manifest


@dataclass(frozen=True, slots=True)
class LogRequest:
    """Which logs to show: of all where `name` is None; `container` is triton or agent, both where it is None."""

    name: str | None = None
    container: str | None = None
    previous: bool = False
    follow: bool = False
    lines: int = 50


@dataclass(frozen=True, slots=True)
class DoctorCheck:
    """One thing that a platform needs: what it is, what was seen, and what to do where it is not good.

    `fix` is a command that mends it, where there is one.
    """

    what: str
    good: bool
    seen: str
    advice: str = ""
    fix: str = ""


class Platform(Protocol):
    """Resources and what runs for them. What cannot be done raises a `ControlError` that says what helps."""

    def apply(self, resources: Sequence[ParsedResource], *, force: bool = False) -> list[str]:
        """Create or change resources, all or none; return what became of each: created, configured or unchanged.

        `force` takes over fields that another tool has set, where platforms keep book of that.
        """
        ...

    def check_namespace(self, resources: Iterable[ParsedResource]) -> None:
        """Raise where one of them is of another place than this platform's."""
        ...

    def delete(self, kind: str, name: str) -> str:
        """Ask for the deletion of a resource, and return what becomes of it; an unknown one is an error."""
        ...

    def runs(self) -> bool:
        """Return whether something runs that carries out what is asked, so that waiting for it makes sense."""
        ...

    def models(self) -> list[Json]:
        """Return all models by name."""
        ...

    def model(self, name: str) -> Json:
        """Return one model; an unknown one is an error."""
        ...

    def find(self, kind: str, name: str) -> Json | None:
        """Return a model or pool; None where there is none (any more)."""
        ...

    def pools(self) -> list[Json]:
        """Return all pools by name."""
        ...

    def pool(self, name: str) -> Json:
        """Return one pool; an unknown one is an error."""
        ...

    def rollouts(self) -> list[Json]:
        """Return the records of rollouts by name, as resources."""
        ...

    def rollout(self, name: str) -> Json | None:
        """Return the record of a rollout; None where there is none (yet, or any more)."""
        ...

    def chunks(self, rollout: str, count: int) -> list[str]:
        """Return the first `count` chunks of a record's oldest evidence, packed; none where any of them is lost."""
        ...

    def bundle(self, rollout: str) -> bytes | None:
        """Return what was kept of a rollout that was rolled back, as .tar.gz; None where nothing is kept."""
        ...

    def annotate(self, kind: str, name: str, annotations: Mapping[str, str]) -> None:
        """Set annotations of a resource; its others stay. An unknown resource is an error."""
        ...

    def states(self, kind: str, name: str) -> Iterator[Json | None]:
        """Yield a resource as it is now, and again after each change and at least every second; None is gone."""
        ...

    def logs(self, request: LogRequest) -> Iterator[str]:
        """Yield lines of logs, each with its origin; without an end where they are followed."""
        ...

    def gateway(self, model: str) -> AbstractContextManager[str | None]:
        """Make the gateway of a model reachable for the time of the block; None where it is at the usual address."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...

    def checks(self) -> Iterator[DoctorCheck]:
        """Examine what the platform needs, in the order in which to mend it."""
        ...


def _make_absolute(named: dict[str, Any] | None, folder: Path) -> None:
    if named is not None and not urlsplit(named["uri"]).scheme:
        named["uri"] = (folder / named["uri"]).resolve().as_uri()
