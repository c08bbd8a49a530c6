"""Sends the tiles of one process: so many at a time, the next one read when one is answered."""

from __future__ import annotations

import asyncio
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from segserve.async_client import AsyncClient
    from segserve.tiled.grid import Tile
    from segserve.tiled.job import TileJob
    from segserve.tiled.maps import PixelMap
    from segserve.tiled.sources import PixelSource
    from segserve.tiled.tile_results import Record


def send_all(todo: Iterable[Tile], answer: Callable[[Tile], None], in_flight: int) -> None:
    """Let threads answer the tiles; the first error ends it, after what is on its way."""
    waiting: set[Future[None]] = set()
    with ThreadPoolExecutor(in_flight, thread_name_prefix="segserve-tile") as pool:
        try:
            for tile in todo:
                if len(waiting) >= in_flight:
                    waiting = _after_one(waiting)
                waiting.add(pool.submit(answer, tile))
            while waiting:
                waiting = _after_one(waiting)
        finally:
            for future in waiting:
                future.cancel()


def _after_one(waiting: set[Future[None]]) -> set[Future[None]]:
    done, left = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    return left


async def send_all_async(
    todo: Iterable[Tile],
    client: AsyncClient,
    job: TileJob,
    source: PixelSource,
    pixel_map: PixelMap | None,
    keep: Callable[[Tile, Record], None],
    in_flight: int,
) -> None:
    """Let tasks of the running loop answer the tiles; pixels and masks are dealt with in threads."""
    tiles = iter(todo)

    async def work() -> None:
        for tile in tiles:
            image = await asyncio.to_thread(job.image, source, tile)
            result = await client.segment(image, **job.asked.arguments())
            record = await asyncio.to_thread(job.keep, result, tile, pixel_map)
            await asyncio.to_thread(keep, tile, record)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
