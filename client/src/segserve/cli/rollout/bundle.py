"""Fetches what was kept of a rollout that was rolled back: its record, its servers' logs and statistics."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segserve.cli.failures import CommandError, needs
from segserve.cli.platform_options import Where, platform, somewhere

if TYPE_CHECKING:
    from segserve.platforms.port import Platform

STANDARD_OUTPUT = Path("-")


@somewhere
def bundle(
    where: Where,
    name: Annotated[str, typer.Argument(help="A model, for its latest rollout; or a rollout.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Else ROLLOUT.tar.gz here; - is standard output."),
    ] = None,
) -> None:
    """Fetch what was kept when a rollout was rolled back, as .tar.gz: record, verdicts, logs of the servers."""
    with needs("local"):
        rollout, content = fetched(platform(where), name)
    if output == STANDARD_OUTPUT:
        sys.stdout.buffer.write(content)
        return
    path = output or Path(f"{rollout}.tar.gz")
    try:
        path.write_bytes(content)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}") from error
    typer.echo(f"{path}: {len(content):,} bytes of rollout {rollout}")


def fetched(here: Platform, name: str) -> tuple[str, bytes]:
    """Return the name of the rollout that is meant, and its bundle; `CommandError` where there is none."""
    content = here.bundle(name)
    if content is not None:
        return name, content
    rollout = _latest(here, name)
    content = here.bundle(rollout)
    if content is None:
        raise CommandError(f"no bundle of rollout {rollout!r}: only rollbacks leave one, and the newest few are kept")
    return rollout, content


def _latest(here: Platform, model: str) -> str:
    found: str | None = ((here.model(model).get("status") or {}).get("rollout") or {}).get("name")
    if found is None:
        raise CommandError(f"{model} has had no rollout yet")
    return found
