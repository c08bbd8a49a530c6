"""Bundles of a cluster: a ConfigMap each, which the rollout owns, for the operator has no disk."""

from __future__ import annotations

import asyncio
import base64
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from segserve_common.kube.errors import ApiError
from segserve_common.kube.kinds import CONFIG_MAPS, PODS, ROLLOUTS
from segserve_common.kube.names import (
    AGENT_CONTAINER,
    BUNDLE_KEY,
    GROUP_LABEL,
    GRPC_PORT,
    HTTP_PORT,
    MANAGED_LABELS,
    MODEL_LABEL,
    POOL_LABEL,
    TRITON_CONTAINER,
    bundle_name,
)
from segserve_operator.adapters.bundles.contents import LOG_BYTES, ServerDiagnostics, bundle
from segserve_operator.adapters.bundles.statistics import NoStatisticsError, statistics
from segserve_operator.adapters.kube import pods
from segserve_operator.core.traffic import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from segserve_common.kube.kinds import Json
    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.kube.view import PoolKey
    from segserve_operator.core.rollout.record import Record

LIMIT_BYTES: Final = 900 * 1024
"""A ConfigMap holds 1 MiB, its own fields included."""

PODS_KEPT: Final = 8
LOGS_S: Final = 5.0

log = logging.getLogger("segserve")


class PodLogs(Protocol):
    """Reads logs of containers."""

    async def pod_log(self, namespace: str, pod: str, container: str, *, previous: bool = False) -> bytes:
        """Return the end of a container's log, or of the one that ran before it; raises `ApiError`."""
        ...


@dataclass(frozen=True, slots=True)
class ClusterBundles:
    """Implements `Bundles` for one pool. Where a bundle is too large, less of each log is kept, until it fits."""

    api: Api
    logs: PodLogs
    key: PoolKey

    async def save(self, record: Record, group: str) -> None:
        """Write the ConfigMap, which goes with its SegmentationRollout; to be called while the group is there."""
        try:
            owner = await self.api.get(ROLLOUTS, self.key.namespace, record.name)
            gathered = await self._gather(group)
            content = await asyncio.to_thread(_fitting, record, gathered)
            await self.api.apply(
                CONFIG_MAPS, self.key.namespace, _config_map(record, owner["metadata"]["uid"], content)
            )
            log.info("bundle of rollout %s: configmap/%s", record.name, bundle_name(record.name))
        except ApiError as error:
            log.warning("no bundle of rollout %s: %s", record.name, error)

    async def _gather(self, group: str) -> ServerDiagnostics:
        labels = {**MANAGED_LABELS, POOL_LABEL: self.key.pool, GROUP_LABEL: group}
        found = await self.api.list(PODS, self.key.namespace, labels)
        members = sorted(found, key=lambda pod: str(pod["metadata"]["name"]))
        chosen = members[:PODS_KEPT]
        read = [self._log(pod, container, previous) for pod in chosen for container, previous in _logs(pod)]
        asked = [self._statistics(pod) for pod in chosen]
        logs, told = await asyncio.gather(asyncio.gather(*read), asyncio.gather(*asked))
        missing = [why for _, _, why in (*logs, *told) if why]
        if len(members) > PODS_KEPT:
            missing.append(f"{len(members) - PODS_KEPT} more servers of group {group}")
        return ServerDiagnostics(_there(logs), _there(told), tuple(missing))

    async def _log(self, pod: Json, container: str, previous: bool) -> tuple[str, bytes, str]:
        server = pod["metadata"]["name"]
        name = f"{server}/{container}{'-previous' if previous else ''}"
        try:
            # A pass waits for this, and others' rollouts wait for the pass.
            async with asyncio.timeout(LOGS_S):
                return name, await self.logs.pod_log(self.key.namespace, server, container, previous=previous), ""
        except (ApiError, TimeoutError) as error:
            return name, b"", f"the log {name}: {str(error) or 'no answer in time'}"

    async def _statistics(self, pod: Json) -> tuple[str, bytes, str]:
        name, ip = pod["metadata"]["name"], pods.address(pod)
        if ip is None:
            return name, b"", f"{name}'s statistics: it has no address"
        try:
            return name, await statistics(Endpoint(ip, HTTP_PORT, GRPC_PORT)), ""
        except NoStatisticsError as error:
            return name, b"", f"{name}'s statistics: {error}"


def _there(results: list[tuple[str, bytes, str]]) -> dict[str, bytes]:
    return {name: text for name, text, why in results if not why}


def _logs(pod: Json) -> Iterator[tuple[str, bool]]:
    """Yield the containers whose logs there are, and whether it is the one before: what crashed said why there."""
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        if status["name"] in (TRITON_CONTAINER, AGENT_CONTAINER):
            yield status["name"], False
            if status.get("restartCount"):
                yield status["name"], True


def _fitting(record: Record, gathered: ServerDiagnostics) -> bytes:
    """Return the bundle with as much of each log as fits: half as much as long as it does not."""
    log_bytes = LOG_BYTES
    content = bundle(record, gathered, log_bytes=log_bytes)
    while len(content) > LIMIT_BYTES and log_bytes > 0:
        log_bytes = log_bytes // 2 if log_bytes > 1024 else 0
        content = bundle(record, gathered, log_bytes=log_bytes)
    if len(content) <= LIMIT_BYTES:
        return content
    why = ("all logs and statistics: the record alone is large",)
    return bundle(record, ServerDiagnostics(missing=(*gathered.missing, *why)), log_bytes=0)


def _config_map(record: Record, owner_uid: str, content: bytes) -> Json:
    # Without the labels of what the operator watches: nobody has to keep bundles in memory.
    return {
        "metadata": {
            "name": bundle_name(record.name),
            "labels": {"app.kubernetes.io/part-of": "segserve", MODEL_LABEL: record.model},
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
