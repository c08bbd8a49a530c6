"""What a pass says in the log, and how often passes do what has no effect."""

from __future__ import annotations

from typing import Any, Final

import pytest

from fakes.platform import WRITES, World, assigned
from segserve_operator import service as service_module
from segserve_operator.core.models.actions import EmitEvent, SaveStatus, SetTraffic, StartGroup, StopGroup
from segserve_operator.core.traffic import TrafficPlan
from segserve_operator.core.world.event import Event
from segserve_operator.service import ActionLog


def test_an_action_that_passes_repeat_is_logged_once_until_it_changes() -> None:
    log = ActionLog()
    stop, start = StopGroup("coins-2"), StartGroup("main")

    lines = [log.new_lines(actions) for actions in ((stop,), (stop,), (stop, start), (), (stop,))]

    assert lines == [["StopGroup coins-2"], [], ["StartGroup main"], [], ["StopGroup coins-2"]]
    assert log.new_lines([stop, SetTraffic(TrafficPlan(()))]) == ["SetTraffic"]


MINUTES: Final = 5
POLL_S: Final = 0.1


class Ignoring:
    """A port that accepts a write and does nothing."""

    def __init__(self, port: Any, write: str) -> None:
        self._port, self._write, self.calls = port, write, 0

    def __getattr__(self, name: str) -> Any:
        return self._nothing if name == self._write else getattr(self._port, name)

    async def _nothing(self, *_: object) -> None:
        self.calls += 1


@pytest.mark.parametrize("write", sorted(WRITES))
async def test_a_write_that_is_accepted_and_ignored_is_not_repeated_without_a_pause(write: str) -> None:
    world = World()
    ports = [Ignoring(port, write) for port in (world.store, world.fleet, world.traffic)]
    service, taken = world.service_over(*ports), 0

    async def passes() -> None:
        """As the supervisor does: the next pass is due at once after a write."""
        nonlocal taken
        until_s = world.now_s + MINUTES * 60
        while world.now_s < until_s:
            actions = await service.run_once()
            taken += len(actions)
            world.fleet.work()
            world.now_s += POLL_S if actions else 1.0

    world.store.apply(assigned("coins"))
    await passes()
    world.store.apply(assigned("coins", "2"))
    await passes()
    world.store.delete("coins")
    await passes()

    assert taken < 3 * MINUTES * 60
    assert sum(port.calls for port in ports) < 3 * MINUTES * 20


async def test_two_events_of_one_reason_are_both_written_before_the_status() -> None:
    world = World()
    world.store.apply(assigned("coins"))
    (seen,) = await world.store.models()
    events = [Event(kind, "RolledBack", "because") for kind in ("Normal", "Warning")]
    wanted = [EmitEvent("coins", events[0]), EmitEvent("coins", events[1]), SaveStatus("coins", seen.status)]
    service = world.service
    outcome = service_module._Outcome(await service.observe(), world.rollout_cache.repeats)

    held = await service._write_intents({"coins": wanted}, outcome)

    assert held == frozenset()
    assert outcome.taken == wanted
