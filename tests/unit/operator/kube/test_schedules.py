"""When the hours of a schedule are."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fakes.cases import cases
from segserve_operator.adapters.kube.schedules import is_open
from segserve_operator.api.pool_scaling import ScheduledMinimum

NIGHT = {"start": "22:00", "duration": "4h", "minimum": 2}


@cases(
    ("hours", "at", "expected"),
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
        "a week": ({**NIGHT, "start": "00:00", "duration": "168h", "days": ["Mon"]}, "2026-11-22T23:00:00", True),
        "an unknown time zone": ({**NIGHT, "timeZone": "Nowhere/City"}, "2026-11-20T23:00:00", False),
    },
)
def test_a_schedule(hours: dict[str, Any], at: str, expected: bool) -> None:
    now_s = datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp()

    assert is_open(ScheduledMinimum.model_validate(hours), now_s) is expected
