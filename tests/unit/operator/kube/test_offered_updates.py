"""When an update's window is open, and which changes of a spec are the pool's own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from fakes.pools import MINIMAL, VARIABLE, pool_context, with_defaults
from segserve_operator.adapters.kube.updates import is_open, settings_digest
from segserve_operator.api.pool_update import UpdateWindow

NIGHT = {"start": "22:00", "duration": "4h"}


@pytest.mark.parametrize(
    ("window", "at", "expected"),
    [
        pytest.param(NIGHT, "2026-11-20T21:59:59", False, id="before"),
        pytest.param(NIGHT, "2026-11-20T22:00:00", True, id="at its start"),
        pytest.param(NIGHT, "2026-11-21T01:59:59", True, id="past midnight"),
        pytest.param(NIGHT, "2026-11-21T02:00:00", False, id="at its end"),
        pytest.param({**NIGHT, "days": ["Fri"]}, "2026-11-21T01:00:00", True, id="it began on Friday"),
        pytest.param({**NIGHT, "days": ["Sat"]}, "2026-11-21T01:00:00", False, id="it begins on Saturday"),
        pytest.param({**NIGHT, "timeZone": "Europe/Berlin"}, "2026-11-20T21:30:00", True, id="in winter"),
        pytest.param({**NIGHT, "timeZone": "Europe/Berlin"}, "2026-07-20T20:30:00", True, id="in summer"),
        pytest.param({**NIGHT, "timeZone": "Asia/Tokyo"}, "2026-11-20T13:30:00", True, id="far east"),
        pytest.param({"start": "00:00", "duration": "168h", "days": ["Mon"]}, "2026-11-22T23:00:00", True, id="a week"),
        pytest.param({**NIGHT, "timeZone": "Nowhere/City"}, "2026-11-20T23:00:00", False, id="an unknown time zone"),
    ],
)
def test_a_window(window: dict[str, Any], at: str, expected: bool) -> None:
    now_s = datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp()

    assert is_open(UpdateWindow.model_validate(window), now_s) is expected


@pytest.mark.parametrize(
    ("changes", "own"),
    [
        pytest.param({"server": VARIABLE}, True, id="the environment"),
        pytest.param({"artifacts": {"base": "https://m.example.com/"}}, True, id="the artifacts' base"),
        pytest.param({"server": {"drainSeconds": 10}}, False, id="a default that is written out"),
        pytest.param({"server": {"serviceAccountAnnotations": {"a": "b"}}}, False, id="annotations of accounts"),
        pytest.param({"replicas": 3, "update": {"paused": True}}, False, id="the number of servers and their update"),
    ],
)
def test_the_pools_own_part_of_a_template(changes: dict[str, Any], own: bool) -> None:
    before, after = pool_context(MINIMAL), pool_context(MINIMAL, **changes)

    assert (settings_digest(before) != settings_digest(after)) is own


def test_what_an_operator_brings_is_no_part_of_a_pools_own_settings() -> None:
    context = pool_context(MINIMAL)

    assert settings_digest(with_defaults(context, server_image="segserve/server:2")) == settings_digest(context)
