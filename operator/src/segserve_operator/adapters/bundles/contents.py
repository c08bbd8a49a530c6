"""Contents of a bundle, and its README."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from segserve_operator.adapters.bundles.archive import packed, tail
from segserve_operator.core.rollout.plain import to_plain
from segserve_operator.mapping.rollouts import manifest_of, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from segserve_operator.core.rollout.record import Record

LOG_BYTES: Final = 1024 * 1024
"""Size of the end of each log that is kept."""

STATISTICS_BYTES: Final = 1024 * 1024
STATISTICS_S: Final = 2.0

_LONG: Final = ("inputs", "result")
_README: Final = """\
Why {candidate} of model {model} was rolled back (rollout {name}).

record.json      the whole record: `segserve rollout replay record.json` makes each decision again
decisions.json   the decisions without their inputs
rows.json        all windows of the gateways' counts that were kept, the oldest first
verdicts.json    what each gate said last
logs/            the ends of the candidate's servers' logs, at most {log_bytes:,} bytes each
statistics/      Triton's own statistics of each server

Servers that several models share have one log: other models' lines are in it.
Failing requests are not in here: segserve captures none.
"""


@dataclass(frozen=True, slots=True)
class ServerDiagnostics:
    """Logs by `server/process`, Triton's statistics by server, and descriptions of those that could not be read."""

    logs: Mapping[str, bytes] = field(default_factory=dict)
    statistics: Mapping[str, bytes] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def bundle(record: Record, diagnostics: ServerDiagnostics, *, log_bytes: int = LOG_BYTES) -> bytes:
    """Return the archive, with at most `log_bytes` of the end of each log; equal content gives equal bytes."""
    return packed({f"{record.name}/{name}": text for name, text in _files(record, diagnostics, log_bytes)})


def _files(record: Record, diagnostics: ServerDiagnostics, log_bytes: int) -> Iterator[tuple[str, bytes]]:
    decisions = [{k: v for k, v in to_plain(each).items() if k not in _LONG} for each in record.decisions]
    yield "README.txt", _readme(record, diagnostics, log_bytes).encode()
    yield "record.json", _json(_resource(record))
    yield "decisions.json", _json(decisions)
    yield "verdicts.json", _json(to_plain(record.verdicts))
    yield "rows.json", _json(to_plain(record.rows), indent=None)
    for name, text in diagnostics.logs.items():
        yield f"logs/{name}.log", tail(text, log_bytes)
    for name, text in diagnostics.statistics.items():
        yield f"statistics/{name}.json", text


def _readme(record: Record, diagnostics: ServerDiagnostics, log_bytes: int) -> str:
    text = _README.format(name=record.name, model=record.model, candidate=record.candidate, log_bytes=log_bytes)
    missing = "".join(f"Missing: {each}\n" for each in sorted(diagnostics.missing))
    return f"{text}\n{missing}" if missing else text


def _resource(record: Record) -> dict[str, object]:
    """Return the SegmentationRollout as of its last decision, the latest time that a record has."""
    at_s = record.decisions[-1].at_s if record.decisions else float(record.progress.started_s)
    return {**manifest_of(record), "status": status_of(record, datetime.fromtimestamp(at_s, UTC))}


def _json(value: object, *, indent: int | None = 2) -> bytes:
    return (json.dumps(value, indent=indent, sort_keys=True, default=str) + "\n").encode()
