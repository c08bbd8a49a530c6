"""Limits of a model's manifest, as the core has them."""

from __future__ import annotations

from typing import Any

import pytest

from segserve_operator.core.traffic import RequestRate, RouteLimits
from segserve_operator.mapping.specs import limits_of


@pytest.mark.parametrize(
    ("stated", "limits"),
    [
        pytest.param(None, None, id="none"),
        pytest.param({}, RouteLimits(), id="empty"),
        pytest.param({"perCaller": {"requestsPerSecond": 5}}, RouteLimits(RequestRate(5)), id="of each caller"),
        pytest.param(
            {"total": {"megabytesPerSecond": 9}}, RouteLimits(total=RequestRate(None, 9)), id="of all together"
        ),
        pytest.param(
            {"perCaller": {"requestsPerSecond": 5, "pixelsPerSecond": 7}},
            RouteLimits(RequestRate(5)),
            id="a newer release's",
        ),
        pytest.param({"perCaller": {"requestsPerSecond": 0}}, RouteLimits(), id="no number"),
        pytest.param("many", None, id="no limits at all"),
    ],
)
def test_what_a_release_knows_of_the_limits_holds(stated: Any, limits: RouteLimits | None) -> None:
    assert limits_of({"metadata": {"name": "coins"}, "spec": {"limits": stated}}) == limits
