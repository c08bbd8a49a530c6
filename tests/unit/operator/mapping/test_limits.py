"""Limits of a model's manifest, as the core has them."""

from __future__ import annotations

from typing import Any

from fakes.cases import cases
from segserve_operator.core.traffic import RequestRate, RouteLimits
from segserve_operator.mapping.specs import limits_of


@cases(
    ("stated", "limits"),
    {
        "none": (None, None),
        "empty": ({}, RouteLimits()),
        "of each caller": ({"perCaller": {"requestsPerSecond": 5}}, RouteLimits(RequestRate(5))),
        "of all together": ({"total": {"megabytesPerSecond": 9}}, RouteLimits(total=RequestRate(None, 9))),
        "one that nobody knows": (
            {"perCaller": {"requestsPerSecond": 5, "pixelsPerSecond": 7}},
            RouteLimits(RequestRate(5)),
        ),
        "no number": ({"perCaller": {"requestsPerSecond": 0}}, RouteLimits()),
        "no limits at all": ("many", None),
    },
)
def test_those_limits_hold_that_can_be_read(stated: Any, limits: RouteLimits | None) -> None:
    assert limits_of({"metadata": {"name": "coins"}, "spec": {"limits": stated}}) == limits
