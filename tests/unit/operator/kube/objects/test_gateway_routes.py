"""Routes of the Gateway API for a pool's host names."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.pools import MINIMAL, pool_context
from segserve_operator.adapters.kube.objects import gateway_objects
from segserve_operator.adapters.kube.objects.gateway import route_objects
from segserve_operator.api.meta import SpecError

TOLD: dict[str, Any] = {
    "provider": "gatewayApi",
    "parentRefs": [{"name": "public", "namespace": "infra", "sectionName": "https"}],
    "hostnames": ["masks.example.com"],
    "grpcHostnames": ["grpc.example.com"],
    "port": 80,
}


def service(**gateway: Any) -> dict[str, Any]:
    objects = gateway_objects(pool_context(MINIMAL, gateway=gateway))
    (found,) = (each for each in objects if each["kind"] == "Service")
    return found


def test_http_and_grpc_are_routed_to_the_pools_service_by_host_name() -> None:
    http, grpc = route_objects(pool_context(MINIMAL, gateway=TOLD))

    backend = {"group": "", "kind": "Service", "name": service()["metadata"]["name"], "port": 80, "weight": 1}
    assert (http["kind"], http["spec"]["hostnames"]) == ("HTTPRoute", ["masks.example.com"])
    assert http["spec"]["rules"] == [
        {
            "matches": [{"path": {"type": "PathPrefix", "value": value}} for value in ("/v2", "/v1/models")],
            "backendRefs": [backend],
            "timeouts": {"request": "65s"},
        }
    ]
    assert (grpc["kind"], grpc["spec"]["hostnames"]) == ("GRPCRoute", ["grpc.example.com"])
    (rule,) = grpc["spec"]["rules"]
    assert rule["backendRefs"] == [backend]
    methods = [match["method"] for match in rule["matches"]]
    assert {(each["type"], each["service"]) for each in methods} == {("Exact", "inference.GRPCInferenceService")}
    assert {"ModelInfer", "ModelReady", "ServerLive"} <= {each["method"] for each in methods}
    assert http["metadata"]["name"] != grpc["metadata"]["name"]
    parent = {"group": "gateway.networking.k8s.io", "kind": "Gateway", **TOLD["parentRefs"][0]}
    assert http["spec"]["parentRefs"] == grpc["spec"]["parentRefs"] == [parent]


def test_paths_of_plain_http_are_not_routed_where_it_is_off() -> None:
    http, _ = route_objects(pool_context(MINIMAL, gateway={**TOLD, "plainHttp": False}))

    (rule,) = http["spec"]["rules"]
    assert [match["path"]["value"] for match in rule["matches"]] == ["/v2"]


def test_the_port_of_a_pool_that_is_routed_to_says_that_it_takes_http2() -> None:
    (port,) = service(**TOLD)["spec"]["ports"]
    assert (port["port"], port["appProtocol"]) == (80, "kubernetes.io/h2c")
    (port,) = service()["spec"]["ports"]
    assert "appProtocol" not in port


@pytest.mark.parametrize(("left_out", "kinds"), [("hostnames", ["GRPCRoute"]), ("grpcHostnames", ["HTTPRoute"])])
def test_a_route_without_a_host_name_is_not_made(left_out: str, kinds: list[str]) -> None:
    told = {name: value for name, value in TOLD.items() if name != left_out}

    assert [route["kind"] for route in route_objects(pool_context(MINIMAL, gateway=told))] == kinds


def test_a_pool_that_does_not_ask_for_routes_gets_none() -> None:
    assert route_objects(pool_context(MINIMAL)) == ()
    assert route_objects(pool_context(MINIMAL, gateway={**TOLD, "provider": "envoy"})) == ()


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        ({**TOLD, "parentRefs": []}, "gatewayApi needs parentRefs"),
        ({**TOLD, "hostnames": [], "grpcHostnames": []}, "gatewayApi needs parentRefs, and hostnames"),
        ({**TOLD, "grpcHostnames": TOLD["hostnames"]}, "a host name is either of hostnames or of grpcHostnames"),
        ({**TOLD, "hostnames": ["Masks.example.com"]}, "hostnames"),
    ],
    ids=["no gateway", "no host name", "one host name for both", "upper case"],
)
def test_routes_that_the_gateway_api_would_refuse_are_refused(told: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        pool_context(MINIMAL, gateway=told)
