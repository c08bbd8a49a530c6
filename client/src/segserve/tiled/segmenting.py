"""The calls: a large image in, its whole segmentation out."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from segserve.tiled.clusters import WorkerJob, send_all_on, worker_client
from segserve.tiled.errors import RevisionChangedError
from segserve.tiled.progress import shown
from segserve.tiled.runs import begun
from segserve.tiled.sending import send_all, send_all_async
from segserve.tiled.sources import by_path, open_source

if TYPE_CHECKING:
    from segserve.async_client import AsyncClient
    from segserve.client import Client
    from segserve.tiled.options import Options
    from segserve.tiled.progress import Progress
    from segserve.tiled.results import TiledObjects, TiledSemanticResult
    from segserve.tiled.runs import Run
    from segserve.tiled.sources import PixelSource

# A model that changes more often than that while one image is segmented will not be caught up with.
RESTARTS: Final = 3


def run_tiled(
    client: Client, image: object, options: Options, *, scheduler: Any = None, progress: Progress = True
) -> TiledSemanticResult | TiledObjects:
    """Segment a large image; see `segserve.tiled.segment_tiled`."""
    workers = None if scheduler is None else (by_path(image), scheduler)
    with closing(open_source(image)) as source:
        return _run(client, source, options, workers, progress)


def _run(
    client: Client, source: PixelSource, options: Options, workers: tuple[Any, Any] | None, progress: Progress
) -> TiledSemanticResult | TiledObjects:
    for left in range(RESTARTS, -1, -1):
        info = client.model_info(options.model)
        try:
            with begun(source, info, options, for_workers=workers is not None) as run:
                with shown(progress, len(run.grid)) as run.tick:
                    _send(client, source, run, workers)
                return run.finish()
        except RevisionChangedError:
            if options.on_revision_change != "restart" or not left:
                raise
        options = replace(options, start_over=True)
    raise AssertionError("unreachable")


def _send(client: Client, source: PixelSource, run: Run, workers: tuple[Any, Any] | None) -> None:
    todo = run.missing()
    if not todo:
        return
    job, in_flight = run.job(), run.options.in_flight
    if workers is not None:
        image, scheduler = workers
        send_all_on(scheduler, todo, WorkerJob(job, image, worker_client(client._arguments())), run.keep, in_flight)
        return
    pixel_map = None if job.map_file is None else job.map_file.open()
    send_all(todo, lambda tile: run.keep(tile, job.answer(client, source, pixel_map, tile)), in_flight)


async def run_tiled_async(
    client: AsyncClient, image: object, options: Options, *, progress: Progress = True
) -> TiledSemanticResult | TiledObjects:
    """Segment a large image from an event loop; files and masks are dealt with in threads."""
    with closing(await asyncio.to_thread(open_source, image)) as source:
        return await _run_async(client, source, options, progress)


async def _run_async(
    client: AsyncClient, source: PixelSource, options: Options, progress: Progress
) -> TiledSemanticResult | TiledObjects:
    for left in range(RESTARTS, -1, -1):
        info = await client.model_info(options.model)
        entered = begun(source, info, options, for_workers=False)
        run = await asyncio.to_thread(entered.__enter__)
        try:
            with shown(progress, len(run.grid)) as run.tick:
                await _send_async(client, source, run)
            return await asyncio.to_thread(run.finish)
        except RevisionChangedError:
            if options.on_revision_change != "restart" or not left:
                raise
        finally:
            entered.__exit__(None, None, None)
        options = replace(options, start_over=True)
    raise AssertionError("unreachable")


async def _send_async(client: AsyncClient, source: PixelSource, run: Run) -> None:
    job = run.job()
    pixel_map = None if job.map_file is None else job.map_file.open()
    await send_all_async(run.missing(), client, job, source, pixel_map, run.keep, run.options.in_flight)
