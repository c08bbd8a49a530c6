"""The README's commands for Kubernetes run as they are shown, in a namespace of the tests' cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest
from PIL import Image

from bench.ports import free_port
from cluster import images
from cluster.node import NAME, environment
from fakes.cluster import Cluster, Json
from fakes.docs import ROOT, blocks
from fakes.installed_operator import TRITON_VERSION, image_values, set_options

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

COMMANDS: Final = ("kind create cluster", "kubectl patch segm coins", "helm upgrade segserve")
"""How the blocks begin."""
FORMER_TAG: Final = "former"
"""Of images that the cluster has, with the same content: an upgrade to them is one to other images."""


def adapted(port: int, helm: str) -> Mapping[str, str]:
    """Return what the cluster of these tests needs in the place of some commands, or behind them."""
    server = "docker build -f images/server.Dockerfile -t $REGISTRY/segserve-server:0.1.0 ."
    build = f"docker build --quiet --network=host --build-arg BASE={images.PYTHON_IMAGE}"
    forward = "kubectl port-forward service/segserve-default"
    forwards = f"until curl -fs 127.0.0.1:{port}/v2/health/ready; do sleep 0.2; done"
    return {
        "kind create cluster": "",
        server: f"docker tag {images.SERVER_IMAGE} $REGISTRY/segserve-server:0.1.0",  # of the embedded Triton
        "docker build -f images/operator": f"{build} -f images/operator",
        "kind load docker-image": f"kind load docker-image --name {NAME}",
        "helm install segserve charts/segserve": f"helm install segserve charts/segserve {helm}",
        f"{forward} 8080 &": f"{forward} {port}:8080 &\n{forwards}",
        "127.0.0.1:8080": f"127.0.0.1:{port}",
        "overlay.png": "$OUT/overlay.png",
        "tag=next": f"tag={FORMER_TAG}",
    }


def test_a_model_is_installed_asked_and_promoted_and_its_release_upgraded(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    shown = [block.text for block in blocks(ROOT / "README.md", "console") if block.text.startswith(COMMANDS)]
    assert len(shown) == len(COMMANDS)
    script = "".join(shown)
    values = ["crds.enabled=false", *image_values("envoy", cluster.images.envoy)]  # other operators use the definitions
    helm = " ".join(["--set-string", f"images.server.tritonVersion={TRITON_VERSION}", *set_options(values)])
    for command, instead in adapted(free_port(), helm).items():
        assert command in script, command
        script = script.replace(command, instead)
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(cluster.kubeconfig.read_text())
    cluster.kubectl("--kubeconfig", str(kubeconfig), "config", "set-context", "--current", "--namespace", namespace)
    own = {name: text for name, text in environment().items() if not name.startswith("SEGSERVE_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"

    done = subprocess.run(
        ["bash", "-exc", f"trap 'kill $(jobs -p)' EXIT\n{script}"],
        cwd=ROOT,
        env={**own, "PATH": path, "HOME": str(tmp_path), "KUBECONFIG": str(kubeconfig), "OUT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{cluster.story(namespace)}"
    with Image.open(tmp_path / "overlay.png") as overlay, Image.open(ROOT / "examples/coins/coins.png") as photo:
        assert overlay.size == photo.size

    def promoted() -> Json | None:
        found: Json = cluster.get(namespace, "segmentationmodel", "coins")["status"]["roles"]
        return None if "candidate" in found else found

    roles = cluster.wait("the candidate is stable", promoted)
    assert roles["stable"]["revision"] != roles["previous"]["revision"]
    operator = cluster.get(namespace, "deployment", "segserve")["spec"]["template"]["spec"]["containers"][0]
    assert operator["image"] == images.FORMER_IMAGES[1]
