"""`segserve rollout list`: the rollouts that there were, newest first."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from rich.markup import escape
from rich.table import Table

from segserve.cli.rollout.render import COLOURS, span
from segserve.platforms.rollouts.rollout_view import is_written, record_of
from segserve_operator.core.rollout.phases import ENDED, Phase

if TYPE_CHECKING:
    from collections.abc import Iterable

    from segserve.platforms.port import Json, Platform
    from segserve_operator.core.rollout.record import Record

COLUMNS: Final = ("ROLLOUT", "MODEL", "STABLE", "CANDIDATE", "PHASE", "WEIGHT", "AGE", "TOOK")


def rollouts(here: Platform, model: str | None) -> list[tuple[Json, Record]]:
    """Return the records of all models' rollouts, or of one model's, with their resources; the newest first."""
    found = [(manifest, record_of(manifest)) for manifest in here.rollouts() if is_written(manifest)]
    mine = [(manifest, record) for manifest, record in found if model in (None, record.model)]
    return sorted(mine, key=lambda each: (-float(each[1].progress.started_s), each[1].name))


def rollouts_table(records: Iterable[Record], *, wide: bool = False) -> Table:
    """Return rollouts as a table; what a record says last may be some seconds behind its model's status."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (*COLUMNS, "REASON", "MESSAGE") if wide else COLUMNS:
        table.add_column(name, no_wrap=True)
    now_s = time.time()
    for record in records:
        table.add_row(*_row(record, now_s, wide=wide))
    return table


def _row(record: Record, now_s: float, *, wide: bool) -> list[str]:
    phase, started_s = Phase(int(record.progress.phase)), float(record.progress.started_s)
    last = record.decisions[-1] if record.decisions else None
    row = [
        record.name,
        record.model,
        record.stable,
        record.candidate,
        f"[{COLOURS[phase]}]{phase.label}[/]",
        str(last.weight if last is not None else 0),
        span(now_s - started_s),
        span(float(record.progress.since_s) - started_s) if phase in ENDED else "",
    ]
    return [*row, *((last.reason, escape(last.message)) if last is not None else ("", ""))] if wide else row
