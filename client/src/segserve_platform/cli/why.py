"""`segserve why`: what changed about a model."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Final

import typer
from rich.console import Console

from segserve_platform.cli.errors import plain
from segserve_platform.cli.options import (
    PlatformOptions,
    ReportOutput,
    model_names,
    seconds,
    selected_platform,
    with_platform_options,
)
from segserve_platform.platforms.errors import ControlError
from segserve_platform.platforms.history import HistoryEntry, LoggedRequest, history, read_requests
from segserve_platform.platforms.port import Json, Platform
from segserve_platform.platforms.present import Present
from segserve_platform.platforms.waiting import readiness

NO_LOG: Final = (
    "the gateway logs no requests, so failed ones are not listed: `segserve up --access-log errors`, or "
    "spec.gateway.accessLog of the pool, turns it on"
)
_KIND_WIDTH: Final = 8


@with_platform_options
def why(
    platform_options: PlatformOptions,
    name: Annotated[str, typer.Argument(help="Model name.", autocompletion=model_names)],
    since: Annotated[str, typer.Option(help="How far back, such as 30m or 4h; a plain number is in seconds.")] = "1h",
    output: ReportOutput = "text",
) -> None:
    """List what changed about a model: edits, revisions, rollouts, events, restarts, and requests that failed.

    Entries are in the order of time; those with ! are problems. Failed requests come from the gateway's access log.
    """
    platform, since_s = selected_platform(platform_options), time.time() - seconds(since)
    model = platform.model(name)
    notes: list[str] = []
    try:
        events = platform.events(name)
    except ControlError as error:
        notes.append(f"events cannot be read: {error}")
        events = []
    entries = history(model, platform.rollouts(), events, _logged(platform, since_s, notes), since_s)
    status, readable = model.get("status") or {}, readiness(model)
    slo = f", SLO {status['slo']}" if status.get("slo") else ""
    stopped = "" if platform.runs() else "no platform runs; at its end "
    state = f"{stopped}{Present.of(model).text}{slo}: {readable.problem or readable.text or 'ready'}"
    if output == "json":
        listed = [_as_json(entry) for entry in entries]
        typer.echo(json.dumps({"model": name, "since": _iso(since_s), "now": state, "entries": listed, "notes": notes}))
        return
    zone = datetime.now().astimezone().strftime("%Z")
    _say(f"{name}: what changed from {_clock(since_s)} to {_clock(time.time())} {zone}")
    _say(f"  now       {state}", indent=12)
    for entry in entries:
        mark = "!" if entry.warning else " "
        until = "" if entry.until_s is None or entry.until_s - entry.at_s < 1 else f", until {_clock(entry.until_s)}"
        _say(f"{mark} {_clock(entry.at_s)}  {entry.kind:<{_KIND_WIDTH}}  {entry.text}{until}", indent=22)
    if not entries:
        _say("  nothing changed in that time; --since 24h looks further back")
    for note in notes:
        _say(f"note: {note}", indent=6)


def _logged(platform: Platform, since_s: float, notes: list[str]) -> Iterator[LoggedRequest]:
    """Yield the requests of the access log one by one: the lines of a busy hour do not fit into memory."""
    try:
        lines = platform.access_log(since_s)
        if lines is None:
            notes.append(NO_LOG)
        yield from read_requests(lines or ())
    except ControlError as error:
        notes.append(f"the access log cannot be read: {error}")


def _as_json(entry: HistoryEntry) -> Json:
    until = {} if entry.until_s is None else {"until": _iso(entry.until_s)}
    return {"at": _iso(entry.at_s), **until, "kind": entry.kind, "warning": entry.warning, "text": entry.text}


def _iso(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds")


def _clock(at_s: float) -> str:
    at = datetime.fromtimestamp(at_s).astimezone()
    return f"{at:%H:%M:%S}" if time.time() - at_s < 12 * 3600 else f"{at:%m-%d %H:%M:%S}"


def _say(text: str, indent: int = 0) -> None:
    """Print a line, on a terminal wrapped below its text; log and events are written by others."""
    shown = plain(" ".join(text.splitlines()))
    if sys.stdout.isatty():
        width = max(Console().width, indent + 20)
        shown = "\n".join(textwrap.wrap(shown, width, subsequent_indent=" " * indent, break_on_hyphens=False))
    typer.echo(shown)
