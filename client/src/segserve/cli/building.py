"""build, crds, golden, runtime: what can be made without a running platform."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segserve.cli.examples import epilog
from segserve.cli.failures import CommandError, needs
from segserve.cli.recording import record
from segserve.platforms.manifests import read_files

golden = typer.Typer(help="Golden sets: images with their expected answers.", no_args_is_help=True)
runtime = typer.Typer(help="The environment that Triton's Python steps run in.", no_args_is_help=True)


def build(
    files: Annotated[list[Path], typer.Option("--filename", "-f", help="Resource file; may be given again.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; made where it is missing.")],
) -> None:
    """Write the Triton model repository of some models, for those who run Triton themselves."""
    with needs("builder"):
        from segserve_builder.render.repository import write_repository
        from segserve_operator.adapters.local.access import local_access
        from segserve_operator.adapters.local.files import cache_folder
        from segserve_operator.api.segmentation_model import SegmentationModel
        from segserve_operator.api.triton_pool import TritonPool

    read = read_files(files)
    pools = [written.resource for written in read if isinstance(written.resource, TritonPool)]
    access = local_access(pools[0].spec.artifacts if pools else None)
    models = [written.resource.kind for written in read]
    if "SegmentationModel" not in models:
        raise CommandError(
            f"no SegmentationModel in {', '.join(map(str, files))}; found: {', '.join(models) or 'nothing'}"
        )
    for manifest in (written.complete() for written in read):
        if manifest["kind"] == "SegmentationModel":
            assigned = SegmentationModel.model_validate(manifest).assigned
            write_repository(
                assigned.pipeline,
                assigned.artifact,
                assigned.expose,
                output,
                cache_folder(),
                assigned.second_artifact,
                access,
            )
            typer.echo(f"{assigned.revision} written to {output}")


def crds(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A folder; printed without it.")] = None,
) -> None:
    """Print the custom resource definitions for a cluster: `segserve crds | kubectl apply --server-side -f -`."""
    from segserve_operator.api.crd import crd_files

    for name, text in crd_files().items():
        if output is None:
            typer.echo(f"---\n{text}", nl=False)
        else:
            output.mkdir(parents=True, exist_ok=True)
            (output / name).write_text(text)


@golden.command("digest")
def golden_digest(folder: Annotated[Path, typer.Argument(help="A folder with golden.json.")]) -> None:
    """Print the sha256 of a golden set, for `spec.golden.sha256`."""
    with needs("builder"):
        from segserve_builder.sources import folder_digest

    typer.echo(folder_digest(folder))


golden.command("record", epilog=epilog("golden record"))(record)


@runtime.command("install")
def runtime_install() -> None:
    """Make the runtime environment now instead of at the first `segserve up`."""
    with needs("local"):
        from segserve_operator.adapters.local.files import cache_folder
        from segserve_operator.adapters.local.runtime import ensure_runtime

    typer.echo(ensure_runtime(cache_folder(), lambda text: typer.echo(text, err=True)).root)
