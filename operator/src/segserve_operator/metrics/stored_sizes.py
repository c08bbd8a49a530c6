"""Sizes of what segserve stores in the cluster, as metrics: Kubernetes refuses a ConfigMap above 1 MiB."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Gauge

from segserve_common.kube.kinds import CONFIG_MAPS, MODELS, POOLS, Kind
from segserve_common.kube.names import COMPONENT_LABEL, GATEWAY
from segserve_common.kube.shards import CONTENT_KEY
from segserve_operator.adapters.kube.view import PoolKey, View

_KINDS: Final = (CONFIG_MAPS, MODELS, POOLS)


class StoredSizes:
    """A gauge of the largest object of each pool and purpose: reports, assignment, plan, status."""

    def __init__(self, registry: CollectorRegistry) -> None:
        text = "Bytes of the largest object of its purpose: reports, assignment, plan, or the status of a resource."
        self._gauge = Gauge("segserve_stored_bytes", text, ["namespace", "pool", "purpose"], registry=registry)
        self._sizes: dict[str, tuple[str, str, int]] = {}

    def observe(self, view: View) -> None:
        """Set the gauge to the present sizes; only objects that changed since the last time are measured."""
        self._gauge.clear()
        sizes: dict[str, tuple[str, str, int]] = {}
        for key in view.pools():
            largest: dict[str, int] = {}
            for kind, item in _objects(view, key):
                uid, version = item["metadata"]["uid"], item["metadata"]["resourceVersion"]
                known = self._sizes.get(uid)
                sizes[uid] = known if known is not None and known[0] == version else (version, *_measured(kind, item))
                _, purpose, size = sizes[uid]
                largest[purpose] = max(largest.get(purpose, 0), size)
            for purpose, size in largest.items():
                self._gauge.labels(key.namespace, key.pool, purpose).set(size)
        self._sizes = sizes


def _objects(view: View, key: PoolKey) -> Iterator[tuple[Kind, Mapping[str, Any]]]:
    for kind in _KINDS:
        if kind in view.kinds:
            for item in view.of_pool(kind, key):
                yield kind, item


def _measured(kind: Kind, item: Mapping[str, Any]) -> tuple[str, int]:
    """Return an object's purpose and its size in bytes."""
    if kind != CONFIG_MAPS:
        return "status", len(json.dumps(item.get("status") or {}))
    binary, plain = item.get("binaryData") or {}, item.get("data") or {}
    size = sum(len(text) * 3 // 4 for text in binary.values()) + sum(len(text.encode()) for text in plain.values())
    if CONTENT_KEY not in binary:
        return "reports", size
    is_plan = (item["metadata"].get("labels") or {}).get(COMPONENT_LABEL) == GATEWAY
    return ("plan" if is_plan else "assignment"), size
