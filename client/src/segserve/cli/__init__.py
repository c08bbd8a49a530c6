"""The `segserve` command: one name for the local platform, its models and their answers."""

from __future__ import annotations

import sys

import click
import typer

from segserve.cli import building, lifecycle, predict, resources
from segserve.cli.failures import user_errors

app = typer.Typer(
    name="segserve",
    help="Serve image segmentation on NVIDIA Triton: one resource file in, masks out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

for command in (lifecycle.up, lifecycle.down, lifecycle.doctor, lifecycle.logs):
    app.command()(command)
for command in (resources.apply, resources.delete, resources.get, resources.describe, resources.wait):
    app.command()(command)
app.command()(predict.predict)
app.command()(building.build)
app.command()(building.crds)
app.add_typer(building.runtime, name="runtime")
app.add_typer(building.golden, name="golden")


def main() -> None:
    """Run the command line; a user's mistake ends with one line and exit code 1, never with a traceback."""
    try:
        code = app(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except user_errors() as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
