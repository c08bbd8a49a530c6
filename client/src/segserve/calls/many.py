"""Many images of one call: how many are in flight, the order of their results, and what a failure says."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypedDict, TypeVar

from segserve.results.images import image_tensor
from segserve_common.errors import BadRequestError, SegserveError
from segserve_common.kserve import Tensor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Generator, Iterable
    from concurrent.futures import Future

    from segserve.calls.timeouts import Timeouts
    from segserve.results.images import ImageLike
    from segserve.results.result import Result
    from segserve.results.values import Encoding

T = TypeVar("T")
OnError: TypeAlias = Literal["raise", "return"]
ON_ERROR: Final = ("raise", "return")


class SegmentKeywords(TypedDict, total=False):
    """What `segment` may be told of a call besides the image and the model; see there."""

    score_threshold: float | None
    max_detections: int | None
    encoding: Encoding | None
    confidence: bool
    timeout_s: float | Timeouts | None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an image has no result: in its place with `on_error="return"`.

    `index` counts the images of the call from 0 (of a stream: the frame's number), `source` is the image's
    path, name or URL where it has one.
    """

    index: int
    source: str | None
    error: SegserveError | OSError


@dataclass(frozen=True, slots=True)
class PendingImage:
    """An image as it was pulled: a path to read in its turn, its tensor, or what kept it from becoming one."""

    index: int
    source: str | None
    content: str | os.PathLike[str] | Tensor | SegserveError | OSError
    what: str = "image"

    @classmethod
    def of(cls, index: int, image: ImageLike, what: str = "image") -> PendingImage:
        """Take an image over. Only a path is read later: the caller may use the memory of anything else again."""
        source = _source(image)
        if isinstance(image, str | os.PathLike):
            return cls(index, source, image, what)
        try:
            return cls(index, source, image_tensor(image), what)
        except (SegserveError, OSError) as error:
            return cls(index, source, error, what)

    def tensor(self) -> Tensor:
        """Return the image's tensor, or raise what kept it from becoming one."""
        if isinstance(self.content, Exception):
            raise self.content
        return self.content if isinstance(self.content, Tensor) else image_tensor(self.content)

    def failed(self, error: SegserveError | OSError, on_error: OnError) -> Failure:
        """Return the failure, or raise the error with a note that names the image."""
        if on_error == "return":
            return Failure(self.index, self.source, error)
        error.add_note(f"{self.what} {self.index}" + (f": {self.source}" if self.source else ""))
        raise error


def check_many(images: object, in_flight: int, on_error: str) -> None:
    """Raise `BadRequestError` for one image where many are wanted, and for settings that do not exist."""
    if isinstance(in_flight, bool) or not isinstance(in_flight, int) or in_flight < 1:
        raise BadRequestError(f"in_flight is a whole number from 1 on, got {in_flight!r}")
    check_on_error(on_error)
    shape: tuple[int, ...] = getattr(images, "shape", ())
    one = isinstance(images, str | bytes | bytearray | memoryview | os.PathLike) or hasattr(images, "read")
    if one or len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 2, 3, 4)):
        raise BadRequestError(f"images is an iterable of images, got one {type(images).__name__}: segment() takes it")
    if not hasattr(images, "__iter__") and not hasattr(images, "__aiter__"):
        raise BadRequestError(f"images is an iterable of images, got {type(images).__name__}")


def check_on_error(on_error: str) -> None:
    """Raise `BadRequestError` for an `on_error` that does not exist."""
    if on_error not in ON_ERROR:
        raise BadRequestError(f"on_error is one of {', '.join(ON_ERROR)}, got {on_error!r}")


def in_order(calls: Iterable[Callable[[], T]], in_flight: int) -> Generator[T, None, None]:
    """Yield the values of calls in their order, `in_flight` at once in threads.

    A call is pulled only when fewer than that many are made or wait to be consumed. Closing, and an error of
    any call, lets those that run end and starts no other.
    """
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(in_flight, thread_name_prefix="segserve") as threads:
        try:
            for call in calls:
                # Traces follow the caller's context, which threads do not inherit.
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
    """Yield as `in_order` does, in tasks; closing, and an error of any call, cancels those that run."""
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


def outcome(pulled: PendingImage, segment: Callable[[Tensor], Result], on_error: OnError) -> Result | Failure:
    """Segment a pulled image; raises with a note that names it, unless failures are to be returned."""
    try:
        return segment(pulled.tensor())
    except (SegserveError, OSError) as error:
        return pulled.failed(error, on_error)


async def outcome_async(
    pulled: PendingImage, segment: Callable[[Tensor], Coroutine[Any, Any, Result]], on_error: OnError
) -> Result | Failure:
    """Do as `outcome` does; a file is read in a thread."""
    try:
        tensor = pulled.content if isinstance(pulled.content, Tensor) else await asyncio.to_thread(pulled.tensor)
        return await segment(tensor)
    except (SegserveError, OSError) as error:
        return pulled.failed(error, on_error)


async def each_of(images: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    """Yield what an iterable of either kind holds."""
    if hasattr(images, "__aiter__"):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image


async def pull(images: Iterable[ImageLike] | AsyncIterable[ImageLike]) -> AsyncGenerator[PendingImage, None]:
    """Yield the images of an iterable of either kind as they are asked for; a thread makes their tensors."""
    index = 0
    async for image in each_of(images):
        yield PendingImage.of(index, image) if is_quick(image) else await asyncio.to_thread(PendingImage.of, index, image)
        index += 1


def is_quick(image: object) -> bool:
    """Whether an image is taken over at once: bytes, and paths, which are read later; an event loop need not wait."""
    return isinstance(image, bytes | str | os.PathLike)


def _source(image: object) -> str | None:
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    found = next((getattr(image, key) for key in ("filename", "name", "url") if getattr(image, key, None)), None)
    return str(found) if found is not None and not isinstance(found, int) else None
