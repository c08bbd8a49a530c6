"""What a traffic plan says of requests of one id."""

from __future__ import annotations

from fakes.observed_models import FIRST, SECOND, candidate, group, holder, model, state, world
from segserve_operator.core.models.planning import desired_state
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.traffic import RouteAffinity
from segserve_operator.core.world.observed import Observed, PoolGateway, PoolObserved, Roles

CHANGING = Roles(holder(FIRST, "main"), candidate(SECOND))
BAKING = Roles(holder(SECOND, SECOND.revision), previous=holder(FIRST, "main"))
GROUPS = [group("main", FIRST), group(SECOND.revision, SECOND)]


def affinity(seen: Observed) -> RouteAffinity | None:
    traffic = desired_state(seen).traffic
    return traffic.routes[0].affinity


def test_a_pool_without_affinity_has_none_in_its_plan() -> None:
    assert affinity(world(model(FIRST, Roles(holder(FIRST, "main"))), groups=GROUPS, pool=PoolObserved())) is None


def test_without_a_rollout_ids_have_servers_only() -> None:
    seen = world(
        model(FIRST, Roles(holder(FIRST, "main"))),
        groups=GROUPS,
        pool=PoolObserved(gateway=PoolGateway(session_affinity=True)),
    )

    assert affinity(seen) == RouteAffinity()


def test_ids_stay_with_the_revision_of_the_rollout_before_and_after_its_promotion() -> None:
    for roles, phase in ((CHANGING, Phase.PROGRESSING), (BAKING, Phase.BAKING)):
        rollout = state(SECOND, phase)
        coins = model(SECOND, roles, rollout=rollout)

        found = affinity(world(coins, groups=GROUPS, pool=PoolObserved(gateway=PoolGateway(session_affinity=True))))

        assert found == RouteAffinity(last=SECOND.revision, salt=rollout.rollout)
