"""A rollout in memory: a model that is served, callers' requests, and copies of them in Shadow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

import numpy as np

from fakes.platform import World, assigned
from segserve_builder.agent.protocol import AssignedModel
from segserve_operator.api.rollout_policy import ErrorRateGate, LatencyGate, RolloutPolicy, Shadow, Slo
from segserve_operator.core.evidence import EDGES_MS, STABLE, EvidenceWindow
from segserve_operator.core.gates.checks import Check, CheckResult, ProbeCounts
from segserve_operator.core.rollout.phases import ENDED
from segserve_operator.core.rollout.record import Record, RolloutState
from segserve_operator.core.statistics.past import StablePast

FIRST, SECOND, THIRD = (assigned("coins", network) for network in "123")
POLICY = RolloutPolicy(
    gates=(ErrorRateGate(), LatencyGate()),
    bake_time=timedelta(seconds=30),
    deadline=timedelta(minutes=30),
    shadow=Shadow(enabled=False),
)


@dataclass
class Rollout:
    """A model that is served, requests that come to it, and a change of it."""

    world: World = field(default_factory=World)
    requests_per_s: float = 50.0
    errors: Mapping[str, float] = field(default_factory=dict)
    """The share of requests that fails, by revision."""
    slow_ms: Mapping[str, float] = field(default_factory=dict)
    copied_errors: Mapping[str, float] | None = None
    """The share of copies that fails, by revision; as of callers' requests if it is None."""
    disagreement: float | None = 0.0
    """How much the answers of the candidate differ from those of stable, 0 to 1; None: they are not compared."""
    """What comes of asking the candidate alone, as soon as the gateway is told to."""
    compares: bool = True
    """Whether the gateway has a comparator."""
    failed: dict[str, int] = field(default_factory=dict)
    served: set[str] = field(default_factory=set)
    """Revisions whose answers callers got."""
    _owed: dict[tuple[str, str], float] = field(default_factory=dict)

    async def begin(
        self, policy: RolloutPolicy = POLICY, told: AssignedModel = SECOND, *, watched: bool | None = None
    ) -> None:
        """Let a model be served, for half an hour of requests if it was `watched`, and be changed.

        By default it was where the policy asks for Shadow, which waits for what is known of stable.
        """
        self.world.store.apply(FIRST, policy=policy, slo=Slo())
        await self.world.passes()
        asks = policy.shadow is not None and policy.shadow.enabled
        if asks if watched is None else watched:
            cache = self.world.rollout_cache
            cache.watches = {"coins": replace(cache.watches["coins"], past=self._past())}
        self.world.store.apply(told, policy=policy, slo=Slo())

    def _past(self) -> StablePast:
        past, window = StablePast.none(), EvidenceWindow.nothing()
        sent = 15.0 * self.requests_per_s
        latencies = window.latencies.copy()
        latencies[STABLE, np.searchsorted(EDGES_MS, 20.0, side="right")] = sent
        for _ in range(120):
            past = past.added(
                replace(window, seconds=np.array(15.0), requests=np.array([sent, 0.0]), latencies=latencies)
            )
        return past

    async def second(self) -> None:
        """Let a second's requests come, and one pass be made."""
        for group, weight in self.world.traffic.groups_of("coins").items():
            revision = FIRST.revision if group == "main" else group
            sent = self._whole((group, "sent"), self.requests_per_s * weight / 100)
            failed = min(self._whole((group, "failed"), sent * self.errors.get(revision, 0.0)), sent)
            self.failed[revision] = self.failed.get(revision, 0) + failed
            self.world.traffic.count("coins", group, sent, failed, self.slow_ms.get(revision, 20.0))
            self.served.add(revision)
        self._copies()
        await self.world.passes(1)

    def _copies(self) -> None:
        mirror = self.world.traffic.mirror("coins")
        if mirror is None or not self.compares:
            return
        rate = min(self.requests_per_s * mirror.percent / 100, mirror.requests_per_s)
        asked, wrong = (
            self._whole(("copies", "sent"), rate),
            self.errors if self.copied_errors is None else self.copied_errors,
        )
        failed = min(self._whole(("copies", "failed"), asked * wrong.get(mirror.candidate, 0.0)), asked)
        latencies_ms = (self.slow_ms.get(FIRST.revision, 20.0), self.slow_ms.get(mirror.candidate, 20.0))
        self.world.traffic.compare("coins", (asked - failed, failed, 0, 0), latencies_ms, self.disagreement)

    async def until(self, done: Callable[[RolloutState], bool], seconds: int = 1200) -> RolloutState:
        for _ in range(seconds):
            await self.second()
            if self.state is not None and done(self.state):
                return self.state
        raise AssertionError(f"after {seconds} s: {self.state}")

    async def end(self, seconds: int = 1200) -> RolloutState:
        return await self.until(lambda state: state.phase in ENDED, seconds)

    def _whole(self, key: tuple[str, str], amount: float) -> int:
        owed = self._owed.get(key, 0.0) + amount
        self._owed[key] = owed - int(owed)
        return int(owed)

    @property
    def state(self) -> RolloutState | None:
        return self.world.store.objects["coins"].status.rollout

    @property
    def record(self) -> Record:
        return self.world.rollout_cache.records[self.state.rollout]

    def ask(self, verb: str, value: str) -> None:
        known = self.world.store.objects["coins"]
        annotations = {**known.annotations, f"segserve.dev/{verb}": value}
        self.world.store.objects["coins"] = replace(known, annotations=annotations)


def answers(_: Check) -> CheckResult:
    return ProbeCounts((40, 40), (0, 0), done=False)


def fails(_: Check) -> CheckResult:
    return ProbeCounts((10, 10), (0, 10), done=False)
