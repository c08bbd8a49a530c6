"""Models that keep streams on their servers, in pools that can and cannot keep a stream on one of them."""

from __future__ import annotations

from dataclasses import replace

from fakes.cases import cases
from fakes.observed_models import FIRST, candidate, group, holder, model, world
from segserve_builder.agent.protocol import AssignedModel
from segserve_builder.steps.pipeline import PostprocessStep
from segserve_operator.api.rollout_policy import RolloutPolicy
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.models.planning import desired_state
from segserve_operator.core.world.observed import ObservedCondition, PoolGateway, PoolObserved, Roles

VOTES = [PostprocessStep.model_validate(step) for step in ({"argmax": {}}, {"temporalSmoothing": {"method": "votes"}})]
VIDEO = FIRST.model_copy(update={"pipeline": FIRST.pipeline.model_copy(update={"postprocess": tuple(VOTES)})})
CANARY = RolloutPolicy()
BLUE_GREEN = RolloutPolicy(strategy="blueGreen", steps=())


def refusal(told: AssignedModel, pool: PoolObserved, policy: RolloutPolicy | None = None) -> FailureReason | None:
    """Return why the candidate of this spec is refused, None if it gets servers."""
    status = desired_state(world(model(told, policy=policy), pool=pool)).statuses["coins"]
    return status.roles.candidate.failure


@cases(
    ("pool", "policy", "why"),
    {
        "one server keeps all streams": (PoolObserved(), None, None),
        "one server at a time keeps all streams": (PoolObserved(), BLUE_GREEN, None),
        "two servers split a stream": (PoolObserved(replicas=2), None, "the pool has 2 servers"),
        "a canary splits a stream": (PoolObserved(), CANARY, "a canary divides requests"),
        "with ids a stream stays where it is": (
            PoolObserved(replicas=2, gateway=PoolGateway(session_affinity=True)),
            CANARY,
            None,
        ),
    },
)
def test_a_pool_that_would_split_streams_refuses_the_stage_that_keeps_them(
    pool: PoolObserved, policy: RolloutPolicy | None, why: str | None
) -> None:
    found = refusal(VIDEO, pool, policy)

    assert (found is None) == (why is None)
    if found is not None and why is not None:
        assert found.reason == "StreamsNeedAffinity"
        assert why in found.message
        assert "sessionAffinity" in found.message
    assert refusal(FIRST, pool, policy) is None


def test_a_refused_revision_gets_servers_once_the_pool_keeps_streams_together() -> None:
    failure = refusal(VIDEO, PoolObserved(replicas=2))
    refused = model(VIDEO, Roles(candidate=candidate(VIDEO, failure=failure)))

    for affinity in (False, True):
        pool = PoolObserved(replicas=2, gateway=PoolGateway(session_affinity=affinity))
        found = desired_state(world(refused, records=[VIDEO], pool=pool)).statuses["coins"].roles.candidate

        assert (found.failure is None) == affinity


def test_a_model_that_serves_goes_on_where_streams_are_split_and_says_so() -> None:
    coins = model(VIDEO, Roles(holder(VIDEO, "main")))
    main = group("main", VIDEO, servers=2)
    found: dict[int, ObservedCondition] = {}
    for replicas in (1, 2):
        seen = world(coins, groups=[main], records=[VIDEO], pool=PoolObserved(replicas=replicas))
        desired = desired_state(replace(seen))
        assert desired.traffic.routes[0].shares[0].weight == 100
        found[replicas] = next(each for each in desired.statuses["coins"].conditions if each.type == "Degraded")

    assert found[1].reason != "StreamsNeedAffinity"
    assert (found[2].status, found[2].reason) == ("True", "StreamsNeedAffinity")
