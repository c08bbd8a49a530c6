"""The port between commands and a platform: what the machine's own one and a cluster both can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from rich.console import RenderableType

Json: TypeAlias = dict[str, Any]

MODEL: Final = "SegmentationModel"
POOL: Final = "TritonPool"
ROLLOUT: Final = "SegmentationRollout"


@dataclass(frozen=True, slots=True)
class LogRequest:
    """Which logs to show: of all where `name` is None; `container` is triton or agent, both where it is None."""

    name: str | None = None
    container: str | None = None
    previous: bool = False
    follow: bool = False
    lines: int = 50


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a platform needs: what it is, what was seen, and what to do where it is not good."""

    what: str
    good: bool
    seen: str
    advice: str = ""


class Platform(Protocol):
    """Resources and what runs for them. What cannot be done raises a `CommandError` that says what helps."""

    def apply(self, files: Iterable[Path], *, force: bool = False) -> list[tuple[str, str]]:
        """Create or change the resources of files, all or none; return (`kind/name`, what became of it) of each.

        `force` takes over fields that another tool has set, where platforms keep book of that.
        """
        ...

    def named(self, files: Iterable[Path]) -> list[tuple[str, str]]:
        """Return (kind, name) of the resources of files, as this platform has them."""
        ...

    def delete(self, kind: str, name: str) -> str:
        """Ask for the deletion of a resource, and return what becomes of it; an unknown one is an error."""
        ...

    def deletes(self) -> bool:
        """Return whether deletions are carried out now, so that waiting for them makes sense."""
        ...

    def models(self) -> list[Json]:
        """Return all models by name."""
        ...

    def model(self, name: str) -> Json:
        """Return one model; an unknown one is an error."""
        ...

    def pools(self) -> list[Json]:
        """Return all pools by name."""
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

    def annotate(self, kind: str, name: str, annotations: Mapping[str, str]) -> None:
        """Set annotations of a resource; its others stay. An unknown resource is an error."""
        ...

    def states(self, kind: str, name: str) -> Iterator[Json | None]:
        """Yield a resource as it is now, and again after each change and at least every second; None is gone."""
        ...

    def pictures(self, name: str | None, *, wide: bool) -> Iterator[RenderableType]:
        """Yield what `get -w` shows, of one model or all, now and after changes, at most four times a second."""
        ...

    def description(self, name: str) -> str:
        """Return all that is known of a model, as text."""
        ...

    def logs(self, request: LogRequest) -> Iterator[str]:
        """Yield lines of logs, each with its origin; without an end where they are followed."""
        ...

    def gateway(self, model: str) -> AbstractContextManager[str | None]:
        """Make the gateway of a model reachable for the time of the block; None where it is at the usual address."""
        ...

    def checks(self) -> Iterator[Check]:
        """Examine what the platform needs, in the order in which to mend it."""
        ...
