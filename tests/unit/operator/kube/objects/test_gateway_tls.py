"""What TLS adds to the objects of a gateway."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fakes.pools import MINIMAL, pool_context
from segserve_operator.adapters.kube.objects import gateway_objects, gateway_url
from segserve_operator.api.meta import SpecError

TLS: dict[str, Any] = {"port": 443, "tls": {"secretName": "masks-tls", "redirectPort": 80}}

KEYS = {"name": "keys", "key": "keys"}


def objects(**gateway: Any) -> dict[str, dict[str, Any]]:
    return {each["kind"]: each for each in gateway_objects(pool_context(MINIMAL, gateway=gateway))}


def pod(**gateway: Any) -> dict[str, Any]:
    found: dict[str, Any] = objects(**gateway)["Deployment"]["spec"]["template"]["spec"]
    return found


def container(name: str, **gateway: Any) -> dict[str, Any]:
    spec = pod(**gateway)
    return next(each for each in (*spec["initContainers"], *spec["containers"]) if each["name"] == name)


def mounts(name: str, **gateway: Any) -> dict[str, str]:
    return {each["name"]: each["mountPath"] for each in container(name, **gateway)["volumeMounts"]}


def settings(**gateway: Any) -> dict[str, Any]:
    variables = {each["name"]: each.get("value") for each in container("sync", **gateway)["env"]}
    read: dict[str, Any] = json.loads(variables["SEGSERVE_GATEWAY"])
    return read


def test_the_service_has_a_port_with_tls_and_one_that_redirects() -> None:
    ports = objects(**TLS)["Service"]["spec"]["ports"]

    assert [(port["name"], port["port"], port.get("appProtocol")) for port in ports] == [
        ("inference", 443, "https"),
        ("redirect", 80, None),
    ]
    assert settings(**TLS)["tls"] == {"publicPort": 443, "minVersion": "1.2", "redirectPort": ports[1]["targetPort"]}
    open_to_all = objects(**TLS)["NetworkPolicy"]["spec"]["ingress"][0]
    assert {port["port"] for port in open_to_all["ports"]} == {port["targetPort"] for port in ports}


def test_envoy_has_no_secret_and_the_sidecar_gives_it_certificates_through_memory() -> None:
    volumes = {volume["name"]: volume for volume in pod(**TLS)["volumes"]}

    assert volumes["certificate"]["secret"] == {"secretName": "masks-tls", "optional": True, "defaultMode": 0o440}
    assert volumes["tls"]["emptyDir"]["medium"] == "Memory"
    assert "certificate" not in mounts("envoy", **TLS)
    assert mounts("envoy", **TLS)["tls"] == mounts("sync", **TLS)["tls"] == mounts("prepare", **TLS)["tls"]
    assert mounts("sync", **TLS)["certificate"] == mounts("prepare", **TLS)["certificate"]


@pytest.mark.parametrize(
    ("others", "certificates"),
    [({}, "required"), ({"anonymous": True}, "optional"), ({"apiKeys": [{"secretRef": KEYS}]}, "optional")],
)
def test_certificates_of_callers_are_required_unless_there_are_other_ways_to_say_who_calls(
    others: dict[str, Any], certificates: str
) -> None:
    gateway = {**TLS, "auth": {"mtls": {"caSecretRef": {"name": "callers", "key": "roots.pem"}}, **others}}

    told, folder = settings(**gateway)["tls"], mounts("sync", **gateway)["client-ca"]

    assert (told["clientCa"], told["clientCertificates"]) == (f"{folder}/roots.pem", certificates)
    volumes = {volume["name"]: volume for volume in pod(**gateway)["volumes"]}
    assert volumes["client-ca"]["secret"]["secretName"] == "callers"


def test_the_url_says_https() -> None:
    assert gateway_url(pool_context(MINIMAL, gateway=TLS)).startswith("https://")


@pytest.mark.parametrize(
    ("gateway", "message"),
    [
        ({"tls": {"secretName": "a", "redirectPort": 8080}}, "redirectPort must be another port"),
        ({"tls": {"secretName": "a", "minVersion": "1.0"}}, "must be '1.2' or '1.3'"),
        ({"tls": {}}, "secretName"),
    ],
)
def test_what_cannot_be_is_refused(gateway: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        pool_context(MINIMAL, gateway=gateway)
