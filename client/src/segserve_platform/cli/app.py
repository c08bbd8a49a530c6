"""The `segserve` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import typer
from typer.core import TyperGroup

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
    ui,
    version,
    why,
)
from segserve_platform.cli.errors import plain, user_errors, wrapped
from segserve_platform.cli.examples import epilog
from segserve_platform.cli.init import command as init
from segserve_platform.cli.rollout import commands as rollouts

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
"""What other tools call our commands."""


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
    "Start here": (demo.demo, init.init, predict.predict, batch.batch, ui.ui),
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
        version.version,
        completion,
    ),
}


def _print_version(requested: bool) -> None:
    from importlib.metadata import version

    if requested:
        typer.echo(f"segserve {version('segserve')}")
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
