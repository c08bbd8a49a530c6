"""Writes the base of kustomize, `charts/operator.yaml`, from the chart: `python -m charts.kustomize_base`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import yaml

CHARTS: Final = Path(__file__).parent
HELM: Final = Path(sys.prefix) / "bin/helm"
NAMESPACE: Final = "segserve"
_HEAD: Final = "# Written by `make crds` from the chart with its default values; for changes make an overlay.\n"
_OF_HELM: Final = ("helm.sh/chart", "app.kubernetes.io/managed-by")


def base() -> str:
    """Return the YAML text of all objects of the chart but definitions and hooks.

    An overlay may set another namespace: the operator then learns its own from its pod.
    """
    command = [str(HELM), "template", "segserve", str(CHARTS / "segserve"), "--namespace", NAMESPACE, "--no-hooks"]
    with tempfile.TemporaryDirectory() as home:
        environment = {"HOME": home, "PATH": "/usr/bin:/bin"}
        rendered = subprocess.run(
            [*command, "--set", "crds.enabled=false"], capture_output=True, text=True, env=environment, check=True
        ).stdout
    objects = [_portable(found) for found in yaml.safe_load_all(rendered) if found]
    return _HEAD + yaml.safe_dump_all(objects, sort_keys=False, width=120)


def _portable(found: dict[str, Any]) -> dict[str, Any]:
    for name in _OF_HELM:
        found["metadata"]["labels"].pop(name, None)
    if found["kind"] == "Deployment":
        container, _ = found["spec"]["template"]["spec"]["containers"]
        for variable in container["env"]:
            if variable["name"] in ("SEGSERVE_LEASE_NAMESPACE", "SEGSERVE_NAMESPACES"):
                variable.pop("value")
                variable["valueFrom"] = {"fieldRef": {"fieldPath": "metadata.namespace"}}
    return found


if __name__ == "__main__":
    (CHARTS / "operator.yaml").write_text(base())
