"""All objects of one group of servers: its Service and Deployment, its ConfigMaps, and records of revisions.

ConfigMaps between the operator and the pods are assignments, plans and reports. Records of revisions are
V1ControllerRevisions, whose data is immutable.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from kubernetes.aio.client import (
    V1ConfigMap,
    V1ControllerRevision,
    V1Deployment,
    V1DeploymentSpec,
    V1DeploymentStrategy,
    V1LabelSelector,
    V1ObjectMeta,
    V1OwnerReference,
    V1PodTemplateSpec,
    V1RollingUpdateDeployment,
    V1Service,
    V1ServicePort,
    V1ServiceSpec,
)

from segserve_common.canonical import json_digest
from segserve_common.kube.kinds import CONFIG_MAPS, DEPLOYMENTS, MODELS, PODS, REVISIONS, SERVICES, Json, Kind
from segserve_common.kube.names import (
    GATEWAY,
    GRPC_PORT,
    HTTP_PORT,
    MANAGED_LABELS,
    METRICS_PORT,
    MODEL_LABEL,
    POOL_LABEL,
    REVISION_LABEL,
    SHARDS,
    assignment_name,
    object_name,
    plan_name,
    report_name,
    reports_name,
)
from segserve_common.kube.shards import CONTENT_KEY, VERSION_KEY, version_of
from segserve_operator.adapters.kube.objects.context import gateway_selector, meta, rendered, server_selector, stamped
from segserve_operator.adapters.kube.objects.network import access_objects, own_reports_access, server_policy
from segserve_operator.adapters.kube.objects.pods import disruption_budget
from segserve_operator.adapters.kube.objects.server import server_template
from segserve_operator.mapping.notes import metadata_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from segserve_builder.agent.protocol import AssignedModel
    from segserve_operator.adapters.kube.objects.context import PoolContext
    from segserve_operator.core.world.restore import RevisionNote

CHANGED_KEY: Final = "changed"
_PROGRESS_S: Final = 1800
"""Deadline for progress; the image of Triton, of about 10 GB, has to be pulled first."""


def revision_object(
    *, namespace: str, pool: str, model: str, uid: str, revision: str, assigned: AssignedModel, number: int
) -> Json:
    """Return the record of a revision; `number` is higher than the numbers of the model's earlier records.

    `model` and `uid` are its owner's. The name contains a digest of the content, so that a changed record of the
    same revision, as after an artifact was moved, is another object.
    """
    # Of all fields, including defaults: a name depends on the content, not on the form in which it is stored.
    content = json_digest(assigned.model_dump(mode="json", by_alias=True, exclude_none=True), 8)
    owner = V1OwnerReference(
        api_version=MODELS.api_version,
        kind=MODELS.name,
        name=model,
        uid=uid,
        controller=True,
        block_owner_deletion=False,
    )
    labels = {**MANAGED_LABELS, POOL_LABEL: pool, MODEL_LABEL: model, REVISION_LABEL: revision}
    metadata = V1ObjectMeta(name=f"{revision}-{content}", namespace=namespace, labels=labels, owner_references=[owner])
    return rendered(REVISIONS, V1ControllerRevision(metadata=metadata, data=assigned.to_json(), revision=number))


def role_patch(note: RevisionNote, model: str, uid: str) -> Json:
    """Return the patch that writes a note into a revision's record and makes the model of this `uid` its owner."""
    return {"metadata": {**metadata_of(note), "ownerReferences": [owner_reference(MODELS, model, uid)]}}


def has_role(record: Json, note: RevisionNote, uid: str) -> bool:
    """Return whether a record has a note and belongs to the model of this `uid`."""
    metadata, desired = record["metadata"], metadata_of(note)
    held = ((metadata.get(part) or {}).items() >= desired[part].items() for part in desired)
    return all(held) and [owner.get("uid") for owner in metadata.get("ownerReferences") or ()] == [uid]


def owner_reference(kind: Kind, name: str, uid: str) -> Json:
    """Return the reference to the object with which another one is deleted."""
    return {
        "apiVersion": kind.api_version,
        "kind": kind.name,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def assignment_config_map(context: PoolContext, group: str, shard: int, content: str) -> Json:
    """Return the V1ConfigMap of one shard of a group's assignment; `content` is packed."""
    return _shard(context, assignment_name(context.pool, group, shard), server_selector(context, group), content)


def plan_config_map(context: PoolContext, shard: int, content: str, changed: Iterable[str]) -> Json:
    """Return the V1ConfigMap of one shard of a gateway's plan; `content` is packed.

    `changed` names the models whose route differs from a version that some gateway may still follow.
    """
    manifest = _shard(context, plan_name(context.pool, shard), gateway_selector(context), content)
    manifest["data"][CHANGED_KEY] = json.dumps(sorted(changed))
    return manifest


def group_reports(context: PoolContext, group: str) -> Json:
    """Return the empty V1ConfigMap of a group's reports, into which each pod writes its own key."""
    return _empty(context, reports_name(context.pool, group), server_selector(context, group))


def own_report(context: PoolContext, group: str, pod: Json) -> Json:
    """Return the empty V1ConfigMap of one pod's report, which Kubernetes deletes with the pod."""
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    manifest = _empty(context, report_name(name), server_selector(context, group))
    owner = {"apiVersion": PODS.api_version, "kind": PODS.name, "name": name, "uid": uid}
    return {**manifest, "metadata": {**manifest["metadata"], "ownerReferences": [owner]}}


def gateway_reports(context: PoolContext) -> Json:
    """Return the empty V1ConfigMap of the gateway's reports, into which each pod writes its own key."""
    return _empty(context, reports_name(context.pool, GATEWAY), gateway_selector(context))


def _shard(context: PoolContext, name: str, labels: Mapping[str, str], content: str) -> Json:
    config_map = V1ConfigMap(
        metadata=meta(context, name, labels),
        data={VERSION_KEY: version_of(content)},
        binary_data={CONTENT_KEY: content},
    )
    return rendered(CONFIG_MAPS, config_map)


def _empty(context: PoolContext, name: str, labels: Mapping[str, str]) -> Json:
    return rendered(CONFIG_MAPS, V1ConfigMap(metadata=meta(context, name, labels)))


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
