"""What an API server lets through and what it adds: rules by kind, each a plain function."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

from fakes.kube_fields import Json, copied
from segserve_common.api_errors import ConflictError, InvalidError
from segserve_common.kube.kinds import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    NETWORK_POLICIES,
    PODS,
    REVISIONS,
    ROLE_BINDINGS,
    SERVICES,
    Kind,
)

Key = tuple[Kind, str, str]

_CUSTOM = "segserve.dev"
_WITH_STATUS = {DEPLOYMENTS, PODS, SERVICES, DISRUPTION_BUDGETS}
_WITH_GENERATION = {DEPLOYMENTS, DISRUPTION_BUDGETS, NETWORK_POLICIES}
IMMUTABLE = {REVISIONS: ("data",), DEPLOYMENTS: ("spec", "selector"), ROLE_BINDINGS: ("roleRef",)}
DEFAULTS: dict[Kind, Json] = {
    DEPLOYMENTS: {"spec": {"progressDeadlineSeconds": 600, "revisionHistoryLimit": 10}},
    SERVICES: {"spec": {"type": "ClusterIP", "sessionAffinity": "None"}},
    PODS: {"spec": {"restartPolicy": "Always", "dnsPolicy": "ClusterFirst"}},
}
"""A few of what a server adds of its own: what was applied is a part of what is there, never all of it."""

_GIVEN = ("labels", "annotations", "ownerReferences", "finalizers")
_MOST_BYTES = 1024 * 1024
_HANDLERS = {"httpGet", "exec", "tcpSocket", "grpc"}


def has_status(kind: Kind) -> bool:
    """Return whether a kind's status is written apart from all else."""
    return kind in _WITH_STATUS or kind.group.endswith(_CUSTOM)


def _has_generation(kind: Kind) -> bool:
    return kind in _WITH_GENERATION or kind.group.endswith(_CUSTOM)


def named(key: Key) -> str:
    """Return how messages call an object."""
    kind, namespace, name = key
    return f'{kind.plural} "{namespace}/{name}"'


def placed(namespace: str, manifest: Json) -> Json:
    """Return a manifest that says the namespace it is sent to."""
    metadata = manifest["metadata"]
    if metadata.get("namespace", namespace) != namespace:
        raise InvalidError(f"namespace {metadata['namespace']!r} is not the request's, {namespace!r}")
    return {**manifest, "metadata": {**metadata, "namespace": namespace}}


def content(kind: Kind, item: Json) -> Json:
    """Return the part of an object that writers other than the status's say."""
    apart = {"apiVersion", "kind", "metadata"} | ({"status"} if has_status(kind) else set())
    found = {name: copied(value) for name, value in item.items() if name not in apart}
    for name in ("data", "binaryData"):
        if kind == CONFIG_MAPS and not found.get(name, True):
            del found[name]  # empty is absent
    metadata = {name: copied(value) for name, value in item.get("metadata", {}).items() if name in _GIVEN and value}
    return found | ({"metadata": metadata} if metadata else {})


def created(key: Key, said: Json, uid: str, now: str) -> Json:
    """Return a new object with this content."""
    kind, namespace, name = key
    identity: Json = {"name": name, "namespace": namespace, "uid": uid, "creationTimestamp": now}
    if _has_generation(kind):
        identity["generation"] = 1
    whole = {"apiVersion": kind.api_version, "kind": kind.name, **said}
    whole["metadata"] = {**said.get("metadata", {}), **identity}
    check_size(key, whole)
    return defaulted(whole, DEFAULTS.get(kind, {}))


def replaced(key: Key, live: Json, said: Json, admission: Callable[[Kind, Json], None]) -> Json:
    """Return an object with other content; its generation tells of changes to what is neither metadata nor status."""
    kind = key[0]
    kept = {name: value for name, value in live["metadata"].items() if name not in _GIVEN}
    whole: Json = {"apiVersion": kind.api_version, "kind": kind.name, **said}
    whole["metadata"] = {**said.get("metadata", {}), **kept}
    if has_status(kind) and "status" in live:
        whole["status"] = live["status"]
    whole = defaulted(copied(whole), DEFAULTS.get(kind, {}))
    admission(kind, whole)
    check_size(key, whole)
    check_change(key, live, whole)
    check_alternatives(key, whole)
    if _has_generation(kind) and _counted(live) != _counted(whole):
        whole["metadata"]["generation"] += 1
    return whole


def deleting(live: Json, now: str) -> Json:
    """Return an object that is to go as soon as nothing holds it."""
    metadata = {**live["metadata"], "deletionTimestamp": now}
    if "generation" in metadata:
        metadata["generation"] += 1  # as real servers do
    return {**live, "metadata": metadata}


def held(kind: Kind, item: Json) -> bool:
    """Return whether a deleted object stays: for its finalizers, or as a pod until its kubelet has ended it."""
    return bool(item["metadata"].get("finalizers")) or (kind == PODS and bool(item.get("spec", {}).get("nodeName")))


def check_precondition(key: Key, live: Json, sent: Json, on: tuple[str, ...] = ("resourceVersion", "uid")) -> None:
    """Refuse what was meant for another version of the object, or for another of its name."""
    for name in on:
        wanted, has = sent.get("metadata", {}).get(name), live["metadata"][name]
        if wanted and wanted != has:
            raise ConflictError(f"{named(key)} has {name} {has}, not {wanted}")


def check_change(key: Key, live: Json, whole: Json) -> None:
    """Refuse changes of what may not change."""
    fields = IMMUTABLE.get(key[0])
    if fields and _at(live, fields) != _at(whole, fields):
        raise InvalidError(f"{named(key)}: {'.'.join(fields)} is immutable")
    before, after = (set(item["metadata"].get("finalizers") or ()) for item in (live, whole))
    if "deletionTimestamp" in live["metadata"] and after - before:
        raise InvalidError(f"{named(key)} is being deleted and takes no new finalizers")


def check_alternatives(key: Key, whole: Json) -> None:
    """Refuse probes with two handlers and variables with two values."""
    if key[0] != DEPLOYMENTS:
        return
    for container in whole["spec"].get("template", {}).get("spec", {}).get("containers", ()):
        probes = [container.get(name, {}) for name in ("startupProbe", "livenessProbe", "readinessProbe")]
        if any(len(_HANDLERS & probe.keys()) > 1 for probe in probes):
            raise InvalidError(f"{named(key)}: may not specify more than 1 handler type")
        if any({"value", "valueFrom"} <= variable.keys() for variable in container.get("env", ())):
            raise InvalidError(f"{named(key)}: valueFrom may not be specified when `value` is not empty")


def check_size(key: Key, item: Json) -> None:
    """Refuse a ConfigMap that is too large."""
    if key[0] != CONFIG_MAPS:
        return
    size = sum(len(value.encode()) for value in item.get("data", {}).values())
    size += sum(len(base64.b64decode(value)) for value in item.get("binaryData", {}).values())
    if size > _MOST_BYTES:
        raise InvalidError(f"{named(key)} has {size} bytes; at most {_MOST_BYTES} are allowed")


def defaulted(item: Json, defaults: Json) -> Json:
    """Return an object with what it does not say."""
    into = dict(item)
    for name, value in defaults.items():
        if isinstance(value, dict):
            into[name] = defaulted(into.get(name) or {}, value)
        else:
            into.setdefault(name, value)
    return into


def selected(items: list[Json], namespace: str | None, labels: Mapping[str, str]) -> list[Json]:
    """Return copies of the objects of a namespace (of all where that is None) that have these labels."""
    return [
        copied(item)
        for item in items
        if namespace in (None, item["metadata"]["namespace"])
        and labels.items() <= item["metadata"].get("labels", {}).items()
    ]


def versions_of(items: list[Json]) -> dict[tuple[str, str], str]:
    """Return the resourceVersions by (namespace, name)."""
    found = [item["metadata"] for item in items]
    return {(metadata["namespace"], metadata["name"]): metadata["resourceVersion"] for metadata in found}


def _counted(item: Json) -> Json:
    return {name: value for name, value in item.items() if name not in ("metadata", "status")}


def _at(item: Any, fields: tuple[str, ...]) -> Any:
    for name in fields:
        item = item.get(name, {})
    return item
