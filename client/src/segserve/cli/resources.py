"""apply, delete, get, describe, wait: resources of the local platform."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
import yaml
from rich.console import Console
from rich.live import Live
from rich.measure import Measurement

from segserve.cli.failures import CommandError, needs
from segserve.cli.files import read_resources
from segserve.cli.progress import age, models_table, progress

if TYPE_CHECKING:
    from collections.abc import Iterable

    from segserve_operator.adapters.local.store import LocalStore

MODEL: Final = "SegmentationModel"
POLL_S: Final = 0.2
WIDEST: Final = 1000

Files = Annotated[list[Path], typer.Option("--filename", "-f", help="Resource file; may be given again.")]
Name = Annotated[str, typer.Argument(help="The model's name.")]


class Format(StrEnum):
    """How `get` prints."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


def local_store() -> LocalStore:
    """Return the resources of the local platform."""
    with needs("local"):
        from segserve_operator.adapters.local.files import StateFolder, state_folder
        from segserve_operator.adapters.local.store import LocalStore

    return LocalStore(StateFolder(state_folder()))


def apply(files: Files) -> None:
    """Create or change resources of the local platform."""
    for name, outcome in apply_files(files):
        typer.echo(f"{name} {outcome}")


def apply_files(files: Iterable[Path]) -> list[tuple[str, str]]:
    """Store the resources of some files, all or none of them; return what became of each."""
    store = local_store()
    read = read_resources(files)
    return [
        (f"{resource.kind.lower()}/{resource.metadata.name}", store.apply(resource, manifest))
        for resource, manifest in read
    ]


def delete(
    names: Annotated[list[str] | None, typer.Argument(help="Models to delete.")] = None,
    files: Annotated[
        list[Path] | None, typer.Option("--filename", "-f", help="Or the files that they came from.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until nothing of them is left.")] = True,
    timeout: Annotated[str, typer.Option(help="How long to wait: 90s, 2m.")] = "60s",
) -> None:
    """Delete models: requests to them end first, then they are unloaded, and nothing of them stays."""
    store = local_store()
    chosen = [*(names or []), *(resource.metadata.name for resource, _ in read_resources(files or []))]
    if not chosen:
        raise CommandError("name the models to delete, or give the file that they came from with -f")
    for name in chosen:
        store.delete(MODEL, name)
        typer.echo(f"{MODEL.lower()}/{name} deleted")
    deadline_s = time.monotonic() + seconds(timeout)
    while wait and _platform_runs() and set(chosen) & set(store.names(MODEL)):
        if time.monotonic() > deadline_s:
            left = ", ".join(sorted(set(chosen) & set(store.names(MODEL))))
            raise CommandError(f"{left} not gone after {timeout}; `segserve describe` says what holds it")
        time.sleep(POLL_S)


def get(
    name: Annotated[str | None, typer.Argument(help="One model; all without it.")] = None,
    output: Annotated[Format, typer.Option("--output", "-o", help="How to print.")] = Format.TABLE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep the table up to date.")] = False,
) -> None:
    """Show models: what is ready, which revision serves, which is on its way."""
    console = Console()
    if not watch:
        _print(console, _manifests(name), output, one=name is not None)
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(models_table(_manifests(name), wide=output is Format.WIDE), refresh=True)
            time.sleep(2 * POLL_S)


def _manifests(name: str | None) -> list[dict[str, Any]]:
    store = local_store()
    return [store.get(MODEL, each) for each in ([name] if name is not None else store.names(MODEL))]


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
            needed = Measurement.get(console, console.options.update(width=WIDEST), table).maximum
            # A line that is longer than the terminal is the terminal's to wrap: nothing is cut or folded.
            Console(width=max(console.width, needed)).print(table)


def describe(name: Name) -> None:
    """Show all that is known of a model: spec, roles, conditions with their causes."""
    manifest = local_store().get(MODEL, name)
    status = manifest.get("status") or {}
    typer.echo(yaml.safe_dump({"metadata": manifest["metadata"], "spec": manifest["spec"]}, sort_keys=False), nl=False)
    typer.echo(f"url: {status.get('url', '')}\nroles:")
    for role, holder in status.get("roles", {}).items():
        failed = f"  {holder['reason']}: {holder['message']}" if holder.get("reason") else ""
        where = f" in group {holder['group']}" if holder["group"] else ""
        typer.echo(f"  {role:<10} {holder['revision']}{where} since {age(holder['since'])}{failed}")
    typer.echo("conditions:")
    for found in status.get("conditions", []):
        text = f"{found['reason']}: {found['message']}" if found.get("message") else found["reason"]
        typer.echo(f"  {found['type']:<17} {found['status']:<8} {age(found['lastTransitionTime']):>4}  {text}")


class Target(StrEnum):
    """What `wait` waits for."""

    READY = "Ready"
    DELETE = "delete"


def wait(
    names: Annotated[list[str], typer.Argument(help="Models to wait for.")],
    target: Annotated[Target, typer.Option("--for", help="Ready: the newest spec serves. delete: nothing is left.")] = (
        Target.READY
    ),
    timeout: Annotated[str, typer.Option(help="How long: 90s, 2m.")] = "120s",
) -> None:
    """Wait until models serve their newest spec (or are gone); exit code 1 where one cannot, or not in time."""
    deadline_s = time.monotonic() + seconds(timeout)
    for name in names:
        if target is Target.DELETE:
            _wait_gone(name, deadline_s, timeout)
        else:
            typer.echo(f"{name}: {wait_ready(name, deadline_s, timeout)}")


def _wait_gone(name: str, deadline_s: float, timeout: str) -> None:
    while name in local_store().names(MODEL):
        if time.monotonic() > deadline_s:
            raise CommandError(f"{name} is not gone after {timeout}")
        time.sleep(POLL_S)


def wait_ready(name: str, deadline_s: float, timeout: str) -> str:
    """Return the message of a model that serves its newest spec; raise where it cannot or not by `deadline_s`."""
    store = local_store()
    while True:
        state = progress(store.get(MODEL, name))
        if state.serves:
            return state.text
        if state.failed:
            raise CommandError(f"{name}: {state.text}")
        if time.monotonic() > deadline_s:
            raise CommandError(f"{name} is not ready after {timeout}: {state.text}")
        time.sleep(POLL_S)


def seconds(duration: str) -> float:
    """Read a duration such as `90s` or `2m`."""
    with needs("local"):
        from segserve_operator.api.meta import parse_duration

    try:
        return parse_duration(duration).total_seconds()
    except ValueError as error:
        raise CommandError(str(error)) from error


def _platform_runs() -> bool:
    from segserve_operator.local_platform.supervisor import read_platform

    return read_platform(local_store().state) is not None
