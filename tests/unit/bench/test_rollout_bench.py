"""The rollout benchmark's worlds and rules are what they say; its results are kept until their code changes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bench.rollout import running
from bench.rollout.cells import Cell
from bench.rollout.conditions import CONDITIONS, STEADY, Condition
from bench.rollout.faults import FAULTS, NONE
from bench.rollout.ours import PACES, our_outcomes, outcomes_of, windows
from bench.rollout.outcomes import Outcomes, accounted, share_of
from bench.rollout.pairs import PairedWorld
from bench.rollout.peers import Tuning, peers_outcomes
from bench.rollout.report import between
from bench.rollout.rules import argo, burn_rate, flagger, group_sequential, kayenta, msprt
from bench.rollout.series import quantile_ms, scraped
from bench.rollout.tuning import tuned
from bench.rollout.world import BASE_ERRORS, CANDIDATE, EDGES_MS, STABLE, Setting, World, excess_share
from segserve_operator.api.rollout_policy import Shadow

if TYPE_CHECKING:
    from pathlib import Path

    from bench.rollout.world import Counted

SLO_MS = 390.0
SLOW = EDGES_MS.index(SLO_MS) + 1
STEADY_10 = Setting(10.0, CONDITIONS[STEADY], FAULTS[NONE], SLO_MS)


def world(setting: Setting = STEADY_10, runs: int = 4000) -> World:
    return World(setting, runs, np.random.default_rng(5))


def counted(
    condition: str, fault: str = NONE, *, seconds: float = 1.0, now_s: float = 0.0, rate: float = 100.0
) -> Counted:
    setting = Setting(rate, CONDITIONS[condition], FAULTS[fault], SLO_MS)
    return world(setting).count(now_s, seconds, np.full(4000, 0.5))


def error_share(counts: Counted, role: int) -> float:
    return float(counts.errors[:, role].sum() / counts.requests[:, role].sum())


def test_steady_traffic_has_the_rate_and_shares_that_were_asked_for() -> None:
    counts = counted(STEADY)

    assert counts.requests.mean(0) == pytest.approx([50, 50], rel=0.01)
    assert counts.requests.var(0) == pytest.approx([50, 50], rel=0.1)  # Poisson
    assert np.array_equal(counts.latencies.sum(-1), counts.requests)


def test_healthy_revisions_fail_and_are_slow_equally_often() -> None:
    setting = replace(STEADY_10, rate=1000.0)
    counts = world(setting).count(0.0, 1.0, np.full(4000, 0.5))
    slow = counts.latencies[:, :, SLOW:].sum((0, 2)) / counts.requests.sum(0)

    assert error_share(counts, STABLE) == pytest.approx(BASE_ERRORS, rel=0.05)
    assert error_share(counts, CANDIDATE) == pytest.approx(BASE_ERRORS, rel=0.05)
    assert slow == pytest.approx([0.00918, 0.00918], rel=0.03)  # P(Z > ln(390 / 120) / 0.5)


@pytest.mark.parametrize("points", [0.2, 5, 100])
def test_faults_add_the_errors_that_they_say_to_the_candidate_alone(points: float) -> None:
    counts = counted(STEADY, f"errors+{points:g}", rate=1000.0)

    assert error_share(counts, CANDIDATE) == pytest.approx(min(1.0, BASE_ERRORS + points / 100), rel=0.05)
    assert error_share(counts, STABLE) == pytest.approx(BASE_ERRORS, rel=0.1)


@pytest.mark.parametrize("rho", [0.005, 0.05])
def test_bursts_have_the_correlation_that_they_say(rho: float) -> None:
    """The variance of beta-binomial counts is n p (1 - p) (1 + (n - 1) rho)."""
    setting = Setting(2000.0, replace(CONDITIONS[STEADY], rho=rho), FAULTS["errors+20"], SLO_MS)
    counts = world(setting, 20_000).count(0.0, 1.0, np.full(20_000, 0.5))
    share = counts.errors[:, CANDIDATE] / counts.requests[:, CANDIDATE]
    p = BASE_ERRORS + 0.2

    assert share.mean() == pytest.approx(p, rel=0.02)
    assert share.var() == pytest.approx(p * (1 - p) * (1 / 1000 + rho * 999 / 1000), rel=0.05)


def test_a_long_burst_lasts_through_short_looks_and_a_short_one_does_not() -> None:
    def correlation(burst_s: float) -> float:
        setting = Setting(2000.0, Condition("", rho=0.05, burst_s=burst_s), FAULTS["errors+20"], SLO_MS)
        here = world(setting)
        first, second = (here.count(float(at), 1.0, np.full(4000, 0.5)).errors[:, CANDIDATE] for at in range(2))
        return float(np.corrcoef(first, second)[0, 1])

    assert correlation(1.0) == pytest.approx(0, abs=0.05)
    assert correlation(15.0) > 0.8


def test_wandering_rates_keep_their_mean_and_both_revisions_move_together() -> None:
    here = world(Setting(20_000.0, CONDITIONS["autocorrelation"], FAULTS[NONE], SLO_MS))
    counts = here.count(0.0, 15.0, np.full(4000, 0.5))
    share = counts.errors / counts.requests

    assert share.mean(0) == pytest.approx([BASE_ERRORS, BASE_ERRORS], rel=0.1)
    assert np.corrcoef(share.T)[0, 1] > 0.5


def test_an_incident_hits_both_for_its_time_and_then_ends() -> None:
    here = world(Setting(100.0, CONDITIONS["incident"], FAULTS[NONE], SLO_MS))
    during = here.count(300.0, 1.0, np.full(4000, 0.5))
    after = here.count(900.0, 1.0, np.full(4000, 0.5))

    # It begins within 600 s and lasts 180: at 300 s it is on in 180 of 600 runs.
    assert during.errors.sum(0) / during.requests.sum(0) == pytest.approx([0.062, 0.062], rel=0.1)
    assert after.errors.sum(0) / after.requests.sum(0) == pytest.approx([BASE_ERRORS] * 2, rel=0.3)


def test_an_outage_measures_nothing_and_a_reset_loses_only_a_part_of_one_look() -> None:
    setting = Setting(100.0, replace(CONDITIONS["outage"], outage_s=(600.0, 601.0)), FAULTS[NONE], SLO_MS)
    out = world(setting).count(590.0, 5.0, np.full(4000, 0.5))
    resets = world(Setting(100.0, CONDITIONS["reset"], FAULTS[NONE], SLO_MS)).count(0.0, 600.0, np.full(4000, 0.5))

    assert (~out.measured).mean() == pytest.approx(595 / 600, abs=0.01)
    assert resets.requests.mean() == pytest.approx(15_000, rel=0.02)  # all three fall into one look: half of it is lost
    assert resets.measured.all()


def test_a_cold_candidate_is_slow_at_first_alone() -> None:
    here = world(Setting(100.0, CONDITIONS["cold-start"], FAULTS[NONE], SLO_MS))
    first, later = (here.count(float(at), 1.0, np.full(4000, 0.2)) for at in (0, 60))
    slow = [each.latencies[:, CANDIDATE, SLOW:].sum() / each.requests[:, CANDIDATE].sum() for each in (first, later)]

    assert slow[0] > 0.3
    assert slow[1] == pytest.approx(0.0092, rel=0.2)
    assert first.latencies[:, STABLE, SLOW:].sum() / first.requests[:, STABLE].sum() == pytest.approx(0.0092, rel=0.1)


@pytest.mark.parametrize(
    ("condition", "slow", "failed"),
    [
        pytest.param("pauses", 20 / 180 * 0.648, 0.0, id="pauses take a ninth of the time"),
        pytest.param("heavy-tail", 0.03 * 0.98, 0.0, id="a heavy tail"),
        pytest.param("bad-server", 0.1 * 0.27, 0.002, id="a bad server of ten"),
        pytest.param("failing-caller", 0.0, 0.03 / 4, id="a caller who fails, a quarter of the time"),
        pytest.param("image-sizes", 0.25 * 0.27, 0.0, id="large images"),
    ],
)
def test_what_healthy_revisions_suffer_is_alike_for_both(condition: str, slow: float, failed: float) -> None:
    """Shares in the long run beyond those of steady traffic; of what takes 4x 0.65 are slow, of 2.5x 0.27."""
    setting = Setting(100.0, CONDITIONS[condition], FAULTS[NONE], SLO_MS)
    here = world(setting, 1000)
    counts = [here.count(float(at), 5.0, np.full(1000, 0.5)) for at in range(0, 900, 5)]
    requests = sum(each.requests.sum(0) for each in counts)
    slows = sum(each.latencies[:, :, SLOW:].sum((0, 2)) for each in counts) / requests
    failures = sum(each.errors.sum(0) for each in counts) / requests

    assert slows == pytest.approx(0.0092 + slow, rel=0.12)
    assert failures == pytest.approx(BASE_ERRORS + failed, rel=0.12)


def test_pauses_hit_each_revision_by_itself_and_large_images_both() -> None:
    def together(condition: str) -> float:
        setting = Setting(1000.0, CONDITIONS[condition], FAULTS[NONE], SLO_MS)
        slow = world(setting, 2000).count(0.0, 5.0, np.full(2000, 0.5)).latencies[:, :, SLOW:].sum(-1)
        return float(np.corrcoef(slow.T)[0, 1])

    assert together("pauses") == pytest.approx(0.0, abs=0.1)
    assert together("image-sizes") > 0.9


def test_a_delayed_fault_and_a_leak_come_with_time() -> None:
    delayed, leak = (replace(STEADY_10, fault=FAULTS[name]) for name in ("delayed", "leak"))

    assert excess_share(delayed, 299.0) == 0
    assert excess_share(delayed, 300.0) == pytest.approx(0.1, rel=0.02)
    assert excess_share(leak, 0.0) == pytest.approx(0.0)
    assert 0 < excess_share(leak, 300.0) < excess_share(leak, 900.0) < excess_share(leak, 1200.0)


def test_prometheus_quantiles_are_linear_within_a_bin_and_end_at_the_last_edge() -> None:
    bins = np.zeros((3, len(EDGES_MS) + 1))
    bins[0, EDGES_MS.index(300.0)] = 100  # all within 270 and 300 ms
    bins[1, -1] = 10

    assert quantile_ms(bins, 0.95)[:2].tolist() == pytest.approx([298.5, 1000.0])
    assert np.isnan(quantile_ms(bins, 0.95)[2])


def test_flagger_needs_five_misses_in_all_and_one_tick_more() -> None:
    canaries = flagger.Canaries.begun(3)
    always, never, every_other = True, False, (True, False)
    for number in range(flagger.LONGEST_TICKS):
        missed = np.array([always, never, every_other[number % 2]])
        canaries = flagger.tick(canaries, missed, 60.0 * (number + 1))

    # The healthy one needs nine more weights and a pass at the last; misses are not forgotten by a pass between them.
    assert canaries.rolled_back_s.tolist() == [360.0, np.inf, 600.0]
    assert canaries.promoted_s.tolist() == [np.inf, 600.0, np.inf]


def test_argo_aborts_at_the_fourth_failure_of_one_metric() -> None:
    failed = np.zeros((3, 2, 10), bool)
    failed[0, 0, [0, 2, 4, 6]] = True  # four of one metric, not in a row
    failed[1, 0, :3] = failed[1, 1, 3:6] = True  # three each
    answered = np.zeros((3, 40), bool)

    assert argo.rolled_back_s(failed, answered, 15.0).tolist() == [420.0, np.inf, np.inf]


def test_argo_aborts_at_the_fifth_error_in_a_row() -> None:
    down = np.zeros((2, 40), bool)
    down[0, 7:11] = True  # 105 to 165 s: asked at 120, 130, ... 160
    down[1, 7:10] = True  # the fifth is answered
    failed = np.zeros((2, 2, 10), bool)

    assert argo.rolled_back_s(failed, down, 15.0).tolist() == [160.0, np.inf]


def test_kayenta_calls_a_shifted_metric_high_and_an_equal_one_not() -> None:
    rng = np.random.default_rng(3)
    baseline = rng.normal(100, 5, (2, 20))
    canary = rng.normal(100, 5, (2, 20))
    canary[0] += 20

    highs, known = kayenta.high(canary, baseline)

    assert highs.tolist() == [True, False]
    assert known.all()


def test_kayentas_interval_is_scipys() -> None:
    """Moving the canary by the interval's lower end makes Mann-Whitney's one-sided p about 1 %."""
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(4)
    baseline, canary = rng.normal(0, 1, (1, 20)), rng.normal(3, 1, (1, 20))
    shifts = np.linspace(0, 4, 401)
    accepted = [not kayenta.high(canary - shift, baseline, tolerance=0.0)[0][0] for shift in shifts]
    lower = shifts[np.argmax(accepted)]

    p = mannwhitneyu(canary[0] - lower, baseline[0], alternative="greater", use_continuity=False, method="asymptotic")
    assert p.pvalue == pytest.approx(0.01, abs=0.002)


def test_burn_rate_needs_both_windows_above_the_factor() -> None:
    requests = np.full((2, 40), 100.0)
    errors = np.zeros((2, 40))
    errors[0, :] = 8.0  # 8 % of a budget of 0.5 % is 16 times
    errors[1, 30:] = 8.0  # the short window has 4 %, which is 8 times

    assert burn_rate.rolled_back_s(errors, requests, 15.0).tolist() == [15.0, np.inf]


def test_msprt_is_its_formula_and_one_sided() -> None:
    bad, requests = np.array([[[10.0, 30.0]], [[30.0, 10.0]]]), np.full((2, 1, 2), 1000.0)
    p = 40.5 / 2001
    v, d, tau = p * (1 - p) * 2 / 1000, 0.02, 0.01
    expected = 0.5 * np.log(v / (v + tau**2)) + tau**2 * d**2 / (2 * v * (v + tau**2))

    assert msprt.log_ratio(bad, requests, tau)[:, 0].tolist() == pytest.approx([expected, -np.inf])


def test_group_sequential_bounds_spend_their_alpha_and_fall_along_the_looks() -> None:
    """The spending at the end is alpha; the last of ten equal bounds at one-sided 2.5 % lies a little above 1.96."""
    bounds = group_sequential.boundaries(tuple(np.arange(1, 11) / 10), 0.025)

    assert all(np.diff([bound for bound in bounds if np.isfinite(bound)]) < 0)
    assert bounds[-1] == pytest.approx(2.07, abs=0.03)
    assert group_sequential.spent(np.array([1.0]), 0.025) == pytest.approx([0.025])


def test_scrapes_follow_the_schedule_of_weights() -> None:
    series = scraped(world(replace(STEADY_10, rate=1000.0), 50))
    share = series.requests[..., CANDIDATE].sum(0) / series.requests.sum((0, 2))

    assert share[[0, 3, 4, 39]] == pytest.approx([0.05, 0.05, 0.10, 0.50], rel=0.03)


def test_excess_counts_until_the_end_and_after_a_promotion_all_of_it() -> None:
    excess, weights = np.full((2, 4), 10.0), np.array([0.1, 0.5, 1.0, 1.0])

    assert accounted(excess, weights, np.array([22.5, np.inf]), 15.0).tolist() == [3.5, 26.0]


def test_wilsons_interval_is_the_known_one() -> None:
    assert share_of(10, 1000) == pytest.approx([0.01, 0.00544, 0.01831], abs=2e-5)
    assert share_of(0, 1000)[1:] == pytest.approx([0.0, 0.00383], abs=2e-5)


def test_figures_tell_rolled_back_promoted_and_undecided_apart() -> None:
    never = np.inf
    found = Outcomes(np.array([30.0, never, never, 50.0]), np.array([never, 600.0, never, 20.0]), np.ones(4)).figures()

    assert [found[name][0] for name in ("rolled_back", "promoted", "undecided")] == [0.5, 0.25, 0.25]
    assert [middle for middle, *_ in found["detection_s"]] == [50.0, 50.0]


def test_peers_see_a_total_failure_when_the_prototype_said_they_do() -> None:
    setting = replace(STEADY_10, fault=FAULTS["errors+100"], slo_ms=300.0)
    found = peers_outcomes(lambda: world(setting, 100), {"documented": Tuning.documented(300.0)}, 1800.0)["documented"]

    medians = {peer: float(np.median(each.rolled_back_s)) for peer, each in found.items()}
    assert medians["Flagger"] == 360
    assert medians["Argo Rollouts"] == 240
    assert medians["Kayenta"] == 150
    assert medians["one-minute alarm"] == 60
    assert medians["burn rate"] == 15


@pytest.mark.parametrize("pace", ["evidence", "steps"])
def test_the_shipped_engine_promotes_the_healthy_and_ends_total_failures(pace: str) -> None:
    golden = np.ones(50, np.int8)
    healthy = our_outcomes(world(runs=50), pace, golden, 1800.0)
    broken = our_outcomes(world(replace(STEADY_10, fault=FAULTS["errors+100"]), 50), pace, golden, 1800.0)

    assert np.isfinite(healthy.promoted_s).mean() > 0.9
    assert np.isfinite(broken.rolled_back_s).all()
    assert np.median(broken.rolled_back_s) < 60


def test_what_golden_images_refuse_gets_no_request() -> None:
    refused = our_outcomes(
        world(replace(STEADY_10, fault=FAULTS["quality-20"]), 20), "evidence", np.full(20, -1, np.int8), 600.0
    )

    assert (refused.rolled_back_s == 0).all()
    assert (refused.excess == 0).all()


def test_a_run_goes_on_where_it_was_interrupted_and_repeats_what_other_code_made(tmp_path: Path) -> None:
    cells = [Cell(10.0), Cell(10.0, fault="errors+100")]
    path = tmp_path / f"{cells[0].name}.json"

    def run(some: list[Cell]) -> list[Cell]:
        return running.run(some, tmp_path, ("ours",), share=0.002)

    assert run(cells[:1]) == cells[:1]
    first = json.loads(path.read_text())
    assert run(cells) == cells[1:]
    assert json.loads(path.read_text()) == first

    path.write_text(json.dumps({**first, "ours": {**first["ours"], "version": "other"}, "peers": {"version": "old"}}))
    assert run(cells) == cells[:1]
    again = json.loads(path.read_text())
    assert again["peers"] == {"version": "old"}
    assert again["ours"]["evidence"] == first["ours"]["evidence"]


def test_tuned_rules_keep_to_one_percent_where_they_were_tuned() -> None:
    setting = replace(STEADY_10, rate=100.0)
    found = peers_outcomes(lambda: world(setting, 400), {"tuned": tuned(100.0, SLO_MS, runs=400)}, 600.0)["tuned"]

    assert all(np.isfinite(each.rolled_back_s).mean() <= 0.03 for each in found.values())


def test_results_of_different_code_are_not_mixed(tmp_path: Path) -> None:
    cells = [Cell(1.0), Cell(10.0), Cell(100.0)]
    for cell, version in zip(cells, ("old", "new", "old"), strict=True):
        part = {"version": version, "seconds": 1.0}
        (tmp_path / f"{cell.name}.json").write_text(json.dumps({"cell": cell.name, "ours": part, "peers": part}))

    found = running.collected(cells, tmp_path)

    assert found["versions"] == {"ours": "old", "peers": "old"}
    assert [row["rate"] for row in found["cells"]] == [1.0, 100.0]


def test_a_table_replaces_what_is_between_its_marks_alone() -> None:
    text = "a\n<!-- x: written by make bench-rollout -->\nold\n<!-- end of x -->\nb\n"

    assert between(text, "x", "new") == text.replace("old", "new")
    with pytest.raises(ValueError, match="no marks"):
        between("a", "x", "new")


def test_cells_that_a_file_lacks_are_made_and_kept_and_none_begins_after_the_time(tmp_path: Path) -> None:
    path, made = tmp_path / "cells.json", []

    def figures(name: str) -> dict[str, float]:
        made.append(name)
        return {"runs": 1.0}

    first = running.run_missing([("a", lambda: figures("a"))], path, minutes=1.0)
    both = [("a", lambda: figures("a")), ("b", lambda: figures("b"))]
    assert running.run_missing(both, path, minutes=0.0) == first
    assert set(running.run_missing(both, path, minutes=1.0)) == {"a", "b"} == set(json.loads(path.read_text()))
    assert made == ["a", "b"]


def test_copies_begin_with_one_a_second_and_become_as_many_as_shadow_allows() -> None:
    here = PairedWorld(replace(STEADY_10, rate=100.0), 200, np.random.default_rng(1))
    policy = PACES["evidence"].model_copy(update={"shadow": Shadow(min_requests=100_000)})
    copies = outcomes_of(here, policy, np.zeros(200, np.int8) + 1, 60.0)[1]

    assert 5 * 60 * 0.75 < copies.mean() < 5 * 60


def test_a_faults_onset_is_looked_at_each_second() -> None:
    lengths = dict(windows(100.0, 600.0, onset_s=300.0))

    assert lengths[200.0] == 5.0
    assert {lengths[at] for at in np.arange(300.0, 360.0)} == {1.0}
