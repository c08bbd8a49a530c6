"""What a cluster needs: each finding says what was seen, and what mends it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import httpx
import pytest

from fakes.kube_http import FakeServer, refusal
from segserve_operator.api.crd import crd
from segserve_operator.api.resources import KINDS
from segserve_platform.platforms.port import DoctorCheck

from .conftest import deployment

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
LABELS = {"app.kubernetes.io/name": "segserve", "app.kubernetes.io/component": "operator"}


def operator(ready: int = 1, namespaces: str = "", *more: dict[str, Any]) -> Any:
    found = deployment("any", readyReplicas=ready)
    found["metadata"] |= {"name": "segserve", "labels": LABELS, "namespace": "system"}
    container = {"image": "op:1", "env": [{"name": "SEGSERVE_NAMESPACES", "value": namespaces}, *more]}
    found["spec"]["template"] = {"spec": {"containers": [container]}}
    return found


@pytest.fixture
def healthy(server: FakeServer) -> FakeServer:
    definitions = {kind: crd(KINDS[kind]) for kind in KINDS}

    def listed(request: httpx.Request) -> httpx.Response:
        name = request.url.params["fieldSelector"].partition("=")[2]
        items = [each for each in definitions.values() if each["metadata"]["name"] == name]
        return httpx.Response(200, json={"items": items, "metadata": {}})

    server.answers |= {
        ("GET", "/version"): lambda _: httpx.Response(
            200, json={"major": "1", "minor": "36+", "gitVersion": "v1.36.1"}
        ),
        ("GET", CRDS): listed,
        ("GET", "/api/v1/namespaces/lab"): lambda _: httpx.Response(200, json={"metadata": {"name": "lab"}}),
    }
    server.put("apis/coordination.k8s.io/v1/leases")
    server.put("apis/apps/v1/deployments", operator())
    return server


def examined(server: FakeServer) -> dict[str, DoctorCheck]:
    return {check.what: check for check in server.platform().checks()}


def test_a_cluster_that_has_all_is_good(healthy: FakeServer) -> None:
    found = examined(healthy)

    assert [check for check in found.values() if not check.good] == []
    assert list(found) == [
        "context",
        "API server",
        "segmentationmodels.segserve.dev",
        "tritonpools.segserve.dev",
        "segmentationrollouts.segserve.dev",
        "operator",
    ]
    assert found["operator"].seen == "deployment/segserve in system, 1 of 1 ready, op:1"


def test_where_nothing_answers_nothing_more_is_asked(server: FakeServer) -> None:
    found = examined(server)

    assert [(check.what, check.good) for check in found.values()] == [("context", True), ("API server", False)]


def test_definitions_that_lack_a_field_are_older(healthy: FakeServer) -> None:
    old = deepcopy(crd(KINDS["TritonPool"]))
    del old["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["isolation"]
    healthy.answers["GET", CRDS] = lambda _: httpx.Response(200, json={"items": [old], "metadata": {}})

    check = examined(healthy)["tritonpools.segserve.dev"]

    assert not check.good
    assert check.seen == "older than this segserve: it lacks v1alpha1.spec.isolation"
    assert "segserve crds | kubectl apply --server-side -f -" in check.advice


def test_definitions_that_are_not_there_name_the_install(healthy: FakeServer) -> None:
    healthy.answers["GET", CRDS] = lambda _: httpx.Response(200, json={"items": [], "metadata": {}})

    check = examined(healthy)["segmentationmodels.segserve.dev"]

    assert (check.good, check.seen) == (False, "not there")
    assert check.advice.startswith("helm install segserve")


CLUSTER_WIDE = {"name": "SEGSERVE_CLUSTER_WIDE", "value": "true"}
OPERATORS = {
    "one that is not ready": (operator(0), "deployment/segserve in system, 0 of 1 ready, op:1"),
    "one that works elsewhere": (operator(1, "prod,dev"), "none works in lab; others: system/segserve"),
    "one that only reads here": (operator(1, "prod", CLUSTER_WIDE), "none works in lab; others: system/segserve"),
}


@pytest.mark.parametrize("which", OPERATORS)
def test_an_operator_that_does_nothing_here_is_no_operator(healthy: FakeServer, which: str) -> None:
    found, seen = OPERATORS[which]
    healthy.put("apis/apps/v1/deployments", found)

    check = examined(healthy)["operator"]

    assert (check.good, check.seen) == (False, seen)


def test_an_operator_of_the_whole_cluster_works_where_a_namespace_has_the_label(healthy: FakeServer) -> None:
    healthy.put("apis/apps/v1/deployments", operator(1, "prod", CLUSTER_WIDE))
    labelled = {"metadata": {"name": "lab", "labels": {"segserve.dev/enabled": "true"}}}
    healthy.answers["GET", "/api/v1/namespaces/lab"] = lambda _: httpx.Response(200, json=labelled)

    assert examined(healthy)["operator"].good


def test_what_a_user_may_not_see_is_no_fault_of_the_cluster(healthy: FakeServer) -> None:
    healthy.answers["GET", CRDS] = lambda _: refusal(403, "customresourcedefinitions is forbidden")

    check = examined(healthy)["tritonpools.segserve.dev"]

    assert check.good
    assert check.seen == "not for you to see (customresourcedefinitions is forbidden)"
