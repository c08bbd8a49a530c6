"""Streams of frames on one server: their histories between requests, bounded in number and idle time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Self

from segserve_builder.errors import BadImageError, PipelineError
from segserve_builder.stages.temporal_smoothing import MAX_IDLE_S, History, TemporalSmoothing
from segserve_builder.steps.pipeline import Pipeline, named_postprocess

FRAME: Final = "frame"
"""The request parameter that carries a frame's number."""
STARTS: Final = 1
ENDS: Final = 2
"""Triton's flags of a request that is the first or the last of its sequence."""


@dataclass(slots=True)
class Frame:
    """One frame of a stream: its number where it has one, and the stream's history, which smoothing replaces."""

    number: int | None
    history: History | None


class Streams:
    """The histories of at most `most` streams by their sequence ids. `now` returns seconds that never go back."""

    def __init__(self, most: int, max_idle_s: float, now: Callable[[], float]) -> None:
        self._most, self._max_idle_s, self._now = most, max_idle_s, now
        self._kept: OrderedDict[int | str, tuple[float, History]] = OrderedDict()

    @classmethod
    def of(cls, smoothing: TemporalSmoothing, now: Callable[[], float]) -> Self:
        """Return no streams yet, bounded as the stage says."""
        return cls(smoothing.max_streams, MAX_IDLE_S, now)

    def __len__(self) -> int:
        return len(self._kept)

    def frame(self, stream: int | str, flags: int, number: int | None) -> Frame | None:
        """Return the next frame of a stream, or None for a request without a stream (0, or no text)."""
        if not stream:
            return None
        self._forget_idle()
        if flags & STARTS:
            self._kept.pop(stream, None)
        _, history = self._kept.get(stream, (0.0, None))
        return Frame(number, history)

    def keep(self, stream: int | str, flags: int, frame: Frame) -> None:
        """Keep what an answered frame leaves, unless it was its stream's last."""
        # Taken out in any case: streams are in the order of their last frames.
        self._kept.pop(stream, None)
        if flags & ENDS or frame.history is None:
            return
        self._kept[stream] = (self._now(), frame.history)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def _forget_idle(self) -> None:
        oldest = self._now() - self._max_idle_s
        while self._kept and next(iter(self._kept.values()))[0] < oldest:
            self._kept.popitem(last=False)


def smoothing_of(pipeline: Pipeline) -> TemporalSmoothing | None:
    """Return the pipeline's stage that keeps streams; raises `PipelineError` if there are several."""
    smoothing = [stage for _, stage in named_postprocess(pipeline) if isinstance(stage, TemporalSmoothing)]
    if len(smoothing) > 1:
        raise PipelineError(f"temporalSmoothing is listed {len(smoothing)} times; once is allowed")
    return smoothing[0] if smoothing else None


def frame_number(value: Any) -> int:
    """Read the parameter `frame`; raises `BadImageError` if it is not a whole number from 0 on."""
    text = str(value)
    if isinstance(value, bool) or not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadImageError(f"parameter 'frame' is {value!r}; allowed: a non-negative integer")
    return int(text)
