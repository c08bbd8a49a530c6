"""What the chart's objects may do: to the API server, and on their nodes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import pytest

from segserve_common.kube.kinds import CHILDREN, EVENTS, GATEWAY_ROUTES, LEASES, MODELS, PODS, POOLS, ROLLOUTS, Kind
from segserve_common.kube.names import object_name
from segserve_operator.adapters.kube.objects import Defaults

from .conftest import Render, of_kind, the
from .test_chart import SETS, WITH_PAGE

KEPT: Final = {"get", "list", "watch", "create", "patch", "delete"}
SEEN: Final = {"get", "list", "watch"}
GRANTED: Final = {"get", "list", "watch", "patch"}
"""What the Roles of servers and gateways have of ConfigMaps: nobody may grant what it does not hold."""

Rules = list[dict[str, Any]]


@pytest.fixture
def cluster_rules(render: Render) -> Rules:
    return named(of_kind(render(SETS["clusterwide"]), "ClusterRole"), "segserve-namespace")["rules"]


@pytest.fixture
def namespaced_rules(render: Render) -> Rules:
    roles = of_kind(render(SETS["namespaced"]), "Role")
    return next(role for role in roles if role["metadata"]["namespace"] == "lab")["rules"]


@pytest.mark.parametrize("scope", ["cluster_rules", "namespaced_rules"])
@pytest.mark.parametrize(
    ("kind", "verbs"),
    [
        *((kind, SEEN if kind is PODS else KEPT) for kind in (*CHILDREN, *GATEWAY_ROUTES)),
        (MODELS, SEEN | {"patch"}),
        (POOLS, SEEN | {"patch"}),
        (ROLLOUTS, KEPT),
        (EVENTS, {"create", "patch"}),
    ],
    ids=lambda value: value.plural if isinstance(value, Kind) else "",
)
def test_the_operator_may_do_what_it_does_and_nothing_else(
    kind: Kind, verbs: set[str], scope: str, request: pytest.FixtureRequest
) -> None:
    assert verbs_on(request.getfixturevalue(scope), kind.group, kind.plural) == verbs


@pytest.mark.parametrize("scope", ["cluster_rules", "namespaced_rules"])
def test_the_operator_has_no_rights_on_parts_of_pods(scope: str, request: pytest.FixtureRequest) -> None:
    parts = {
        resource for rule in request.getfixturevalue(scope) for resource in rule["resources"] if "pods/" in resource
    }
    assert not parts


@pytest.mark.parametrize("scope", [{}, SETS["namespaced"], SETS["clusterwide"]], ids=["own", "named", "cluster"])
def test_of_secrets_the_operator_reads_those_that_were_named_and_no_others(
    scope: dict[str, Any], render: Render
) -> None:
    objects = render({**scope, "rbac": {"notificationSecrets": ["hooks", "pager"]}})
    rules = [rule for rule in all_rules(objects) if "secrets" in rule["resources"]]
    assert rules
    for rule in rules:
        assert rule == {
            "apiGroups": [""],
            "resources": ["secrets"],
            "resourceNames": ["hooks", "pager"],
            "verbs": ["get"],
        }


def test_people_read_the_records_of_rollouts_and_do_not_write_them(render: Render) -> None:
    roles = of_kind(render(), "ClusterRole")
    assert verbs_on(named(roles, "segserve-view")["rules"], ROLLOUTS.group, ROLLOUTS.plural) == SEEN
    assert not verbs_on(named(roles, "segserve-edit")["rules"], ROLLOUTS.group, ROLLOUTS.plural) & {"create", "patch"}


@pytest.mark.parametrize("kind", [MODELS, POOLS, ROLLOUTS], ids=lambda kind: kind.plural)
def test_the_operator_writes_the_status_of_what_it_reads(kind: Kind, cluster_rules: Rules) -> None:
    assert "patch" in verbs_on(cluster_rules, kind.group, f"{kind.plural}/status")


@pytest.mark.parametrize("name", WITH_PAGE)
def test_nobody_gets_secrets_wildcards_or_the_right_to_grant_more(name: str, render: Render) -> None:
    for rule in all_rules(render(WITH_PAGE[name])):
        assert "secrets" not in rule["resources"]
        assert "*" not in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])
        assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])


@pytest.mark.parametrize("scope", ["cluster_rules", "namespaced_rules"])
def test_the_operator_holds_what_it_grants_to_servers_and_gateways(scope: str, request: pytest.FixtureRequest) -> None:
    assert verbs_on(request.getfixturevalue(scope), "", "configmaps") >= GRANTED


def test_with_named_namespaces_there_is_nothing_of_the_cluster_and_nothing_elsewhere(render: Render) -> None:
    objects = render({**SETS["namespaced"], "crds": {"enabled": False}})
    assert not [found for found in objects if found["kind"].startswith("Cluster")]
    roles = {(role["metadata"]["namespace"], role["metadata"]["name"]) for role in of_kind(objects, "Role")}
    assert roles == {("vision", "segserve"), ("lab", "segserve"), ("vision", "segserve-leader")}


@pytest.mark.parametrize("name", WITH_PAGE)
def test_every_binding_binds_a_role_of_the_release_to_one_of_its_accounts(name: str, render: Render) -> None:
    objects = render(WITH_PAGE[name])
    accounts = {found["metadata"]["name"] for found in of_kind(objects, "ServiceAccount")}
    roles = {
        (found["kind"], found["metadata"].get("namespace"), found["metadata"]["name"])
        for found in objects
        if found["kind"] in ("Role", "ClusterRole")
    }
    for binding in (*of_kind(objects, "RoleBinding"), *of_kind(objects, "ClusterRoleBinding")):
        role = binding["roleRef"]
        namespace = binding["metadata"].get("namespace") if role["kind"] == "Role" else None
        assert (role["kind"], namespace, role["name"]) in roles
        for subject in binding["subjects"]:
            assert subject["namespace"] == "vision"
            assert subject["name"] in accounts


def test_the_operator_of_a_cluster_can_watch_all_that_it_keeps_and_namespaces(render: Render) -> None:
    rules = named(of_kind(render(SETS["clusterwide"]), "ClusterRole"), "segserve")["rules"]
    for kind in (*CHILDREN, *GATEWAY_ROUTES, MODELS, POOLS, ROLLOUTS):
        assert verbs_on(rules, kind.group, kind.plural) == SEEN, kind
    assert verbs_on(rules, "", "namespaces") == {"list", "watch"}


def test_the_leader_holds_one_lease_of_its_own_namespace(render: Render) -> None:
    objects = render()
    role = named(of_kind(objects, "Role"), "segserve-leader")
    container, _ = the(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    lease = next(entry["value"] for entry in container["env"] if entry["name"] == "SEGSERVE_LEASE_NAME")
    for rule in role["rules"]:
        assert rule["resources"] == [LEASES.plural]
        assert rule["verbs"] == ["create"] or rule["resourceNames"] == [lease]
    assert verbs_on(role["rules"], LEASES.group, LEASES.plural) == {"create", "get", "patch", "update"}


def test_who_applies_the_pool_may_do_nothing_else(render: Render) -> None:
    role = named(of_kind(render(SETS["pool"]), "Role"), "segserve-pool")
    assert role["rules"] == [
        {
            "apiGroups": [POOLS.group],
            "resources": ["tritonpools"],
            "resourceNames": ["default"],
            "verbs": ["create", "patch"],
        }
    ]


@pytest.mark.parametrize("name", SETS)
def test_every_pod_is_allowed_where_pods_are_restricted(name: str, render: Render) -> None:
    """The level `restricted` of the Pod Security Standards, and a root that cannot be written."""
    for pod in pods(render(SETS[name])):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] >= 1000
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert all("hostPath" not in volume for volume in pod.get("volumes", ()))
        for container in pod["containers"]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"].keys() == {"cpu", "memory", "ephemeral-storage"}
            assert "memory" in container["resources"]["limits"]


def test_gateways_know_the_operator_by_its_labels(render: Render) -> None:
    labels = the(render(), "Deployment")["spec"]["template"]["metadata"]["labels"]
    known = Defaults.__dataclass_fields__["operator_pod_labels"].default_factory()
    assert known.items() <= labels.items()


def test_no_object_has_a_name_that_an_object_of_a_pool_could_have(render: Render) -> None:
    """Services alone could meet: those of a pool's gateway are called after the pool, all else after a part of it."""
    assert [found["metadata"]["name"] for found in of_kind(render(), "Service")] == ["segserve"]
    assert object_name("a").startswith("segserve-")


def named(objects: Iterable[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(found for found in objects if found["metadata"]["name"] == name)


def all_rules(objects: list[dict[str, Any]]) -> Rules:
    return [rule for kind in ("Role", "ClusterRole") for found in of_kind(objects, kind) for rule in found["rules"]]


def verbs_on(rules: Rules, group: str, resource: str) -> set[str]:
    matching = (rule for rule in rules if group in rule["apiGroups"] and resource in rule["resources"])
    return {verb for rule in matching for verb in rule["verbs"]}


def pods(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    templates = [found["spec"]["template"]["spec"] for found in objects if found["kind"] in ("Deployment", "Job")]
    return [*templates, *(found["spec"] for found in of_kind(objects, "Pod"))]


TOKEN: Final = "/var/run/secrets/kubernetes.io/serviceaccount"


@pytest.mark.parametrize("name", SETS)
def test_the_operators_container_alone_has_its_token_and_secrets(name: str, render: Render) -> None:
    pod = the(render(SETS[name]), "Deployment")["spec"]["template"]["spec"]
    operator, worker = pod["containers"]

    assert pod["automountServiceAccountToken"] is False
    assert [mount["name"] for mount in operator["volumeMounts"] if mount["mountPath"] == TOKEN] == ["token"]
    assert worker["volumeMounts"] == [{"name": "worker", "mountPath": "/run/segserve"}]
    assert not {"env", "envFrom"} & worker.keys()
    tokens = [volume["name"] for volume in pod["volumes"] if "serviceAccountToken" in str(volume)]
    assert tokens == ["token"]


def test_the_worker_is_another_user_with_a_bound_on_its_memory_and_a_socket_for_the_operator_alone(
    render: Render,
) -> None:
    pod = the(render({"podSecurity": {"user": 5000}, "gates": {"hosts": ["a", "10.0.0.0/8"]}}), "Deployment")["spec"][
        "template"
    ]["spec"]
    operator, worker = pod["containers"]
    told = {item["name"]: item.get("value") for item in operator["env"]}

    assert worker["securityContext"]["runAsUser"] == int(told["SEGSERVE_WORKER_USER"]) == 5001
    assert worker["args"] == [f"--socket={told['SEGSERVE_WORKER_SOCKET']}", "--user=5000", "--gate-hosts=a,10.0.0.0/8"]
    assert worker["resources"]["limits"] == {"memory": "512Mi"}
    assert {"name": "worker", "mountPath": "/run/segserve", "readOnly": True} in operator["volumeMounts"]


def test_the_worker_is_whoever_the_cluster_says_where_users_are_left_to_it(render: Render) -> None:
    pod = the(render({"podSecurity": {"user": "cluster"}}), "Deployment")["spec"]["template"]["spec"]
    operator, worker = pod["containers"]

    assert "runAsUser" not in worker["securityContext"]
    assert worker["args"] == ["--socket=/run/segserve/worker.socket"]
    assert "SEGSERVE_WORKER_USER" not in {item["name"] for item in operator["env"]}
