"""A leaving server gets requests only while no other server of its group has the revision."""

from __future__ import annotations

from segserve_builder.agent.protocol import ModelReport, ModelState
from segserve_operator.core.traffic import Endpoint
from segserve_operator.core.world.observed import GroupObserved, ServerObserved

READY = (ModelReport(model="coins", revision="coins-1", state=ModelState.READY, loaded=True),)


def server(name: str, *reports: ModelReport) -> ServerObserved:
    return ServerObserved(name, Endpoint(name, 8000, 8001), True, reports)


def hosts(group: GroupObserved) -> list[str]:
    return [endpoint.host for endpoint in group.endpoints("coins-1")]


def test_a_staying_server_with_the_revision_gets_all_requests() -> None:
    group = GroupObserved("main", (server("stays", *READY),), leaving=(server("leaves", *READY),))

    assert hosts(group) == ["stays"]


def test_without_another_server_leaving_ones_get_requests_but_do_not_complete_the_group() -> None:
    group = GroupObserved("main", (server("starts"),), leaving=(server("leaves", *READY),))

    assert hosts(group) == ["leaves"]
    assert not group.complete("coins-1")
    assert group.report("coins-1") is None
