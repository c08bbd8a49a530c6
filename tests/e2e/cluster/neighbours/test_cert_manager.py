"""cert-manager issues a gateway's certificate and renews it under load, as how-to/tls.md says."""

from __future__ import annotations

import json
import ssl
from base64 import b64decode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from fakes.callers import Load
from fakes.cluster import Cluster, Json
from fakes.cluster_models import model, pool
from fakes.docs import ROOT, blocks
from fakes.installed_operator import installed
from fakes.neighbours import definitions, running
from fakes.served_namespace import ServedNamespace
from segserve_common.kube.names import object_name

pytestmark = [pytest.mark.cluster, pytest.mark.neighbours, pytest.mark.timeout(900)]

API = "cert-manager.io/v1"
AUTHORITY = "our-authority"
RENEWED_S = 300.0
CERTIFICATE: Json = next(
    manifest
    for block in blocks(ROOT / "docs/how-to/tls.md", "yaml")
    if (manifest := yaml.safe_load(block.text))["kind"] == "Certificate"
)


def authority() -> list[Json]:
    """Return an authority that signs itself, and the Issuer of what it signs."""
    signs_itself = {"selfSigned": {}}
    own: Json = {"isCA": True, "commonName": AUTHORITY, "secretName": AUTHORITY, "issuerRef": {"name": "first"}}
    specs = (("Issuer", "first", signs_itself), ("Certificate", AUTHORITY, own),
             ("Issuer", AUTHORITY, {"ca": {"secretName": AUTHORITY}}))  # fmt: skip
    return [{"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec} for kind, name, spec in specs]


@pytest.fixture
def issuing(cluster: Cluster, namespace: str, built: Callable[..., Path], tmp_path: Path) -> Iterator[str]:
    """A namespace in which cert-manager issues certificates."""
    module, program = "github.com/cert-manager/cert-manager", built("certmanager")
    variables = {"KUBECONFIG": str(cluster.kubeconfig)}
    with (
        definitions(cluster, "certmanager", module, "deploy/crds", kinds="certificates,issuers"),
        running([program, namespace], tmp_path / "cert-manager.log", variables),
    ):
        yield namespace


def test_a_certificate_is_taken_and_renewed_under_load_without_a_failed_request(
    cluster: Cluster, issuing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = CERTIFICATE["spec"]["secretName"]
    with installed(cluster, [issuing]) as operator:
        served = ServedNamespace(cluster, operator, issuing)
        served.apply(pool(gateway={"replicas": 2, "tls": {"secretName": secret}}), model(), *authority())
        service = cluster.wait("the pool has a Service", lambda: served.get("service", object_name("default")))
        address, port = service["spec"]["clusterIP"], service["spec"]["ports"][0]["port"]
        # Callers of the test reach the Service by its address.
        names = {"ipAddresses": [address], "issuerRef": {"kind": "Issuer", "name": AUTHORITY}}
        own = {**CERTIFICATE, "metadata": {"name": "masks"}, "spec": {**CERTIFICATE["spec"], **names}}
        served.apply(own)
        served.wait_ready("coins")
        (tmp_path / "ca.crt").write_bytes(b64decode(served.get("secret", secret)["data"]["ca.crt"]))
        monkeypatch.setenv("SEGSERVE_CA_FILE", str(tmp_path / "ca.crt"))
        first, gateways = ssl.get_server_certificate((address, port)), served.gateways()

        with Load(f"https://{address}:{port}", pause_s=0.2, transports=("http", "grpc") * 2) as load:
            load.wait_for(served.stable("coins"))
            renew(served)
            # Each connection may lead to another gateway.
            cluster.wait("both gateways use the renewed one", lambda: first not in shown(address, port), RENEWED_S)
            load.wait_for(served.stable("coins"))

        assert load.failures == []
        assert served.gateways() == gateways


def renew(served: ServedNamespace) -> None:
    """Have the certificate issued again now, as `cmctl renew` does."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {"type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "lastTransitionTime": now}
    found: Any = served.get("certificate", "masks")
    patch = json.dumps({"status": {"conditions": [*found["status"]["conditions"], condition]}})
    served.cluster.kubectl(
        "-n", served.name, "patch", "certificate", "masks", "--subresource=status", "--type=merge", "-p", patch
    )


def shown(address: str, port: int) -> set[str]:
    """Return the certificates of twenty connections."""
    return {ssl.get_server_certificate((address, port)) for _ in range(20)}
