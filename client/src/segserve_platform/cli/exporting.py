"""`segserve export`: a torch network becomes an ONNX artifact, its golden set and the resource that serves it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from segserve_platform.cli.errors import CommandError, needs, plain
from segserve_platform.cli.image_files import images_in

if TYPE_CHECKING:
    from segserve_builder.export.graph import Preparation
    from segserve_builder.export.image_processor import ImageProcessor
    from segserve_builder.export.networks import NetworkSource
    from segserve_builder.export.writing import ExportResult
    from segserve_builder.families.base import Family
    from segserve_builder.stages.resize import Resize


def export(
    source: Annotated[
        str,
        typer.Argument(
            help="package.module:name or file.py:name (a torch module, or a function that returns one), a TorchScript "
            "file, or a folder with a transformers checkpoint.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder, created if missing.")],
    name: Annotated[str, typer.Option(help="Model name.")],
    images: Annotated[
        Path,
        typer.Option(help="Folder of images for verification, calibration and the golden set."),
    ],
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
        Literal["fp32", "fp16", "int8"], typer.Option(help="Precision of the weights; fp16 and int8 are smaller.")
    ] = "fp32",
    labels: Annotated[
        Path | None,
        typer.Option(help="Folder of label PNGs with the images' names, for measuring accuracy.", show_default=False),
    ] = None,
) -> None:
    """Export a torch network as ONNX with its normalisation in the graph, verify it, and write its resource and golden
    set.
    """
    with needs("export"):
        from segserve_builder.export.networks import load
        from segserve_builder.export.sandbox import HELD
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
        label_files = {} if labels is None else {path.stem: path for path in labels.glob("*.png")}
        made = make(loaded.module, plan, images_in(images), label_files, output)
    if loaded.sandboxed is not None:
        typer.echo(f"{loaded.sandboxed} was read in a sandbox: {HELD}")
    for line in _summary(made, plan.classes, _write_resource(made, name, output)):
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


def _write_resource(made: ExportResult, name: str, folder: Path) -> Path:
    from segserve_operator.api.documents import write_documents
    from segserve_operator.api.segmentation_model import SegmentationModel

    manifest = {
        "apiVersion": "segserve.dev/v1alpha1",
        "kind": "SegmentationModel",
        "metadata": {"name": name},
        "spec": made.spec,
    }
    SegmentationModel.model_validate(manifest)
    path = folder / "model.yaml"
    path.write_text(write_documents([manifest]))
    return path


def _summary(made: ExportResult, classes: tuple[str, ...], resource: Path) -> Iterator[str]:
    size = made.size_bytes / 2**20
    yield f"{made.spec['artifact']['uri']}  {size:.1f} MiB  sha256 {made.spec['artifact']['sha256'][:12]}..."
    yield f"verified: outputs differ from the network's by at most {made.difference:.1g} of their range"
    if made.accuracy is not None:
        yield f"IoU by class against {made.accuracy.against}, before and after:"
        for name, before, after in zip(classes, made.accuracy.before, made.accuracy.after, strict=True):
            values = "not present" if before is None or after is None else f"{before:.4f}  {after:.4f}"
            yield f"  {plain(name):<20} {values}"
    yield f"next: segserve up -f {resource}"
