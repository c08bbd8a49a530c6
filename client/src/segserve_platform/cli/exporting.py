"""`segserve export`: a torch network becomes an ONNX artifact with its resource; an artifact gets a lower precision."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Final, Literal
from urllib.parse import urlsplit

import typer

from segserve_common.files import file_sha256
from segserve_platform.cli.errors import CommandError, needs, plain
from segserve_platform.cli.image_files import check_stems, images_in
from segserve_platform.cli.terminal import spinner
from segserve_platform.platforms.manifests import SUFFIXES, complete_models, read_files
from segserve_platform.platforms.port import MODEL

if TYPE_CHECKING:
    from segserve_builder.export.graph import Preparation
    from segserve_builder.export.image_processor import ImageProcessor
    from segserve_builder.export.networks import NetworkSource
    from segserve_builder.export.reducing import Reduced, Reduction
    from segserve_builder.export.writing import ExportResult
    from segserve_builder.families.base import Family
    from segserve_builder.stages.resize import Resize


OF_TORCH: Final = (
    *("name", "family", "weights", "classes", "size", "multiple_of", "mean", "std", "scale", "colour"),
    "force",
)
"""Options that mean nothing for a resource, which says all this itself."""


def export(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="package.module:name or file.py:name (a torch module, or a function that returns one), a folder "
            "with a transformers checkpoint; or a resource file, whose artifact gets another precision.",
            show_default=False,
        ),
    ],
    images: Annotated[Path, typer.Option(help="Folder of images for verification, calibration and the golden set.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Output folder. Default: that of a resource file.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Model name; required but for a resource file.", show_default=False)
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            help="Family: the meaning of the outputs. Default: detected for transformers checkpoints.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights of a module: .safetensors, or a pickle with only tensors.", show_default=False),
    ] = None,
    classes: Annotated[str | None, typer.Option(help="Class names, separated by commas.", show_default=False)] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Height x width that images are stretched to, such as 512x512.", show_default=False),
    ] = None,
    multiple_of: Annotated[int, typer.Option(help="Without --size: pad images to multiples of this.", min=1)] = 32,
    mean: Annotated[
        str | None,
        typer.Option(help="Subtracted from scaled pixels: one number, or one per channel.", show_default=False),
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="Divisor after the mean: one number, or one per channel.", show_default=False)
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="Factor of pixels before mean and std. Default: 1/255.", show_default=False)
    ] = None,
    colour: Annotated[
        Literal["RGB", "BGR", "GREY"] | None,
        typer.Option(help="Channels of the network's input. Default: RGB, or the checkpoint's.", show_default=False),
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option(help="Precision; int8 is calibrated on every second image, and checked on the others."),
    ] = "fp32",
    max_loss: Annotated[
        float | None,
        typer.Option(
            help="Largest loss of a class. Default: 0.05 of IoU, 0.15 of objects' agreement.",
            min=0,
            max=1,
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Folder of label PNGs with the images' names, for measuring accuracy.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the resource of an earlier export.")] = False,
) -> None:
    """Export a torch network as ONNX with its normalisation in the graph, verify it, and write its resource and golden
    set; or write the artifact of a resource file with a lower precision, and a copy of the file that serves it.
    """
    label_files = {} if labels is None else {path.stem: path for path in labels.glob("*.png")}
    if labels is not None and not label_files:
        raise CommandError(f"{labels} has no label PNGs")
    if label_files:
        check_stems(images_in(images), "a label map")
    if Path(source).suffix in SUFFIXES:
        sources = {each: context.get_parameter_source(each) for each in OF_TORCH}
        if refused := [f"--{each.replace('_', '-')}" for each, by in sources.items() if by and by.name != "DEFAULT"]:
            raise CommandError(f"{', '.join(refused)}: for torch networks only; {source} has its own")
        if precision == "fp32":
            raise CommandError(f"--precision must be fp16 or int8 for a resource file such as {source}, got fp32")
        with needs("export"):
            _reduce(Path(source), output, precision, images_in(images), label_files, max_loss)
        return
    if precision == "fp32" and (labels is not None or max_loss is not None):
        raise CommandError("--labels and --max-loss are for --precision fp16 or int8, got fp32")
    if output is None or name is None:
        raise CommandError("-o and --name are required for a torch network; only a resource file has defaults")
    resource = output / "model.yaml"
    if resource.exists() and not force:
        raise CommandError(f"{resource} already exists; use --force to overwrite it, or -o for another folder")
    with needs("export"):
        from segserve_builder.export.networks import load
        from segserve_builder.export.writing import ExportPlan, make
        from segserve_builder.families import FAMILIES

        loaded = load(source, weights, FAMILIES.get(family or ""))
        preparation = _preparation(loaded, mean, std, scale)
        plan = ExportPlan(
            name=name,
            family=_family(loaded, family),
            classes=_classes(loaded, classes),
            preparation=preparation,
            resize=_resize(preparation.processor, size, multiple_of),
            multiple_of=multiple_of,
            colour=colour or preparation.processor.colour,
            precision=precision,
        )
        made = make(loaded.module, plan, images_in(images), label_files, output, max_loss)
    _write_resource(made, name, resource)
    for line in _summary(made, resource):
        typer.echo(line)


def _family(loaded: NetworkSource, name: str | None) -> Family:
    from segserve_builder.families import FAMILIES

    family = FAMILIES.get(name) if name else loaded.family
    if family is None:
        raise CommandError(f"--family must be one of {', '.join(FAMILIES)}, got {name!r}")
    return family


def _classes(loaded: NetworkSource, given: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in given.split(",")) if given else loaded.classes
    if not names or not all(names):
        raise CommandError(
            f"--classes must be the names of the network's classes, such as background,road,car; got {given!r}"
        )
    return names


def _preparation(loaded: NetworkSource, mean: str | None, std: str | None, scale: float | None) -> Preparation:
    from segserve_builder.export.graph import Preparation

    known = loaded.preparation or Preparation(1 / 255, (0.0,), (1.0,))
    return Preparation(
        known.scale if scale is None else scale,
        known.mean if mean is None else _numbers("--mean", mean),
        known.std if std is None else _numbers("--std", std),
        known.processor,
    )


def _resize(processor: ImageProcessor, size: str | None, multiple_of: int) -> Resize:
    from segserve_builder.stages.resize import Resize

    options = processor.resize(None, multiple_of)
    if size is not None:
        height, width = _height_and_width(size)
        resampling = processor.resampling if processor.config else {}
        options = {"mode": "stretch", "height": height, "width": width, **resampling}
    return Resize.model_validate(options or {"mode": "keep", "multipleOf": multiple_of, "padding": "edge"})


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3):
        raise CommandError(f"{option} must be one number, or three separated by commas, got {text!r}")
    return numbers


def _height_and_width(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise CommandError(f"--size must be height x width in pixels, such as 512x512, got {text!r}")
    return int(height), int(width)


def _write_resource(made: ExportResult, name: str, path: Path) -> None:
    from segserve_operator.api.documents import write_documents
    from segserve_operator.api.segmentation_model import SegmentationModel

    manifest = {
        "apiVersion": "segserve.dev/v1alpha1",
        "kind": "SegmentationModel",
        "metadata": {"name": name},
        "spec": made.spec,
    }
    SegmentationModel.model_validate(manifest)
    path.write_text(write_documents([manifest]))


def _summary(made: ExportResult, resource: Path) -> Iterator[str]:
    size = made.size_bytes / 2**20
    yield f"{made.spec['artifact']['uri']}  {size:.1f} MiB  sha256 {made.spec['artifact']['sha256'][:12]}..."
    yield f"verified: outputs differ from the network's by at most {made.difference:.1g} of their range"
    if made.reduction is not None:
        yield from _reduction_lines(made.reduction)
    yield f"next: segserve up -f {resource}"


def _reduction_lines(made: Reduction) -> Iterator[str]:
    (before, after), (before_ms, after_ms) = (size / 2**20 for size in made.size_bytes), made.run_ms
    yield f"{before:.1f} -> {after:.1f} MiB, {before_ms:.1f} -> {after_ms:.1f} ms an image on this machine"
    if made.calibrated_on:
        yield f"calibrated on {made.calibrated_on} images, digest {made.calibration_sha256}"
    yield f"{made.accuracy.measure}, before and after:"
    for each in made.accuracy.classes:
        if each.after is None:
            continue
        rare = "" if each.is_judged else "  (too rare to be judged)"
        before_text = "not present" if each.before is None else f"{each.before:.4f}"
        yield f"  {plain(each.name):<20} {before_text}  {each.after:.4f}{rare}"
    if absent := sum(each.after is None for each in made.accuracy.classes):
        yield f"  not present: {absent} classes"
    if made.accuracy.changed is not None:
        yield "  objects lost: {}, added: {}".format(*made.accuracy.changed)


def _reduce(
    file: Path,
    output: Path | None,
    precision: Reduced,
    images: list[Path],
    labels: dict[str, Path],
    max_loss: float | None,
) -> None:
    """Write the artifact of a resource file with a reduced precision, and a copy of the file that names it."""
    from segserve_builder.export.reducing import reduce_precision
    from segserve_builder.sources import fetch, fetch_folder
    from segserve_builder.steps.in_process import InProcessModel
    from segserve_operator.adapters.local.access import local_access
    from segserve_operator.adapters.local.files import cache_folder
    from segserve_operator.api.documents import with_strings

    written = read_files([file])
    if [each.resource.kind for each in written] != [MODEL]:
        raise CommandError(f"{file} must have one {MODEL}, got {', '.join(each.title for each in written)}")
    ((name, resource),) = complete_models(written).items()
    artifact, golden, pipeline = resource.spec.artifact, resource.spec.golden, resource.spec.pipeline(name)
    if pipeline.second is not None or pipeline.light is not None:
        raise CommandError(f"{name} has two networks; only a model of one gets another precision")
    folder = file.parent if output is None else output
    target, copy = folder / f"{name}.{precision}.onnx", folder / f"{file.stem}-{precision}.yaml"
    text, digest = file.read_bytes().decode(), ("spec", "artifact", "sha256")  # bytes keep CRLF
    strings: dict[tuple[str | int, ...], str] = {("spec", "artifact", "uri"): target.name}
    if golden is not None and folder.resolve() != file.parent.resolve():
        uri = written[0].value["spec"]["golden"]["uri"]
        if not urlsplit(uri).scheme:
            back = PurePosixPath(os.path.relpath(file.parent.resolve(), folder.resolve()))
            strings["spec", "golden", "uri"] = (back / uri).as_posix()
    if copy.exists():
        strings[digest] = file_sha256(target) if target.exists() else ""
        if copy.read_bytes() != with_strings(text, strings).encode():
            raise CommandError(
                f"{copy} already exists, and it, {file} or {target.name} has changed since: remove it, or use -o for "
                "another folder"
            )
    cache, access = cache_folder(), local_access()
    full = fetch(artifact.uri, artifact.sha256, cache, access)
    answers = None if golden is None else fetch_folder(golden.uri, golden.sha256, cache, access)
    with spinner(f"running {name}'s network on {len(images)} images, before and after"):
        original = InProcessModel(pipeline, full)
        made = reduce_precision(original, target, precision, images, labels=labels, golden=answers, max_loss=max_loss)
    strings[digest] = file_sha256(target)
    copy.write_bytes(with_strings(text, strings).encode())
    typer.echo(f"{target}  sha256 {strings[digest][:12]}...")
    for line in _reduction_lines(made):
        typer.echo(line)
    if artifact.signature is not None:
        typer.echo(f"first sign {target.name}, and name its signature in spec.artifact.signature of {copy}")
    if artifact.provenance is not None:
        typer.echo(f"spec.artifact.provenance of {copy} is still that of the full file")
    if problems := made.golden_problems:
        typer.echo(f"the golden set refuses this file, and so do servers ({len(problems)} images): {problems[0]}")
        typer.echo(
            f"next: check its masks, and record them: segserve golden record {images[0].parent} -f {copy} -o FOLDER"
        )
    else:
        typer.echo(f"next: segserve up -f {copy}, or kubectl apply -f {copy} with the file in your store")
