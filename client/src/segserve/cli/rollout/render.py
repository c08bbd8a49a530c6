"""The live tree of a rollout: both revisions, the evidence of each gate, the pending decision, and past decisions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from segserve.cli.trees import BAD, GOOD, MOVING, QUIET, Node, tree
from segserve.platforms.rollouts.rollout_view import RolloutView, Side
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.rollout.phases import ENDED, Phase
from segserve_operator.core.rollout.record import Decision, Record

BAR: Final = 16
"""Length of a full bar in characters."""
_FULL, _EMPTY, _PLAIN_FULL, _PLAIN_EMPTY = "█", "░", "#", "."
_PARTS: Final = " ▏▎▍▌▋▊▉"
DECISIONS: Final = 4
COLOURS: Final = {
    Phase.PENDING: MOVING,
    Phase.GOLDEN: MOVING,
    Phase.PROGRESSING: MOVING,
    Phase.QUARANTINED: BAD,
    Phase.BAKING: GOOD,
    Phase.SUCCEEDED: GOOD,
    Phase.ROLLED_BACK: BAD,
    Phase.CANCELLED: QUIET,
}
OUTCOMES: Final = {Outcome.PASS: GOOD, Outcome.BREACH: BAD, Outcome.UNDECIDED: MOVING}
_LOST: Final = frozenset({Phase.QUARANTINED, Phase.ROLLED_BACK})


@dataclass(frozen=True, slots=True)
class RolloutTree:
    """A rollout as a tree for terminals; `preview` is the line of its `Outlook`."""

    view: RolloutView
    wide: bool = False
    preview: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield tree([self._root(options.ascii_only)], ascii_only=options.ascii_only)

    def _root(self, ascii_only: bool) -> Node:
        view, standing = self.view, self.view.standing
        detail = Text.assemble(step_of(view), (standing.rollout, QUIET))
        if standing.paused:
            detail.append("  paused", MOVING)
        behind = Node(Text("spec", QUIET), MOVING, "", Text("the operator has not processed the newest spec yet"))
        rows = [behind] if view.behind else []
        rows += [_revision(side, view) for side in view.sides()]
        if view.record is not None:
            rows += _gates(view.record, standing.skipped, wide=self.wide, ascii_only=ascii_only)
        rows += _state(view, self.preview)
        if view.record is not None and view.record.decisions:
            rows.append(_decisions(view, wide=self.wide))
        return Node(Text(view.model, "bold"), COLOURS[standing.phase], standing.phase.label, detail, rows)


def step_of(view: RolloutView) -> str:
    """Return the current step and the number of steps, with trailing space; empty if there is no current step."""
    if view.standing.phase is not Phase.PROGRESSING:
        return ""
    steps = f" of {len(view.record.policy.steps)}" if view.record is not None else ""
    return f"step {view.standing.step + 1}{steps}  "


def _revision(side: Side, view: RolloutView) -> Node:
    colour = GOOD if side.role == "stable" else QUIET if side.role == "previous" else COLOURS[view.standing.phase]
    detail = Text(f"{side.weight:>3} %", "" if side.weight else QUIET)
    detail.append(f"  {side.requests:>9,} requests")
    if side.requests:
        allowed = view.record.slo.error_percent if view.record is not None else 0.0
        broken = (side.error_percent or 0.0) > allowed
        detail.append(f"  {_number(side.error_percent):>5} % errors", BAD if broken else "")
        for name, share in (("p50", 0.5), ("p95", 0.95)):
            detail.append(f"  {name} ", QUIET).append(f"{latency(side.quantile_ms(share)):>7}")
    return Node(Text(side.revision or "?"), colour, side.role, detail)


def _gates(record: Record, skipped: tuple[str, ...], *, wide: bool, ascii_only: bool) -> Iterator[Node]:
    verdicts = {verdict.gate: verdict for verdict in record.verdicts}
    rows = [_gate(each, skipped=each.gate in skipped, wide=wide, ascii_only=ascii_only) for each in verdicts.values()]
    rows += [Node(Text(gate), QUIET, "skipped", Text("")) for gate in skipped if gate not in verdicts]
    if rows:
        budget = Text(f"alpha {_number(100 * record.policy.alpha)} %", QUIET)
        yield Node(Text("gates"), QUIET, "", budget, rows)


def _gate(verdict: Verdict, *, skipped: bool, wide: bool, ascii_only: bool) -> Node:
    colour = QUIET if skipped else OUTCOMES[verdict.outcome]
    detail = Text.assemble((bar(verdict.progress, ascii_only=ascii_only), colour))
    detail.append(f" {100 * min(max(verdict.progress, 0.0), 1.0):>3.0f} %")
    message = verdict.message + (f"  ({figures(verdict.numbers)})" if wide and verdict.numbers else "")
    state = "skipped" if skipped else verdict.outcome.value
    return Node(Text(verdict.gate), colour, state, detail, cause=FailureReason(verdict.reason, message))


def bar(share: float, *, ascii_only: bool = False) -> str:
    """Return a share, clipped to 0..1, as a bar of `BAR` characters."""
    share = 0.0 if math.isnan(share) else min(max(share, 0.0), 1.0)
    if ascii_only:
        full = round(share * BAR)
        return _PLAIN_FULL * full + _PLAIN_EMPTY * (BAR - full)
    # A bar looks full only at 1 and empty only at 0.
    eighths = math.floor(share * BAR * 8) if share > 0 else 0
    full, rest = divmod(max(eighths, 1) if share > 0 else 0, 8)
    return (_FULL * full + (_PARTS[rest] if rest else "")).ljust(BAR, _EMPTY)


def _state(view: RolloutView, preview: str) -> Iterator[Node]:
    standing, record = view.standing, view.record
    if standing.reason:
        name = "because" if standing.phase in ENDED or standing.phase in _LOST else "waits for"
        colour = COLOURS[standing.phase]
        yield Node(Text(name), colour, "", Text(""), cause=FailureReason(standing.reason, standing.message))
    if standing.ended:
        took = span(standing.since_s - standing.started_s)
        yield Node(Text("took"), QUIET, "", Text(f"{took}, ended {span(view.now_s - standing.since_s)} ago"))
    elif record is not None:
        yield Node(Text("time left"), QUIET, "", Text(_time_left(view, record)))
    if standing.quarantines and record is not None:
        most = record.policy.max_quarantines
        colour = BAD if standing.quarantines > most else MOVING
        yield Node(Text("quarantines"), colour, "", Text(f"{standing.quarantines} of {most}"))
    if preview:
        yield Node(Text("power"), QUIET, "", Text(preview))


def _time_left(view: RolloutView, record: Record) -> str:
    standing, policy = view.standing, record.policy
    if standing.phase is Phase.BAKING:
        left = standing.since_s + policy.bake_time.total_seconds() - view.now_s
        return f"{span(left)} of {span(policy.bake_time.total_seconds())} of bake time"
    if standing.paused:
        return f"paused; {span(policy.deadline.total_seconds())} to the deadline after resume"
    left = standing.undecided_since_s + policy.deadline.total_seconds() - view.now_s
    if left <= 0:
        return f"none: undecided for {span(policy.deadline.total_seconds())}, so: {policy.on_undecided}"
    return f"{span(left)} to the deadline, then: {policy.on_undecided}"


def _decisions(view: RolloutView, *, wide: bool) -> Node:
    assert view.record is not None
    newest = view.record.decisions[::-1]
    shown = newest if wide else newest[:DECISIONS]
    rows = [_decision(each, view.now_s) for each in shown]
    more = f"{len(newest) - len(shown)} earlier ones; -o wide shows all" if len(newest) > len(shown) else ""
    return Node(Text("decisions"), QUIET, "", Text(more, QUIET), rows)


def _decision(decision: Decision, now_s: float) -> Node:
    detail = Text.assemble(f"{decision.weight:>3} %", (f"  {decision.actor}" if decision.actor else "", QUIET))
    when = Text(f"{span(now_s - decision.at_s)} ago", QUIET)
    cause = FailureReason(decision.reason or decision.signal, decision.message)
    return Node(when, COLOURS[decision.phase], decision.phase.label, detail, cause=cause)


def span(seconds: float) -> str:
    """Return a duration with its two largest units: `45s`, `12m30s`, `5h2m`, `3d4h`."""
    rest = round(max(seconds, 0.0))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        amount, rest = divmod(rest, size)
        if amount or parts:
            parts.append(f"{amount}{unit}" if amount else "")
    return "".join(parts[:2]) or "0s"


def latency(milliseconds: float | None) -> str:
    """Return a latency with two digits: `23 ms`, `1.2 s`; `hung` if infinite."""
    if milliseconds is None:
        return "-"
    if math.isinf(milliseconds):
        return "hung"
    rounded = float(f"{milliseconds:.2g}")
    return f"{rounded:g} ms" if rounded < 1000 else f"{rounded / 1000:g} s"


def figures(numbers: Mapping[str, float]) -> str:
    """Return the numbers of a verdict in one line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}" if value < 1 else f"{value:.3g}"
