"""The `segserve` command: one name for a platform, here or on a cluster, its models and their answers."""

from __future__ import annotations

import sys

import typer

from segserve.cli import building, calibrating, exporting, lifecycle, predict, resources
from segserve.cli.failures import user_errors
from segserve.cli.rollout import commands as rollouts

app = typer.Typer(
    name="segserve",
    help="Serve image segmentation on NVIDIA Triton: one resource file in, masks out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

app.command()(lifecycle.up)
app.command()(lifecycle.down)
app.command()(lifecycle.doctor)
app.command()(lifecycle.logs)
app.command()(lifecycle.cleanup)
app.command()(resources.apply)
app.command()(resources.delete)
app.command()(resources.get)
app.command()(resources.describe)
app.command()(resources.wait)
app.command()(predict.predict)
app.command()(building.build)
app.command()(building.crds)
app.command()(exporting.export)
app.command()(calibrating.calibrate)
app.add_typer(rollouts.rollout, name="rollout")
app.add_typer(building.runtime, name="runtime")
app.add_typer(building.golden, name="golden")


def main() -> None:
    """Run the command line; a user's mistake ends with one line and exit code 1, never with a traceback."""
    try:
        app()
    except SystemExit:
        raise  # before all that knows errors is loaded
    except KeyboardInterrupt:
        sys.exit(130)
    except user_errors() as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
