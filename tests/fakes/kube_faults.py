"""Faults in front of an API: errors, hangs and deaths at chosen calls, before or after they took place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from fakes.kube_fields import Json
from segserve_common.api_errors import ApiError, UnavailableError
from segserve_common.kube.kinds import Kind
from segserve_operator.adapters.kube.api import Api

WRITES = ("create", "apply", "patch", "status", "delete")
READS = ("has", "list", "versions", "get")

Answer = TypeVar("Answer")


class Crash(BaseException):
    """The process dies here."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: its number among all, what for, and the object's name (empty for lists)."""

    number: int
    verb: str
    kind: Kind
    name: str = ""

    @property
    def writes(self) -> bool:
        """Whether it changes anything."""
        return self.verb in WRITES


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, from the `nth` fitting call on for so many `times` (None: always), until a time if one is given.

    It is about objects whose name contains `part`. `error` is raised, after `hang_s`; where it `landed`, the call took
    place and only its answer is lost. `verb` is one of `READS` and `WRITES`, or "read" or "write" for any of these;
    None fits all, as does a `kind` of None.
    """

    error: Callable[[], BaseException] = lambda: UnavailableError("injected: no answer")
    verb: str | None = None
    kind: Kind | None = None
    part: str = ""
    nth: int = 1
    times: int | None = 1
    landed: bool = False
    hang_s: float = 0.0
    until: float = float("inf")

    def fits(self, call: Call) -> bool:
        """Return whether it is about such a call."""
        verbs = (None, call.verb, "write" if call.writes else "read")
        return self.verb in verbs and self.kind in (None, call.kind) and self.part in call.name


def crash_at(write: int, *, after: bool = False) -> Fault:
    """Return the death of the process before or after its n-th write."""
    return Fault(Crash, verb="write", nth=write, landed=after)


def refusal(error: type[ApiError], *, retry_after_s: float = 0.0) -> Callable[[], ApiError]:
    """Return what makes such errors."""
    return lambda: error(f"injected: {error.__name__}", retry_after_s=retry_after_s)


class Faulty:
    """Implements `Api` by another one, with faults; counts the writes that were tried and keeps all calls."""

    def __init__(
        self,
        api: Api,
        *faults: Fault,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.calls: list[Call] = []
        self._api, self._sleep, self._clock = api, sleep, clock
        self._faults = [*faults]
        self._seen = [0 for _ in faults]

    @property
    def writes(self) -> int:
        """The number of writes that were tried."""
        return len(self.sorts_of_writes)

    @property
    def sorts_of_writes(self) -> list[tuple[str, str]]:
        """What each write that was tried does to what kind of object."""
        return [(call.verb, call.kind.plural) for call in self.calls if call.writes]

    def add(self, fault: Fault) -> None:
        """Have one more go wrong; its calls are counted from now on."""
        self._faults.append(fault)
        self._seen.append(0)

    def heal(self) -> None:
        """Have nothing go wrong from now on."""
        self._faults.clear()
        self._seen.clear()

    async def has(self, kind: Kind) -> bool:
        return await self._do("has", kind, "", lambda: self._api.has(kind))

    async def list(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> list[Json]:
        return await self._do("list", kind, "", lambda: self._api.list(kind, namespace, labels))

    async def each(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> AsyncIterator[Json]:
        for item in await self.list(kind, namespace, labels):
            yield item

    async def versions(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str]
    ) -> dict[tuple[str, str], str]:
        return await self._do("versions", kind, "", lambda: self._api.versions(kind, namespace, labels))

    async def get(self, kind: Kind, namespace: str, name: str) -> Json:
        return await self._do("get", kind, name, lambda: self._api.get(kind, namespace, name))

    async def create(self, kind: Kind, namespace: str, manifest: Json) -> Json:
        name = str(manifest["metadata"]["name"])
        return await self._do("create", kind, name, lambda: self._api.create(kind, namespace, manifest))

    async def apply(self, kind: Kind, namespace: str, manifest: Json) -> Json:
        name = str(manifest["metadata"]["name"])
        return await self._do("apply", kind, name, lambda: self._api.apply(kind, namespace, manifest))

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Json, *, status: bool = False) -> Json:
        verb = "status" if status else "patch"
        return await self._do(verb, kind, name, lambda: self._api.patch(kind, namespace, name, patch, status=status))

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str | None = None) -> bool:
        return await self._do("delete", kind, name, lambda: self._api.delete(kind, namespace, name, uid=uid))

    async def _do(self, verb: str, kind: Kind, name: str, make: Callable[[], Awaitable[Answer]]) -> Answer:
        call = Call(len(self.calls) + 1, verb, kind, name)
        self.calls.append(call)
        fault = self._due(call)
        if fault is None:
            return await make()
        if fault.landed:
            await make()
        if fault.hang_s:
            await self._sleep(fault.hang_s)
        raise fault.error()

    def _due(self, call: Call) -> Fault | None:
        """Count the call for every fault that it fits, and return the first that strikes."""
        due = None
        for index, fault in enumerate(self._faults):
            if not fault.fits(call):
                continue
            self._seen[index] += 1
            past = self._seen[index] - fault.nth
            strikes = past >= 0 and (fault.times is None or past < fault.times) and self._clock() < fault.until
            due = due or (fault if strikes else None)
        return due
