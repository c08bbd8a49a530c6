"""When a rollout is likely to reach its next weight and its end: the real engine and gates, continued at the present
rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, TypeVar

import numpy as np

from segserve_operator.api.rollout_policy import CheckedGateSpec, gate_name
from segserve_operator.core.evidence import CANDIDATE, EDGES_MS, STABLE, EvidenceWindow, Floats
from segserve_operator.core.gates import checked_gate
from segserve_operator.core.gates.base import OnBreach, Outcome
from segserve_operator.core.rollout.decisions import Rules, judge
from segserve_operator.core.rollout.engine import (
    WAITS,
    Progress,
    ShadowPolicy,
    Signals,
    Wait,
    affordable,
    breached,
    next_transition,
    step_after_shadow,
    watch,
    weights,
)
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import Record, Row

PRESENT_S: Final = (30.0, 120.0, 600.0)
"""Lengths of time that "now" is measured over: the shortest one with `ENOUGH_REQUESTS`."""
ENOUGH_REQUESTS: Final = 20
QUIET_S: Final = 10.0
MISSING: Final = 5.0
"""Requests have ended after so long a pause, in which so many are missing: chance has that once in 150 pauses."""
TRAFFIC_S: Final = 600.0
"""Length of time whose answers stand for the coming ones."""
PRIOR_REQUESTS: Final = 100.0
"""The candidate's answers so far count beside so many like stable's: three requests tell little of the next ones."""
RUNS: Final = 24
SHORTEST_S: Final = 5.0
LONGEST_S: Final = 60.0
GROWTH: Final = 0.05
"""Simulated windows grow with the time from now: the next minute matters to the second, the fifth hour does not."""
HORIZON_S: Final = 6 * 3600.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Forecast:
    """The outlook of a rollout from `at_s` (Unix time) on, if requests keep coming as they do now.

    `wait` is why it does not advance now, `undecided` the checked gates without a pass, and `measuring` the measured
    gates whose evidence does not allow the next weight yet. `requests_per_second` is the rate of both revisions, and
    `last_request_s` (Unix time) when the last request ended, 0 if there was none.

    Infinity means unknown: without requests, if it waits for something else than time and requests, or if most of the
    simulated rollouts do not get there; `fails` if that is because most are stopped. `next_s` is the median time to
    the next weight, in Shadow the longest (from which the other times count), `next_requests` how many requests the
    candidate gets until then, `promoted_s` the median time to the promotion, and `end_s` to the end of the bake.
    """

    at_s: float
    wait: Wait = Wait.NOTHING
    measuring: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
    requests_per_second: float = 0.0
    last_request_s: float = 0.0
    fails: bool = False
    next_s: float = float("inf")
    next_requests: float = float("inf")
    promoted_s: float = float("inf")
    end_s: float = float("inf")


def recent(rows: Iterable[Row], seconds: float) -> tuple[Row, ...]:
    """Return the newest rows that begin within `seconds` before the end of the last one."""
    listed = tuple(rows)
    since_s = listed[-1].at_s - seconds if listed else 0.0
    return tuple(row for row in listed if row.at_s - row.seconds >= since_s - 1.0)


def present(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return the newest rows that show the present rate; of a stream of requests that has ended, the rows since."""
    listed = tuple(rows)
    chosen: tuple[Row, ...] = ()
    for seconds in PRESENT_S:
        chosen = recent(listed, seconds)
        if sum(sum(row.requests) for row in chosen) >= ENOUGH_REQUESTS:
            break
    quiet_s = listed[-1].at_s - last_request_s(listed) if listed else 0.0
    ended = quiet_s >= QUIET_S and quiet_s * requests_per_second(chosen) > MISSING
    return recent(listed, quiet_s - 1.0) if ended else chosen


def requests_per_second(rows: Iterable[Row]) -> float:
    """Return the rate of both revisions together; 0 without rows."""
    counted = tuple(rows)
    seconds = sum(row.seconds for row in counted)
    return sum(sum(row.requests) for row in counted) / seconds if seconds else 0.0


def last_request_s(rows: Iterable[Row]) -> float:
    """Return the Unix time of the last row with requests, 0 if there is none."""
    return max((row.at_s for row in rows if sum(row.requests)), default=0.0)


def forecast(record: Record, skipped: tuple[str, ...], now_s: float) -> Forecast:
    """Return the forecast of a rollout in progress, without the `skipped` gates; equal records give equal answers."""
    rules, progress = Rules.of(record.policy, record.slo, skipped), record.progress
    states = {name: record.gates.get(name) or gate.start() for name, gate in rules.gates.items()}
    at_s = record.rows[-1].at_s if record.rows else now_s
    judged = judge(rules, states)
    undecided = _undecided(record, skipped)
    heard = Signals(golden=0, allowed=not undecided)
    fits = affordable(rules.policy, progress, judged)
    named = zip(rules.gates, judged, fits, strict=True)
    found = Forecast(
        at_s=at_s,
        wait=WAITS[int(next_transition(rules.policy, progress, judged, heard, now_s).waits_for)],
        measuring=tuple(name for name, judgement, fit in named if not (bool(fit) and bool(judgement.enough))),
        undecided=undecided,
        requests_per_second=requests_per_second(present(record.rows)),
        last_request_s=last_request_s(record.rows),
    )
    if Phase(int(progress.phase)) is Phase.BAKING:
        left_s = float(progress.step_since_s) + rules.policy.bake_s - at_s
        return replace(found, next_s=max(left_s, 0.0), promoted_s=0.0, end_s=max(left_s, 0.0))
    moves = found.wait in (Wait.NOTHING, Wait.TIME, Wait.DATA, Wait.HARM)
    if Phase(int(progress.phase)) is Phase.SHADOW and rules.policy.shadow is not None and moves:
        if breached(rules.policy, judged, OnBreach.HOLD):
            # Whatever else is still missing: in the end a person decides.
            return replace(found, wait=Wait.PERSON)
        return _after_shadow(_until_steps(found, rules.policy.shadow, progress), record, rules, states)
    if Phase(int(progress.phase)) is not Phase.PROGRESSING or not found.requests_per_second or not moves:
        return found
    traffic = _Traffic.of(record, found.requests_per_second)
    return _simulated(found, rules, states, progress, traffic)


def _until_steps(found: Forecast, shadow: ShadowPolicy, progress: Progress) -> Forecast:
    """Return the forecast of a rollout in Shadow: the steps begin when its time is over, at the latest.

    Nobody knows how long one that is probably worse stays.
    """
    left_s = float(max(progress.step_since_s, progress.resumed_s)) + shadow.maximum_s - found.at_s
    missing = max(shadow.min_requests - float(progress.seen), 0.0)
    return replace(found, next_s=left_s, next_requests=missing) if left_s > 0 else found


def _after_shadow(found: Forecast, record: Record, rules: Rules, states: Mapping[str, Any]) -> Forecast:
    """Return the forecast of a rollout in Shadow with the time of its steps, as if Shadow lasted as long as it may."""
    policy, progress = rules.policy, record.progress
    if math.isinf(found.next_s) or not found.requests_per_second or not policy.serves:
        return found
    begins_s = found.at_s + found.next_s
    begun = replace(
        progress,
        phase=np.array(Phase.PROGRESSING, np.int8),
        step=step_after_shadow(policy, progress, found.at_s),
        seen=np.array(0.0),
        step_since_s=np.array(begins_s),
    )
    going_on = {name: gate.after_shadow(states[name]) for name, gate in rules.gates.items()}
    traffic = _Traffic.of(record, found.requests_per_second)
    steps = _simulated(replace(found, at_s=begins_s), rules, going_on, begun, traffic)
    return replace(found, promoted_s=found.next_s + steps.promoted_s, end_s=found.next_s + steps.end_s)


def _undecided(record: Record, skipped: tuple[str, ...]) -> tuple[str, ...]:
    """Return the checked gates that do not pass; a golden gate without a verdict may have no images to judge."""
    outcomes = {verdict.gate: verdict.outcome for verdict in record.verdicts}
    names: list[str] = []
    for gate in record.policy.gates:
        name, gate_type = gate_name(gate), checked_gate(gate.gate)
        if not isinstance(gate, CheckedGateSpec) or gate_type is None or name in skipped:
            continue
        default = Outcome.PASS if gate_type.purpose == "golden" else Outcome.UNDECIDED
        if outcomes.get(name, default) is not Outcome.PASS:
            names.append(name)
    return tuple(names)


@dataclass(frozen=True, slots=True)
class _Traffic:
    """Coming requests: the rate, and for (stable, candidate) the shares of errors [2] and of latencies [2, K + 1]."""

    requests_per_second: float
    errors: Floats
    latencies: Floats
    random: np.random.Generator

    @classmethod
    def of(cls, record: Record, requests_per_second: float) -> _Traffic:
        """Return requests that are answered as those of the last minutes."""
        rows = recent(record.rows, TRAFFIC_S)
        requests = np.sum([row.requests for row in rows], 0, dtype=float)
        errors = np.sum([row.errors for row in rows], 0, dtype=float)
        bins = np.zeros((2, len(EDGES_MS) + 1))
        for row in rows:
            for role, counted in enumerate(row.latencies):
                for index, count in counted:
                    bins[role, index] += count
        if not bins[STABLE].any():
            bins[STABLE, 0] = 1.0
        assumed = record.slo.error_percent / 500.0
        failed = (errors[STABLE] + PRIOR_REQUESTS * assumed) / (requests[STABLE] + PRIOR_REQUESTS)
        took = bins[STABLE] / bins[STABLE].sum()
        return cls(
            requests_per_second,
            np.array([failed, _shrunk(errors[CANDIDATE], requests[CANDIDATE], failed)]),
            np.stack([took, _shrunk(bins[CANDIDATE], bins[CANDIDATE].sum(), took)]),
            np.random.default_rng(0),
        )

    def window(self, percent: Floats, seconds: float) -> EvidenceWindow:
        """Return what `seconds` at these weights [runs] bring."""
        share = np.stack([1.0 - percent / 100.0, percent / 100.0], -1)
        requests = self.random.poisson(self.requests_per_second * seconds * share)
        failed = self.random.binomial(requests, self.errors)
        took = [self.random.multinomial(requests[:, role], self.latencies[role]) for role in (STABLE, CANDIDATE)]
        return EvidenceWindow(
            np.full(len(percent), seconds),
            requests.astype(float),
            failed.astype(float),
            np.stack(took, 1).astype(float),
        )


def _shrunk(count: Any, total: float, expected: Any) -> Any:
    """Return the share of `count` in `total`, beside `PRIOR_REQUESTS` requests as expected."""
    return (count + PRIOR_REQUESTS * expected) / (total + PRIOR_REQUESTS)


def _simulated(
    found: Forecast,
    rules: Rules,
    states: Mapping[str, Any],
    progress: Progress,
    traffic: _Traffic,
) -> Forecast:
    """Return the forecast with the medians of `RUNS` simulated continuations, up to the rollout's deadline."""
    left_s = max(float(progress.started_s), float(progress.resumed_s)) + rules.policy.deadline_s - found.at_s
    lasts_s = min(max(left_s, 0.0), HORIZON_S)
    progress, step = _repeated(progress), int(progress.step)
    states = {name: _repeated(state) for name, state in states.items()}
    requests, next_requests, next_s, promoted_s = (np.full(RUNS, start) for start in (0.0, np.inf, np.inf, np.inf))
    passed_s, stopped = 0.0, np.zeros(RUNS, bool)
    while passed_s < lasts_s:
        seconds = min(max(SHORTEST_S, GROWTH * passed_s), LONGEST_S)
        window = traffic.window(weights(rules.policy, progress.phase, progress.step), seconds)
        passed_s += seconds
        requests = requests + window.requests[:, CANDIDATE]
        progress = watch(progress, window, found.at_s + passed_s)
        states = {name: gate.update(states[name], window) for name, gate in rules.gates.items()}
        moved = next_transition(rules.policy, progress, judge(rules, states), Signals(), found.at_s + passed_s)
        progress = moved.progress
        promoted = progress.phase == Phase.BAKING
        advanced = (promoted | (progress.step > step)) & np.isinf(next_s)
        next_s = np.where(advanced, passed_s, next_s)
        next_requests = np.where(advanced, requests, next_requests)
        promoted_s = np.where(promoted & np.isinf(promoted_s), passed_s, promoted_s)
        stopped = ~np.isin(progress.phase, (Phase.PROGRESSING, Phase.BAKING))
        if np.isfinite(_median(promoted_s)) or np.mean(stopped) > 0.5:
            break
    return replace(
        found,
        fails=bool(np.mean(stopped) > 0.5),
        next_s=_median(next_s),
        next_requests=_median(next_requests),
        promoted_s=_median(promoted_s),
        end_s=_median(promoted_s) + rules.policy.bake_s,
    )


def _median(values: Floats) -> float:
    return float(np.quantile(values, 0.5, method="inverted_cdf"))


def _repeated(value: T) -> T:
    """Return a frozen dataclass of arrays with a leading axis of `RUNS` equal entries."""
    arrays = {each.name: np.asarray(getattr(value, each.name)) for each in fields(value)}  # type: ignore[arg-type]
    many = {name: np.broadcast_to(array, (RUNS, *array.shape)).copy() for name, array in arrays.items()}
    return replace(value, **many)  # type: ignore[type-var]
