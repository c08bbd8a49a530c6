"""The live tree: what serves in a line each, what moves or fails with its revisions, pods and causes."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from segserve_platform.cli.cluster.tree import PoolTree, Snapshot

from .conftest import conditions, deployment, model, pod, pool

TRIAL = {
    "stable": {"revision": "coins-1111111111", "group": "main-1"},
    "candidate": {"revision": "coins-2222222222", "group": "coins-2", "state": "Pending"},
}
LONG = (
    "container agent of pod segserve-default--coins-2-abc-x, image 'server:2': there is no such image in the registry"
)


def drawn(snapshot: Snapshot, *, encoding: str = "utf-8", width: int = 160) -> list[str]:
    buffer = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=buffer, width=width, force_terminal=False, color_system=None).print(PoolTree(snapshot))
    buffer.seek(0)
    return [line.rstrip() for line in buffer.read().splitlines()]


def seen(*models: Any, pods: Any = (), deployments: Any = (), pools: Any = None, **more: Any) -> Snapshot:
    return Snapshot("lab", models, [pool()] if pools is None else pools, pods, deployments, **more)


def test_what_serves_has_one_line_and_its_pods_are_counted() -> None:
    pods = [pod("main-1", "a"), pod("main-1", "b")]

    lines = drawn(seen(model("coins"), model("roads"), pods=pods, deployments=[deployment("main-1", 2)]))

    assert lines == [
        "lab",
        "default    ● ready     2/2 servers  http://gateway",
        "├─ main-1  ● 2/2 pods",
        "├─ coins   ● ready     coins-1111111111  100 %  in main-1",
        "└─ roads   ● ready     roads-1111111111  100 %  in main-1",
    ]


def test_a_change_shows_both_revisions_with_their_shares_and_the_candidates_pods() -> None:
    trial = model(roles=TRIAL, weight=20, conditions=conditions("Shifting", "step 2 of 5", Progressing="True"))
    pods = [pod("main-1", "a"), pod("coins-2", "x", ready=False)]

    lines = drawn(seen(trial, pods=pods, deployments=[deployment("main-1"), deployment("coins-2")]))

    assert lines[3:] == [
        "└─ coins                ◐ waiting",
        "   ├─ coins-1111111111  ● stable       80 %  in main-1",
        "   ├─ coins-2222222222  ◐ candidate    20 %  in coins-2",
        "   │  └─ coins-2        ◐ 0/1 pod",
        "   │     └─ abc-x       ◐ 0/2 running",
        "   └─ Progressing       ◐              Shifting  step 2 of 5",
    ]


def test_a_long_cause_is_told_once_where_it_is_seen_first() -> None:
    waiting = {"name": "agent", "image": "server:2", "state": {"waiting": {"reason": "ImagePullBackOff"}}}
    waiting["state"]["waiting"]["message"] = "there is no such image in the registry"  # type: ignore[index]
    broken = pod("coins-2", "x", ready=False, containerStatuses=[waiting])
    trial = model(roles=TRIAL, weight=0, conditions=conditions("ImagePullBackOff", LONG, Degraded="True"))

    lines = drawn(seen(trial, pods=[broken], deployments=[deployment("coins-2")]), width=250)

    told = [line for line in lines if "ImagePullBackOff" in line]
    assert len(told) == 2
    assert told[0].endswith(f"✗ 0/2        ImagePullBackOff  {LONG}")
    assert told[1].endswith("Degraded          ✗            ImagePullBackOff  as above")


def test_what_failed_says_why_and_what_only_waits_is_quiet() -> None:
    roles = {"candidate": {"revision": "coins-2", "state": "Failed", "reason": "GoldenFailed", "message": "IoU 0.2"}}
    said = [
        *conditions("Waiting", "not yet", RevisionLoaded="Unknown"),
        *conditions("GoldenFailed", "IoU 0.2", Degraded="True", Ready="False"),
    ]

    lines = drawn(seen(model(roles=roles, weight=0, conditions=said)))

    assert lines[3:] == [
        "└─ coins               ✗ not ready",
        "   ├─ coins-2          ✗ failed     0 %  GoldenFailed  IoU 0.2",
        "   ├─ Degraded, Ready  ✗            GoldenFailed  IoU 0.2",
        "   └─ RevisionLoaded   ○            Waiting  not yet",
    ]


def test_a_model_without_its_pool_a_quota_and_a_silent_server_are_told() -> None:
    said = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: pods=2"}
    refused = deployment("main-1", 2, conditions=[said])

    alone = drawn(seen(model(), pools=[]))
    full = drawn(seen(model(), deployments=[refused], trouble="the API server does not answer"))

    assert " ".join(alone[1].split()) == "default ✗ no pool no TritonPool 'default' here: apply one"
    assert full[1] == "last known state; the API server does not answer"
    assert "├─ main-1  ✗ 0/2 pods  QuotaExceeded  exceeded quota: pods=2" in full


def test_one_model_is_shown_with_its_pool_and_groups_alone() -> None:
    lines = drawn(seen(model("coins"), model("roads"), pods=[pod("main-1", "a")], name="roads", wide=True))

    assert lines[2:] == [
        "├─ main-1    ● 1/1 pod",
        "│  └─ abc-a  ● ready    node-1",
        "└─ roads     ● ready    roads-1111111111  100 %  in main-1",
    ]


def test_a_terminal_without_unicode_gets_ascii() -> None:
    lines = drawn(seen(model(), pods=[pod("main-1", "a")]), encoding="ascii")

    assert lines[1:] == [
        "default     + ready    2/2 servers  http://gateway",
        "|-- main-1  + 1/1 pod",
        "`-- coins   + ready    coins-1111111111  100 %  in main-1",
    ]


def test_a_spec_that_the_operator_has_not_seen_and_groups_of_two_pools_with_one_name_are_told_apart() -> None:
    edited, elsewhere = model("coins"), model("roads")
    edited["metadata"]["generation"] = 2
    elsewhere["spec"]["pool"] = "second"

    lines = drawn(seen(edited, elsewhere, pods=[pod("main-1", "a")], pools=[pool(), pool("second")]))

    assert lines[1:] == [
        "default     ● ready    2/2 servers  http://gateway",
        "├─ main-1   ● 1/1 pod",
        "└─ coins    ● ready    coins-1111111111  100 %  in main-1",
        "   └─ spec  ◐          the operator has not processed it yet",
        "second      ● ready    2/2 servers  http://gateway",
        "├─ main-1   ○ no pods",
        "└─ roads    ● ready    roads-1111111111  100 %  in main-1",
    ]


def test_nothing_says_how_to_begin() -> None:
    assert "segserve apply" in drawn(seen(pools=[]))[1]
