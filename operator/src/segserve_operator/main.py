"""The operator's process: settings, adapters, the worker; kopf feeds it, the Lease says whether it may write."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import signal
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, cast

import kopf

from segserve_common.api_errors import ApiError
from segserve_common.kube.async_client import AsyncKubeClient
from segserve_common.kube.kinds import (
    CHILDREN,
    GATEWAY_ROUTES,
    GRPC_ROUTES,
    HTTP_ROUTES,
    MODELS,
    POOLS,
    SECRETS,
)
from segserve_common.logs import start_logging
from segserve_operator.adapters.kube.lease import FencedApi, LeaderLease
from segserve_operator.adapters.kube.namespaces import EnabledNamespaces, pools_within
from segserve_operator.adapters.kube.view import KnownObjects, PoolKey, View, audit, fill
from segserve_operator.adapters.kube.write_through import WriteThroughApi
from segserve_operator.adapters.notify.notifier import Notifier, SecretError
from segserve_operator.adapters.outbound.client import OutboundClient, own_worker
from segserve_operator.handlers import registry_of, settings_of
from segserve_operator.metrics.registry import Metrics, health_server
from segserve_operator.reconciler import Dependencies, PoolReconciler
from segserve_operator.settings import OperatorSettings, OperatorSettingsError
from segserve_operator.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.notify.messages import Secret


FIRST_AUDIT_S: Final = 5.0
"""Time until the watches have begun: of what was deleted since the view was filled they say nothing."""
AUDIT_S: Final = 60.0
SILENCE_S: Final = 300.0
START_PAUSE_S: Final = 2.0
STOP_S: Final = 5.0

log = logging.getLogger("segserve")


@dataclass(slots=True)
class Operator:
    """All parts of one process."""

    settings: OperatorSettings
    api: Api
    view: View
    lease: LeaderLease
    worker: Worker[PoolKey]
    reconciler: PoolReconciler
    metrics: Metrics
    audited_at_s: float
    enabled: EnabledNamespaces | None = None
    """The namespaces to work in, if all are read."""
    tried_at_s: float = 0.0
    """When an audit last ended, with a view of the cluster or with the API server's refusal."""

    @property
    def scopes(self) -> Sequence[str | None]:
        """The namespaces to look into; None is all of them."""
        return (None,) if self.settings.cluster_wide else self.settings.namespaces or (None,)

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until stopped; then let the Lease go, so that a successor begins at once."""
        await self._fill()
        renewing = asyncio.create_task(self.lease.run(), name="lease")
        tasks = (
            renewing,
            asyncio.create_task(self._audit(), name="audit"),
            asyncio.create_task(self._watch(stopping), name="kopf"),
            asyncio.create_task(stopping.wait(), name="stop"),
        )
        try:
            async with health_server(self.settings.health_port, self._trouble, self.metrics.registry, self._refresh):
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.set()
            await self.worker.stop()
            await self.reconciler.close()
            renewing.cancel()
            await asyncio.wait([renewing])
            await self.lease.release()
            await asyncio.wait(tasks, timeout=STOP_S)
            for task in tasks:
                task.cancel()
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def _fill(self) -> None:
        while True:
            try:
                await fill(self.view, self.api, self.scopes)
                if self.enabled is not None:
                    await self.enabled.read(self.api)
                break
            except ApiError as error:
                log.warning("the cluster cannot be read yet: %s: %s", type(error).__name__, error)
                await asyncio.sleep(START_PAUSE_S)
        self.audited_at_s = self.tried_at_s = time.monotonic()
        for key in self.view.pools():
            self.worker.enqueue(key)

    async def _audit(self) -> None:
        pause_s = FIRST_AUDIT_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = AUDIT_S
            try:
                for key in await audit(self.view, self.api, self.scopes):
                    self.worker.enqueue(key)
                if self.enabled is not None:
                    for key in pools_within(self.view, await self.enabled.read(self.api)):
                        self.worker.enqueue(key)
                self.audited_at_s = time.monotonic()
            except ApiError as error:
                log.warning("the view could not be audited: %s: %s", type(error).__name__, error)
            self.tried_at_s = time.monotonic()

    async def _watch(self, stopping: asyncio.Event) -> None:
        scopes = [namespace for namespace in self.scopes if namespace is not None]
        await kopf.operator(
            registry=registry_of(self.view, self.worker.enqueue, self.enabled),
            settings=settings_of(self.view),
            namespaces=scopes,
            clusterwide=not scopes,
            # Only peers would read it; by default kopf looks up its user's name, which an image may not have.
            identity=cast("Any", self.settings.pod_name),
            stop_flag=stopping,
        )

    def _refresh(self) -> None:
        self.metrics.resources.leader.set(self.lease.is_held())
        self.metrics.resources.watch_age.set(time.monotonic() - self.audited_at_s)
        self.metrics.observe(self.view)
        failures = {(key.namespace, key.pool): each for key, each in self.reconciler.failures().items()}
        self.metrics.resources.observe_failures(failures)

    def _trouble(self) -> str | None:
        """Return why a new process would do better: this one has not even tried to see the cluster for long.

        An API server that does not answer is not a reason: a new process would not have what this one still has.
        """
        age_s = time.monotonic() - self.tried_at_s
        return f"the last try to read the cluster ended {age_s:.0f} s ago" if age_s > SILENCE_S else None


async def assemble(
    settings: OperatorSettings, api: AsyncKubeClient, metrics: Metrics, outbound: OutboundClient
) -> Operator:
    """Put the parts together for the cluster that `api` reaches; `outbound` calls tenants' services."""
    routes = GATEWAY_ROUTES if await api.has(HTTP_ROUTES) and await api.has(GRPC_ROUTES) else ()
    enabled = EnabledNamespaces(settings.namespaces) if settings.cluster_wide else None
    view = View((MODELS, POOLS, *CHILDREN, *routes), enabled, KnownObjects())

    def wake_all() -> None:
        for key in view.pools():
            worker.enqueue(key)

    lease = LeaderLease(api, settings.lease_namespace, settings.lease_name, settings.pod_name, on_acquired=wake_all)
    outside = Dependencies(
        notifier=Notifier(
            post=outbound.post,
            on_outcome=metrics.rollouts.notified,
            read=Secrets(api).read,
        ),
        metrics=metrics,
        services=outbound,
        prometheus=settings.samples_prometheus,
    )
    fenced = WriteThroughApi(FencedApi(api, lease), view)
    defaults = replace(settings, operator_namespace_labels={"kubernetes.io/metadata.name": settings.lease_namespace})
    reconciler = PoolReconciler(fenced, view, defaults, outside, time.time)
    worker = Worker(reconciler.reconcile, reconciler.wanted, lease.is_held, metrics)
    return Operator(settings, api, view, lease, worker, reconciler, metrics, time.monotonic(), enabled)


async def _run(settings: OperatorSettings) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    metrics = Metrics()
    async with AsyncKubeClient.connect(on_call=metrics.called) as api, outbound_of(settings) as outbound:
        await (await assemble(settings, api, metrics, outbound)).run(stopping)


@asynccontextmanager
async def outbound_of(settings: OperatorSettings) -> AsyncIterator[OutboundClient]:
    """Yield the client of the worker in the pod's other container, or of a child where there is no such container."""
    if settings.worker_socket:
        own = os.getuid()
        yield OutboundClient(settings.worker_socket, own if settings.worker_user is None else settings.worker_user)
        return
    hosts = (
        f"--gate-hosts={','.join(settings.gate_hosts)}",
        f"--notification-hosts={','.join(settings.notification_hosts)}",
    )
    worker, client = own_worker(hosts, os.environ)
    try:
        yield client
    finally:
        await worker.close()


def main() -> None:
    """Run the operator until SIGTERM."""
    try:
        settings = OperatorSettings.from_environment(os.environ)
    except OperatorSettingsError as error:
        sys.exit(f"the environment cannot be used:\n{error}")
    start_logging(settings.logging)
    asyncio.run(_run(settings))


@dataclass(frozen=True, slots=True)
class Secrets:
    """Reads from the API server on every call, so that no Secret is kept in memory."""

    api: Api

    async def read(self, secret: Secret) -> str:
        """Return a value as text; raises `SecretError`, whose message contains no part of the value."""
        title = f"secret {secret.namespace}/{secret.name}"
        try:
            item = await self.api.get(SECRETS, secret.namespace, secret.name)
        except ApiError as error:
            raise SecretError(f"{title}: {error}; the chart's rbac.notificationSecrets lets the operator") from error
        data = item.get("data") or {}
        if secret.key not in data:
            raise SecretError(f"{title} has no key {secret.key!r}")
        try:
            return base64.b64decode(data[secret.key]).decode()
        except ValueError as error:
            raise SecretError(f"{title}: {secret.key!r} is no text") from error
