"""The `segserve` command, and its subcommands `ui`, `version` and `completion`."""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer
from typer.core import TyperGroup

from segserve.errors import MissingExtraError
from segserve_platform.cli import (
    batch,
    building,
    calibrating,
    comparing,
    demo,
    doctor,
    evaluating,
    exporting,
    lifecycle,
    openapi,
    predict,
    resources,
    samples,
    schema,
    why,
)
from segserve_platform.cli.errors import CommandError, plain, user_errors, wrapped
from segserve_platform.cli.examples import epilog
from segserve_platform.cli.init import command as init
from segserve_platform.cli.lifecycle import PORTS, ends_on_signals
from segserve_platform.cli.options import (
    GatewayUrl,
    PlatformOptions,
    ReportOutput,
    selected_platform,
    with_platform_options,
)
from segserve_platform.cli.rollout import commands as rollouts
from segserve_platform.cli.terminal import page, show_address

if TYPE_CHECKING:
    from segserve_platform.platforms.port import PlatformVersion


COMPLETES: Final = "_SEGSERVE_COMPLETE"
"""Set by shells to request completions of a line."""

OTHER_NAMES: Final = {
    "serve": "up",
    "start": "up",
    "run": "up",
    "stop": "down",
    "list": "get",
    "ls": "get",
    "ps": "get",
    "status": "get",
    "deploy": "apply",
    "create": "apply",
    "infer": "predict",
    "segment": "predict",
    "val": "eval",
    "rm": "delete",
}
"""Other tools' names of our commands."""


class _Commands(TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Answer the name that another tool has for a command with ours."""
        if args and args[0] in OTHER_NAMES and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"No such command {args[0]!r}: it is `segserve {OTHER_NAMES[args[0]]}`.")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="segserve",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    add_completion=False,  # `segserve completion` prints the script without changing files
    context_settings={"help_option_names": ["--help", "-h"]},
)


@with_platform_options
def ui(
    platform_options: PlatformOptions,
    port: Annotated[int | None, typer.Option(help="Port on loopback. Default: a free one.", show_default=False)] = None,
    browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Whether to open the page in a browser, if there is a display.")
    ] = True,
    prometheus: Annotated[
        str | None,
        typer.Option(help="URL of a Prometheus that has the metrics. Default: the platform of this machine."),
    ] = None,
    url: GatewayUrl = None,
) -> None:
    """Serve a web page on this machine: segment images, compare two models, follow models, rollouts and samples.

    This process serves it until Ctrl-C, on loopback alone and with your own rights; the printed address has a token.
    On a cluster, rates and latencies come from its Prometheus.
    """
    if port is not None and port not in PORTS:
        raise CommandError(f"--port must be within 1..65535, got {port}")
    with ends_on_signals(), page(platform_options, port, prometheus, url) as access:
        show_address(access, browser=browser)
        threading.Event().wait()


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


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="Shell to complete in.", show_default=False)],
) -> None:
    """Print the shell script that completes commands, options and model names.

    To install it permanently: `segserve completion bash > ~/.local/share/bash-completion/completions/segserve`,
    `segserve completion zsh > "${fpath[1]}/_segserve"`, `segserve completion fish >
    ~/.config/fish/completions/segserve.fish`.
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    typer.echo(get_completion_script(prog_name="segserve", complete_var=COMPLETES, shell=shell))


COMMANDS: Final[dict[str, tuple[Callable[..., Any], ...]]] = {
    "Start here": (demo.demo, init.init, predict.predict, batch.batch, ui),
    "Models": (
        resources.apply,
        resources.get,
        resources.describe,
        why.why,
        resources.wait,
        resources.delete,
    ),
    "Local platform": (lifecycle.up, lifecycle.down, doctor.doctor, lifecycle.logs),
    "Tools": (
        exporting.export,
        building.build,
        calibrating.calibrate,
        evaluating.eval_,
        comparing.diff,
        building.crds,
        schema.schema,
        openapi.openapi,
        version,
        completion,
    ),
}


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"segserve {metadata.version('segserve')}")
        raise typer.Exit


@app.callback()
def segserve(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Serve image segmentation on NVIDIA Triton: one resource file in, masks out."""


for _panel, _commands in COMMANDS.items():
    for _command in _commands:
        _title = _command.__name__.rstrip("_")  # `eval_`, because Python has an `eval` of its own
        app.command(_title, rich_help_panel=_panel, epilog=epilog(_title))(_command)
for _name, _group, _panel in (
    ("rollout", rollouts.rollout, "Models"),
    ("samples", samples.samples, "Models"),
    ("golden", building.golden, "Tools"),
    ("runtime", building.runtime, "Local platform"),
):
    for _info in _group.registered_commands:
        assert _info.callback is not None, "the decorator sets it"
        _info.epilog = epilog(f"{_name} {_info.name or _info.callback.__name__}")
    app.add_typer(_group, name=_name, rich_help_panel=_panel)


def main() -> None:
    """Run the command line; a user error prints one line and exits with code 1, without a traceback."""
    if COMPLETES in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
    try:
        app()
    except SystemExit:
        raise  # avoids importing the modules that define user errors
    except KeyboardInterrupt:
        sys.exit(130)
    except user_errors() as error:
        typer.echo(wrapped(plain(f"error: {error}")), err=True)
        sys.exit(1)
