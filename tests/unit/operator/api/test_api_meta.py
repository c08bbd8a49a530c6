from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from segserve_operator.api.meta import Condition, Duration, ObjectMeta, Timestamp, format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1h", 3600), ("10m", 600), ("30s", 30), ("1h30m", 5400), ("90m", 5400), ("1h1m1s", 3661), ("0s", 0)],
)
def test_a_duration_counts_hours_minutes_and_seconds(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "value", ["", "1", "1d", "h", "1.5h", "-1h", "30m1h", "1h 30m", "1H", "1h\n", "999999h", 60, 1.5, None, True]
)
def test_anything_else_is_no_duration(value: object) -> None:
    with pytest.raises(ValidationError, match="must be a duration such as 1h, 90s or 1h30m, got"):
        TypeAdapter(Duration).validate_python(value)


@given(st.integers(min_value=0, max_value=99_999 * 3600))
def test_every_duration_of_whole_seconds_is_read_as_it_was_written(seconds: int) -> None:
    duration = timedelta(seconds=seconds)

    assert parse_duration(format_duration(duration)) == duration


@given(st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29), timezones=st.just(UTC)))
def test_every_time_is_read_as_it_was_written(time: datetime) -> None:
    adapter = TypeAdapter(Timestamp)

    written = adapter.dump_python(adapter.validate_python(time))

    assert adapter.validate_json(f'"{written}"', strict=True) == time.replace(microsecond=0)


def test_a_time_is_written_as_kubernetes_does_whatever_its_zone() -> None:
    noon = datetime(2026, 3, 1, 13, 0, 0, 900_000, tzinfo=timezone(timedelta(hours=1)))

    condition = Condition(type="Ready", status="True", reason="Served", last_transition_time=noon)

    assert condition.to_dict() == {
        "type": "Ready",
        "status": "True",
        "reason": "Served",
        "message": "",
        "lastTransitionTime": "2026-03-01T12:00:00Z",
    }


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValidationError, match="timezone"):
        TypeAdapter(Timestamp).validate_python(datetime(2026, 3, 1))


@pytest.mark.parametrize("reason", ["", "Not Found", "not-found", "1st", "Ends:"])
def test_a_reason_is_one_word(reason: str) -> None:
    with pytest.raises(ValidationError, match="reason"):
        Condition(type="Ready", status="True", reason=reason, last_transition_time=datetime(2026, 3, 1, tzinfo=UTC))


@pytest.mark.parametrize("name", ["", "Coins", "coins--a", "-coins", "coins-", "a.b", "a_b", "a" * 41, "coins\n"])
def test_a_name_that_the_gateway_could_not_serve_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="must be at most 40 lower-case letters"):
        ObjectMeta(name=name)


@pytest.mark.parametrize("name", ["a", "coins", "coins-2", "4u", "a" * 40])
def test_a_dns_label_is_a_name(name: str) -> None:
    assert ObjectMeta(name=name).name == name
