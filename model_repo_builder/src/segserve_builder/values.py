"""What stages pass to each other: encoded images, pixels, logits, label maps, candidates and instances."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Float32: TypeAlias = NDArray[np.float32]
    Int32: TypeAlias = NDArray[np.int32]


class Kind(StrEnum):
    """The kinds of value a stage takes or gives; a pipeline is checked by them before it is built."""

    ENCODED = "encoded"
    IMAGE = "image"
    LOGITS = "logits"
    LABELS = "labels"
    CANDIDATES = "candidates"
    INSTANCES = "instances"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an image lies within the network's input. All in pixels.

    `height` x `width` is the image as decoded (after EXIF orientation); it was resized to `inner_height` x
    `inner_width` and put at row `top`, column `left` of an input of `input_height` x `input_width`.
    """

    height: int
    width: int
    top: int
    left: int
    inner_height: int
    inner_width: int
    input_height: int
    input_width: int

    @classmethod
    def of(cls, height: int, width: int) -> Placement:
        """Return the placement of an image that was not resized."""
        return cls(height, width, 0, 0, height, width, height, width)

    def to_numbers(self) -> tuple[int, ...]:
        """Return the eight numbers that cross from preprocess to postprocess (tensor GEOMETRY, INT32 [8])."""
        return astuple(self)

    @classmethod
    def from_numbers(cls, numbers: Any) -> Placement:
        """Read the placement from the eight numbers of the tensor GEOMETRY."""
        return cls(*(int(number) for number in numbers))


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image file's bytes, with what the model wants them decoded to."""

    data: bytes
    colour: Literal["RGB", "GREY"]
    dtype: Literal["UINT8", "UINT16"]
    max_pixels: int


@dataclass(frozen=True, slots=True)
class Image:
    """Pixels shaped (H, W, C): uint8 or uint16 as decoded, float32 once normalised."""

    pixels: NDArray[Any]
    placement: Placement


@dataclass(frozen=True, slots=True)
class Logits:
    """Class scores before softmax or sigmoid, shaped (C, h, w); (h, w) covers the network's whole input."""

    values: Float32
    placement: Placement


@dataclass(frozen=True, slots=True)
class LabelMap:
    """Class ids per pixel of the original image, uint8 or uint16 shaped (H, W), with the logits they came from."""

    labels: NDArray[Any]
    logits: Logits


@dataclass(frozen=True, slots=True)
class Candidates:
    """Detections whose masks are still coefficients of shared prototypes.

    `boxes` float32 (N, 4) as x1 y1 x2 y2 in pixels of the original image, `scores` float32 (N,), `classes` int32
    (N,), `coefficients` float32 (N, K), `prototypes` float32 (K, h, w), which covers the network's whole input.
    """

    boxes: Float32
    scores: Float32
    classes: Int32
    coefficients: Float32
    prototypes: Float32
    placement: Placement

    def take(self, which: Any) -> Candidates:
        """Return the candidates that an array of indices or of booleans picks."""
        return replace(
            self,
            boxes=self.boxes[which],
            scores=self.scores[which],
            classes=self.classes[which],
            coefficients=self.coefficients[which],
        )


@dataclass(frozen=True, slots=True)
class Instances:
    """Detections with masks as COCO compressed RLE counts for the original image's size."""

    boxes: Float32
    scores: Float32
    classes: Int32
    masks: tuple[bytes, ...]
    height: int
    width: int

    def take(self, which: list[int]) -> Instances:
        """Return the instances of these indices, in their order."""
        masks = tuple(self.masks[index] for index in which)
        return replace(
            self, boxes=self.boxes[which], scores=self.scores[which], classes=self.classes[which], masks=masks
        )


Value: TypeAlias = Encoded | Image | Logits | LabelMap | Candidates | Instances
