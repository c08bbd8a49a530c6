"""What an account reaches with the Roles of some manifests: RBAC as the API server evaluates it, and what follows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from fakes.cluster import Json

CLUSTER: Final = "*"
"""The scope of what a ClusterRoleBinding grants: every namespace, and what is in none."""

_WRITE: Final = frozenset({"create", "update", "patch", "delete", "deletecollection"})
_READ: Final = frozenset({"get", "list", "watch"})
_MAKES_PODS: Final = frozenset(
    {
        "pods",
        "podtemplates",
        "replicationcontrollers",
        "deployments",
        "replicasets",
        "statefulsets",
        "daemonsets",
        "jobs",
        "cronjobs",
    }
)
_ENTERS_PODS: Final = frozenset(
    {"pods/exec", "pods/attach", "pods/ephemeralcontainers", "pods/portforward", "pods/proxy"}
)
_OF_ALL: Final = frozenset(
    {
        "clusterroles",
        "clusterrolebindings",
        "validatingwebhookconfigurations",
        "mutatingwebhookconfigurations",
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
        "mutatingadmissionpolicies",
        "customresourcedefinitions",
        "namespaces",
        "nodes",
        "nodes/proxy",
        "persistentvolumes",
        "apiservices",
        "certificatesigningrequests/approval",
    }
)
"""Whoever writes one of these reaches every namespace."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A verb on a resource, in a namespace or in all (`CLUSTER`); `name` is None for all objects."""

    scope: str
    verb: str
    group: str
    resource: str
    name: str | None


def grants(objects: Iterable[Json], account: tuple[str, str]) -> frozenset[Grant]:
    """Return what the ServiceAccount (namespace, name) may do; AssertionError for a binding to an unknown role."""
    found = list(objects)
    roles = {
        (item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]): item
        for item in found
        if item["kind"] in ("Role", "ClusterRole")
    }
    granted: set[Grant] = set()
    for binding in found:
        if binding["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        if account not in {(subject.get("namespace"), subject["name"]) for subject in binding["subjects"]}:
            continue
        scope = binding["metadata"]["namespace"] if binding["kind"] == "RoleBinding" else CLUSTER
        kind, name = binding["roleRef"]["kind"], binding["roleRef"]["name"]
        role = roles.get((kind, scope if kind == "Role" else None, name))
        assert role is not None, f"{binding['metadata']['name']} binds the unknown {kind} {name}"
        granted |= {grant for rule in role["rules"] for grant in _of_rule(scope, rule)}
    return frozenset(granted)


def powers(granted: Iterable[Grant]) -> Mapping[str, frozenset[str]]:
    """Return, by scope, what the grants are worth: what runs code, reads credentials, or makes rights.

    Who makes pods in a namespace reads its Secrets and acts as its accounts: a pod mounts both.
    """
    found: defaultdict[str, set[str]] = defaultdict(set)
    for grant in granted:
        found[grant.scope] |= set(_powers_of(grant))
    return {scope: frozenset(names) for scope, names in found.items() if names}


def _of_rule(scope: str, rule: Mapping[str, list[str]]) -> Iterator[Grant]:
    names: list[str | None] = [*rule.get("resourceNames", ())] or [None]
    for verb in rule["verbs"]:
        for group in rule.get("apiGroups", ("",)):
            for resource in rule.get("resources", ()):
                yield from (Grant(scope, verb, group, resource, name) for name in names)


def _powers_of(grant: Grant) -> Iterator[str]:
    if "*" in (grant.verb, grant.group, grant.resource) or grant.verb in ("escalate", "bind", "impersonate"):
        yield "everything"
    if grant.resource in _MAKES_PODS and grant.verb in _WRITE - {"delete", "deletecollection"}:
        yield from ("run pods", "read secrets", "act as accounts")
    if grant.resource in _ENTERS_PODS and grant.verb in ("create", "get", "update", "patch"):
        yield from ("enter pods", "act as accounts")
    if grant.resource == "secrets" and grant.verb in _READ | _WRITE:
        yield "read secrets" if grant.name is None else f"read the secret {grant.name}"
    if grant.resource == "serviceaccounts/token":
        yield "act as accounts"
    if grant.resource in _OF_ALL and grant.verb in _WRITE:
        yield f"write {grant.resource}"
