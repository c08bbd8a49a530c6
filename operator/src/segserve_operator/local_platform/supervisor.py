"""The local platform's supervisor: one process that reconciles servers and gateway with the resource files."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

from segserve_builder.agent.protocol import REPORT_FILE
from segserve_common.backoff import Backoff, RetryDelays
from segserve_common.files import DamagedFileError, read_file, write_private
from segserve_common.process_record import ProcessRecord
from segserve_operator.adapters.checks.context import CheckContext
from segserve_operator.adapters.checks.gateway import InternalGateway
from segserve_operator.adapters.checks.runner import BackgroundCheckRunner
from segserve_operator.adapters.local import processes
from segserve_operator.adapters.local.access import local_access
from segserve_operator.adapters.local.files import PlatformError, StateFolder, bound_log, config_folder, read_platform
from segserve_operator.adapters.local.fleet import LocalFleet, LocalResources
from segserve_operator.adapters.local.gateway import LocalGateway, PortTakenError
from segserve_operator.adapters.local.request_history import RequestHistory
from segserve_operator.adapters.local.resource_files import MODEL
from segserve_operator.adapters.local.runtime import OnStep, RuntimeEnvironment, compiling_the_rest, ensure_runtime
from segserve_operator.adapters.local.store import LocalStore
from segserve_operator.adapters.notify.notifier import Notifier, PoolAnnouncer, targets
from segserve_operator.adapters.outbound.client import own_worker
from segserve_operator.adapters.traffic.envoy_admin import EnvoyUnreachableError
from segserve_operator.api.meta import SpecError
from segserve_operator.api.triton_pool import TritonPool
from segserve_operator.core.models.actions import Action
from segserve_operator.core.rollout.counters import Sample
from segserve_operator.core.traffic import TrafficPlan, TrafficState
from segserve_operator.local_platform.metrics import LocalMetrics
from segserve_operator.service import ActionLog, Service, Traffic

POLL_S: Final = 0.1
REST_POLL_S: Final = 0.25
PASS_INTERVAL_S: Final = 1.0
SHORTEST_PASS_INTERVAL_S: Final = 0.2
REST_S: Final = 10.0
"""Interval of passes at rest, which a change of a file or the end of a process ends at once."""
RETRY_BACKOFF: Final = Backoff(first_s=0.2, longest_s=5.0)
LOG_CHECK_INTERVAL_S: Final = 60.0
COUNT_INTERVAL_S: Final = 60.0
MAX_LOG_BYTES: Final = 20 * 2**20
KEPT_LOG_BYTES: Final = 2**20

log = logging.getLogger("segserve")


@dataclass(frozen=True, slots=True)
class Clock:
    """The time of decisions: Unix time in seconds, which from `begun_s` on runs `speed` times as fast."""

    begun_s: float
    speed: float = 1.0

    def __call__(self) -> float:
        """Return the time now."""
        return self.at(time.time())

    def at(self, time_s: float) -> float:
        """Return what this clock shows at a Unix time."""
        return time_s if self.speed == 1.0 else self.begun_s + (time_s - self.begun_s) * self.speed


@dataclass(frozen=True, slots=True)
class FasterTraffic:
    """A gateway whose counts are dated by a faster clock.

    What is under way is not counted: latencies are real, so that a request would seem to hang too soon.
    """

    gateway: Traffic
    clock: Clock

    @property
    def url(self) -> str:
        """Base URL for clients."""
        return self.gateway.url

    async def observe(self) -> TrafficState:
        """Return the plan in force and the requests in flight."""
        return await self.gateway.observe()

    async def apply(self, plan: TrafficPlan) -> None:
        """Put a plan into force."""
        await self.gateway.apply(plan)

    async def samples(self, models: Mapping[str, tuple[str, str]]) -> Mapping[str, Sample]:
        """Return the gateway's counters as if they had been read at the clock's times."""
        read = await self.gateway.samples(models)
        return {
            model: {
                name: replace(
                    counters,
                    at_s=self.clock.at(counters.at_s),
                    began_s=self.clock.at(counters.began_s),
                    by_series={series: replace(each, active=0) for series, each in counters.by_series.items()},
                )
                for name, counters in sample.items()
            }
            for model, sample in read.items()
        }


class Supervisor:
    """Runs a pass of the service after each change of a file, and once a second; at rest, once in `REST_S`.

    Decisions are made by a clock that is `speed` times as fast; servers, gateway and checks are unaffected.
    """

    def __init__(
        self, state: StateFolder, cache: Path, pool: TritonPool, runtime: RuntimeEnvironment, speed: float = 1.0
    ) -> None:
        self.state = state
        self._pool = pool
        self.clock = clock = Clock(time.time(), speed)
        self._pass_interval_s = max(PASS_INTERVAL_S / speed, SHORTEST_PASS_INTERVAL_S)
        self._store = LocalStore(state)
        access, tracing = local_access(pool.spec.artifacts), pool.spec.gateway.tracing
        self.gateway = LocalGateway(state, pool.spec.gateway, access)
        self.worker, services = own_worker(["--own-services"], os.environ)
        self.check_runner = BackgroundCheckRunner(
            CheckContext(InternalGateway(self.gateway.internal_url), LocalResources(state), services)
        )
        self.notifier = Notifier(post=services.post)
        traffic: Traffic = self.gateway if speed == 1.0 else FasterTraffic(self.gateway, clock)
        fleet = LocalFleet(state, runtime, cache, access, tracing.server_traces_url if tracing is not None else None)
        self.service = Service(
            store=self._store,
            fleet=fleet,
            traffic=traffic,
            clock=clock,
            check_runner=self.check_runner,
            announcer=PoolAnnouncer(self.notifier, "", lambda: targets(pool.spec, ""), clock),
        )
        self.metrics = LocalMetrics(state, self.gateway, fleet, self._present_pool)
        self.history = RequestHistory(state.requests)
        self.action_log = ActionLog()
        self.stopping = asyncio.Event()
        self._retries, self._retry_s = RetryDelays(RETRY_BACKOFF), 0.0
        self._at_rest = False

    async def run(self) -> None:
        """Supervise until `stopping` is set. Processes of an earlier supervisor are adopted as they are."""
        with self.metrics.serving():
            await self._run()

    async def _run(self) -> None:
        self._write_record(observed=False)
        await self._pass()
        self._write_record(observed=True)
        self.history.check()
        last_seen, passed_s, logs_checked_s, counted_s = None, 0.0, 0.0, 0.0
        while not self.stopping.is_set():
            seen = self._seen()
            interval_s = REST_S if self._at_rest else self._pass_interval_s
            due = seen != last_seen or time.monotonic() - passed_s > interval_s
            # Reports may change all the time: they do not shorten the delay of a pass that keeps failing.
            if due and time.monotonic() >= self._retry_s:
                last_seen, passed_s = seen, time.monotonic()
                if await self._pass():
                    passed_s = float("-inf")  # its writes may allow further actions at once
            if read_platform(self.state) is None:  # the record was damaged: commands would not find this platform
                with contextlib.suppress(OSError):
                    self._write_record(observed=True)
            if time.monotonic() - logs_checked_s > LOG_CHECK_INTERVAL_S:
                logs_checked_s = time.monotonic()
                for path in (self.state.log, *self.state.gateway.glob("*.log"), *self.state.groups.glob("*/*.log")):
                    bound_log(path, limit_bytes=MAX_LOG_BYTES, kept_bytes=KEPT_LOG_BYTES)
            if time.monotonic() - counted_s > COUNT_INTERVAL_S:
                counted_s = time.monotonic()
                await self._count_requests()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), REST_POLL_S if self._at_rest else POLL_S)
        await self._count_requests()
        await self.check_runner.close()
        await self.notifier.aclose()
        await self.worker.close()

    def _write_record(self, *, observed: bool) -> None:
        record = {
            "process": asdict(processes.current_process()),
            "url": self.gateway.url,
            "observed": observed,
            "version": version("segserve"),
            "caFile": str(self.gateway.ca_file or ""),
        }
        write_private(self.state.platform, json.dumps(record))

    async def _count_requests(self) -> None:
        with contextlib.suppress(OSError):  # a full disk costs the history, and nothing else
            models = dict.fromkeys(self._store.names(MODEL), ("", ""))
            self.history.observe(await self.gateway.samples(models), time.time())

    async def _pass(self) -> bool:
        actions: tuple[Action, ...] = ()
        self._at_rest = False
        with contextlib.suppress(SpecError):  # callers are known as before, until the pool can be read again
            self.gateway.follow(self._store.pool().spec.gateway)
        try:
            actions = await self.service.run_once()
            kept = self.service.rollout_cache
            models, failures = await self._store.models(), self.service.failures.values()
            self.metrics.observe(models, kept.records, kept.drifts, failures)
            self._retries.reset()
            self._at_rest = not kept.waits and not actions and not failures
        except Exception as error:
            # A failed pass must not end the supervisor: the next one starts from the current state.
            defect = None if isinstance(error, (EnvoyUnreachableError, PortTakenError)) else error
            log.warning("a pass failed: %s; the next one retries", error, exc_info=defect)
            self._retry_s = time.monotonic() + self._retries.next_s()
        for line in self.action_log.new_lines(actions):
            log.info("%s", line)
        for line in self.action_log.new_failures(self.service.failures):
            log.warning("%s", line)
        return bool(actions)

    def _present_pool(self) -> TritonPool:
        with contextlib.suppress(SpecError):
            self._pool = self._store.pool()
        return self._pool

    def _seen(self) -> dict[str, object]:
        """Return what a pass is due for: times, in ns, of resources, Secrets and reports, and which processes run."""
        state, seen = self.state, dict[str, object]()
        secrets = (folder for root in (state.secrets, config_folder() / "secrets") for folder in _inside(root))
        resources = (folder for kind in _inside(state.objects) for folder in _inside(kind))
        groups = _inside(state.groups)
        files = [f"{folder}/spec.yaml" for folder in resources] + [f"{folder}/{REPORT_FILE}" for folder in groups]
        files += [path for folder in secrets for path in _inside(folder)]
        for path in files:  # of hundreds of files, several times a second: `Path` takes several times as long
            with contextlib.suppress(OSError):
                seen[path] = os.stat(path).st_mtime_ns  # noqa: PTH116
        for path in (path for folder in (str(state.gateway), *groups) for path in _inside(folder)):
            if path.endswith(".process.json"):
                with contextlib.suppress(OSError, DamagedFileError):  # a pass writes a damaged one again
                    record = read_file(Path(path), ProcessRecord.from_json)
                    seen[path] = record, record.is_running
        return seen


def _inside(folder: str | Path) -> list[str]:
    """Return the paths in a folder, none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries]
    except OSError:
        return []


class RunningError(PlatformError):
    """Another process is the supervisor."""


@contextlib.contextmanager
def only_supervisor(state: StateFolder) -> Iterator[None]:
    """Hold the lock of the platform's only supervisor, or raise `RunningError` if another process holds it."""
    state.create()
    with state.lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunningError(f"a platform is already running in {state.root}; `segserve down` stops it") from None
        yield


def supervise(
    state: StateFolder, cache: Path, pool: TritonPool, progress: OnStep, speed: float = 1.0, *, compile_all: bool = True
) -> None:
    """Run a supervisor in this process until SIGTERM or SIGINT. Its servers keep running: `shutdown.end` stops them.

    With `compile_all` it compiles the kernels that no model needs yet, at the lowest priority.
    """
    with only_supervisor(state):
        # The command that starts a supervisor has compiled the kernels that its models need.
        runtime = ensure_runtime(cache, progress, kernels=())
        with compiling_the_rest(runtime) if compile_all else contextlib.nullcontext():
            asyncio.run(_run(Supervisor(state, cache, pool, runtime, speed)))
        state.platform.unlink(missing_ok=True)


async def _run(supervisor: Supervisor) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stopping.set)
    await supervisor.run()
