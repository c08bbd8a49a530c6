"""What authentication adds to the pods of a gateway."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.pools import MINIMAL, pool_context
from segserve_operator.adapters.kube.objects import gateway_objects
from segserve_operator.api.access import Auth
from segserve_operator.api.meta import SpecError
from segserve_operator.gateway_sync.settings import GatewaySettings

KEYS: dict[str, Any] = {"apiKeys": [{"secretRef": {"name": "callers.of.all", "key": "htpasswd"}}]}


def pod(**gateway: Any) -> dict[str, Any]:
    manifests = gateway_objects(pool_context(MINIMAL, gateway=gateway))
    found: dict[str, Any] = next(each for each in manifests if each["kind"] == "Deployment")
    template: dict[str, Any] = found["spec"]["template"]["spec"]
    return template


def containers(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in (*spec["initContainers"], *spec["containers"])}


def test_only_the_sidecar_sees_the_secrets_of_callers() -> None:
    spec = pod(auth=KEYS)
    volume = next(each for each in spec["volumes"] if each.get("secret", {}).get("secretName") == "callers.of.all")

    mounting = {
        name: mount["mountPath"]
        for name, each in containers(spec).items()
        for mount in each["volumeMounts"]
        if mount["name"] == volume["name"]
    }

    assert mounting == dict.fromkeys(("prepare", "sync"), "/mnt/segserve/secrets/callers.of.all")
    assert volume["secret"]["optional"]


def test_the_sidecar_reads_the_settings_that_the_operator_writes() -> None:
    jwt = [{"issuer": "https://a", "audiences": ["b"], "jwks": {"url": "https://a/keys"}}]
    stated = {**KEYS, "jwt": jwt, "anonymous": True}
    variables = {each["name"]: each.get("value") for each in containers(pod(auth=stated))["sync"]["env"]}

    read = GatewaySettings.model_validate_json(variables["SEGSERVE_GATEWAY"])

    assert read.auth == Auth.model_validate(stated)


@pytest.mark.parametrize(
    ("auth", "message"),
    [
        ({}, "at least one of jwt, apiKeys and mtls"),
        ({"anonymous": True}, "at least one of jwt, apiKeys and mtls"),
        ({"mtls": {"caSecretRef": {"name": "a", "key": "ca.crt"}}}, "auth.mtls needs tls"),
        ({"jwt": [{"issuer": "a", "audiences": [], "jwks": {"inline": "{}"}}]}, "audiences"),
        ({"jwt": [{"issuer": "a", "audiences": ["b"], "jwks": {}}]}, "exactly one of url, secretRef and inline"),
        ({"apiKeys": [{"secretRef": {"name": "../a", "key": "b"}}]}, "name"),
    ],
)
def test_authentication_that_nobody_could_pass_is_refused(auth: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        pool_context(MINIMAL, gateway={"auth": auth})
