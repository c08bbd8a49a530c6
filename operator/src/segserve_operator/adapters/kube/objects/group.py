"""All objects of one group of servers except its assignment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kubernetes.aio.client import (
    V1Deployment,
    V1DeploymentSpec,
    V1DeploymentStrategy,
    V1LabelSelector,
    V1PodTemplateSpec,
    V1RollingUpdateDeployment,
    V1Service,
    V1ServicePort,
    V1ServiceSpec,
)

from segserve_common.kube.kinds import DEPLOYMENTS, SERVICES, Json
from segserve_common.kube.names import (
    GRPC_PORT,
    HTTP_PORT,
    METRICS_PORT,
    SHARDS,
    assignment_name,
    object_name,
    reports_name,
)
from segserve_operator.adapters.kube.objects.access import access_objects, own_reports_access
from segserve_operator.adapters.kube.objects.config_maps import group_reports, own_report
from segserve_operator.adapters.kube.objects.context import meta, rendered, server_selector, stamped
from segserve_operator.adapters.kube.objects.network import server_policy
from segserve_operator.adapters.kube.objects.pods import disruption_budget
from segserve_operator.adapters.kube.objects.server import server_template

if TYPE_CHECKING:
    from collections.abc import Iterable

    from segserve_operator.adapters.kube.objects.context import PoolContext, rendered

_PROGRESS_S: Final = 1800
"""Deadline for progress; the image of Triton, of about 10 GB, has to be pulled first."""


def group_objects(context: PoolContext, group: str, replicas: int) -> tuple[Json, ...]:
    """Return a group's objects in the order of their creation; the Deployment is last, as pods need the others."""
    return context.once(("group", group, replicas), lambda: _group_objects(context, group, replicas))


def _group_objects(context: PoolContext, group: str, replicas: int) -> tuple[Json, ...]:
    name = object_name(context.pool, group)
    selector = server_selector(context, group)
    read = [assignment_name(context.pool, group, shard) for shard in range(SHARDS)]
    manifests = (
        *access_objects(
            context,
            name,
            selector,
            read=read,
            written=reports_name(context.pool, group),
            annotations=context.spec.server.service_account_annotations,
        ),
        group_reports(context, group),
        server_policy(context, group),
        disruption_budget(context, name, selector),
        _service(context, group),
        deployment(context, name, selector, replicas=replicas, template=server_template(context, group)),
    )
    return tuple(map(stamped, manifests))


def own_report_objects(context: PoolContext, group: str, members: Iterable[Json]) -> tuple[Json, ...]:
    """Return the ConfigMaps of single pods' reports, and the right of their agents to write them."""
    written = [own_report(context, group, pod) for pod in members]
    names = [manifest["metadata"]["name"] for manifest in written]
    account, labels = object_name(context.pool, group), server_selector(context, group)
    access = own_reports_access(context, reports_name(context.pool, group), account, labels, names)
    return (*access, *written)


def deployment(context: PoolContext, name: str, selector: dict[str, str], *, replicas: int, template: Json) -> Json:
    """Return a V1Deployment whose rollouts never reduce the number of ready pods."""
    spec = V1DeploymentSpec(
        replicas=replicas,
        revision_history_limit=1,
        progress_deadline_seconds=_PROGRESS_S,
        strategy=V1DeploymentStrategy(
            type="RollingUpdate", rolling_update=V1RollingUpdateDeployment(max_surge=1, max_unavailable=0)
        ),
        selector=V1LabelSelector(match_labels=selector),
        template=V1PodTemplateSpec(),
    )
    manifest = rendered(DEPLOYMENTS, V1Deployment(metadata=meta(context, name, selector), spec=spec))
    manifest["spec"]["template"] = template
    return manifest


def _service(context: PoolContext, group: str) -> Json:
    selector = server_selector(context, group)
    ports = {"http": HTTP_PORT, "grpc": GRPC_PORT, "metrics": METRICS_PORT}
    spec = V1ServiceSpec(
        type="ClusterIP",
        cluster_ip="None",
        # Readiness differs by model: the gateway's routes follow the agents' reports, not the pod's readiness.
        publish_not_ready_addresses=True,
        selector=selector,
        ports=[V1ServicePort(name=name, port=port, target_port=port, protocol="TCP") for name, port in ports.items()],
    )
    return rendered(SERVICES, V1Service(metadata=meta(context, object_name(context.pool, group), selector), spec=spec))
