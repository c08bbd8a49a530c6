"""The live view of a rollout: a sentence, both revisions as they are now, the steps, the gates and what it waits for.

Behind `-o wide` there are also the statistics: the evidence of each gate as a bar, and the numbers behind it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from segserve_operator.core.failure import FailureReason
from segserve_operator.core.gates.base import Outcome
from segserve_operator.core.rollout.engine import MAX_QUARANTINES
from segserve_operator.core.rollout.forecast import Forecast
from segserve_operator.core.rollout.phases import ENDED, Phase
from segserve_operator.core.rollout.record import Decision, Record
from segserve_operator.core.world.slo import BREACHED, MET
from segserve_platform.cli.trees import BAD, GOOD, MOVING, QUIET, Node, sign, tree
from segserve_platform.platforms.rollouts import words
from segserve_platform.platforms.rollouts.rollout_view import RolloutView, Side
from segserve_platform.platforms.rollouts.steps import StepWords, deadline, steps
from segserve_platform.platforms.rollouts.words import SEGSERVE, GateWords, latency, number, span

BAR: Final = 16
"""Length of a full bar in characters."""
_FULL, _EMPTY, _PLAIN_FULL, _PLAIN_EMPTY = "█", "░", "#", "."
_PARTS: Final = " ▏▎▍▌▋▊▉"
DECISIONS: Final = 4
LEVELS: Final = 4
COLOURS: Final = {
    Phase.PENDING: MOVING,
    Phase.GOLDEN: MOVING,
    Phase.SHADOW: MOVING,
    Phase.PROGRESSING: MOVING,
    Phase.QUARANTINED: BAD,
    Phase.BAKING: GOOD,
    Phase.SUCCEEDED: GOOD,
    Phase.ROLLED_BACK: BAD,
    Phase.CANCELLED: QUIET,
    Phase.JUDGED: QUIET,
}
OUTCOMES: Final = {Outcome.PASS: GOOD, Outcome.BREACH: BAD, Outcome.UNDECIDED: MOVING}
_LOST: Final = frozenset({Phase.QUARANTINED, Phase.ROLLED_BACK})


@dataclass(frozen=True, slots=True)
class RolloutTree:
    """A rollout for terminals; `outlook` is its forecast.

    In a terminal of `height` lines, first decisions, then other steps than the present one, then gates that pass are
    counted instead of shown.
    """

    view: RolloutView
    outlook: Forecast | None = None
    wide: bool = False
    height: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for level in range(LEVELS):
            shown = self._group(options.ascii_only, level)
            if self.height is None or len(console.render_lines(shown, options, pad=False)) <= self.height:
                break
        yield shown

    def _group(self, ascii_only: bool, level: int) -> Group:
        return Group(
            Text(words.headline(self.view, self.outlook), "bold" if self.view.over else ""),
            Text(),
            self._revisions(ascii_only),
            Text(),
            tree([self._root(ascii_only, level)], ascii_only=ascii_only),
        )

    def _revisions(self, ascii_only: bool) -> Table:
        """Return the revisions that have requests or are of the rollout, with figures if these are of the present."""
        view = self.view
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=QUIET)
        table.add_column("now")
        figures = ["requests/s", "errors", "p50", "p95", *(["judged"] if self.wide else [])]
        for name in ("weight", *(figures if view.is_live else [])):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("revision", overflow="fold")
        judged = {side.revision: side.requests for side in view.sides()}
        for side in view.present_sides():
            cells = [Text(f"{side.weight} %", "" if side.weight else QUIET)]
            if view.is_live:
                cells += _figures(side, view)
                cells += [Text(f"{judged.get(side.revision, 0):,}")] if self.wide else []
            colour = _side_colour(side, view)
            role = Text(f"{sign(colour, ascii_only=ascii_only)} {side.role}", colour)
            table.add_row(role, *cells, Text(side.revision))
        return table

    def _root(self, ascii_only: bool, level: int) -> Node:
        view, standing = self.view, self.view.standing
        detail = Text.assemble(step_of(view), (standing.rollout, QUIET))
        if standing.paused:
            detail.append("  paused", MOVING)
        behind = Node(Text("spec", QUIET), MOVING, "", Text("the operator has not processed the newest spec yet"))
        rows = [behind] if view.behind else []
        told = view.cannot_begin or (standing.reason and standing.reason in view.problem)
        if view.problem and not told:
            rows.append(Node(Text("problem"), BAD, "", Text(view.problem)))
        if view.record is not None:
            below = [_step(each, view) for each in steps(view, view.record, self.outlook)]
            rows.append(_counted("steps", Text(), below, ("done", "left out", "to come") if level > 1 else ()))
            rows += _slo(view)
            rows += self._gates(view.record, ascii_only, ("pass", "later", "skipped") if level > 2 else ())
        rows += self._state()
        if view.record is not None and view.record.decisions:
            rows.append(_decisions(view, wide=self.wide, shown=(DECISIONS, 1, 1, 0)[level]))
        name = "past rollout" if view.is_history else "rollout"
        return Node(Text(name, "bold"), COLOURS[standing.phase], standing.phase.label, detail, rows)

    def _gates(self, record: Record, ascii_only: bool, counted: Sequence[str]) -> Iterator[Node]:
        verdicts = {verdict.gate: verdict for verdict in record.verdicts}
        rows = []
        for gate in words.gates(self.view, self.outlook):
            verdict = verdicts.get(gate.gate)
            if self.wide and verdict is not None:
                skipped = gate.state == "skipped"
                colour = QUIET if skipped else OUTCOMES[verdict.outcome]
                detail = Text.assemble((bar(verdict.progress, ascii_only=ascii_only), colour))
                detail.append(f" {100 * min(max(verdict.progress, 0.0), 1.0):>3.0f} %")
                message = verdict.message + (f"  ({figures(verdict.numbers)})" if verdict.numbers else "")
                state = "skipped" if skipped else verdict.outcome.value
                rows.append(
                    Node(Text(verdict.gate), colour, state, detail, cause=FailureReason(verdict.reason, message))
                )
            else:
                rows.append(Node(Text(gate.gate), _gate_colour(gate), gate.state, Text(gate.text)))
        if rows:
            budget = Text(f"alpha {number(100 * record.policy.alpha)} %", QUIET) if self.wide else Text()
            yield _counted("gates", budget, rows, counted)

    def _state(self) -> Iterator[Node]:
        view, standing, record = self.view, self.view.standing, self.view.record
        lost = standing.phase in ENDED or standing.phase in _LOST
        if self.wide and standing.reason:
            cause = FailureReason(standing.reason, standing.message)
            yield Node(Text("because" if lost else "reason"), COLOURS[standing.phase], "", Text(), cause=cause)
        if not lost and (missing := words.awaited(view, self.outlook)):
            yield Node(Text("waits for"), MOVING, "", Text(missing))
        if standing.ended:
            took = span(standing.since_s - standing.started_s)
            yield Node(Text("took"), QUIET, "", Text(f"{took}, ended {span(view.now_s - standing.since_s)} ago"))
        elif record is not None:
            yield Node(Text("deadline"), QUIET, "", Text(deadline(view, record)))
        if standing.quarantines and record is not None:
            colour = BAD if standing.quarantines > MAX_QUARANTINES else MOVING
            yield Node(Text("quarantines"), colour, "", Text(f"{standing.quarantines} of {MAX_QUARANTINES}"))
        if requests := list(words.asked(view)):
            dated = (
                f"{text}{f' {span(view.now_s - at_s)} ago' if at_s is not None else ''}" for text, at_s in requests
            )
            yield Node(Text("asked by"), QUIET, "", Text("; ".join(dated)))
        if missing := words.uncounted(view):
            yield Node(Text("counted"), MOVING, "", Text(missing))


def step_of(view: RolloutView) -> str:
    """Return the current step and the number of steps, with trailing space; empty if there is no current step."""
    if view.standing.phase is not Phase.PROGRESSING:
        return ""
    steps = f" of {len(words.steps(view.record))}" if view.record is not None else ""
    return f"step {view.standing.step + 1}{steps}  "


def _side_colour(side: Side, view: RolloutView) -> str:
    return GOOD if side.role == "stable" else QUIET if side.role == "previous" else COLOURS[view.standing.phase]


def _figures(side: Side, view: RolloutView) -> list[Text]:
    """Return rate, errors and latencies of the present; `-` if nothing is counted."""
    rate = side.requests_per_second
    if rate is None or not side.requests:
        return [Text("-" if rate is None else "0", QUIET), *(Text("-", QUIET) for _ in range(3))]
    allowed = view.record.slo.error_percent if view.record is not None else 0.0
    errors = Text(f"{number(side.error_percent)} %", BAD if (side.error_percent or 0.0) > allowed else "")
    return [Text(number(rate)), errors, *(Text(latency(side.quantile_ms(share))) for share in (0.5, 0.95))]


def _step(step: StepWords, view: RolloutView) -> Node:
    stopped = COLOURS[view.standing.phase]
    colour = {"done": GOOD, "left out": GOOD, "now": MOVING, "stopped": stopped}.get(step.state, QUIET)
    return Node(Text(step.name), colour, step.state, Text(step.text))


def _slo(view: RolloutView) -> Iterator[Node]:
    if text := words.slo_words(view):
        colour = {MET: GOOD, BREACHED: BAD}.get(view.slo, QUIET)
        yield Node(Text("SLO"), colour, view.slo or "default", Text(text))


def _gate_colour(gate: GateWords) -> str:
    return QUIET if gate.outcome is None else OUTCOMES[gate.outcome]


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


def _counted(name: str, detail: Text, rows: Sequence[Node], states: Sequence[str]) -> Node:
    """Return a node with its rows; of those in `states` only the number."""
    numbers = ((state, sum(row.state == state for row in rows)) for state in states)
    text = ", ".join(f"{number} {state}" for state, number in numbers if number)
    return Node(Text(name), QUIET, "", detail + Text(text, QUIET), [row for row in rows if row.state not in states])


def _decisions(view: RolloutView, *, wide: bool, shown: int) -> Node:
    assert view.record is not None
    newest = view.record.decisions[::-1]
    rows = [_decision(each, view.now_s, wide=wide) for each in (newest if wide else newest[:shown])]
    more = f"{len(newest) - len(rows)} earlier ones; -o wide shows all" if len(newest) > len(rows) else ""
    return Node(Text("decisions"), QUIET, "", Text(more, QUIET), rows)


def _decision(decision: Decision, now_s: float, *, wide: bool) -> Node:
    when = Text(f"{span(now_s - decision.at_s)} ago", QUIET)
    reason = decision.reason or decision.signal
    if wide:
        detail = Text.assemble(f"{decision.weight:>3} %", (f"  {decision.actor}" if decision.actor else "", QUIET))
        return Node(
            when,
            COLOURS[decision.phase],
            decision.phase.label,
            detail,
            cause=FailureReason(reason, decision.message),
        )
    who = "" if decision.actor in ("", SEGSERVE) else f"  ({words.actor(decision.actor)})"
    detail = Text.assemble(f"{decision.weight:>3} %  {decision.message or reason}", (who, QUIET))
    return Node(when, COLOURS[decision.phase], decision.phase.label, detail)


def figures(numbers: Mapping[str, float]) -> str:
    """Return the numbers of a verdict in one line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
