"""apply, delete, get, describe, wait: resources of this machine's platform or of a cluster."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
import yaml
from rich.console import Console, RenderableType
from rich.live import Live
from rich.measure import Measurement

from segserve.cli.completion import model_names
from segserve.cli.failures import CommandError, needs
from segserve.cli.platform_options import Where, platform, somewhere
from segserve.cli.progress import models_table
from segserve.cli.views import description, pictures
from segserve.platforms.manifests import read_files
from segserve.platforms.port import MODEL, POOL
from segserve.platforms.waiting import Gone, wait_for, wait_serving

if TYPE_CHECKING:
    from collections.abc import Iterator

REFRESH_S: Final = 0.25
WIDEST: Final = 1000

Files = Annotated[
    list[Path], typer.Option("--filename", "-f", help="Resource file, - for standard input; may be given again.")
]
Name = Annotated[str, typer.Argument(help="The model's name.", autocompletion=model_names)]


class Format(StrEnum):
    """How `get` prints."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


@somewhere
def apply(
    where: Where,
    files: Files,
    force: Annotated[
        bool, typer.Option("--force-conflicts", help="On a cluster: take over fields that another tool has set.")
    ] = False,
) -> None:
    """Create or change models and pools; all of the files' or, where one is wrong, none.

    A relative address of an artifact is relative to its file on this machine; on a cluster to the pool's artifact base.
    """
    resources = read_files(files)
    for written, outcome in zip(resources, platform(where).apply(resources, force=force), strict=True):
        typer.echo(f"{written.title} {outcome}")


@somewhere
def delete(
    where: Where,
    names: Annotated[list[str] | None, typer.Argument(help="Models to delete.", autocompletion=model_names)] = None,
    files: Annotated[
        list[Path] | None, typer.Option("--filename", "-f", help="Or the files that they came from.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until nothing of them is left.")] = True,
    timeout: Annotated[str, typer.Option(help="How long to wait: 90s, 2m.")] = "60s",
) -> None:
    """Delete models: requests to them end first, then they are unloaded, and nothing of them stays."""
    here = platform(where)
    written = read_files(files or [])
    here.check_place(written)
    chosen = [(MODEL, name) for name in names or []]
    chosen += [(each.resource.kind, each.resource.metadata.name) for each in written]
    if not chosen:
        raise CommandError("name the models to delete, or give the file that they came from with -f")
    deadline_s = time.monotonic() + seconds(timeout)
    # Pools last: models without one have nothing to be served by.
    chosen = sorted(dict.fromkeys(chosen), key=lambda each: each[0] == POOL)
    going = []
    for kind, name in chosen:
        outcome = here.delete(kind, name)
        going += [(kind, name)] if outcome == "deleted" else []
        typer.echo(f"{kind.lower()}/{name} {outcome}")
    if wait and here.runs():
        for kind, name in going:
            wait_for(here, Gone(kind, name), deadline_s, timeout)


@somewhere
def get(
    where: Where,
    name: Annotated[str | None, typer.Argument(help="One model; all without it.", autocompletion=model_names)] = None,
    output: Annotated[Format, typer.Option("--output", "-o", help="How to print.")] = Format.TABLE,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Keep it up to date; of a cluster as a tree down to the pods.")
    ] = False,
) -> None:
    """Show models: what is ready, which revision serves, which is on its way."""
    wide = output is Format.WIDE
    if watch and output not in (Format.TABLE, Format.WIDE):
        raise typer.BadParameter(f"-w shows a live view; with it -o is table or wide, not {output}")
    here = platform(where)
    if watch:
        _show(Console(), pictures(here, name, wide=wide))
    else:
        _print(Console(), [here.model(name)] if name is not None else here.models(), output, one=name is not None)


def _show(console: Console, pictures: Iterator[RenderableType]) -> None:
    """Show pictures as they come, at most four a second; where nobody looks at a terminal, each that differs."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for picture in pictures:
                live.update(picture, refresh=True)
                time.sleep(REFRESH_S)
        return
    last = ""
    for picture in pictures:
        kept = wide_enough(console, picture)
        with kept.capture() as captured:
            kept.print(picture)
        text = "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
        if text != last:
            typer.echo(("\n" if last else "") + text, nl=False)
            last = text
        time.sleep(REFRESH_S)


def _print(console: Console, manifests: list[dict[str, Any]], output: Format, *, one: bool) -> None:
    match output:
        case Format.JSON:
            typer.echo(json.dumps(manifests[0] if one else manifests, indent=2))
        case Format.YAML:
            typer.echo(yaml.safe_dump_all(manifests, sort_keys=False), nl=False)
        case _ if not manifests:
            console.print("no models; `segserve apply -f model.yaml` adds one")
        case _:
            table = models_table(manifests, wide=output is Format.WIDE)
            wide_enough(console, table).print(table)


def wide_enough(console: Console, shown: RenderableType) -> Console:
    """Return a console as wide as what is shown: a line longer than the terminal is the terminal's to wrap."""
    needed = Measurement.get(console, console.options.update(width=WIDEST), shown).maximum
    return Console(width=max(console.width, needed))


@somewhere
def describe(where: Where, name: Name) -> None:
    """Show all that is known of a model: spec, roles, conditions with their causes; of a cluster events and pods."""
    typer.echo(description(platform(where), name))


class Target(StrEnum):
    """What `wait` waits for."""

    READY = "Ready"
    DELETE = "delete"


@somewhere
def wait(
    where: Where,
    names: Annotated[list[str], typer.Argument(help="Models to wait for.", autocompletion=model_names)],
    target: Annotated[Target, typer.Option("--for", help="Ready: the newest spec serves. delete: nothing is left.")] = (
        Target.READY
    ),
    timeout: Annotated[str, typer.Option(help="How long: 90s, 2m.")] = "120s",
) -> None:
    """Wait until models serve their newest spec (or are gone); exit code 1 where one cannot, or not in time."""
    here, deadline_s = platform(where), time.monotonic() + seconds(timeout)
    for name in names:
        if target is Target.DELETE:
            wait_for(here, Gone(MODEL, name), deadline_s, timeout)
        else:
            typer.echo(f"{name}: {wait_serving(here, name, deadline_s, timeout)}")


def seconds(duration: str) -> float:
    """Read a duration such as `90s` or `2m`."""
    with needs("local"):
        from segserve_operator.api.meta import parse_duration

    try:
        return parse_duration(duration).total_seconds()
    except ValueError as error:
        raise CommandError(str(error)) from error
