"""Argo CD judges each state as docs/how-to/integrate.md says, and what it has synced once does not differ again."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from fakes.argocd import API, MODULE, PLACE, argocd
from fakes.cluster import Json
from fakes.cluster_models import model, pool
from fakes.docs import ROOT
from fakes.lives import judged
from fakes.served_namespace import MODEL, POOL, ServedNamespace
from segserve_common.kube.kinds import MODELS, POOLS, ROLLOUTS, Kind

pytestmark = [pytest.mark.cluster, pytest.mark.neighbours, pytest.mark.timeout(900)]

CONFIG = ROOT / "examples/argocd/argocd-cm.yaml"
NAME, APPLICATION = "synced", "applications.argoproj.io"


@pytest.fixture(scope="module")
def program(built: Callable[..., Path]) -> Path:
    return built("argocd", f"{MODULE}/cmd")


def test_each_state_has_its_health(lived: Mapping[Kind, Sequence[Json]], program: Path, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    judge = (program, "admin", "settings", "resource-overrides", "health", file, "--argocd-cm-path", CONFIG)

    def health(found: Json) -> str:
        file.write_text(json.dumps(found))
        (status,) = re.findall(r"^STATUS: (\w+)$", subprocess.check_output(judge, text=True), re.MULTILINE)
        return str(status)

    said = {kind: judged(health, versions) for kind, versions in lived.items()}
    serves, refused, deleted = "Progressing Healthy", "Progressing Degraded", "Progressing"
    assert said[MODELS] == f"{serves} Progressing Suspended {serves} {refused} {serves} {deleted}"
    assert said[ROLLOUTS] == f"Progressing Suspended {serves}"
    # Models move between its servers, and a missing Secret is seen later than the spec that names it.
    assert re.fullmatch(f"{serves}( {serves})* Progressing( Healthy)? Degraded {deleted}", said[POOLS]), said[POOLS]


def test_an_application_is_synced_twice_without_a_difference(
    served: ServedNamespace, namespace: str, program: Path, built: Callable[..., Path], tmp_path: Path
) -> None:
    cluster, repository = served.cluster, tmp_path / "repository"
    repository.mkdir()
    (repository / "coins.yaml").write_text(yaml.safe_dump_all([pool(NAME), model(name=NAME, pool=NAME)]))
    git = ("git", "-C", repository, "-c", "user.name=test", "-c", "user.email=test@example.com")
    for words in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "--message=Serve coins")):
        subprocess.run([*git, *words], check=True)
    spec = {
        "project": "default",
        "source": {"repoURL": repository.as_uri(), "path": ".", "targetRevision": "HEAD"},
        "destination": {"server": PLACE, "namespace": served.name},
        "syncPolicy": {"automated": {"selfHeal": True}},
    }

    def synced(times: int) -> list[Json]:
        """Return what there is once all is well after so many syncs."""
        status = (cluster.get(namespace, APPLICATION, NAME) or {}).get("status", {})
        operation, history = status.get("operationState", {}), status.get("history", ())
        told = [status.get(each, {}).get("status") for each in ("sync", "health")]
        told += [operation.get("phase"), len(history)]
        assert told == ["Synced", "Healthy", "Succeeded", times], status
        found = [served.get(kind, NAME) or {} for kind in (POOL, MODEL)]
        return [{"generation": each["metadata"]["generation"], "spec": each["spec"]} for each in found]

    config = yaml.safe_load(CONFIG.read_text())
    with argocd(program, built("argocd"), cluster, namespace, served.name, config, tmp_path):
        cluster.apply(namespace, {"apiVersion": API, "kind": "Application", "metadata": {"name": NAME}, "spec": spec})
        first = cluster.wait("a sync", lambda: synced(1))
        patch = json.dumps({"operation": {"sync": {"revision": "HEAD"}}})
        cluster.kubectl("-n", namespace, "patch", APPLICATION, NAME, "--type=merge", "-p", patch)
        second = cluster.wait("another sync", lambda: synced(2))
    served.delete(MODEL, NAME)
    served.delete(POOL, NAME)
    assert second == first
