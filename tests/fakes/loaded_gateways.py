"""Gateways of a cluster in memory whose callers ask at a rate, for servers that answer a few requests at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from fakes.cluster_world import NAMESPACE, ClusterWorld
from segserve_common.kube.kinds import PODS
from segserve_operator.adapters.kube.gateway import ClusterTraffic
from segserve_operator.core.scaling import GatewayLoad

CONCURRENCY = 4
SERVICE_S = 0.1
BEGAN_S = 1_799_999_000.0


@dataclass
class LoadedGateways:
    """Callers of one model: `per_s` requests a second, of which those wait that find no server idle.

    A request fails if the route has a server that does not exist any more, or none. `silent` gateways answer nothing.
    """

    world: ClusterWorld
    model: str
    per_s: float = 0.0
    names: tuple[str, ...] = ("gateway-0", "gateway-1")
    silent: set[str] = field(default_factory=set)
    arrived: float = 0.0
    in_flight: float = 0.0
    waiting: float = 0.0
    failed: float = 0.0
    reads: int = 0

    def attach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the operator read these gateways' totals."""

        async def loads(_: ClusterTraffic) -> dict[str, GatewayLoad | None]:
            return self.loads()

        monkeypatch.setattr(ClusterTraffic, "loads", loads)

    def loads(self) -> dict[str, GatewayLoad | None]:
        """Return the totals of now; all gateways have the same part of the requests."""
        self.reads += 1
        parts, arrived, in_flight = len(self.names), int(self.arrived), round(self.in_flight)
        return {
            name: None
            if name in self.silent
            else GatewayLoad("first", self.world.now_s, BEGAN_S, (arrived + part) // parts, (in_flight + part) // parts)
            for part, name in enumerate(self.names)
        }

    async def play(self, seconds: int, *, step_s: int = 1) -> list[int]:
        """Let seconds pass, with a look of the operator at each step, and return how many servers answered then."""
        numbers = []
        for _ in range(0, seconds, step_s):
            await self.world.turns(1, seconds_each=step_s)
            numbers.append(self.answer(step_s))
        return numbers

    def answer(self, seconds: int) -> int:
        """Let callers ask for seconds, and return how many servers answer."""
        shares = self.world.routes()[self.model]["shares"]
        hosts = {endpoint["host"] for share in shares if share["weight"] for endpoint in share["endpoints"]}
        present = {pod["status"].get("podIP") for pod in self.world.kube.all(PODS, NAMESPACE)}
        came = self.per_s * seconds
        if not hosts or not hosts <= present:
            self.failed += came
        self.arrived += came
        self.waiting += came
        answered = min(self.waiting, seconds * len(hosts) * CONCURRENCY / SERVICE_S)
        self.waiting -= answered
        self.in_flight = self.waiting + answered * SERVICE_S / seconds
        return len(hosts)
