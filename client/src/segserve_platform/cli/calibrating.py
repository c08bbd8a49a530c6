"""`segserve calibrate`: fits the temperature of a semantic model's probabilities on a labelled set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from segserve_platform.cli.errors import CommandError, needs
from segserve_platform.cli.image_files import check_stems, images_in
from segserve_platform.platforms.manifests import complete_models, read_files

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from segserve_builder.steps.in_process import InProcessModel
    from segserve_builder.steps.pipeline import Pipeline
    from segserve_builder.values import Logits
    from segserve_operator.api.segmentation_model import SegmentationModel

LABEL_MODES: Final = ("1", "L", "P", "I", "I;16")
SHOWN: Final = 5


def calibrate(
    images: Annotated[Path, typer.Argument(help="Folder of images.", show_default=False)],
    labels: Annotated[
        Path,
        typer.Argument(
            help="Folder with a PNG of class ids for each image, of the same name and size.", show_default=False
        ),
    ],
    files: Annotated[list[Path], typer.Option("--filename", "-f", help="Resource file; may be repeated.")],
    model: Annotated[
        str | None, typer.Option(help="Model to use if the files have several.", show_default=False)
    ] = None,
    ignore: Annotated[int | None, typer.Option(help="Label of pixels to ignore.", show_default=False)] = None,
    pixels: Annotated[int, typer.Option(min=1, help="Pixels sampled per image, the same in every run.")] = 20_000,
    bins: Annotated[int, typer.Option(min=1, help="Bins of the expected calibration error.")] = 15,
) -> None:
    """Fit the temperature of a model's stage `calibrate` on a labelled set; the network runs in this process."""
    import numpy as np

    pairs = _pairs(images, labels)
    with needs("builder"):
        from segserve_builder.golden.calibration import (
            confidence_and_correct,
            expected_calibration_error,
            fit_temperature,
            negative_log_likelihood,
        )

    resource = _chosen(files, model)
    found = list(_labelled_pixels(resource, pairs, ignore, pixels))
    logits, truth = (np.concatenate(parts) for parts in list(zip(*found, strict=True))[:2])
    if not len(truth):
        raise CommandError(f"{labels}: every pixel has the ignored label {ignore}")
    before, after = found[0][2], fit_temperature(logits, truth)
    typer.echo(f"{resource.metadata.name}: {len(truth)} pixels of {len(pairs)} images")
    for name, temperature in (("before", before), ("after", after)):
        loss = negative_log_likelihood(logits, truth, temperature)
        error = expected_calibration_error(*confidence_and_correct(logits, truth, temperature), bins)
        typer.echo(f"{name:7} temperature {temperature:<8.4g} NLL {loss:.4f}  ECE {error:.4f}")
    typer.echo("add to postprocess, before the stage that turns logits into labels:")
    typer.echo(f"    - calibrate: {{temperature: {after:.4g}}}")


def _pairs(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    found = images_in(images)
    if not labels.is_dir():
        raise CommandError(f"{labels} is not a folder")
    check_stems(found, "a label map")
    pairs = [(path, labels / f"{path.stem}.png") for path in found]
    missing = [label.name for _, label in pairs if not label.is_file()]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise CommandError(f"{labels} lacks {', '.join(missing[:SHOWN])}{more}: every image needs a label map")
    return pairs


def _chosen(files: list[Path], name: str | None) -> SegmentationModel:
    from segserve_builder.values import ValueType

    models = complete_models(read_files(files))
    if name is not None and name not in models:
        raise CommandError(f"no model {name!r} in {', '.join(map(str, files))}; found: {', '.join(models) or 'none'}")
    selected = models if name is None else {name: models[name]}
    fitting = [item for item in selected.values() if _label_stage(item.spec.pipeline("any")) is not None]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise CommandError(f"several models could be calibrated: {', '.join(models)}; select one with --model")
    raise CommandError(
        f"{', '.join(selected) or 'nothing'} has no stage from {ValueType.LOGITS} to {ValueType.LABELS}; "
        "only such a model can be calibrated with label maps"
    )


def _label_stage(pipeline: Pipeline) -> Any:
    """Return the stage that turns logits into labels, or None if the pipeline has no such stage."""
    from segserve_builder.stages.argmax import Argmax
    from segserve_builder.steps.pipeline import named_postprocess

    return next((stage for _, stage in named_postprocess(pipeline) if isinstance(stage, Argmax)), None)


def _labelled_pixels(
    resource: SegmentationModel, pairs: list[tuple[Path, Path]], ignore: int | None, pixels: int
) -> Iterator[tuple[NDArray[Any], NDArray[Any], float]]:
    """Yield logits (N, C), labels (N,) and the current temperature for sampled pixels of each image."""
    import numpy as np

    from segserve_builder.sampling import axes, logits_at

    pipeline = resource.spec.pipeline(resource.metadata.name)
    model, aligned = loaded(resource, pipeline), _label_stage(pipeline).align_corners
    for image, label in pairs:
        value, truth = _logits(model, pipeline, image), _read_labels(label)
        place = value.transform
        if truth.shape != (place.height, place.width):
            seen = f"{label} has {truth.shape[0]} x {truth.shape[1]} pixels"
            raise CommandError(f"{seen}, {image.name} has {place.height} x {place.width}")
        chosen = np.arange(truth.size) if ignore is None else np.flatnonzero(truth != ignore)
        if len(chosen) > pixels:
            chosen = np.random.default_rng(0).choice(chosen, pixels, replace=False)
        classes = max(len(value.values), 2)
        own = truth.ravel()[chosen]
        if own.size and not 0 <= own.min() <= own.max() < classes:
            outside = own[(own < 0) | (own >= classes)][0]
            raise CommandError(
                f"{label} has the label {outside}; allowed: 0 to {classes - 1}, and the label of --ignore"
            )
        rows, columns = axes(place, *value.values.shape[1:], align_corners=aligned)
        yield logits_at(value.values, rows, columns, *np.divmod(chosen, place.width)), own, value.temperature


def named_model(
    file: Path, name: str | None, fits: Callable[[SegmentationModel], bool] = lambda _: True
) -> SegmentationModel:
    """Return the named model of a resource file, or the only one that `fits`, or its only one."""
    models = complete_models(read_files([file]))
    fitting = [each for each, model in models.items() if fits(model)] or [*models]
    if name is None and len(fitting) == 1:
        (name,) = fitting
    if name not in models:
        problem = "several models" if name is None else f"no model {name!r}"
        raise CommandError(f"{file} has {problem}; select one with --model: {', '.join(models) or 'none'}")
    return models[name]


def loaded(resource: SegmentationModel, pipeline: Pipeline) -> InProcessModel:
    """Return a resource's pipeline with its artifacts, ready to run in this process."""
    from segserve_builder.sources import fetch
    from segserve_builder.steps.in_process import InProcessModel
    from segserve_operator.adapters.local.access import local_access
    from segserve_operator.adapters.local.files import cache_folder

    try:
        import onnxruntime  # noqa: F401
    except ModuleNotFoundError as error:
        raise CommandError("this command runs the network in this process: pip install onnxruntime") from error
    assigned, cache, access = resource.assigned, cache_folder(), local_access()
    files = {
        role: fetch(artifact.uri, artifact.sha256, cache, access)
        for role, (_, artifact) in assigned.networks.items()
        if role != "light"  # a cascade's answers are not asked for
    }
    return InProcessModel(pipeline, files["first"], files.get("second"), decoder=files.get("decoder"))


def _logits(model: InProcessModel, pipeline: Pipeline, image: Path) -> Logits:
    """Return the input of argmax for one image."""
    from dataclasses import replace

    import numpy as np

    from segserve_builder.families import FAMILIES
    from segserve_builder.stages.argmax import Argmax
    from segserve_builder.stages.base import RequestOptions
    from segserve_builder.steps.pipeline import named_postprocess

    given = model.network_input(image.read_bytes())
    value: Any = FAMILIES[pipeline.family].read(model.raw(given), given.transform, pipeline)
    for _, stage in named_postprocess(pipeline):
        if isinstance(stage, Argmax):
            break
        value = stage(replace(value, guide=given.guide) if stage.needs_guide else value, RequestOptions())
    if not np.isfinite(value.values).all():
        raise CommandError(f"{image}: the network's output has NaN or infinite values")
    logits: Logits = value
    return logits


def _read_labels(path: Path) -> NDArray[Any]:
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.mode not in LABEL_MODES:
                raise CommandError(
                    f"{path} has mode {image.mode}; a label map has one channel: {', '.join(LABEL_MODES)}"
                )
            return np.asarray(image).astype(np.int64)
    except (UnidentifiedImageError, OSError) as error:
        raise CommandError(f"{path} is not a label map: {error}") from error
