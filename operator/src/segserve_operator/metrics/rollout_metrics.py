"""Prometheus metrics of rollouts: a few series for each one in progress, removed when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from segserve_operator.core.advance.explanations import hold_of
from segserve_operator.core.rollout.phases import ENDED, Phase
from segserve_operator.core.rollout.record import Record, RolloutState

EXCESS: Final = "excess"
"""The number of a verdict that counts requests which went wrong because of the candidate."""

_MODEL: Final = ("namespace", "pool", "model")


@dataclass(frozen=True, slots=True)
class _Known:
    """The rollouts of one pool at the last pass, and the last decision of each that was counted."""

    states: Mapping[str, RolloutState] = field(default_factory=dict)
    records: Mapping[str, Record] = field(default_factory=dict)
    sequences: Mapping[str, int] = field(default_factory=dict)


class RolloutMetrics:
    """Gauges of running rollouts, and counters of decisions. `clock` returns Unix time in seconds.

    A running rollout with g gates has 6 + g series, one more in Shadow, and none once it has ended. Counters stay for
    as long as the process runs, at most one series a model and kind of decision; they count what happens while it runs.
    """

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.time) -> None:
        self.registry, self.clock, self._began_s = registry, clock, clock()
        self.phase = self._gauge("phase", "1 for the phase that a model's rollout is in.", "phase")
        self.weight = self._gauge("weight", "Percent of requests that the candidate gets.")
        self.held = self._gauge("held", "1 where a rollout waits for a person or the end of an incident.", "reason")
        self.evidence = self._gauge("evidence", "Evidence against the candidate as a share of its bound.", "gate")
        self.bad_requests = self._gauge("bad_requests", "Requests that went wrong because of the candidate.")
        self.compared = self._gauge("compared", "Copies of callers' requests that both revisions had in Shadow.")
        self.look_age = self._gauge("look_seconds", "Time since the gateways' counts were last looked at.")
        self.decisions = self._counter("decisions", "Decisions that changed something.", "signal")
        self.quarantines = self._counter("quarantines", "Candidates put at weight 0 without a verdict.")
        self.ends = self._counter("ends", "Rollouts that ended, by the phase in which they did.", "phase")
        text = "Messages to people, by what became of them."
        self.notifications = Counter("segserve_notifications", text, ["outcome"], registry=self.registry)
        self._pools: dict[tuple[str, str], _Known] = {}
        self._shown: set[tuple[Gauge, tuple[str, ...]]] = set()

    def observe(
        self, namespace: str, pool: str, states: Mapping[str, RolloutState], records: Mapping[str, Record]
    ) -> None:
        """Record the rollouts of a pool: `states` by model, `records` by name of the rollout.

        Rollouts that are not named any more are removed; for a pool that is gone, none must be named. It is called
        after each pass, and so only counts: gauges are set by `show`.
        """
        former_pool = self._pools.get((namespace, pool), _Known())
        sequences: dict[str, int] = {}
        for model, state in states.items():
            key, name = (namespace, pool, model), state.rollout
            if name in records:
                sequences[name] = self._count(key, records[name], former_pool.sequences.get(name, 0))
            former = former_pool.states.get(model)
            was_running = former is not None and former.rollout == name
            if state.ended and was_running:
                self.ends.labels(*key, state.phase.label).inc()
            elif not state.ended and not was_running:
                # A counter whose first value is 1 has not increased, as Prometheus sees it.
                self.quarantines.labels(*key)
                for phase in ENDED:
                    self.ends.labels(*key, phase.label)
        running = {model: state for model, state in states.items() if not state.ended}
        of_running = {each.rollout: records[each.rollout] for each in running.values() if each.rollout in records}
        self._pools[namespace, pool] = _Known(running, of_running, sequences)

    def show(self) -> None:
        """Set the gauges to the last state observed; called before every scrape."""
        shown: set[tuple[Gauge, tuple[str, ...]]] = set()
        for (namespace, pool), pool_state in self._pools.items():
            for model, state in pool_state.states.items():
                shown.update(self._show((namespace, pool, model), state, pool_state.records.get(state.rollout)))
        for gauge, labels in self._shown - shown:
            gauge.remove(*labels)
        self._shown = shown

    def notified(self, outcome: str) -> None:
        """Count the outcome of a notification."""
        self.notifications.labels(outcome).inc()

    def _count(self, key: tuple[str, ...], record: Record, counted: int) -> int:
        """Count the decisions after `sequence`, and return the last one's."""
        for decision in record.decisions:
            if decision.sequence > counted and decision.at_s >= self._began_s:
                self.decisions.labels(*key, decision.signal).inc()
                self.quarantines.labels(*key).inc(decision.phase is Phase.QUARANTINED)
        return max(counted, record.sequence)

    def _show(
        self, key: tuple[str, ...], state: RolloutState, record: Record | None
    ) -> Iterator[tuple[Gauge, tuple[str, ...]]]:
        values: list[tuple[Gauge, float, tuple[str, ...]]] = [
            (self.phase, 1, (*key, state.phase.label)),
            (self.weight, state.weight, key),
        ]
        hold = hold_of(state)
        if hold:
            values.append((self.held, 1, (*key, hold)))
        if record is not None:
            excess = (each.numbers.get(EXCESS, 0.0) for each in record.verdicts)
            values.append((self.bad_requests, max([float(record.progress.bad), *excess]), key))
            if state.phase is Phase.SHADOW:
                values.append((self.compared, float(record.progress.seen), key))
            values += [(self.evidence, verdict.progress, (*key, verdict.gate)) for verdict in record.verdicts]
        if record is not None and record.rows:
            values.append((self.look_age, max(self.clock() - record.rows[-1].at_s, 0.0), key))
        for gauge, value, labels in values:
            gauge.labels(*labels).set(value)
            yield gauge, labels

    def _gauge(self, name: str, text: str, *more: str) -> Gauge:
        return Gauge(f"segserve_rollout_{name}", text, [*_MODEL, *more], registry=self.registry)

    def _counter(self, name: str, text: str, *more: str) -> Counter:
        return Counter(f"segserve_rollout_{name}", text, [*_MODEL, *more], registry=self.registry)
