"""`segserve rollout status`: a rollout as a tree, also live."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any, Final

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from segserve_platform.cli.rollout.render import RolloutTree
from segserve_platform.cli.terminal import print_whole
from segserve_platform.platforms.port import Platform
from segserve_platform.platforms.rollouts.documents import forecast_of
from segserve_platform.platforms.rollouts.rollout_view import RolloutView, no_rollout, read_rollout, watch_rollout

WATCH_S: Final = 1.0
"""Interval of a watch. Requests are counted every second and recorded every ten, so that more shows nothing new."""


def current(platform: Platform, name: str) -> RolloutView:
    """Return a model's rollout; raises `NotFoundError` if it has no rollout."""
    model = platform.model(name)
    view = read_rollout(platform, model)
    if view is None:
        raise no_rollout(model)
    return view


def picture(view: RolloutView | None, name: str, *, wide: bool, height: int | None = None) -> RolloutTree | Text:
    """Return what a terminal, of `height` lines if it does not scroll, shows of a rollout, or that one may come."""
    if view is None:
        return Text(f"{name}: no rollout yet; the operator has not processed the newest spec")
    return RolloutTree(view, forecast_of(view), wide, height)


def follow(console: Console, platform: Platform, name: str, *, wide: bool) -> RolloutView:
    """Show a rollout until it ends, and return it; without a terminal, print each change."""
    last: tuple[Any, ...] = ()
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    with live or nullcontext():
        for view in watch_rollout(platform, name):
            if live is not None:
                live.update(picture(view, name, wide=wide, height=console.height), refresh=True)
            elif _move(view) != last:
                last = _move(view)
                print_whole(console, picture(view, name, wide=wide))
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
    return at.rollout, at.phase, at.step, view.present, at.paused, at.reason, at.skipped, view.behind, outcomes
