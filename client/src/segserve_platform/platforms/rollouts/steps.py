"""The steps of a rollout in words: done, current and to come, the bake after them, and the deadline."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from segserve_operator.core.rollout.engine import HOLDBACK
from segserve_operator.core.rollout.forecast import Forecast
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import Record
from segserve_platform.platforms.rollouts import words
from segserve_platform.platforms.rollouts.rollout_view import RolloutView
from segserve_platform.platforms.rollouts.words import span

_AT_DEADLINE: Final = {"Hold": "it waits for you", "Rollback": "it is rolled back", "Promote": "it is promoted"}


@dataclass(frozen=True, slots=True)
class StepWords:
    """A step: its percentage of requests (or `Shadow`), where it is, and a text."""

    name: str
    state: Literal["done", "left out", "now", "stopped", "to come"]
    text: str


def steps(view: RolloutView, record: Record, outlook: Forecast | None) -> Iterator[StepWords]:
    """Yield the steps: done, current and to come, and the bake after them."""
    standing, weights = view.standing, words.steps(record)
    if record.policy.shadow is not None:
        yield _shadow(view, record)
    reached = {decision.weight: decision.at_s for decision in reversed(record.decisions)}
    for number, weight in enumerate(weights):
        since = f"reached {span(view.now_s - reached[weight])} ago" if weight in reached else ""
        if view.promoted or number < standing.step:
            yield StepWords(f"{weight} %", "done" if since else "left out", since)
        elif number > standing.step:
            yield StepWords(f"{weight} %", "left out" if standing.ended else "to come", _conditions(record, number))
        elif standing.phase is Phase.PROGRESSING:
            yield StepWords(f"{weight} %", "now", _now(view, record, outlook))
        else:
            yield StepWords(f"{weight} %", "stopped", since)
    if record.policy.strategy == "shadow" and not view.promoted:
        return
    watched = f"watched for {span(record.policy.bake_time.total_seconds())}"
    part = 100 - HOLDBACK if weights else 100
    if standing.phase is Phase.BAKING:
        left_s = standing.since_s + record.policy.bake_time.total_seconds() - view.now_s
        yield StepWords(f"{part:g} %", "now", f"{watched}, {span(left_s)} to go")
    elif standing.phase is Phase.SUCCEEDED:
        yield StepWords("100 %", "done", "")
    elif not standing.ended:
        when = ""
        if outlook is not None and math.isfinite(outlook.promoted_s) and not words.later_pauses(view):
            when = f", in {words.about(words.left_s(view, outlook.promoted_s))}"
        yield StepWords(f"{part:g} %", "to come", f"promotion{when}, then {watched}")


def _shadow(view: RolloutView, record: Record) -> StepWords:
    """Return Shadow as the first of the steps: at 0 %, so that no caller gets the candidate's answers."""
    standing = view.standing
    since_s = next((each.at_s for each in record.decisions if each.phase is Phase.SHADOW), None)
    done = standing.step >= 0 or view.promoted or standing.phase is Phase.JUDGED
    if standing.phase is Phase.SHADOW:
        return StepWords("Shadow", "now", words.compared(view))
    if since_s is None:
        return StepWords("Shadow", "left out" if done else "to come", "")
    return StepWords("Shadow", "done" if done else "stopped", f"began {span(view.now_s - since_s)} ago")


def _now(view: RolloutView, record: Record, outlook: Forecast | None) -> str:
    parts = [f"for {span(view.now_s - view.standing.step_since_s)}"]
    if outlook is not None and not words.held(view, outlook) and math.isfinite(outlook.next_s):
        parts.append(f"{words.about(words.left_s(view, outlook.next_s))} to go")
    return ", ".join((*parts, *filter(None, (_conditions(record, view.standing.step),))))


def _conditions(record: Record, index: int) -> str:
    step = record.policy.steps[index]
    least = f"at least {span(step.min_duration.total_seconds())}" if step.min_duration is not None else ""
    return ", ".join(filter(None, (least, "then waits for you" if step.pause else "")))


def deadline(view: RolloutView, record: Record) -> str:
    """Return when a rollout that is undecided until then ends, and how."""
    standing, policy = view.standing, record.policy
    if standing.phase is Phase.BAKING:
        return "none: it has been promoted"
    if standing.paused:
        return f"{span(policy.deadline.total_seconds())} after it is resumed"
    left_s = standing.undecided_since_s + policy.deadline.total_seconds() - view.now_s
    follows = _AT_DEADLINE[policy.on_undecided]
    if policy.strategy == "shadow" and policy.on_undecided == "Hold" and standing.phase is Phase.SHADOW:
        follows = "it ends without a verdict"
    if left_s <= 0:
        return f"passed: undecided for {span(policy.deadline.total_seconds())}, so {follows}"
    return f"in {span(left_s)}, then {follows}"
