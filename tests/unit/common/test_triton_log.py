"""Lines of Triton's log as objects: whatever it writes, nothing is lost and nothing is taken for something else."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segserve_common.triton_log import TritonLogReader

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
POST = "segserve--post--e3ebf7b699"
SHARED = "segserve--post-shared--e3ebf7b699"
TRACEBACK = 'Traceback (most recent call last):\\n  File \\"post.py\\", line 3\\nValueError: no such class'


def read(*lines: str, now: datetime = NOW) -> list[dict[str, Any]]:
    reader = TritonLogReader(lambda step: {"model": "coins", "revision": "7f"} if step == POST else {})
    return [record for line in lines for record in reader.read(line, now)] + reader.flush()


def line(text: str, level: str = "E", day: str = "1122") -> str:
    return f"{level}{day} 13:35:12.686106 7522 pb_stub.cc:402] {text}"


def test_an_error_of_a_step_names_its_model_its_revision_and_its_request() -> None:
    (record,) = read(line(f'''"step '{POST}', request 'order-1234': {TRACEBACK}"'''))

    assert record == {
        "time": "2026-11-22T13:35:12.686+00:00",
        "level": "error",
        "logger": "triton",
        "source": "pb_stub.cc:402",
        "step": POST,
        "request_id": "order-1234",
        "model": "coins",
        "revision": "7f",
        "message": "ValueError: no such class",
        "exception": 'Traceback (most recent call last):\n  File "post.py", line 3\nValueError: no such class',
    }


def test_an_error_of_a_member_names_the_model_that_has_it() -> None:
    (record,) = read(line(f'''"step '{SHARED}', member '{POST}', request 'order-1234': no memory"'''))

    assert (record["step"], record["member"], record["request_id"]) == (SHARED, POST, "order-1234")
    assert (record["model"], record["revision"], record["message"]) == ("coins", "7f", "no memory")


def test_a_step_that_several_models_share_is_named_without_a_model() -> None:
    (record,) = read(line('''"step 'segserve--pre--fe94f24d06': no memory"'''))

    assert (record["step"], record["message"]) == ("segserve--pre--fe94f24d06", "no memory")
    assert not {"model", "revision", "request_id"} & record.keys()


@pytest.mark.parametrize("identity", ["it's", 'say "no"', "a': x", "a\nE1122 forged", "", "ü\\"])
def test_the_id_of_a_request_is_read_as_it_was_sent_whatever_it_is(identity: str) -> None:
    import json

    about = f"step {POST!r}, request {identity!r}: it failed"
    (record,) = read(line(json.dumps(about, ensure_ascii=False)))

    assert (record["request_id"], record["message"]) == (identity, "it failed")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('"loading: coins:1"', {"model": "coins"}),
        ("\"successfully loaded 'coins.network'\"", {"model": "coins.network"}),
        ("\"failed to load 'roads' version 1: Internal: no file\"", {"model": "roads"}),
        (f'"TRITONBACKEND_ModelInstanceInitialize: {POST}_0_0 (CPU device 0)"', {"step": POST}),
        (f"\"Stub process '{SHARED}_0_0' is not healthy.\"", {"step": SHARED}),
        ("\"[request id: order-1] in ensemble 'coins', no\"", {"model": "coins", "request_id": "order-1"}),
        ('"[request id: <id_unknown>] no"', {}),
        ("an older release quotes nothing", {}),
        ('"a text that is "not JSON', {}),
    ],
)
def test_triton_s_own_lines_have_what_they_name(text: str, found: dict[str, str]) -> None:
    (record,) = read(line(text, "I"))

    assert record["level"] == "info"
    assert {name: record[name] for name in ("model", "step", "revision", "request_id") if name in record} == found


@pytest.mark.parametrize("text", ["request '\\x': no", "step '\\N{none}': no", "request 'a\0': no", ", : no", ": no"])
def test_what_only_looks_like_a_step_s_words_is_a_message(text: str) -> None:
    (record,) = read(line(text))

    assert record["message"] == text
    assert not {"step", "request_id"} & record.keys()


def test_a_table_is_one_object() -> None:
    table = ["+---+", "| a |", "+---+"]

    records = read(line("", "I"), *table, "", line('"after"', "W"))

    assert [(record["level"], record["message"]) for record in records] == [
        ("info", "".join(f"{row}\n" for row in table)),
        ("warning", "after"),
    ]


def test_a_table_that_another_line_breaks_off_loses_nothing() -> None:
    records = read(line("", "I"), "| a |", line('"after"'), "| b |")

    assert [record["message"] for record in records] == ["| a |\n", "after", "| b |"]


def test_a_table_that_does_not_end_does_not_fill_the_memory_and_loses_nothing() -> None:
    rows = [f"| {number:>1000} |" for number in range(1000)]

    records = read(line("", "I"), *rows)

    assert max(len(record["message"]) for record in records) < 2**17
    assert [row for record in records for row in record["message"].splitlines()] == rows


def test_lines_of_libraries_are_objects_and_onnx_runtime_s_have_their_level() -> None:
    other = "\x1b[1;31m2026-11-22 13:35:12.6 [E:onnxruntime:, sequential_executor.cc:516] bad node\x1b[m"

    plain, onnx = read("Error: Failed to initialize NVML", other)

    assert plain == {"level": "info", "logger": "triton", "message": "Error: Failed to initialize NVML"}
    assert (onnx["level"], onnx["message"]) == ("error", other[7:-3])


def test_a_line_of_december_that_is_read_in_january_is_of_the_year_before() -> None:
    (record,) = read(line('"x"', day="1231"), now=datetime(2027, 1, 1, tzinfo=UTC))

    assert record["time"].startswith("2026-12-31T")


@given(st.lists(st.text(st.characters(exclude_characters="\n"))))
def test_no_line_ends_the_reading(lines: list[str]) -> None:
    read(*lines, *(line(text) for text in lines), *(line(f"request {text!r}: {text}") for text in lines))
