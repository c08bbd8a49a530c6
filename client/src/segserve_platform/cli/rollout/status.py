"""`segserve rollout status`: a rollout as a tree, also live."""

from __future__ import annotations

import math
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from segserve_operator.core.rollout.power import Preview, preview
from segserve_operator.core.rollout.record import Record
from segserve_platform.cli.rollout.render import RolloutTree
from segserve_platform.cli.terminal import print_whole
from segserve_platform.platforms.port import Platform
from segserve_platform.platforms.rollouts.documents import Forecasts
from segserve_platform.platforms.rollouts.rollout_view import RolloutView, no_rollout, read_rollout, watch_rollout
from segserve_platform.platforms.rollouts.words import span

WATCH_S: Final = 1.0
"""Interval of a watch. Requests are counted every second and recorded every ten, so that more shows nothing new."""
MINUTES: Final = 10.0
LEAST_RATE: Final = 0.01


@dataclass(slots=True)
class Outlook:
    """One line with the regressions that a rollout can detect in ten minutes at the current request rate.

    Computing it takes a second, so a live view polls and continues meanwhile.
    """

    _lines: dict[tuple[str, float], str] = field(default_factory=dict)
    _last: str = ""

    def line(self, record: Record, *, wait: bool = False) -> str:
        """Return the line, or the last known one; empty without requests, or until the first one is computed."""
        # One digit: small changes of the rate do not matter.
        rate = float(f"{float(record.progress.rate):.1g}")
        if rate < LEAST_RATE:
            return ""
        key = record.name, rate
        if key not in self._lines:
            self._lines[key] = ""
            worker = threading.Thread(target=self._work_out, args=(key, record), daemon=True)
            worker.start()
            worker.join(None if wait else 0.0)
        self._last = self._lines[key] or self._last
        return self._last

    def _work_out(self, key: tuple[str, float], record: Record) -> None:
        self._lines[key] = brief(preview(record.policy, record.slo, key[1], MINUTES))


def brief(summary: Preview) -> str:
    """Return the smallest detectable regression of each kind, and how soon it is detected."""
    parts = []
    for what in dict.fromkeys(row.what for row in summary.rows):
        rows = [row for row in summary.rows if row.what == what]
        detectable = [row for row in rows if math.isfinite(row.seconds)]
        if detectable:
            parts.append(f"{what} {detectable[0].size} in {span(detectable[0].seconds)}")
        else:
            parts.append(f"no {what} up to {rows[-1].size}")
    return f"{summary.minutes:g} min at {summary.requests_per_second:g} requests/s detect {', '.join(parts)}"


def current(platform: Platform, name: str) -> RolloutView:
    """Return a model's rollout; raises `NotFoundError` if it has none."""
    model = platform.model(name)
    view = read_rollout(platform, model)
    if view is None:
        raise no_rollout(model)
    return view


def picture(
    view: RolloutView | None, name: str, outlook: Outlook, forecasts: Forecasts, *, wide: bool, wait: bool = False
) -> RolloutTree | Text:
    """Return what a terminal shows of a rollout, or that one may come; `wait` for what `outlook` works out."""
    if view is None:
        return Text(f"{name}: no rollout yet; the operator has not processed the newest spec")
    previewed = wide and view.record is not None and not view.standing.ended and not view.promoted
    line = outlook.line(view.record, wait=wait) if previewed and view.record is not None else ""
    return RolloutTree(view, forecasts.of(view), wide, line)


def once(view: RolloutView, *, wide: bool) -> RolloutTree | Text:
    """Return the view of a rollout at one moment; `wide` includes its `Outlook`."""
    return picture(view, view.model, Outlook(), Forecasts(), wide=wide, wait=True)


def follow(console: Console, platform: Platform, name: str, *, wide: bool) -> RolloutView:
    """Show a rollout until it ends, and return it; without a terminal, print each change."""
    outlook, forecasts = Outlook(), Forecasts()
    last: tuple[Any, ...] = ()
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    with live or nullcontext():
        for view in watch_rollout(platform, name):
            if live is not None:
                live.update(picture(view, name, outlook, forecasts, wide=wide), refresh=True)
            elif _move(view) != last:
                last = _move(view)
                print_whole(console, picture(view, name, outlook, forecasts, wide=wide))
                if view is None or not view.over:
                    typer.echo()
            if view is not None and view.over:
                return view
            time.sleep(WATCH_S)
    raise AssertionError("watch_rollout has no end")


def _move(view: RolloutView | None) -> tuple[Any, ...]:
    """Return what makes a frame worth printing in a log: not the clock, not every request."""
    if view is None:
        return (None,)
    at, verdicts = view.standing, view.record.verdicts if view.record is not None else ()
    outcomes = tuple((verdict.gate, verdict.outcome) for verdict in verdicts)
    return at.rollout, at.phase, at.step, at.weight, at.paused, at.reason, at.skipped, view.behind, outcomes
