"""Checks of a cluster, each with a remedy."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from segserve_common.kube.kinds import (
    CUSTOM_RESOURCE_DEFINITIONS,
    DEPLOYMENTS,
    LEASES,
    NAMESPACES,
)
from segserve_operator.api.crd import crd
from segserve_operator.api.resources import KINDS
from segserve_platform.platforms.errors import INSTALL, ControlError, ForbiddenError, NotFoundError
from segserve_platform.platforms.port import DoctorCheck

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from segserve_platform.platforms.cluster.context_client import ContextClient
    from segserve_platform.platforms.port import Json

OPERATOR: Final = {"app.kubernetes.io/name": "segserve", "app.kubernetes.io/component": "operator"}
LEASE: Final = "segserve-operator"
LEASE_S: Final = 30
OLDEST: Final = (1, 30)

DEFINE: Final = "segserve crds | kubectl apply --server-side -f -"
_UPGRADE: Final = "helm upgrade segserve charts/segserve, or `segserve crds | kubectl apply --server-side -f -`"


def checks(client: ContextClient) -> Iterator[DoctorCheck]:
    """Yield the checks in the order in which to fix them; without an answer of the API server, only the first two."""
    yield DoctorCheck("context", good=True, seen=f"{client.context}, namespace {client.namespace}, {client.server}")
    try:
        version = json.loads(client.text("/version"))
    except ControlError as error:
        yield DoctorCheck("API server", good=False, seen="no answer", advice=str(error))
        return
    yield _version(version)
    for kind in KINDS.values():
        yield _guarded(kind.crd_name, partial(_definition, client, kind.kind))
    yield _guarded("operator", lambda: _operator(client))


def _guarded(what: str, check: Callable[[], DoctorCheck]) -> DoctorCheck:
    try:
        return check()
    except ForbiddenError as error:
        return DoctorCheck(what, good=True, seen=f"not for you to see ({str(error).partition(';')[0]})")
    except ControlError as error:
        return DoctorCheck(what, good=False, seen="no answer", advice=str(error))


def _version(version: Mapping[str, str]) -> DoctorCheck:
    # Some providers append a sign to the minor version, as in 27+.
    number = tuple(int("".join(filter(str.isdigit, version.get(part, "")) or "0")) for part in ("major", "minor"))
    return DoctorCheck(
        "API server", number >= OLDEST, str(version.get("gitVersion")), "segserve needs Kubernetes 1.30 or newer"
    )


def _definition(client: ContextClient, kind: str) -> DoctorCheck:
    own = crd(KINDS[kind])
    name = own["metadata"]["name"]
    installed, _ = client.list(CUSTOM_RESOURCE_DEFINITIONS, fields=f"metadata.name={name}", everywhere=True)
    if not installed:
        return DoctorCheck(name, good=False, seen="not there", advice=INSTALL, fix=DEFINE)
    missing = sorted(_fields(own) - _fields(installed[0]))
    if missing:
        seen = f"older than this segserve: it lacks {', '.join(missing[:3])}{' ...' if missing[3:] else ''}"
        return DoctorCheck(name, good=False, seen=seen, advice=_UPGRADE, fix=DEFINE)
    newer = sorted(_fields(installed[0]) - _fields(own))
    if newer:
        advice = f"pip install --upgrade segserve: it does not know {', '.join(newer[:3])}"
        return DoctorCheck(
            name, good=False, seen="newer than this segserve", advice=advice, fix="pip install -U segserve"
        )
    return DoctorCheck(name, good=True, seen="current")


def _fields(definition: Json) -> set[str]:
    """Return the paths of all fields of all versions; API servers change other parts of a definition."""
    paths: set[str] = set()
    for version in definition["spec"]["versions"]:
        _collect_fields(version["schema"]["openAPIV3Schema"], version["name"], paths)
    return paths


def _collect_fields(schema: Any, path: str, paths: set[str]) -> None:
    for name, inner in (schema.get("properties") or {}).items():
        paths.add(f"{path}.{name}")
        _collect_fields(inner, f"{path}.{name}", paths)
    if isinstance(schema.get("items"), dict):
        _collect_fields(schema["items"], f"{path}[]", paths)


def operator_version(client: ContextClient) -> str:
    """Return the version of the operator that works in the namespace, "" if its Deployment cannot be seen."""
    try:
        responsible = [each for each in _operators(client) if _works_in(client, each)]
    except ForbiddenError:
        return ""
    labels = responsible[0]["metadata"].get("labels") or {} if responsible else {}
    return str(labels.get("app.kubernetes.io/version", ""))


def _operators(client: ContextClient) -> Sequence[Json]:
    """Return the Deployments of operators: all that the user may see."""
    try:
        return client.list(DEPLOYMENTS, labels=OPERATOR, everywhere=True)[0]
    except ForbiddenError:
        return client.list(DEPLOYMENTS, labels=OPERATOR)[0]


def _operator(client: ContextClient) -> DoctorCheck:
    deployments = _operators(client)
    responsible = [each for each in deployments if _works_in(client, each)]
    for deployment in sorted(responsible, key=lambda each: not (each.get("status") or {}).get("readyReplicas")):
        metadata, status = deployment["metadata"], deployment.get("status") or {}
        ready, replicas = status.get("readyReplicas", 0), deployment["spec"].get("replicas", 1)
        image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
        place = f"deployment/{metadata['name']} in {metadata['namespace']}"
        advice = f"kubectl -n {metadata['namespace']} describe deployment/{metadata['name']}, and its logs"
        return DoctorCheck("operator", ready > 0, f"{place}, {ready} of {replicas} ready, {image}", advice)
    # An operator outside the cluster has no Deployment, but holds the lease.
    holder = _lease_holder(client)
    if holder is not None:
        return DoctorCheck("operator", good=True, seen=f"no Deployment, but {holder} holds the lease")
    others = ", ".join(sorted(f"{each['metadata']['namespace']}/{each['metadata']['name']}" for each in deployments))
    seen = (
        f"none works in {client.namespace}; others: {others}" if others else "no Deployment, and nobody holds a lease"
    )
    return DoctorCheck("operator", good=False, seen=seen, advice=INSTALL)


def _works_in(client: ContextClient, deployment: Json) -> bool:
    """Return whether an operator works in the client's namespace; one without a setting works in all of them."""
    container, own = deployment["spec"]["template"]["spec"]["containers"][0], deployment["metadata"]["namespace"]
    # The base of kustomize takes the operator's own namespace from its pod.
    environment = {
        each["name"]: own if "valueFrom" in each else each.get("value") or "" for each in container.get("env", ())
    }
    namespaces = [name.strip() for name in environment.get("SEGSERVE_NAMESPACES", "").split(",") if name.strip()]
    if environment.get("SEGSERVE_CLUSTER_WIDE") != "true":
        return not namespaces or client.namespace in namespaces
    if client.namespace in namespaces:
        return True
    try:
        labels = client.get(NAMESPACES, client.namespace)["metadata"].get("labels") or {}
    except (ForbiddenError, NotFoundError):
        return True  # a tenant may not be able to read namespaces
    return labels.get("segserve.dev/enabled") == "true"


def _lease_holder(client: ContextClient) -> str | None:
    """Return the holder of a lease that was renewed within `LEASE_S`, or None."""
    leases, _ = client.list(LEASES, fields=f"metadata.name={LEASE}", everywhere=True)
    for lease in leases:
        spec = lease.get("spec") or {}
        renewed = spec.get("renewTime")
        if renewed and datetime.now(UTC) - datetime.fromisoformat(renewed) < timedelta(seconds=LEASE_S):
            return f"{spec.get('holderIdentity')} (namespace {lease['metadata']['namespace']})"
    return None
