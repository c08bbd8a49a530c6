"""`segserve predict`: images in, a table of what was found out, with overlays or COCO JSON where asked."""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from segserve.cli.failures import CommandError
from segserve.cli.where import Where, is_local, platform, somewhere
from segserve.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from segserve.objects import Detection, Objects
    from segserve.results import Result
    from segserve.semantic import SemanticResult
    from segserve.types import Segmentation

    Row = dict[str, str]

STEM = "{stem}"


@somewhere
def predict(
    where: Where,
    name: Annotated[str, typer.Argument(help="The model.", show_default=False)],
    images: Annotated[list[Path], typer.Argument(help="JPEG, PNG, WebP or TIFF files.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write overlays: a file for one image; for several a folder, or a path with {stem} in it.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a COCO data set instead of a table.")] = False,
    score_threshold: Annotated[
        float | None, typer.Option(help="Leave out what scores less.", show_default=False)
    ] = None,
    max_detections: Annotated[int | None, typer.Option(help="Keep so many of the best.", show_default=False)] = None,
    encoding: Annotated[
        Literal["rle", "polygons", "png", "raw"] | None,
        typer.Option(help="How masks travel; the answer is the same.", show_default=False),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            envvar="SEGSERVE_URL",
            help="The gateway; without it the platform's, or http://127.0.0.1:8080 where none is up.",
        ),
    ] = None,
    transport: Annotated[Literal["http", "grpc"], typer.Option(help="How to talk to the gateway.")] = "http",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for each image.")] = 30.0,
) -> None:
    """Segment images with a model and print what was found."""
    from segserve.client import Client
    from segserve.coco import merge

    targets = overlay_paths(images, output)
    documents = []
    with _gateway(where, name, url) as address, Client(address, transport=transport, timeout_s=timeout) as client:
        for number, image in enumerate(images, 1):
            data = _read(image)
            result = client.segment(
                data,
                model=name,
                score_threshold=score_threshold,
                max_detections=max_detections,
                encoding=encoding,
            )
            if as_json:
                documents.append(result.to_coco(image_id=number, file_name=image.name))
            else:
                _print(result_table(image, result))
            if image in targets:
                _write_overlay(result, data, targets[image], tell=not as_json)
    if as_json:
        typer.echo(json.dumps(merge(documents), indent=2))


def _gateway(where: Where, model: str, url: str | None) -> AbstractContextManager[str | None]:
    """Make the gateway reachable for the time of the block; one that is named is not looked for."""
    if url is not None:
        return nullcontext(url)
    try:
        return platform(where).gateway(model)
    except CommandError:
        if not is_local(where):
            raise
        return nullcontext(None)  # to ask the usual address, nothing of the platform need be installed


def overlay_paths(images: list[Path], output: Path | None) -> dict[Path, Path]:
    """Return where each image's overlay goes, nothing where none is asked for.

    Raises `BadRequestError` where two overlays would share a file, or one would replace an image.
    """
    if output is None:
        return {}
    if STEM in output.name:
        targets = {image: output.with_name(output.name.replace(STEM, image.stem)) for image in images}
    elif output.is_dir() or not output.suffix:
        targets = {image: output / f"{image.stem}.png" for image in images}
    else:
        targets = dict.fromkeys(images, output)
    if len(set(targets.values())) < len(targets):
        raise BadRequestError(
            f"{len(images)} overlays need different files, got {str(output)!r}; "
            f"allowed: a folder, or a path with {STEM} in it, and images of different names"
        )
    replaced = {target.resolve() for target in targets.values()} & {image.resolve() for image in images}
    if replaced:
        raise BadRequestError(f"an overlay would replace the image {str(min(replaced))!r}")
    return targets


def result_table(image: Path, result: Result) -> Table:
    """Return one image's table: a row a class, by number found or by area."""
    from rich.markup import escape
    from rich.table import Table

    from segserve.semantic import SemanticResult

    height, width = result.size
    table = Table(
        title=f"{escape(image.name)}  [dim]{width} x {height}[/]",
        caption=f"revision {result.revision}",
        title_justify="left",
        caption_justify="left",
    )
    rows = list(_semantic_rows(result) if isinstance(result, SemanticResult) else _object_rows(result))
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "class" else "right")
    for row in rows:
        table.add_row(*map(escape, row.values()))
    return table


def _object_rows(result: Objects[Any]) -> Iterator[Row]:
    """Yield a row for each class that was found; areas only where the answer has masks."""
    found: defaultdict[str, list[Detection]] = defaultdict(list)
    for one in result:
        found[one.class_name].append(one)
    for name, ones in sorted(found.items(), key=lambda item: -len(item[1])):
        low, high = (f"{bound(one.score for one in ones):.2f}" for bound in (min, max))
        scores = low if low == high else f"{low} to {high}"
        areas = [area for one in ones if (area := getattr(one, "area", None)) is not None]
        yield {"class": name, "count": str(len(ones)), "score": scores} | (_area(sum(areas), result) if areas else {})
    if not found:
        yield {"class": "nothing", "count": "0"}


def _semantic_rows(result: SemanticResult) -> Iterator[Row]:
    for name, area in sorted(result.areas.items(), key=lambda item: -item[1]):
        if area:
            yield {"class": name} | _area(area, result)
    if not any(result.areas.values()):
        yield {"class": "nothing"}


def _area(area: int, result: Segmentation) -> Row:
    height, width = result.size
    return {"area px": f"{area:,}", "share": f"{area / (height * width):.1%}"}


def _print(table: Table) -> None:
    from rich.console import Console

    Console().print(table)


def _read(image: Path) -> bytes:
    try:
        return image.read_bytes()
    except OSError as error:
        raise BadRequestError(f"cannot read image {str(image)!r}: {error.strerror}") from error


def _write_overlay(result: Result, image: bytes, target: Path, *, tell: bool) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        result.overlay(image).save(target)
    except (OSError, ValueError) as error:
        raise BadRequestError(f"cannot write overlay {str(target)!r}: {error}") from error
    if tell:
        typer.echo(f"overlay: {target}")
