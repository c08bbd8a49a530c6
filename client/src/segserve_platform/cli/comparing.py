"""`segserve diff`: how much two models' answers to the same images agree, and the images on which they do not."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segserve.errors import HOPELESS
from segserve_common.errors import BadRequestError, SegserveError
from segserve_platform.cli.errors import CommandError, plain
from segserve_platform.cli.image_files import ImageFile, image_files
from segserve_platform.cli.options import (
    GatewayUrl,
    InFlight,
    PlatformOptions,
    RequestTimeout,
    ScoreThreshold,
    model_client,
    model_names,
    seconds,
    with_platform_options,
)
from segserve_platform.cli.terminal import print_failures, print_whole, spinner

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

    from segserve.client import Client
    from segserve.results.result import Result
    from segserve_builder.scoring.agreement import Agreement

ModelToCompare = Annotated[str, typer.Argument(help="Model name.", show_default=False, autocompletion=model_names)]


@dataclass(frozen=True)
class ComparedImage:
    """Both answers to one image, and how much they agree."""

    image: ImageFile
    first: Result
    second: Result
    agreement: Agreement


@dataclass(frozen=True)
class FailedImage:
    """An image that a model did not answer, or whose answers cannot be compared."""

    image: ImageFile
    error: Exception


@with_platform_options
def diff(
    platform_options: PlatformOptions,
    first: ModelToCompare,
    second: ModelToCompare,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE", help="Image files, quoted globs, folders.", show_default=False),
    ],
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Include subfolders.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Write a sheet of the images that differ most.", show_default=False
        ),
    ] = None,
    at_least: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Exit with 1 if the mean agreement is below this.", show_default=False),
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Images on the sheet.")] = 8,
    score_threshold: ScoreThreshold = None,
    in_flight: InFlight = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    url: GatewayUrl = None,
    timeout: RequestTimeout = "30s",
) -> None:
    """Compare the answers of two models to the same images, without labels.

    Prints the agreement of each class, 0 to 1: the IoU of masks, with objects weighted by score. Classes are the
    same if their names are. Exits with 1 if an image could not be compared, or if the agreement is below --at-least.
    """
    from rich.console import Console

    from segserve_platform.evaluation.pairs import common_classes

    files = image_files(images, recursive=recursive).images
    with (
        model_client(platform_options, first, url, timeout_s=seconds(timeout)) as client,
        spinner("asking both models") as say,
    ):
        names = common_classes(client.model_info(first), client.model_info(second))
        compared: list[ComparedImage] = []
        failed: list[FailedImage] = []
        by_class = defaultdict[int, list[float]](list)
        values: dict[str, float] = {}
        left_out = 0
        for each in _compared(client, (first, second), files, names, in_flight, score_threshold):
            if isinstance(each, FailedImage):
                failed.append(each)
                continue
            values[each.image.name] = each.agreement.value
            left_out += each.agreement.left_out
            for number, value in each.agreement.classes.items():
                by_class[number].append(value)
            compared = sorted([*compared, each], key=lambda one: one.agreement.value)[:most]
            say(f"{len(values)} of {len(files)} images compared")
    if not values:
        raise CommandError(f"{failed[0].image}: {failed[0].error}")
    mean = sum(values.values()) / len(values)
    if as_json:
        from segserve_platform.evaluation.pairs import class_name

        classes = {
            class_name(number, names): {"agreement": round(sum(own) / len(own), 4), "images": len(own)}
            for number, own in by_class.items()
        }
        rows = [{"image": name, "agreement": round(value, 4)} for name, value in values.items()]
        errors = [{"image": each.image.name, "error": str(each.error)} for each in failed]
        typer.echo(json.dumps({"agreement": round(mean, 4), "classes": classes, "images": [*rows, *errors]}))
    else:
        print_whole(Console(), _table(values, by_class, names))
    if left_out:
        typer.echo(f"{left_out} objects are not compared: of each answer only the 1,000 best are", err=True)
    if out is not None:
        _write_sheet(out, (first, second), compared, names, len(values))
        typer.echo(plain(f"sheet: {out / 'index.html'}"), err=as_json)
    if failed:
        print_failures([(each.image, each.error) for each in failed], len(files), "compared")
    if at_least is not None and mean < at_least:
        typer.echo(f"agreement {mean:.4f} is below {at_least:g}", err=True)
    if failed or (at_least is not None and mean < at_least):
        raise typer.Exit(1)


def _compared(
    client: Client,
    models: tuple[str, str],
    files: Sequence[ImageFile],
    names: Mapping[int, str],
    in_flight: int,
    score_threshold: float | None,
) -> Iterator[ComparedImage | FailedImage]:
    from segserve.calls.many import in_order
    from segserve_platform.evaluation.pairs import agreement_of

    def compare(file: ImageFile) -> ComparedImage | FailedImage:
        try:
            content = file.read().image
            sides = [client.segment(content, model=model, score_threshold=score_threshold) for model in models]
        except HOPELESS:
            raise
        except (SegserveError, OSError) as error:
            return FailedImage(file, error)
        try:
            return ComparedImage(file, sides[0], sides[1], agreement_of(sides[0], sides[1], names))
        except BadRequestError as error:
            return FailedImage(file, error)

    yield from in_order((partial(compare, file) for file in files), in_flight)


def _table(values: Mapping[str, float], by_class: Mapping[int, Sequence[float]], names: Mapping[int, str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from segserve_platform.evaluation.pairs import class_name

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("CLASS", no_wrap=True)
    for title in ("AGREEMENT", "LEAST", "IMAGES"):
        table.add_column(title, no_wrap=True, justify="right")
    rows = [(class_name(number, names), own) for number, own in sorted(by_class.items())]
    for name, own in [("all", list(values.values())), *rows]:
        table.add_row(Text(name), f"{sum(own) / len(own):.3f}", f"{min(own):.3f}", str(len(own)))
    return table


def _write_sheet(
    folder: Path, models: tuple[str, str], compared: Sequence[ComparedImage], names: Mapping[int, str], total: int
) -> None:
    from segserve.rendering.comparison import draw_comparison
    from segserve_platform.cli.picture_pages import Drawing, write_pictures
    from segserve_platform.evaluation.pairs import agreement_lines

    def drawing(each: ComparedImage) -> Drawing:
        only = {models[0]: each.agreement.stable_only, models[1]: each.agreement.candidate_only}
        lines = agreement_lines(f"{each.agreement.value:.3f}, {each.image}", each.agreement.classes, only, names)

        def draw() -> Image.Image:
            return draw_comparison(each.image.read().image, each.first, each.second, lines, models)

        return lines, draw

    about = f"The {len(compared)} images of {total:,} on which {models[0]} and {models[1]} differ most."
    write_pictures(folder, f"{models[0]} and {models[1]}", about, [drawing(each) for each in compared])
