"""When an update's window is open, and which changes of a spec are the pool's own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fakes.cases import cases
from fakes.pools import MINIMAL, VARIABLE, pool_context, with_defaults
from segserve_operator.adapters.kube.updates import is_open, settings_digest
from segserve_operator.api.pool_update import UpdateWindow

NIGHT = {"start": "22:00", "duration": "4h"}


@cases(
    ("window", "at", "expected"),
    {
        "before": (NIGHT, "2026-11-20T21:59:59", False),
        "at its start": (NIGHT, "2026-11-20T22:00:00", True),
        "past midnight": (NIGHT, "2026-11-21T01:59:59", True),
        "at its end": (NIGHT, "2026-11-21T02:00:00", False),
        "it began on Friday": ({**NIGHT, "days": ["Fri"]}, "2026-11-21T01:00:00", True),
        "it begins on Saturday": ({**NIGHT, "days": ["Sat"]}, "2026-11-21T01:00:00", False),
        "in winter": ({**NIGHT, "timeZone": "Europe/Berlin"}, "2026-11-20T21:30:00", True),
        "in summer": ({**NIGHT, "timeZone": "Europe/Berlin"}, "2026-07-20T20:30:00", True),
        "far east": ({**NIGHT, "timeZone": "Asia/Tokyo"}, "2026-11-20T13:30:00", True),
        "a week": ({"start": "00:00", "duration": "168h", "days": ["Mon"]}, "2026-11-22T23:00:00", True),
        "an unknown time zone": ({**NIGHT, "timeZone": "Nowhere/City"}, "2026-11-20T23:00:00", False),
    },
)
def test_a_window(window: dict[str, Any], at: str, expected: bool) -> None:
    now_s = datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp()

    assert is_open(UpdateWindow.model_validate(window), now_s) is expected


@cases(
    ("changes", "own"),
    {
        "the environment": ({"server": VARIABLE}, True),
        "the artifacts' base": ({"artifacts": {"base": "https://m.example.com/"}}, True),
        "a default that is written out": ({"server": {"drainSeconds": 10}}, False),
        "annotations of accounts": ({"server": {"serviceAccountAnnotations": {"a": "b"}}}, False),
        "the number of servers and their update": ({"replicas": 3, "update": {"paused": True}}, False),
    },
)
def test_the_pools_own_part_of_a_template(changes: dict[str, Any], own: bool) -> None:
    before, after = pool_context(MINIMAL), pool_context(MINIMAL, **changes)

    assert (settings_digest(before) != settings_digest(after)) is own


def test_what_an_operator_brings_is_no_part_of_a_pools_own_settings() -> None:
    context = pool_context(MINIMAL)

    assert settings_digest(with_defaults(context, server_image="segserve/server:2")) == settings_digest(context)
