"""`segserve eval`: how good a model's answers are on one's own labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from segserve_platform.cli.errors import plain
from segserve_platform.cli.options import (
    GatewayUrl,
    InFlight,
    MaxDetections,
    ModelName,
    PlatformOptions,
    RequestTimeout,
    ScoreThreshold,
    model_client,
    seconds,
    with_platform_options,
)
from segserve_platform.cli.terminal import NAMED, print_failures, print_whole, spinner
from segserve_platform.evaluation import IN_FLIGHT, RESAMPLES, WORST


@with_platform_options
def eval_(
    platform_options: PlatformOptions,
    name: ModelName,
    data: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="COCO, panoptic, Label Studio or LabelMe JSON, or a folder: with one, data.yaml (YOLO), or images/ "
            "and labels/ (PNG, TIFF).",
            show_default=False,
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder of the images. Default: looked for beside the JSON.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder of answers and report. Default: NAME-evaluation.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Classes that count, with commas. Default: all.", show_default=False),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|folder",
            help="Divide the images into slices: by a CSV file (image, slice), a JSON file, or by folder.",
            show_default=False,
        ),
    ] = None,
    labels_from: Annotated[
        int, typer.Option(min=0, max=1, help="Value of the first class in label maps; with 1, 0 does not count.")
    ] = 0,
    score_threshold: ScoreThreshold = None,
    max_detections: MaxDetections = None,
    worst: Annotated[int, typer.Option(min=0, help="Images of the lowest scores that the page shows.")] = WORST,
    resamples: Annotated[
        int, typer.Option(min=0, help="Samples of the images that intervals are made of; 0: none.")
    ] = RESAMPLES,
    in_flight: InFlight = IN_FLIGHT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of a table.")] = False,
    url: GatewayUrl = None,
    timeout: RequestTimeout = "30s",
) -> None:
    """Evaluate a model on labelled images: mean IoU and Dice, AP and AR, or panoptic quality.

    Writes report.json and report.html, with the images of the lowest scores. Answers are kept in the folder: an
    interrupted evaluation continues, and only a new revision is called again. The exit code is 1 if an image was not
    answered; such an image counts as one without findings.
    """
    import json

    from segserve_platform.evaluation.report import PAGE
    from segserve_platform.evaluation.running import evaluate

    folder = out or Path(f"{name}-evaluation")
    chosen = None if classes is None else [each.strip() for each in classes.split(",") if each.strip()]
    with (
        model_client(platform_options, name, url, timeout_s=seconds(timeout)) as client,
        spinner("reading labels") as say,
    ):
        report = evaluate(
            name,
            data,
            out=folder,
            images=images,
            classes=chosen,
            by=by,
            labels_from=labels_from,
            score_threshold=score_threshold,
            max_detections=max_detections,
            in_flight=in_flight,
            resamples=resamples,
            worst=worst,
            client=client,
            progress=lambda step, done, total: say(
                f"{done} of {total} images answered"
                if step == "images"
                else f"scoring: {done} of {total} samples"
                if total
                else "scoring"
            ),
        )
    if as_json:
        typer.echo(json.dumps(report.to_dict()))
    else:
        typer.echo(plain(f"{report.revision} on {len(report.images)} images of {report.data}"))
        print_whole(Console(), report.__rich__())
        if report.remark is not None:
            typer.echo(plain(report.remark))
        worst_names = ", ".join(each.image for each in report.worst(NAMED))
        typer.echo(plain(f"score of an image {report.score}; worst: {worst_names}"))
        typer.echo(plain(f"report: {folder / PAGE}"))
    if report.failed:
        print_failures([(each.image, each.error) for each in report.failed], len(report.images), "answered")
        raise typer.Exit(1)
