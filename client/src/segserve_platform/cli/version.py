"""`segserve version`: the versions here and on the platform."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from typing import TYPE_CHECKING, Annotated

import typer

from segserve.errors import MissingExtraError
from segserve_platform.cli.options import PlatformOptions, ReportOutput, selected_platform, with_platform_options

if TYPE_CHECKING:
    from segserve_platform.platforms.port import PlatformVersion


@with_platform_options
def version(
    platform_options: PlatformOptions,
    client_only: Annotated[bool, typer.Option("--client", help="Only the version of this command line.")] = False,
    output: ReportOutput = "text",
) -> None:
    """Print the versions of segserve here and on the platform. Succeeds even if no platform is up."""
    here = {"version": metadata.version("segserve"), "python": platform.python_version()}
    # The client's line comes first: a cluster that does not answer ends the command.
    if output == "text":
        typer.echo(f"client: segserve {here['version']} (Python {here['python']})")
    up, why = (None, "") if client_only else _platform(platform_options)
    if output == "json":
        there = None if up is None else {"place": up.place, "url": up.url, "version": up.version or None}
        typer.echo(json.dumps({"client": here} if client_only else {"client": here, "platform": there}, indent=2))
    elif up is not None:
        typer.echo(f"platform: segserve {up.version or '(version unknown)'} at {up.url} ({up.place})")
    elif not client_only:
        typer.echo(f"platform: {why}")


def _platform(platform_options: PlatformOptions) -> tuple[PlatformVersion | None, str]:
    """Return the version of the platform, or None and the reason."""
    try:
        up = selected_platform(platform_options).version()
    except MissingExtraError as error:
        return None, str(error)
    return up, "none is up on this machine; start it with `segserve up`"
