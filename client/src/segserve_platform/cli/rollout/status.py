"""`segserve rollout status`: a rollout as a tree, live, or as JSON."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from segserve_operator.core.gates.base import Verdict
from segserve_operator.core.rollout.forecast import Forecast, forecast
from segserve_operator.core.rollout.record import Decision, Record
from segserve_platform.cli.rollout.power import Outlook
from segserve_platform.cli.rollout.render import RolloutTree
from segserve_platform.cli.terminal import print_whole
from segserve_platform.platforms.port import Json, Platform
from segserve_platform.platforms.rollouts.rollout_view import RolloutView, Side, no_rollout, read_rollout, watch_rollout

WATCH_S: Final = 1.0
"""Interval of a watch. Requests are counted every second and recorded every ten, so that more shows nothing new."""


def current(platform: Platform, name: str) -> RolloutView:
    """Return a model's rollout; raises `NotFoundError` if it has none."""
    model = platform.model(name)
    view = read_rollout(platform, model)
    if view is None:
        raise no_rollout(model)
    return view


@dataclass(slots=True)
class Forecasts:
    """The forecast of a rollout's latest record. Working one out takes about a tenth of a second."""

    _key: tuple[Any, ...] = ()
    _last: Forecast | None = None

    def of(self, view: RolloutView) -> Forecast | None:
        """Return the forecast; None without a record, or after the end."""
        record, standing = view.record, view.standing
        if record is None or standing.ended:
            return None
        key = (record.name, record.sequence, record.rows[-1:], standing.skipped, record.verdicts)
        if key != self._key:
            self._key, self._last = key, forecast(record, standing.skipped, view.now_s)
        return self._last


def picture(
    view: RolloutView | None, name: str, outlook: Outlook, forecasts: Forecasts, *, wide: bool, wait: bool = False
) -> RolloutTree | Text:
    """Return what a terminal shows of a rollout, or that one may come; `wait` for what `outlook` works out."""
    if view is None:
        return Text(f"{name}: no rollout yet; the operator has not processed the newest spec")
    previewed = wide and view.record is not None and not view.standing.ended and not view.promoted
    preview = outlook.line(view.record, wait=wait) if previewed and view.record is not None else ""
    return RolloutTree(view, forecasts.of(view), wide, preview)


def once(view: RolloutView, *, wide: bool) -> RolloutTree | Text:
    """Return the view of a rollout at one moment; `wide` includes its `Outlook`."""
    return picture(view, view.model, Outlook(), Forecasts(), wide=wide, wait=True)


def follow(console: Console, platform: Platform, name: str, *, wide: bool) -> RolloutView:
    """Show a rollout until it ends, and return it; without a terminal, print each change."""
    shown = _redrawn if console.is_terminal else _printed
    return shown(console, watch_rollout(platform, name), name, wide=wide)


def _redrawn(console: Console, views: Iterator[RolloutView | None], name: str, *, wide: bool) -> RolloutView:
    outlook, forecasts = Outlook(), Forecasts()
    with Live(console=console, auto_refresh=False) as live:
        for view in views:
            live.update(picture(view, name, outlook, forecasts, wide=wide), refresh=True)
            if view is not None and view.over:
                return view
            time.sleep(WATCH_S)
    raise AssertionError("watch_rollout have no end")


def _printed(console: Console, views: Iterator[RolloutView | None], name: str, *, wide: bool) -> RolloutView:
    last: tuple[Any, ...] = ()
    outlook, forecasts = Outlook(), Forecasts()
    for view in views:
        if _move(view) != last:
            print_whole(console, picture(view, name, outlook, forecasts, wide=wide))
            if view is None or not view.over:
                typer.echo()
            last = _move(view)
        if view is not None and view.over:
            return view
        time.sleep(WATCH_S)
    raise AssertionError("watch_rollout have no end")


def _move(view: RolloutView | None) -> tuple[Any, ...]:
    """Return what makes a frame worth printing in a log: not the clock, not every request."""
    if view is None:
        return (None,)
    at, verdicts = view.standing, view.record.verdicts if view.record is not None else ()
    outcomes = tuple((verdict.gate, verdict.outcome) for verdict in verdicts)
    return at.rollout, at.phase, at.step, at.weight, at.paused, at.reason, at.skipped, view.behind, outcomes


def document(view: RolloutView) -> Json:
    """Return a rollout as JSON: camelCase, times in RFC 3339, unknown values left out."""
    at, record = view.standing, view.record
    content: Json = {
        "rollout": at.rollout,
        "model": view.model,
        "phase": at.phase.label,
        "ended": at.ended,
        "step": at.step + 1,
        "weight": at.weight,
        "paused": at.paused,
        "quarantines": at.quarantines,
        "reason": at.reason,
        "message": at.message,
        "startedAt": stamp(at.started_s),
        "since": stamp(at.since_s),
        "skippedGates": list(at.skipped),
        "behindTheSpec": view.behind,
        "revisions": [_side(side) for side in view.sides()],
    }
    return content if record is None else content | _recorded(record, at.undecided_since_s)


def _recorded(record: Record, undecided_since_s: float) -> Json:
    return {
        "steps": len(record.policy.steps),
        "deadlineAt": stamp(undecided_since_s + record.policy.longest.total_seconds()),
        "gates": [_verdict(verdict) for verdict in record.verdicts],
        "decisions": [decision_document(decision) for decision in record.decisions],
    }


def _side(side: Side) -> Json:
    numbers = {
        "errorPercent": side.error_percent,
        "p50Milliseconds": side.quantile_ms(0.5),
        "p95Milliseconds": side.quantile_ms(0.95),
    }
    counted = {"weight": side.weight, "requests": side.requests, "errors": side.errors}
    return {"role": side.role, "revision": side.revision, **counted, **finite(numbers)}


def _verdict(verdict: Verdict) -> Json:
    content = {"gate": verdict.gate, "outcome": verdict.outcome.value}
    content |= {"reason": verdict.reason, "message": verdict.message}
    return {**content, **finite({"progress": verdict.progress}), "numbers": finite(verdict.numbers)}


def decision_document(decision: Decision) -> Json:
    """Return a decision as JSON, without its evidence."""
    return {
        "sequence": decision.sequence,
        "at": stamp(decision.at_s),
        "signal": decision.signal,
        "phase": decision.phase.label,
        "weight": decision.weight,
        "actor": decision.actor,
        "reason": decision.reason,
        "message": decision.message,
    }


def finite(numbers: Mapping[str, float | None]) -> dict[str, float]:
    """Return the finite numbers, which JSON can hold."""
    return {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}


def stamp(time_s: float) -> str:
    """Return a time in RFC 3339."""
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
