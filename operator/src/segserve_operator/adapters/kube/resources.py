"""Resource use of a group's servers on a cluster: restarts from the kubelet, memory from agents, queues from Triton."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx

from segserve_common.http.guard import gather_few, get_bounded
from segserve_common.http.urls import RequestError
from segserve_common.kube.kinds import PODS
from segserve_common.kube.names import AGENT_PORT, GROUP_LABEL, METRICS_PORT, TRITON_CONTAINER
from segserve_operator.adapters.checks.triton_queue import queue_of
from segserve_operator.adapters.kube import pods
from segserve_operator.core.gates.checks import ResourceSample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_operator.adapters.kube.view import PoolKey, View

TIMEOUT_S: Final = 3.0
MAX_METRICS_BYTES: Final = 16 * 2**20
_MEMORY: Final = re.compile(r"^segserve_agent_server_memory_bytes (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ClusterResources:
    """Samples the pods of one pool."""

    view: View
    key: PoolKey

    async def look(self, group: str) -> ResourceSample:
        """Return a sample of a group's pods; servers whose agent does not report their memory are left out of it."""
        members = {
            pod["metadata"]["name"]: pod
            for pod in self.view.of_pool(PODS, self.key)
            if (pod["metadata"].get("labels") or {}).get(GROUP_LABEL) == group and not pods.is_terminating(pod)
        }
        hosts = {name: host for name, pod in members.items() if (host := pods.address(pod))}
        told = dict(zip(hosts, await gather_few(map(_told, hosts.values())), strict=True))
        memory = {name: float(found[1]) for name, text in told.items() if (found := _MEMORY.search(text))}
        replies = await gather_few(queue_of(host, METRICS_PORT) for host in hosts.values())
        queues = [queue for queue in replies if queue is not None]
        return ResourceSample(
            memory_bytes=memory,
            restarts={name: _restarts(pod) for name, pod in members.items()},
            queued_s=sum(queue.queued_s for queue in queues) if queues else None,
            requests=sum(queue.requests for queue in queues) if queues else None,
        )


def _restarts(pod: Mapping[str, Any]) -> int:
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return sum(int(status.get("restartCount", 0)) for status in statuses if status["name"] == TRITON_CONTAINER)


async def _told(host: str) -> str:
    """Return the metrics of a pod's agent, "" if it does not answer."""
    address = f"[{host}]" if ":" in host else host
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
            url = f"http://{address}:{AGENT_PORT}/metrics"
            metrics = await get_bounded(client, url, max_bytes=MAX_METRICS_BYTES, timeout_s=TIMEOUT_S)
    except RequestError:
        return ""
    return metrics.decode(errors="replace")
