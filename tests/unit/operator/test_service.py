"""What a pass says in the log."""

from __future__ import annotations

from segserve_operator.core.models.actions import SetTraffic, StartGroup, StopGroup
from segserve_operator.core.traffic import TrafficPlan
from segserve_operator.service import ActionLog


def test_an_action_that_passes_repeat_is_logged_once_until_it_changes() -> None:
    log = ActionLog()
    stop, start = StopGroup("coins-2"), StartGroup("main")

    lines = [log.new_lines(actions) for actions in ((stop,), (stop,), (stop, start), (), (stop,))]

    assert lines == [["StopGroup coins-2"], [], ["StartGroup main"], [], ["StopGroup coins-2"]]
    assert log.new_lines([stop, SetTraffic(TrafficPlan(()))]) == ["SetTraffic"]
