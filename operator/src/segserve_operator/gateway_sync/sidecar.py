"""The sidecar of a gateway pod: a follower connected to Envoy, to the API server and to probes."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING, Final, TypeVar

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from segserve_builder.cluster.config_map_watch import ConfigMap, ConfigMapWatch
from segserve_builder.cluster.probe_server import ProbeResponse, ProbeServer, probe_response
from segserve_builder.cluster.report_sender import ReportSender
from segserve_common.kube.client import KubeClient
from segserve_common.kube.names import GATEWAY, reports_name
from segserve_operator.adapters.samples import wire
from segserve_operator.adapters.traffic.envoy_admin import EnvoyUnreachableError
from segserve_operator.gateway_sync.follower import Follower
from segserve_operator.gateway_sync.plan_shards import PlanShards

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from segserve_operator.gateway_sync.settings import Settings

T = TypeVar("T")
LONGEST_PASS_S: Final = 60.0
LONGEST_BUSY_S: Final = 30.0
_READY_S: Final = 1.0
_METRICS_S: Final = 8.0


async def follow(settings: Settings, client: KubeClient) -> None:
    """Keep this pod's Envoy on the plan of the API server until SIGTERM."""
    sidecar = Sidecar(settings, client)
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await sidecar.run(stop)


class Sidecar:
    """Watches and probes run in threads; all work with Envoy is done in the event loop of the constructor."""

    def __init__(self, settings: Settings, client: KubeClient) -> None:
        self._loop = asyncio.get_running_loop()
        self._traffic = settings.traffic()
        self._shards = PlanShards(settings.pool)
        self._sender = ReportSender(client, reports_name(settings.pool, GATEWAY), settings.pod)
        self.follower = Follower(self._traffic, settings.uid, self._sender.send)
        self._watch = ConfigMapWatch(client, self._shards.names, self._take)
        self._uid = settings.uid
        answers = {"/live": self._live, "/ready": self._ready, "/metrics": self._metrics}
        self.probes = ProbeServer(settings.gateway.sync_port, answers, {wire.PATH: self._counts})
        self._answered_s = float("-inf")
        self._registry, self._gauges = _gauges()

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set."""
        self.probes.start()
        self._sender.start()
        self._watch.start()
        following = asyncio.create_task(self.follower.run())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((following, stopped), return_when=asyncio.FIRST_COMPLETED)
        for task in (following, stopped):
            task.cancel()
        for end in (self._sender.stop, self._watch.stop, self.probes.stop):
            await asyncio.to_thread(end)
        if following.done() and not following.cancelled():
            following.result()

    def _take(self, name: str, config_map: ConfigMap | None) -> None:
        self._shards.take(name, config_map)
        self.follower.follow(self._shards.content)
        # If the reports were deleted, a new plan restores this one without waiting for the next check.
        self._sender.check()

    def _live(self) -> ProbeResponse:
        age_s = time.monotonic() - self.follower.health.passed_s
        return probe_response(age_s < LONGEST_PASS_S, f"the last pass was {age_s:.1f} s ago")

    def _ready(self) -> ProbeResponse:
        # An Envoy that applies a large change answers late, but serves meanwhile: it stays ready for a while.
        try:
            self._run(self._traffic.check_ready(), _READY_S)
        except EnvoyUnreachableError as error:
            return probe_response(False, str(error))
        except TimeoutError:
            busy_s = time.monotonic() - self._answered_s
            return probe_response(busy_s < LONGEST_BUSY_S, f"Envoy has not answered for {busy_s:.1f} s")
        self._answered_s = time.monotonic()
        certificates = self._traffic.certificates
        if certificates is not None and not certificates.can_serve:
            return probe_response(False, "there is no certificate that can be used; the log says why")
        followed = "the plan of the API" if self.follower.health.followed is not None else "the plan of its start"
        return probe_response(True, f"Envoy answers and follows {followed}")

    def _metrics(self) -> ProbeResponse:
        health = self.follower.health
        now_s = time.monotonic()
        values = {
            "contact": self._watch.contact_age_s(),
            "pass": now_s - health.passed_s,
            "shifts": health.shifts,
            "shift": health.followed_s,
            "refusals": health.refusals,
            "draining": health.draining,
        }
        for name, value in values.items():
            self._gauges[name].set(value)
        certificates = self._traffic.certificates
        if certificates is not None and certificates.expires_s is not None:
            self._gauges["certificate"].set(certificates.expires_s)
        try:
            self._gauges["started"].set(int(self._traffic.epoch()) / 1e9)
            of_envoy = self._run(self._traffic.metrics(), _METRICS_S)
        except (EnvoyUnreachableError, TimeoutError):
            of_envoy = b""  # our own metrics do not need Envoy
        return ProbeResponse(
            200, generate_latest(self._registry) + of_envoy, "text/plain; version=0.0.4; charset=utf-8"
        )

    def _counts(self, query: Mapping[str, list[str]]) -> ProbeResponse:
        models = query.get(wire.MODEL, [])
        if not models:
            return ProbeResponse(400, f"{wire.PATH} needs {wire.MODEL}=, once or more\n".encode())
        try:
            counts = self._run(self._traffic.count(models), wire.TIMEOUT_S)
        except (EnvoyUnreachableError, TimeoutError) as error:
            return probe_response(False, f"Envoy does not answer: {error!r}")
        return ProbeResponse(200, wire.encode(counts, uid=self._uid), "application/json")

    def _run(self, coroutine: Coroutine[None, None, T], timeout_s: float) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout_s)
        finally:
            future.cancel()


def _gauges() -> tuple[CollectorRegistry, dict[str, Gauge]]:
    registry = CollectorRegistry()
    described = {
        "contact": ("api_contact_age_seconds", "Seconds since the API last said anything."),
        "pass": ("pass_age_seconds", "Seconds since the last look at Envoy and the plan."),
        "shifts": ("shifts_total", "Plans that Envoy was brought to follow."),
        "shift": ("shift_seconds", "Seconds that the last of them took."),
        "refusals": ("refusals_total", "Plans that Envoy refused."),
        "started": ("started_seconds", "Unix time of the start of Envoy, whose counts were zero then."),
        "certificate": ("certificate_expires_seconds", "Unix time at which the certificate expires; 0 without one."),
        "draining": ("draining", "Models in groups that get no new requests and have some in flight."),
    }
    return registry, {
        key: Gauge(f"segserve_gateway_{name}", text, registry=registry) for key, (name, text) in described.items()
    }
