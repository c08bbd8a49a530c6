"""Sends tiles from the workers of a Dask cluster, which write the map themselves."""

from __future__ import annotations

import tempfile
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from segserve.errors import BadRequestError, MissingExtraError
from segserve.tiled.errors import WorkersLostError
from segserve.tiled.maps import ZARR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from segserve.client import Client
    from segserve.tiled.grid import Tile
    from segserve.tiled.job import TileJob
    from segserve.tiled.maps import PixelMap
    from segserve.tiled.records import Record
    from segserve.tiled.sources import PixelSource, SourcePath

LOCAL: Final = "local"
LOCAL_WORKERS: Final = 2


@dataclass(frozen=True, slots=True)
class WorkerJob:
    """What a worker needs: the image by its path, and the gateway's URL, which it must be able to reach."""

    job: TileJob
    source: SourcePath
    url: str

    def answer(self, index: int) -> Record:
        """Answer one tile, in the worker's process."""
        client, source, pixel_map = _opened(self)
        return self.job.answer(client, source, pixel_map, self.job.grid[index])


_OPENED: Final[dict[WorkerJob, tuple[Client, PixelSource, PixelMap | None]]] = {}
_OPENING: Final = threading.Lock()


def _opened(job: WorkerJob) -> tuple[Client, PixelSource, PixelMap | None]:
    """Return what a worker keeps open between the tiles of a job."""
    from segserve.client import Client

    with _OPENING:
        if job not in _OPENED:
            map_file = job.job.map_file
            pixel_map = None if map_file is None else map_file.open()
            _OPENED[job] = Client(job.url), job.source.open(), pixel_map
        return _OPENED[job]


def _close(job: WorkerJob) -> None:
    """Close what a worker has kept open for a job."""
    with _OPENING:
        opened = _OPENED.pop(job, None)
    if opened is not None:
        client, source, _ = opened
        client.close()
        source.close()


def send_all_on(
    scheduler: Any, todo: Iterable[Tile], job: WorkerJob, keep: Callable[[Tile, Record], None], in_flight: int
) -> None:
    """Let a cluster's workers answer the tiles; at most `in_flight` for each of their threads are handed out.

    A tile whose worker is lost is answered by another. Raises `MissingExtraError` without the extra `batch`,
    `BadRequestError` for a map that many processes cannot write, `WorkersLostError` for a tile that no worker survives.
    """
    map_file = job.job.map_file
    if map_file is not None and not map_file.path.endswith(ZARR):
        raise BadRequestError(f"with a scheduler the map is a zarr array, which many processes can write: {map_file}")
    with _cluster(scheduler, in_flight) as cluster:
        try:
            _send(cluster, iter(todo), job, keep, in_flight)
        finally:
            with suppress(OSError, TimeoutError):
                cluster.run(_close, job, on_error="ignore")


def _send(
    cluster: Any, tiles: Iterator[Tile], job: WorkerJob, keep: Callable[[Tile, Record], None], in_flight: int
) -> None:
    distributed = _distributed()
    waiting = distributed.as_completed()
    of_future: dict[str, Tile] = {}

    def hand_out() -> None:
        tile = next(tiles, None)
        if tile is not None:
            future = cluster.submit(job.answer, tile.index, pure=False)
            of_future[future.key] = tile
            waiting.add(future)

    threads = sum(cluster.nthreads().values()) or 1
    for _ in range(max(in_flight, 2 * threads)):
        hand_out()
    try:
        for future in waiting:
            keep(of_future.pop(future.key), future.result())
            hand_out()
    except distributed.KilledWorker as error:
        raise WorkersLostError(f"one tile's workers died again and again: {error}") from error
    finally:
        for future in list(waiting.futures):
            future.cancel()


@contextmanager
def _cluster(scheduler: Any, in_flight: int) -> Iterator[Any]:
    """Yield a dask.distributed client: the one given, or one for the address, or for workers of this machine."""
    distributed = _distributed()
    if isinstance(scheduler, distributed.Client):
        yield scheduler
    elif scheduler == LOCAL:
        threads = -(-in_flight // LOCAL_WORKERS)
        with (
            # Dask removes its workers' and its scheduler's own folders and leaves the one around them.
            tempfile.TemporaryDirectory(prefix="segserve-dask-", ignore_cleanup_errors=True) as scratch,
            distributed.LocalCluster(
                n_workers=LOCAL_WORKERS,
                threads_per_worker=threads,
                processes=True,
                dashboard_address=None,
                local_directory=scratch,
                scheduler_kwargs={"local_directory": scratch},
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client
    elif isinstance(scheduler, str):
        try:
            client = distributed.Client(scheduler, timeout=10)
        except (OSError, TimeoutError, ValueError) as error:
            raise BadRequestError(f"no Dask scheduler answers at {scheduler!r}: {error}") from error
        with client:
            yield client
    else:
        raise BadRequestError(
            f"scheduler is a dask.distributed Client, a scheduler's address or {LOCAL!r}, "
            f"got {type(scheduler).__name__}"
        )


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise MissingExtraError(
            f"scheduler= needs packages that are not installed ({error}): pip install 'segserve[batch]'"
        ) from error
    return distributed
