"""`segserve batch`: images too large for one request, tile by tile, each into its own folder."""

from __future__ import annotations

import glob
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import typer

from segserve.errors import HOPELESS
from segserve_common.errors import SegserveError
from segserve_common.image_file import IMAGE_SUFFIXES, ImageFileError, describe_file, is_named_as
from segserve_platform.cli.errors import CommandError, plain
from segserve_platform.cli.image_files import check_stems
from segserve_platform.cli.options import (
    GatewayUrl,
    InFlight,
    ModelName,
    PlatformOptions,
    RequestTimeout,
    ScoreThreshold,
    model_client,
    seconds,
    with_platform_options,
)
from segserve_platform.image_content import dark_notes

if TYPE_CHECKING:
    from segserve.client import Client
    from segserve.tiled import TiledObjects, TiledOptions, TiledSemanticResult

BatchFormat: TypeAlias = Literal["zarr", "tiff", "png", "coco", "geojson"]
LengthUnit: TypeAlias = Literal["m", "ft", "us-ft"]
"""As PROJ names them."""

LARGE: Final = IMAGE_SUFFIXES | {".npy", ".svs", ".btf"}
SUFFIXES: Final[dict[BatchFormat, str]] = {
    "zarr": "", "tiff": ".tif", "png": ".png", "coco": ".coco.json", "geojson": ".geojson",
}  # fmt: skip
METRES: Final[dict[LengthUnit, float]] = {"m": 1.0, "ft": 0.3048, "us-ft": 1200 / 3937}
OF_OBJECTS: Final = frozenset({"coco", "geojson"})
OF_MAPS: Final = frozenset({"tiff", "png"})


@dataclass(frozen=True)
class ExportTarget:
    """The additional output of each image."""

    form: BatchFormat
    affine: tuple[float, ...] | None
    unit: LengthUnit | None

    @property
    def affine_metres(self) -> tuple[float, ...] | None:
        """The affine in metres; None if its unit is unknown, as degrees are."""
        if self.affine is None or self.unit is None:
            return None
        return tuple(METRES[self.unit] * each for each in self.affine)


@with_platform_options
def batch(
    platform_options: PlatformOptions,
    name: ModelName,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="TIFF, BigTIFF, PNG, JPEG, WebP and .npy files, zarr arrays, quoted globs, folders.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Output folder with a subfolder per image.", show_default=False
        ),
    ],
    form: Annotated[
        BatchFormat,
        typer.Option(
            "--format",
            help="Additional output per image: tiff and png hold the map, coco and geojson the objects.",
            rich_help_panel="Output",
        ),
    ] = "zarr",
    affine: Annotated[
        tuple[float, float, float, float, float, float] | None,
        typer.Option(
            metavar="A B C D E F",
            help="World coordinates of geojson: x = A column + B row + C, y = D column + E row + F.",
            show_default=False,
            rich_help_panel="Output",
        ),
    ] = None,
    affine_unit: Annotated[
        LengthUnit | None,
        typer.Option(
            help="Unit of --affine in a projected CRS: adds areas in km². Default: none, as for degrees.",
            show_default=False,
            rich_help_panel="Output",
        ),
    ] = None,
    id_map: Annotated[
        bool, typer.Option("--id-map", help="Write the map of object ids.", rich_help_panel="Output")
    ] = False,
    tile: Annotated[int, typer.Option(help="Side of a tile in pixels.", rich_help_panel="Tiles")] = 1024,
    overlap: Annotated[
        int, typer.Option(help="Overlap of neighbouring tiles in pixels.", rich_help_panel="Tiles")
    ] = 128,
    score_threshold: ScoreThreshold = None,
    in_flight: InFlight = 8,
    start_over: Annotated[
        bool,
        typer.Option("--start-over/--resume", help="Delete an earlier run, or resume it.", show_default="--resume"),
    ] = False,
    on_revision_change: Annotated[
        Literal["error", "restart", "allow"], typer.Option(help="Reaction to a new revision of the model during a run.")
    ] = "error",
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Send from the workers of this Dask cluster, such as tcp://host:8786; local: workers on this machine.",
            show_default=False,
        ),
    ] = None,
    url: GatewayUrl = None,
    timeout: RequestTimeout = "60s",
) -> None:
    """Segment images of any size, tile by tile.

    Images are read by windows and results stitched on disk, so neither has to fit into memory. Running the same command
    again resumes an interrupted run and sends only the missing tiles. An image that fails does not stop the others; the
    exit code is then 1.
    """
    from segserve.tiled import TiledOptions

    paths = large_images(images)
    folders = result_folders(paths, out)
    if affine is not None and not affine[0] * affine[4] - affine[1] * affine[3]:
        raise CommandError(f"--affine must give pixels an area; {' '.join(f'{each:g}' for each in affine)} gives none")
    if affine_unit is not None and affine is None:
        raise CommandError(f"--affine-unit {affine_unit} needs --affine")
    exported = ExportTarget(form, affine, affine_unit)
    options = TiledOptions(
        tile=tile,
        overlap=overlap,
        id_map=id_map,
        score_threshold=score_threshold,
        in_flight=in_flight,
        start_over=start_over,
        on_revision_change=on_revision_change,
        timeout_s=seconds(timeout),
    )
    with model_client(platform_options, name, url) as client:
        options["id_map"] = _checked(client, name, form, id_map=id_map)
        try:
            done = [_segment(client, name, image, folders[image], exported, options, scheduler) for image in paths]
        except KeyboardInterrupt:
            typer.echo("interrupted: the same command continues, and sends only the missing tiles", err=True)
            raise
    failed = done.count(False)
    if failed:
        typer.echo(f"{failed} of {len(paths)} images failed", err=True)
        raise typer.Exit(1)


def large_images(named: Iterable[str]) -> list[Path]:
    """Return the named files and zarr arrays, each once, in order.

    Raises `CommandError` for a missing image, a glob without matches and a folder without images.
    """
    return list(dict.fromkeys(path for text in named for path in _named(text)))


def _named(text: str) -> Iterator[Path]:
    path = Path(text)
    if _is_zarr(path) or path.is_file():
        yield path
    elif path.is_dir():
        paths = sorted(one for one in path.iterdir() if is_named_as(one, LARGE) or _is_zarr(one))
        if not paths:
            raise CommandError(f"{path} has no images; looked for *{', *'.join(sorted(LARGE))} and zarr arrays")
        yield from paths
    elif glob.has_magic(text):
        matches = sorted(map(Path, glob.glob(text, recursive=True)))  # noqa: PTH207  Path.glob takes no absolute pattern
        paths = [match for match in matches if match.is_file() or _is_zarr(match)]
        if not paths:
            raise CommandError(f"no file matches {text!r}")
        yield from paths
    else:
        raise CommandError(f"no such image: {text!r}")


def _is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in ("zarr.json", ".zarray"))


def result_folders(images: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Return each image's result folder; raises `CommandError` if two would share one, or one is the image itself."""
    folders = {image: out / image.stem for image in images}
    check_stems(images, f"a folder in {str(out)!r}")
    if out.exists() and not out.is_dir():
        raise CommandError(f"--output must be a folder; {str(out)!r} is a file")
    taken = [image for image, folder in folders.items() if folder.resolve() == image.resolve()]
    if taken:
        raise CommandError(f"the result would overwrite the image {str(taken[0])!r}; use another --output")
    return folders


def _checked(client: Client, model: str, form: BatchFormat, *, id_map: bool) -> bool:
    """Return whether the map of ids is needed; raises `CommandError` for a format that the model does not support."""
    from segserve.tiled.tile_results import kind_of

    kind = kind_of(client.model_info(model))
    if form in OF_OBJECTS and kind == "semantic":
        raise CommandError(f"--format {form} needs objects; {model!r} is a semantic model: use zarr, tiff or png")
    return id_map or (form in OF_MAPS and kind != "semantic")


def _segment(
    client: Client,
    model: str,
    image: Path,
    folder: Path,
    exported: ExportTarget,
    options: TiledOptions,
    scheduler: str | None,
) -> bool:
    """Segment one image, print the outcome, and return whether it succeeded."""
    began_s = time.monotonic()
    try:
        result = client.segment_tiled(image, model=model, scheduler=scheduler, **(options | {"out": folder}))
        written = _export(result, image, folder, exported)
    except HOPELESS:
        raise
    except (SegserveError, OSError) as error:
        typer.echo(plain(f"error: {image}: {error}"), err=True)
        return False
    notes = list(dark_notes(image, image, lambda: client.model_info(model)))
    with suppress(ImageFileError, OSError):  # of arrays and zarr
        if exported.affine is None and describe_file(image).is_placed:
            notes.append(f"{image}: its georeference is not kept, positions are pixels; set --affine for coordinates")
    if result.at_limit:
        counted = f"{result.at_limit} of {_counted(result.tiles, 'tile')}"
        notes.append(f"{image}: {counted} reached the limit of objects (maxDetections of output or a stage)")
    for note in notes:
        typer.echo(plain(f"note: {note}"), err=True)
    height, width = result.size
    metres = exported.affine_metres
    area = f" ({result.square_kilometres(metres):.3g} km²)" if metres is not None else ""
    typer.echo(
        f"{image.name}: {width} x {height}{area}, {_found(result)}, {_counted(result.tiles, 'tile')} ({result.sent} "
        f"sent), {time.monotonic() - began_s:.1f} s: {written}"
    )
    return True


def _found(result: TiledSemanticResult | TiledObjects) -> str:
    from segserve.rendering.display import printable
    from segserve.tiled import TiledObjects

    if isinstance(result, TiledObjects):
        return _counted(len(result), "object")
    height, width = result.size
    with_data = sum(result.areas.values())
    shares = sorted(result.areas.items(), key=lambda item: -item[1])[:4]
    parts = [f"{printable(name, 40)} {area / with_data:.1%}" for name, area in shares]
    gaps = 1 - with_data / (height * width)
    return ", ".join(parts + ([] if result.nodata is None else [f"{gaps:.1%} of the image without data"]))


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _export(result: Any, image: Path, folder: Path, exported: ExportTarget) -> Path:
    from segserve.tiled import results

    path = folder.with_name(f"{folder.name}{SUFFIXES[exported.form]}")
    match exported.form:
        case "coco":
            results.write_coco(result, path, image.name)
        case "geojson":
            results.write_geojson(result, path, exported.affine)
        case "tiff":
            results.write_tiff(result, path)
        case "png":
            results.write_png(result, path)
    return path
