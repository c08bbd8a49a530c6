"""All objects of one group of servers, its assignment aside."""

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
from segserve_operator.adapters.kube.objects.access import access_objects
from segserve_operator.adapters.kube.objects.config_maps import group_reports
from segserve_operator.adapters.kube.objects.disruption import disruption_budget
from segserve_operator.adapters.kube.objects.network import server_policy
from segserve_operator.adapters.kube.objects.server import server_template
from segserve_operator.adapters.kube.objects.target import meta, rendered, server_selector, stamped

if TYPE_CHECKING:
    from segserve_operator.adapters.kube.objects.target import PoolContext, rendered

_PROGRESS_S: Final = 1800
"""An image of Triton has some 10 GB to be pulled first."""


def group_objects(target: PoolContext, group: str, replicas: int) -> tuple[Json, ...]:
    """Return a group's objects in the order in which they are created: the pods last, which need the others."""
    return target.once(("group", group, replicas), lambda: _group_objects(target, group, replicas))


def _group_objects(target: PoolContext, group: str, replicas: int) -> tuple[Json, ...]:
    name = object_name(target.pool, group)
    selector = server_selector(target, group)
    read = [assignment_name(target.pool, group, shard) for shard in range(SHARDS)]
    manifests = (
        *access_objects(
            target,
            name,
            selector,
            read=read,
            written=reports_name(target.pool, group),
            annotations=target.spec.server.service_account_annotations,
        ),
        group_reports(target, group),
        server_policy(target, group),
        disruption_budget(target, name, selector),
        _service(target, group),
        deployment(target, name, selector, replicas=replicas, template=server_template(target, group)),
    )
    return tuple(map(stamped, manifests))


def deployment(target: PoolContext, name: str, selector: dict[str, str], *, replicas: int, template: Json) -> Json:
    """Return a V1Deployment that never has fewer ready pods than it should because of its own doing."""
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
    manifest = rendered(DEPLOYMENTS, V1Deployment(metadata=meta(target, name, selector), spec=spec))
    manifest["spec"]["template"] = template
    return manifest


def _service(target: PoolContext, group: str) -> Json:
    selector = server_selector(target, group)
    ports = {"http": HTTP_PORT, "grpc": GRPC_PORT, "metrics": METRICS_PORT}
    spec = V1ServiceSpec(
        type="ClusterIP",
        cluster_ip="None",
        # Whether a pod serves a model is for its agent to say; the gateway uses it.
        publish_not_ready_addresses=True,
        selector=selector,
        ports=[V1ServicePort(name=name, port=port, target_port=port, protocol="TCP") for name, port in ports.items()],
    )
    return rendered(SERVICES, V1Service(metadata=meta(target, object_name(target.pool, group), selector), spec=spec))
