"""Reports of pods: where each one is stored, and the end of reports whose pod is gone.

The pods of a group share one ConfigMap while their reports fit into it. In a larger group each pod has a ConfigMap of
its own, which it owns: a write is as large as one report, and Kubernetes deletes it with its pod. A group that began
to use them does so until it ends.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from segserve_common.api_errors import ApiError, NotFoundError
from segserve_common.kube.kinds import CONFIG_MAPS, DEPLOYMENTS, PODS
from segserve_common.kube.names import (
    COMPONENT_LABEL,
    GATEWAY,
    GROUP_LABEL,
    OWN_REPORTS,
    REPORT_KEY,
    REPORTS_KEY,
    SERVER,
    assignment_name,
    report_name,
    reports_name,
)
from segserve_operator.adapters.kube import pods
from segserve_operator.adapters.kube.children import apply_differing, find_drift
from segserve_operator.adapters.kube.objects import own_report_objects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from segserve_common.kube.kinds import Json
    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.kube.objects import PoolContext
    from segserve_operator.adapters.kube.view import PoolKey, View

MAX_SHARED_REPORTS: Final = 4096
"""Models times servers up to which a group shares a ConfigMap: about 450 kB, twice that while all pods are replaced."""

MAX_SHARED_LENGTH: Final = 640_000
"""Characters of base64 (480 kB) from which on a shared ConfigMap is no longer used, whatever it holds."""

PRUNED_AT_ONCE: Final = 16
CREATED_AT_ONCE: Final = 64
"""Bounds of one pass, whose end others wait for; its writes cause the next one."""

log = logging.getLogger("segserve")


@dataclass(frozen=True, slots=True)
class ReportMaps:
    """The reports of one pool's servers and gateways."""

    api: Api
    view: View
    key: PoolKey

    def packed(self, group: str, members: Iterable[Json]) -> dict[str, str]:
        """Return the packed reports of a group's pods by the pods' names."""
        shared = pods.reports_of(self._map(reports_name(self.key.pool, group)))
        names = [pod["metadata"]["name"] for pod in members]
        own = {name: self._own(name) for name in names}
        return {name: text for name in names if (text := own[name] or shared.get(name)) is not None}

    async def tidy(self, context: PoolContext, models: Callable[[str], int]) -> int:
        """Prepare ConfigMaps for reports, remove reports of pods that are gone, and return the number of writes.

        `models` returns the number of a group's models. An error is logged, and tried again by the next pass.
        """
        by_group: dict[str, list[Json]] = {}
        for pod in self.view.of_pool(PODS, self.key):
            by_group.setdefault(_group(pod), []).append(pod)
        live = (each for each in self.view.of_pool(DEPLOYMENTS, self.key) if not pods.is_terminating(each))
        writes = 0
        for group, deployment in sorted((_group(each), each) for each in live):
            members = by_group.get(group, [])
            try:
                if group != GATEWAY and members and self._is_large(group, deployment, members, models):
                    writes += await self._use_own(context, group, members)
                writes += await self._prune(group, members)
            except ApiError as error:
                log.warning("%s/%s: reports of %s: %s", self.key.namespace, self.key.pool, group, error)
        return writes

    def _is_large(self, group: str, deployment: Json, members: list[Json], models: Callable[[str], int]) -> bool:
        shared = pods.reports_of(self._map(reports_name(self.key.pool, group)))
        servers = max(len(members), int(deployment["spec"].get("replicas", 1)))
        return (
            _says_own(self._map(assignment_name(self.key.pool, group, 0)))
            or models(group) * servers > MAX_SHARED_REPORTS
            or sum(map(len, shared.values())) > MAX_SHARED_LENGTH
        )

    async def _use_own(self, context: PoolContext, group: str, members: list[Json]) -> int:
        """Give each pod a ConfigMap and the right to it, then make the agents use them; return the writes."""
        manifests = own_report_objects(context, group, members)
        missing = [manifest for manifest, _ in find_drift(self.view, self.key, manifests)]
        await apply_differing(self.api, self.view, self.key, missing[:CREATED_AT_ONCE])
        writes = len(missing[:CREATED_AT_ONCE])
        name = assignment_name(self.key.pool, group, 0)
        told = self._map(name)
        if told is not None and not _says_own(told):
            await self.api.patch(CONFIG_MAPS, self.key.namespace, name, {"data": {REPORTS_KEY: OWN_REPORTS}})
            writes += 1
        return writes

    async def _prune(self, group: str, members: list[Json]) -> int:
        """Remove reports of pods that are gone or have a ConfigMap of their own, and return the number of writes."""
        shared = self._map(reports_name(self.key.pool, group))
        if shared is None:
            return 0
        stored, present = pods.reports_of(shared), {pod["metadata"]["name"] for pod in members}
        moved = [name for name in stored.keys() & present if self._own(name) is not None]
        # The view may not list a new pod yet, so each is requested from the server.
        asked = sorted(stored.keys() - present)[:PRUNED_AT_ONCE]
        gone = [name for name in asked if await self._is_gone(name)]
        if not moved and not gone:
            return 0
        metadata = shared["metadata"]
        patch = {
            "metadata": {"resourceVersion": metadata["resourceVersion"]},
            "binaryData": dict.fromkeys(sorted([*moved, *gone])),
        }
        await self.api.patch(CONFIG_MAPS, self.key.namespace, metadata["name"], patch)
        return 1

    async def _is_gone(self, pod: str) -> bool:
        try:
            await self.api.get(PODS, self.key.namespace, pod)
        except NotFoundError:
            return True
        return False

    def _own(self, pod: str) -> str | None:
        found = self._map(report_name(pod))
        return pods.reports_of(found).get(REPORT_KEY) if found is not None else None

    def _map(self, name: str) -> Json | None:
        return self.view.get(CONFIG_MAPS, self.key.namespace, name)


def _says_own(assignment: Mapping[str, Json] | None) -> bool:
    return assignment is not None and (assignment.get("data") or {}).get(REPORTS_KEY) == OWN_REPORTS


def _group(item: Json) -> str:
    """Return the group that an object belongs to, or `GATEWAY`."""
    labels = item["metadata"].get("labels") or {}
    return str(labels.get(GROUP_LABEL, "")) if labels.get(COMPONENT_LABEL) == SERVER else GATEWAY
