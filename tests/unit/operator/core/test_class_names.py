"""Names of classes in the plan that the gateways get."""

from __future__ import annotations

from fakes.observed_models import FIRST, SECOND, candidate, group, holder, model, state, world
from segserve_builder.agent.protocol import AssignedModel
from segserve_builder.spec.model_spec import ModelClass
from segserve_operator.core.models.planning import MAX_NAMES_BYTES, desired_state
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.traffic import Share
from segserve_operator.core.world.observed import PoolGateway, PoolObserved, Roles

SERVED = Roles(holder(FIRST, "main"))
CHANGING = Roles(holder(FIRST, "main"), candidate(SECOND))
PLAIN = PoolObserved(gateway=PoolGateway(plain_http=True))


def with_names(told: AssignedModel, *names: str) -> AssignedModel:
    """Return a record with these names of classes, under the same revision."""
    classes = tuple(ModelClass(id=number, name=name) for number, name in enumerate(names))
    return told.model_copy(update={"pipeline": told.pipeline.model_copy(update={"classes": classes})})


def shares(told: AssignedModel, roles: Roles, pool: PoolObserved) -> tuple[Share, ...]:
    groups = [group("main", FIRST), group(SECOND.revision, SECOND)]
    rollout = state(SECOND, Phase.PROGRESSING) if roles.candidate is not None else None
    wanted = with_names(SECOND, "disc") if roles.candidate is not None else told
    records = [told, with_names(SECOND, "disc")]
    seen = world(model(wanted, roles, rollout=rollout), groups=groups, pool=pool, records=records)
    (route,) = desired_state(seen).traffic.routes
    return route.shares


def test_each_revision_has_the_names_of_its_own_classes() -> None:
    both = shares(with_names(FIRST, "background", "coin"), CHANGING, PLAIN)

    assert [share.classes for share in both] == [((0, "background"), (1, "coin")), ((0, "disc"),)]


def test_a_pool_without_plain_http_has_no_names_in_its_plan() -> None:
    assert [share.classes for share in shares(FIRST, CHANGING, PoolObserved())] == [None, None]


def test_names_that_would_make_a_plan_too_large_are_not_in_it() -> None:
    names = ["ü" * 32] * (MAX_NAMES_BYTES // 64)

    (fits,) = shares(with_names(FIRST, *names), SERVED, PLAIN)
    (too_long,) = shares(with_names(FIRST, *names, "a"), SERVED, PLAIN)

    assert fits.classes == tuple(enumerate(names))
    assert too_long.classes is None
