"""What a pod's status says of it."""

from __future__ import annotations

from typing import Any

from segserve_operator.adapters.kube import pods


def pod(*, ready: bool, containers_ready: bool, going: bool = False) -> dict[str, Any]:
    statuses = [{"name": "triton", "ready": containers_ready, "state": {"running": {}}}]
    metadata = {"name": "server-0", "uid": "u", **({"deletionTimestamp": "2026-01-01T00:00:00Z"} if going else {})}
    conditions = [{"type": "Ready", "status": str(ready)}]
    status = {"phase": "Running", "podIP": "10.0.0.1", "conditions": conditions, "containerStatuses": statuses}
    return {"metadata": metadata, "status": status}


def test_a_pod_whose_node_is_lost_is_cut_off() -> None:
    assert pods.is_cut_off(pod(ready=False, containers_ready=True))


def test_a_pod_that_is_not_ready_yet_is_not_cut_off() -> None:
    assert not pods.is_cut_off(pod(ready=False, containers_ready=False))


def test_a_pod_that_is_about_to_end_still_answers_and_gets_no_more_of_its_service() -> None:
    going = pod(ready=True, containers_ready=True, going=True)

    assert not pods.is_cut_off(going)
    assert not pods.is_ready(going)
    assert pods.address(going) == "10.0.0.1"
