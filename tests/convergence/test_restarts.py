"""Servers that go and come back, for whatever reason, are no evidence against a revision; what answers is asked."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.rollout_world import FIRST, POLICY, SECOND, Rollout, fails
from segserve_operator.core.rollout.phases import Phase

LONG = POLICY.model_copy(update={"bake_time": timedelta(hours=2), "deadline": timedelta(hours=6)})
PHASES = (Phase.PROGRESSING, Phase.BAKING)
GROUPS = ("main", SECOND.revision)


async def at(phase: Phase) -> Rollout:
    """Return a rollout that has been in a phase for some seconds, with callers; a probe would fail."""
    rollout = Rollout()
    rollout.world.found.answers["probe"] = fails
    await rollout.begin(LONG)
    await rollout.until(lambda state: state.phase is Phase.PROGRESSING)
    if phase is Phase.BAKING:
        rollout.ask("promote", SECOND.revision)
    await rollout.until(lambda state: state.phase is phase)
    for _ in range(5):
        await rollout.second()
    return rollout


async def absent(rollout: Rollout, away_s: dict[str, int], *, asked: bool) -> list[dict[str, int]]:
    """Let groups have no servers for so many seconds, in which callers get errors, and return the weights of each."""
    rollout.requests_per_s = 50.0 if asked else 0.0
    fleet, weights = rollout.world.fleet, []
    for second in range(max(away_s.values()) + 10):
        fleet.nodeless = {group for group, seconds in away_s.items() if second < seconds}
        revisions = {FIRST.revision if group == "main" else group for group in fleet.nodeless}
        rollout.errors = dict.fromkeys(revisions, 1.0)
        await rollout.second()
        weights.append(rollout.world.traffic.groups_of("coins"))
    rollout.requests_per_s = 50.0
    return weights


@settings(max_examples=8, deadline=None)
@given(
    phase=st.sampled_from(PHASES),
    main_s=st.integers(1, 15),
    own_s=st.integers(1, 15),
    asked=st.booleans(),
    ends=st.booleans(),
)
async def test_a_restart_of_all_servers_quarantines_nobody(
    phase: Phase, main_s: int, own_s: int, asked: bool, ends: bool
) -> None:
    rollout = await at(phase)
    before, weight = rollout.state, rollout.world.traffic.groups_of("coins")
    if ends:
        rollout.world.restart()
    await absent(rollout, {"main": main_s, SECOND.revision: own_s}, asked=asked)
    decisions = [(decision.signal, decision.phase) for decision in rollout.record.decisions]

    assert all(phase not in (Phase.QUARANTINED, Phase.ROLLED_BACK) for _, phase in decisions)
    assert rollout.state.quarantines == 0
    assert rollout.state.weight >= before.weight
    assert rollout.world.traffic.groups_of("coins") == weight or rollout.state.weight > before.weight


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("group", GROUPS)
async def test_what_nobody_asked_quarantines_nobody(phase: Phase, group: str) -> None:
    rollout = await at(phase)
    await absent(rollout, {group: 60}, asked=False)

    assert rollout.state.phase is phase
    assert rollout.state.quarantines == 0


async def test_while_the_servers_of_what_is_promoted_are_away_its_predecessor_has_all_requests() -> None:
    rollout = await at(Phase.BAKING)
    weights = await absent(rollout, {SECOND.revision: 20}, asked=False)

    assert weights[5] == {"main": 100}
    assert weights[-1] == {"main": 5, SECOND.revision: 95}


@pytest.mark.parametrize("phase", PHASES)
async def test_servers_that_die_under_callers_while_the_others_answer_quarantine(phase: Phase) -> None:
    rollout = await at(phase)
    rollout.errors = {SECOND.revision: 1.0}
    await rollout.second()
    rollout.world.fleet.nodeless = {SECOND.revision}
    await rollout.second()
    await rollout.second()

    assert rollout.state.quarantines == 1
