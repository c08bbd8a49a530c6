"""Calls for many images, in any order or as frames of a stream: how many are in flight, results in order, failures."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
)
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias, TypedDict, TypeVar
from uuid import uuid4

from segserve.calls.session import Session
from segserve.calls.steps import Flow, SegmentOptions, StreamId, StreamPosition, Timeouts
from segserve.results.images import ImageLike, image_tensor
from segserve.results.result import Result
from segserve.results.values import Encoding
from segserve_common.errors import BadRequestError, SegserveError
from segserve_common.kserve import Tensor

T = TypeVar("T")
OnError: TypeAlias = Literal["raise", "return"]
ON_ERROR: Final = ("raise", "return")
# The error of a model without temporalSmoothing for a frame's number, and Triton's for an unknown stream.
NO_STREAMS: Final = "parameter 'frame' is not allowed"
NOT_STARTED: Final = "START flag"
FrameLike: TypeAlias = "ImageLike | tuple[int, ImageLike]"


class SegmentKeywords(TypedDict, total=False):
    """The options of `segment` except the image and the model; see there."""

    score_threshold: float | None
    max_detections: int | None
    encoding: Encoding | None
    confidence: bool
    timeout_s: float | Timeouts | None


@dataclass(frozen=True, slots=True)
class Failure:
    """The failure of one image, in place of its result with `on_error="return"`.

    `index` counts the images of the call from 0 (in a stream: the frame's number). `source` is the image's path, name
    or URL if it has one.
    """

    index: int
    source: str | None
    error: SegserveError | OSError


@dataclass(frozen=True, slots=True)
class PendingImage:
    """An image taken from the caller's iterable: a path to read later, a tensor, or the error of making one."""

    index: int
    source: str | None
    content: str | os.PathLike[str] | Tensor | SegserveError | OSError
    what: str = "image"

    @classmethod
    def of(cls, index: int, image: ImageLike, what: str = "image") -> PendingImage:
        """Take an image. Only paths are read later: the caller may reuse the memory of anything else."""
        source = _source(image)
        if isinstance(image, str | os.PathLike):
            return cls(index, source, image, what)
        try:
            return cls(index, source, image_tensor(image), what)
        except (SegserveError, OSError) as error:
            return cls(index, source, error, what)

    def tensor(self) -> Tensor:
        """Return the image's tensor, or raise the error of making one."""
        if isinstance(self.content, Exception):
            raise self.content
        return self.content if isinstance(self.content, Tensor) else image_tensor(self.content)

    def failed(self, error: SegserveError | OSError, on_error: OnError) -> Failure:
        """Return a `Failure`, or raise the error with a note that names the image."""
        if on_error == "return":
            return Failure(self.index, self.source, error)
        error.add_note(f"{self.what} {self.index}" + (f": {self.source}" if self.source else ""))
        raise error


def check_many(images: object, in_flight: int, on_error: str) -> None:
    """Raise `BadRequestError` for a single image in place of many, and for invalid settings."""
    if isinstance(in_flight, bool) or not isinstance(in_flight, int) or in_flight < 1:
        raise BadRequestError(f"in_flight must be a positive integer, got {in_flight!r}")
    check_on_error(on_error)
    shape: tuple[int, ...] = getattr(images, "shape", ())
    one = isinstance(images, str | bytes | bytearray | memoryview | os.PathLike) or hasattr(images, "read")
    if one or len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 2, 3, 4)):
        raise BadRequestError(
            f"images must be an iterable of images, got one {type(images).__name__}: use segment() for a single image"
        )
    if not hasattr(images, "__iter__") and not hasattr(images, "__aiter__"):
        raise BadRequestError(f"images must be an iterable of images, got {type(images).__name__}")


def check_on_error(on_error: str) -> None:
    """Raise `BadRequestError` for an invalid `on_error`."""
    if on_error not in ON_ERROR:
        raise BadRequestError(f"on_error must be one of {', '.join(ON_ERROR)}, got {on_error!r}")


def in_order(calls: Iterable[Callable[[], T]], in_flight: int) -> Generator[T, None, None]:
    """Yield the values of calls in order, with up to `in_flight` running in threads.

    A call is taken from the iterable only while fewer than `in_flight` are running or waiting to be consumed. Closing
    the generator, or an error in any call, starts no further call and waits for the running ones.
    """
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(in_flight, thread_name_prefix="segserve") as threads:
        try:
            for call in calls:
                # Traces need the caller's context, which threads do not inherit.
                waiting.append(threads.submit(copy_context().run, call))
                while waiting and (len(waiting) == in_flight or waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for call_made in waiting:
                call_made.cancel()


async def in_order_async(
    calls: AsyncIterable[Callable[[], Coroutine[Any, Any, T]]], in_flight: int
) -> AsyncGenerator[T, None]:
    """Yield as `in_order` does, in tasks; closing the generator, or an error in any call, cancels the running ones."""
    waiting: deque[asyncio.Task[T]] = deque()
    try:
        async for call in calls:
            waiting.append(asyncio.create_task(call()))
            while waiting and (len(waiting) == in_flight or waiting[0].done()):
                yield await waiting.popleft()
        while waiting:
            yield await waiting.popleft()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def outcome(pending: PendingImage, segment: Callable[[Tensor], Result], on_error: OnError) -> Result | Failure:
    """Segment a pending image; an error raises with a note that names the image, or is returned as a `Failure`."""
    try:
        return segment(pending.tensor())
    except (SegserveError, OSError) as error:
        return pending.failed(error, on_error)


async def outcome_async(
    pending: PendingImage, segment: Callable[[Tensor], Coroutine[Any, Any, Result]], on_error: OnError
) -> Result | Failure:
    """Segment a pending image as `outcome` does; a file is read in a thread."""
    try:
        tensor = pending.content if isinstance(pending.content, Tensor) else await asyncio.to_thread(pending.tensor)
        return await segment(tensor)
    except (SegserveError, OSError) as error:
        return pending.failed(error, on_error)


async def each_of(images: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    """Yield the items of a synchronous or asynchronous iterable."""
    if hasattr(images, "__aiter__"):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image


async def pull(images: Iterable[ImageLike] | AsyncIterable[ImageLike]) -> AsyncGenerator[PendingImage, None]:
    """Yield the images of either kind of iterable on demand; tensors are made in a thread."""
    index = 0
    async for image in each_of(images):
        yield (
            PendingImage.of(index, image) if is_quick(image) else await asyncio.to_thread(PendingImage.of, index, image)
        )
        index += 1


def is_quick(image: object) -> bool:
    """Return whether an image is taken without blocking: bytes, or a path, which is read later."""
    return isinstance(image, bytes | str | os.PathLike)


def _source(image: object) -> str | None:
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    name = next((getattr(image, key) for key in ("filename", "name", "url") if getattr(image, key, None)), None)
    return str(name) if name is not None and not isinstance(name, int) else None


@dataclass(slots=True)
class FrameStream:
    """The state of one stream: how many frames were read, and the last one that the server received.

    `length` is the number of frames if known beforehand; `stateless` is set once the model proves to have no streams.
    """

    stream: StreamId
    length: int | None = None
    frames_read: int = 0
    stateless: bool = False
    last: tuple[StreamPosition, Tensor] | None = None

    def next(self, frame: FrameLike) -> tuple[PendingImage, StreamPosition]:
        """Return the next frame and its position; a pair brings its own number.

        Raises `BadRequestError` for a number that is not a whole number from 0 on.
        """
        number, image = frame if isinstance(frame, tuple) and len(frame) == 2 else (self.frames_read, frame)
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise BadRequestError(f"a frame's number must be a non-negative integer, got {number!r}")
        self.frames_read += 1
        position = StreamPosition(self.stream, number, self.last is None, self.frames_read == self.length)
        return PendingImage.of(number, image, "frame"), position

    def ending(self) -> Iterator[tuple[StreamPosition, Tensor]]:
        """Yield the last frame again to end a stream whose length was not known.

        The server can then forget the stream at once; a model without state ignores it.
        """
        if self.last is not None and not self.last[0].ends:
            position, image = self.last
            yield replace(position, starts=False, ends=True), image


def open_stream(stream_id: StreamId | None, frames: object) -> FrameStream:
    """Return the state of a new stream with this id, or with a generated one.

    Raises `BadRequestError` for an id that Triton does not accept.
    """
    measure: Callable[[], int] | None = getattr(frames, "__len__", None)
    length = measure() if measure else None
    if stream_id is None:
        return FrameStream(f"segserve-{uuid4()}", length)
    is_text = isinstance(stream_id, str) and 0 < len(stream_id.encode()) <= 128
    is_number = isinstance(stream_id, int) and not isinstance(stream_id, bool) and 0 < stream_id < 2**63
    if not is_text and not is_number:
        raise BadRequestError(
            f"stream_id must be a text of 1 to 128 bytes or a whole number above 0, got {stream_id!r}"
        )
    return FrameStream(stream_id, length)


def segment_frame(
    session: Session, stream: FrameStream, position: StreamPosition, options: SegmentOptions, image: Tensor
) -> Flow[Result]:
    """Segment one frame.

    For a model without streams, each frame is segmented as a single image. A server that has forgotten the stream,
    because it restarted or ran out of places, refuses the frame; the frame then starts the stream again.
    """
    if stream.stateless:
        return (yield from session.segment(image, options))
    try:
        result = yield from session.segment(image, replace(options, position=position))
    except BadRequestError as error:
        if NO_STREAMS in error.message:
            stream.stateless = True
            return (yield from session.segment(image, options))
        if position.starts or position.ends or NOT_STARTED not in error.message:
            raise
        position = replace(position, starts=True)
        result = yield from session.segment(image, replace(options, position=position))
    stream.last = (position, image)
    return result
