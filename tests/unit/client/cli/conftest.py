"""The command line as a user calls it, in this process, and an API server for it to talk to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from fakes.kube_http import CONFIG, FakeServer
from segserve_platform.cli.app import main

MODELS = "apis/segserve.dev/v1alpha1/segmentationmodels"
POOLS = "apis/segserve.dev/v1alpha1/tritonpools"
Command = Callable[..., tuple[int, str, str]]
MODEL_FILE = """\
apiVersion: segserve.dev/v1alpha1
kind: SegmentationModel
metadata: {name: coins}
spec:
  artifact: {uri: "file:///net.onnx", sha256: "%s"}
  family: semantic-logits
  classes: [{id: 0, name: background}, {id: 1, name: coin}]
  preprocess: [{decode: {}}]
  postprocess: [{argmax: {}}]
"""
"""A model's resource, but for its artifact's digest."""


# Typer reads the signatures of all commands anew each time that one is run.
_built = cache(typer.main.get_command)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `segserve ...` and return its exit code, what it printed and what it complained of."""
    monkeypatch.setattr("typer.main.get_command", _built)

    def run(*arguments: object, program: str = "segserve") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither this machine's platform nor its kubeconfig is what a test talks to."""
    for name in ("KUBECONFIG", "SEGSERVE_STATE", "SEGSERVE_URL", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    """A kubeconfig; nothing listens where it leads."""
    dead = {**CONFIG, "clusters": [{"name": "here", "cluster": {"server": "http://127.0.0.1:1"}}]}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(dead))
    return tmp_path / "kubeconfig"


@pytest.fixture
def server() -> FakeServer:
    """An API server that knows our kinds, and has no objects."""
    found = FakeServer()
    for kind in (MODELS, POOLS, "api/v1/pods", "api/v1/events", "apis/apps/v1/deployments"):
        found.put(kind)
    return found


def model(name: str = "coins", *, generation: int = 1, roles: dict[str, Any] | None = None, **more: Any) -> Any:
    """Return a model that serves, or is as `roles` and `more` of the status say."""
    stable = {"stable": {"revision": f"{name}-1111111111", "group": "main-1", "since": "2026-01-01T00:00:00Z"}}
    status = {
        "observedGeneration": generation,
        "conditions": conditions(Ready="True", Progressing="False", Degraded="False"),
        "roles": stable if roles is None else roles,
        "weight": 100,
        "url": f"http://gateway/v2/models/{name}",
    }
    metadata = {"name": name, "generation": generation, "creationTimestamp": "2026-01-01T00:00:00Z", "uid": f"u-{name}"}
    return {
        "apiVersion": "segserve.dev/v1alpha1",
        "kind": "SegmentationModel",
        "metadata": metadata,
        "spec": {"pool": "default"},
        "status": status | more,
    }


def conditions(reason: str = "Said", message: str = "so it is", **statuses: str) -> list[dict[str, str]]:
    """Return conditions of these statuses, all of one cause."""
    times = {"lastTransitionTime": "2026-01-01T00:00:00Z"}
    return [
        {"type": kind, "status": status, "reason": reason, "message": message, **times}
        for kind, status in statuses.items()
    ]


def pool(name: str = "default") -> Any:
    """Return a pool of two servers that serve."""
    status = {
        "mainGroup": "main-1",
        "replicas": 2,
        "url": "http://gateway",
        "conditions": conditions(Ready="True", Progressing="False", Degraded="False"),
    }
    return {
        "kind": "TritonPool",
        "metadata": {"name": name, "uid": f"u-{name}"},
        "spec": {"replicas": 2},
        "status": status,
    }


def pod(group: str, name: str, *, ready: bool = True, **status: Any) -> Any:
    """Return a server's pod of the pool `default`."""
    labels = {
        "app.kubernetes.io/managed-by": "segserve",
        "app.kubernetes.io/part-of": "segserve",
        "segserve.dev/pool": "default",
        "segserve.dev/group": group,
        "pod-template-hash": "abc",
    }
    containers = [{"name": "triton", "ready": ready, "restartCount": 0, "state": {"running": {}}}]
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {
        "metadata": {"name": f"segserve-default--{group}-abc-{name}", "labels": labels, "uid": name},
        "spec": {"containers": [{"name": "triton"}, {"name": "agent"}], "nodeName": "node-1"},
        "status": {"phase": "Running", "conditions": conditions, "containerStatuses": containers} | status,
    }


def deployment(group: str, replicas: int = 1, **status: Any) -> Any:
    """Return a group's Deployment."""
    labels = {"app.kubernetes.io/managed-by": "segserve", "app.kubernetes.io/part-of": "segserve"}
    labels |= {"segserve.dev/pool": "default", "segserve.dev/group": group}
    metadata = {"name": f"segserve-default--{group}", "labels": labels, "uid": group}
    return {"metadata": metadata, "spec": {"replicas": replicas}, "status": status}
