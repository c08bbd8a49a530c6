"""Groups as Deployments: their objects, their assignments, and their state as pods and agents report it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.agent.protocol import AssignedModel, Assignment, ModelReport, read_reports
from segserve_common.kube.kinds import CONFIG_MAPS, DEPLOYMENTS, PODS
from segserve_common.kube.names import (
    AGENT_CONTAINER,
    COMPONENT_LABEL,
    GROUP_LABEL,
    GRPC_PORT,
    HTTP_PORT,
    SERVER,
    SHARDS,
    TRITON_CONTAINER,
    assignment_name,
)
from segserve_common.kube.shards import content_of, pack, shard_of, unpack
from segserve_operator.adapters.kube import pods
from segserve_operator.adapters.kube.accounts import token_renewal, with_valid_tokens
from segserve_operator.adapters.kube.api import attempt_all
from segserve_operator.adapters.kube.children import apply_differing, find_drift, kind_of
from segserve_operator.adapters.kube.objects import assignment_config_map, group_objects, main_group
from segserve_operator.adapters.kube.pods import pod_failure
from segserve_operator.adapters.kube.reports import ReportMaps
from segserve_operator.core.traffic import Endpoint
from segserve_operator.core.world.observed import GroupObserved, ServerObserved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from segserve_common.kube.kinds import Json
    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.kube.contexts import PoolContexts
    from segserve_operator.adapters.kube.objects import PoolContext
    from segserve_operator.adapters.kube.view import ModelInterner, PoolKey, View

AGENT_GRACE_S: Final = 30.0
"""Time to start an agent again; so long a server counts as its agent last reported it."""


@dataclass(frozen=True, slots=True)
class PodReport:
    """The decoded report of the pod with this `uid`; an unreadable report has no other fields."""

    uid: str = ""
    server_ready: bool = False
    models: tuple[ModelReport, ...] = ()
    is_read: bool = True


@dataclass(slots=True)
class FleetCache:
    """Decoded assignments and reports by their packed text, which changes far less often than it is read."""

    assignments: dict[str, tuple[AssignedModel, ...]] = field(default_factory=dict)
    reports: dict[str, PodReport] = field(default_factory=dict)
    last: dict[str, PodReport] = field(default_factory=dict)
    """The last report by the pod's uid, which stays valid if the ConfigMap is deleted until the pod writes it again."""

    servers: dict[str, tuple[tuple[object, ...], ServerObserved]] = field(default_factory=dict)
    """Each pod's server by uid, with the values that it was made from: its index of a thousand reports is made once."""

    groups: dict[str, GroupObserved] = field(default_factory=dict)
    """Each group as it was last, which indexes its servers' reports by revision."""

    read: tuple[PoolContext, int] | None = None
    """What `groups` were made from: the pool, and how often its objects had changed. None if a write, or time, may make
    others of the same objects.
    """

    def keep_only(self, assignments: Iterable[str], reports: Iterable[str], uids: Iterable[str]) -> None:
        """Remove the entries of all other texts and pods."""
        present = set(uids)
        caches = ((self.assignments, set(assignments)), (self.reports, set(reports)), (self.last, present))
        for entries, used in (*caches, (self.servers, present)):
            for key in entries.keys() - used:
                del entries[key]


@dataclass(slots=True)
class ClusterFleet:
    """The groups of one pool."""

    api: Api
    view: View
    contexts: PoolContexts
    key: PoolKey
    decoded: FleetCache
    interner: ModelInterner
    clock: Callable[[], float]

    async def groups(self) -> Mapping[str, GroupObserved]:
        """Return every group of which any object exists."""
        context = self.contexts.get(self.key)
        if context is None:
            return {}
        read = (context, self.view.changes(self.key))
        if self.decoded.read is not None and self.decoded.read[0] is context and self.decoded.read[1] == read[1]:
            return dict(self.decoded.groups)
        maps = self.view.of_pool(CONFIG_MAPS, self.key)
        deployments = self._by_group(self.view.of_pool(DEPLOYMENTS, self.key))
        members = self._by_group(self.view.of_pool(PODS, self.key))
        owned = (item for kind in self.view.kinds if kind != PODS for item in self.view.of_pool(kind, self.key))
        # A group with any object left has to be stopped again.
        names = sorted(self._by_group(owned))
        report_maps = ReportMaps(self.api, self.view, self.key)
        reports = {name: report_maps.packed(name, members.get(name, [])) for name in names}
        used = [packed for of_group in reports.values() for packed in of_group.values()]
        uids = [pod["metadata"]["uid"] for group in members.values() for pod in group]
        self.decoded.keep_only(filter(None, map(content_of, maps)), used, uids)
        former, self.decoded.groups = self.decoded.groups, {}
        for name in names:
            deployment = next(iter(deployments.get(name, ())), None)
            group = self._observe(context, name, deployment, members.get(name, []), reports[name])
            self.decoded.groups[name] = former[name] if former.get(name) == group else group
        lasting = all(group.intact for group in self.decoded.groups.values()) and not self.waits_for_agents()
        self.decoded.read = read if lasting else None
        return dict(self.decoded.groups)

    def _observe(
        self,
        context: PoolContext,
        name: str,
        deployment: Json | None,
        members: list[Json],
        reports: Mapping[str, str],
    ) -> GroupObserved:
        shards = self._shards(name)
        packed = [
            content_of(found) if found is not None and not pods.is_terminating(found) else None for found in shards
        ]
        assigned = (model for text in packed for model in self._assigned(text))
        return GroupObserved(
            name=name,
            servers=self._servers((pod for pod in members if not pods.is_terminating(pod)), reports),
            leaving=self._servers(filter(pods.is_terminating, members), reports),
            wanted=context.spec.replicas,
            replicas=_replicas(deployment),
            intact=deployment is not None and not self._broken(context, name, deployment),
            assignment=Assignment(models=tuple(sorted(assigned, key=lambda model: model.model))),
            written=None not in packed,
            problem=pod_failure(deployment, members),
        )

    def _broken(self, context: PoolContext, group: str, deployment: Json) -> bool:
        """Return whether an object of a group differs from its manifest, or its pods have no valid tokens."""
        objects = self._objects(context, group, _replicas(deployment))
        if any(True for _ in find_drift(self.view, self.key, objects)):
            return True
        return not _is_current(context, group) and token_renewal(self.view, self.key, deployment) is not None

    def _objects(self, context: PoolContext, group: str, replicas: int) -> tuple[Json, ...]:
        """Return the manifests of a group; a Deployment of an earlier template cannot be rendered any more."""
        objects = group_objects(context, group, replicas)
        if not _is_current(context, group):
            objects = tuple(manifest for manifest in objects if kind_of(manifest) != DEPLOYMENTS)
        return with_valid_tokens(self.view, self.key, objects)

    def _assigned(self, packed: str | None) -> tuple[AssignedModel, ...]:
        if packed is None:
            return ()
        if packed not in self.decoded.assignments:
            try:
                read = tuple(map(AssignedModel.model_validate, unpack(packed)))
            except (ValueError, TypeError):
                return ()  # edited by another client; the next pass writes it again
            self.decoded.assignments[packed] = tuple(map(self.interner.intern, read))
        return self.decoded.assignments[packed]

    def _servers(self, members: Iterable[Json], reports: Mapping[str, str]) -> tuple[ServerObserved, ...]:
        return tuple(filter(None, (self._server(pod, reports) for pod in members)))

    def _server(self, pod: Json, reports: Mapping[str, str]) -> ServerObserved | None:
        ip = pods.address(pod)
        if ip is None:
            return None
        report = self._report(pod, reports.get(pod["metadata"]["name"]))
        lost = not pods.container_ready(pod, AGENT_CONTAINER) and pods.unready_for_s(pod, self.clock()) > AGENT_GRACE_S
        runs = pods.container_runs(pod, TRITON_CONTAINER) and not pods.is_cut_off(pod)
        ready = (report.server_ready or not report.is_read) and runs and not lost
        node = str(pod["spec"].get("nodeName") or "")
        metadata, endpoint = pod["metadata"], Endpoint(ip, HTTP_PORT, GRPC_PORT)
        state = (endpoint, ready, report, node)
        known = self.decoded.servers.get(metadata["uid"])
        if known is not None and known[0] == state:
            return known[1]
        server = ServerObserved(metadata["name"], endpoint, ready, report.models, node, is_read=report.is_read)
        self.decoded.servers[metadata["uid"]] = state, server
        return server

    def _report(self, pod: Json, packed: str | None) -> PodReport:
        uid = pod["metadata"]["uid"]
        if packed is not None and packed not in self.decoded.reports:
            self.decoded.reports[packed] = _read_report(packed)
        report = self.decoded.reports[packed] if packed is not None else PodReport()
        if report.uid == uid:
            self.decoded.last[uid] = report
        # One that cannot be read says nothing new: until the agent writes another, the last one holds.
        return self.decoded.last.get(uid, PodReport() if report.is_read else report)

    def waits_for_agents(self) -> bool:
        """Return whether a pod's agent is not ready: its last report counts for `AGENT_GRACE_S`, and then no more."""
        members = (pod for pod in self.view.of_pool(PODS, self.key) if _group(pod) is not None)
        return not all(pods.container_ready(pod, AGENT_CONTAINER) for pod in members)

    async def start(self, group: str, replicas: int) -> None:
        """Create or repair the group's objects; of servers of an earlier template only the number changes."""
        context = self.contexts.get(self.key)
        if context is None:
            return
        await apply_differing(self.api, self.view, self.key, self._objects(context, group, replicas))
        if _is_current(context, group):
            return
        for deployment in self.view.of_pool(DEPLOYMENTS, self.key):
            if _group(deployment) != group:
                continue
            change = token_renewal(self.view, self.key, deployment) or {"spec": {}}
            if _replicas(deployment) != replicas:
                change["spec"]["replicas"] = replicas
            if change["spec"]:
                await self.api.patch(DEPLOYMENTS, self.key.namespace, deployment["metadata"]["name"], change)

    async def assign(self, group: str, assignment: Assignment) -> None:
        """Write the group's assignment for its agents; only shards that differ are written, and all are tried."""
        context = self.contexts.get(self.key)
        if context is None:
            return
        manifests = []
        for shard in range(SHARDS):
            models = [model for model in assignment.models if shard_of(model.model) == shard]
            content = pack([model.to_json() for model in models])
            manifests.append(assignment_config_map(context, group, shard, content))
        await attempt_all(apply_differing(self.api, self.view, self.key, [manifest]) for manifest in manifests)

    async def stop(self, group: str) -> None:
        """Delete the group's objects, except those that are being deleted; all are tried."""
        present = [
            (kind, item["metadata"])
            for kind in self.view.kinds
            if kind != PODS  # deleted with their Deployment
            for item in self.view.of_pool(kind, self.key)
            if _group(item) == group and not pods.is_terminating(item)
        ]
        await attempt_all(
            self.api.delete(kind, self.key.namespace, metadata["name"], uid=metadata["uid"])
            for kind, metadata in present
        )

    def _by_group(self, items: Iterable[Json]) -> dict[str, list[Json]]:
        groups: dict[str, list[Json]] = {}
        for item in items:
            group = _group(item)
            if group is not None:
                groups.setdefault(group, []).append(item)
        return groups

    async def tidy_reports(self) -> int:
        """Prepare ConfigMaps for reports and remove reports of pods that are gone; return the number of writes."""
        context = self.contexts.get(self.key)
        if context is None:
            return 0
        return await ReportMaps(self.api, self.view, self.key).tidy(context, self._count_assigned)

    def _count_assigned(self, group: str) -> int:
        return sum(len(self._assigned(content_of(each))) for each in self._shards(group) if each is not None)

    def _shards(self, group: str) -> list[Json | None]:
        names = (assignment_name(self.key.pool, group, shard) for shard in range(SHARDS))
        return [self.view.get(CONFIG_MAPS, self.key.namespace, name) for name in names]


def _group(item: Mapping[str, Any]) -> str | None:
    labels = item["metadata"].get("labels") or {}
    group: str | None = labels.get(GROUP_LABEL) if labels.get(COMPONENT_LABEL) == SERVER else None
    return group


def _replicas(deployment: Json | None) -> int:
    return int(deployment["spec"].get("replicas", 1)) if deployment is not None else 0


def _is_current(context: PoolContext, group: str) -> bool:
    """Return whether a group is of the present template, whose digest is the last part of its name."""
    return group.rpartition("-")[2] == main_group(context).rpartition("-")[2]


def _read_report(packed: str) -> PodReport:
    try:
        report = unpack(packed, pods.MAX_REPORT_BYTES)
        models = read_reports(report["models"])
        if report["models"] and not models:
            raise ValueError("no model's report can be read")
        return PodReport(str(report["uid"]), bool(report["serverReady"]), models)
    except (ValueError, KeyError, TypeError, AttributeError):
        return PodReport(is_read=False)
