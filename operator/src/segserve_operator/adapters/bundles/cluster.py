"""Bundles of a cluster, each in a ConfigMap that the rollout owns, as the operator has no disk."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from segserve_common.api_errors import ApiError
from segserve_common.kube.kinds import CONFIG_MAPS, PODS, ROLLOUTS
from segserve_common.kube.names import (
    AGENT_CONTAINER,
    BUNDLE_KEY,
    COMPONENT_LABEL,
    GROUP_LABEL,
    GRPC_PORT,
    HTTP_PORT,
    MANAGED_LABELS,
    METRICS_PORT,
    MODEL_LABEL,
    POOL_LABEL,
    TRITON_CONTAINER,
    bundle_name,
)
from segserve_operator.adapters.bundles.contents import LOG_BYTES, ServerDiagnostics, bundle
from segserve_operator.adapters.bundles.statistics import NoStatisticsError, statistics
from segserve_operator.adapters.kube import pods
from segserve_operator.adapters.kube.history import expired_bundles
from segserve_operator.core.traffic import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from segserve_common.kube.kinds import Json
    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.kube.view import PoolKey
    from segserve_operator.core.rollout.record import Record

LIMIT_BYTES: Final = 900 * 1024
"""A ConfigMap holds 1 MiB, its own fields included."""

MAX_PODS: Final = 8
LOGS_S: Final = 5.0


class PodLogs(Protocol):
    """Reads logs of containers."""

    async def pod_log(self, namespace: str, pod: str, container: str, *, previous: bool = False) -> bytes:
        """Return the end of a container's log, or of the one that ran before it; raises `ApiError`."""
        ...


@dataclass(frozen=True, slots=True)
class ClusterBundles:
    """Implements `BundleWriter` for one pool. Logs are shortened until a bundle fits into a ConfigMap."""

    api: Api
    logs: PodLogs
    key: PoolKey

    async def save(self, record: Record, group: str) -> str:
        """Write the ConfigMap, which is deleted with its SegmentationRollout; the group's servers must still be there.

        Raises `ApiError` if the rollout is not written yet, or the bundle cannot be.
        """
        owner = await self.api.get(ROLLOUTS, self.key.namespace, record.name)
        diagnostics = await self._collect(group)
        content = await asyncio.to_thread(_fit, record, diagnostics)
        manifest = _config_map(record, self.key.pool, owner["metadata"]["uid"], content)
        await self._make_room(manifest, len(content))
        await self.api.apply(CONFIG_MAPS, self.key.namespace, manifest)
        return f"configmap/{bundle_name(record.name)}"

    async def _make_room(self, manifest: Json, new_bytes: int) -> None:
        """Delete the pool's oldest bundles until this one has room."""
        labels = {name: manifest["metadata"]["labels"][name] for name in (COMPONENT_LABEL, POOL_LABEL)}
        items = await self.api.list(CONFIG_MAPS, self.key.namespace, labels)
        others = [item for item in items if item["metadata"]["name"] != manifest["metadata"]["name"]]
        for name in expired_bundles(others, new_bytes):
            await self.api.delete(CONFIG_MAPS, self.key.namespace, name)

    async def _collect(self, group: str) -> ServerDiagnostics:
        labels = {**MANAGED_LABELS, POOL_LABEL: self.key.pool, GROUP_LABEL: group}
        items = await self.api.list(PODS, self.key.namespace, labels)
        members = sorted(items, key=lambda pod: str(pod["metadata"]["name"]))
        chosen = members[:MAX_PODS]
        log_reads = [self._log(pod, container, previous) for pod in chosen for container, previous in _logs(pod)]
        statistics_reads = [self._statistics(pod) for pod in chosen]
        logs, counts = await asyncio.gather(asyncio.gather(*log_reads), asyncio.gather(*statistics_reads))
        missing = [why for _, _, why in (*logs, *counts) if why]
        if len(members) > MAX_PODS:
            missing.append(f"{len(members) - MAX_PODS} more servers of group {group}")
        return ServerDiagnostics(_available(logs), _available(counts), tuple(missing))

    async def _log(self, pod: Json, container: str, previous: bool) -> tuple[str, bytes, str]:
        server = pod["metadata"]["name"]
        name = f"{server}/{container}{'-previous' if previous else ''}"
        try:
            # The group's servers are kept for so long.
            async with asyncio.timeout(LOGS_S):
                return name, await self.logs.pod_log(self.key.namespace, server, container, previous=previous), ""
        except (ApiError, TimeoutError) as error:
            return name, b"", f"the log {name}: {str(error) or 'no answer in time'}"

    async def _statistics(self, pod: Json) -> tuple[str, bytes, str]:
        name, ip = pod["metadata"]["name"], pods.address(pod)
        if ip is None:
            return name, b"", f"{name}'s statistics: it has no address"
        try:
            return name, await statistics(_read_from(pod, ip)), ""
        except NoStatisticsError as error:
            return name, b"", f"{name}'s statistics: {error}"


def _read_from(pod: Json, ip: str) -> Endpoint:
    # Where Triton is behind TLS, the port of the metrics has its statistics too.
    return Endpoint(ip, HTTP_PORT if pods.tls_identity(pod) is None else METRICS_PORT, GRPC_PORT)


def _available(results: list[tuple[str, bytes, str]]) -> dict[str, bytes]:
    return {name: text for name, text, why in results if not why}


def _logs(pod: Json) -> Iterator[tuple[str, bool]]:
    """Yield the containers to read, and whether to read the previous log, in which a crash is explained."""
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        if status["name"] in (TRITON_CONTAINER, AGENT_CONTAINER):
            yield status["name"], False
            if status.get("restartCount"):
                yield status["name"], True


def _fit(record: Record, diagnostics: ServerDiagnostics) -> bytes:
    """Return the bundle, with the limit of its logs halved until it fits."""
    log_bytes = LOG_BYTES
    content = bundle(record, diagnostics, log_bytes=log_bytes)
    while len(content) > LIMIT_BYTES and log_bytes > 0:
        log_bytes = log_bytes // 2 if log_bytes > 1024 else 0
        content = bundle(record, diagnostics, log_bytes=log_bytes)
    if len(content) <= LIMIT_BYTES:
        return content
    why = ("all logs and statistics: the record alone is large",)
    return bundle(record, ServerDiagnostics(missing=(*diagnostics.missing, *why)), log_bytes=0)


def _config_map(record: Record, pool: str, owner_uid: str, content: bytes) -> Json:
    # Without the labels that the operator watches, so that it does not keep bundles in memory.
    return {
        "metadata": {
            "name": bundle_name(record.name),
            "labels": {
                "app.kubernetes.io/part-of": "segserve",
                COMPONENT_LABEL: "bundle",
                POOL_LABEL: pool,
                MODEL_LABEL: record.model,
            },
            "ownerReferences": [
                {
                    "apiVersion": ROLLOUTS.api_version,
                    "kind": ROLLOUTS.name,
                    "name": record.name,
                    "uid": owner_uid,
                }
            ],
        },
        "binaryData": {BUNDLE_KEY: base64.b64encode(content).decode()},
    }
