"""Fetches what was kept of a rollout that was rolled back: its record, its servers' logs and statistics."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segserve.cli.failures import CommandError, needs
from segserve.cli.where import Where, platform, somewhere

if TYPE_CHECKING:
    from segserve.cli.platform import Platform

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
    content = _kept(here, name)
    if content is not None:
        return name, content
    rollout = _latest(here, name)
    content = _kept(here, rollout)
    if content is None:
        raise CommandError(f"no bundle of rollout {rollout!r}: only rollbacks leave one, and the newest few are kept")
    return rollout, content


def _latest(here: Platform, model: str) -> str:
    found: str | None = ((here.model(model).get("status") or {}).get("rollout") or {}).get("name")
    if found is None:
        raise CommandError(f"{model} has had no rollout yet")
    return found


def _kept(here: Platform, rollout: str) -> bytes | None:
    from segserve.cli.local import LocalPlatform

    if isinstance(here, LocalPlatform):
        from segserve_operator.adapters.bundles.local import bundle_file

        path = bundle_file(here.store.state, rollout)
        return path.read_bytes() if path.is_file() else None
    return _kept_on_cluster(here, rollout)


def _kept_on_cluster(here: Platform, rollout: str) -> bytes | None:
    from segserve.cli.cluster.errors import UnknownError
    from segserve.cli.cluster.platform import ClusterPlatform
    from segserve_operator.adapters.bundles.cluster import KEY, bundle_name
    from segserve_operator.adapters.kube.api import CONFIG_MAPS

    assert isinstance(here, ClusterPlatform), "there are two platforms"
    try:
        found = here.calls.get(CONFIG_MAPS, bundle_name(rollout))
    except UnknownError:
        return None
    return base64.b64decode(found["binaryData"][KEY])
