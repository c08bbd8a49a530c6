"""A server that is about to end answers on where no other does, and counts for nothing else."""

from __future__ import annotations

from segserve_builder.agent.protocol import ModelReport, ModelState
from segserve_operator.core.models.observed import GroupObserved, ServerObserved
from segserve_operator.core.traffic import Endpoint

READY = (ModelReport(model="coins", revision="coins-1", state=ModelState.READY, loaded=True),)


def server(name: str, *reports: ModelReport) -> ServerObserved:
    return ServerObserved(name, Endpoint(name, 8000, 8001), True, reports)


def hosts(group: GroupObserved) -> list[str]:
    return [endpoint.host for endpoint in group.endpoints("coins-1")]


def test_one_that_stays_and_proved_the_revision_takes_all_requests() -> None:
    group = GroupObserved("main", (server("stays", *READY),), leaving=(server("leaves", *READY),))

    assert hosts(group) == ["stays"]


def test_where_no_other_proved_the_revision_those_that_leave_answer_but_make_no_group_complete() -> None:
    group = GroupObserved("main", (server("starts"),), leaving=(server("leaves", *READY),))

    assert hosts(group) == ["leaves"]
    assert not group.complete("coins-1")
    assert group.report("coins-1") is None
