"""KEDA scales a pool by its requests in flight, as how-to/scale.md says, and no request fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme
import yaml

from bench.ports import free_ports
from fakes.callers import EIGHT, Load
from fakes.cluster import Cluster, Json
from fakes.cluster_models import model, pool
from fakes.cluster_pool import is_ready
from fakes.docs import ROOT, blocks
from fakes.installed_operator import installed
from fakes.neighbours import definitions, running
from fakes.prometheus import prometheus
from fakes.served_namespace import POOL, ServedNamespace
from segserve_common.kube.names import COMPONENT_LABEL, GATEWAY, SERVER

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.neighbours,
    pytest.mark.needs("prometheus"),
    pytest.mark.timeout(900),
]

MODULE = "github.com/kedacore/keda/v2"
GROUP = "external.metrics.k8s.io"
METRICS_PORT = 8011
"""Of gateways."""
SCALED_S = 300.0
SCALED: Json = next(
    found
    for block in blocks(ROOT / "docs/how-to/scale.md", "yaml")
    if (found := yaml.safe_load(block.text)).get("kind") == "ScaledObject"
)


def served_here(namespace: str, host: str, port: int) -> list[Json]:
    """Return what leads the API server to the external metrics at a port of this machine."""
    metadata = {"name": "keda"}
    labels = {"kubernetes.io/service-name": "keda"}
    version = {"group": GROUP, "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100}
    service = {"name": "keda", "namespace": namespace, "port": port}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": port}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {**metadata, "labels": labels},
         "addressType": "IPv4", "ports": [{"port": port}], "endpoints": [{"addresses": [host]}]},
        {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": f"v1beta1.{GROUP}"},
         "spec": {**version, "service": service, "insecureSkipTLSVerify": True}},
    ]  # fmt: skip


@pytest.fixture
def keda(cluster: Cluster, namespace: str, built: Callable[..., Path], tmp_path: Path) -> Iterator[None]:
    """KEDA's operator and its server of metrics, on this machine, for a namespace."""
    authority, own, metrics, health, secure, more = trustme.CA(), *free_ports(5)
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "tls.key"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "tls.crt"))
    kubeconfig, address = str(cluster.kubeconfig), f"localhost:{own}"
    names = ("WATCH_NAMESPACE", "POD_NAMESPACE", "KEDA_CLUSTER_OBJECT_NAMESPACE")
    variables = {"KUBECONFIG": kubeconfig, **dict.fromkeys(names, namespace)}
    operator = [built("keda", f"{MODULE}/cmd/operator"), f"--cert-dir={tmp_path}"]
    operator += [f"--metrics-service-bind-address={address}", f"--metrics-bind-address=127.0.0.1:{metrics}"]
    operator += [f"--health-probe-bind-address=127.0.0.1:{health}"]
    adapter = [built("keda", f"{MODULE}/cmd/adapter"), f"--cert-dir={tmp_path}", f"--secure-port={secure}"]
    adapter += [f"--metrics-service-address={address}", f"--port={more}"]
    adapter += [f"--{each}-kubeconfig={kubeconfig}" for each in ("lister", "authentication", "authorization")]
    objects = json.dumps({"apiVersion": "v1", "kind": "List", "items": served_here(namespace, cluster.host, secure)})
    with ExitStack() as stack:
        crds = "config/crd/bases"
        stack.enter_context(definitions(cluster, "keda", MODULE, crds, kinds="scaledobjects,triggerauthentications"))
        stack.enter_context(running(operator, tmp_path / "operator.log", variables))
        stack.enter_context(running(adapter, tmp_path / "adapter.log", variables))
        cluster.kubectl("-n", namespace, "apply", "-f", "-", stdin=objects)
        stack.callback(cluster.kubectl, "-n", namespace, "delete", "-f", "-", stdin=objects)
        cluster.wait("metrics are served", lambda: cluster.kubectl("get", "--raw", f"/apis/{GROUP}/v1beta1"))
        yield


def test_a_burst_of_requests_gets_more_servers_and_none_fails(
    cluster: Cluster, namespace: str, keda: None, tmp_path: Path
) -> None:
    metrics = f"networkPolicy.from[0].ipBlock.cidr={cluster.host}/32"
    with ExitStack() as stack:
        operator = stack.enter_context(installed(cluster, [namespace], more=[metrics]))
        served = ServedNamespace(cluster, operator, namespace)
        served.apply(pool(), model())
        served.wait_ready("coins")
        gateways = cluster.pods(namespace, f"{COMPONENT_LABEL}={GATEWAY}")
        targets = {
            f"{pod['status']['podIP']}:{METRICS_PORT}": {"namespace": namespace, "pool": "default"} for pod in gateways
        }
        (tmp_path / "prometheus").mkdir()
        address = stack.enter_context(prometheus(tmp_path / "prometheus", targets))
        served.apply(scaled(namespace, address))

        with Load(served.url(), transports=EIGHT * 2) as burst:
            cluster.wait("two servers answer", lambda: servers(served) == (2, 2), SCALED_S)
            burst.wait_for(served.stable("coins"))
        with Load(served.url(), pause_s=2.0, transports=("grpc",)) as calm:
            cluster.wait("one server answers", lambda: servers(served) == (1, 1), SCALED_S)
            calm.wait_for(served.stable("coins"))
        served.delete("scaledobject", "default")

    assert (burst.failures, calm.failures) == ([], [])


def scaled(namespace: str, address: str) -> Json:
    """Return the object of the page for a Prometheus at an address, without its hours, and as quick as it may be."""
    by_requests, _ = SCALED["spec"]["triggers"]
    query = by_requests["metadata"]["query"].replace('"vision"', f'"{namespace}"')
    trigger = {**by_requests, "metadata": {**by_requests["metadata"], "serverAddress": address, "query": query}}
    quick = {"horizontalPodAutoscalerConfig": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}}
    own = {"maxReplicaCount": 2, "pollingInterval": 5, "triggers": [trigger], "advanced": quick}
    return {**SCALED, "spec": {**SCALED["spec"], **own}}


def servers(served: ServedNamespace) -> tuple[int, int]:
    """Return how many servers are asked for, and how many are ready."""
    pods = served.cluster.pods(served.name, f"{COMPONENT_LABEL}={SERVER}")
    return (served.get(POOL, "default") or {})["spec"].get("replicas", 1), sum(map(is_ready, pods))
