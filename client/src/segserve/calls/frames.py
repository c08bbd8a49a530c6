"""Streams of frames: their numbers, and the flags that tell the server where a stream begins and ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeAlias
from uuid import uuid4

from segserve.calls.many import PendingImage
from segserve.calls.session import Session
from segserve.calls.steps import Flow, SegmentOptions, StreamId, StreamPosition
from segserve.results.images import ImageLike
from segserve.results.result import Result
from segserve_common.errors import BadRequestError
from segserve_common.kserve import Tensor

# The error of a model without temporalSmoothing for a frame's number, and Triton's for an unknown stream.
NO_STREAMS: Final = "parameter 'frame' is not allowed"
NOT_STARTED: Final = "START flag"
FrameLike: TypeAlias = "ImageLike | tuple[int, ImageLike]"


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
            raise BadRequestError(f"a frame's number must be a whole number from 0 on, got {number!r}")
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
