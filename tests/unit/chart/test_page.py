"""The page in a pod: reached by a forwarded port alone, with the rights that it needs and no others."""

from __future__ import annotations

from typing import Any, Final

import pytest
import yaml

from fakes import rollout_records
from fakes.control import ClusterHarness, status
from fakes.rights import grants
from segserve import Client
from segserve_platform.platforms.rollouts.actions import run_action
from segserve_ui.backend import Backend, UiPlatform, body_limit_bytes
from segserve_ui.models import ModelsList, ModelsOverview, StoredModels
from segserve_ui.rollouts import RolloutsOverview

from .conftest import Render, of_kind
from .test_chart import REPOSITORY, WITH_PAGE

PAGE: Final[dict[str, Any]] = {"ui": {"enabled": True}}
ACTING: Final[dict[str, Any]] = {"ui": {"enabled": True, "actions": True}}
ACCOUNT: Final = ("vision", "segserve-ui")
OF_EVERYBODY: Final = ("authentication.k8s.io", "selfsubjectreviews")
"""What Kubernetes lets each account create."""


def pod_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (deployment,) = (each for each in of_kind(objects, "Deployment") if each["metadata"]["name"] == "segserve-ui")
    spec: dict[str, Any] = deployment["spec"]["template"]
    return spec


def test_there_is_no_page_unless_it_is_asked_for(render: Render) -> None:
    assert not [each for each in render() if each["metadata"]["name"].endswith("-ui")]


def test_nothing_of_the_page_is_open_on_the_clusters_network(render: Render) -> None:
    objects = render(WITH_PAGE["ui"])
    labels = pod_of(objects)["metadata"]["labels"]

    for container in pod_of(objects)["spec"]["containers"]:
        assert (container["command"], "ports" in container) == (["segserve", "ui"], False)
    services = of_kind(objects, "Service")
    assert not [each for each in services if each["spec"]["selector"].items() <= labels.items()]
    policies = [each["spec"] for each in of_kind(objects, "NetworkPolicy")]
    (policy,) = (each for each in policies if each["podSelector"]["matchLabels"].items() <= labels.items())
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == []
    assert policy["egress"][-1] == {"ports": [{"port": 9090}]}
    # Gateways open their internal ports to pods with this label.
    assert "app.kubernetes.io/part-of" not in labels
    assert labels["team"] == "vision"


def test_each_namespace_has_a_container_at_a_port_of_its_own(render: Render) -> None:
    containers = pod_of(render(WITH_PAGE["ui"]))["spec"]["containers"]

    shown = {each["name"]: each["args"] for each in containers}
    assert shown == {
        f"ui-{namespace}": [
            f"--namespace={namespace}",
            f"--port={port}",
            "--no-open",
            "--prometheus=http://prometheus.monitoring:9090",
        ]
        for namespace, port in (("vision", 8090), ("lab", 8091))
    }
    for each in containers:
        (probe,) = {tuple(each[f"{kind}Probe"]["exec"]["command"]) for kind in ("startup", "liveness", "readiness")}
        assert f"'127.0.0.1', {each['args'][1].split('=')[1]}" in probe[-1]


def test_the_pod_is_confined_as_the_operators_is(render: Render) -> None:
    pod = pod_of(render(PAGE))["spec"]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 1000
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "runAsUser" not in pod_of(render(PAGE | {"podSecurity": {"user": "cluster"}}))["spec"]["securityContext"]


@pytest.mark.parametrize("values", [PAGE, ACTING], ids=["looking", "acting"])
def test_the_page_may_do_what_it_asks_of_the_api_server_and_changes_nothing_unless_it_may_act(
    values: dict[str, Any], render: Render
) -> None:
    granted = grants(render(values), ACCOUNT)
    harness = ClusterHarness()
    model = next(yaml.safe_load_all((REPOSITORY / "examples/coins/model.yaml").read_text()))
    platform = harness.place()
    with Client(platform=platform) as client:
        client.models.apply(model)
    harness.tell("coins", status(at=rollout_records.standing()))
    harness.keep(rollout_records.record())
    harness.server.requests.clear()

    stored = StoredModels.of(platform)
    ModelsList(examples=False).describe(stored)
    ModelsOverview(None, 1.0).describe(stored)
    RolloutsOverview(platform).describe(stored)
    assert body_limit_bytes(Backend(UiPlatform(platform, platform, None, None)).pools()) > 0  # type: ignore[arg-type]
    if values is ACTING:
        assert run_action(platform, "coins", "abort", timeout_s=0).startswith("requested: ")

    asked = {_asked(each.method, each.url.path, str(each.url.query)) for each in harness.server.requests}
    assert (("patch", "segserve.dev", "segmentationmodels") in asked) is (values is ACTING)
    assert asked - {("create", *OF_EVERYBODY)} <= {(each.verb, each.group, each.resource) for each in granted}
    writes = {each.resource for each in granted if each.verb not in ("get", "list", "watch")}
    assert writes == ({"segmentationmodels"} if values is ACTING else set())
    assert ("get", "", "services") in {(each.verb, each.group, each.resource) for each in granted}
    assert {each.scope for each in granted} == {"vision"}


def _asked(method: str, path: str, query: str) -> tuple[str, str, str]:
    """Return verb, group and resource of a request to the API server."""
    parts = path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    rest = rest[2:] if rest[0] == "namespaces" else rest
    reads = "get" if len(rest) > 1 else "watch" if "watch=" in query else "list"
    verb = {"GET": reads, "PATCH": "patch", "POST": "create", "PUT": "update", "DELETE": "delete"}[method]
    return verb, group, rest[0]
