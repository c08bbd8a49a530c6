"""The command `segserve init`: inspects an ONNX file and some images, and writes the resource that serves it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from segserve_common.files import file_sha256
from segserve_platform.cli.demo import coins_folder
from segserve_platform.cli.errors import CommandError, needs
from segserve_platform.cli.image_files import images_in
from segserve_platform.cli.options import family_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from segserve.results.result import Result
    from segserve_platform.cli.init.guess import Guess
    from segserve_platform.cli.init.network import Progress, Remark

RESOURCE: Final = "model.yaml"
STAND_IN: Final = (
    "no images were given: one photograph of coins stood in for them. With images like those to be served, "
    "`segserve init IMAGE_FOLDER MODEL.ONNX` can judge what it guesses"
)
COPIED_BYTES: Final = 100_000_000
"""Size of a network below which it is copied beside the resource."""


def init(
    network: Annotated[Path, typer.Argument(metavar="MODEL.ONNX", help="The network as an ONNX file.")],
    images: Annotated[
        Path | None,
        typer.Argument(
            metavar="IMAGE_FOLDER",
            help="Images like those to be served, before or after the network. Default: one photograph of coins.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Folder to write to. Default: a folder named after the model."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the model. Default: that of the folder (-o), or of its file.",
            show_default=False,
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            metavar="FAMILY",
            help="Family of the network, instead of a guess.",
            show_default=False,
            autocompletion=family_names,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="Names of the classes in order, separated by commas.", show_default=False),
    ] = None,
    decoder: Annotated[
        Path | None,
        typer.Option(
            metavar="DECODER.ONNX",
            help="Prompt decoder of a promptable network, whose encoder is MODEL.ONNX.",
            show_default=False,
        ),
    ] = None,
    copy: Annotated[
        bool | None,
        typer.Option(
            "--copy/--no-copy",
            help="Copy the network into the folder. Default: if it has less than 100 MB.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the files of an earlier init.")] = False,
) -> None:
    """Write a first resource for an ONNX file, with comments to check.

    Family, classes, size and normalisation are read from the file or determined by running it on the images. Its memory
    and time bound the size of images, maxPixels. Values that the file does not contain are listed, and
    marked CHECK in the resource. The answers to the first images become the golden set: check them in preview/
    first.
    """
    from rich.console import Console

    from segserve_platform.cli.terminal import print_whole, spinner

    stands_in = images is None
    if images is None:
        if network.is_dir():
            raise CommandError(
                f"{network} is a folder: name the network as well, such as `segserve init {network} net.onnx`"
            )
        image_files = [coins_folder() / "coins.png"]
    else:
        if not (images.is_dir() and network.is_file()):
            network, images = images, network
        image_files = images_in(images)
    model = _name(name, network if output is None else output.resolve())
    folder = output if output is not None else Path(model)
    _refuse_to_overwrite(folder, force=force)
    if decoder is not None:
        if classes is not None or copy is not None:
            raise CommandError("--classes and --copy are not for a network with --decoder, whose files are copied")
        with needs("builder"), spinner("starting") as progress:
            from segserve_platform.cli.init.network import one_file
            from segserve_platform.cli.init.prompts import write_promptable

            with _bounded_memory(), one_file(network) as encoder, one_file(decoder) as other:
                lines = write_promptable(encoder, other, image_files, model, family, folder / RESOURCE, progress)
        typer.echo("\n".join([*lines, "", f"next: segserve up -f {folder / RESOURCE}"]))
        return
    with needs("builder"), spinner("starting") as progress:
        from segserve_platform.cli.init.guess import guess
        from segserve_platform.cli.init.network import Overrides, Remark, one_file
        from segserve_platform.cli.init.report import report

        with _bounded_memory(), one_file(network) as whole:
            if whole != network and copy is False:
                raise CommandError(f"{network} is joined with its weights, which makes a copy: leave --no-copy out")
            guessed = guess(whole, file_sha256(whole), image_files, Overrides(family, classes), progress)
            if stands_in:
                guessed = replace(guessed, remarks=(*guessed.remarks, Remark(("spec", "input"), STAND_IN, sure=False)))
            uri = _uri(whole, folder, copy=copy if whole == network else True, force=force)
            results, remarks = _write(guessed, model, uri, folder, progress)
            text = report(guessed, results, remarks, folder / RESOURCE)
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(text)  # lines break between words
    else:
        print_whole(console, text)


def _name(given: str | None, network: Path) -> str:
    from segserve_builder.spec.names import MODEL_NAME_MAX_LENGTH, MODEL_NAME_PATTERN

    name = given or re.sub("[^a-z0-9]+", "-", network.stem.lower()).strip("-")[:MODEL_NAME_MAX_LENGTH].strip("-")
    if len(name) > MODEL_NAME_MAX_LENGTH or not re.fullmatch(MODEL_NAME_PATTERN, name):
        raise CommandError(
            f"{name!r} is not a valid model name: use at most {MODEL_NAME_MAX_LENGTH} lower-case letters, digits and "
            "single dashes (--name)"
        )
    return name


def _refuse_to_overwrite(folder: Path, *, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"{folder} is a file; -o must be a folder")
    existing = [path for path in (folder / RESOURCE, folder / "golden", folder / "preview") if path.exists()]
    if existing and not force:
        raise CommandError(
            f"{', '.join(map(str, existing))} already exists; use --force to overwrite it, or -o for another folder"
        )


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Let this process allocate twice what a step may, for the duration of the block; only Linux limits it."""
    if sys.platform != "linux":
        yield
        return
    import resource

    from segserve_builder.memory import allow_allocations, step_limit_bytes

    before = resource.getrlimit(resource.RLIMIT_DATA)
    allow_allocations(2 * step_limit_bytes())
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _uri(network: Path, folder: Path, *, copy: bool | None, force: bool) -> str:
    """Return the network's address in the resource: a file's name if it is copied or there already."""
    inside = folder / network.name
    if copy is None:
        copy = network.stat().st_size < COPIED_BYTES
    if not copy or network.resolve().is_relative_to(folder.resolve()):
        return Path(os.path.relpath(network.resolve(), folder.resolve())).as_posix()
    if inside.exists() and not force:
        raise CommandError(f"{inside} already exists; use --force to overwrite it, or --no-copy")
    return network.name


def _write(
    guessed: Guess, name: str, uri: str, folder: Path, progress: Progress
) -> tuple[Sequence[Result] | None, Sequence[Remark]]:
    """Write all files; return the answers to the golden images, None without any, and all remarks.

    Raises `CommandError` if the pipeline does not answer; nothing is written then.
    """
    from segserve_operator.api.segmentation_model import SegmentationModel
    from segserve_platform.cli.init.guess import NOT_INSTALLED, model_of
    from segserve_platform.cli.init.network import Remark
    from segserve_platform.cli.init.writing import commented, golden_answers, manifest_of, write_golden, write_previews
    from segserve_platform.cli.schema import modeline

    spec: dict[str, Any] = {**guessed.spec, "artifact": {**guessed.spec["artifact"], "uri": uri}}
    manifest = manifest_of(name, spec)  # validates before anything is written
    answers = None
    if guessed.runner is not None and guessed.images:
        try:
            answers = golden_answers(model_of(guessed.spec, guessed.network), guessed.images, progress)
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise CommandError(
                f"the pipeline of family {spec['family']} fails on your images: {error}. If the guess is wrong, set "
                "--family or --classes"
            ) from error
    for old in (folder / "golden", folder / "preview"):
        shutil.rmtree(old, ignore_errors=True)  # they exist with --force only
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / uri).exists() or not (folder / uri).samefile(guessed.network.path):
        progress("copying the network")
        shutil.copyfile(guessed.network.path, folder / uri)
    remarks, results = list(guessed.remarks), None
    if answers is None:
        why = "all your images are too large"
        if guessed.runner is None:
            why = f"the network was not run, because {NOT_INSTALLED}"
        remarks.append(Remark(("spec",), f"no golden set: {why}", sure=False))
    else:
        digest = write_golden(answers, folder / "golden")
        progress("drawing the previews")
        results = write_previews(answers, SegmentationModel.model_validate(manifest), folder / "preview")
        manifest = manifest_of(name, {**spec, "golden": {"uri": "golden", "sha256": digest}})
        text = "the golden set holds this guess's own answers: check preview/ before you trust it"
        remarks.append(Remark(("spec", "golden"), text, sure=False))
    head = [
        f"Written by `segserve init` for {guessed.network.path.name}. Check the lines marked CHECK.",
        f"`segserve up -f {RESOURCE}` serves it.",
    ]
    text = commented(manifest, remarks, head)
    (folder / RESOURCE).write_text(f"{modeline(folder)}\n{text}")
    return results, remarks
