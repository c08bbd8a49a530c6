"""Somebody has the operator's token: what of the cluster is his, in each mode of the chart."""

from __future__ import annotations

from typing import Any, Final

import pytest

from fakes.chart import NAMESPACE, chart_objects
from fakes.rights import CLUSTER, Grant, grants, powers

OPERATOR: Final = (NAMESPACE, "segserve")
OF_A_NAMESPACE: Final = frozenset({"run pods", "read secrets", "act as accounts"})
"""Of a namespace that it works in everything is his: there the operator makes Deployments."""

MODES: Final[dict[str, tuple[dict[str, Any], set[str]]]] = {
    "own namespace": ({}, {NAMESPACE}),
    "own namespace, with a first pool": ({"pool": {"create": True}}, {NAMESPACE}),
    "named namespaces": ({"watchNamespaces": ["lab", "prod"]}, {"lab", "prod"}),
    "cluster-wide": ({"clusterWide": True}, {NAMESPACE}),
    "cluster-wide, with namespaces": ({"clusterWide": True, "watchNamespaces": ["lab", "prod"]}, {"lab", "prod"}),
    "namespaces that can be deleted": ({"rbac": {"namespaceDeletion": True}}, {NAMESPACE}),
}
CASES: Final = [pytest.param(*case, id=name) for name, case in MODES.items()]


@pytest.mark.parametrize(("values", "namespaces"), CASES)
def test_it_runs_pods_and_reads_secrets_only_in_namespaces_that_the_operator_works_in(
    values: dict[str, Any], namespaces: set[str]
) -> None:
    reached = powers(grants(chart_objects(values), OPERATOR))

    assert reached == dict.fromkeys(namespaces, OF_A_NAMESPACE)


@pytest.mark.parametrize(("values", "namespaces"), CASES)
def test_elsewhere_it_writes_nothing_and_reads_neither_secrets_nor_logs(
    values: dict[str, Any], namespaces: set[str]
) -> None:
    elsewhere = [
        grant for grant in grants(chart_objects(values), OPERATOR) if grant.scope not in {*namespaces, NAMESPACE}
    ]

    deleting = (values.get("rbac") or {}).get("namespaceDeletion", False)
    written = {(grant.resource, grant.verb) for grant in elsewhere if grant.verb not in ("get", "list", "watch")}
    assert written == ({("segmentationmodels", "patch"), ("tritonpools", "patch")} if deleting else set())
    assert not {grant.resource for grant in elsewhere} & {"secrets", "pods/log", "serviceaccounts/token"}
    assert bool(elsewhere) is (deleting or "clusterWide" in values)


def test_only_secrets_that_were_named_are_read_and_only_where_the_operator_works() -> None:
    values = {"clusterWide": True, "watchNamespaces": ["lab"], "rbac": {"notificationSecrets": ["pager"]}}

    reached = powers(grants(chart_objects(values), OPERATOR))

    assert reached == {"lab": OF_A_NAMESPACE | {"read the secret pager"}}


def test_in_its_own_namespace_it_holds_a_lease_and_nothing_else_where_it_works_elsewhere() -> None:
    held = {
        grant for grant in grants(chart_objects(MODES["named namespaces"][0]), OPERATOR) if grant.scope == NAMESPACE
    }

    assert {grant.resource for grant in held} == {"leases"}


@pytest.mark.parametrize(("values", "namespaces"), CASES)
def test_no_other_account_of_the_chart_is_worth_stealing(values: dict[str, Any], namespaces: set[str]) -> None:
    objects = chart_objects(values)
    accounts = {
        (item["metadata"]["namespace"], item["metadata"]["name"])
        for item in objects
        if item["kind"] == "ServiceAccount"
    }

    assert OPERATOR in accounts
    assert [powers(grants(objects, account)) for account in accounts - {OPERATOR}] == [{}] * (len(accounts) - 1)


@pytest.mark.parametrize(
    ("verb", "resource", "worth"),
    [
        ("create", "deployments", "run pods"),
        ("patch", "cronjobs", "act as accounts"),
        ("create", "pods/exec", "enter pods"),
        ("list", "secrets", "read secrets"),
        ("create", "serviceaccounts/token", "act as accounts"),
        ("bind", "clusterroles", "everything"),
        ("impersonate", "users", "everything"),
        ("get", "*", "everything"),
        ("patch", "namespaces", "write namespaces"),
        ("create", "clusterrolebindings", "write clusterrolebindings"),
    ],
)
def test_what_amounts_to_more_than_it_says_is_found(verb: str, resource: str, worth: str) -> None:
    """The evaluation itself, on rules that the chart does not have."""
    assert worth in powers([Grant(CLUSTER, verb, "any", resource, None)])[CLUSTER]


def test_tenants_read_the_records_of_decisions_and_cannot_remove_them() -> None:
    roles = {item["metadata"]["name"]: item for item in chart_objects({}) if item["kind"] == "ClusterRole"}

    for role in roles.values():
        verbs = {
            verb for rule in role["rules"] if "segmentationrollouts" in rule["resources"] for verb in rule["verbs"]
        }
        assert verbs == {"get", "list", "watch"}
