"""`segserve drift`: the reference that a model's images and answers are compared with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from segserve.cli.errors import CommandError, needs
from segserve.cli.options import PlatformOptions, model_names, selected_platform, with_platform_options
from segserve.cli.output_files import written_whole
from segserve_common.kube.kinds import MODELS

drift = typer.Typer(help="Keep the reference of a model's images and answers (spec.drift).", no_args_is_help=True)


@drift.command("export")
@with_platform_options
def export_reference(
    platform_options: PlatformOptions,
    name: Annotated[str, typer.Argument(help="Model name.", autocompletion=model_names, show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Output file. Default: standard output.")
    ] = None,
) -> None:
    """Print the reference that a model has counted, as a patch of a resource: `spec.drift.reference.recorded`.

    With the patch nothing is counted anew: each stable revision is compared with this reference from the start. It may
    be of another model with the same classes. A FILE whose name ends in .json has the reference alone, for
    `spec.drift.reference.file`.
    """
    model = selected_platform(platform_options).model(name)
    with needs("operator"):
        from segserve_operator.core.drift.watch import recorded_of
    stored = model.get("status", {}).get("drift")
    if not stored:
        raise CommandError(_without_reference(name, model["spec"].get("drift")))
    try:
        recorded = recorded_of(stored).to_dict()
    except ValueError as error:
        raise CommandError(f"{name}: {error}") from error
    if output is not None and output.suffix == ".json":
        content = json.dumps(recorded, ensure_ascii=False, separators=(",", ":")).encode()
        with written_whole(output) as path:
            path.write_bytes(content)
        named = f"reference: {{file: {{uri: {output}, sha256: {hashlib.sha256(content).hexdigest()}}}}}"
        typer.echo(f"{output} written; add to spec.drift: window: {recorded['window']}, {named}", err=True)
        return
    patch = {
        "apiVersion": MODELS.api_version,
        "kind": MODELS.name,
        "metadata": {"name": name},
        "spec": {"drift": {"window": recorded["window"], "reference": {"recorded": recorded}}},
    }
    # Lists of shares in one line each.
    text = yaml.safe_dump(patch, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
    if output is None:
        typer.echo(text, nl=False)
        return
    with written_whole(output) as path:
        path.write_text(text)
    typer.echo(f"{output} written", err=True)


def _without_reference(name: str, drift_spec: dict[str, Any] | None) -> str:
    if drift_spec is None:
        return f"{name} has no spec.drift, so it counts no reference"
    if "recorded" in drift_spec.get("reference", {}):
        return f"{name} counts no reference: its spec has a recorded one, spec.drift.reference.recorded"
    if given := {"golden", "file"} & drift_spec.get("reference", {}).keys():
        return f"{name} has no reference of {given.pop()} yet; the condition Drifting says why"
    return f"{name} has counted nothing of its reference yet; the condition Drifting says until when it is counted"
