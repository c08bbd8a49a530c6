"""The stage that steadies what is found in a video."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from pydantic import Field

from segserve_builder.errors import PipelineError
from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import LabelMap, Logits, ResizeTransform, ValueType

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class History:
    """The state of a stream.

    `frames` are the rising numbers of the frames in `arrays`: label maps (H, W), the oldest first, or the moving
    average of logits, float32 (C, h, w), up to its frame. All are of images with the same `transform`.
    """

    transform: ResizeTransform
    frames: tuple[int, ...]
    arrays: tuple[NDArray[Any], ...]


MAX_IDLE_S: Final = 60
"""Seconds without a frame after which a stream is dropped."""


class TemporalSmoothing(Stage):
    """Smooth the answers over the frames of a stream, which requests name by their sequence id.

    Before argmax (method exponential) logits become a moving average; after it (method votes) each pixel gets its most
    frequent class in the last frames. A request without a sequence id is a single frame. Frames may carry their number
    as the parameter `frame`: lost frames then reduce the weight of earlier ones, and late ones change nothing.
    """

    version: ClassVar[int] = 2
    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.LOGITS, ValueType.LABELS})

    method: Literal["exponential", "votes"] = Field(
        "exponential",
        description="exponential: a moving average of logits, before argmax. votes: each pixel's most frequent class "
        "in the last frames, after argmax; among equally frequent ones that of the newest frame.",
    )
    alpha: float = Field(0.5, gt=0, le=1, description="exponential: weight of the newest frame in the average.")
    frames: int = Field(5, ge=1, le=15, description="votes: number of frames that vote, the newest included.")
    scene_cut: float = Field(
        0.25, gt=0, le=1, description="Part of all pixels whose class must change for a frame to start a new history."
    )
    max_streams: int = Field(
        16, ge=1, le=1024, description="Largest number of streams kept; a new one replaces the one idle longest."
    )
    sequence_batcher: bool = Field(
        False,
        description="Whether Triton's sequence batcher admits frames: streams must then be started and ended, those "
        "beyond maxStreams wait for another to end, and requests without a sequence id are refused.",
    )

    def check_place(self, kind: ValueType) -> None:
        """Raise `PipelineError` if the value before the stage is not of the type that its method smooths."""
        needed = ValueType.LOGITS if self.method == "exponential" else ValueType.LABELS
        if kind != needed:
            raise PipelineError(f"temporalSmoothing by {self.method} takes {needed}, got {kind}")

    def __call__(self, value: Logits | LabelMap, request: RequestOptions) -> Logits | LabelMap:
        """Return the value unchanged: a request without a stream is a single frame."""
        return value

    def step(
        self, value: Logits | LabelMap, history: History | None, frame: int | None = None
    ) -> tuple[Logits | LabelMap, History | None]:
        """Return the steadied value and what is kept for the next frame; both arguments are left untouched.

        `frame` is the frame's number, None for the one after the last. The last one, repeated, gets its answer again,
        and an older one its own value; neither changes what is kept. Where the image's size changes, or the class of
        more than `scene_cut` of all pixels, the history begins anew.
        """
        array, transform = value.labels if isinstance(value, LabelMap) else value.values, _placement(value)
        number = frame if frame is not None else 0 if history is None else history.frames[-1] + 1
        fits = history is not None and history.transform == transform and history.arrays[-1].shape == array.shape
        if history is None or not fits:
            return value, History(transform, (number,), (_owned(array),))
        last = history.frames[-1]
        if number < last:
            return value, history
        if number == last:
            return _with_array(value, _answer(history.arrays)), history
        before = history.arrays[-1]
        import numpy as np

        if float(np.mean(_classes(array) != _classes(before))) > self.scene_cut:
            return value, History(transform, (number,), (_owned(array),))
        kept = self._kept(array, number, history)
        return _with_array(value, _answer(kept.arrays)), kept

    def _kept(self, array: NDArray[Any], number: int, history: History) -> History:
        if self.method == "exponential":
            # Frames that were lost would have taken their part of the average.
            before = (1 - self.alpha) ** (number - history.frames[-1])
            mean = history.arrays[0] + (array - history.arrays[0]) * array.dtype.type(1 - before)
            return History(history.transform, (number,), (mean,))
        voters = [
            (frame, labels)
            for frame, labels in zip(history.frames, history.arrays, strict=True)
            if frame > number - self.frames
        ]
        frames, arrays = zip(*voters, (number, _owned(array)), strict=True)
        return History(history.transform, frames, arrays)


def _placement(value: Logits | LabelMap) -> ResizeTransform:
    return value.logits.transform if isinstance(value, LabelMap) else value.transform


def _with_array(value: Logits | LabelMap, array: NDArray[Any]) -> Logits | LabelMap:
    return replace(value, labels=array) if isinstance(value, LabelMap) else replace(value, values=array)


def _answer(arrays: tuple[NDArray[Any], ...]) -> NDArray[Any]:
    """Return the average itself, or the vote of label maps."""
    return arrays[0] if len(arrays) == 1 else _vote(arrays)


def _owned(array: NDArray[Any]) -> NDArray[Any]:
    """Return a copy: what a request brings is gone with it."""
    return array.copy()


def _classes(array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim == 2:
        return array
    from segserve_builder.kernels.labels import label_map
    from segserve_builder.sampling import Axis

    height, width = array.shape[1:]
    return label_map(array, Axis(height, 0, height, 1.0, -0.5), Axis(width, 0, width, 1.0, -0.5))


def _vote(arrays: tuple[NDArray[Any], ...]) -> NDArray[Any]:
    """Return each pixel's most frequent label; of equally frequent ones the newest frame's among them."""
    import numpy as np

    votes = [np.ones(arrays[0].shape, np.uint8) for _ in arrays]
    for newer in range(len(arrays)):
        for older in range(newer):
            same = arrays[newer] == arrays[older]
            votes[newer] += same
            votes[older] += same
    best, most = arrays[-1].copy(), votes[-1].copy()
    for labels, count in zip(arrays[-2::-1], votes[-2::-1], strict=True):
        more = count > most
        best[more] = labels[more]
        np.maximum(most, count, out=most)
    return best
