"""Statistics as tallies, and totals that do not fall."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segserve_operator.adapters.samples import wire
from segserve_operator.adapters.traffic.envoy_counts import CumulativeStats, counts_by_model, parse_stats, series_counts, stats_pattern
from segserve_operator.core.rollout.counters import Counters, Series, SeriesCounts

if TYPE_CHECKING:
    from pathlib import Path

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
        "coins.v2": {Series("main", "http"): SeriesCounts(attempts=3, latencies=((1.1, 2),))},
    }


def test_the_pattern_takes_a_models_name_literally_and_inference_alone() -> None:
    found = re.compile(stats_pattern(["coins.v2"]))

    assert found.fullmatch(f"cluster.{HTTP}.upstream_rq_5xx")
    assert not found.fullmatch("cluster.coins-v2/main/infer/http.upstream_rq_5xx")
    assert not found.fullmatch("cluster.coins.v2/main/aside/http.upstream_rq_5xx")
    assert re.fullmatch(stats_pattern([]), f"cluster.{HTTP}.upstream_rq_5xx")


def test_what_envoy_took_back_itself_is_no_caller_that_went_away(tmp_path: Path) -> None:
    stats = {
        "upstream_rq_completed": 5,
        "upstream_rq_5xx": 2,
        "upstream_rq_retry": 1,
        "retry.upstream_rq_completed": 1,
        "upstream_rq_timeout": 1,
        "upstream_cx_destroy_local_with_active_rq": 3,
    }

    total = CumulativeStats(tmp_path / "totals.json").update("1", ["coins.v2"], {HTTP: stats})

    assert series_counts(total[HTTP], "http") == SeriesCounts(attempts=7, failed=3, given_up=2)


def test_totals_go_on_where_statistics_begin_anew(tmp_path: Path) -> None:
    totals = CumulativeStats(tmp_path / "totals.json")
    totals.update("1", ["coins.v2"], {HTTP: {"upstream_rq_completed": 9, "upstream_rq_5xx": 7, "upstream_rq_active": 4}})

    found = totals.update("1", ["coins.v2"], {HTTP: {"upstream_rq_completed": 11, "upstream_rq_5xx": 1}})

    assert series_counts(found[HTTP], "http") == SeriesCounts(attempts=11, failed=8)


def test_who_comes_after_goes_on_with_the_totals_of_the_same_envoy(tmp_path: Path) -> None:
    first = CumulativeStats(tmp_path / "totals.json")
    first.update("1", ["coins.v2"], {HTTP: {"upstream_rq_5xx": 7}})
    first.update("1", ["coins.v2"], {HTTP: {"upstream_rq_completed": 1}})

    same, other = CumulativeStats(tmp_path / "totals.json"), CumulativeStats(tmp_path / "totals.json")

    assert same.update("1", ["coins.v2"], {HTTP: {"upstream_rq_5xx": 2}})[HTTP]["upstream_rq_5xx"] == 9
    assert other.update("2", ["coins.v2"], {HTTP: {"upstream_rq_5xx": 2}})[HTTP]["upstream_rq_5xx"] == 2


def test_a_cluster_that_is_gone_is_forgotten_and_others_are_not(tmp_path: Path) -> None:
    totals = CumulativeStats(tmp_path / "totals.json")
    other = "cells/main/infer/http"
    totals.update("1", ["coins.v2", "cells"], {HTTP: {"upstream_rq_5xx": 7}, other: {"upstream_rq_5xx": 5}})
    totals.update("1", ["coins.v2"], {})

    found = totals.update("1", ["coins.v2", "cells"], {HTTP: {"upstream_rq_5xx": 1}, other: {"upstream_rq_5xx": 1}})

    assert {name: stats["upstream_rq_5xx"] for name, stats in found.items()} == {HTTP: 1, other: 6}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), max_size=20))
def test_totals_never_fall_and_miss_nothing(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, bool]]
) -> None:
    """Where what comes after a fall is less than what was before it, as it is where each change is looked at."""
    totals, raw, told, last = CumulativeStats(tmp_path_factory.mktemp("t") / "totals.json"), 0, 0, 0
    for more, later, falls in steps:
        raw, told = raw + more, told + more
        found = totals.update("1", ["coins.v2"], {HTTP: {"upstream_rq_completed": raw}})
        if falls:
            raw = 0
            totals.update("1", ["coins.v2"], {HTTP: {"upstream_rq_completed": raw}})
        raw, told = raw + later, told + later
        assert found[HTTP]["upstream_rq_completed"] >= last
        last = found[HTTP]["upstream_rq_completed"]

    found = totals.update("1", ["coins.v2"], {HTTP: {"upstream_rq_completed": raw}})
    assert found[HTTP]["upstream_rq_completed"] == told


def test_what_a_pod_says_is_what_the_operator_reads_with_times_of_its_own_clock() -> None:
    tallies_ = {Series("main", "grpc"): SeriesCounts(5, 1, 1, 2, ((0.0, 1), (1.1, 2)))}
    said = wire.encode({"coins": Counters("77", 5000.0, tallies_, 4000.0)}, uid="uid-1")

    assert wire.decode(said, 9000.0) == {"coins": Counters("uid-1/77", 9000.0, tallies_, 8000.0)}


@pytest.mark.parametrize("text", [b"", b"[]", b"{}x", b'{"coins": 3}', b'{"coins": {"epoch": "1", "tallies": [[1]]}}'])
def test_what_no_gateway_says_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        wire.decode(text, 0.0)
