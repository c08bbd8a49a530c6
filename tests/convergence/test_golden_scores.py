"""Canaries with golden sets in buckets that only servers can read: agents score them, and the operator compares."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from fakes.cluster_world import KEY, NAMESPACE, ClusterWorld, model_manifest
from fakes.counting_gateways import count_requests
from segserve_builder import sources
from segserve_common.kube.kinds import CONFIG_MAPS, REVISIONS, ROLLOUTS
from segserve_common.kube.names import SHARDS, assignment_name
from segserve_common.kube.shards import content_of, unpack

GOLDEN = {"uri": "s3://private/golden", "sha256": "1" * 64}


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ClusterWorld]:
    """A pool whose gateways count requests, and an operator that must not fetch anything."""
    world = ClusterWorld()

    def fetched(*arguments: Any) -> Any:
        raise AssertionError(f"the operator fetches {arguments}")

    count_requests(world, monkeypatch)
    monkeypatch.setattr(sources, "fetch_folder", fetched)
    world.apply_pool(replicas=2)
    yield world
    await world.passes.close()


async def changed(world: ClusterWorld, **spec: Any) -> None:
    """Serve a model with a golden set, and edit it."""
    told = {"golden": GOLDEN, "rollout": {}, **spec}
    world.apply(model_manifest("coins", **told))
    await world.turns(12)
    assert world.condition("coins", "Ready")[0] == "True"
    world.apply(model_manifest("coins", "2", **told))


async def ended(world: ClusterWorld, *, turns: int = 200, seconds_each: float = 10.0) -> dict[str, Any]:
    """Let time pass until the rollout has ended, and return its state."""
    for _ in range(turns):
        await world.turns(1, seconds_each=seconds_each)
        state: dict[str, Any] = world.status("coins").get("rollout") or {}
        if state.get("phase") in ("Succeeded", "RolledBack", "Cancelled"):
            return state
    raise AssertionError(f"after {turns} turns: {state}")


def scored(world: ClusterWorld) -> dict[str, set[str]]:
    """Return the digests of the golden sets that groups are told to score, by group."""
    found: dict[str, set[str]] = {}
    for group in world.groups():
        for shard in range(SHARDS):
            held = world.kube.peek(CONFIG_MAPS, NAMESPACE, assignment_name(KEY.pool, group, shard))
            for model in unpack(content_of(held) or "") if held is not None else ():
                if "scoring" in model:
                    found.setdefault(group, set()).add(model["scoring"]["golden"]["sha256"])
    return found


async def test_a_default_canary_with_a_private_golden_set_is_promoted_and_the_operator_fetches_nothing(
    world: ClusterWorld,
) -> None:
    await changed(world)
    state = await ended(world)

    assert (state["phase"], state["weight"]) == ("Succeeded", 100)
    record = world.kube.peek(ROLLOUTS, NAMESPACE, state["name"])
    verdicts = {verdict["gate"]: verdict for verdict in record["status"]["verdicts"]}
    assert (verdicts["goldenQuality"]["outcome"], verdicts["goldenQuality"]["reason"]) == ("Pass", "NoWorse")


async def test_both_revisions_score_the_same_set_for_as_long_as_the_rollout_takes(world: ClusterWorld) -> None:
    await changed(world)
    await world.turns(10)

    assert world.status("coins")["rollout"]["phase"] == "Progressing"
    assert len(scored(world)) == 2
    assert set().union(*scored(world).values()) == {GOLDEN["sha256"]}

    await ended(world)
    await world.turns(5)

    assert scored(world) == {}
    assert not [found for found in world.kube.all(REVISIONS, NAMESPACE) if "scoring" in found["data"]]
    assert await world.run_pass() == 0


async def test_a_candidate_whose_answers_are_worse_is_rolled_back_before_its_first_request(world: ClusterWorld) -> None:
    world.qualities["2"] = [0.6, 0.7] * 100
    world.qualities["1"] = [0.9] * 200
    await changed(world)
    state = await ended(world)

    assert (state["phase"], state["reason"]) == ("RolledBack", "ClassLost")
    assert list(world.weights("coins").values()) == [100]
    assert world.condition("coins", "Degraded") == ("True", "ClassLost")


async def test_a_golden_set_that_servers_cannot_fetch_ends_a_canary_after_its_progress_deadline(
    world: ClusterWorld,
) -> None:
    world.verdicts[GOLDEN["sha256"]] = "SourceUnauthorized"
    await changed(world, progressDeadline="2m")
    began_s = world.now_s
    state = await ended(world, turns=100, seconds_each=5.0)

    assert (state["phase"], state["reason"]) == ("RolledBack", "GoldenUnavailable")
    assert "SourceUnauthorized happened" in state["message"]
    assert 120 <= world.now_s - began_s < 180


async def test_a_golden_set_that_can_be_fetched_again_lets_the_canary_go_on(world: ClusterWorld) -> None:
    world.verdicts[GOLDEN["sha256"]] = "ArtifactMissing"
    await changed(world)
    await world.turns(30, seconds_each=10.0)
    assert list(world.weights("coins").values()) == [100]

    del world.verdicts[GOLDEN["sha256"]]

    assert (await ended(world))["phase"] == "Succeeded"
