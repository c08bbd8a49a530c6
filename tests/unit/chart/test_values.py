"""What a company sets once: names, labels, registry, Secrets, users; and values of a release that lacked some."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from segserve_common.logs import LogSettings
from segserve_operator.settings import OperatorSettings

from .conftest import CHART, Render, of_kind, the
from .test_chart import SETS, _environment

VALUES: Final[dict[str, Any]] = yaml.safe_load((CHART / "values.yaml").read_text())
DEEP: Final = ("images", "monitoring", "networkPolicy")
"""Groups whose values are in groups of their own; what is that deep elsewhere is the user's."""
ALL: Final[dict[str, Any]] = {
    **SETS["monitoring"],
    **SETS["pool"],
    "watchNamespaces": [],
    "operator": {"replicas": 2},
    "networkPolicy": {"enabled": True, "egress": {"enabled": True}},
}


def test_the_defaults_that_templates_can_read_are_those_of_the_values() -> None:
    """Helm does not let templates read values.yaml."""
    assert (CHART / "files/defaults.yaml").read_text() == (CHART / "values.yaml").read_text()


@pytest.mark.parametrize("groups", [[*VALUES], [*VALUES][::2], [*VALUES][1::2]], ids=["all", "half", "other half"])
def test_groups_of_values_that_an_earlier_release_lacks_have_their_defaults(
    groups: list[str], render: Render, tmp_path: Path
) -> None:
    """`helm upgrade --reuse-values` renders with the values of the earlier chart, without those of this one."""

    def differ(lacking: Sequence[str]) -> bool:
        given = {name: value for name, value in ALL.items() if name not in lacking}
        chart = _with_values(
            tmp_path / "-".join(lacking)[:200], {name: value for name, value in VALUES.items() if name not in lacking}
        )
        return render(given, chart=chart) != render(given)

    assert _offenders(differ, groups) == []


@pytest.mark.parametrize("depth", [1, 2])
def test_values_within_groups_that_an_earlier_release_lacks_have_their_defaults(
    depth: int, render: Render, tmp_path: Path
) -> None:
    chart = _with_values(tmp_path, {name: _emptied(value, depth, name) for name, value in VALUES.items()})

    assert render(ALL, chart=chart) == render(ALL)


def test_a_group_of_values_that_is_null_is_as_if_it_were_not_given(render: Render) -> None:
    assert _offenders(lambda null: render(dict.fromkeys(null)) != render({}), [*VALUES]) == []


def test_a_limit_that_is_taken_away_stays_away(render: Render) -> None:
    found = the(render({"operator": {"resources": {"limits": None}}}), "Deployment")

    container, _ = found["spec"]["template"]["spec"]["containers"]
    assert "limits" not in container["resources"]


def test_names_can_be_chosen_and_all_objects_of_the_chart_bear_them(render: Render) -> None:
    objects = render({**ALL, "fullnameOverride": "vision-serving", "crds": {"enabled": False}}, name="r7")

    names = {found["metadata"]["name"] for found in objects}
    assert all(name.startswith("vision-serving") for name in names), names
    settings = OperatorSettings.from_environment(_environment(the(objects, "Deployment")))
    leases = [
        name for role in of_kind(objects, "Role") for rule in role["rules"] for name in rule.get("resourceNames", ())
    ]
    assert settings.lease_name in leases
    (container,) = the(objects, "Pod")["spec"]["containers"]
    assert "http://vision-serving.vision.svc:8012/healthz" in container["args"]


def test_a_name_in_labels_is_one_that_selectors_know(render: Render) -> None:
    objects = render({**ALL, "nameOverride": "masks"}, name="r7")

    deployment = the(objects, "Deployment")
    assert deployment["metadata"]["name"] == "r7-masks"
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert selector["app.kubernetes.io/name"] == "masks"
    assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert the(objects, "Service")["spec"]["selector"] == selector


def test_common_labels_are_on_every_object_and_change_none_of_the_charts_own(render: Render) -> None:
    common = {"team": "vision", "release": "of-all", "app.kubernetes.io/name": "mine", "helm.sh/chart": "mine"}
    values = {**ALL, "commonLabels": common, "crds": {"enabled": False}}

    objects = render(values)

    for found in objects:
        labels = found["metadata"]["labels"]
        assert labels["team"] == "vision", found["kind"]
        assert (labels["app.kubernetes.io/name"], labels["helm.sh/chart"]) == ("segserve", "segserve-0.1.0")
    assert the(objects, "ServiceMonitor")["metadata"]["labels"]["release"] == "prometheus"
    pod = the(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert pod["team"] == "vision"
    assert pod["app.kubernetes.io/component"] == "operator"


def test_one_registry_and_one_secret_are_those_of_every_image(render: Render) -> None:
    objects = render({**ALL, "images": {"registry": "registry.example/mirror", "pullSecrets": [{"name": "pull"}]}})

    images = {container["image"] for found in objects for container in _pod(found).get("containers", ())}
    assert images == {"registry.example/mirror/segserve-operator:0.1.0"}
    settings = OperatorSettings.from_environment(_environment(the(objects, "Deployment")))
    assert settings.server_image == "registry.example/mirror/segserve-server:0.1.0"
    assert settings.envoy_image.startswith("registry.example/mirror/envoyproxy/envoy:v")
    assert settings.image_pull_secrets == ("pull",)
    assert all(_pod(found)["imagePullSecrets"] == [{"name": "pull"}] for found in objects if _pod(found))


@pytest.mark.parametrize(
    ("repository", "pulled"),
    [
        ("localhost/own", "r.example/own"),
        ("r2:5000/a/own", "r.example/a/own"),
        ("library/own", "r.example/library/own"),
        ("own", "r.example/own"),
    ],
)
def test_a_registry_takes_the_place_of_one_and_of_none(repository: str, pulled: str, render: Render) -> None:
    objects = render({"images": {"registry": "r.example", "operator": {"repository": repository, "tag": "1"}}})

    container, _ = the(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"{pulled}:1"


def test_users_can_be_left_to_the_cluster(render: Render) -> None:
    objects = render({**ALL, "podSecurity": {"user": "cluster"}})

    for found in filter(_pod, objects):
        security = _pod(found)["securityContext"]
        assert security == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}, found["kind"]
    settings = OperatorSettings.from_environment(_environment(the(objects, "Deployment")))
    assert settings.pod_user is None


def test_users_can_be_others(render: Render) -> None:
    objects = render({**ALL, "podSecurity": {"user": 10001}})

    for found in filter(_pod, objects):
        security = _pod(found)["securityContext"]
        assert {security[name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {10001}
    settings = OperatorSettings.from_environment(_environment(the(objects, "Deployment")))
    assert settings.pod_user == 10001


def test_the_operators_pod_gets_more_variables_volumes_and_a_scheduler(render: Render) -> None:
    values = {
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "volumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "volumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}],
        "schedulerName": "own",
    }

    pod = _pod(the(render({"operator": values}), "Deployment"))

    container, _ = pod["containers"]
    assert values["env"][0] in container["env"]
    assert values["volumeMounts"][0] in container["volumeMounts"]
    assert values["volumes"][0] in pod["volumes"]
    assert pod["schedulerName"] == "own"


def test_logging_is_told_to_the_operator(render: Render) -> None:
    objects = render({"logging": {"format": "json", "level": "debug"}})

    settings = OperatorSettings.from_environment(_environment(the(objects, "Deployment")))
    assert settings.logging == LogSettings("json", "debug")


def _pod(found: dict[str, Any]) -> dict[str, Any]:
    if found["kind"] == "Pod":
        return dict(found["spec"])
    return dict(found["spec"]["template"]["spec"]) if found["kind"] in ("Deployment", "Job") else {}


def _offenders(differ: Callable[[Sequence[str]], bool], groups: Sequence[str]) -> Sequence[str]:
    """Return the groups that make a difference, looked for one by one only where all together make one."""
    if not differ(groups):
        return []
    return [group for group in groups if differ([group])] or groups


def _with_values(folder: Path, values: dict[str, Any]) -> Path:
    chart = folder / "segserve"
    shutil.copytree(CHART, chart)
    (chart / "values.yaml").write_text(yaml.safe_dump(values))
    return chart


def _emptied(value: Any, depth: int, group: str) -> Any:
    """Return a group of values without what is that deep in it; of other groups nothing is that deep."""
    if not isinstance(value, dict):
        return value
    if depth == 1:
        return {}
    return {name: _emptied(each, 1, group) for name, each in value.items()} if group in DEEP else value
