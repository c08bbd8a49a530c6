"""Why pods do not come up is said in the words of who knows it."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.cases import cases
from segserve_operator.adapters.kube.pods import pod_failure

QUOTA = 'pods "x" is forbidden: exceeded quota: small, requested: pods=1, used: pods=4, limited: pods=4'


def pod(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "server-0"}, "status": status}


def waiting(reason: str, message: str = "", **last: Any) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return pod(containerStatuses=[{"name": "triton", "image": "triton:9", "state": state, "lastState": last}])


def refused(message: str) -> dict[str, Any]:
    said = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
    return {"status": {"conditions": [said]}}


UNSCHEDULED = pod(
    conditions=[
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: Insufficient cpu"}
    ]
)
CRASHED = waiting("CrashLoopBackOff", "back-off 10s", terminated={"exitCode": 137, "reason": "OOMKilled"})


@cases(
    ("deployment", "pods", "reason", "words"),
    {
        "a quota is exceeded": (refused(QUOTA), [], "QuotaExceeded", "limited: pods=4"),
        "pods are refused": (refused("denied by policy"), [], "FailedCreate", "denied by policy"),
        "no node has room": (None, [UNSCHEDULED], "Unschedulable", "Insufficient cpu"),
        "no image": (None, [waiting("ImagePullBackOff", "not found")], "ImagePullBackOff", "triton:9"),
        "it keeps ending": (None, [CRASHED], "CrashLoopBackOff", "exit code 137, OOMKilled"),
        "it was evicted": (None, [pod(phase="Failed", reason="Evicted", message="disk")], "Evicted", "disk"),
    },
)
def test_the_cause_is_named(deployment: Any, pods: list[Any], reason: str, words: str) -> None:
    found = pod_failure(deployment, pods)

    assert found.reason == reason
    assert words in found.message


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing"])
def test_what_passes_by_itself_is_no_trouble(reason: str) -> None:
    assert pod_failure({"status": {}}, [waiting(reason), pod(phase="Running")]) is None
