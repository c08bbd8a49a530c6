"""Sizes of stored objects, as Prometheus sees them."""

from __future__ import annotations

import base64
from typing import Any

from prometheus_client import CollectorRegistry

from segserve_common.kube.kinds import CONFIG_MAPS, MODELS, POOLS
from segserve_common.kube.names import COMPONENT_LABEL, GATEWAY, MANAGED_LABELS, POOL_LABEL, SERVER
from segserve_common.kube.shards import CONTENT_KEY
from segserve_operator.adapters.kube.view import View
from segserve_operator.metrics.registry import StoredSizes


def config_map(name: str, component: str, version: int = 1, **content: int) -> dict[str, Any]:
    labels = {**MANAGED_LABELS, POOL_LABEL: "default", COMPONENT_LABEL: component}
    metadata = {"name": name, "namespace": "lab", "uid": name, "resourceVersion": str(version), "labels": labels}
    return {
        "metadata": metadata,
        "binaryData": {key: base64.b64encode(b"x" * size).decode() for key, size in content.items()},
    }


def seen(registry: CollectorRegistry) -> dict[str, float]:
    samples = [sample for family in registry.collect() for sample in family.samples]
    assert {(each.labels["namespace"], each.labels["pool"]) for each in samples} <= {("lab", "default")}
    return {each.labels["purpose"]: each.value for each in samples}


def test_the_largest_object_of_each_purpose_is_told_and_follows_changes() -> None:
    view, registry = View((MODELS, POOLS, CONFIG_MAPS)), CollectorRegistry()
    sizes = StoredSizes(registry)
    view.take(CONFIG_MAPS, config_map("assignment-0", SERVER, **{CONTENT_KEY: 300}))
    view.take(CONFIG_MAPS, config_map("assignment-1", SERVER, **{CONTENT_KEY: 600}))
    view.take(CONFIG_MAPS, config_map("plan-0", GATEWAY, **{CONTENT_KEY: 900}))
    view.take(CONFIG_MAPS, config_map("reports", SERVER, pod=30, other=60))
    metadata = {"name": "coins", "namespace": "lab", "uid": "coins", "resourceVersion": "1"}
    view.take(MODELS, {"metadata": metadata, "spec": {}, "status": {"url": "x" * 90}})
    sizes.observe(view)

    assert seen(registry) == {"assignment": 600, "plan": 900, "reports": 90, "status": 101}

    view.take(CONFIG_MAPS, config_map("reports", SERVER, 2, pod=30))
    view.drop(CONFIG_MAPS, config_map("plan-0", GATEWAY, 3))
    sizes.observe(view)

    assert seen(registry) == {"assignment": 600, "reports": 30, "status": 101}
