"""Frames of a stream: their numbers, and what tells the server where the stream begins and ends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias
from uuid import uuid4

from segserve.calls.many import Pulled
from segserve_common.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from segserve.calls.session import Flow, SegmentOptions, Session
    from segserve.results.images import ImageLike
    from segserve.results.result import Result
    from segserve_common.kserve import Parameter, Tensor

StreamId: TypeAlias = str | int
# What a model without temporalSmoothing says of a frame's number, and Triton of a stream that it does not know.
NO_STREAMS: Final = "parameter 'frame' is not allowed"
NOT_STARTED: Final = "START flag"
FrameLike: TypeAlias = "ImageLike | tuple[int, ImageLike]"


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """Where in which stream a frame is; `number` counts frames from 0, also those that were not sent."""

    stream: StreamId
    number: int
    starts: bool = False
    ends: bool = False

    def parameters(self) -> dict[str, Parameter]:
        """Return the request parameters that say so: Triton's, and the frame's number."""
        flags = {"sequence_start": self.starts, "sequence_end": self.ends}
        return {"sequence_id": self.stream, "frame": self.number, **flags}


@dataclass(slots=True)
class Course:
    """How one stream goes: which frame comes next, and what the server has seen of it.

    `length` is the number of frames where it is known beforehand, `keeps_none` whether the model has no streams.
    """

    stream: StreamId
    length: int | None = None
    pulled: int = 0
    keeps_none: bool = False
    last: tuple[StreamPosition, Tensor] | None = None

    def next(self, frame: FrameLike) -> tuple[Pulled, StreamPosition]:
        """Return the next frame and where it is; a pair brings its own number."""
        number, image = frame if isinstance(frame, tuple) and len(frame) == 2 else (self.pulled, frame)
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise BadRequestError(f"a frame's number is a whole number from 0 on, got {number!r}")
        self.pulled += 1
        position = StreamPosition(self.stream, number, self.last is None, self.pulled == self.length)
        return Pulled.of(number, image, "frame"), position

    def ending(self) -> Iterator[tuple[StreamPosition, Tensor]]:
        """Yield the last frame again, as the end of a stream whose end was not foreseen.

        The server can then forget the stream at once; a model without state ignores it.
        """
        if self.last is not None and not self.last[0].ends:
            position, image = self.last
            yield replace(position, starts=False, ends=True), image


def segment_frame(
    session: Session, course: Course, position: StreamPosition, options: SegmentOptions, image: Tensor
) -> Flow[Result]:
    """Ask for one frame's segmentation.

    A model that keeps no streams takes each frame as an image by itself. A server that has forgotten the stream,
    because it was restarted or had no place left, refuses the frame where Triton's sequence batcher admits frames;
    the frame then begins the stream anew.
    """
    if course.keeps_none:
        return (yield from session.segment(image, options))
    try:
        result = yield from session.segment(image, replace(options, position=position))
    except BadRequestError as error:
        if NO_STREAMS in error.message:
            course.keeps_none = True
            return (yield from session.segment(image, options))
        if position.starts or position.ends or NOT_STARTED not in error.message:
            raise
        position = replace(position, starts=True)
        result = yield from session.segment(image, replace(options, position=position))
    course.last = (position, image)
    return result


def course(stream_id: StreamId | None, frames: object) -> Course:
    """Return the course of a stream with that id, or with one of its own; raises `BadRequestError`."""
    measure: Callable[[], int] | None = getattr(frames, "__len__", None)
    return Course(_checked(stream_id), measure() if measure else None)


def _checked(stream_id: StreamId | None) -> StreamId:
    if stream_id is None:
        return f"segserve-{uuid4()}"
    is_text = isinstance(stream_id, str) and 0 < len(stream_id.encode()) <= 128
    is_number = isinstance(stream_id, int) and not isinstance(stream_id, bool) and 0 < stream_id < 2**63
    if is_text or is_number:
        return stream_id
    raise BadRequestError(f"a stream's id is a text of 1 to 128 bytes or a whole number above 0, got {stream_id!r}")
