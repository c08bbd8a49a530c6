"""Who reaches whom where a cluster enforces the NetworkPolicies of chart and operator, by a table of all pairs."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
import yaml

from fakes.chart import NAMESPACE, chart_objects
from fakes.cluster import Json
from fakes.network_policies import Endpoint, allows
from fakes.pools import MINIMAL, pool_context, with_defaults
from segserve_common.kube.names import AGENT_PORT, GRPC_PORT, HTTP_PORT, INTERNAL_PORT, METRICS_PORT, SYNC_PORT
from segserve_operator.adapters.kube.objects import gateway_objects, group_objects
from segserve_operator.settings import OperatorSettings

API_SERVER: Final = "203.0.113.1"
STORE: Final = "198.51.100.7"
METADATA: Final = "169.254.169.254"
LISTEN: Final = 8080
LISTED: Final[dict[str, Any]] = {
    "networkPolicy": {
        "enabled": True,
        "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "egress": {
            "enabled": True,
            "dns": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}],
            "apiServerCidrs": [f"{API_SERVER}/32"],
            "apiServerPorts": [6443],
            "servers": [{"to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}], "ports": [{"port": 443}]}],
        },
    }
}
DEFAULT: Final[dict[str, Any]] = {"networkPolicy": {"enabled": True, "egress": {"enabled": True}}}
OPEN: Final[dict[str, Any]] = {}


def pod(template: Json, namespace: str, address: str) -> Endpoint:
    named = {
        port["name"]: port["containerPort"]
        for container in template["spec"]["containers"]
        for port in container.get("ports", ())
        if "name" in port
    }
    return Endpoint(address, namespace, template["metadata"]["labels"], named)


def deployment(objects: Any) -> Json:
    (found,) = (item for item in objects if item["kind"] == "Deployment")
    template: Json = found["spec"]["template"]
    return template


class Cluster:
    """The pods of a release, of two pools, and of strangers, with the policies of all."""

    def __init__(self, values: dict[str, Any]) -> None:
        chart = chart_objects(values)
        operator = deployment(chart)
        told = {item["name"]: item.get("value", "segserve-0") for item in operator["spec"]["containers"][0]["env"]}
        settings = OperatorSettings.from_environment(told)
        found = [item for item in chart if item["kind"] == "NetworkPolicy"]
        self.ends = {
            "operator": pod(operator, NAMESPACE, "10.0.0.2"),
            "stranger": Endpoint("10.0.0.90", "elsewhere", {"app": "any"}),
            "neighbour": Endpoint("10.0.0.91", NAMESPACE, {"app": "any"}),
            "prometheus": Endpoint("10.0.0.92", "monitoring", {"app": "prometheus"}),
            "dns": Endpoint("10.0.0.10", "kube-system", {"k8s-app": "kube-dns"}),
            "API server": Endpoint(API_SERVER),
            "store": Endpoint(STORE),
            "metadata service": Endpoint(METADATA),
            "internet": Endpoint("8.8.8.8"),
        }
        for number, name in enumerate(("default", "other")):
            document = yaml.safe_load(MINIMAL)
            document["metadata"] |= {"name": name, "namespace": NAMESPACE}
            context = with_defaults(
                pool_context(json.dumps(document)),
                egress=settings.egress,
                metrics_from=settings.metrics_from,
                operator_namespace_labels={"kubernetes.io/metadata.name": NAMESPACE},
            )
            for component, objects in (
                ("gateway", gateway_objects(context)),
                ("server", group_objects(context, "main-0", 1)),
            ):
                found += [item for item in objects if item["kind"] == "NetworkPolicy"]
                self.ends[f"{component} of {name}"] = pod(
                    deployment(objects), NAMESPACE, f"10.0.{number + 1}.{len(self.ends)}"
                )
        self.policies = found

    def allows(self, source: str, target: str, port: int, protocol: str = "TCP") -> bool:
        return allows(self.policies, self.ends[source], self.ends[target], port, protocol)

    def reached(self, source: str, ports: tuple[int, ...]) -> set[tuple[str, int]]:
        """Return (end, port) of all that `source` reaches by TCP on some ports."""
        return {
            (target, port)
            for target in self.ends
            for port in ports
            if target != source and self.allows(source, target, port)
        }


PORTS: Final = (53, 443, 6443, HTTP_PORT, GRPC_PORT, METRICS_PORT, AGENT_PORT, SYNC_PORT, INTERNAL_PORT, LISTEN, 8012)
POOLS: Final = ("default", "other")


@pytest.fixture(scope="module", params=[LISTED, DEFAULT, OPEN], ids=["listed", "default egress", "no egress"])
def any_cluster(request: pytest.FixtureRequest) -> Cluster:
    return Cluster(request.param)


@pytest.fixture(scope="module")
def listed() -> Cluster:
    return Cluster(LISTED)


@pytest.mark.parametrize("attacker", ["stranger", "neighbour", "server of other", "gateway of other", "internet"])
def test_nobody_but_its_gateway_asks_a_pools_triton(attacker: str, any_cluster: Cluster) -> None:
    for port in (HTTP_PORT, GRPC_PORT):
        assert not any_cluster.allows(attacker, "server of default", port)
        assert any_cluster.allows("gateway of default", "server of default", port)


@pytest.mark.parametrize(
    "attacker", ["stranger", "neighbour", "server of default", "gateway of other", "prometheus", "internet"]
)
def test_nobody_but_the_operator_asks_the_internal_port_that_names_groups(attacker: str, any_cluster: Cluster) -> None:
    assert not any_cluster.allows(attacker, "gateway of default", INTERNAL_PORT)
    assert any_cluster.allows("operator", "gateway of default", INTERNAL_PORT)


@pytest.mark.parametrize("name", POOLS)
def test_a_hole_in_triton_reaches_dns_the_api_server_and_the_stores_and_nothing_else(
    name: str, listed: Cluster
) -> None:
    reached = listed.reached(f"server of {name}", PORTS)

    assert reached == {("dns", 53), ("API server", 6443), ("store", 443)}


@pytest.mark.parametrize("name", POOLS)
def test_a_hole_in_envoy_reaches_the_servers_of_its_pool_and_nothing_else(name: str, listed: Cluster) -> None:
    reached = listed.reached(f"gateway of {name}", PORTS)

    own = f"server of {name}"
    assert reached == {("dns", 53), ("API server", 6443), (own, HTTP_PORT), (own, GRPC_PORT)}


def test_a_hole_in_the_operator_reaches_gateways_and_neither_servers_nor_the_world(listed: Cluster) -> None:
    gateways = {(f"gateway of {name}", port) for name in POOLS for port in (INTERNAL_PORT, SYNC_PORT)}

    assert listed.reached("operator", PORTS) == {("dns", 53), ("API server", 6443), *gateways}


@pytest.mark.parametrize("source", ["server of default", "gateway of default", "operator"])
def test_the_metadata_service_of_the_cloud_gives_nobody_its_credentials(source: str, listed: Cluster) -> None:
    assert not [port for port in (80, 443, 988) if listed.allows(source, "metadata service", port)]


def test_without_addresses_what_pods_need_of_any_cluster_is_reached_and_plain_http_is_not() -> None:
    cluster = Cluster(DEFAULT)

    for source in ("server of default", "gateway of default", "operator"):
        assert cluster.allows(source, "API server", 443)
        assert cluster.allows(source, "dns", 53, "UDP")
        assert not cluster.allows(source, "metadata service", 80)
        assert not cluster.allows(source, "internet", 80)


@pytest.mark.parametrize("source", ["server of default", "gateway of default", "operator"])
def test_a_release_that_says_nothing_of_egress_reaches_what_it_did(source: str) -> None:
    cluster = Cluster(OPEN)

    assert all(cluster.allows(source, target, 443) for target in ("store", "internet", "API server"))


@pytest.mark.parametrize(
    ("target", "port", "readers"),
    [
        ("operator", 8012, {"prometheus"}),
        ("server of default", METRICS_PORT, {"prometheus"}),
        ("server of default", AGENT_PORT, {"prometheus"}),
        ("gateway of default", SYNC_PORT, {"prometheus", "operator"}),
    ],
)
def test_only_monitoring_reads_metrics(listed: Cluster, target: str, port: int, readers: set[str]) -> None:
    assert {source for source in listed.ends if source != target and listed.allows(source, target, port)} == readers


def test_callers_reach_gateways_from_anywhere(any_cluster: Cluster) -> None:
    for source in ("stranger", "neighbour", "internet"):
        assert any_cluster.allows(source, "gateway of default", LISTEN)


def policy(**spec: Any) -> Json:
    return {"metadata": {"namespace": "a"}, "spec": {"podSelector": {}, **spec}}


ONE: Final = Endpoint("10.0.0.1", "a", {"app": "one"})
TWO: Final = Endpoint("10.0.0.2", "b", {"app": "two"}, {"web": 80})


@pytest.mark.parametrize(
    ("policies", "allowed"),
    [
        ([], True),
        ([policy(policyTypes=["Ingress"])], True),
        ([policy(policyTypes=["Egress"])], False),
        ([policy(policyTypes=["Egress"], egress=[{}])], True),
        ([policy(policyTypes=["Egress"]), policy(policyTypes=["Egress"], egress=[{}])], True),
        ([policy(policyTypes=["Egress"], egress=[{"ports": [{"port": "web"}]}])], True),
        ([policy(policyTypes=["Egress"], egress=[{"ports": [{"port": 81}]}])], False),
        ([policy(policyTypes=["Egress"], egress=[{"ports": [{"port": 80, "protocol": "UDP"}]}])], False),
        ([policy(policyTypes=["Egress"], egress=[{"to": [{"podSelector": {}}]}])], False),
        ([policy(policyTypes=["Egress"], egress=[{"to": [{"namespaceSelector": {}}]}])], True),
        ([policy(policyTypes=["Egress"], egress=[{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}])], True),
        (
            [
                policy(
                    policyTypes=["Egress"],
                    egress=[{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.2/32"]}}]}],
                )
            ],
            False,
        ),
    ],
)
def test_the_evaluation_is_that_of_kubernetes(policies: list[Json], allowed: bool) -> None:
    assert allows(policies, ONE, TWO, 80) is allowed
