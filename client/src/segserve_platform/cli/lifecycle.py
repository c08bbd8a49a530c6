"""`segserve up`: starts the platform on this machine."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from segserve_common.interpreter import python
from segserve_platform.cli.down import end_platform
from segserve_platform.cli.errors import CommandError, needs
from segserve_platform.cli.installation import install_engines, installation_progress
from segserve_platform.cli.models_view import models_table
from segserve_platform.cli.options import PORTS, PlatformOptions, seconds
from segserve_platform.cli.page import check_page, page, show_address
from segserve_platform.cli.resources import check_local_files
from segserve_platform.cli.signals import ends_on_signals
from segserve_platform.cli.startup import Startup, is_up
from segserve_platform.cli.terminal import activity
from segserve_platform.platforms.local import POLL_S, LocalPlatform, check_state_folder, local_store
from segserve_platform.platforms.manifests import check_kinds, read_files
from segserve_platform.platforms.port import MODEL
from segserve_platform.platforms.waiting import Serving, overdue, readiness

if TYPE_CHECKING:
    from segserve_operator.adapters.local.files import PlatformRecord, StateFolder
    from segserve_operator.adapters.local.resource_files import ResourceFiles
    from segserve_operator.adapters.local.runtime import RuntimeEnvironment

START_S: Final = 120.0


def up(
    files: Annotated[
        list[Path] | None, typer.Option("--filename", "-f", help="Resource file or folder to apply; may be repeated.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once the models serve, or a rollout decides.")
    ] = False,
    port: Annotated[int | None, typer.Option(help="Gateway port for HTTP and gRPC. Default: 8080.")] = None,
    tls: Annotated[
        bool | None,
        typer.Option(
            "--tls/--no-tls",
            help="Whether the gateway speaks TLS, with a certificate of a private authority. Default: unchanged.",
        ),
    ] = None,
    auth: Annotated[
        Literal["key"] | None,
        typer.Option(
            help="key makes an API key that every caller of the gateway must send, prints it once and ends an earlier "
            "one. Default: unchanged."
        ),
    ] = None,
    access_log: Annotated[
        str | None,
        typer.Option(
            metavar="off|errors|all|SHARE",
            help="Which requests the gateway logs: those that fail, and of the others all or a share such as 0.01. "
            "`segserve why` reads it. Default: unchanged.",
        ),
    ] = None,
    timeout: Annotated[
        str,
        typer.Option(help="With --detach: timeout for the models, such as 90s or 2m; a plain number is in seconds."),
    ] = "180s",
    forget: Annotated[
        bool, typer.Option("--forget", help="Forget the models at the end, as `segserve down --forget` does.")
    ] = False,
    browser: Annotated[
        bool, typer.Option("--open", help="Also serve the page of `segserve ui`, and open it in a browser.")
    ] = False,
) -> None:
    """Start the local platform: Triton and Envoy as processes, listening on loopback.

    On a terminal it shows a live table, and Ctrl-C stops all processes. SIGTERM, or closing the terminal, does the
    same, also in the background. The models are kept for the next `segserve up`, unless --forget is given. A platform
    that is already running is taken over.
    """
    if detach and forget:
        raise typer.BadParameter(
            "--forget is for the end of a foreground platform; with --detach, use `segserve down --forget`"
        )
    if detach and browser:
        raise typer.BadParameter(
            "--open is for a foreground platform: the page ends with it; with --detach, `segserve ui`"
        )
    if browser:
        check_page()
    timeout_s = seconds(timeout)
    # Input is checked first: the installation may take minutes.
    logged_share = _logged_share(access_log)
    names = apply_files(files or [], port, tls=tls)
    require_api_key(auth)
    if access_log is not None:
        local_store().set_gateway_access_log(logged_share)
    install_runtime()
    state = local_store().state
    startup = Startup(names)
    with activity("starting the platform"):
        launch(state)
    if detach:
        _wait_for(startup, timeout_s, timeout)
        return
    with ends_on_signals():
        try:
            with page(PlatformOptions(local=True)) if browser else nullcontext() as access:
                if access is not None:
                    show_address(access, browser=True)
                show_until_interrupted(state)
        finally:
            end_platform(state, keep=not forget)


def _logged_share(text: str | None) -> float | None:
    """Return the share of requests without an error that is to be logged; None for no log."""
    if text is None or text == "off":
        return None
    with suppress(ValueError):
        if 0 <= (share := float({"errors": "0", "all": "1"}.get(text, text))) <= 1:
            return share
    raise typer.BadParameter(f"--access-log must be off, errors, all, or a share from 0 to 1, got {text!r}")


def install_runtime() -> RuntimeEnvironment:
    """Install what the platform runs in, with the kernels compiled that the stored models need."""
    with needs("local"):
        from segserve_operator.adapters.local.files import cache_folder
        from segserve_operator.adapters.local.runtime import ensure_runtime

    from segserve_builder.memory import step_limit_bytes

    step_limit_bytes()  # a limit that is not allowed would only be in the log of a server that never starts
    with installation_progress() as progress:
        return ensure_runtime(cache_folder(), progress, needed_kernels(local_store()))


def needed_kernels(store: ResourceFiles) -> set[str]:
    """Return the modules of kernels that the steps of all stored models import."""
    import segserve_builder
    from segserve_builder.kernels.sources import kernels_behind
    from segserve_builder.steps.pipeline import code_modules
    from segserve_operator.core.world.observed import Wanted
    from segserve_operator.mapping.specs import wanted_of

    manifests = {name: store.get(MODEL, name) for name in store.names(MODEL)}
    wanted = [wanted_of(manifest, manifests) for manifest in manifests.values()]
    modules = set().union(*(code_modules(each.assigned.pipeline) for each in wanted if isinstance(each, Wanted)))
    return kernels_behind(modules, Path(segserve_builder.__file__).parent)


def apply_files(files: list[Path], port: int | None, *, tls: bool | None = None) -> list[str]:
    """Store the resources of files, the gateway's port and TLS, and return the names of the models to wait for."""
    with needs("local"):
        from segserve_operator.adapters.local.files import read_platform
        from segserve_operator.adapters.local.gateway import PRIVATE_CERTIFICATE, check_port

    store = local_store()
    check_state_folder(store)
    if port is not None and port not in PORTS:
        raise CommandError(f"--port must be within 1..65535, got {port}")
    running = read_platform(store.state)
    if running is None:
        check_port(store.state, port or store.pool().spec.gateway.port)
    elif port is not None and not running.url.endswith(f":{port}"):
        raise CommandError(f"the platform runs at {running.url}; stop it with `segserve down` before changing --port")
    elif tls is not None and running.url.startswith("https:") is not tls:
        raise CommandError(f"the platform runs at {running.url}; stop it with `segserve down` before changing --tls")
    resources = read_files(files)
    check_kinds(resources)
    check_local_files(resources)
    # A running platform loads them at once.
    install_engines(
        [each.value for each in resources if each.resource.kind == MODEL]
        if files
        else [store.get(MODEL, name) for name in store.names(MODEL)]
    )
    for written, outcome in zip(resources, LocalPlatform().apply(resources), strict=True):
        typer.echo(f"{written.title} {outcome}")
    if port is not None:
        store.set_gateway_port(port)
    if tls is not None and (store.pool().spec.gateway.tls is None) is tls:
        store.set_gateway_tls(PRIVATE_CERTIFICATE if tls else None)
    if not files:
        stored = [store.get(MODEL, name)["metadata"] for name in store.names(MODEL)]
        return [metadata["name"] for metadata in stored if "deletionTimestamp" not in metadata]
    return [each.resource.metadata.name for each in resources if each.resource.kind == MODEL]


def launch(state: StateFolder, speed: float = 1.0, *, compile_all: bool = True) -> None:
    """Start a supervisor if none runs, and return once it has observed everything.

    Its decisions are made by a clock that is `speed` times as fast. With `compile_all` it compiles the
    kernels that no model needs yet, in the background.
    """
    from segserve_operator.adapters.local.files import read_platform
    from segserve_operator.adapters.local.processes import ALREADY_RUNS, marked_environment

    if read_platform(state) is not None:
        return
    state.create()
    with state.log.open("ab") as log:
        child = subprocess.Popen(
            [
                *python("-m", "segserve_operator.local_platform", str(state.root), "--speed", str(speed)),
                *([] if compile_all else ["--no-compile-all"]),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=marked_environment(os.environ, state.root),
        )
    deadline_s = time.monotonic() + START_S
    while (record := read_platform(state)) is None or not record.observed:
        if child.poll() not in (None, ALREADY_RUNS):  # of another command that runs at the same time
            raise CommandError(f"the platform did not start: {_last_line(state.log)} (full log: {state.log})")
        if time.monotonic() > deadline_s:
            raise CommandError(
                f"the platform did not start within {START_S:g} s, and still tries to: `segserve get` shows when it "
                f"has, and `segserve down` ends it (log: {state.log}; its last line: {_last_line(state.log)})"
            )
        time.sleep(POLL_S / 4)


def _last_line(log: Path) -> str:
    return "".join(log.read_text(errors="replace").strip().splitlines()[-1:])


def _wait_for(startup: Startup, timeout_s: float, timeout: str) -> None:
    from segserve_operator.adapters.local.files import read_platform

    platform, deadline_s = LocalPlatform(), time.monotonic() + timeout_s
    goals = {name: Serving(name) for name in startup.waiting}
    with activity("waiting for the models") as shown:
        while startup.waiting:
            manifests = {name: platform.find(MODEL, name) for name in startup.waiting}
            for name, manifest in manifests.items():
                up = goals[name].reached(manifest) or (manifest is not None and is_up(manifest))
                if not up and time.monotonic() > deadline_s:
                    raise overdue(platform, goals[name], manifest, timeout)
            existing = [manifest for manifest in manifests.values() if manifest is not None]
            for line in startup.ready_lines(existing):
                shown.line(line)
            shown.say(startup.summary(existing))
            if startup.waiting:
                time.sleep(POLL_S)
    record = read_platform(local_store().state)
    typer.echo(f"gateway: {record.url if record is not None else ''}  (HTTP and gRPC; stop it with `segserve down`)")
    _show_authority(record)


def show_until_interrupted(state: StateFolder) -> None:
    """Show a live table of the models, and keep a supervisor running; without a terminal, a line for each model."""
    from segserve_operator.adapters.local.files import read_platform

    console, platform = Console(), LocalPlatform()
    startup = Startup(platform.store.names(MODEL))
    record = read_platform(state)
    if not console.is_terminal:
        typer.echo(f"gateway: {record.url if record is not None else ''}  (HTTP and gRPC)")
    _show_authority(record)
    with Live(console=console, auto_refresh=False, screen=False) if console.is_terminal else nullcontext() as live:
        while True:
            # The platform survives a dead supervisor: a new one takes over the running processes.
            launch(state)
            record = read_platform(state)
            found = (platform.find(MODEL, name) for name in platform.store.names(MODEL))
            manifests = [manifest for manifest in found if manifest is not None]
            for line in startup.ready_lines(manifests):
                if live is None:
                    typer.echo(line)
                else:
                    console.out(line, highlight=False)
            if live is not None:
                url = record.url if record is not None else "..."
                states = {manifest["metadata"]["name"]: readiness(manifest) for manifest in manifests}
                late = {name: state for name, state in states.items() if not state.serves}
                notes = [f"  {name}: {state.problem or state.text}" for name, state in late.items()]
                notes = notes[: console.height // 3]
                table = models_table(manifests, starting=startup.waiting, height=console.height - 2 - len(notes))
                head = Text(f"segserve at {url}   (stop with Ctrl-C)", style="bold")
                live.update(Group(head, table, Text("\n".join(notes), style="dim")), refresh=True)
            time.sleep(POLL_S)


def require_api_key(method: Literal["key"] | None) -> None:
    """If callers are to have a key, make a new one, let the gateway take it, and show it: it cannot be shown again."""
    if method is None:
        return
    from segserve_operator.adapters.local.api_keys import SECRET, SECRET_KEY, replace_key

    store = local_store()
    key = replace_key(store.state)
    store.set_gateway_keys(SECRET, SECRET_KEY)
    typer.echo(f"the gateway's API key, shown only now: export SEGSERVE_API_KEY={key}")


def _show_authority(record: PlatformRecord | None) -> None:
    if record is not None and record.ca_file:
        typer.echo(f"clients trust it with: export SEGSERVE_URL={record.url} SEGSERVE_CA_FILE={record.ca_file}")
