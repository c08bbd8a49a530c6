"""`segserve doctor`: what is missing, and the command that mends it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from segserve.cli.environment import checks as own_checks
from segserve.cli.platform_options import Where, is_local, platform, somewhere
from segserve.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console

    from segserve.platforms.port import DoctorCheck


@somewhere
def doctor(
    where: Where,
    output: Annotated[Literal["table", "json", "yaml"], typer.Option("--output", "-o", help="How to print.")] = "table",
) -> None:
    """Check what the platform needs (this machine, or a cluster and your rights there), and how to mend it.

    Exit code 1 where something is missing; a command that mends it is behind `fix`.
    """
    found = list(_checked(where, live=output == "table"))
    if output != "table":
        document = [asdict(check) for check in found]
        if output == "json":
            typer.echo(json.dumps(document, indent=2))
        else:
            import yaml

            typer.echo(yaml.safe_dump(document, sort_keys=False), nl=False)
    if not all(check.good for check in found):
        raise typer.Exit(1)


def _checked(where: Where, *, live: bool) -> Iterator[DoctorCheck]:
    """Yield all checks, shown as they come where a person waits for them."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    for check in _checks(where):
        if live:
            _show(console, check)
        yield check


def _checks(where: Where) -> Iterable[DoctorCheck]:
    yield from own_checks("local" if is_local(where) else "cluster")
    try:
        yield from platform(where).checks()
    except MissingExtraError:
        return  # the check of packages has said so


def _show(console: Console, check: DoctorCheck) -> None:
    from rich.markup import escape

    sign = "[green]ok [/]" if check.good else "[red]bad[/]"
    console.print(f"{sign} {escape(check.what)}: {escape(check.seen)}")
    if check.good:
        return
    console.print(f"    {escape(check.advice)}")
    if check.fix:
        console.print(f"    fix: [bold]{escape(check.fix)}[/]")
