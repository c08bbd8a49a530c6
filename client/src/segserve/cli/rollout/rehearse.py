"""`segserve rollout rehearse`: a rollout on a throwaway platform of this machine, with recorded requests."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from segserve.cli import lifecycle
from segserve.cli.errors import CommandError, needs
from segserve.cli.options import (
    PlatformOptions,
    ReportFormat,
    is_local,
    seconds,
    selected_platform,
    with_platform_options,
)
from segserve.cli.resources import check_local_files
from segserve.cli.terminal import print_whole, spinner
from segserve.cli.trees import QUIET
from segserve.platforms.errors import NotFoundError, NotServingError
from segserve.platforms.local import LocalPlatform
from segserve.platforms.manifests import check_kinds, read_files
from segserve.platforms.port import Local, ParsedResource
from segserve.platforms.waiting import readiness, wait_serving

if TYPE_CHECKING:
    from segserve.cli.rollout.traffic import RecordedCallers, Recording
    from segserve.platforms.rollouts.rehearsal import CallerTraffic, Rehearsal, RehearsalReport
    from segserve.platforms.rollouts.rollout_view import RolloutView

START_S: Final = 180
RECORDED_S: Final = 5.0
"""A model's status is written first: how long its record may take to have the last decision, too."""


@with_platform_options
def rehearse(
    platform_options: PlatformOptions,
    file: Annotated[Path, typer.Option("--filename", "-f", help="Resource file with the new version of the model.")],
    traffic: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Folder of images, which are sent in the order of their names, again and again; or with a "
            "requests.jsonl: lines such as {\"at_s\": 0.5, \"image\": \"photo.png\"}, sent at these times.",
        ),
    ],
    stable: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Resource file with the stable version. Default: what the platform serves."),
    ] = None,
    rate: Annotated[
        float, typer.Option(min=0.001, help="Requests per second, if there is no requests.jsonl; before --speed.")
    ] = 10.0,
    speed: Annotated[
        float,
        typer.Option(
            min=1.0, max=1000.0,
            help="Let the clock of all decisions, and with it the requests, run as many times faster. The load is as "
            "many times higher; latencies are real.",
        ),
    ] = 10.0,
    lead: Annotated[
        str, typer.Option(help="How long the stable version alone is asked first; not divided by --speed.")
    ] = "10s",
    timeout: Annotated[
        str, typer.Option(help="End undecided after this time on the clock, such as 30m.")
    ] = "1h",
    port: Annotated[int | None, typer.Option(help="Gateway port. Default: a free one.", show_default=False)] = None,
    output: Annotated[ReportFormat, typer.Option("--output", "-o", help="Output format.")] = ReportFormat.TEXT,
) -> None:  # fmt: skip
    """Rehearse a rollout on this machine with recorded requests: would it be promoted, and who would be harmed?

    Starts a platform of its own with the stable version, sends the requests, applies the new version and follows its
    rollout to the end; then all of it is removed. The platform that serves is at most read. Exit code 0 if the new
    version would be promoted, 3 if rolled back, 4 if neither.
    """
    with needs("local"):
        from segserve.cli.rollout.traffic import read_recording
        from segserve.platforms.rollouts.rehearsal import rehearsal_of, report

    lead_s, timeout_s = seconds(lead), seconds(timeout)
    if port is not None and port not in lifecycle.PORTS:
        raise CommandError(f"--port must be within 1..65535, got {port}")
    new = _read(file)
    rehearsal = rehearsal_of(new, _stable(new, stable, platform_options), speed)
    check_local_files((*rehearsal.pools, rehearsal.stable, rehearsal.candidate))
    recording = read_recording(traffic, rate)
    view, callers = _perform(rehearsal, recording, speed=speed, lead_s=lead_s, timeout_s=timeout_s, port=port)
    shown = report(view, callers, rehearsal.slo, speed)
    if output is ReportFormat.JSON:
        typer.echo(json.dumps(shown.to_dict(), indent=2))
    else:
        print_whole(Console(), _picture(shown))
    raise typer.Exit(shown.exit_code)


def _read(file: Path) -> list[ParsedResource]:
    resources = read_files([file])
    check_kinds(resources)
    return resources


def _stable(new: list[ParsedResource], file: Path | None, platform_options: PlatformOptions) -> list[ParsedResource]:
    """Return the stable version: that of a file, or the one that the selected platform serves."""
    from segserve.platforms.rollouts.rehearsal import only_model, stable_of

    if file is not None:
        return _read(file)
    name = only_model(new).resource.metadata.name
    platform = selected_platform(platform_options)
    try:
        manifest = platform.model(name)
    except NotFoundError as error:
        raise CommandError(f"{error}; give the stable version with --stable FILE") from error
    return [stable_of(manifest, "this machine's platform" if is_local(platform_options) else "the cluster")]


def _perform(
    rehearsal: Rehearsal, recording: Recording, *, speed: float, lead_s: float, timeout_s: float, port: int | None
) -> tuple[RolloutView, CallerTraffic]:
    """Return the rollout at its end and what callers had of it, from a platform that is gone then."""
    from segserve.cli.rollout.traffic import RecordedCallers, gateway_client
    from segserve_operator.adapters.local.files import StateFolder
    from segserve_operator.adapters.local.gateway import check_port
    from segserve_operator.adapters.local.triton import free_port
    from segserve_operator.local_platform.supervisor import end

    name = rehearsal.model
    # In the usual place of temporary files: the path of Envoy's admin socket must be short.
    with tempfile.TemporaryDirectory(prefix="segserve-rehearsal-") as root, lifecycle.ends_on_signals():
        state = StateFolder(Path(root).resolve())
        try:
            platform, gateway_port = LocalPlatform(Local(state.root)), port or free_port()
            check_port(state, gateway_port)
            platform.apply([*rehearsal.pools, rehearsal.stable])
            platform.store.set_gateway_port(gateway_port)
            lifecycle.install_runtime()
            with _progress() as say:
                say(f"starting a platform that serves the stable {name}")
                lifecycle.launch(state, speed)
                wait_serving(platform, name, time.monotonic() + START_S, f"{START_S} s")
                with platform.gateway(name) as url:
                    assert url is not None, "it serves"
                    client = gateway_client(url, platform.ca_file())
                    with RecordedCallers(client, name, recording, speed) as callers:
                        say(f"the stable version alone is asked for {lead_s:g} s")
                        time.sleep(lead_s)
                        platform.apply([rehearsal.candidate])
                        view = _followed(platform, name, callers, time.monotonic() + timeout_s, say)
            return view, callers.traffic
        finally:
            end(state)


def _followed(
    platform: LocalPlatform, name: str, callers: RecordedCallers, deadline_s: float, say: Callable[[str], None]
) -> RolloutView:
    """Return the rollout once it has ended, waits for a person, or `deadline_s` (monotonic) has passed.

    Raises `NotServingError` if none can begin.
    """
    from segserve.platforms.rollouts.rehearsal import is_held
    from segserve.platforms.rollouts.rollout_view import watch_rollout

    for view in watch_rollout(platform, name):
        callers.check()
        late = time.monotonic() > deadline_s
        if view is not None:
            standing, record = view.standing, view.record
            say(f"{standing.phase.label} at {standing.weight} %")
            if late:
                return view
            if view.over or is_held(standing):
                if record is not None and record.sequence >= standing.sequence:
                    return view
                deadline_s = min(deadline_s, time.monotonic() + RECORDED_S)
        elif late or (state := readiness(platform.model(name))).failed:
            text = "its rollout has not begun within --timeout" if late else state.text
            raise NotServingError(f"{name}: {text}", model=name)
    raise AssertionError("watch_rollout has no end")


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Say what goes on: with a spinner on terminals, else as lines on stderr, each once."""
    last = ""

    def show(text: str) -> None:
        nonlocal last
        if text != last and not sys.stderr.isatty():
            typer.echo(text, err=True)
        elif text != last:
            say(text)
        last = text

    with spinner("") as say:
        yield show


def _picture(report: RehearsalReport) -> Group:
    from segserve.platforms.rollouts.words import latency, span

    callers = _table("callers", "requests", "failed", "refused", "slow", "p50", "p95", revision="left")
    for side in report.sides:
        counts = (f"{count:,}" for count in (side.requests, side.failed, side.refused, side.slow))
        callers.add_row(side.role, *counts, latency(side.p50_ms), latency(side.p95_ms), side.revision or "?")
    decisions = _table("after", phase="left", weight="right", because="left")
    for moment in report.moments:
        decisions.add_row(span(moment.after_s), moment.phase.label, f"{moment.weight} %", moment.message)
    gates = _table("gate", state="left", finding="left")
    for gate in report.gates:
        gates.add_row(gate.gate, gate.state, gate.text)
    rate = f"{report.requests_per_second:g} requests/s as recorded, sent {report.speed:g} times as fast"
    parts: list[RenderableType] = [
        Text(report.headline(), "bold"),
        Text(),
        callers,
        Text(),
        decisions,
        Text(),
        gates,
        Text(),
        Text(rate),
    ]
    return Group(*parts, *(Text(f"warning: {warning}") for warning in report.warnings))


def _table(first: str, *numbers: str, **texts: Literal["left", "right"]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=QUIET)
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for name, justify in texts.items():
        table.add_column(name, justify=justify)
    return table
