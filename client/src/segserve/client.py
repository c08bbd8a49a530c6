"""The client for threads."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from segserve.base_client import BaseClient
from segserve.calls.frames import FrameStream, open_stream, segment_frame
from segserve.calls.many import Failure, PendingImage, check_many, in_order, outcome
from segserve.calls.steps import Flow, Pause, SegmentOptions
from segserve.results.images import image_tensor
from segserve.transports import open_transport
from segserve.transports.base import Transport
from segserve_common.errors import SegserveError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from typing import Unpack

    from segserve.calls.frames import FrameLike
    from segserve.calls.many import OnError, SegmentKeywords
    from segserve.calls.steps import StreamId, StreamPosition, TransportName
    from segserve.calls.timeouts import Timeouts
    from segserve.control.models import Models, Pools
    from segserve.control.rollouts import Rollouts
    from segserve.results.images import ImageLike
    from segserve.results.result import Result
    from segserve.results.values import Encoding, ModelInfo
    from segserve.tiled import TiledObjects, TiledOptions, TiledSemanticResult
    from segserve.tiled.progress import Progress
    from segserve.transports.base import Connection
    from segserve_common.kserve import Tensor

T = TypeVar("T")


class Client(BaseClient[Transport]):
    """Calls the models behind one gateway; safe to share between threads, and keeps its connections.

    `url` is the gateway's, by default that of `SEGSERVE_URL`, else http://127.0.0.1:8080. `transport` grpc
    needs the extra `segserve[grpc]`. `timeout_s` is for a whole call, with its up to `retries` retries, which
    are made where the gateway cannot be reached or is overloaded, and nowhere else; `Timeouts` has the parts.

    `api_key` (by default that of `SEGSERVE_API_KEY`) is sent as x-api-key, `bearer_token` as Authorization: Bearer,
    `headers` beside them. They are never sent to another machine as plain text unless
    `allow_plain_http_credentials` says so: `PlainHttpCredentialsError`. `tls` names a private authority and the
    client's own certificate. `hooks` are told of each request, answer, retry and error. `telemetry` makes a span of
    OpenTelemetry for each call: True, or None where the program has loaded OpenTelemetry before. `http2` needs the
    extra `segserve[http2]`. `gzip` compresses arrays of pixels and answers, which pays on slow networks only.

    `platform` says which platform `models`, `pools` and `rollouts` are of: `Local()` is this machine's,
    `Cluster(context=..., namespace=..., kubeconfig=...)` a cluster's. None is this machine where `SEGSERVE_STATE` names
    its platform or one is up here, else the kube context, as for the command line. They need the extra
    `segserve[local]` or `segserve[cluster]`, and ask nothing before the first call.

    After `os.fork` a child has connections of its own by HTTP; by gRPC it gets a `ForkedClientError`. Raises
    `BadRequestError` for what cannot be.
    """

    def segment(
        self,
        image: ImageLike,
        *,
        model: str,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        encoding: Encoding | None = None,
        confidence: bool = False,
        timeout_s: float | Timeouts | None = None,
        request_id: str | None = None,
    ) -> Result:
        """Segment one image: the result that belongs to the model's task.

        `image` is a path, the bytes of a file, an open binary file, an HTTP response that was fetched, a PIL image, or
        a uint8 or uint16 array or tensor shaped (H, W) or (H, W, C), RGB where it has colours: it is turned into what
        the model takes as the server turns files. What is None is as the model's file says.
        `confidence` asks a semantic model for each class's mean probability, which costs it time. `request_id` names
        the request in headers, logs and errors, by default one of its own. Raises a `SegserveError`, and `OSError`
        for a file that cannot be read.
        """
        options = SegmentOptions(model, score_threshold, max_detections, encoding, confidence, timeout_s, request_id)
        return self._run(self._session.segment(image_tensor(image), options))

    @overload
    def segment_many(
        self,
        images: Iterable[ImageLike],
        *,
        model: str,
        in_flight: int = ...,
        on_error: Literal["raise"] = ...,
        **options: Unpack[SegmentKeywords],
    ) -> Generator[Result, None, None]: ...

    @overload
    def segment_many(
        self,
        images: Iterable[ImageLike],
        *,
        model: str,
        in_flight: int = ...,
        on_error: OnError,
        **options: Unpack[SegmentKeywords],
    ) -> Generator[Result | Failure, None, None]: ...

    def segment_many(
        self,
        images: Iterable[ImageLike],
        *,
        model: str,
        in_flight: int = 8,
        on_error: OnError = "raise",
        **options: Unpack[SegmentKeywords],
    ) -> Generator[Any, None, None]:
        """Segment images at once, `in_flight` of them: an iterator of their results, in their order.

        `images` is pulled no further than that ahead of what was consumed, so that it may be of any length. An
        error ends the iteration with a note that names the image; with `on_error="return"` a `Failure` stands in
        its place. Closing the iterator, or leaving it, sends no more. `options` are those of `segment`.
        """
        check_many(images, in_flight, on_error)
        segment = partial(self._segment, SegmentOptions(model, **options))
        pulled = (PendingImage.of(index, image) for index, image in enumerate(images))
        return in_order((partial(outcome, each, segment, on_error) for each in pulled), in_flight)

    @overload
    def segment_stream(
        self,
        frames: Iterable[FrameLike],
        *,
        model: str,
        stream_id: StreamId | None = ...,
        on_error: Literal["raise"] = ...,
        **options: Unpack[SegmentKeywords],
    ) -> Generator[Result, None, None]: ...

    @overload
    def segment_stream(
        self,
        frames: Iterable[FrameLike],
        *,
        model: str,
        stream_id: StreamId | None = ...,
        on_error: OnError,
        **options: Unpack[SegmentKeywords],
    ) -> Generator[Result | Failure, None, None]: ...

    def segment_stream(
        self,
        frames: Iterable[FrameLike],
        *,
        model: str,
        stream_id: StreamId | None = None,
        on_error: OnError = "raise",
        **options: Unpack[SegmentKeywords],
    ) -> Generator[Any, None, None]:
        """Segment the frames of a video one after the other: a model with `temporalSmoothing` steadies its answers.

        A frame is an image, or a pair of its number and an image where frames are left out, as by a camera that
        is faster than the model. `stream_id` names the stream on the server, by default a name of its own; streams
        of different ids may run at the same time. A frame is sent when the one before was answered, and again only
        where no server has worked on it. Errors are as in `segment_many`; after a `Failure` the stream goes on.
        """
        check_many(frames, 1, on_error)
        base = SegmentOptions(model, **options)
        return self._stream(frames, open_stream(stream_id, frames), base, on_error)

    def segment_tiled(
        self,
        image: object,
        *,
        model: str,
        scheduler: Any = None,
        progress: Progress = True,
        **options: Unpack[TiledOptions],
    ) -> TiledSemanticResult | TiledObjects:
        """Segment an image too large for one request, tile by tile, in bounded memory.

        `image` is the path of a TIFF, PNG, JPEG, WebP, .npy or zarr folder, a uint8 or uint16 array or memory map, or a
        zarr array, shaped (H, W) or (H, W, 3 or 4). `options` are those of `segserve.tiled.TiledOptions`; with
        `out="folder"` the result lies on disk, and the same call again after a crash sends only the missing tiles.
        `scheduler`, a dask.distributed client, its address or "local", has the workers of a Dask cluster do it and
        write zarr. `progress` shows a bar on a terminal; a function is called with done and total. Raises a
        `SegserveError`, of `segserve.tiled.errors` too, and `OSError` for a file that cannot be read.
        """
        from segserve.tiled import Options, run_tiled
        from segserve.tiled.clusters import ClientFactory

        return run_tiled(
            self,
            image,
            Options.of(model, **options),
            scheduler=scheduler,
            worker_clients=ClientFactory(Client, self._arguments()),
            progress=progress,
        )

    def model_info(self, model: str) -> ModelInfo:
        """Return what is served under a name now: revision, classes, outputs."""
        return self._run(self._session.model_info(model))

    @property
    def models(self) -> Models:
        """The models of the platform, as typed resources: list, get, apply, delete, wait."""
        from segserve.control.models import Models

        return Models(self._lazy_platform.platform)

    @property
    def pools(self) -> Pools:
        """The pools of servers of the platform, as typed resources: list, get, apply, delete."""
        from segserve.control.models import Pools

        return Pools(self._lazy_platform.platform)

    @property
    def rollouts(self) -> Rollouts:
        """How new revisions come to serve, and your word in it: status, promote, abort and the other verbs, wait."""
        from segserve.control.rollouts import Rollouts

        return Rollouts(self._lazy_platform.platform)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()
        self._lazy_platform.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stream(
        self, frames: Iterable[FrameLike], stream: FrameStream, options: SegmentOptions, on_error: OnError
    ) -> Generator[Result | Failure, None, None]:
        def segment(position: StreamPosition, image: Tensor) -> Result:
            return self._run(segment_frame(self._session, stream, position, options, image))

        try:
            for frame in frames:
                pulled, position = stream.next(frame)
                yield outcome(pulled, partial(segment, position), on_error)
        except GeneratorExit:
            self._end(stream, options)
            raise
        self._end(stream, options)

    def _end(self, stream: FrameStream, options: SegmentOptions) -> None:
        for position, image in stream.ending():
            with suppress(SegserveError):
                self._run(segment_frame(self._session, stream, position, options, image))

    def _segment(self, options: SegmentOptions, image: Tensor) -> Result:
        return self._run(self._session.segment(image, options))

    @staticmethod
    def _open(name: TransportName, connection: Connection) -> Transport:
        return open_transport(name, connection)

    def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = next(flow)
                    continue
                try:
                    reply = self._transport.send(step)
                except SegserveError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            flow.close()
