"""`segserve logs`: the logs of the platform on this machine."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from segserve.platform import Local
from segserve_platform.cli.errors import plain
from segserve_platform.cli.options import ReportFormat, model_names
from segserve_platform.platforms.local import LocalPlatform, LogRequest
from segserve_platform.platforms.log_records import log_records


def logs(
    name: Annotated[
        str | None, typer.Argument(help="Only the servers of this model.", autocompletion=model_names)
    ] = None,
    container: Annotated[
        str | None, typer.Option("--container", "-c", help="Container: triton or agent. Default: all.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow the logs.")] = False,
    lines: Annotated[int, typer.Option("--tail", min=0, help="Initial lines of each log.")] = 50,
    output: Annotated[
        ReportFormat, typer.Option("--output", "-o", help="Output format; json is an object a line.")
    ] = "text",
) -> None:
    """Show the logs of this machine's gateway, servers and agents, each line with its origin."""
    shown = plain if sys.stdout.isatty() else str
    logged = LocalPlatform(Local()).logs(LogRequest(name, container, follow, lines))
    if output == "json":
        logged = map(json.dumps, log_records(logged))
    for line in logged:
        typer.echo(shown(line))
