"""What mutual TLS between gateway and servers adds to the objects of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fakes.pools import MINIMAL, pool_context, with_defaults
from segserve_common.kube.names import GRPC_PORT, HTTP_PORT, METRICS_PORT
from segserve_operator.adapters.kube.objects import gateway_objects, group_objects, main_group
from segserve_operator.api.errors import SpecError
from segserve_operator.gateway_sync.settings import Settings

TLS: dict[str, Any] = {"servers": {"secretName": "masks-servers"}, "gateway": {"secretName": "masks-gateway"}}
SPIFFE = "spiffe://example.org/ns/vision/sa/masks"


def server(tls: dict[str, Any] | None = TLS, **spec: Any) -> dict[str, Any]:
    context = pool_context(MINIMAL, **({"serverTls": tls} if tls else {}), **spec)
    *_, deployment = group_objects(context, main_group(context), 1)
    found: dict[str, Any] = deployment["spec"]["template"]
    return found


def gateway(tls: dict[str, Any] | None = TLS) -> dict[str, Any]:
    context = pool_context(MINIMAL, **({"serverTls": tls} if tls else {}))
    *_, deployment = gateway_objects(context)
    found: dict[str, Any] = deployment["spec"]["template"]
    return found


def container(template: dict[str, Any], name: str) -> dict[str, Any]:
    spec = template["spec"]
    return next(each for each in (*spec.get("initContainers", ()), *spec["containers"]) if each["name"] == name)


def environment(template: dict[str, Any], name: str) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in container(template, name)["env"]}


def configuration(template: dict[str, Any]) -> dict[str, Any]:
    command = container(template, "tls")["command"]
    found: dict[str, Any] = json.loads(command[command.index("--config-yaml") + 1])
    return found


def demanded(listener: dict[str, Any]) -> dict[str, Any]:
    context = listener["filter_chains"][0]["transport_socket"]["typed_config"]["common_tls_context"]
    (name,) = context["combined_validation_context"]["default_validation_context"]["match_typed_subject_alt_names"]
    return {name["san_type"]: name["matcher"]["exact"]}


def test_switching_it_is_another_template_and_so_another_group_of_servers() -> None:
    groups = {main_group(pool_context(MINIMAL, **spec)) for spec in ({}, {"serverTls": TLS})}

    assert len(groups) == 2


def test_triton_listens_on_loopback_though_its_image_says_otherwise() -> None:
    assert environment(server(), "triton")["SEGSERVE_TRITON_LISTENS"] == "loopback"
    assert "ports" not in container(server(), "triton")


def test_envoy_listens_at_the_pods_address_alone_and_forwards_to_loopback() -> None:
    resources = configuration(server())["static_resources"]
    secure = {
        each["address"]["socket_address"]["port_value"]: each["filter_chains"][0].get("transport_socket")
        for each in resources["listeners"]
        if "socket_address" in each["address"]
    }
    listens = {
        each["address"]["socket_address"]["address"]
        for each in resources["listeners"]
        if "socket_address" in each["address"]
    }
    targets = {
        at["endpoint"]["address"].get("socket_address", {}).get("address")
        for cluster in resources["clusters"]
        for at in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    }

    assert listens == {"$(POD_IP)"}
    assert {port for port, tls in secure.items() if tls} == {HTTP_PORT, GRPC_PORT}
    assert {port for port, tls in secure.items() if not tls} == {METRICS_PORT}
    assert targets == {"127.0.0.1", None}
    assert "POD_IP" in environment(server(), "tls")
    assert "admin" not in configuration(server())
    assert {port["containerPort"] for port in container(server(), "tls")["ports"]} == set(secure)


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        (None, {"DNS": "gateway.default.vision.svc"}),
        ("gate.example.org", {"DNS": "gate.example.org"}),
        (SPIFFE, {"URI": SPIFFE}),
    ],
)
def test_servers_demand_the_gateways_name(identity: str | None, expected: dict[str, str]) -> None:
    tls = {**TLS, "gateway": {**TLS["gateway"], **({"identity": identity} if identity else {})}}
    secure = [
        each for each in configuration(server(tls))["static_resources"]["listeners"] if each["name"] in ("http", "grpc")
    ]

    assert [demanded(each) for each in secure] == [expected] * 2
    for each in secure:
        assert each["filter_chains"][0]["transport_socket"]["typed_config"]["require_client_certificate"] is True


@pytest.mark.parametrize(("identity", "expected"), [(None, "servers.default.vision.svc"), (SPIFFE, SPIFFE)])
def test_pods_say_which_name_they_show(identity: str | None, expected: str) -> None:
    tls = {**TLS, "servers": {**TLS["servers"], **({"identity": identity} if identity else {})}}

    assert server(tls)["metadata"]["annotations"]["segserve.dev/identity"] == expected


def test_the_pools_annotations_cannot_say_another_name() -> None:
    forged = {"podTemplate": {"metadata": {"annotations": {"segserve.dev/identity": "evil.example.org"}}}}

    assert server(server=forged)["metadata"]["annotations"]["segserve.dev/identity"] == "servers.default.vision.svc"


def test_only_the_servers_envoy_has_their_secret_as_a_user_of_its_own() -> None:
    template = server()
    volumes = {each["name"]: each for each in template["spec"]["volumes"]}
    users = {each["securityContext"].get("runAsUser") for each in template["spec"]["containers"]}

    having = [
        each["name"]
        for each in template["spec"]["containers"]
        if any(mount["name"] == "server-tls" for mount in each["volumeMounts"])
    ]
    assert having == ["tls"]
    assert len(users) == len(template["spec"]["containers"])
    # The kubelet starts no container while a key is missing.
    secret = volumes["server-tls"]["secret"]
    assert (secret["secretName"], secret["defaultMode"], "optional" in secret) == ("masks-servers", 0o440, False)
    assert {each["key"] for each in secret["items"]} == {"tls.crt", "tls.key", "ca.crt"}


def test_envoy_finds_the_files_that_name_those_of_the_secret() -> None:
    template = server()
    annotations, mounts = template["metadata"]["annotations"], container(template, "tls")["volumeMounts"]
    folders = {each["name"]: each["mountPath"] for each in mounts}
    volumes = {each["name"]: each for each in template["spec"]["volumes"]}
    (source,) = volumes["server-tls-files"]["projected"]["sources"]
    told = {
        f"{folders['server-tls-files']}/{item['path']}": annotations[item["fieldRef"]["fieldPath"].split("'")[1]]
        for item in source["downwardAPI"]["items"]
    }

    assert all(f'"{path}"' in json.dumps(configuration(template)) for path in told)
    files = " ".join(told.values())
    assert all(f"{folders['server-tls']}/{key}" in files for key in ("tls.crt", "tls.key", "ca.crt"))


def test_the_kubelet_asks_at_the_port_that_needs_no_certificate() -> None:
    template = server()
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container(template, "triton")[probe]["httpGet"]["port"] == METRICS_PORT
    assert container(template, "tls")["startupProbe"]["httpGet"] == {
        "path": "/tls",
        "port": METRICS_PORT,
        "scheme": "HTTP",
    }


def test_envoy_ends_after_triton_has_finished_its_requests() -> None:
    (_, _, hook) = container(server(), "tls")["lifecycle"]["preStop"]["exec"]["command"]

    assert hook.startswith("sleep 10;")
    assert f"/dev/tcp/127.0.0.1/{METRICS_PORT}" in hook


def test_the_gateways_envoy_has_no_secret_and_its_sidecar_gives_it_certificates_through_memory() -> None:
    template = gateway()
    volumes = {each["name"]: each for each in template["spec"]["volumes"]}
    mounts = {
        name: {each["name"]: each["mountPath"] for each in container(template, name)["volumeMounts"]}
        for name in ("envoy", "sync", "prepare")
    }

    assert volumes["server-tls"]["secret"] == {"secretName": "masks-gateway", "optional": True, "defaultMode": 0o440}
    assert volumes["tls"]["emptyDir"]["medium"] == "Memory"
    assert "server-tls" not in mounts["envoy"]
    assert mounts["envoy"]["tls"] == mounts["sync"]["tls"] == mounts["prepare"]["tls"]
    told = json.loads(environment(template, "sync")["SEGSERVE_GATEWAY"])["serverTls"]
    assert told == mounts["sync"]["server-tls"] == mounts["prepare"]["server-tls"]
    given = {name: value or "0" for name, value in environment(template, "sync").items()}
    assert Settings.of(given).gateway.server_tls == Path(told)


def test_where_the_cluster_chooses_the_user_anybody_in_the_container_reads_the_secret() -> None:
    context = with_defaults(pool_context(MINIMAL, serverTls=TLS), pod_user=None)
    *_, deployment = group_objects(context, main_group(context), 1)
    volumes = {each["name"]: each for each in deployment["spec"]["template"]["spec"]["volumes"]}

    assert volumes["server-tls"]["secret"]["defaultMode"] == 0o444


@pytest.mark.parametrize(
    ("tls", "message"),
    [
        ({"servers": TLS["servers"]}, "gateway"),
        ({"servers": {"secretName": "a"}, "gateway": {"secretName": "a"}}, "Secrets of their own"),
        (
            {"servers": {"secretName": "a", "identity": SPIFFE}, "gateway": {"secretName": "b", "identity": SPIFFE}},
            "identities of their own",
        ),
        ({**TLS, "gateway": {"secretName": "b", "identity": "*.example.org"}}, "identity"),
        ({**TLS, "gateway": {"secretName": "b", "identity": "spiffe://example.org"}}, "identity"),
    ],
)
def test_what_cannot_be_is_refused(tls: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        pool_context(MINIMAL, serverTls=tls)
