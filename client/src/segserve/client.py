"""The synchronous client."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from segserve.base_client import BaseClient
from segserve.calls.many import (
    Failure,
    FrameStream,
    PendingImage,
    check_many,
    in_order,
    open_stream,
    outcome,
    segment_frame,
)
from segserve.calls.steps import Flow, Pause, SegmentOptions, check_option_names
from segserve.errors import GatewayUnreachableError, ModelNotFoundError
from segserve.results.images import image_tensor
from segserve.transports import open_transport
from segserve.transports.base import Transport
from segserve_common.errors import SegserveError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from typing import Unpack

    from segserve.calls.many import FrameLike, OnError, SegmentKeywords
    from segserve.calls.steps import StreamId, StreamPosition, Timeouts, TransportName
    from segserve.control.models import Models, Pools
    from segserve.control.rollouts import Rollouts
    from segserve.results.images import ImageLike
    from segserve.results.result import Result
    from segserve.results.values import Encoding, ModelInfo
    from segserve.tiled import TiledObjects, TiledOptions, TiledSemanticResult
    from segserve.tiled.segmenting import Progress
    from segserve.transports.base import Connection
    from segserve_common.kserve import Tensor

T = TypeVar("T")
ResultT = TypeVar("ResultT", bound="Result")
TiledT = TypeVar("TiledT", bound="TiledSemanticResult | TiledObjects")


class Client(BaseClient[Transport]):
    """A client for the models behind one gateway. Thread-safe; keeps its connections.

    `url` is the gateway's URL; default `SEGSERVE_URL`, else that of the platform that runs on this machine, else
    http://127.0.0.1:8080. `transport` grpc needs the extra
    `segserve[grpc]`. `timeout_s` covers a whole call with up to `retries` retries, which are made only if the gateway
    is unreachable or overloaded; `Timeouts` sets its phases.

    `api_key` (default `SEGSERVE_API_KEY`) is sent as x-api-key, `bearer_token` as Authorization: Bearer, and `headers`
    in addition. Without `allow_plain_http_credentials` they are never sent to another machine in plain text:
    `PlainHttpCredentialsError`. `tls` sets a private authority (default: the file `SEGSERVE_CA_FILE`) and the
    client's own certificate. `hooks` are called for each request, answer, retry and error. `telemetry` creates an
    OpenTelemetry span per call: True, or None if the program has imported OpenTelemetry. `http2` needs the extra
    `segserve[http2]`. `gzip` compresses arrays of pixels and answers, which pays off only on slow networks.
    `max_answer_bytes` bounds the memory that an answer takes: a larger one is an `AnswerTooLargeError`.

    `platform` is the platform of `models`, `pools` and `rollouts`: `Local()` for this machine, `Cluster(context=...,
    namespace=..., kubeconfig=...)` for a cluster. None means this machine if `SEGSERVE_STATE` is set or a platform is
    up here, else the kube context, as for the command line. They need the extra `segserve[local]` or
    `segserve[cluster]`, and connect on the first call.

    After `os.fork`, a child opens its own connections over HTTP; over gRPC it gets a `ForkedClientError`. A client
    that is pickled or copied takes its settings along, credentials included, and opens its own connections. Raises
    `BadRequestError` for invalid arguments.
    """

    @overload
    def segment(
        self,
        image: ImageLike,
        *,
        model: str,
        expect: type[ResultT],
        request_id: str | None = ...,
        **options: Unpack[SegmentKeywords],
    ) -> ResultT: ...

    @overload
    def segment(
        self,
        image: ImageLike,
        *,
        model: str,
        expect: None = ...,
        request_id: str | None = ...,
        **options: Unpack[SegmentKeywords],
    ) -> Result: ...

    def segment(
        self,
        image: ImageLike,
        *,
        model: str,
        expect: type[Any] | None = None,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        encoding: Encoding | None = None,
        confidence: bool = False,
        timeout_s: float | Timeouts | None = None,
        request_id: str | None = None,
        **unknown: object,
    ) -> Any:
        """Segment one image and return the result type of the model's task, for type checkers that of `expect`.

        `image` is a path, the bytes of a file, an open binary file, a fetched HTTP response, a PIL image, or a uint8 or
        uint16 array or tensor shaped (H, W) or (H, W, C), RGB if it has colours; arrays are converted to the model's
        pixel format as the server converts files. None leaves an option to the model's resource. `confidence` requests
        each class's mean probability from a semantic model, which costs time. `request_id` identifies the request in
        headers, logs and errors; generated by default. `expect`, such as `InstanceResult`, raises `ResultTypeError`
        before the image is sent if the model returns another type. Raises a `SegserveError`, and `OSError` for a file
        that cannot be read.
        """
        check_option_names(unknown, SegmentOptions)
        options = SegmentOptions(
            model, score_threshold, max_detections, encoding, confidence, timeout_s, request_id, expect=expect
        )
        return self._run(self._session.segment(image_tensor(image), options))

    @overload
    def segment_many(
        self,
        images: Iterable[ImageLike],
        *,
        model: str,
        expect: type[ResultT],
        in_flight: int = ...,
        on_error: Literal["raise"] = ...,
        **options: Unpack[SegmentKeywords],
    ) -> Generator[ResultT, None, None]: ...

    @overload
    def segment_many(
        self,
        images: Iterable[ImageLike],
        *,
        model: str,
        expect: None = ...,
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
        expect: type[ResultT],
        in_flight: int = ...,
        on_error: OnError,
        **options: Unpack[SegmentKeywords],
    ) -> Generator[ResultT | Failure, None, None]: ...

    @overload
    def segment_many(
        self,
        images: Iterable[ImageLike],
        *,
        model: str,
        expect: None = ...,
        in_flight: int = ...,
        on_error: OnError,
        **options: Unpack[SegmentKeywords],
    ) -> Generator[Result | Failure, None, None]: ...

    def segment_many(
        self,
        images: Iterable[ImageLike],
        *,
        model: str,
        expect: type[Any] | None = None,
        in_flight: int = 8,
        on_error: OnError = "raise",
        **options: Unpack[SegmentKeywords],
    ) -> Generator[Any, None, None]:
        """Segment images concurrently, up to `in_flight` at a time, and yield their results in order.

        `images` is read no further ahead than that, so it may be of any length. An error ends the iteration with a note
        that names the image; with `on_error="return"`, a `Failure` takes the result's place. Closing the iterator stops
        sending. `expect` and `options` are those of `segment`.
        """
        check_many(images, in_flight, on_error)
        segment = partial(self._segment, SegmentOptions.of(model, expect=expect, **options))
        pending = (PendingImage.of(index, image) for index, image in enumerate(images))
        return in_order((partial(outcome, each, segment, on_error) for each in pending), in_flight)

    @overload
    def segment_stream(
        self,
        frames: Iterable[FrameLike],
        *,
        model: str,
        expect: type[ResultT],
        stream_id: StreamId | None = ...,
        on_error: Literal["raise"] = ...,
        **options: Unpack[SegmentKeywords],
    ) -> Generator[ResultT, None, None]: ...

    @overload
    def segment_stream(
        self,
        frames: Iterable[FrameLike],
        *,
        model: str,
        expect: None = ...,
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
        expect: type[ResultT],
        stream_id: StreamId | None = ...,
        on_error: OnError,
        **options: Unpack[SegmentKeywords],
    ) -> Generator[ResultT | Failure, None, None]: ...

    @overload
    def segment_stream(
        self,
        frames: Iterable[FrameLike],
        *,
        model: str,
        expect: None = ...,
        stream_id: StreamId | None = ...,
        on_error: OnError,
        **options: Unpack[SegmentKeywords],
    ) -> Generator[Result | Failure, None, None]: ...

    def segment_stream(
        self,
        frames: Iterable[FrameLike],
        *,
        model: str,
        expect: type[Any] | None = None,
        stream_id: StreamId | None = None,
        on_error: OnError = "raise",
        **options: Unpack[SegmentKeywords],
    ) -> Generator[Any, None, None]:
        """Segment the frames of a video in order; a model with `temporalSmoothing` smooths its answers over time.

        A frame is an image, or a pair of its number and an image if frames are skipped, as with a camera faster than
        the model. `stream_id` identifies the stream on the server, generated by default; streams with different ids may
        run concurrently. A frame is sent after the previous one was answered, and retried only if no server has
        processed it. Errors are as in `segment_many`; the stream continues after a `Failure`. `expect` and `options`
        are those of `segment`.
        """
        check_many(frames, 1, on_error)
        base = SegmentOptions.of(model, expect=expect, **options)
        return self._stream(frames, open_stream(stream_id, frames), base, on_error)

    @overload
    def segment_tiled(
        self,
        image: object,
        *,
        model: str,
        expect: type[TiledT],
        scheduler: Any = ...,
        progress: Progress = ...,
        **options: Unpack[TiledOptions],
    ) -> TiledT: ...

    @overload
    def segment_tiled(
        self,
        image: object,
        *,
        model: str,
        expect: None = ...,
        scheduler: Any = ...,
        progress: Progress = ...,
        **options: Unpack[TiledOptions],
    ) -> TiledSemanticResult | TiledObjects: ...

    def segment_tiled(
        self,
        image: object,
        *,
        model: str,
        expect: type[Any] | None = None,
        scheduler: Any = None,
        progress: Progress = True,
        **options: Unpack[TiledOptions],
    ) -> Any:
        """Segment an image too large for one request, tile by tile, in bounded memory.

        `image` is the path of a TIFF, PNG, JPEG, WebP or .npy file or a zarr folder, a uint8 or uint16 array or memory
        map, or a zarr array, shaped (H, W) or (H, W, 3 or 4), or another image that `segment` takes. `options`
        are those of `segserve.tiled.TiledOptions`;
        with `out="folder"` the result is written to disk, and the same call after a crash sends only the missing tiles.
        `scheduler`, a dask.distributed client, its address or "local", lets the workers of a Dask cluster send the
        tiles and write zarr. `progress` shows a bar on a terminal; a function is called with the numbers of tiles done
        and total. `expect`, `TiledSemanticResult` or `TiledObjects`, raises `ResultTypeError` before a tile is sent if
        the model returns the other type. Raises a `SegserveError`, including those of `segserve.errors`, and `OSError`
        for a file that cannot be read.
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
            expect=expect,
        )

    def model_info(self, model: str) -> ModelInfo:
        """Return the revision, classes and outputs of the model that is served under a name."""
        return self._run(self._session.model_info(model))

    @property
    def models(self) -> Models:
        """The models of the platform as typed resources: list, get, apply, delete, wait."""
        from segserve.control.models import Models

        return Models(self._lazy_platform.platform)

    @property
    def pools(self) -> Pools:
        """The server pools of the platform as typed resources: list, get, apply, delete."""
        from segserve.control.models import Pools

        return Pools(self._lazy_platform.platform)

    @property
    def rollouts(self) -> Rollouts:
        """The rollouts of new revisions: status, promote, abort, pause, resume, retry, rollback, skip_gate, wait."""
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
                pending, position = stream.next(frame)
                yield outcome(pending, partial(segment, position), on_error)
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
        except (ModelNotFoundError, GatewayUnreachableError) as error:
            self._advise(error)
            # The text says all; the frames of the transport and of httpcore would hide it.
            raise error.with_traceback(None) from None
        finally:
            flow.close()
