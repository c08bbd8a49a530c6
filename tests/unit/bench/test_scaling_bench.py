"""The autoscalers that ours is compared with do what theirs are documented to do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.scaling import ALGORITHMS, Outcome, Scenario, at_cost, front, run
from bench.scaling_peers import SYNC_S, Autoscaler, Hpa, Keda, Knative, Seen

STEADY = Seen(at_s=0, arrived=0.0, in_flight=8.0, ready=4, starting=0, desired=4)


def followed(autoscaler: Autoscaler, in_flight: list[float], arrived: float = 0.0, start: int = 1) -> list[int]:
    """Return the numbers wanted in each second, where servers start at once."""
    desired, wanted = start, []
    for at_s, flying in enumerate(in_flight):
        desired = autoscaler.step(Seen(at_s, arrived, flying, desired, 0, desired))
        wanted.append(desired)
    return wanted


@pytest.mark.parametrize(("in_flight", "wanted"), [(8.0, 4), (8.7, 4), (7.3, 4), (9.0, 5), (7.0, 4), (6.0, 3)])
def test_hpa_changes_nothing_within_its_tolerance_of_a_tenth(in_flight: float, wanted: int) -> None:
    assert Hpa(target=2.0).recommendation(in_flight, STEADY) == wanted


def test_hpa_counts_servers_that_are_not_ready_as_idle_when_it_wants_more() -> None:
    seen = replace(STEADY, ready=2, starting=2, desired=4)

    assert Hpa(target=2.0).recommendation(8.0, seen) == 4
    assert Hpa(target=2.0).recommendation(20.0, seen) == 10


def test_hpa_at_most_doubles_or_adds_four_in_fifteen_seconds() -> None:
    wanted = followed(Hpa(target=1.0, maximum=100), [50.0] * (4 * SYNC_S))

    assert [wanted[at_s] for at_s in range(0, 4 * SYNC_S, SYNC_S)] == [1, 5, 10, 20]


def test_hpa_wants_fewer_only_after_its_stabilisation_window() -> None:
    wanted = followed(Hpa(target=1.0, stabilisation_s=300), [10.0] * 60 + [1.0] * 600, start=10)[SYNC_S * 3 :]

    fewer = next(at_s for at_s, number in enumerate(wanted) if number < 10)
    assert 300 <= fewer + SYNC_S * 3 - 60 <= 300 + 3 * SYNC_S


def test_keda_divides_the_total_by_the_target_whatever_is_ready() -> None:
    seen = replace(STEADY, ready=1, starting=3)

    assert Keda(target=10.0).recommendation(95.0, seen) == 10
    assert Keda(target=10.0).recommendation(43.0, seen) == 4


def test_knative_panics_within_its_panic_window_and_wants_no_fewer_until_it_is_over() -> None:
    load = [1.0] * 60 + [20.0] * 20 + [1.0] * 200
    wanted = followed(Knative(target=1.0), load)

    assert max(wanted[:60]) == 1
    assert wanted[66] == max(wanted) == 20
    assert min(wanted[66:120]) == 20
    assert wanted[-1] == 1


def test_knative_wants_at_most_half_as_few_in_a_step() -> None:
    wanted = followed(Knative(target=1.0, stable_window_s=10), [0.0] * 100, start=16)

    steps = sorted(set(wanted), reverse=True)
    assert steps == [8, 4, 2, 1]


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_each_algorithm_serves_a_steady_rate_with_servers_for_it(algorithm: str) -> None:
    scenario = Scenario(np.full(3600, 200.0), np.zeros(3600))

    outcome = run(ALGORITHMS[algorithm](0.6, 60), scenario, 1)

    assert 6 < outcome.server_hours < 14
    assert outcome.missed_percent < 10


def test_a_front_has_what_nothing_beats_in_both_figures() -> None:
    outcomes = [Outcome(1.0, 5.0), Outcome(2.0, 6.0), Outcome(3.0, 1.0)]

    assert front(outcomes) == [outcomes[0], outcomes[2]]
    assert at_cost(outcomes, 2.5) == 5.0
