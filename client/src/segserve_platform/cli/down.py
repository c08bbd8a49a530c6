"""`segserve down`: ends the platform on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from segserve.platform import Local
from segserve_platform.cli.terminal import activity
from segserve_platform.platforms.local import local_store
from segserve_platform.platforms.port import MODEL

if TYPE_CHECKING:
    from segserve_operator.adapters.local.files import StateFolder


def down(
    forget: Annotated[
        bool, typer.Option("--forget", help="Remove the models as well, with their rollouts, keys and certificates.")
    ] = False,
) -> None:
    """Stop the local platform: its processes, shared memory and logs are removed.

    The models are kept for the next `segserve up`, unless --forget is given. Downloads are kept.
    """
    end_platform(local_store().state, keep=not forget)


def end_platform(state: StateFolder, *, keep: bool) -> None:
    """Stop the platform; say whether one was running, and which models are kept or removed."""
    from segserve_operator.local_platform.shutdown import end

    names = ", ".join(local_store(Local(state.root)).names(MODEL))
    with activity("stopping the platform"):
        outcome = "the platform was stopped" if end(state, keep_models=keep) else "no platform was running"
    if names:
        kept = f"models kept for the next `segserve up`: {names} (--forget removes them)"
        outcome += f"; {kept}" if keep else f"; models removed: {names}"
    typer.echo(outcome)
