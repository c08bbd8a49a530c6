"""What readers of a fake API server see: events, late or never, and reads of a while ago."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fakes.kube_fields import Json, copied
from fakes.kube_rules import named, selected, versions_of
from segserve_common.api_errors import NotFoundError
from segserve_common.kube.kinds import Kind

if TYPE_CHECKING:
    from fakes.kube import FakeKube

OnEvent = Callable[[str, Kind, Json], None]


@dataclass(eq=False)
class Watch:
    """What one reader is told. While `silent`, nothing, and it will never hear of it unless it lists again."""

    kube: FakeKube
    callback: OnEvent
    kinds: frozenset[Kind] | None
    delay_s: float
    silent: bool = False
    _waiting: list[tuple[float, str, Kind, Json]] = field(default_factory=list)

    def put(self, type_: str, kind: Kind, item: Json) -> None:
        """Note an event."""
        if self.silent or (self.kinds is not None and kind not in self.kinds):
            return
        self._waiting.append((self.kube.clock() + self.delay_s, type_, kind, item))
        self.deliver()

    def deliver(self) -> None:
        """Hand out what is due, in order."""
        while self._waiting and self._waiting[0][0] <= self.kube.clock():
            _, type_, kind, item = self._waiting.pop(0)
            self.callback(type_, kind, copied(item))

    def relist(self) -> list[tuple[Kind, Json]]:
        """Return all that there is now; what waits is older than that and dropped."""
        self._waiting.clear()
        return [(kind, item) for kind, item in self.kube.everything() if self.kinds is None or kind in self.kinds]

    def close(self) -> None:
        """Hear no more."""
        self.kube.watches.remove(self)


class Lagging:
    """Implements `Api`: reads show what there was `lag_s` ago; writes meet the newest."""

    def __init__(self, kube: FakeKube, lag_s: float) -> None:
        self._kube = kube
        self.lag_s = lag_s
        self.has, self.create, self.apply = kube.has, kube.create, kube.apply
        self.patch, self.delete = kube.patch, kube.delete

    async def list(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> list[Json]:
        """Return what there was."""
        await asyncio.sleep(0)
        then = self._kube.as_of(self._kube.clock() - self.lag_s)
        return selected([item for key, item in sorted(then.items(), key=_order) if key[0] == kind], namespace, labels)

    async def each(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> AsyncIterator[Json]:
        """Yield what there was."""
        for item in await self.list(kind, namespace, labels):
            yield item

    async def versions(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str]
    ) -> dict[tuple[str, str], str]:
        """Return what there was."""
        return versions_of(await self.list(kind, namespace, labels))

    async def get(self, kind: Kind, namespace: str, name: str) -> Json:
        """Return what there was."""
        await asyncio.sleep(0)
        key = (kind, namespace, name)
        then = self._kube.as_of(self._kube.clock() - self.lag_s)
        if key not in then:
            raise NotFoundError(f"{named(key)} not found")
        result: Json = copied(then[key])
        return result


def _order(entry: tuple[tuple[Kind, str, str], Json]) -> tuple[str, str]:
    return entry[0][1:]
