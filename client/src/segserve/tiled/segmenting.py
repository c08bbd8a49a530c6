"""Runs over one large image: tiles sent from threads or tasks, with a bar of their progress, or from a Dask cluster.

Workers of a Dask cluster write the map themselves.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

import numpy as np

from segserve.calls.credentials import API_KEY, AUTHORIZATION, SECRETS, Tls, secrets_among
from segserve.errors import PlainHttpCredentialsError, RevisionChangedError, WorkersLostError, package_of_extra
from segserve.rendering.progress import Progress, shown
from segserve.results.images import LITTLE, PIXELS, image_tensor
from segserve.tiled.grid import Tile, Window
from segserve.tiled.job import AsyncSegmenter, Segmenter, TileJob
from segserve.tiled.maps import ZARR, PixelMap
from segserve.tiled.options import Options
from segserve.tiled.results import TiledObjects, TiledResult, TiledSemanticResult, check_expected
from segserve.tiled.runs import Run, open_run
from segserve.tiled.sources import DIGEST_ROWS, PixelSource, SourcePath, by_path, open_source
from segserve.tiled.tile_results import Record, kind_of
from segserve_common.errors import BadRequestError, SegserveError
from segserve_common.files import write_private
from segserve_common.http.urls import is_loopback

LOCAL: Final = "local"
LOCAL_WORKERS: Final = 2
HIDDEN: Final = frozenset({"tls", "wss", "inproc"})
"""Dask's protocols that cannot be read on the network."""

# A model that changes more often than this during one image is not going to settle.
RESTARTS: Final = 3


class WorkerClient(Segmenter, Protocol):
    """A client that a worker opens and closes."""

    def close(self) -> None:
        """Close the connections."""


@dataclass(frozen=True, slots=True)
class ClientFactory:
    """Opens clients with the settings of the caller's: `create` with `arguments`, in any process.

    `secrets` is a file with the secret ones among them, if they do not travel with the factory.
    """

    create: Callable[..., WorkerClient]
    arguments: Mapping[str, Any] = field(repr=False)
    secrets: Path | None = None

    def open(self) -> WorkerClient:
        """Return a new client."""
        arguments = dict(self.arguments)
        if self.secrets is not None:
            kept = json.loads(self.secrets.read_text())
            arguments |= {**kept, "headers": {**arguments["headers"], **kept["headers"]}}
        tls = arguments["tls"]
        # `replace` also checks that the certificate files exist on this machine.
        return self.create(**{**arguments, "tls": tls and replace(tls)})

    def with_secrets_in(self, file: Path) -> ClientFactory:
        """Write the secret arguments to a file for this user's processes, and return a factory that refers to it.

        A bearer token's function stays: it is sent by its name, if it is one of a module.
        """
        arguments = dict(self.arguments)
        headers = {name: value for name, value in arguments["headers"].items() if name in SECRETS}
        texts = {name: arguments[name] for name in ("api_key", "bearer_token") if isinstance(arguments[name], str)}
        if not headers and not texts:
            return self
        write_private(file, json.dumps({**texts, "headers": headers}))
        public = {name: value for name, value in arguments["headers"].items() if name not in SECRETS}
        return replace(self, arguments={**arguments, **dict.fromkeys(texts), "headers": public}, secrets=file)

    def for_workers(self) -> ClientFactory:
        """Return a factory that workers can use.

        Raises `BadRequestError` for an argument that cannot be pickled, and `MissingExtraError` without the extra
        `batch`.
        """
        _distributed()
        import cloudpickle  # type: ignore[import-untyped]

        arguments = dict(self.arguments)
        if arguments["api_key"] == os.environ.get("SEGSERVE_API_KEY"):
            arguments["api_key"] = None  # a key from the environment stays there: workers read their own
        if arguments["tls"] is not None:
            files = {name: path and Path(path).absolute() for name, path in asdict(arguments["tls"]).items()}
            arguments["tls"] = Tls(**files)
        for name, value in arguments.items():
            try:
                cloudpickle.dumps(value)
            except Exception as error:
                raise BadRequestError(
                    f"the client's {name} cannot be sent to worker processes ({error}): "
                    "use a function defined in a module, or an object without open files and connections"
                ) from error
        return replace(self, arguments=arguments)


@dataclass(frozen=True, slots=True)
class WorkerJob:
    """The description of a run for workers: its tiles, the path of the image, and how to open a client."""

    job: TileJob = field(compare=False)
    source: SourcePath = field(compare=False)
    clients: ClientFactory = field(compare=False, repr=False)
    key: str = field(default_factory=lambda: uuid4().hex)

    def answer(self, index: int) -> Record:
        """Answer one tile, in the worker's process."""
        client, source, pixel_map = _opened(self)
        return self.job.answer(client, source, pixel_map, self.job.grid[index])


def check_hidden(addresses: Iterable[str], arguments: Mapping[str, Any]) -> None:
    """Raise `PlainHttpCredentialsError` if the client's secrets would reach workers over a network in plain text."""
    named = {API_KEY: arguments["api_key"], AUTHORIZATION: arguments["bearer_token"]}
    secrets = secrets_among([*(name for name, value in named.items() if value is not None), *arguments["headers"]])
    plain = [address for address in addresses if not _is_hidden(address)]
    if secrets and plain and not arguments["allow_plain_http_credentials"]:
        raise PlainHttpCredentialsError(
            f"{', '.join(secrets)} would go to the workers over {plain[0]} as plain text: use a scheduler on tls://, "
            "SEGSERVE_API_KEY in the workers' environment, "
            "or allow_plain_http_credentials=True if the network itself is private"
        )


def _is_hidden(address: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme in HIDDEN or is_loopback(parts.hostname or "")


_OPENED: Final[dict[WorkerJob, tuple[WorkerClient, PixelSource, PixelMap | None]]] = {}
_OPENING: Final = threading.Lock()


def _opened(job: WorkerJob) -> tuple[WorkerClient, PixelSource, PixelMap | None]:
    """Return the client, image and map that a worker keeps open between the tiles of a job."""
    with _OPENING:
        if job not in _OPENED:
            map_file = job.job.map_file
            pixel_map = None if map_file is None else map_file.open()
            _OPENED[job] = job.clients.open(), job.source.open(), pixel_map
        return _OPENED[job]


def _close(job: WorkerJob) -> None:
    """Close the client and image that a worker has kept open for a job."""
    with _OPENING:
        opened = _OPENED.pop(job, None)
    if opened is not None:
        client, source, _ = opened
        client.close()
        source.close()


def send_all_on(
    scheduler: Any, todo: Iterable[Tile], job: WorkerJob, keep: Callable[[Tile, Record], None], in_flight: int
) -> None:
    """Let a cluster's workers answer the tiles, at most `in_flight` (or two per worker thread) at a time.

    A tile whose worker is lost is answered by another. Raises `MissingExtraError` without the extra `batch`,
    `BadRequestError` for a map that many processes cannot write, `WorkersLostError` for a tile that no worker survives,
    `PlainHttpCredentialsError` for secrets that would cross a network in plain text.
    """
    map_file = job.job.map_file
    if map_file is not None and not map_file.path.endswith(ZARR):
        raise BadRequestError(
            f"with a scheduler the map must be a zarr array, which many processes can write, got {map_file}"
        )
    with _cluster(scheduler, in_flight) as cluster, _referring(job, scheduler) as job:
        check_hidden([cluster.scheduler.address, *cluster.nthreads()], job.clients.arguments)
        try:
            tiles = iter(todo)
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
                raise WorkersLostError(f"the workers of one tile died repeatedly: {error}") from error
            finally:
                for future in list(waiting.futures):
                    future.cancel()
        finally:
            with suppress(OSError, TimeoutError):
                cluster.run(_close, job, on_error="ignore")


@contextmanager
def _referring(job: WorkerJob, scheduler: Any) -> Iterator[WorkerJob]:
    """Yield the job without secrets where its workers are processes of this machine: they read them from a file."""
    if scheduler != LOCAL:
        yield job
        return
    with tempfile.TemporaryDirectory(prefix="segserve-") as folder:  # only of this user
        yield replace(job, clients=job.clients.with_secrets_in(Path(folder) / "credentials.json"))


@contextmanager
def _cluster(scheduler: Any, in_flight: int) -> Iterator[Any]:
    """Yield a dask.distributed client: the one given, or one for the address, or for workers on this machine."""
    distributed = _distributed()
    if isinstance(scheduler, distributed.Client):
        yield scheduler
    elif scheduler == LOCAL:
        threads = -(-in_flight // LOCAL_WORKERS)
        with (
            # Dask removes the folders of its workers and scheduler, but not the one that contains them.
            tempfile.TemporaryDirectory(prefix="segserve-dask-", ignore_cleanup_errors=True) as scratch,
            distributed.LocalCluster(
                n_workers=LOCAL_WORKERS,
                threads_per_worker=threads,
                processes=True,
                # Any client that connects to a scheduler runs code as its user. The certificates are made for this
                # cluster.
                security=True,
                dashboard_address="127.0.0.1:0",
                local_directory=scratch,
                scheduler_kwargs={"local_directory": scratch},
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client
    elif isinstance(scheduler, str):
        with connected(scheduler, timeout_s=10) as client:
            yield client
    else:
        raise BadRequestError(
            f"scheduler must be a dask.distributed Client, a scheduler's address or {LOCAL!r}, "
            f"got {type(scheduler).__name__}"
        )


def connected(address: str, timeout_s: float) -> Any:
    """Return a dask.distributed client of the scheduler at an address; BadRequestError if none answers there."""
    distributed = _distributed()

    class Client(distributed.Client):  # type: ignore[misc, name-defined]
        def start(self, **options: Any) -> None:
            try:
                super().start(**options)
            except BaseException:
                # Otherwise it is closed whenever it is garbage, and Dask deadlocks if that is while another one starts.
                self.close()
                # A client that is closed before it has started keeps the thread of its loop.
                self._loop_runner.stop()
                raise

    try:
        return Client(address, timeout=timeout_s)
    except (OSError, TimeoutError, TypeError, ValueError) as error:
        raise BadRequestError(f"no Dask scheduler answers at {address!r}: {error}") from error


def _distributed() -> Any:
    return package_of_extra("distributed", "batch", "scheduler=")


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
                    with shown(progress, len(run.grid), "tiles") as run.tick:
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
                with shown(progress, len(run.grid), "tiles") as run.tick:
                    await _send_all_async(client, source, run)
                return await asyncio.to_thread(run.finish)
            except RevisionChangedError:
                if options.on_revision_change != "restart" or restarts == RESTARTS:
                    raise
            finally:
                # A cancelled task must also delete its temporary folder.
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
    """Return the largest value of an image of 16 bits that uses less than 1/16 of them; None if it uses more."""
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
