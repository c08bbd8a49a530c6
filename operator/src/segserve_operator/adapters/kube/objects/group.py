"""All objects of one group of servers, its assignment aside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lightkube.models.apps_v1 import DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment
from lightkube.models.core_v1 import PodTemplateSpec, ServicePort, ServiceSpec
from lightkube.models.meta_v1 import LabelSelector
from lightkube.resources.apps_v1 import Deployment
from lightkube.resources.core_v1 import Service

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
from segserve_operator.adapters.kube.objects.target import meta, server_selector, stamped

if TYPE_CHECKING:
    from segserve_operator.adapters.kube.objects.target import PoolContext

_PROGRESS_S: Final = 1800
"""An image of Triton has some 10 GB to be pulled first."""


def group_objects(target: PoolContext, group: str, replicas: int) -> tuple[dict[str, Any], ...]:
    """Return a group's objects in the order in which they are made: the pods last, which need the others."""
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


def deployment(
    target: PoolContext, name: str, selector: dict[str, str], *, replicas: int, template: dict[str, Any]
) -> dict[str, Any]:
    """Return a Deployment that never has fewer ready pods than it should because of its own doing."""
    spec = DeploymentSpec(
        replicas=replicas,
        revisionHistoryLimit=1,
        progressDeadlineSeconds=_PROGRESS_S,
        strategy=DeploymentStrategy(
            type="RollingUpdate", rollingUpdate=RollingUpdateDeployment(maxSurge=1, maxUnavailable=0)
        ),
        selector=LabelSelector(matchLabels=selector),
        template=PodTemplateSpec(),
    )
    manifest = Deployment(metadata=meta(target, name, selector), spec=spec).to_dict()
    manifest["spec"]["template"] = template
    return manifest


def _service(target: PoolContext, group: str) -> dict[str, Any]:
    selector = server_selector(target, group)
    ports = {"http": HTTP_PORT, "grpc": GRPC_PORT, "metrics": METRICS_PORT}
    spec = ServiceSpec(
        type="ClusterIP",
        clusterIP="None",
        publishNotReadyAddresses=True,  # whether a pod serves a model is the agent's to say, and the gateway's to use
        selector=selector,
        ports=[ServicePort(name=name, port=port, targetPort=port, protocol="TCP") for name, port in ports.items()],
    )
    return Service(metadata=meta(target, object_name(target.pool, group), selector), spec=spec).to_dict()
