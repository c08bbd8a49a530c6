"""What this process knows of rollouts beyond what is written: the evidence of the last seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from segserve_operator.core.models.planning import DesiredState
from segserve_operator.core.models.watches import SelfTest, SloWatch
from segserve_operator.core.rollout.record import Record


@dataclass(slots=True)
class RolloutCache:
    """The newest records of rollouts, by name. Losing it loses no more than what came since the last write.

    `written` is by name the last decision that the store has, and since when (Unix seconds); `watches` by model how it
    kept its SLO in the last hour, `self_tests` how stable compares with itself.
    """

    records: dict[str, Record] = field(default_factory=dict)
    written: dict[str, tuple[int, float]] = field(default_factory=dict)
    watches: Mapping[str, SloWatch] = field(default_factory=dict)
    self_tests: Mapping[str, SelfTest] = field(default_factory=dict)

    def take(self, stored: Mapping[str, Record], now_s: float) -> None:
        """Take in what the store has, where that is news: at the start, or after another process was in charge."""
        for name, record in stored.items():
            known = self.records.get(name)
            if known is None or _age(known) < _age(record):
                self.records[name] = record
                self.written[name] = (record.sequence, now_s)

    def keep(self, desired: DesiredState) -> None:
        """Keep what a pass made of it, and forget the records that nobody names any more."""
        self.watches, self.self_tests = desired.watches, desired.self_tests
        states = (status.rollout for status in desired.statuses.values())
        named = {state.rollout for state in states if state is not None}
        self.records.update(desired.records)
        for name in self.records.keys() - named - desired.records.keys():
            del self.records[name]
            self.written.pop(name, None)

    def wrote(self, record: Record, now_s: float) -> None:
        """Remember that the store has a record."""
        self.written[record.name] = (record.sequence, now_s)


def _age(record: Record) -> tuple[int, float]:
    # Not by the rows' times: a clock may be put back.
    return record.sequence, sum(row.seconds for row in record.rows)
