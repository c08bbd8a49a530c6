"""Logs of this machine's platform: every line once and whole, whatever happens to the file in between."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from segserve.platform import Local
from segserve_operator.adapters.local.files import bound_log
from segserve_platform.platforms.local import LocalPlatform, LogRequest
from segserve_platform.platforms.log_records import log_records


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "groups/main-1/triton.log"
    path.parent.mkdir(parents=True)
    path.write_text("first\n")
    return path


@pytest.fixture
def followed(tmp_path: Path, log: Path) -> Iterator[str]:
    """The lines of the log as they come; the first of them is taken."""
    lines = LocalPlatform(Local(tmp_path)).logs(LogRequest(container="triton", follow=True))
    assert next(lines) == "groups/main-1/triton | first"
    return (line.removeprefix("groups/main-1/triton | ") for line in lines)


def add(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def taken(lines: Iterator[str], count: int) -> list[str]:
    return [next(lines) for _ in range(count)]


def numbered(start: int, end: int) -> list[str]:
    return [f"line {number:05}" for number in range(start, end)]


def test_lines_come_as_they_are_written(log: Path, followed: Iterator[str]) -> None:
    add(log, "second\n")
    assert next(followed) == "second"

    add(log, "third\nfourth\n")
    assert taken(followed, 2) == ["third", "fourth"]


def test_a_line_that_is_written_in_two_halves_comes_out_as_one(log: Path, followed: Iterator[str]) -> None:
    add(log, "second\nthe first half, ")
    assert next(followed) == "second"

    add(log, "the second\n")
    assert next(followed) == "the first half, the second"


def test_a_letter_that_is_cut_in_two_is_whole(log: Path, followed: Iterator[str]) -> None:
    whole = "Größe\n".encode()
    with log.open("ab", buffering=0) as file:
        file.write(b"second\n" + whole[:3])
        assert next(followed) == "second"
        file.write(whole[3:])

    assert next(followed) == "Größe"


def test_a_log_that_is_cut_goes_on_without_a_line_lost_or_twice(log: Path, followed: Iterator[str]) -> None:
    before, after = numbered(0, 20_000), numbered(20_000, 20_050)
    add(log, "\n".join(before) + "\n")
    assert taken(followed, len(before)) == before

    bound_log(log, limit_bytes=100_000, kept_bytes=20_000)
    add(log, "\n".join(after) + "\n")

    assert taken(followed, len(after)) == after


def test_lines_that_came_before_a_cut_and_were_not_shown_yet_follow_it(log: Path, followed: Iterator[str]) -> None:
    before, late, after = numbered(0, 20_000), numbered(20_000, 20_100), numbered(20_100, 20_150)
    add(log, "\n".join(before) + "\n")
    assert taken(followed, len(before)) == before

    add(log, "\n".join(late) + "\n")
    bound_log(log, limit_bytes=100_000, kept_bytes=20_000)
    add(log, "\n".join(after) + "\n")

    assert taken(followed, len(late) + len(after)) == late + after


def test_a_cut_log_that_has_grown_beyond_its_former_end_goes_on_where_it_was(
    log: Path, followed: Iterator[str]
) -> None:
    """Whoever reads the lines may take none for a while: a pager does."""
    before, after = numbered(0, 10_000), numbered(10_000, 30_000)
    add(log, "\n".join(before) + "\n")
    assert taken(followed, len(before)) == before

    bound_log(log, limit_bytes=50_000, kept_bytes=20_000)
    add(log, "\n".join(after) + "\n")

    assert taken(followed, len(after)) == after


@pytest.mark.parametrize("new", ["new\n", "new\n" * 3])
def test_a_log_that_is_another_file_now_is_shown_from_its_beginning(
    log: Path, followed: Iterator[str], new: str
) -> None:
    (log.parent / "next.txt").write_text(new)
    (log.parent / "next.txt").replace(log)

    assert taken(followed, new.count("\n")) == new.split()


def test_a_log_that_was_deleted_may_come_back(log: Path, followed: Iterator[str]) -> None:
    add(log, "second\n")
    assert next(followed) == "second"

    log.unlink()
    log.write_text("back\n")

    assert next(followed) == "back"


def test_without_following_a_last_line_without_its_end_is_shown_too(log: Path, tmp_path: Path) -> None:
    add(log, "second\nSegmentation fault")

    assert list(LocalPlatform(Local(tmp_path)).logs(LogRequest(container="triton", lines=2))) == [
        "groups/main-1/triton | second",
        "groups/main-1/triton | Segmentation fault",
    ]


def test_no_lines_of_the_past_are_shown_where_none_are_asked_for(log: Path, tmp_path: Path) -> None:
    lines = LocalPlatform(Local(tmp_path)).logs(LogRequest(container="triton", follow=False, lines=0))

    assert list(lines) == []


def test_logs_of_all_kinds_are_objects_with_their_origin() -> None:
    lines = [
        'gateway/access | {"request_id": "order-1", "response_code": 503}',
        "groups/main/triton | I1122 17:22:37.225138 4949 server.cc:604] ",
        "groups/main/triton | +---+",
        "groups/main/agent | no level",
        "groups/main/triton | E1122 17:22:37.225138 4949 server.cc:1] \"step 'a', request 'order-1': it failed\"",
        "segserve | 2026-11-22 17:22:37,225 WARNING the gateway ended",
        "gateway/envoy | {not JSON",
    ]

    records = list(log_records(lines))

    told = [(record["origin"], record.get("level"), record.get("message")) for record in records]
    assert told == [
        ("gateway/access", None, None),
        ("groups/main/agent", None, "no level"),
        ("groups/main/triton", "info", "+---+\n"),
        ("groups/main/triton", "error", "it failed"),
        ("segserve", "warning", "the gateway ended"),
        ("gateway/envoy", None, "{not JSON"),
    ]
    assert {record.get("request_id") for record in records} == {"order-1", None}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        pytest.param(
            "2026-11-22 17:22:37,225 INFO it runs", ("2026-11-22T12:22:37.225+00:00", None, "it runs"), id="ours"
        ),
        pytest.param(
            "2026-11-22 17:22:37,225 INFO segserve_builder.comparator.loop it runs",
            ("2026-11-22T12:22:37.225+00:00", "segserve_builder.comparator.loop", "it runs"),
            id="with the logger",
        ),
        pytest.param(
            "2026-02-30 17:22:37,225 INFO no day", (None, None, "2026-02-30 17:22:37,225 INFO no day"), id="no day"
        ),
    ],
)
def test_a_line_of_ours_is_read_in_the_time_zone_of_this_machine(
    line: str, told: tuple[str | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Etc/GMT-5")
    time.tzset()
    try:
        (record,) = log_records([f"segserve | {line}"])
    finally:
        monkeypatch.undo()
        time.tzset()

    assert (record.get("time"), record.get("logger"), record["message"]) == told
