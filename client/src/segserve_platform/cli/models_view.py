"""Models as a table, and one model as text."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import yaml
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from segserve_platform.cli.errors import plain
from segserve_platform.platforms.errors import ControlError
from segserve_platform.platforms.port import Json, Platform, PlatformEvent
from segserve_platform.platforms.present import Present
from segserve_platform.platforms.waiting import State, age, condition, readiness

# Statuses are read as JSON, not as `SegmentationModelStatus`: a newer operator may have added fields, which the type
# rejects and which must not break `segserve get`.
COLUMNS: Final = ("NAME", "READY", "STABLE", "CANDIDATE", "PHASE", "WEIGHT", "SLO", "URL", "AGE")
WIDE_COLUMNS: Final = (*COLUMNS, "DEVICE", "GROUP", "MESSAGE")
DROPPED_FIRST: Final = ("URL", "AGE", "DEVICE", "GROUP", "SLO", "PHASE", "CANDIDATE", "MESSAGE", "STABLE")
"""Columns that a narrow terminal does without, in this order; before them those that are empty for every model."""
GAP: Final = 2
MESSAGE_WIDTH: Final = 20
"""A message may be cut off after this many characters, and a candidate go without its reason; other cells are whole."""
DECISIONS, EVENTS = 10, 10
"""The newest of them are shown; `segserve why` has all."""


@dataclass(frozen=True, slots=True)
class ModelsTable:
    """Models with the resource's printer columns that fit into the width; lines are never folded.

    In a terminal of `height` lines, those that are not ready come first if not all fit.
    """

    columns: Sequence[str]
    rows: Sequence[Mapping[str, Text]]
    height: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.height is not None and len(self.rows) + 1 > self.height:
            rows = sorted(self.rows, key=lambda row: row["READY"].plain == "True")[: self.height - 2]
            yield ModelsTable(self.columns, rows)
            yield Text(f"and {len(self.rows) - len(rows)} more: `segserve get`", "dim")
            return
        least = {name: self._width(name, least=True) for name in self.columns}
        empty = [name for name in DROPPED_FIRST if not any(row[name].plain for row in self.rows)]
        for name in (*empty, *DROPPED_FIRST):
            if _total(least) <= options.max_width:
                break
            least.pop(name, None)
        widths = dict(least)
        for name in least:
            widths[name] = min(self._width(name), least[name] + max(options.max_width - _total(widths), 0))
        yield self._table(widths)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        width = _total({name: self._width(name) for name in self.columns})
        return Measurement(width, width)

    def _table(self, widths: Mapping[str, int]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
        for name, width in widths.items():
            table.add_column(name, no_wrap=True, width=width)
        for row in self.rows:
            candidate = {"CANDIDATE": _shortened(row["CANDIDATE"], widths.get("CANDIDATE", 0))}
            table.add_row(*({**row, **candidate}[name] for name in widths))
        return table

    def _width(self, column: str, *, least: bool = False) -> int:
        """Return the width of a column's content, or the one below which it is of no use."""
        cells = [row[column].plain for row in self.rows]
        if least and column == "CANDIDATE":
            cells = [cell.partition(" ")[0] for cell in cells]
        width = max(map(cell_len, (column, *cells)))
        return min(width, MESSAGE_WIDTH) if least and column == "MESSAGE" else width


def _shortened(cell: Text, width: int) -> Text:
    """Return a candidate without its reason if both do not fit: `coins-2222222222 (GoldenFailed)`."""
    return cell if cell.cell_len <= width else cell.split(" (")[0]


def _total(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + GAP * (len(widths) - 1)


def models_table(
    manifests: Iterable[Mapping[str, Any]],
    *,
    wide: bool = False,
    starting: Container[str] = (),
    height: int | None = None,
) -> ModelsTable:
    """Return a table of models; `wide` adds device, group of servers and the state of its newest spec.

    Models in `starting` have not been ready since their platform started. `height` is that of a terminal that does not
    scroll, in lines.
    """
    columns = WIDE_COLUMNS if wide else COLUMNS
    rows = [dict(zip(WIDE_COLUMNS, _row(manifest, starting), strict=True)) for manifest in manifests]
    return ModelsTable(columns, rows, height)


def _row(manifest: Mapping[str, Any], starting: Container[str]) -> list[Text]:
    status, state = manifest.get("status") or {}, readiness(manifest)
    roles = status.get("roles", {})
    return [
        Text(manifest["metadata"]["name"]),
        _ready(manifest, state.state, starting),
        Text(roles.get("stable", {}).get("revision", "")),
        _candidate(roles.get("candidate")),
        Text(status.get("phase", "")),
        Text(str(status.get("weight", ""))),
        _coloured(status.get("slo"), {"Met": "green", "Breached": "red"}),
        Text(status.get("url", "")),
        Text(age(manifest["metadata"]["creationTimestamp"])),
        Text(status.get("device", "")),
        Text(roles.get("stable", {}).get("group", "")),
        Text(state.text),
    ]


def _ready(manifest: Mapping[str, Any], state: State, starting: Container[str]) -> Text:
    awaited = manifest["metadata"]["name"] in starting and state == "Not ready"
    if state == "Starting" or awaited:
        return Text("Starting", "yellow")
    return _coloured(condition(manifest, "Ready")["status"], {"True": "green", "False": "red"})


def _coloured(word: str | None, colours: Mapping[str, str]) -> Text:
    return Text(word, colours.get(word, "yellow")) if word else Text()


def _candidate(candidate: Mapping[str, Any] | None) -> Text:
    if candidate is None:
        return Text()
    if candidate["state"] == "Failed":
        return Text(f"{candidate['revision']} ({candidate['reason']})", "red")
    return Text(candidate["revision"], "yellow")


def latest_record(platform: Platform, model: Json) -> Json | None:
    """Return the record of a model's latest rollout, or None."""
    name = ((model.get("status") or {}).get("rollout") or {}).get("name")
    return platform.rollout(name) if name else None


def model_text(manifest: Json, record: Json | None, more: Iterable[str] = ()) -> str:
    """Return a model as text, with the `record` of its latest rollout: its state first, and `more` before its spec."""
    status, state = manifest.get("status") or {}, readiness(manifest)
    lines = [f"{manifest['metadata']['name']}: {state.state}{f', {state.text}' if state.text else ''}"]
    lines += [f"next: {state.advice}"] if state.advice else []
    lines += [f"url: {status.get('url', '')}", "roles:"]
    for role, holder in status.get("roles", {}).items():
        failure = f"  {holder['reason']}: {holder['message']}" if holder.get("reason") else ""
        group = f" in group {holder['group']}" if holder.get("group") else ""
        lines.append(f"  {role:<10} {holder['revision']}{group} since {age(holder['since'])}{failure}")
    if status.get("rollout"):
        lines += _rollout(manifest, status["rollout"], (record or {}).get("status") or {})
    lines.append("conditions:")
    for each in status.get("conditions", []):
        lines.append(f"  {each['type']:<17} {each['status']:<8} {age(each['lastTransitionTime']):>4}  {_why(each)}")
    shown = {"metadata": manifest["metadata"], "spec": without_defaults(manifest)}
    return "\n".join((*lines, *more, yaml.safe_dump(shown, sort_keys=False).rstrip("\n")))


def event_lines(about: str, read: Callable[[], Iterable[PlatformEvent]]) -> Iterator[str]:
    """Yield a heading and the newest events about a model, oldest first, or why they cannot be read."""
    yield "events:"
    try:
        events = [each for each in read() if each.about == about]
    except ControlError as error:
        yield f"  {error}"
        return
    if not events:
        yield "  none"
    for event in sorted(events, key=lambda each: each.at_s)[-EVENTS:]:
        often = f" ({event.count} times)" if event.count > 1 else ""
        message = plain(" ".join(event.message.split()))
        kind = "Warning" if event.warning else "Normal"
        when = age(datetime.fromtimestamp(event.at_s, UTC).isoformat())
        yield f"  {when:>4}  {kind:<8} {event.reason:<18} {message}{often}"


def without_defaults(manifest: Json) -> Json:
    """Return a model's spec without what every model has; whole, if this version cannot read it."""
    from segserve_operator.api.segmentation_model import SegmentationModel

    try:
        spec = SegmentationModel.model_validate(manifest).spec
    except ValueError:
        return dict(manifest["spec"])
    shown: Json = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return shown


def _rollout(manifest: Json, rollout: Json, record: Json) -> Iterator[str]:
    from segserve_platform.platforms.rollouts.words import actor

    revision, phase, present = rollout["revision"], rollout["phase"], Present.of(manifest)
    state = f"is {phase} at {present.share_of(revision)} %{', paused' if rollout.get('paused') else ''} since"
    history = f"past rollout, which says nothing of the present ({present.text})"
    yield f"{'rollout' if present.phase else history}: {rollout['name']}"
    yield f"  {revision} {state if present.phase else f'was {phase} for'} {age(rollout['since'])}  {_why(rollout)}"
    for verdict in record.get("verdicts") or ():
        skipped = " (skipped)" if verdict["gate"] in (rollout.get("skippedGates") or ()) else ""
        yield f"  gate {verdict['gate']:<15} {verdict['outcome']:<9} {_why(verdict)}{skipped}"
    for decision in (record.get("decisions") or ())[-DECISIONS:]:
        when, weight = age(decision["at"]), decision["weight"]
        yield f"  {when:>4}  {decision['phase']:<11} {weight:>3} %  {_why(decision)} ({actor(decision['actor'])})"


def _why(entry: Json) -> str:
    return ": ".join(filter(None, (entry.get("reason"), entry.get("message"))))
