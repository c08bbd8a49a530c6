"""`segserve predict`: segments images and prints results, with overlays, masks or COCO JSON on request.

On a terminal the progress bar and everything printed below it share one console, which keeps them apart.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import typer

from segserve.calls.endpoint import URL_VARIABLE
from segserve.errors import HOPELESS, ImageTooLargeError, MissingExtraError, RequestTooLargeError
from segserve.rendering.output_files import save_image, written_whole
from segserve_common.errors import BadRequestError, SegserveError
from segserve_platform.cli.coco_text import CocoText
from segserve_platform.cli.errors import CommandError, plain
from segserve_platform.cli.image_files import ImageFile, image_files, output_stems, overlay_paths
from segserve_platform.cli.options import (
    PANEL,
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
from segserve_platform.cli.terminal import print_whole

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from segserve.calls.prompts import Box, Click
    from segserve.client import Client
    from segserve.results.images import ImageLike
    from segserve.results.result import Result
    from segserve.results.values import ModelInfo
    from segserve.tiled.results import TiledObjects, TiledSemanticResult

PROMPTS: Final = "Prompts"
TABLES: Final = 5
"""Up to this many images print a table each; more print a line each."""
BATCH: Final = " IMAGE -o tiled"
SMALLER: Final = ". Make it smaller"
PYTHON_CALL: Final = re.compile(r"client\.segment_tiled\(.*?\), (?=`segserve batch )")
Ask: TypeAlias = "Callable[[ImageLike], tuple[Result, list[str]]]"
NAMED: Final = 3
"""Up to this many of the files that are left out are named."""


@dataclass(frozen=True)
class OutputTargets:
    """The output files of each image."""

    overlays: Mapping[ImageFile, Path]
    masks: Path | None
    stems: Mapping[ImageFile, PurePath]
    coco: bool
    batch_options: str
    """Options that `segserve batch` needs as well, to reach the same model."""
    info: Callable[[], ModelInfo]


@dataclass(frozen=True)
class ImageOutcome:
    """The outcome of one image: its result and COCO data set, or its error."""

    image: ImageFile
    result: Result | None = None
    document: dict[str, Any] | None = None
    error: SegserveError | None = None
    notes: Sequence[str] = ()
    at_limit: bool = False
    """Whether the result has as many objects as the limit."""


@with_platform_options
def predict(
    platform_options: PlatformOptions,
    name: ModelName,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE",
            help="JPEG, PNG, WebP, TIFF and other image files, quoted globs, folders, or - for standard input.",
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
    max_detections: MaxDetections = None,
    encoding: Annotated[
        Literal["rle", "polygons", "png", "raw"] | None,
        typer.Option(help="Encoding of masks in the answer; does not change the result.", show_default=False),
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y", help="Point of the object, for a promptable model; repeatable.", rich_help_panel=PROMPTS
        ),
    ] = None,
    background: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y", help="Point that is not of the object; repeatable.", rich_help_panel=PROMPTS),
    ] = None,
    box: Annotated[
        str | None,
        typer.Option(metavar="X,Y,WIDTH,HEIGHT", help="Box around the object, in pixels.", rich_help_panel=PROMPTS),
    ] = None,
    in_flight: InFlight = 4,
    url: GatewayUrl = None,
    transport: Annotated[
        Literal["http", "grpc"], typer.Option(help="Protocol to the gateway.", rich_help_panel=PANEL)
    ] = "http",
    timeout: RequestTimeout = "30s",
) -> None:
    """Segment images with a model and print the results.

    Up to --in-flight images are sent concurrently, and results print in input order. An image that fails does not stop
    the others: errors are printed, and the exit code is 1.
    """
    from segserve.calls.many import SegmentKeywords

    selection = image_files(images, recursive=recursive)
    files = selection.images
    stems = output_stems(files) if masks is not None else {}
    overlays = overlay_paths(files, output)
    _check_targets(masks, coco)
    if selection.skipped:
        typer.echo(_left_out(selection.skipped), err=True)
    from segserve.calls.prompts import read_prompts

    prompts = read_prompts(point or [], background or [], box, prefix="--")
    if prompts and (score_threshold, max_detections, encoding) != (None, None, None):
        raise CommandError("--score-threshold, --max-detections and --encoding are not for prompts; leave them out")
    options = SegmentKeywords(score_threshold=score_threshold, max_detections=max_detections, encoding=encoding)
    began_s = time.monotonic()
    with (
        CocoText(coco.parent if coco is not None else None) as data_set,
        model_client(platform_options, name, url, transport=transport, timeout_s=seconds(timeout)) as client,
    ):
        whole = partial(client.segment, model=name, **options)
        tiles = partial(client.segment_tiled, model=name, progress=False, score_threshold=score_threshold,
                        max_detections=max_detections)  # fmt: skip
        ask = partial(_prompted, client, name, prompts) if prompts else partial(_answer, whole, tiles)
        advice = _batch_options(platform_options, url, score_threshold)
        info = partial(client.model_info, name)
        targets = OutputTargets(overlays, masks, stems, as_json or coco is not None, advice, info)
        failed, at_limit = [], 0
        for outcome in _shown(_outcomes(ask, files, targets, in_flight), files, targets, quiet=as_json):
            if outcome.error is not None:
                failed.append(outcome)
            at_limit += outcome.at_limit
            if outcome.document is not None:
                with _writing(coco):
                    data_set.add(outcome.document)
        if at_limit:
            field = "maxDetections of output or a stage" if max_detections is None else "--max-detections"
            reached = f"{at_limit} of {len(files)} results have as many objects as the limit"
            typer.echo(f"note: {reached} ({field}): there may be more", err=True)
        if as_json:
            for chunk in data_set.chunks():
                typer.echo(chunk, nl=False)
        if coco is not None:
            with _writing(coco), written_whole(coco) as path, path.open("w") as file:
                file.writelines(data_set.chunks())
    if len(files) > 1:
        typer.echo(_summary(files, failed, time.monotonic() - began_s, (output, masks, coco)), err=True)
    if failed:
        raise typer.Exit(1)


def _left_out(skipped: Sequence[Path]) -> str:
    named = ", ".join(map(str, skipped[:NAMED]))
    more = f" and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
    return f"skipped {len(skipped)} file{'' if len(skipped) == 1 else 's'} without the name of an image: {named}{more}"


def _outcomes(ask: Ask, images: Sequence[ImageFile], targets: OutputTargets, in_flight: int) -> Iterator[ImageOutcome]:
    """Yield an outcome per image, in order; raises an error that affects all images if the first one has it."""
    from segserve.calls.many import in_order

    answered = False
    calls = (partial(_outcome, ask, image, number, targets) for number, image in enumerate(images, 1))
    for outcome in in_order(calls, in_flight):
        if outcome.error is not None and not answered and (len(images) == 1 or isinstance(outcome.error, HOPELESS)):
            raise outcome.error
        answered = True
        yield outcome


def _outcome(ask: Ask, image: ImageFile, number: int, targets: OutputTargets) -> ImageOutcome:
    content = None
    try:
        content = image.read()
        result, notes = ask(content.image)
        if image in targets.overlays:
            _write_overlay(result, content.image, targets.overlays[image])
        if targets.masks is not None:
            _write_masks(result, targets.masks, image, targets.stems[image])
    except SegserveError as error:
        is_decoded = content is not None and not isinstance(content.image, bytes)
        _name_command(error, image, targets.batch_options, is_decoded=is_decoded)
        return ImageOutcome(image, error=error)
    document = result.to_coco(image_id=number, file_name=image.name) if targets.coco else None
    notes = [
        *(f"{image} {each}" for each in notes),
        *content.notes(image, image.path, targets.info, in_tiles=bool(notes)),
    ]
    return ImageOutcome(image, result, document, notes=notes, at_limit=result.at_limit)


def _prompted(client: Client, name: str, prompts: Sequence[Click | Box], image: ImageLike) -> tuple[Result, list[str]]:
    return client.prompt(image, model=name).ask(*prompts), []


def _answer(
    ask: Callable[[ImageLike], Result], ask_tiles: Callable[..., TiledSemanticResult | TiledObjects], image: ImageLike
) -> tuple[Result, list[str]]:
    """Return an image's result, of tiles if it is above a limit, and a note about those.

    Raises the refusal of the whole image if it cannot be read by tiles, and another one if they cannot be stitched.
    """
    from segserve.calls.session import TILE_PX, tile_options

    try:
        return ask(image), []
    except (ImageTooLargeError, RequestTooLargeError) as error:
        if BATCH not in error.message:
            raise
        try:
            tiled = ask_tiles(image, **(options := tile_options(error.message)))
            result = tiled.to_result()
        except (ImageTooLargeError, MissingExtraError) as refused:
            raise error from refused
        except BadRequestError as refused:
            limit = error.message.partition(": segment it in tiles")[0]
            raise BadRequestError(f"{limit}; {refused.message}{SMALLER}") from refused
    height, width = result.size
    tiles = f"{tiled.tiles} tiles of {options.get('tile', TILE_PX)} pixels"
    cut = f"; {tiled.at_limit} of them reached the limit of objects" * bool(tiled.at_limit)
    return result, [f"of {width} x {height} pixels is above the limit of a request, and was segmented in {tiles}{cut}"]


def _batch_options(platform_options: PlatformOptions, url: str | None, score_threshold: float | None) -> str:
    named = {**asdict(platform_options), "url": url, "score_threshold": score_threshold}
    if url == os.environ.get(URL_VARIABLE):
        del named["url"]
    options = []
    for name, value in named.items():
        if value not in (None, False):
            options += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return "".join(f" {shlex.quote(option)}" for option in options)


def _name_command(error: SegserveError, image: ImageFile, options: str, *, is_decoded: bool) -> None:
    """Put the command that segments this image in tiles, or makes it smaller, into an error that advises to."""
    from segserve.calls.session import LIMIT

    if image.path is None:
        return
    if error.message.endswith(SMALLER) and (limit := LIMIT.search(error.message)) is not None:
        small, side = str(image.path.with_name(f"{image.path.stem}-small.png")), math.isqrt(int(limit[1]))
        code = (
            f"from PIL import Image, ImageOps; image = ImageOps.exif_transpose(Image.open({str(image.path)!r})); "
            f"image.thumbnail(({side}, {side})); image.save({small!r})"
        )
        error.message += f": `python -c {shlex.quote(code)}` writes {small}"
        error.args = (error.message,)
    if BATCH not in error.message:
        return
    path, text = image.path, PYTHON_CALL.sub("", error.message)
    if is_decoded:
        path, text = path.with_suffix(".png"), text.replace("in tiles (", "in tiles (saved as a PNG: ", 1)
    elif "saved as a TIFF" in text:
        path = path.with_suffix(".tif")
    error.message = text.replace(BATCH, f" {shlex.quote(str(path))} -o tiled{options}")
    error.args = (error.message,)


def _shown(
    outcomes: Iterator[ImageOutcome], images: Sequence[ImageFile], targets: OutputTargets, *, quiet: bool
) -> Iterator[ImageOutcome]:
    """Print the outcomes and yield them without their results, which are thereby released."""
    from segserve.rendering.display import table

    with _screen(len(images)) as screen:
        for outcome in outcomes:
            image, result = outcome.image, outcome.result
            if outcome.error is not None:
                screen.message(f"error: {image}: {outcome.error}")
            for note in outcome.notes:
                screen.message(f"note: {note}")
            if result is not None and not quiet:
                if len(images) <= TABLES:
                    screen.result(table(result, image.name))
                    if image in targets.overlays:
                        screen.result(f"overlay: {targets.overlays[image]}")
                else:
                    screen.result(_line(image, result))
            screen.advance()
            yield replace(outcome, result=None)


@dataclass(frozen=True)
class _Screen:
    """Where results and messages go, and the progress that is shown below them."""

    results: Console
    messages: Console
    advance: Callable[[], None]

    def result(self, shown: Table | str) -> None:
        if isinstance(shown, str):
            _print_line(self.results, shown)
        elif self.results.is_terminal:
            self.results.print(shown)
        else:
            print_whole(self.results, shown)

    def message(self, text: str) -> None:
        _print_line(self.messages, plain(text))


def _print_line(console: Console, line: str) -> None:
    """Print a line as it is: not folded, and without markup."""
    console.out(line, highlight=False)


@contextmanager
def _screen(total: int) -> Iterator[_Screen]:
    """Show a progress bar, for one image a spinner, if stderr is a terminal."""
    from rich.console import Console

    results, messages = Console(), Console(stderr=True)
    if not sys.stderr.isatty():
        yield _Screen(results, messages, lambda: None)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    shared = results if sys.stdout.isatty() else messages
    of_many = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    columns = (SpinnerColumn(), TextColumn("waiting for the result")) if total == 1 else of_many
    with Progress(*columns, console=shared, transient=True, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task("images", total=total)
        yield _Screen(results, shared, lambda: bar.advance(task))


def _line(image: ImageFile, result: Result) -> str:
    from segserve.rendering.display import printable

    classes = ", ".join(
        " ".join(row[key] for key in ("count", "class", "share") if key in row) for row in result.summary_rows()
    )
    return f"{printable(image.name, 200)}: {classes or 'nothing'}"


def _summary(
    images: Sequence[ImageFile], failed: Sequence[ImageOutcome], seconds: float, written: Sequence[Path | None]
) -> str:
    places = ", ".join(str(path) for path in written if path is not None)
    parts = [f"{len(images)} images", f"{len(failed)} failed" if failed else "all segmented", f"{seconds:.1f} s"]
    return ", ".join(parts) + (f"; written: {places}" if places else "")


@contextmanager
def _writing(coco: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        target = "the data set" if coco is None else repr(str(coco))
        raise CommandError(f"cannot write {target}: {error.strerror}") from error


def _check_targets(masks: Path | None, coco: Path | None) -> None:
    """Report output paths that are invalid before the first request is sent."""
    if masks is not None and masks.exists() and not masks.is_dir():
        raise CommandError(f"--masks must be a folder; {str(masks)!r} is a file")
    if coco is not None and coco.is_dir():
        raise CommandError(f"--coco must be a file; {str(coco)!r} is a folder")


def _write_overlay(result: Result, image: ImageLike, target: Path) -> None:
    try:
        save_image(result.overlay(image), target)
    except (OSError, ValueError) as error:
        raise BadRequestError(f"cannot write overlay {str(target)!r}: {error}") from error


def _write_masks(result: Result, folder: Path, image: ImageFile, stem: PurePath) -> None:
    from segserve_platform.cli.mask_files import write_masks

    try:
        write_masks(result, folder, stem)
    except OSError as error:
        raise BadRequestError(f"cannot write masks of {image} into {str(folder)!r}: {error}") from error
