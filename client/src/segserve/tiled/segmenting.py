"""Runs over one large image: tiles sent from threads, tasks or a Dask cluster, with a bar of their progress."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import weakref
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from segserve.errors import RevisionChangedError
from segserve.results.images import LITTLE, PIXELS, image_tensor
from segserve.tiled.clusters import ClientFactory, WorkerJob, send_all_on
from segserve.tiled.grid import Tile, Window
from segserve.tiled.job import AsyncSegmenter, Segmenter
from segserve.tiled.options import Options
from segserve.tiled.results import TiledObjects, TiledResult, TiledSemanticResult, check_expected
from segserve.tiled.runs import Run, Tick, open_run
from segserve.tiled.sources import DIGEST_ROWS, PixelSource, by_path, open_source
from segserve.tiled.tile_results import kind_of
from segserve_common.errors import SegserveError
from segserve_common.image_file import ImageFileError, describe, describe_file

Progress: TypeAlias = bool | Tick

# A model that changes more often than this during one image is not going to settle.
RESTARTS: Final = 3


def run_tiled(
    client: Segmenter,
    image: object,
    options: Options,
    *,
    scheduler: Any = None,
    worker_clients: ClientFactory | None = None,
    progress: Progress = True,
    expect: type[TiledResult] | None = None,
) -> TiledSemanticResult | TiledObjects:
    """Segment a large image; see `Client.segment_tiled`. Workers of a `scheduler` use clients of `worker_clients`."""
    path = None if scheduler is None else by_path(image)
    with closing(_source(image)) as source:
        restarts = 0
        while True:
            info = client.model_info(options.model)
            check_expected(expect, kind_of(info), f"in tiles, model {info.model!r} returns")
            try:
                with open_run(source, info, options, for_workers=path is not None) as run:
                    with shown(progress, len(run.grid)) as run.tick:
                        if path is None or worker_clients is None:
                            _send_all(client, source, run)
                        elif missing := run.missing():
                            job = WorkerJob(run.job(), path, worker_clients.for_workers())
                            send_all_on(scheduler, missing, job, run.keep, run.options.in_flight)
                    return run.finish()
            except RevisionChangedError:
                if options.on_revision_change != "restart" or restarts == RESTARTS:
                    raise
            restarts += 1
            options = replace(options, start_over=True)


async def run_tiled_async(
    client: AsyncSegmenter,
    image: object,
    options: Options,
    *,
    progress: Progress = True,
    expect: type[TiledResult] | None = None,
) -> TiledSemanticResult | TiledObjects:
    """Segment a large image from an event loop; files and masks are processed in threads."""
    with closing(await asyncio.to_thread(_source, image)) as source:
        restarts = 0
        while True:
            info = await client.model_info(options.model)
            check_expected(expect, kind_of(info), f"in tiles, model {info.model!r} returns")
            opened = open_run(source, info, options, for_workers=False)
            # Both ends of the block touch the disk: the folder is made in the first and deleted in the second.
            run = await asyncio.to_thread(opened.__enter__)
            try:
                with shown(progress, len(run.grid)) as run.tick:
                    await _send_all_async(client, source, run)
                return await asyncio.to_thread(run.finish)
            except RevisionChangedError:
                if options.on_revision_change != "restart" or restarts == RESTARTS:
                    raise
            finally:
                # A cancelled task must delete its temporary folder too.
                await asyncio.shield(asyncio.to_thread(opened.__exit__, None, None, None))
            restarts += 1
            options = replace(options, start_over=True)


def _source(image: Any) -> PixelSource:
    """Open whatever `Client.segment` takes: encoded images by a temporary file, which lives as long as the source."""
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 2:
        return open_source(image[:, :, :1])  # alpha is dropped
    if isinstance(image, str | os.PathLike) or isinstance(getattr(image, "dtype", None), np.dtype):
        return open_source(image)
    tensor = image_tensor(image)
    if tensor.name == PIXELS:
        pixels = tensor.to_array()
        return open_source(pixels[:, :, :1] if pixels.shape[2] == 2 else pixels)
    (encoded,) = tensor.to_items()
    with ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="segserve-"))
        file.write(encoded)
        file.flush()
        source = open_source(file.name)
        weakref.finalize(source, stack.pop_all().close)
    return source


def little_used_range(image: Path | bytes) -> int | None:
    """Return the largest value of an image of 16 bits that uses less than 1/16 of them; None for any other image."""
    with suppress(ImageFileError, OSError):  # of an array
        if (describe(image) if isinstance(image, bytes) else describe_file(image)).bits != 16:
            return None
    with suppress(SegserveError, OSError), closing(_source(image)) as source:
        largest = LITTLE if source.dtype.itemsize == 1 else 0
        for top in range(0, source.height, DIGEST_ROWS):
            window = Window(top, 0, min(top + DIGEST_ROWS, source.height), source.width)
            largest = max(largest, int(source.read(window).max()))
            if largest >= LITTLE:
                return None
        return largest
    return None  # what is wrong with it is said elsewhere


def _send_all(client: Segmenter, source: PixelSource, run: Run) -> None:
    """Answer the missing tiles in threads; the first error ends the run after the tiles that are in flight."""
    missing, in_flight = run.missing(), run.options.in_flight
    if not missing:
        return
    job = run.job()
    pixel_map = None if job.map_file is None else job.map_file.open()
    pending: set[Future[None]] = set()

    def answer(tile: Tile) -> None:
        run.keep(tile, job.answer(client, source, pixel_map, tile))

    with ThreadPoolExecutor(in_flight, thread_name_prefix="segserve-tile") as pool:
        try:
            for tile in missing:
                if len(pending) >= in_flight:
                    pending = _after_one(pending)
                pending.add(pool.submit(answer, tile))
            while pending:
                pending = _after_one(pending)
        finally:
            for future in pending:
                future.cancel()


def _after_one(pending: set[Future[None]]) -> set[Future[None]]:
    done, left = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    return left


async def _send_all_async(client: AsyncSegmenter, source: PixelSource, run: Run) -> None:
    """Answer the missing tiles in tasks; pixels and masks are processed in threads."""
    tiles, job = iter(run.missing()), run.job()
    pixel_map = None if job.map_file is None else job.map_file.open()

    async def work() -> None:
        for tile in tiles:
            image = await asyncio.to_thread(job.image, source, tile)
            result = await client.segment(image, **job.request.arguments())
            record = await asyncio.to_thread(job.keep, result, source, tile, pixel_map)
            await asyncio.to_thread(run.keep, tile, record)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(run.options.in_flight):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        # As from threads: the first error, not a group of them.
        raise errors.exceptions[0] from None


def shown(progress: Progress, total: int) -> AbstractContextManager[Tick]:
    """Return a context with the function to call after each tile with the numbers done and total.

    `progress` False shows nothing, True a bar if standard error is a terminal; a function is called as it is.
    """
    if callable(progress):
        return nullcontext(progress)
    if not progress or not sys.stderr.isatty():
        return nullcontext(_silent)
    return _bar(total)


def _silent(_done: int, _total: int) -> None:
    pass


@contextmanager
def _bar(total: int) -> Iterator[Tick]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("tiles", total=total)
        yield lambda done, of: bar.update(task, completed=done, total=of)
