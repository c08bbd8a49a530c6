"""Which operator may write: a Lease that one process holds, and an API that refuses the writes of all others."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeVar

from segserve_common.kube.errors import ApiError, ConflictError, NotFoundError, UnavailableError
from segserve_common.kube.kinds import LEASES, Json, Kind
from segserve_operator.adapters.kube.api import Api, NotLeaderError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DURATION_S: Final = 15.0
"""A candidate takes the lease when it has seen no change of it for so long."""

HELD_S: Final = 10.0
"""A holder trusts in its lease for so long from the start of its last renewal; the rest is for writes under way."""

RENEW_S: Final = 5.0
RETRY_S: Final = 2.0
ATTEMPT_S: Final = 4.0
"""One try takes no longer, so that there is a second one within `HELD_S`."""

_LOG = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


def boot_clock() -> float:
    """Return seconds that go on while the process is stopped or the machine sleeps, and never jump."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _nothing() -> None:
    """Follows nothing."""


class LeaderLease:
    """One process's part in the election by a `coordination.k8s.io` Lease.

    `identity` must be of one process at a time: a process that finds its own in the record goes on at once. Times in
    the record are for people; what counts is how long this process has seen the record unchanged, by its own clock.
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
        wall: Callable[[], datetime] = _utc_now,
        jitter: Callable[[], float] = random.random,
        on_acquired: Callable[[], None] = _nothing,
    ) -> None:
        self._api, self._namespace, self._name, self._identity = api, namespace, name, identity
        self._clock, self._sleep, self._wall, self._jitter = clock, sleep, wall, jitter
        self._on_acquired = on_acquired
        self._renewed_at = float("-inf")
        self._ours: Json | None = None  # the record as our last write left it, while nobody is known to have changed it
        self._seen: Json = {}
        self._seen_at = float("-inf")

    def is_held(self) -> bool:
        """Return whether this process may write now."""
        return self._clock() < self._renewed_at + HELD_S

    def remaining_s(self) -> float:
        """Return how long nobody else can take the lease; negative where somebody could have."""
        return self._renewed_at + DURATION_S - self._clock()

    async def run(self) -> None:
        """Acquire and renew for ever. To step down, end the passes, cancel this, and `release`."""
        while True:
            held = await self.attempt()
            await self._sleep(RENEW_S if held else RETRY_S * (0.8 + 0.4 * self._jitter()))

    async def attempt(self) -> bool:
        """Try once to acquire or to renew; return whether that worked."""
        was_held = self.is_held()
        try:
            async with asyncio.timeout(ATTEMPT_S):
                took = await self._take()
        except (ApiError, TimeoutError) as error:
            self._ours = None
            _LOG.warning("the lease %s/%s was not renewed: %r", self._namespace, self._name, error)
            return False
        if took and not was_held:
            _LOG.info("%s leads: it holds the lease %s/%s", self._identity, self._namespace, self._name)
            self._on_acquired()
        return took

    async def release(self) -> None:
        """Hold no more, and let a successor start at once; where the server does not answer, it starts later."""
        self._renewed_at = float("-inf")
        try:
            record = self._ours or await self._api.get(LEASES, self._namespace, self._name)
            if _holder(record) == self._identity:
                await self._write(record, {"holderIdentity": "", "leaseDurationSeconds": 1})
        except ApiError as error:
            _LOG.warning("the lease %s/%s was not released: %s", self._namespace, self._name, error)
        finally:
            self._ours = None

    async def _take(self) -> bool:
        record = self._ours
        if record is None:
            try:
                record = await self._api.get(LEASES, self._namespace, self._name)
            except NotFoundError:
                return await self._create()
            if not self._is_free(record):
                return False
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
        """Note the record, and return whether it is ours or nobody's, or has not changed for as long as it says."""
        spec = record.get("spec") or {}
        if spec != self._seen:
            self._seen, self._seen_at = spec, self._clock()
        lasts_s = max(DURATION_S, float(spec.get("leaseDurationSeconds") or 0))
        return _holder(record) in ("", self._identity) or self._clock() >= self._seen_at + lasts_s

    def _claim(self, record: Json) -> Json:
        """Return what makes the lease of this record ours from now on."""
        spec = record.get("spec") or {}
        now = _stamp(self._wall())
        if now == spec.get("renewTime"):
            now = _stamp(self._wall() + timedelta(microseconds=1))  # others have to see a change
        claim: Json = {"holderIdentity": self._identity, "leaseDurationSeconds": int(DURATION_S), "renewTime": now}
        if _holder(record) != self._identity:
            claim |= {"acquireTime": now, "leaseTransitions": spec.get("leaseTransitions", -1) + 1}
        return claim

    async def _write(self, record: Json, spec: Json) -> Json:
        # Whoever changed the record in between wins.
        version = record["metadata"]["resourceVersion"]
        patch = {"metadata": {"resourceVersion": version}, "spec": spec}
        return await self._api.patch(LEASES, self._namespace, self._name, patch)


def _stamp(at: datetime) -> str:
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _holder(record: Json) -> str:
    return str((record.get("spec") or {}).get("holderIdentity") or "")


class FencedApi:
    """Implements `Api`: reads pass; a write needs the lease, and is given up before another process could take it."""

    def __init__(self, api: Api, lease: LeaderLease) -> None:
        self._api, self._lease = api, lease
        self.has, self.list, self.versions, self.get = api.has, api.list, api.versions, api.get

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

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str | None = None) -> None:
        """Delete as the leader."""
        await self._write(f"delete {kind.plural}/{name}", lambda: self._api.delete(kind, namespace, name, uid=uid))

    async def _write(self, what: str, make: Callable[[], Awaitable[_Answer]]) -> _Answer:
        if not self._lease.is_held():
            raise NotLeaderError(f"{what}: this process does not hold the operator's lease")
        try:
            async with asyncio.timeout(self._lease.remaining_s()):
                return await make()
        except TimeoutError:
            raise UnavailableError(f"{what}: no answer for as long as the lease is sure") from None
