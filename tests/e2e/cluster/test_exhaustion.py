"""A disk that fills up, and certificates that expire, under a pool that serves."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
import trustme

from fakes.cluster import ENFORCED, Cluster
from fakes.cluster_models import model, pool
from fakes.installed_operator import installed
from fakes.issued import tls_secret
from fakes.served_namespace import POOL, ServedNamespace
from fakes.waiting import HANG_S

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

DISK_MIB = 8
WHOLE_S = 300.0
LASTS = timedelta(seconds=75)
"""How long a certificate is valid: until the gateway has been seen to serve with it, and not much longer."""
Note = Callable[[str, object], None]


@contextmanager
def small_disk(cluster: Cluster, namespace: str) -> Iterator[Path]:
    """Mount a disk of few MiB at a folder of the node for the time of the block."""
    folder = Path("/mnt") / namespace
    cluster.node.run(f"mkdir -p {folder}; mount -t tmpfs -o size={DISK_MIB}m,mode=0777 tmpfs {folder}")
    try:
        yield folder
    finally:
        cluster.node.run(f"umount --lazy {folder}; rmdir {folder}")


def test_a_full_disk_holds_a_new_network_up_until_there_is_room_and_what_serves_goes_on(
    cluster: Cluster, namespace: str, record_property: Note
) -> None:
    # A folder of the node is beyond the baseline standard.
    cluster.kubectl("label", "--overwrite", "namespace", namespace, f"{ENFORCED}=privileged")
    with (
        small_disk(cluster, namespace) as disk,
        installed(cluster, [namespace], more=["allowHostPath=true"]) as operator,
    ):
        served = ServedNamespace(cluster, operator, namespace)
        cache = {"hostPath": str(disk)}
        served.apply(pool(gateway={"replicas": 1}, server={"cache": cache}, isolation="shared"), model())
        served.wait_ready("coins", timeout_s=WHOLE_S)

        cluster.node.run(f"dd if=/dev/zero of={disk}/ballast bs=4k 2>/dev/null || true")
        with served.load() as load:
            served.apply(model("coins-instances"))
            said = served.becomes("coins-instances", "Degraded", "True", timeout_s=WHOLE_S)
            load.wait_for(served.stable("coins"))
            cluster.node.run(f"rm {disk}/ballast")
            began_s = time.monotonic()
            served.wait_ready("coins-instances", timeout_s=WHOLE_S)
            back_s = time.monotonic() - began_s

    assert "No space left on device" in said["message"]
    figures = {
        "back_s": round(back_s, 1),
        "requests": sum(load.answers.values()),
        "said": [said["reason"], said["message"]],
    }
    record_property("seen", json.dumps(figures))


def test_an_expired_certificate_is_said_and_its_successor_is_taken_without_a_restart(
    cluster: Cluster, namespace: str, record_property: Note
) -> None:
    authority = trustme.CA()
    trusted = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    trusted.check_hostname = False
    with installed(cluster, [namespace]) as operator:
        served = ServedNamespace(cluster, operator, namespace)
        served.apply(tls_secret(authority, timedelta(hours=1)))
        served.apply(pool(gateway={"replicas": 1, "tls": {"secretName": "tls"}}), model())
        served.wait_ready("coins", timeout_s=WHOLE_S)
        url = served.url().replace("http://", "https://") + "/v2/models/coins"
        gateways = served.gateways()
        cluster.wait("callers are answered at first", lambda: status(url, trusted) == "200", WHOLE_S)

        served.apply(tls_secret(authority, LASTS))
        applied_s = time.monotonic()
        degraded(served, "True", "CertificateRefused")
        said_s = time.monotonic() - applied_s - LASTS.total_seconds()
        cluster.wait("callers are refused", lambda: "certificate has expired" in status(url, trusted), WHOLE_S)

        served.apply(tls_secret(authority, timedelta(hours=1)))
        began_s = time.monotonic()
        cluster.wait("callers are answered", lambda: status(url, trusted) == "200", WHOLE_S)
        back_s = time.monotonic() - began_s
        degraded(served, "False", "AsWanted")
        assert served.gateways() == gateways

    record_property("seen", json.dumps({"back_s": round(back_s, 1), "said_after_expiry_s": round(said_s, 1)}))


def status(url: str, trusted: ssl.SSLContext) -> str:
    """Return the status of an answer, or how TLS failed."""
    try:
        return str(httpx.get(url, verify=trusted, timeout=HANG_S, trust_env=False).status_code)
    except httpx.ConnectError as error:
        return str(error)


def degraded(served: ServedNamespace, wanted: str, reason: str) -> None:
    """Return once the pool's condition is so."""

    def look() -> bool:
        conditions = (served.get(POOL, "default") or {})["status"]["conditions"]
        (said,) = (each for each in conditions if each["type"] == "Degraded")
        assert (said["status"], said["reason"]) == (wanted, reason), said
        return True

    served.cluster.wait(f"Degraded is {wanted}", look, WHOLE_S)
