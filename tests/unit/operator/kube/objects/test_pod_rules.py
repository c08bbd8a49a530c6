"""What holds for every pod that segserve starts."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.pools import FULL, MINIMAL, pods_with, pool_context, with_defaults
from fakes.waiting import HANG_S, until
from segserve_common.kube.names import CAPTURE_CONTAINER as CAPTURE
from segserve_common.kube.names import COMPARATOR_CONTAINER as COMPARATOR
from segserve_common.logs import LogSettings
from segserve_operator.adapters.kube.objects import PoolContext, gateway_objects, group_objects, main_group

TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"


def templates(text: str | PoolContext) -> dict[str, dict[str, Any]]:
    target = pool_context(text) if isinstance(text, str) else text
    objects = [*group_objects(target, main_group(target), 2), *gateway_objects(target)]
    deployments = [found for found in objects if found["kind"] == "Deployment"]
    return {
        found["metadata"]["labels"]["app.kubernetes.io/component"]: found["spec"]["template"] for found in deployments
    }


PODS = [
    pytest.param(template, id=f"{pool} {component}")
    for pool, text in (("minimal", MINIMAL), ("full", FULL))
    for component, template in templates(text).items()
]
SERVERS = [found for found in PODS if str(found.id).endswith("server")]
GATEWAYS = [found for found in PODS if str(found.id).endswith("gateway")]


def containers(template: dict[str, Any]) -> dict[str, dict[str, Any]]:
    spec = template["spec"]
    return {found["name"]: found for found in [*spec.get("initContainers", []), *spec["containers"]]}


@pytest.mark.parametrize("template", PODS)
def test_the_restricted_profile_of_pod_security_allows_it(template: dict[str, Any]) -> None:
    spec = template["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    allowed = {"emptyDir", "projected", "persistentVolumeClaim", "secret"}
    assert all(set(volume) - {"name"} <= allowed for volume in spec["volumes"])
    for name, container in containers(template).items():
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["readOnlyRootFilesystem"] is True
        assert security.get("runAsUser") == (spec["securityContext"]["runAsUser"] + 1 if name == "triton" else None)
        assert not any("hostPort" in port for port in container.get("ports", []))


@pytest.mark.parametrize("template", PODS)
def test_only_what_calls_the_api_has_a_token(template: dict[str, Any]) -> None:
    assert template["spec"]["automountServiceAccountToken"] is False
    having = {
        name
        for name, container in containers(template).items()
        if any(mount["mountPath"] == TOKEN for mount in container["volumeMounts"])
    }
    assert having in ({"agent"}, {"prepare", "sync"})


@pytest.mark.parametrize("template", PODS)
def test_every_mount_is_of_a_volume_and_every_volume_is_mounted(template: dict[str, Any]) -> None:
    mounted = {mount["name"] for container in containers(template).values() for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in template["spec"]["volumes"]}


@pytest.mark.parametrize("template", PODS)
def test_a_slow_start_is_not_taken_for_a_death_and_a_death_is_seen_in_seconds(template: dict[str, Any]) -> None:
    beside = (COMPARATOR, CAPTURE)
    for container in (each for each in template["spec"]["containers"] if each["name"] not in beside):
        startup, liveness = container["startupProbe"], container["livenessProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 60
        assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 30
        if "readinessProbe" in container:
            ready = container["readinessProbe"]
            assert ready["periodSeconds"] * ready["failureThreshold"] <= 3


FULL_GATEWAY = templates(FULL)["gateway"]


def test_a_comparator_sees_nothing_of_the_gateway_but_the_folder_that_they_share() -> None:
    comparator = containers(FULL_GATEWAY)[COMPARATOR]

    assert {mount["mountPath"] for mount in comparator["volumeMounts"]} == {"/run/segserve/pairs", "/tmp"}
    assert not any("valueFrom" in variable for variable in comparator["env"])
    shared = [mount["name"] for name in ("envoy", "sync") for mount in containers(FULL_GATEWAY)[name]["volumeMounts"]]
    assert shared.count("pairs") == 2
    assert "pairs-tmp" not in shared
    assert COMPARATOR not in containers(templates(MINIMAL)["gateway"])
    assert "ports" not in comparator


def test_the_capture_service_has_the_credentials_for_artifacts_and_nothing_else_of_the_gateway() -> None:
    service = containers(FULL_GATEWAY)[CAPTURE]

    folders = {mount["mountPath"] for mount in service["volumeMounts"]}
    assert {"/run/segserve/capture", "/tmp"} < folders
    secrets = folders - {"/run/segserve/capture", "/tmp"}
    assert secrets
    assert all(folder.startswith("/mnt/segserve/secrets/") for folder in secrets), secrets
    others = [
        mount["mountPath"] for name in ("envoy", COMPARATOR) for mount in containers(FULL_GATEWAY)[name]["volumeMounts"]
    ]
    assert not secrets & set(others)
    (access,) = [json.loads(each["value"]) for each in service["env"] if each["name"] == "SEGSERVE_ARTIFACT_ACCESS"]
    assert access["folders"] == []
    assert "claims" not in access
    assert not {"startupProbe", "livenessProbe", "readinessProbe"} & service.keys()
    assert CAPTURE not in containers(templates(MINIMAL)["gateway"])


def test_a_comparator_that_ends_takes_no_gateway_out_of_service(tmp_path: Path) -> None:
    """Its container goes on, so that the pod stays ready: it is started again in it, until the pod ends."""
    comparator = containers(FULL_GATEWAY)[COMPARATOR]
    assert not {"startupProbe", "livenessProbe", "readinessProbe"} & comparator.keys()
    started = tmp_path / "started"
    interpreter = tmp_path / "python3"
    interpreter.write_text(f'#!/bin/sh\necho "$@" >> {started}\nexit 1\n')
    interpreter.chmod(0o700)

    command = [*comparator["command"], *comparator["args"]]
    with subprocess.Popen(command, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}) as process:
        until(lambda: started.exists() and len(started.read_text().splitlines()) >= 2, "the second start")
        process.terminate()
        assert process.wait(HANG_S) == 0

    asked = "-m segserve_builder.comparator /run/segserve/pairs --gateway http://localhost:8081 --max-request-bytes"
    assert started.read_text().startswith(f"{asked} 1048576 --sheets-port 8083\n" * 2)


@pytest.mark.parametrize("template", SERVERS)
def test_a_server_has_the_time_to_drain_and_to_finish(template: dict[str, Any]) -> None:
    triton = containers(template)["triton"]
    (wait,) = [part for part in triton["lifecycle"]["preStop"]["exec"]["command"] if "sleep" in part]
    drain_s = int(wait.partition("sleep(")[2].rstrip(")"))
    (exit_s,) = [int(v["value"]) for v in triton["env"] if v["name"] == "SEGSERVE_EXIT_TIMEOUT_SECONDS"]
    assert drain_s > 0
    assert template["spec"]["terminationGracePeriodSeconds"] == drain_s + exit_s + 5


@pytest.mark.parametrize("template", GATEWAYS)
def test_envoy_outlives_the_drain_that_the_sidecar_leads(template: dict[str, Any]) -> None:
    found = containers(template)
    drain_s = int(found["envoy"]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert found["sync"]["lifecycle"]["preStop"]["exec"]["command"][-1] == "drain"
    assert template["spec"]["terminationGracePeriodSeconds"] > drain_s


@pytest.mark.parametrize("template", GATEWAYS)
def test_envoys_probes_ask_envoy_alone(template: dict[str, Any]) -> None:
    """What follows the API may fail while it is away; who serves is not restarted for that."""
    envoy = containers(template)["envoy"]
    own = {port["containerPort"] for port in envoy["ports"]}
    for probe in ("startupProbe", "livenessProbe"):
        assert envoy[probe]["tcpSocket"]["port"] in own
    assert "readinessProbe" not in envoy


def test_the_gpu_is_tritons() -> None:
    found = containers(templates(FULL)["server"])

    assert "nvidia.com/mig-1g.10gb" in found["triton"]["resources"]["limits"]
    assert "nvidia.com/mig-1g.10gb" not in found["agent"]["resources"]["limits"]


@pytest.mark.parametrize(("limit", "cpus"), [("1500m", "2"), (2, "2"), (None, None)])
def test_triton_and_the_agent_see_the_processors_of_tritons_limit(limit: str | int | None, cpus: str | None) -> None:
    limits = {} if limit is None else {"resources": {"limits": {"cpu": limit}}}
    found = containers(templates(pool_context(MINIMAL, server=limits))["server"])

    for name in ("triton", "agent"):
        assert {item["name"]: item.get("value") for item in found[name]["env"]}.get("SEGSERVE_CPUS") == cpus


def test_labels_of_the_users_do_not_move_pods_to_another_pool() -> None:
    labels = templates(FULL)["server"]["metadata"]["labels"]

    assert labels["segserve.dev/pool"] == "gpus"
    assert labels["team"] == "vision"


@pytest.mark.parametrize(
    ("cache", "volume"),
    [
        ({"size": "5Gi"}, {"emptyDir": {"sizeLimit": "5Gi"}}),
        ({"persistentVolumeClaim": "shared"}, {"persistentVolumeClaim": {"claimName": "shared"}}),
        ({"hostPath": "/mnt/cache"}, {"hostPath": {"path": "/mnt/cache", "type": "Directory"}}),
    ],
)
def test_the_cache_is_where_the_pool_says(cache: dict[str, str], volume: dict[str, Any]) -> None:
    target = pool_context(MINIMAL, server={"cache": cache})
    *_, deployment = group_objects(target, "main-0", 1)

    volumes = {found["name"]: found for found in deployment["spec"]["template"]["spec"]["volumes"]}
    assert volumes["cache"] == {"name": "cache", **volume}


@pytest.mark.parametrize("template", PODS)
def test_every_container_that_runs_asks_for_what_it_needs(template: dict[str, Any]) -> None:
    """What asks for nothing is the first that a node short of it evicts."""
    for name, container in containers(template).items():
        found = container["resources"]
        given = {**found.get("limits", {}), **found.get("requests", {})}
        assert {"cpu", "memory", "ephemeral-storage"} <= given.keys(), name


@pytest.mark.parametrize(
    ("resources", "requests"),
    [
        ({"limits": {"nvidia.com/gpu": 1}}, {"cpu": "100m", "memory": "1Gi", "ephemeral-storage": "1Gi"}),
        ({"requests": {"memory": "4Gi"}}, {"cpu": "100m", "memory": "4Gi", "ephemeral-storage": "1Gi"}),
        ({"limits": {"memory": "512Mi"}}, {"cpu": "100m", "ephemeral-storage": "1Gi"}),
    ],
    ids=["a GPU", "a request", "a limit, which Kubernetes takes for the request"],
)
def test_defaults_are_of_what_a_pool_says_nothing_of(resources: dict[str, Any], requests: dict[str, str]) -> None:
    found = containers(templates(pool_context(MINIMAL, server={"resources": resources}))["server"])

    assert found["triton"]["resources"]["requests"] == requests


@pytest.mark.parametrize(
    ("container", "given", "most"),
    [
        ("agent", lambda resources: pods_with({"agent": {"resources": resources}}), "4Gi"),
        ("triton", lambda resources: {"resources": resources}, "32Gi"),
    ],
    ids=["agent", "triton"],
)
@pytest.mark.parametrize(
    ("resources", "limits"),
    [
        ({}, {"memory": "default"}),
        ({"limits": {"cpu": "1"}}, {"cpu": "1", "memory": "default"}),
        ({"requests": {"memory": "8Gi"}}, None),
        ({"limits": {"memory": "512Mi"}}, {"memory": "512Mi"}),
    ],
    ids=["nothing", "another limit", "a request", "a limit"],
)
def test_a_server_has_limits_of_memory_unless_the_pool_says_what_it_needs(
    container: str,
    given: Callable[[dict[str, Any]], dict[str, Any]],
    most: str,
    resources: dict[str, Any],
    limits: dict[str, str] | None,
) -> None:
    found = containers(templates(pool_context(MINIMAL, server=given(resources)))["server"])

    expected = {name: most if amount == "default" else amount for name, amount in (limits or {}).items()}
    assert found[container]["resources"].get("limits") == (expected or None)


@pytest.mark.parametrize("component", ["server", "gateway"])
def test_a_spread_without_a_selector_is_of_the_pods_own_group(component: str) -> None:
    constraint = {"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule", "matchLabelKeys": ["a"]}
    own = {**constraint, "labelSelector": {"matchLabels": {"a": "b"}}}

    found = templates(pool_context(MINIMAL, **{component: pods_with(topologySpreadConstraints=[constraint, own])}))[
        component
    ]

    first, second = found["spec"]["topologySpreadConstraints"]
    assert first == {**constraint, "labelSelector": first["labelSelector"]}
    assert first["labelSelector"]["matchLabels"].items() <= found["metadata"]["labels"].items()
    assert {"segserve.dev/pool", "app.kubernetes.io/component"} <= first["labelSelector"]["matchLabels"].keys()
    assert second == own


@pytest.mark.parametrize("component", ["server", "gateway"])
def test_images_are_pulled_with_the_operators_secrets_beside_the_pools_own(component: str) -> None:
    told = pool_context(MINIMAL, **{component: pods_with(imagePullSecrets=[{"name": "own"}, {"name": "all"}])})

    spec = templates(with_defaults(told, image_pull_secrets=("all", "mirror")))[component]["spec"]

    assert spec["imagePullSecrets"] == [{"name": "own"}, {"name": "all"}, {"name": "mirror"}]


@pytest.mark.parametrize("component", ["server", "gateway"])
def test_the_cluster_can_choose_the_user_of_every_pod(component: str) -> None:
    """OpenShift's restricted-v2 refuses a pod that names a user or a group outside of its namespace's range."""
    spec = templates(with_defaults(pool_context(FULL), pod_user=None))[component]["spec"]

    assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert not [own for own in spec["containers"] if {"runAsUser", "runAsGroup"} & own["securityContext"].keys()]
    modes = {volume["secret"]["defaultMode"] for volume in spec["volumes"] if "secret" in volume}
    assert modes == {0o444}


@pytest.mark.parametrize("component", ["server", "gateway"])
def test_our_own_programs_log_as_the_operator_is_told(component: str) -> None:
    told = with_defaults(pool_context(MINIMAL), logging=LogSettings("json", "debug"))

    for name, container in containers(templates(told)[component]).items():
        variables = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
        expected = (
            {"SEGSERVE_LOG_FORMAT": "json", "SEGSERVE_LOG_LEVEL": "debug"} if name not in ("triton", "envoy") else {}
        )
        assert {key: value for key, value in variables.items() if "_LOG_" in key} == expected, name


def test_triton_logs_json_only_if_the_operator_is_told_so_of_servers() -> None:
    told = with_defaults(pool_context(MINIMAL), server_log_format="json")

    triton = containers(templates(told)["server"])["triton"]
    assert {"name": "SEGSERVE_LOG_FORMAT", "value": "json"} in triton["env"]
