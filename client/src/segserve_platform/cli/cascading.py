"""`segserve golden cascade`: finds the threshold of a cascade on its golden set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segserve_platform.cli.calibrating import loaded, named_model
from segserve_platform.cli.errors import CommandError, needs
from segserve_platform.cli.options import ModelOfFile
from segserve_platform.cli.terminal import spinner

if TYPE_CHECKING:
    from segserve_operator.api.segmentation_model import SegmentationModel


def cascade(
    file: Annotated[Path, typer.Option("--filename", "-f", help="Resource file.")],
    max_loss: Annotated[
        float | None,
        typer.Option(
            min=0.0001,
            max=0.5,
            help="Largest expected loss of quality against the heavy network alone. Default: the spec's, else 0.01.",
            show_default=False,
        ),
    ] = None,
    model: ModelOfFile = None,
) -> None:
    """Find the score above which the heavy network is used (spec.cascade.threshold).

    It is found by conformal risk control on the images of spec.golden, which both networks answer in this process: a
    further image of the same kind then loses at most --max-loss on average. Images with labels are judged by them, else
    by how far the light answer is from the heavy one. They should not be of either training set.
    """
    with needs("builder"):
        from segserve_builder.golden.risk_control import cascade_threshold

    resource = named_model(file, model, lambda each: each.spec.cascade is not None)
    spec = resource.spec
    if spec.cascade is None or spec.golden is None:
        lacks = "spec.cascade" if spec.cascade is None else "spec.golden"
        raise CommandError(f"{resource.metadata.name} has no {lacks}; the threshold is found for both")
    allowed = max_loss or spec.cascade.max_loss or 0.01
    with spinner(f"running both networks of {resource.metadata.name} on its golden images"):
        scores, losses = measured(resource)
    try:
        found = cascade_threshold(scores, losses, allowed)
    except ValueError as error:
        raise CommandError(f"{spec.golden.uri}: {error}") from error
    typer.echo(
        f"{resource.metadata.name}: {found.images} images, scores from {min(scores):.4g} to {max(scores):.4g}; "
        f"{found.heavy_share:.0%} go to the heavy network, and lose {found.loss:.4g} on average (expected: at most "
        f"{found.loss_bound:.4g})"
    )
    typer.echo(f"set in spec.cascade: threshold: {found.threshold!r}, maxLoss: {allowed:g}")


def measured(resource: SegmentationModel) -> tuple[list[float], list[float]]:
    """Return the score of each golden image's light answer, and by how much it is worse than the heavy one."""
    from segserve_builder.errors import BuilderError
    from segserve_builder.scoring.cascade_loss import cascade_losses
    from segserve_builder.scoring.regions import read_golden_images
    from segserve_builder.sources import fetch, fetch_folder
    from segserve_builder.stages.base import RequestOptions
    from segserve_builder.steps.in_process import InProcessModel
    from segserve_operator.adapters.local.access import local_access
    from segserve_operator.adapters.local.files import cache_folder

    pipeline = resource.spec.pipeline(resource.metadata.name)
    rule, golden, first = pipeline.cascade, resource.spec.golden, resource.assigned.light_artifact
    assert rule is not None
    assert golden is not None
    assert pipeline.light is not None
    assert first is not None
    heavy = loaded(resource, pipeline.model_copy(update={"cascade": None}))
    cache, access = cache_folder(), local_access()
    try:
        light = InProcessModel(pipeline.light, fetch(first.uri, first.sha256, cache, access))
        folder = fetch_folder(golden.uri, golden.sha256, cache, access)
        images = read_golden_images(folder, golden.sha256, pipeline)
        options = RequestOptions(encoding="rle" if "encoding" in images.parameters else None)
        scores: list[float] = []

        def light_answer(image: bytes) -> Any:
            score, outputs = light.scored(image, options, rule)
            scores.append(score)
            return outputs

        return scores, cascade_losses(images, lambda image: heavy.answer(image, options), light_answer)
    except BuilderError as error:
        raise CommandError(str(error)) from error
