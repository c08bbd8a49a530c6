"""The overlay of how-to/integrate.md, applied by kubectl's own kustomize, installs an operator that serves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fakes.cluster import Cluster, Json
from fakes.cluster_models import model, pool
from fakes.docs import ROOT, blocks
from fakes.installed_operator import TRITON_VERSION, InstalledOperator
from fakes.served_namespace import ServedNamespace

pytestmark = [pytest.mark.cluster, pytest.mark.neighbours, pytest.mark.timeout(600)]

OVERLAY: Json = next(
    found
    for block in blocks(ROOT / "docs/how-to/integrate.md", "yaml")
    if (found := yaml.safe_load(block.text)).get("kind") == "Kustomization"
)


@pytest.fixture
def overlay(cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[Path]:
    """The folder of the overlay with the tests' images; what is the cluster's own is removed, but for definitions."""
    images = {
        "SEGSERVE_OPERATOR_IMAGE": cluster.images.operator,
        "SEGSERVE_SERVER_IMAGE": cluster.images.server,
        "SEGSERVE_ENVOY_IMAGE": cluster.images.envoy,
    }
    (image,), (own,) = OVERLAY["images"], OVERLAY["patches"]
    patch = yaml.safe_load(own["patch"])
    (container,) = patch["spec"]["template"]["spec"]["containers"]
    for variable in container["env"]:
        variable["value"] = images.pop(variable["name"], variable["value"])
    assert not images
    container["env"].append({"name": "SEGSERVE_TRITON_VERSION", "value": TRITON_VERSION})
    name, _, tag = cluster.images.operator.rpartition(":")
    overlay = {
        **OVERLAY,
        "namespace": namespace,
        "resources": [os.path.relpath(ROOT / "charts", tmp_path)],
        "images": [{**image, "newName": name, "newTag": tag}],
        "patches": [{**own, "patch": yaml.safe_dump(patch)}],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    yield tmp_path
    cluster.kubectl("delete", "clusterrole", "segserve-edit", "segserve-view", "--ignore-not-found")
    cluster.install_crds()


def test_an_overlay_installs_an_operator_that_serves(cluster: Cluster, namespace: str, overlay: Path) -> None:
    # This cluster has the definitions already, from another manager.
    options = ("--server-side", "--force-conflicts", "-k", str(overlay))
    cluster.kubectl("apply", *options)
    cluster.wait_condition(namespace, "deployment", "segserve", "Available")

    served = ServedNamespace(cluster, InstalledOperator(cluster, namespace), namespace)
    served.apply(pool(), model())
    served.wait_ready("coins")

    assert cluster.kubectl("diff", *options) == ""
