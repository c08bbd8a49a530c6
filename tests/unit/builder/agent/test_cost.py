"""What revisions cost: shares of processes, which add up to what the processes use."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from segserve_builder.agent import cost
from segserve_builder.agent.cost import (
    NOBODY,
    CostAccountant,
    CostLedger,
    Owner,
    RevisionCost,
    ServedRevision,
    ServerLook,
    costs_between,
    period_s,
)
from segserve_builder.agent.cost_metrics import cost_families
from segserve_builder.agent.processes import ProcessUse, ServerUse
from segserve_builder.agent.server import StepCounts

FIRST, SECOND = Owner("coins", "coins-1"), Owner("cells", "cells-1")
ONE = ServedRevision(FIRST, ("pre", "net", "post-1"))
OTHER = ServedRevision(SECOND, ("pre", "net-2", "post-2"))
START = ServerLook(0.0, {}, {})


def look(at_s: float = 10.0, *, gpus: int = 0, counts: dict[str, StepCounts], **cpu_s: float) -> ServerLook:
    """A look at a server whose processes are named after their steps; `server` has none."""
    steps = {name: "" if name == "server" else name.replace("_", "-") for name in cpu_s}
    return ServerLook(at_s, {name: ProcessUse(steps[name], cpu_s[name], 1000.0) for name in cpu_s}, counts, gpus)


def answered(one: float, other: float) -> dict[str, StepCounts]:
    return {"post-1": StepCounts(one, 1.0), "post-2": StepCounts(other, 1.0)}


def test_a_shared_step_costs_its_revisions_in_proportion_to_their_requests() -> None:
    costs = costs_between(START, look(counts=answered(30, 10), pre=4.0, net=2.0, post_2=1.0), [ONE, OTHER])

    assert costs[FIRST].step_cpu_s == pytest.approx(3.0 + 2.0)
    assert costs[SECOND].step_cpu_s == pytest.approx(1.0 + 1.0)
    assert (costs[FIRST].requests, costs[SECOND].requests) == (30, 10)


def test_requests_to_a_shared_last_step_are_each_revisions_own() -> None:
    steps = ("pre", "net", "post-shared")
    served = [ServedRevision(owner, steps, counter=owner.model) for owner in (FIRST, SECOND)]
    counts = {name: StepCounts(count, 1.0) for name, count in {"coins": 30, "cells": 10, "post-shared": 40}.items()}

    costs = costs_between(START, look(counts=counts, post_shared=4.0), served)

    assert (costs[FIRST].requests, costs[SECOND].requests) == (30, 10)
    assert (costs[FIRST].step_cpu_s, costs[SECOND].step_cpu_s) == pytest.approx((3.0, 1.0))


def test_the_server_itself_costs_revisions_in_proportion_to_their_steps() -> None:
    costs = costs_between(START, look(counts=answered(1, 1), net=3.0, post_2=1.0, server=2.0), [ONE, OTHER])

    assert (costs[FIRST].server_cpu_s, costs[SECOND].server_cpu_s) == pytest.approx((1.5, 0.5))


def test_a_network_that_the_server_runs_itself_has_of_its_cpu_what_it_computed_and_a_share_of_the_rest() -> None:
    native = replace(ONE, native=frozenset({"net"}))
    counts = {**answered(5, 5), "net": StepCounts(5, 2.0)}

    costs = costs_between(START, look(counts=counts, gpus=1, pre=2.0, server=6.0), [native, OTHER])

    assert (costs[FIRST].step_cpu_s, costs[SECOND].step_cpu_s) == pytest.approx((3.0, 1.0))
    assert (costs[FIRST].server_cpu_s, costs[SECOND].server_cpu_s) == pytest.approx((3.0, 1.0))
    assert (costs[FIRST].gpu_s, costs[SECOND].gpu_s) == (2.0, 0.0)


def test_a_network_that_waited_while_it_computed_has_no_more_than_the_servers_cpu() -> None:
    counts = {**answered(5, 0), "net": StepCounts(5, 9.0)}

    costs = costs_between(START, look(counts=counts, server=6.0), [replace(ONE, native=frozenset({"net"}))])

    assert (costs[FIRST].step_cpu_s, costs[FIRST].server_cpu_s) == (6.0, 0.0)


def test_what_belongs_to_no_revision_is_nobodys() -> None:
    costs = costs_between(START, look(counts={}, server=3.0, leaving=1.0), [])

    assert costs == {NOBODY: RevisionCost(step_cpu_s=1.0, server_cpu_s=3.0, memory_byte_s=20_000.0)}


def test_a_process_that_was_started_again_and_a_model_that_was_loaded_again_count_from_zero() -> None:
    before = look(counts=answered(100, 0), net=50.0)
    restarted = ProcessUse("net", 1.0, 1000.0)
    now = ServerLook(20.0, {"another process": restarted}, answered(7, 0))

    costs = costs_between(before, now, [ONE])

    assert (costs[FIRST].step_cpu_s, costs[FIRST].requests) == (1.0, 7)


def test_memory_is_of_those_who_have_the_step_and_counts_over_time() -> None:
    costs = costs_between(START, look(counts={}, pre=0.0, net=0.0, server=0.0), [ONE, OTHER])

    assert costs[FIRST].memory_byte_s == pytest.approx(10 * (500 + 1000 + 750))
    assert costs[SECOND].memory_byte_s == pytest.approx(10 * (500 + 250))


amounts = st.floats(0, 1e4)


@given(
    st.dictionaries(st.sampled_from(["pre", "net", "net_2", "post_1", "post_2", "leaving", "server"]), amounts),
    st.tuples(amounts, amounts),
    st.sampled_from([[], [ONE], [ONE, OTHER], [replace(ONE, native=frozenset({"net"})), OTHER]]),
)
def test_shares_add_up_to_what_all_processes_used(
    cpu_s: dict[str, float], requests: tuple[float, float], served: list[ServedRevision]
) -> None:
    counts = {**answered(*requests), "net": StepCounts(requests[0], requests[1])}

    costs = costs_between(START, look(counts=counts, **cpu_s), served).values()

    assert sum(each.step_cpu_s + each.server_cpu_s for each in costs) == pytest.approx(sum(cpu_s.values()), abs=1e-6)
    assert sum(each.memory_byte_s for each in costs) == pytest.approx(10_000.0 * len(cpu_s))


def test_a_ledger_starts_to_count_at_its_first_look() -> None:
    ledger = CostLedger()
    ledger.add(look(counts=answered(100, 0), net=50.0), [ONE])

    assert ledger.costs == {}

    ledger.add(look(20.0, counts=answered(104, 0), net=52.0), [ONE])

    assert ledger.costs[FIRST] == RevisionCost(step_cpu_s=2.0, memory_byte_s=10_000.0, requests=4)


def test_a_ledger_keeps_what_is_served_and_forgets_the_oldest_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "MOST_FORMER", 1)
    ledger, third = CostLedger(), replace(OTHER, owner=Owner("cats", "cats-1"))
    for at_s, served in ((0.0, [ONE]), (10.0, [ONE]), (20.0, [OTHER]), (30.0, [third]), (40.0, [third])):
        ledger.add(look(at_s, counts={}, server=at_s), served)

    assert ledger.costs.keys() == {SECOND, third.owner}


def test_a_ledger_is_continued_by_the_next_process(tmp_path: Path) -> None:
    former = CostLedger(tmp_path / "costs.json")
    former.add(look(counts=answered(0, 0), net=1.0), [ONE])
    former.add(look(20.0, counts=answered(4, 0), net=2.0), [ONE])

    later = CostLedger(tmp_path / "costs.json")
    later.add(look(30.0, counts=answered(6, 0), net=5.0), [ONE])

    assert later.costs[FIRST] == RevisionCost(step_cpu_s=4.0, memory_byte_s=20_000.0, requests=6)


def test_a_clock_that_went_back_takes_nothing_from_a_later_process(tmp_path: Path) -> None:
    former = CostLedger(tmp_path / "costs.json")
    former.add(look(7200.0, counts=answered(0, 0), net=1.0), [ONE])
    former.add(look(7210.0, counts=answered(4, 0), net=2.0), [ONE])

    later = CostLedger(tmp_path / "costs.json")
    later.add(look(3610.0, counts=answered(6, 0), net=5.0), [ONE])

    assert later.costs[FIRST] == RevisionCost(step_cpu_s=4.0, memory_byte_s=10_000.0, requests=6)
    assert later.seconds == 10.0


def test_a_clock_that_goes_back_while_an_agent_looks_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(time=lambda: 7200.0, monotonic=lambda: 50.0, process_time=lambda: 0.0)
    monkeypatch.setattr(cost, "time", clock)
    used = ServerUse({"net": ProcessUse("net", 1.0, 1000.0)}, 0)
    accountant = CostAccountant(CostLedger(), lambda: used, lambda: answered(1, 1), lambda: [ONE])
    accountant.look()
    clock.time, clock.monotonic = lambda: 3600.0, lambda: 60.0
    accountant.look()

    assert accountant.ledger.costs[FIRST].memory_byte_s == pytest.approx(10_000.0)


@pytest.mark.parametrize(
    ("took_s", "expected_s"), [(0.0, 10.0), (0.05, 10.0), (0.6, 60.0), (math.inf, 300.0), (math.nan, 10.0)]
)
def test_looks_that_take_long_are_rarer(took_s: float, expected_s: float) -> None:
    assert period_s(took_s) == pytest.approx(expected_s)


@pytest.mark.parametrize("content", ["", "[]", '{"costs": 1}', '{"last": {}}'])
def test_a_file_that_is_no_ledger_is_replaced(tmp_path: Path, content: str) -> None:
    file = tmp_path / "costs.json"
    file.write_text(content)

    CostLedger(file).add(look(counts={}, net=1.0), [ONE])

    assert CostLedger(file)._last is not None


def test_the_metrics_are_counters_by_model_and_revision() -> None:
    class Costs(Collector):
        def collect(self) -> list[object]:  # type: ignore[override]
            return list(cost_families({FIRST: RevisionCost(1.5, 0.5, 2.5, 100.0, 4.0)}, 30.0))

    registry = CollectorRegistry()
    registry.register(Costs())
    text = generate_latest(registry).decode()

    assert 'segserve_cost_cpu_seconds_total{model="coins",part="steps",revision="coins-1"} 1.5' in text
    assert 'segserve_cost_cpu_seconds_total{model="coins",part="server",revision="coins-1"} 0.5' in text
    assert 'segserve_cost_requests_total{model="coins",revision="coins-1"} 4.0' in text
    assert 'segserve_cost_gpu_seconds_total{model="coins",revision="coins-1"} 2.5' in text
    assert 'segserve_cost_memory_byte_seconds_total{model="coins",revision="coins-1"} 100.0' in text
    assert "segserve_cost_counted_seconds_total 30.0" in text
