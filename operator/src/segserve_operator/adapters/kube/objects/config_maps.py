"""ConfigMaps between the operator and the pods: assignments, plans and reports."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from kubernetes.aio.client import V1ConfigMap

from segserve_common.kube.kinds import CONFIG_MAPS, PODS, Json
from segserve_common.kube.names import GATEWAY, assignment_name, plan_name, report_name, reports_name
from segserve_common.kube.shards import CONTENT_KEY, VERSION_KEY, version_of
from segserve_operator.adapters.kube.objects.context import gateway_selector, meta, rendered, server_selector

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from segserve_operator.adapters.kube.objects.context import PoolContext, rendered

CHANGED_KEY: Final = "changed"


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
