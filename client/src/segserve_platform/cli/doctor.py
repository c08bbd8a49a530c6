"""`segserve doctor`: checks of the platform's requirements, each with the command that fixes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from segserve_platform.cli.options import PlatformOptions, selected_platform, with_platform_options
from segserve_platform.platforms.port import DoctorCheck

if TYPE_CHECKING:
    from rich.console import Console


@with_platform_options
def doctor(
    platform_options: PlatformOptions,
    output: Annotated[
        Literal["table", "json", "yaml"], typer.Option("--output", "-o", help="Output format.")
    ] = "table",
) -> None:
    """Check what the platform needs on this machine, or on a cluster.

    Exit code 1 if a check fails; `fix` shows the command that fixes it.
    """
    checks = list(_checked(platform_options, live=output == "table"))
    if output != "table":
        document = [asdict(check) for check in checks]
        if output == "json":
            typer.echo(json.dumps(document, indent=2))
        else:
            import yaml

            typer.echo(yaml.safe_dump(document, sort_keys=False), nl=False)
    if not all(check.good for check in checks):
        raise typer.Exit(1)


def _checked(platform_options: PlatformOptions, *, live: bool) -> Iterator[DoctorCheck]:
    """Yield all checks, printing each at once if `live`."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    for check in selected_platform(platform_options).checks():
        if live:
            _show(console, check)
        yield check


def _show(console: Console, check: DoctorCheck) -> None:
    from rich.markup import escape

    sign = "[green]ok [/]" if check.good else "[red]bad[/]"
    console.print(f"{sign} {escape(check.what)}: {escape(check.seen)}")
    if check.good:
        return
    console.print(f"    {escape(check.advice)}")
    if check.fix:
        console.print(f"    fix: [bold]{escape(check.fix)}[/]")
