"""`segserve build`, `crds`, `golden` and `runtime`: commands that need no running platform."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from segserve.cli.completion import model_names
from segserve.cli.errors import CommandError, needs
from segserve.cli.examples import epilog
from segserve.cli.image_files import images_in
from segserve.platforms.manifests import read_files

if TYPE_CHECKING:
    from segserve_operator.api.segmentation_model import SegmentationModel


def record(
    images: Annotated[Path, typer.Argument(metavar="IMAGE_FOLDER", help="The first three images are taken.")],
    file: Annotated[Path, typer.Option("--filename", "-f", help="The resource file; its digest is written anew.")],
    model: Annotated[
        str | None,
        typer.Option(help="Which model, where the file has several.", show_default=False, autocompletion=model_names),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Where the resource names no golden folder.", show_default=False
        ),
    ] = None,
) -> None:
    """Record the answers of a model as its golden set; the network runs in this process.

    preview/ beside the set shows them: look there first, for whatever is recorded is what must be answered from now on.
    """
    known = images_in(images)
    with needs("builder"):
        from segserve.cli.calibrating import loaded
        from segserve.cli.init.golden import write_golden, write_previews

        resource = _chosen(file, model)
        folder = _folder(resource, output)
        _clear(folder)
        pipeline = resource.spec.pipeline(resource.metadata.name)
        digest, answers = write_golden(loaded(resource, pipeline), known, folder)
        results = write_previews(answers, resource, folder.parent / "preview")
    for image, result in zip(known, results, strict=False):
        typer.echo(f"{image.name}: {result!r}")
    typer.echo(_pinned(file, resource, folder, digest))


def _chosen(file: Path, name: str | None) -> SegmentationModel:
    from segserve_operator.api.segmentation_model import SegmentationModel

    manifests = [written.complete() for written in read_files([file])]
    models = {each["metadata"]["name"]: each for each in manifests if each["kind"] == "SegmentationModel"}
    if name is None and len(models) == 1:
        (name,) = models
    if name not in models:
        asked = "several models" if name is None else f"no model {name!r}"
        raise CommandError(f"{file} has {asked}; choose with --model: {', '.join(models) or 'none'}")
    return SegmentationModel.model_validate(models[name])


def _folder(resource: SegmentationModel, output: Path | None) -> Path:
    from urllib.request import url2pathname

    if output is not None:
        return output
    if resource.spec.golden is None:
        raise CommandError(f"{resource.metadata.name} has no spec.golden yet: -o names the folder to write")
    parts = urlsplit(resource.spec.golden.uri)
    if parts.scheme != "file":
        raise CommandError(f"spec.golden is at {resource.spec.golden.uri}, no folder here: -o names the one to write")
    return Path(url2pathname(parts.path))


def _clear(folder: Path) -> None:
    """Take away the images of the set before, and nothing else; one with labels is people's work, and stays."""
    from segserve_builder.golden.judging import GOLDEN_FILE, load

    if not (folder / GOLDEN_FILE).exists():
        return
    before = load(folder)
    if any(case.labels is not None or case.label_map is not None for case in before.cases):
        raise CommandError(f"{folder} has labels, which would be lost; -o names another folder")
    for case in before.cases:
        (folder / case.image).unlink()


def _pinned(file: Path, resource: SegmentationModel, folder: Path, digest: str) -> str:
    """Write the digest into the file, where the set is the one that it names; say what has become of it."""
    golden = resource.spec.golden
    if golden is None or urlsplit(golden.uri).path != folder.resolve().as_uri().removeprefix("file://"):
        return f"sha256 {digest}: spec.golden names the folder as uri, and this"
    text = file.read_text()
    if golden.sha256 == digest:
        return f"{file} is as it was: the answers are the same"
    # A digest is in a file once or not at all, and its comments stay this way.
    file.write_text(text.replace(golden.sha256, digest, 1))
    return f"written into {file}: sha256 {digest}"


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
