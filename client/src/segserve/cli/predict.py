"""`segserve predict`: segments images and prints results, with overlays, masks or COCO JSON on request."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from segserve.cli.errors import CommandError
from segserve.cli.image_files import ImageFile, image_files, overlay_paths
from segserve.cli.options import (
    HOPELESS,
    PANEL,
    GatewayUrl,
    ModelName,
    PlatformOptions,
    ScoreThreshold,
    gateway,
    with_advice,
    with_platform_options,
)
from segserve.errors import ModelNotFoundError
from segserve_common.errors import BadRequestError, SegserveError

if TYPE_CHECKING:
    from rich.table import Table

    from segserve.results.result import Result

TABLES: Final = 5
"""Up to this many images print a table each; more print a line each."""


@dataclass(frozen=True)
class OutputTargets:
    """The output files of each image."""

    overlays: Mapping[ImageFile, Path]
    masks: Path | None
    coco: bool


@dataclass(frozen=True)
class ImageOutcome:
    """The outcome of one image: its result and COCO data set, or its error."""

    image: ImageFile
    result: Result | None = None
    document: dict[str, Any] | None = None
    error: SegserveError | None = None


@with_platform_options
def predict(
    platform_options: PlatformOptions,
    name: ModelName,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE",
            help="JPEG, PNG, WebP or TIFF files, quoted globs, folders, or - for standard input.",
            show_default=False,
        ),
    ],
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Include subfolders.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Write overlays: a file for one image; a folder, or a path with {stem}, for several.",
            show_default=False,
            rich_help_panel="Output",
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write masks as PNG: label maps, or a file per object.",
            show_default=False,
            rich_help_panel="Output",
        ),
    ] = None,
    coco: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write all results as one COCO data set.",
            show_default=False,
            rich_help_panel="Output",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the COCO data set instead of tables.", rich_help_panel="Output")
    ] = False,
    score_threshold: ScoreThreshold = None,
    max_detections: Annotated[
        int | None, typer.Option(help="Keep at most this many detections.", show_default=False)
    ] = None,
    encoding: Annotated[
        Literal["rle", "polygons", "png", "raw"] | None,
        typer.Option(help="Encoding of masks in the answer; does not change the result.", show_default=False),
    ] = None,
    in_flight: Annotated[int, typer.Option(min=1, max=256, help="Concurrent images.")] = 4,
    url: GatewayUrl = None,
    transport: Annotated[
        Literal["http", "grpc"], typer.Option(help="Protocol to the gateway.", rich_help_panel=PANEL)
    ] = "http",
    timeout: Annotated[float, typer.Option(min=0.001, help="Timeout of each image in seconds.")] = 30.0,
) -> None:
    """Segment images with a model and print the results.

    Up to --in-flight images are sent concurrently, and results print in input order. An image that fails does not stop
    the others: errors are printed, and the exit code is 1.
    """
    from segserve.calls.many import SegmentKeywords
    from segserve.client import Client

    files = image_files(images, recursive=recursive)
    targets = OutputTargets(overlay_paths(files, output), masks, coco=as_json or coco is not None)
    _check_targets(files, masks, coco)
    options = SegmentKeywords(score_threshold=score_threshold, max_detections=max_detections, encoding=encoding)
    began_s = time.monotonic()
    try:
        with (
            gateway(platform_options, name, url) as address,
            Client(address, transport=transport, timeout_s=timeout) as client,
        ):
            ask = partial(client.segment, model=name, **options)
            outcomes = list(_shown(_outcomes(ask, files, targets, in_flight), files, targets, quiet=as_json))
    except ModelNotFoundError as error:
        raise with_advice(error, platform_options, name) from error
    if as_json or coco is not None:
        _write_coco([one.document for one in outcomes if one.document is not None], coco, print_it=as_json)
    failed = [one for one in outcomes if one.error is not None]
    if len(files) > 1:
        typer.echo(_summary(files, failed, time.monotonic() - began_s, (output, masks, coco)), err=True)
    if failed:
        raise typer.Exit(1)


def _outcomes(
    ask: Callable[[bytes], Result], images: Sequence[ImageFile], targets: OutputTargets, in_flight: int
) -> Iterator[ImageOutcome]:
    """Yield an outcome per image, in order; raises an error that affects all images if the first one has it."""
    from segserve.calls.many import in_order

    answered = False
    calls = (partial(_outcome, ask, image, number, targets) for number, image in enumerate(images, 1))
    for outcome in in_order(calls, in_flight):
        if outcome.error is not None and not answered and (len(images) == 1 or isinstance(outcome.error, HOPELESS)):
            raise outcome.error
        answered = True
        yield outcome


def _outcome(ask: Callable[[bytes], Result], image: ImageFile, number: int, targets: OutputTargets) -> ImageOutcome:
    try:
        data = image.read()
        result = ask(data)
        if image in targets.overlays:
            _write_overlay(result, data, targets.overlays[image])
        if targets.masks is not None:
            _write_masks(result, targets.masks, image)
    except SegserveError as error:
        return ImageOutcome(image, error=error)
    document = result.to_coco(image_id=number, file_name=image.name) if targets.coco else None
    return ImageOutcome(image, result, document)


def _shown(
    outcomes: Iterator[ImageOutcome], images: Sequence[ImageFile], targets: OutputTargets, *, quiet: bool
) -> Iterator[ImageOutcome]:
    """Print the outcomes and yield them without their results, which are thereby released."""
    with _progress(len(images)) as advance:
        for outcome in outcomes:
            if outcome.error is not None:
                typer.echo(f"error: {outcome.image}: {outcome.error}", err=True)
            elif outcome.result is not None and not quiet:
                _print(outcome.image, outcome.result, table=len(images) <= TABLES)
                if outcome.image in targets.overlays and len(images) <= TABLES:
                    typer.echo(f"overlay: {targets.overlays[outcome.image]}")
            advance()
            yield ImageOutcome(outcome.image, document=outcome.document, error=outcome.error)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar if stderr is a terminal."""
    if total == 1 or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task("images", total=total)
        yield lambda: bar.advance(task)


def _print(image: ImageFile, result: Result, *, table: bool) -> None:
    from rich.console import Console

    if table:
        Console().print(result_table(Path(image.name), result))
        return
    from segserve.rendering.display import printable

    classes = ", ".join(
        " ".join(row[key] for key in ("count", "class", "share") if key in row) for row in result.summary_rows()
    )
    typer.echo(f"{printable(image.name, 200)}: {classes or 'nothing'}")


def result_table(image: Path, result: Result) -> Table:
    """Return one image's table with a row per class, by count or by area."""
    from segserve.rendering.display import table

    return table(result, image.name)


def _summary(
    images: Sequence[ImageFile], failed: Sequence[ImageOutcome], seconds: float, written: Sequence[Path | None]
) -> str:
    places = ", ".join(str(path) for path in written if path is not None)
    parts = [f"{len(images)} images", f"{len(failed)} failed" if failed else "all segmented", f"{seconds:.1f} s"]
    return ", ".join(parts) + (f"; written: {places}" if places else "")


def _write_coco(documents: list[dict[str, Any]], target: Path | None, *, print_it: bool) -> None:
    from segserve.exports.coco import merge

    text = json.dumps(merge(documents), indent=2)
    if print_it:
        typer.echo(text)
    if target is None:
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n")
    except OSError as error:
        raise CommandError(f"cannot write {str(target)!r}: {error.strerror}") from error


def _check_targets(images: Sequence[ImageFile], masks: Path | None, coco: Path | None) -> None:
    """Report output paths that are invalid before the first request is sent."""
    if masks is not None and masks.exists() and not masks.is_dir():
        raise CommandError(f"--masks must be a folder; {str(masks)!r} is a file")
    if masks is not None and len({image.within.with_suffix("") for image in images}) < len(images):
        raise CommandError("--masks: two images have the same name, so their masks would share a file")
    if coco is not None and coco.is_dir():
        raise CommandError(f"--coco must be a file; {str(coco)!r} is a folder")


def _write_overlay(result: Result, image: bytes, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        result.overlay(image).save(target)
    except (OSError, ValueError) as error:
        raise BadRequestError(f"cannot write overlay {str(target)!r}: {error}") from error


def _write_masks(result: Result, folder: Path, image: ImageFile) -> None:
    from segserve.cli.mask_files import write_masks

    try:
        write_masks(result, folder, image.within)
    except OSError as error:
        raise BadRequestError(f"cannot write masks of {image} into {str(folder)!r}: {error}") from error
