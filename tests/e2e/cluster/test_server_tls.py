"""A pool whose gateway and servers come to show each other certificates, on a real cluster."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from fakes.cluster import Cluster, Json
from fakes.cluster_models import model, pool
from fakes.installed_operator import installed
from fakes.issued import identity_secret
from fakes.served_namespace import POOL, ServedNamespace
from fakes.waiting import HANG_S
from segserve_common.kube.names import COMPONENT_LABEL, GRPC_PORT, HTTP_PORT, METRICS_PORT, POOL_LABEL, SERVER

pytestmark = pytest.mark.cluster

GATEWAY = "spiffe://example.org/ns/vision/sa/gateway"


def secret(name: str, content: dict[str, bytes]) -> Json:
    data = {key: base64.b64encode(value).decode() for key, value in content.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}


@pytest.fixture
def sealed(cluster: Cluster, namespace: str) -> Iterator[ServedNamespace]:
    """A pool with one model, in plain text, and an operator of its own."""
    with installed(cluster, [namespace]) as operator:
        found = ServedNamespace(cluster, operator, namespace)
        found.apply(pool("sealed", gateway={"replicas": 1}), model(name="sealed-coins", pool="sealed"))
        found.wait_ready("sealed-coins")
        yield found


def test_servers_get_tls_without_a_failed_request_and_then_answer_only_their_gateway(
    sealed: ServedNamespace, tmp_path: Path
) -> None:
    authority, former = trustme.CA(), sealed.main("sealed")
    own = identity_secret(authority, GATEWAY)
    tls = {
        "servers": {"secretName": "sealed-servers"},
        "gateway": {"secretName": "sealed-gateway", "identity": GATEWAY},
    }

    def is_moved() -> bool:
        role, main = sealed.role("sealed-coins", "stable"), sealed.main("sealed")
        return role is not None and role[1] == main != former and sealed.groups("sealed") == {main}

    with sealed.load("sealed-coins", "sealed") as load:
        sealed.apply(
            secret("sealed-servers", identity_secret(authority, f"servers.sealed.{sealed.name}.svc")),
            secret("sealed-gateway", own),
        )
        sealed.patch(POOL, "sealed", {"spec": {"serverTls": tls}})
        sealed.cluster.wait("the model is on servers with TLS alone", is_moved)
        load.wait_for(sealed.stable("sealed-coins"))

    (server,) = sealed.cluster.pods(sealed.name, f"{POOL_LABEL}=sealed,{COMPONENT_LABEL}={SERVER}")
    address = server["status"]["podIP"]
    for port in (HTTP_PORT, GRPC_PORT):
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://{address}:{port}/v2/health/live", timeout=HANG_S, trust_env=False)
        with pytest.raises((httpx.TransportError, ssl.SSLError)):
            ask(address, port, identity_secret(authority, "other.vision.svc"), tmp_path)
    assert ask(address, HTTP_PORT, own, tmp_path) == 200
    metrics = httpx.get(f"http://{address}:{METRICS_PORT}/metrics", timeout=HANG_S, trust_env=False)
    assert "nv_inference_request_success" in metrics.text


def ask(address: str, port: int, identity: dict[str, bytes], folder: Path) -> int:
    """Return the status of a server's answer to who shows this certificate."""
    (folder / "caller.pem").write_bytes(identity["tls.key"] + identity["tls.crt"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(folder / "caller.pem")
    with httpx.Client(verify=context, timeout=HANG_S, trust_env=False) as client:
        return client.get(f"https://{address}:{port}/v2/health/live").status_code
