"""`segserve build`, `crds`, `golden` and `runtime`: commands that need no running platform."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from segserve.cli.errors import CommandError, needs
from segserve.cli.image_files import images_in
from segserve.cli.installation import installation_progress
from segserve.cli.options import model_names
from segserve.cli.terminal import spinner
from segserve.platforms.manifests import read_files

if TYPE_CHECKING:
    from segserve_operator.api.segmentation_model import SegmentationModel


def record(
    images: Annotated[Path, typer.Argument(metavar="IMAGE_FOLDER", help="Folder of images; the first three are used.")],
    file: Annotated[Path, typer.Option("--filename", "-f", help="Resource file; its digest is updated.")],
    model: Annotated[
        str | None,
        typer.Option(help="Model to use if the file has several.", show_default=False, autocompletion=model_names),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder of the golden set, if the resource has none.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Record a model's answers as its golden set; the network runs in this process.

    Check the overlays in preview/ next to the set first: the recorded answers are required from every later revision.
    """
    files = images_in(images)
    with needs("builder"):
        from segserve.cli.calibrating import loaded
        from segserve.cli.init.writing import write_golden, write_previews

        resource = _chosen(file, model)
        folder = _folder(resource, output)
        _clear(folder)
        pipeline = resource.spec.pipeline(resource.metadata.name)
        with spinner(f"running {resource.metadata.name}'s network on images of {images}"):
            digest, answers = write_golden(loaded(resource, pipeline), files, folder)
            results = write_previews(answers, resource, folder.parent / "preview")
    for image, result in zip(files, results, strict=False):
        typer.echo(f"{image.name}: {result!r}")
    typer.echo(_pinned(file, resource, folder, digest))


def _chosen(file: Path, name: str | None) -> SegmentationModel:
    from segserve_operator.api.segmentation_model import SegmentationModel

    manifests = [written.complete() for written in read_files([file])]
    models = {each["metadata"]["name"]: each for each in manifests if each["kind"] == "SegmentationModel"}
    if name is None and len(models) == 1:
        (name,) = models
    if name not in models:
        problem = "several models" if name is None else f"no model {name!r}"
        raise CommandError(f"{file} has {problem}; select one with --model: {', '.join(models) or 'none'}")
    return SegmentationModel.model_validate(models[name])


def _folder(resource: SegmentationModel, output: Path | None) -> Path:
    from urllib.request import url2pathname

    if output is not None:
        return output
    if resource.spec.golden is None:
        raise CommandError(f"{resource.metadata.name} has no spec.golden yet: set the output folder with -o")
    parts = urlsplit(resource.spec.golden.uri)
    if parts.scheme != "file":
        raise CommandError(
            f"spec.golden is at {resource.spec.golden.uri}, which is not a local folder: set one with -o"
        )
    return Path(url2pathname(parts.path))


def _clear(folder: Path) -> None:
    """Delete the images of the previous golden set, and nothing else; a set with labels is refused."""
    from segserve_builder.golden.judging import GOLDEN_FILE, load

    if not (folder / GOLDEN_FILE).exists():
        return
    before = load(folder)
    if any(case.labels is not None or case.label_map is not None for case in before.cases):
        raise CommandError(f"{folder} has labels, which would be lost; set another folder with -o")
    for case in before.cases:
        (folder / case.image).unlink()


def _pinned(file: Path, resource: SegmentationModel, folder: Path, digest: str) -> str:
    """Write the digest into the file if it names this set, and return a message with the outcome."""
    golden = resource.spec.golden
    if golden is None or urlsplit(golden.uri).path != folder.resolve().as_uri().removeprefix("file://"):
        return f"sha256 {digest}: add it to spec.golden, with the folder as uri"
    text = file.read_text()
    if golden.sha256 == digest:
        return f"{file}: unchanged"
    # The digest is in the file at most once; a textual replacement keeps the comments.
    file.write_text(text.replace(golden.sha256, digest, 1))
    return f"{file}: updated to sha256 {digest}"


golden = typer.Typer(help="Manage golden sets: images with their expected answers.", no_args_is_help=True)
runtime = typer.Typer(help="Manage the environment of Triton's Python steps.", no_args_is_help=True)


def build(
    files: Annotated[list[Path], typer.Option("--filename", "-f", help="Resource file; may be repeated.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder, created if missing.")],
) -> None:
    """Write the Triton model repository of models, for running Triton without segserve."""
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
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output folder. Default: print to standard output.")
    ] = None,
) -> None:
    """Print the custom resource definitions: `segserve crds | kubectl apply --server-side -f -`."""
    from segserve_operator.api.crd import crd_files

    for name, text in crd_files().items():
        if output is None:
            typer.echo(f"---\n{text}", nl=False)
        else:
            output.mkdir(parents=True, exist_ok=True)
            (output / name).write_text(text)


@golden.command("digest")
def golden_digest(folder: Annotated[Path, typer.Argument(help="Folder with golden.json.")]) -> None:
    """Print the sha256 of a golden set for `spec.golden.sha256`."""
    with needs("builder"):
        from segserve_builder.golden.judging import GOLDEN_FILE
        from segserve_builder.sources import folder_digest

    if not (folder / GOLDEN_FILE).is_file():
        raise CommandError(f"{folder} is not a golden set: it has no {GOLDEN_FILE}; `segserve golden record` makes one")
    typer.echo(folder_digest(folder))


golden.command("record")(record)


@runtime.command("install")
def runtime_install() -> None:
    """Install the runtime environment now instead of at the first `segserve up`."""
    with needs("local"):
        from segserve_operator.adapters.local.files import cache_folder
        from segserve_operator.adapters.local.runtime import ensure_runtime

    with installation_progress() as progress:
        installed = ensure_runtime(cache_folder(), progress)
    typer.echo(installed.root)
