"""The asynchronous client."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from operator import length_hint
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast, overload

from segserve.base_client import BaseClient
from segserve.calls.many import (
    Failure,
    FrameStream,
    check_many,
    each_of,
    in_order_async,
    open_stream,
    outcome_async,
    pull,
    segment_frame,
)
from segserve.calls.steps import Flow, Pause, SegmentOptions
from segserve.errors import GatewayUnreachableError, ModelNotFoundError
from segserve.prompted import AsyncPromptedImage
from segserve.rendering.progress import Progress, counted_async
from segserve.results.images import image_tensor
from segserve.transports import open_async_transport
from segserve.transports.base import AsyncTransport
from segserve_common.errors import SegserveError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Iterable
    from typing import Unpack

    from typing_extensions import TypeVar as DefaultedTypeVar

    from segserve.calls.many import FrameLike, OnError, SegmentKeywords
    from segserve.calls.steps import StreamId, StreamPosition, Timeouts, TransportName
    from segserve.results.images import ImageLike
    from segserve.results.result import Result
    from segserve.results.values import ModelInfo
    from segserve.tiled import TiledObjects, TiledOptions, TiledSemanticResult
    from segserve.transports.base import Connection
    from segserve_common.kserve import Tensor
    from segserve_platform.control.models import AsyncModels, AsyncPools
    from segserve_platform.control.rollouts import AsyncRollouts

    ResultT = DefaultedTypeVar("ResultT", bound=Result, default=Result)
    TiledT = DefaultedTypeVar(
        "TiledT", bound=TiledSemanticResult | TiledObjects, default=TiledSemanticResult | TiledObjects
    )

T = TypeVar("T")


class AsyncClient(BaseClient[AsyncTransport]):
    """`Client` for the tasks of one event loop; see there.

    The function of a `bearer_token` may be asynchronous. After `os.fork`, a child gets a `ForkedClientError`, and
    another event loop an `EventLoopError`: make a client there.
    """

    async def segment(
        self,
        image: ImageLike,
        *,
        model: str,
        expect: type[ResultT] | None = None,
        request_id: str | None = None,
        **options: Unpack[SegmentKeywords],
    ) -> ResultT:
        """Segment one image, as `Client.segment` does."""
        given = SegmentOptions.of(model, request_id=request_id, expect=expect, **options)
        # Reading a file or decoding would block every other task.
        tensor = image_tensor(image) if isinstance(image, bytes) else await asyncio.to_thread(image_tensor, image)
        return cast("ResultT", await self._run(self._session.segment(tensor, given)))

    def prompt(self, image: ImageLike, *, model: str, timeout_s: float | Timeouts | None = None) -> AsyncPromptedImage:
        """Return an image that clicks and boxes select objects in, as `Client.prompt` does; a file is read at once."""
        tensor, options = image_tensor(image), SegmentOptions.of(model, timeout_s=timeout_s)
        return AsyncPromptedImage(options, lambda given: self._run(self._session.prompted(tensor, given)))

    @overload
    def segment_many(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        model: str,
        expect: type[ResultT] | None = ...,
        in_flight: int = ...,
        progress: Progress = ...,
        on_error: Literal["raise"] = ...,
        **options: Unpack[SegmentKeywords],
    ) -> AsyncGenerator[ResultT, None]: ...

    @overload
    def segment_many(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        model: str,
        expect: type[ResultT] | None = ...,
        in_flight: int = ...,
        progress: Progress = ...,
        on_error: OnError,
        **options: Unpack[SegmentKeywords],
    ) -> AsyncGenerator[ResultT | Failure, None]: ...

    def segment_many(
        self,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        model: str,
        expect: type[Any] | None = None,
        in_flight: int = 8,
        progress: Progress = False,
        on_error: OnError = "raise",
        **options: Unpack[SegmentKeywords],
    ) -> AsyncGenerator[Any, None]:
        """Segment images concurrently, as `Client.segment_many` does; `images` may be asynchronous.

        Use `contextlib.aclosing` to end an iteration early.
        """
        check_many(images, in_flight, on_error)
        segment = partial(self._segment, SegmentOptions.of(model, expect=expect, **options))
        calls = (partial(outcome_async, pending, segment, on_error) async for pending in pull(images))
        return counted_async(in_order_async(calls, in_flight), progress, length_hint(images))

    @overload
    def segment_stream(
        self,
        frames: Iterable[FrameLike] | AsyncIterable[FrameLike],
        *,
        model: str,
        expect: type[ResultT] | None = ...,
        stream_id: StreamId | None = ...,
        on_error: Literal["raise"] = ...,
        **options: Unpack[SegmentKeywords],
    ) -> AsyncGenerator[ResultT, None]: ...

    @overload
    def segment_stream(
        self,
        frames: Iterable[FrameLike] | AsyncIterable[FrameLike],
        *,
        model: str,
        expect: type[ResultT] | None = ...,
        stream_id: StreamId | None = ...,
        on_error: OnError,
        **options: Unpack[SegmentKeywords],
    ) -> AsyncGenerator[ResultT | Failure, None]: ...

    def segment_stream(
        self,
        frames: Iterable[FrameLike] | AsyncIterable[FrameLike],
        *,
        model: str,
        expect: type[Any] | None = None,
        stream_id: StreamId | None = None,
        on_error: OnError = "raise",
        **options: Unpack[SegmentKeywords],
    ) -> AsyncGenerator[Any, None]:
        """Segment the frames of a video in order, as `Client.segment_stream` does.

        `frames` may be asynchronous. Use `contextlib.aclosing` to end an iteration early.
        """
        check_many(frames, 1, on_error)
        return self._stream(
            frames, open_stream(stream_id, frames), SegmentOptions.of(model, expect=expect, **options), on_error
        )

    async def segment_tiled(
        self,
        image: object,
        *,
        model: str,
        expect: type[TiledT] | None = None,
        progress: Progress = True,
        **options: Unpack[TiledOptions],
    ) -> TiledT:
        """Segment an image too large for one request, as `Client.segment_tiled` does, on this event loop.

        Pixels and masks are processed in threads. Use `Client` for a Dask cluster.
        """
        from segserve.tiled import Options, run_tiled_async

        given = Options.of(model, **options)
        return cast("TiledT", await run_tiled_async(self, image, given, progress=progress, expect=expect))

    async def model_info(self, model: str) -> ModelInfo:
        """Return the revision, classes and outputs of the model that is served under a name."""
        return await self._run(self._session.model_info(model))

    @property
    def models(self) -> AsyncModels:
        """The models of the platform as typed resources: list, get, apply, delete, wait."""
        from segserve_platform.control.models import AsyncModels

        return AsyncModels(self._lazy_platform.platform)

    @property
    def pools(self) -> AsyncPools:
        """The server pools of the platform as typed resources: list, get, apply, delete."""
        from segserve_platform.control.models import AsyncPools

        return AsyncPools(self._lazy_platform.platform)

    @property
    def rollouts(self) -> AsyncRollouts:
        """The rollouts of new revisions: status, promote, abort, pause, resume, retry, rollback, skip_gate, wait."""
        from segserve_platform.control.rollouts import AsyncRollouts

        return AsyncRollouts(self._lazy_platform.platform)

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()
        await asyncio.to_thread(self._lazy_platform.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @staticmethod
    def _open(name: TransportName, connection: Connection) -> AsyncTransport:
        return open_async_transport(name, connection)

    async def _stream(
        self,
        frames: Iterable[FrameLike] | AsyncIterable[FrameLike],
        stream: FrameStream,
        options: SegmentOptions,
        on_error: OnError,
    ) -> AsyncGenerator[Result | Failure, None]:
        async def segment(position: StreamPosition, image: Tensor) -> Result:
            return await self._run(segment_frame(self._session, stream, position, options, image))

        try:
            async for frame in each_of(frames):
                pending, position = await asyncio.to_thread(stream.next, frame)
                yield await outcome_async(pending, partial(segment, position), on_error)
        except GeneratorExit:
            await self._end(stream, options)
            raise
        await self._end(stream, options)

    async def _end(self, stream: FrameStream, options: SegmentOptions) -> None:
        for position, image in stream.ending():
            with suppress(SegserveError):
                await self._run(segment_frame(self._session, stream, position, options, image))

    async def _segment(self, options: SegmentOptions, image: Tensor) -> Result:
        return await self._run(self._session.segment(image, options))

    async def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = next(flow)
                    continue
                try:
                    reply = await self._transport.send(step)
                except SegserveError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as end:
            value: T = end.value
            return value
        except (ModelNotFoundError, GatewayUnreachableError) as error:
            await asyncio.to_thread(self._advise, error)
            # The text says all; the frames of the transport and of httpcore would hide it.
            raise error.with_traceback(None) from None
        finally:
            flow.close()
