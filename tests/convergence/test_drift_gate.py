"""Rollouts whose gate `drift` compares the answers of both revisions, as their servers' agents count them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from fakes.cluster_world import NAMESPACE, ClusterWorld, model_manifest
from fakes.counting_gateways import count_requests
from segserve_common.kube.kinds import ROLLOUTS

STEPS: dict[str, Any] = {"steps": [{"weight": 50, "maxDuration": "20m"}], "bakeTime": "1m", "deadline": "30m"}


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ClusterWorld]:
    world = ClusterWorld()
    count_requests(world, monkeypatch)
    world.apply_pool()
    yield world
    await world.passes.close()


def model(network: str, **gate: Any) -> dict[str, Any]:
    return model_manifest("coins", network, rollout={**STEPS, "gates": [{"gate": "drift", **gate}]})


async def rolled_out(world: ClusterWorld, coins: float, minutes: int = 8, **gate: Any) -> None:
    """Roll out a revision that finds coins in such a share of images; stable finds them in 80 %."""
    world.apply(model("1", **gate))
    await world.turns(12)
    world.apply(model("2", **gate))
    await answered(world, coins, minutes)


async def answered(world: ClusterWorld, coins: float, minutes: int) -> None:
    """Let callers ask both revisions."""
    random = np.random.default_rng(1)
    totals = {network: {"classShare:coin": np.zeros(2), "brightness": np.zeros(4)} for network in ("1", "2")}
    for _ in range(minutes * 6):
        for network, share in (("1", 0.8), ("2", coins)):
            found = int((random.random(60) < share).sum())
            totals[network]["classShare:coin"] += (60 - found, found)
            totals[network]["brightness"] += np.histogram(random.random(60), 4, (0.0, 1.0))[0]
            world.answers[network] = {name: tuple(map(int, each)) for name, each in totals[network].items()}
        await world.turns(1, seconds_each=10.0)


def verdict(world: ClusterWorld) -> tuple[str, str]:
    record = world.kube.peek(ROLLOUTS, NAMESPACE, world.status("coins")["rollout"]["name"])
    (found,) = (each for each in record["status"]["verdicts"] if each["gate"] == "drift")
    return found["outcome"], found["reason"]


def phase(world: ClusterWorld) -> str:
    return str(world.status("coins")["rollout"]["phase"])


async def test_a_revision_that_answers_alike_is_promoted(world: ClusterWorld) -> None:
    await rolled_out(world, coins=0.8)

    assert phase(world) == "Succeeded"


async def test_no_deadline_promotes_what_a_person_is_to_decide_on(
    world: ClusterWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STEPS, "onUndecided", "Promote")
    await rolled_out(world, coins=0.2, minutes=6)

    world.restart()
    await answered(world, 0.2, minutes=1)
    await world.turns(60, seconds_each=60.0)

    assert phase(world) == "Progressing"
    assert verdict(world) == ("Undecided", "AnswersDiffer")


async def test_a_restarted_operator_compares_anew_and_comes_to_the_same_end(world: ClusterWorld) -> None:
    await rolled_out(world, coins=0.2, minutes=2, onBreach="Rollback")
    world.restart()

    await rolled_out(world, coins=0.2, onBreach="Rollback")

    assert phase(world) == "RolledBack"
