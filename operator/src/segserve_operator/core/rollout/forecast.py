"""When a rollout is likely to reach its next weight and its end: the requests that are needed, at the present rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from segserve_operator.api.rollout_policy import CheckedGateSpec, gate_name
from segserve_operator.core.evidence import Judgement
from segserve_operator.core.gates import checked_gate
from segserve_operator.core.gates.base import OnBreach, Outcome
from segserve_operator.core.rollout.decisions import Rules, judge
from segserve_operator.core.rollout.engine import (
    LARGEST_HARM,
    LOOKAHEAD_S,
    PART_AT_RISK,
    WAITS,
    Progress,
    ShadowPolicy,
    Signals,
    Wait,
    affordable,
    breached,
    excess_of,
    next_transition,
    step_after_shadow,
)
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import Record, Row

PRESENT_S: Final = (30.0, 120.0, 600.0)
"""Lengths of time that "now" is measured over: the shortest one with `ENOUGH_REQUESTS`."""
ENOUGH_REQUESTS: Final = 20
QUIET_S: Final = 10.0
MISSING: Final = 5.0
"""Requests have ended after so long a pause, in which so many are missing: chance has that once in 150 pauses."""
LEAST_HARM: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Forecast:
    """The outlook of a rollout from `at_s` (Unix time) on, if requests keep coming as they do now.

    `wait` is why it does not advance now, `undecided` the checked gates without a pass, and `measuring` the measured
    gates whose evidence does not allow the next weight yet. `requests_per_second` is the rate of both revisions, and
    `last_request_s` (Unix time) when the last request ended, 0 without one.

    Infinity means unknown: without requests, if it waits for something else than time and requests, or if it would take
    longer than the rollout's deadline. `next_s` is the time to the next weight, in Shadow the longest, `next_requests`
    how many more requests the candidate needs until then, `promoted_s` the time to the promotion, and `end_s` to the
    end of the bake.
    """

    at_s: float
    wait: Wait = Wait.NOTHING
    measuring: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
    requests_per_second: float = 0.0
    last_request_s: float = 0.0
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
    """Return the Unix time of the last row with requests, 0 without one."""
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
        shadow = _until_steps(found, rules.policy.shadow, progress)
        if math.isinf(shadow.next_s) or not found.requests_per_second or not rules.policy.serves:
            return shadow
        # As if Shadow lasted as long as it may.
        begun = replace(progress, seen=np.array(0.0), step_since_s=np.array(at_s))
        steps = _with_times(found, rules, judged, begun, int(step_after_shadow(rules.policy, progress, at_s)))
        return replace(shadow, promoted_s=shadow.next_s + steps.promoted_s, end_s=shadow.next_s + steps.end_s)
    if Phase(int(progress.phase)) is not Phase.PROGRESSING or not found.requests_per_second or not moves:
        return found
    return _with_times(found, rules, judged, progress, int(progress.step))


def _until_steps(found: Forecast, shadow: ShadowPolicy, progress: Progress) -> Forecast:
    """Return the forecast of a rollout in Shadow: the steps begin when its time is over, at the latest.

    How long one that is probably worse stays is unknown.
    """
    left_s = float(max(progress.step_since_s, progress.resumed_s)) + shadow.maximum_s - found.at_s
    missing = max(shadow.min_requests - float(progress.seen), 0.0)
    return replace(found, next_s=left_s, next_requests=missing) if left_s > 0 else found


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


def _with_times(found: Forecast, rules: Rules, judged: Sequence[Judgement], progress: Progress, step: int) -> Forecast:
    """Return the forecast with times from `step` on: the requests that each step's gates need, at the present rate.

    After n requests without harm its bound is about k / n, where k is the log of the odds that a gate has to prove. The
    bounds are followed from step to step; none is known beyond the rollout's deadline.
    """
    policy, rate = rules.policy, found.requests_per_second
    odds = -np.log(policy.levels)
    counted = odds / np.maximum([float(each.harm) for each in judged], LEAST_HARM)
    budget = policy.max_bad_requests - float(excess_of(judged, progress) - progress.bad)
    begun_s, seen = float(progress.step_since_s) - found.at_s, float(progress.seen)
    following = [*(each.weight for each in policy.steps[1:]), 100]
    passed_s, next_s, next_requests = 0.0, 0.0, 0.0
    for index in range(step, len(policy.steps)):
        last = index + 1 == len(policy.steps)
        at_risk = rate * following[index] / 100.0 * (max(policy.bake_s, LOOKAHEAD_S) if last else LOOKAHEAD_S)
        fits = min((1.0 if last else PART_AT_RISK) * budget / at_risk, LARGEST_HARM if last else 1.0)
        allowed = np.maximum(np.where([bool(each.doubtful) for each in judged], 0.0, fits), policy.tolerances)
        needed = np.max(odds / np.maximum(allowed, LEAST_HARM) - counted, initial=policy.min_requests - seen)
        per_s = rate * policy.steps[index].weight / 100.0
        lasts_s = max(float(needed) / per_s, policy.steps[index].minimum_s + begun_s - passed_s, 0.0)
        if index == step:
            next_s, next_requests = lasts_s, max(float(needed), 0.0)
        passed_s, counted, seen, begun_s = passed_s + lasts_s, counted + lasts_s * per_s, 0.0, passed_s + lasts_s
    left_s = max(float(progress.started_s), float(progress.resumed_s)) + policy.deadline_s - found.at_s
    return replace(
        found,
        next_s=next_s if next_s < left_s else math.inf,
        next_requests=next_requests,
        promoted_s=passed_s if passed_s < left_s else math.inf,
        end_s=passed_s + policy.bake_s if passed_s < left_s else math.inf,
    )
