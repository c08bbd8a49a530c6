"""up, down, doctor, logs: the local platform itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from segserve.cli.failures import CommandError, needs
from segserve.cli.progress import models_table, progress
from segserve.cli.resources import MODEL, POLL_S, apply_files, local_store, seconds, wait_ready

if TYPE_CHECKING:
    from segserve_operator.adapters.local.files import StateFolder

START_S: Final = 30.0
PORTS: Final = range(1, 65536)


def up(
    files: Annotated[list[Path] | None, typer.Option("--filename", "-f", help="Resource files to apply.")] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once the models serve.")] = False,
    port: Annotated[int | None, typer.Option(help="The gateway's port, for HTTP and gRPC (8080).")] = None,
    timeout: Annotated[str, typer.Option(help="With --detach: how long to wait for the models.")] = "180s",
) -> None:
    """Start the local platform: a real Triton and a real Envoy as processes, on loopback.

    In front of a terminal it shows a live table, and Ctrl-C ends everything. What an earlier `up` left running is
    taken over as it is.
    """
    # First what may be mistaken, for to install may take minutes.
    names = _apply(files or [], port)
    state = _install()
    _launch(state)
    try:
        if detach:
            _wait_for(names, seconds(timeout), timeout)
        else:
            _show(state)
    finally:
        if not detach:
            _end(state, keep=False)


def _install() -> StateFolder:
    with needs("local"):
        from segserve_operator.adapters.local.files import StateFolder, cache_folder, state_folder
        from segserve_operator.adapters.local.runtime import ensure_runtime

    ensure_runtime(cache_folder(), lambda text: typer.echo(text, err=True))
    return StateFolder(state_folder())


def _apply(files: list[Path], port: int | None) -> list[str]:
    with needs("local"):
        from segserve_operator.adapters.local.gateway import check_port
        from segserve_operator.local_platform.supervisor import read_platform

    store = local_store()
    if port is not None and port not in PORTS:
        raise CommandError(f"--port must be within 1..65535, got {port}")
    running = read_platform(store.state)
    if running is None:
        check_port(store.state, port or store.pool().spec.gateway.port)
    elif port is not None and not running.url.endswith(f":{port}"):
        raise CommandError(f"the platform runs at {running.url}; `segserve down` ends it, then --port can be another")
    applied = apply_files(files)
    for name, outcome in applied:
        typer.echo(f"{name} {outcome}")
    if port is not None:
        store.set_gateway_port(port)
    if not files:
        kept = [store.get(MODEL, name)["metadata"] for name in store.names(MODEL)]
        return [metadata["name"] for metadata in kept if "deletionTimestamp" not in metadata]
    return [name.partition("/")[2] for name, _ in applied if name.startswith(f"{MODEL.lower()}/")]


def _launch(state: StateFolder) -> None:
    """Start a supervisor where none runs, and return once it has looked at everything."""
    from segserve_operator.adapters.local.processes import marked_environment
    from segserve_operator.local_platform.supervisor import read_platform

    if read_platform(state) is not None:
        return
    state.root.mkdir(parents=True, exist_ok=True)
    with state.log.open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "segserve_operator.local_platform", str(state.root)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=marked_environment(os.environ, state.root),
        )
    deadline_s = time.monotonic() + START_S
    while (record := read_platform(state)) is None or not record.observed:
        if child.poll() is not None or time.monotonic() > deadline_s:
            last = state.log.read_text().strip().splitlines()[-1:]
            raise CommandError(f"the platform did not start: {''.join(last)} (whole log: {state.log})")
        time.sleep(POLL_S / 4)


def _wait_for(names: list[str], timeout_s: float, timeout: str) -> None:
    from segserve_operator.local_platform.supervisor import read_platform

    deadline_s = time.monotonic() + timeout_s
    for name in names:
        typer.echo(f"{name}: {wait_ready(name, deadline_s, timeout)}")
    record = read_platform(local_store().state)
    typer.echo(f"gateway: {record.url if record is not None else ''}  (HTTP and gRPC; `segserve down` ends it)")


def _show(state: StateFolder) -> None:
    from segserve_operator.local_platform.supervisor import read_platform

    console = Console()
    with Live(console=console, auto_refresh=False, screen=False) as live:
        while True:
            # The platform outlives a supervisor that died: a new one takes everything over as it runs.
            _launch(state)
            record = read_platform(state)
            manifests = [local_store().get(MODEL, name) for name in local_store().names(MODEL)]
            states = {manifest["metadata"]["name"]: progress(manifest) for manifest in manifests}
            notes = [f"  {name}: {state.text}" for name, state in states.items() if not state.serves]
            head = Text(f"segserve at {record.url if record is not None else '...'}   (Ctrl-C ends it)", style="bold")
            live.update(Group(head, models_table(manifests), Text("\n".join(notes), style="dim")), refresh=True)
            time.sleep(POLL_S)


def down(
    keep: Annotated[bool, typer.Option("--keep", help="Keep the models for the next `up`.")] = False,
) -> None:
    """End the local platform: no process, shared memory or file of it stays (downloads do)."""
    with needs("local"):
        from segserve_operator.adapters.local.files import StateFolder, state_folder

    _end(StateFolder(state_folder()), keep=keep)


def _end(state: StateFolder, *, keep: bool) -> None:
    from segserve_operator.local_platform.supervisor import end

    typer.echo("the platform has ended" if end(state, keep_models=keep) else "no platform was running")


def doctor() -> None:
    """Check what the local platform needs, and say how to mend what is missing."""
    with needs("local"):
        from segserve_operator.local_platform.doctor import examine

    findings = examine(local_store())
    for finding in findings:
        sign = "[green]ok [/]" if finding.good else "[red]bad[/]"
        Console(soft_wrap=True).print(f"{sign} {finding.what}: {finding.seen}")
        if not finding.good:
            Console(soft_wrap=True).print(f"    {finding.advice}")
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)


def logs(
    name: Annotated[str | None, typer.Argument(help="Only the servers that hold this model.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    lines: Annotated[int, typer.Option("--tail", help="Lines of each log to begin with.")] = 50,
) -> None:
    """Show the logs of supervisor, gateway, servers and agents, each line with its origin."""
    state = local_store().state
    if not state.root.exists():
        raise CommandError(f"no platform has run in {state.root}")
    offsets: dict[Path, int] = {}
    while True:
        for path in _log_files(state, name):
            _print_new(state, path, offsets, lines)
        if not follow:
            return
        time.sleep(POLL_S)


def _log_files(state: StateFolder, name: str | None) -> list[Path]:
    groups = sorted(state.groups.glob("*/*.log"))
    if name is None:
        return [state.log, *sorted(state.gateway.glob("*.log")), *groups]
    store = local_store()
    roles = (store.get(MODEL, name).get("status") or {}).get("roles", {})
    return [path for path in groups if path.parent.name in {holder["group"] for holder in roles.values()}]


def _print_new(state: StateFolder, path: Path, offsets: dict[Path, int], lines: int) -> None:
    if not path.exists():
        return
    origin = path.relative_to(state.root).with_suffix("").as_posix()
    with path.open("rb") as file:
        file.seek(offsets.get(path, 0))
        text = file.read().decode(errors="replace").splitlines()
        first = path not in offsets
        offsets[path] = file.tell()
    for line in text[-lines:] if first else text:
        typer.echo(f"{origin} | {line}")
