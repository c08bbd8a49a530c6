"""Request counts from Envoy's statistics, which never fall while Envoy runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segserve_operator.adapters.samples import wire
from segserve_operator.adapters.traffic.envoy_counts import (
    CumulativeStats,
    counts_by_model,
    parse_stats,
    series_counts,
    stats_pattern,
)
from segserve_operator.adapters.traffic.pair_counts import pairs_json
from segserve_operator.core.rollout.counters import Counters, PairCounts, Series, SeriesCounts

HTTP = "coins.v2/main/infer/http"


def test_names_with_dots_are_read_back() -> None:
    answer = {
        "stats": [
            {"name": f"cluster.{HTTP}.upstream_rq_completed", "value": 3},
            {
                "histograms": {
                    "details": [
                        {
                            "name": f"cluster.{HTTP}.upstream_rq_time",
                            "totals": [{"lower_bound": 1.1, "width": 0.1, "count": 2}],
                        }
                    ]
                }
            },
        ]
    }

    assert parse_stats(answer) == {HTTP: {"upstream_rq_completed": 3, "upstream_rq_time:1.1": 2}}
    assert counts_by_model(parse_stats(answer)) == {
        "coins.v2": {Series("main", "http"): SeriesCounts(attempts=3, latencies=((1.1, 2),))}
    }


def test_the_pattern_matches_a_models_name_literally_and_only_inference() -> None:
    pattern = re.compile(stats_pattern(["coins.v2"]))

    assert pattern.fullmatch(f"cluster.{HTTP}.upstream_rq_5xx")
    assert not pattern.fullmatch("cluster.coins-v2/main/infer/http.upstream_rq_5xx")
    assert not pattern.fullmatch("cluster.coins.v2/main/aside/http.upstream_rq_5xx")
    assert re.fullmatch(stats_pattern([]), f"cluster.{HTTP}.upstream_rq_5xx")


def test_requests_that_envoy_cancelled_are_not_disconnected_callers(tmp_path: Path) -> None:
    stats = {
        "upstream_rq_completed": 5,
        "upstream_rq_5xx": 2,
        "upstream_rq_retry": 1,
        "retry.upstream_rq_completed": 1,
        "upstream_rq_timeout": 1,
        "upstream_cx_destroy_local_with_active_rq": 3,
    }

    total = CumulativeStats(tmp_path / "totals.json").update("1", ["coins.v2"], {HTTP: stats})

    assert series_counts(total[HTTP], "http") == SeriesCounts(attempts=7, failed=3, given_up=2, left=1)


def test_the_time_that_callers_waited_before_they_left_is_that_after_their_request_had_arrived() -> None:
    names = {f"left.{kind}_ms.envoy.cluster_name.{HTTP}": value for kind, value in (("total", 900), ("request", 650))}
    assert all(re.fullmatch(stats_pattern(["coins.v2"]), name) for name in names)

    found = parse_stats({"stats": [{"name": name, "value": value} for name, value in names.items()]})

    assert series_counts(found[HTTP], "http").waited_ms == 250


def test_counts_continue_after_statistics_restart(tmp_path: Path) -> None:
    totals = CumulativeStats(tmp_path / "totals.json")
    totals.update(
        "1", ["coins.v2"], {HTTP: {"upstream_rq_completed": 9, "upstream_rq_5xx": 7, "upstream_rq_active": 4}}
    )

    stats = totals.update("1", ["coins.v2"], {HTTP: {"upstream_rq_completed": 11, "upstream_rq_5xx": 1}})

    assert series_counts(stats[HTTP], "http") == SeriesCounts(attempts=11, failed=8)


def test_a_new_process_continues_the_counts_of_the_same_envoy(tmp_path: Path) -> None:
    first = CumulativeStats(tmp_path / "totals.json")
    first.update("1", ["coins.v2"], {HTTP: {"upstream_rq_5xx": 7}})
    first.update("1", ["coins.v2"], {HTTP: {"upstream_rq_completed": 1}})

    same, other = CumulativeStats(tmp_path / "totals.json"), CumulativeStats(tmp_path / "totals.json")

    assert same.update("1", ["coins.v2"], {HTTP: {"upstream_rq_5xx": 2}})[HTTP]["upstream_rq_5xx"] == 9
    assert other.update("2", ["coins.v2"], {HTTP: {"upstream_rq_5xx": 2}})[HTTP]["upstream_rq_5xx"] == 2


def test_a_removed_cluster_is_forgotten_and_others_are_not(tmp_path: Path) -> None:
    totals = CumulativeStats(tmp_path / "totals.json")
    other = "cells/main/infer/http"
    totals.update("1", ["coins.v2", "cells"], {HTTP: {"upstream_rq_5xx": 7}, other: {"upstream_rq_5xx": 5}})
    totals.update("1", ["coins.v2"], {})

    stats = totals.update("1", ["coins.v2", "cells"], {HTTP: {"upstream_rq_5xx": 1}, other: {"upstream_rq_5xx": 1}})

    assert {name: values["upstream_rq_5xx"] for name, values in stats.items()} == {HTTP: 1, other: 6}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), max_size=20))
def test_counts_never_fall_and_miss_nothing(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, bool]]
) -> None:
    """This holds if the value after a restart is lower than before it, as it is when every change is recorded."""
    totals, raw, expected, last = CumulativeStats(tmp_path_factory.mktemp("t") / "totals.json"), 0, 0, 0
    for more, later, falls in steps:
        raw, expected = raw + more, expected + more
        stats = totals.update("1", ["coins.v2"], {HTTP: {"upstream_rq_completed": raw}})
        if falls:
            raw = 0
            totals.update("1", ["coins.v2"], {HTTP: {"upstream_rq_completed": raw}})
        raw, expected = raw + later, expected + later
        assert stats[HTTP]["upstream_rq_completed"] >= last
        last = stats[HTTP]["upstream_rq_completed"]

    stats = totals.update("1", ["coins.v2"], {HTTP: {"upstream_rq_completed": raw}})
    assert stats[HTTP]["upstream_rq_completed"] == expected


def test_decoded_counts_have_the_times_of_the_operators_clock() -> None:
    by_series = {Series("main", "grpc"): SeriesCounts(5, 1, 1, 2, ((0.0, 1), (1.1, 2)))}
    encoded = wire.encode({"coins": Counters("77", 5000.0, by_series, 4000.0)}, uid="uid-1")

    assert wire.decode(encoded, 9000.0) == {"coins": Counters("uid-1/77", 9000.0, by_series, 8000.0)}


PAIRS = PairCounts("7", "main", "coins-new", (5, 1, 0, 2), (((1.1, 5),), ((2.0, 6),)), (0, 3, 2), (1, 4), 3)


def test_counts_of_pairs_go_with_those_of_a_model_and_a_gateway_without_any_says_nothing_of_them() -> None:
    counts = {"coins": Counters("77", 5000.0, {}, 4000.0, PAIRS), "cells": Counters("77", 5000.0, {}, 4000.0)}

    encoded = wire.encode(counts, uid="uid-1")

    decoded = wire.decode(encoded, 9000.0)
    assert decoded["coins"].pairs == PAIRS
    assert decoded["cells"].pairs is None
    assert "pairs" not in json.loads(encoded)["cells"]


@pytest.mark.parametrize(
    "changed",
    [
        {"epoch": None},
        {"failed": [1, 2, 3]},
        {"failed": [1, 2, 3, -1]},
        {"latencies": [[], [[1e400, 1]]]},
        {"ratios": list(range(1000))},
        {"ratios": [2**63]},
        {"stable": "x" * 1000},
        {"dropped": 0.5},
    ],
)
def test_damaged_pairs_are_no_evidence_and_take_nothing_else_with_them(changed: dict[str, Any]) -> None:
    fields = {"epoch": "1", "age": 1.0, "tallies": [["main", "http", 5, 1, 1, 2, [], 0, 0]]}
    text = json.dumps({"coins": {**fields, "pairs": {**pairs_json(PAIRS), **changed}}}).encode()

    counts = wire.decode(text, 9000.0)["coins"]

    assert counts.pairs is None
    assert counts.by_series[Series("main", "http")].attempts == 5


def test_as_many_pairs_as_there_can_be_fit_into_a_response() -> None:
    bins = tuple((float(f"{digits}e{power}"), 10**6) for power in range(4) for digits in range(10, 100))
    most = PairCounts("9" * 60, "m" * 63, "c" * 63, (10**6,) * 4, (bins, bins), (10**6,) * 20, (10**6,) * 20, 10**6)
    series = {Series(f"{name}-{'x' * 50}", "http"): SeriesCounts(1, 1, 1, 1, bins[:200]) for name in ("a", "b")}
    counts = {f"m{number:04}": Counters("1", 1.0, series, 0.0, most) for number in range(60)}

    assert len(wire.encode(counts, uid="u" * 36)) < wire.FEW_BYTES + wire.BYTES_PER_MODEL * len(counts)


@pytest.mark.parametrize("text", [b"", b"[]", b"{}x", b'{"coins": 3}', b'{"coins": {"epoch": "1", "tallies": [[1]]}}'])
def test_malformed_counts_are_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        wire.decode(text, 0.0)
