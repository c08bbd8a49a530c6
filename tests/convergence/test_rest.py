"""What a pass remembers of settled models changes nothing but its cost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fakes.cluster_world import NAMESPACE, ClusterWorld, model_manifest
from fakes.pools import pods_with
from segserve_common.kube.kinds import MODELS, PODS
from segserve_operator import service
from segserve_operator.core.models import planning
from segserve_operator.core.models.planning import DesiredState
from segserve_operator.core.models.rest import Rest
from segserve_operator.core.world.observed import Observed
from segserve_operator.core.world.streams import STREAMS_SPLIT

COMPARED = ("statuses", "revisions", "groups", "traffic", "forgotten", "pool", "checks", "answers", "replicas")


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have each pass decided with and without what it remembers; return how many models were not decided again."""
    counts: list[int] = []

    def both(world: Observed, unrecorded: frozenset[str] = frozenset(), former: Rest | None = None) -> DesiredState:
        with_rest, without = (
            planning.desired_state(world, unrecorded, former),
            planning.desired_state(world, unrecorded),
        )
        for name in COMPARED:
            assert getattr(with_rest, name) == getattr(without, name), name
        assert with_rest.records.keys() == without.records.keys()
        counts.append(len(former.still(world, with_rest.drifts)) if former is not None else 0)
        return with_rest

    monkeypatch.setattr(service, "desired_state", both)
    return counts


def lose_a_server(world: ClusterWorld) -> None:
    name = next(pod["metadata"]["name"] for pod in world.kube.all(PODS, NAMESPACE) if "main" in pod["metadata"]["name"])
    world.bad_pods[name] = "LoadFailed"


def edit_the_golden_set(world: ClusterWorld) -> None:
    golden = {"uri": "s3://bucket/other/", "sha256": "b" * 64}
    world.apply(model_manifest("cells", golden=golden))


SAMPLES = {"sink": "s3://bucket/samples"}


def redact_by_another(world: ClusterWorld) -> None:
    redact = {"classes": ["coin"], "model": "coins"}
    world.apply_pool(gateway={"capture": True})
    world.apply(model_manifest("cells", capture={**SAMPLES, "redact": redact}))
    world.apply(model_manifest("coins", "2"))


EVENTS: dict[str, Callable[[ClusterWorld], None]] = {
    "another revision": lambda world: world.apply(model_manifest("coins", "2")),
    "a refused revision": lambda world: world.apply(model_manifest("coins", "3")),
    "a rollout": lambda world: world.apply(model_manifest("cells", "2", rollout={"strategy": "canary", "gates": []})),
    "another golden set": edit_the_golden_set,
    "an annotation": lambda world: world.kube.edit(
        MODELS, NAMESPACE, "coins", {"metadata": {"annotations": {"segserve.dev/rollback": "coins-1"}}}
    ),
    "a server that fails": lose_a_server,
    "more servers": lambda world: world.apply_pool(replicas=3, minReady=3),
    "samples": lambda world: world.apply(model_manifest("cells", capture=SAMPLES)),
    "samples that another model redacts, whose revision then changes": redact_by_another,
    "a watch for drift": lambda world: world.apply(model_manifest("cells", drift={})),
    "a deletion": lambda world: world.delete(MODELS, "roads"),
    "another template": lambda world: world.apply_pool(server=pods_with(nodeSelector={"zone": "b"})),
}


@pytest.mark.parametrize("event", EVENTS.values(), ids=list(EVENTS))
async def test_settled_models_are_not_decided_again_and_all_decisions_are_as_if_they_were(
    event: Callable[[ClusterWorld], None], remembered: list[int]
) -> None:
    world = ClusterWorld(verdicts={"3": "LoadFailed"})
    world.apply_pool(replicas=2)
    for name in ("coins", "cells", "roads"):
        world.apply(model_manifest(name, keepPrevious="10s"))
    await world.turns(8)
    assert remembered[-1] == 3

    event(world)
    await world.turns(12)
    await world.turns(4, seconds_each=400)


async def test_a_settled_model_that_keeps_streams_says_so_once_there_are_more_servers(remembered: list[int]) -> None:
    world = ClusterWorld()
    world.apply_pool()
    votes = [{"argmax": {}}, {"temporalSmoothing": {"method": "votes"}}]
    world.apply(model_manifest("coins", postprocess=votes, keepPrevious="0s"))
    await world.turns(12)
    assert remembered[-1] == 1

    world.apply_pool(replicas=2)
    await world.turns(4)

    assert world.condition("coins", "Degraded") == ("True", STREAMS_SPLIT)
