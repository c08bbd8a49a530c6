"""The chart, by the real Helm: installed, upgraded, tested, taken away, and what stays then."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from fakes.cluster import Cluster
from fakes.pools import pods_with
from fakes.waiting import HANG_S

pytestmark = pytest.mark.cluster

ROOT: Final = Path(__file__).parents[3]
CHART: Final = ROOT / "charts/segserve"
HELM: Final = Path(sys.prefix) / "bin/helm"
EXAMPLE: Final = ROOT / "examples/coins/model.yaml"
MODELS: Final = ("coins", "coins-instances", "coins-twostage")
EMBEDDED_TRITON: Final = "24.10"

Helm = Callable[..., str]


@pytest.fixture
def helm(cluster: Cluster, tmp_path: Path) -> Helm:
    """Runs Helm on the cluster; AssertionError with its words where it fails."""
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "KUBECONFIG": str(cluster.kubeconfig)}

    def run(*arguments: str | Path) -> str:
        command = [str(HELM), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture
def values(cluster: Cluster, namespace: str) -> dict[str, Any]:
    """Values for the cluster's images and a namespace alone: others may be at work in the cluster too."""
    images = {name: _image(getattr(cluster.images, name)) for name in ("operator", "server", "envoy")}
    images["server"] |= {"tritonVersion": EMBEDDED_TRITON}
    return {
        "images": {**images, "pullPolicy": "IfNotPresent"},
        "watchNamespaces": [namespace],
        "crds": {"enabled": False},
        "pool": {"create": True, "spec": {"gateway": {"replicas": 1}, "server": {"sharedMemory": "256Mi"}}},
    }


@pytest.fixture
def other_group(cluster: Cluster, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A copy of the chart whose definitions are of an API group of the test's own, and that group."""
    group = f"t{uuid.uuid4().hex[:8]}.segserve.test"
    chart = tmp_path / "segserve"
    shutil.copytree(CHART, chart)
    for path in filter(Path.is_file, chart.rglob("*")):
        path.write_text(path.read_text().replace("segserve.dev", group))
    yield chart, group
    cluster.kubectl("delete", "crd", f"tritonpools.{group}", f"segmentationmodels.{group}", "--ignore-not-found")


def test_definitions_and_pool_follow_the_release_and_stay_when_it_goes(
    cluster: Cluster,
    namespace: str,
    helm: Helm,
    values: dict[str, Any],
    other_group: tuple[Path, str],
    tmp_path: Path,
) -> None:
    chart, group = other_group

    def release(verb: str, port: int) -> None:
        told = values | {"crds": {"enabled": True}, "operator": {"replicas": 0}}
        told["pool"] = {"create": True, "spec": {"gateway": {"port": port}}}
        helm(verb, "segserve", chart, "-n", namespace, "-f", _written(told, tmp_path))

    def pool() -> tuple[str, int]:
        found = cluster.get(namespace, f"tritonpools.{group}", "default")
        return found["metadata"]["uid"], found["spec"]["gateway"]["port"]

    release("install", 9000)
    uid, port = pool()
    assert port == 9000
    release("upgrade", 9100)
    assert pool() == (uid, 9100)
    helm("rollback", "segserve", "1", "-n", namespace)
    assert pool() == (uid, 9000)

    helm("uninstall", "segserve", "-n", namespace)
    assert pool() == (uid, 9000)
    assert not cluster.get(namespace, "deployments")

    release("install", 9200)
    assert pool() == (uid, 9200)
    with pytest.raises(AssertionError, match="segserve-pool failed"):
        release("upgrade", 0)
    refused = cluster.kubectl("-n", namespace, "logs", "job/segserve-pool")
    assert "spec.gateway.port" in refused
    assert pool() == (uid, 9200)


NEW_GROUPS: Final = ("artifacts", "logging", "monitoring", "podSecurity", "rbac", "test", "commonLabels")
"""Groups of values that an earlier chart may lack."""


@pytest.fixture
def earlier_chart(tmp_path: Path) -> Path:
    """A copy of the chart whose values lack those that are new since."""
    chart = tmp_path / "earlier"
    shutil.copytree(CHART, chart)
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    (chart / "values.yaml").write_text(yaml.safe_dump({k: v for k, v in values.items() if k not in NEW_GROUPS}))
    return chart


@pytest.mark.parametrize("option", ["--reuse-values", "--reset-then-reuse-values"])
def test_a_release_whose_values_lack_groups_is_upgraded_and_rolled_back_with_what_it_was_told(
    option: str,
    cluster: Cluster,
    namespace: str,
    helm: Helm,
    values: dict[str, Any],
    earlier_chart: Path,
    tmp_path: Path,
) -> None:
    told = values | {"operator": {"replicas": 0, "podLabels": {"team": "vision"}}, "pool": {"create": False}}

    def deployment() -> dict[str, Any]:
        found = cluster.get(namespace, "deployments", "segserve")
        return {"uid": found["metadata"]["uid"], "template": found["spec"]["template"]}

    helm("install", "segserve", earlier_chart, "-n", namespace, "-f", _written(told, tmp_path))
    installed = deployment()

    helm("upgrade", "segserve", CHART, "-n", namespace, option, "--set", "logging.format=json")
    upgraded = deployment()
    assert upgraded["uid"] == installed["uid"]
    assert upgraded["template"]["metadata"]["labels"]["team"] == "vision"
    assert {"name": "SEGSERVE_LOG_FORMAT", "value": "json"} in upgraded["template"]["spec"]["containers"][0]["env"]

    helm("rollback", "segserve", "1", "-n", namespace)
    assert deployment() == installed
    helm("uninstall", "segserve", "-n", namespace)


def test_a_namespace_is_deleted_with_its_models_and_pools_where_the_operator_has_the_right_to_let_them_go(
    cluster: Cluster, namespace: str, helm: Helm, values: dict[str, Any], tmp_path: Path
) -> None:
    """Kubernetes deletes the operator's Role with the rest, in no certain order."""
    with cluster.namespace("leaving") as leaving:
        told = values | {"watchNamespaces": [leaving], "rbac": {"namespaceDeletion": True}, "pool": {"create": False}}
        helm("install", "segserve", CHART, "-n", namespace, "-f", _written(told, tmp_path), "--wait")
        pool = {"apiVersion": "segserve.dev/v1alpha1", "kind": "TritonPool", "metadata": {"name": "default"}}
        nowhere = pods_with(nodeSelector={"segserve.test/node": "none"})
        cluster.apply(leaving, {**pool, "spec": {"server": nowhere, "gateway": nowhere}}, EXAMPLE)

        def guarded() -> bool:
            found = [*cluster.get(leaving, "segm"), *cluster.get(leaving, "tpool")]
            return len(found) == len(MODELS) + 1 and all(item["metadata"].get("finalizers") for item in found)

        cluster.wait("finalizers", guarded)
        cluster.kubectl("delete", "namespace", leaving, f"--timeout={HANG_S:g}s")
        helm("uninstall", "segserve", "-n", namespace)


def _written(values: dict[str, Any], folder: Path) -> Path:
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(values))))
    return path


def _image(reference: str) -> dict[str, str]:
    repository, _, tag = reference.rpartition(":")
    return {"repository": repository, "tag": tag}
