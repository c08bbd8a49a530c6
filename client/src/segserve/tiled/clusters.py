"""Sends tiles from the workers of a Dask cluster, which write the map themselves."""

from __future__ import annotations

import os
import tempfile
import threading
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

from segserve.calls.credentials import Tls
from segserve.calls.endpoint import is_loopback
from segserve.calls.headers import API_KEY, AUTHORIZATION, secrets_among
from segserve.errors import MissingExtraError, PlainHttpCredentialsError
from segserve.tiled.errors import WorkersLostError
from segserve.tiled.maps import ZARR
from segserve_common.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from segserve.client import Client
    from segserve.tiled.grid import Tile
    from segserve.tiled.job import TileJob
    from segserve.tiled.maps import PixelMap
    from segserve.tiled.sources import PixelSource, SourcePath
    from segserve.tiled.tile_results import Record

LOCAL: Final = "local"
LOCAL_WORKERS: Final = 2
HIDDEN: Final = frozenset({"tls", "wss", "inproc"})
"""Dask's protocols that nobody between reads along."""


@dataclass(frozen=True, slots=True)
class WorkerJob:
    """What a worker needs: the image by its path, and the arguments of a client that asks as the caller's does."""

    job: TileJob = field(compare=False)
    source: SourcePath = field(compare=False)
    client: Mapping[str, Any] = field(compare=False, repr=False)
    key: str = field(default_factory=lambda: uuid4().hex)

    def answer(self, index: int) -> Record:
        """Answer one tile, in the worker's process."""
        client, source, pixel_map = _opened(self)
        return self.job.answer(client, source, pixel_map, self.job.grid[index])


def worker_client(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a client's arguments as workers can use them.

    Raises `BadRequestError` for what cannot be sent to them, and `MissingExtraError` without the extra `batch`.
    """
    _distributed()
    import cloudpickle  # type: ignore[import-untyped]

    found = dict(arguments)
    if found["api_key"] == os.environ.get("SEGSERVE_API_KEY"):
        found["api_key"] = None  # what is in the environment stays there: workers read their own
    if found["tls"] is not None:
        files = {name: path and Path(path).absolute() for name, path in asdict(found["tls"]).items()}
        found["tls"] = Tls(**files)
    for name, value in found.items():
        try:
            cloudpickle.dumps(value)
        except Exception as error:
            raise BadRequestError(
                f"the client's {name} cannot be sent to the workers, which are other processes ({error}): "
                "give a function of a module, or one that holds nothing that is open"
            ) from error
    return found


def check_hidden(addresses: Iterable[str], arguments: Mapping[str, Any]) -> None:
    """Raise `PlainHttpCredentialsError` where the client's secrets would cross a network to workers in plain text."""
    named = {API_KEY: arguments["api_key"], AUTHORIZATION: arguments["bearer_token"]}
    secrets = secrets_among([*(name for name, value in named.items() if value is not None), *arguments["headers"]])
    plain = [address for address in addresses if not _is_hidden(address)]
    if secrets and plain and not arguments["allow_plain_http_credentials"]:
        raise PlainHttpCredentialsError(
            f"{', '.join(secrets)} would go to the workers over {plain[0]} as plain text: use a scheduler on tls://, "
            "SEGSERVE_API_KEY in the workers' environment, "
            "or allow_plain_http_credentials=True where the network itself is private"
        )


def _is_hidden(address: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme in HIDDEN or is_loopback(parts.hostname or "")


_OPENED: Final[dict[WorkerJob, tuple[Client, PixelSource, PixelMap | None]]] = {}
_OPENING: Final = threading.Lock()


def _opened(job: WorkerJob) -> tuple[Client, PixelSource, PixelMap | None]:
    """Return what a worker keeps open between the tiles of a job."""
    from segserve.client import Client

    with _OPENING:
        if job not in _OPENED:
            map_file = job.job.map_file
            pixel_map = None if map_file is None else map_file.open()
            tls = job.client["tls"]
            # Its files are looked for again, on this machine.
            arguments = {**job.client, "tls": tls and replace(tls)}
            _OPENED[job] = Client(**arguments), job.source.open(), pixel_map
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
    `BadRequestError` for a map that many processes cannot write, `WorkersLostError` for a tile that no worker survives,
    `PlainHttpCredentialsError` for secrets that would cross a network in plain text.
    """
    map_file = job.job.map_file
    if map_file is not None and not map_file.path.endswith(ZARR):
        raise BadRequestError(f"with a scheduler the map is a zarr array, which many processes can write: {map_file}")
    with _cluster(scheduler, in_flight) as cluster:
        check_hidden([cluster.scheduler.address, *cluster.nthreads()], job.client)
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
                dashboard_address="127.0.0.1:0",
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
