"""What is left without an operator is listed, asked about and removed; nothing that lives is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fakes.kube_http import FakeServer
from segserve_platform.cli.cluster.cleanup import leftovers, remove, running_operator
from segserve_platform.platforms.cluster.context_client import ContextClient
from segserve_platform.platforms.errors import ForbiddenError

from .conftest import MODELS, POOLS, Command, deployment, model, pod, pool

OURS = {"app.kubernetes.io/managed-by": "segserve", "app.kubernetes.io/part-of": "segserve"}
FINALIZER = "segserve.dev/traffic"


def owned(name: str, *owners: str, **labels: str) -> Any:
    references = [{"uid": f"u-{owner}", "kind": "TritonPool", "name": owner} for owner in owners]
    return {"metadata": {"name": name, "uid": name, "labels": OURS | labels, "ownerReferences": references}}


def held(name: str, *others: str, going: bool) -> Any:
    found = model(name)
    found["metadata"]["finalizers"] = [*others, FINALIZER]
    if going:
        found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return found


@pytest.fixture
def left(server: FakeServer) -> FakeServer:
    server.put(POOLS, pool())
    server.put(MODELS, held("going", "other/one", going=True), held("staying", going=False))
    theirs = {"metadata": {"name": "theirs", "uid": "theirs"}}
    server.put("api/v1/configmaps", owned("kept", "default"), owned("orphan", "gone"), owned("nobodys"), theirs)
    server.put("apis/apps/v1/deployments", deployment("gone-1"))
    server.put("api/v1/pods", pod("gone-1", "a"))
    return server


def test_only_what_nobody_owns_and_who_waits_to_go_is_left(left: FakeServer) -> None:
    found = leftovers(left.client(), everywhere=False, of_all=False)

    assert list(map(str, found)) == [
        f"lab: finalizer {FINALIZER} of segmentationmodel/going (it is being deleted)",
        "lab: deployment/segserve-default--gone-1 (no owner)",
        "lab: configmap/nobodys (no owner)",
        "lab: configmap/orphan (tritonpool/gone was deleted)",
    ]


def test_a_pool_that_waits_to_go_is_let_go_after_its_models(left: FakeServer) -> None:
    leaving = pool("second")
    leaving["metadata"] |= {"finalizers": ["segserve.dev/models"], "deletionTimestamp": "2026-01-01T00:00:00Z"}
    left.put(POOLS, leaving)

    found = list(map(str, leftovers(left.client(), everywhere=False, of_all=False)))

    assert found[1] == "lab: finalizer segserve.dev/models of tritonpool/second (it is being deleted)"


def test_all_takes_the_finalizer_of_models_that_stay_too(left: FakeServer) -> None:
    found = leftovers(left.client(), everywhere=True, of_all=True)

    assert [item.name for item in found if item.finalizers is not None] == ["going", "staying"]


def test_removing_keeps_others_finalizers_and_living_objects(left: FakeServer) -> None:
    api = left.client()
    for leftover in leftovers(api, everywhere=False, of_all=False):
        remove(api, leftover)

    assert leftovers(api, everywhere=False, of_all=False) == []
    ((_, body),) = left.sent("PATCH")
    assert body == {"metadata": {"finalizers": ["other/one"], "resourceVersion": "1"}}
    names = {path.rpartition("/")[2] for path in left.objects}
    assert {"kept", "theirs", "staying"} <= names
    assert not {"orphan", "nobodys"} & names


def test_where_owners_may_not_be_seen_nothing_counts_as_orphaned(left: FakeServer) -> None:
    from fakes.kube_http import refusal

    left.answers["GET", "/apis/segserve.dev/v1alpha1/namespaces/lab/tritonpools"] = lambda _: refusal(403, "no")

    with pytest.raises(ForbiddenError):
        leftovers(left.client(), everywhere=False, of_all=False)


def test_an_operator_that_runs_is_found(left: FakeServer) -> None:
    operator = deployment("any", readyReplicas=1)
    operator["metadata"] |= {
        "name": "segserve",
        "labels": {"app.kubernetes.io/name": "segserve", "app.kubernetes.io/component": "operator"},
    }
    assert running_operator(left.client()) is None

    left.put("apis/apps/v1/deployments", operator, namespace="system")

    assert running_operator(left.client()) == "deployment/segserve in system"


@pytest.fixture
def real(left: FakeServer, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    monkeypatch.setattr(ContextClient, "connect", lambda _: left.client())
    return left


def test_nobody_to_ask_removes_nothing_and_yes_is_an_answer(
    real: FakeServer, command: Command, kubeconfig: Path
) -> None:
    code, listed, complaint = command("cleanup", "--kubeconfig", kubeconfig)
    assert (code, len(listed.splitlines())) == (1, 4)
    assert "remove these 4 from namespace lab? Standard input is not a terminal: confirm with --yes" in complaint
    assert real.sent("DELETE") == []

    assert command("cleanup", "--kubeconfig", kubeconfig, "--yes")[:2] == (0, f"{listed}4 removed\n")
    assert command("cleanup", "--kubeconfig", kubeconfig) == (0, "nothing to remove in namespace lab\n", "")


def test_this_machine_has_nothing_to_clean(command: Command) -> None:
    code, _, complaint = command("cleanup", "--local")

    assert code == 1
    assert "segserve down" in complaint
