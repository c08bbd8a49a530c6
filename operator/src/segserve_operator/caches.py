"""In-memory state of rollouts that is newer than the store: the evidence of the last seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from segserve_operator.core.models.planning import DesiredState
from segserve_operator.core.models.watches import SelfTest, SloWatch
from segserve_operator.core.rollout.record import Record


@dataclass(slots=True)
class RolloutCache:
    """The newest records of rollouts, by name. Losing it loses only the evidence since the last write.

    `written` is the sequence of the last decision in the store and the time of that write (Unix seconds), by name;
    `watches` are the last hour of each model's SLO, `self_tests` the comparisons of stable with itself.
    """

    records: dict[str, Record] = field(default_factory=dict)
    written: dict[str, tuple[int, float]] = field(default_factory=dict)
    watches: Mapping[str, SloWatch] = field(default_factory=dict)
    self_tests: Mapping[str, SelfTest] = field(default_factory=dict)

    def take(self, stored: Mapping[str, Record], now_s: float) -> None:
        """Adopt records from the store that are newer: at the start, or after another process was the leader."""
        for name, record in stored.items():
            known = self.records.get(name)
            if known is None or _age(known) < _age(record):
                self.records[name] = record
                self.written[name] = (record.sequence, now_s)

    def keep(self, desired: DesiredState) -> None:
        """Keep the results of a pass, and drop records that no status names any more."""
        self.watches, self.self_tests = desired.watches, desired.self_tests
        states = (status.rollout for status in desired.statuses.values())
        named = {state.rollout for state in states if state is not None}
        self.records.update(desired.records)
        for name in self.records.keys() - named - desired.records.keys():
            del self.records[name]
            self.written.pop(name, None)

    def wrote(self, record: Record, now_s: float) -> None:
        """Note that a record was written to the store."""
        self.written[record.name] = (record.sequence, now_s)


def _age(record: Record) -> tuple[int, float]:
    # Not by the rows' times: a clock may be set back.
    return record.sequence, sum(row.seconds for row in record.rows)
