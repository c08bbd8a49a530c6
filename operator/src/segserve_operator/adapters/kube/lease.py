"""Leader election: a Lease that one process holds, and an `Api` that refuses the writes of all others."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeVar

from segserve_common.api_errors import ApiError, ConflictError, NotFoundError, UnavailableError
from segserve_common.kube.kinds import LEASES, Json, Kind
from segserve_operator.adapters.kube.api import Api, NotLeaderError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DURATION_S: Final = 15.0
"""Time without a change of the lease after which a candidate takes it."""

HELD_S: Final = 10.0
"""Time from the start of a renewal in which its holder may begin writes; the rest is for writes under way."""

RENEW_S: Final = 5.0
RETRY_S: Final = 2.0
ATTEMPT_S: Final = 4.0
"""Timeout of one attempt, short enough for a second one within `HELD_S`."""

SLOW_ATTEMPT_S: Final = 12.0
"""Timeout once attempts have timed out: long enough for a read and a write that take 5 s each."""

_LOG = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


def boot_clock() -> float:
    """Return seconds of a monotonic clock that also runs while the process is stopped or the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class LeaderLease:
    """A candidate in the election by a `coordination.k8s.io` Lease.

    No two processes may have the same `identity` at a time: a process that finds its own in the Lease renews it at
    once. Clocks of machines differ, so the times in the Lease are for people only; a lease has expired once this
    process has observed it unchanged for its duration, by its own clock.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        *,
        clock: Callable[[], float] = boot_clock,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        jitter: Callable[[], float] = random.random,
        on_acquired: Callable[[], None] = lambda: None,
    ) -> None:
        self._api, self._namespace, self._name, self._identity = api, namespace, name, identity
        self._clock, self._sleep, self._wall, self._jitter = clock, sleep, wall, jitter
        self._on_acquired = on_acquired
        self._renewed_at = float("-inf")
        self._ours: Json | None = None  # as our last write left it; None once another process may have changed it
        self._observed: Json = {}
        self._observed_at = float("-inf")
        self._attempt_s = ATTEMPT_S

    def is_held(self) -> bool:
        """Return whether this process may write now."""
        return self._clock() < self._renewed_at + HELD_S

    def remaining_s(self) -> float:
        """Return the seconds for which no other process can take the lease; negative if one could have."""
        return self._renewed_at + DURATION_S - self._clock()

    async def run(self) -> None:
        """Acquire and renew until cancelled. To step down, end the passes, cancel this, and `release`."""
        while True:
            began = self._clock()
            held = await self.attempt()
            # Counted from its start, or a slow server would let the lease run out between two renewals.
            renew_s = max(0.0, began + RENEW_S - self._clock())
            await self._sleep(renew_s if held else RETRY_S * (0.8 + 0.4 * self._jitter()))

    async def attempt(self) -> bool:
        """Try once to acquire or to renew the lease, and return whether this process holds it."""
        was_held, began = self.is_held(), self._clock()
        try:
            acquired = await self._take_within(self._attempt_s)
        except (ApiError, TimeoutError) as error:
            self._ours = None
            if isinstance(error, TimeoutError):
                self._attempt_s = min(2 * self._attempt_s, SLOW_ATTEMPT_S)
            _LOG.warning("the lease %s/%s was not renewed: %r", self._namespace, self._name, error)
            return False
        if self._clock() - began < ATTEMPT_S:
            self._attempt_s = ATTEMPT_S
        if acquired and not was_held and self.is_held():
            _LOG.info("%s leads: it holds the lease %s/%s", self._identity, self._namespace, self._name)
            self._on_acquired()
        # A write that took longer than the lease is held is ours, and too old to act on.
        return acquired and self.is_held()

    async def release(self) -> None:
        """Give the lease up, so that a successor need not wait for its end; errors of the API are logged."""
        self._renewed_at = float("-inf")
        try:
            record = self._ours or await self._api.get(LEASES, self._namespace, self._name)
            if _holder(record) == self._identity:
                await self._write(record, {"holderIdentity": "", "leaseDurationSeconds": 1})
        except ApiError as error:
            _LOG.warning("the lease %s/%s was not released: %s", self._namespace, self._name, error)
        finally:
            self._ours = None

    async def _take_within(self, seconds: float) -> bool:
        take, timer = asyncio.ensure_future(self._take()), asyncio.ensure_future(self._sleep(seconds))
        try:
            await asyncio.wait((take, timer), return_when=asyncio.FIRST_COMPLETED)
            if not take.done():
                raise TimeoutError(f"no answer within {seconds:g} s")
            return take.result()
        finally:
            take.cancel()
            timer.cancel()
            await asyncio.wait((take, timer))

    async def _take(self) -> bool:
        record = self._ours
        if record is None:
            try:
                record = await self._api.get(LEASES, self._namespace, self._name)
            except NotFoundError:
                return await self._create()
            if not self._is_free(record):
                return False
        # The server may store the renewal any time after this: counting from its start is safe.
        began = self._clock()
        self._ours = await self._write(record, self._claim(record))
        self._renewed_at = began
        return True

    async def _create(self) -> bool:
        began = self._clock()
        manifest = {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.name,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": self._claim({}),
        }
        try:
            self._ours = await self._api.create(LEASES, self._namespace, manifest)
        except ConflictError:
            return False
        self._renewed_at = began
        return True

    def _is_free(self, record: Json) -> bool:
        """Observe the lease, and return whether it is ours, has no holder, or has expired."""
        spec = record.get("spec") or {}
        if spec != self._observed:
            self._observed, self._observed_at = spec, self._clock()
        duration_s = max(DURATION_S, float(spec.get("leaseDurationSeconds") or 0))
        return _holder(record) in ("", self._identity) or self._clock() >= self._observed_at + duration_s

    def _claim(self, record: Json) -> Json:
        """Return the spec that makes this process the holder from now on."""
        spec = record.get("spec") or {}
        now = _stamp(self._wall())
        if now == spec.get("renewTime"):
            now = _stamp(self._wall() + timedelta(microseconds=1))  # others must observe a change
        claim: Json = {"holderIdentity": self._identity, "leaseDurationSeconds": int(DURATION_S), "renewTime": now}
        if _holder(record) != self._identity:
            claim |= {"acquireTime": now, "leaseTransitions": spec.get("leaseTransitions", -1) + 1}
        return claim

    async def _write(self, record: Json, spec: Json) -> Json:
        # With the resourceVersion as precondition, of two candidates one gets a conflict.
        version = record["metadata"]["resourceVersion"]
        patch = {"metadata": {"resourceVersion": version}, "spec": spec}
        return await self._api.patch(LEASES, self._namespace, self._name, patch)


def _stamp(at: datetime) -> str:
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _holder(record: Json) -> str:
    return str((record.get("spec") or {}).get("holderIdentity") or "")


class FencedApi:
    """Implements `Api`: reads pass; a write needs the lease, and is cancelled before another process could take it."""

    def __init__(self, api: Api, lease: LeaderLease) -> None:
        self._api, self._lease = api, lease
        self.has, self.list, self.each = api.has, api.list, api.each
        self.versions, self.get = api.versions, api.get

    async def create(self, kind: Kind, namespace: str, manifest: Json) -> Json:
        """Create as the leader."""
        return await self._write(f"create {kind.plural}", lambda: self._api.create(kind, namespace, manifest))

    async def apply(self, kind: Kind, namespace: str, manifest: Json) -> Json:
        """Apply as the leader."""
        return await self._write(f"apply {kind.plural}", lambda: self._api.apply(kind, namespace, manifest))

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Json, *, status: bool = False) -> Json:
        """Patch as the leader."""
        return await self._write(
            f"patch {kind.plural}/{name}", lambda: self._api.patch(kind, namespace, name, patch, status=status)
        )

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str | None = None) -> bool:
        """Delete as the leader."""
        return await self._write(
            f"delete {kind.plural}/{name}", lambda: self._api.delete(kind, namespace, name, uid=uid)
        )

    async def _write(self, what: str, make: Callable[[], Awaitable[_Answer]]) -> _Answer:
        if not self._lease.is_held():
            raise NotLeaderError(f"{what}: this process does not hold the operator's lease")
        try:
            async with asyncio.timeout(self._lease.remaining_s()):
                return await make()
        except TimeoutError:
            raise UnavailableError(f"{what}: no answer for as long as the lease is sure") from None
