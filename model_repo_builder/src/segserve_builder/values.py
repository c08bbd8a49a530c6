"""The values that stages exchange: encoded images, pixels, raw heads, label maps, candidates, instances, segments."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, Self, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# As text, so that the API and the command line do not load numpy.
Float32: TypeAlias = "NDArray[np.float32]"
Int32: TypeAlias = "NDArray[np.int32]"
Int64: TypeAlias = "NDArray[np.int64]"
UInt8: TypeAlias = "NDArray[np.uint8]"


class ValueType(StrEnum):
    """The types of value that stages take and return; pipelines are checked by them before they are built."""

    ENCODED = "encoded"
    IMAGE = "image"
    LOGITS = "logits"
    LABELS = "labels"
    CLASS_MASKS = "classMasks"
    ANCHORS = "anchors"
    BOXES = "boxes"
    PROTOTYPES = "prototypes"
    MASK_HEADS = "maskHeads"
    HEATMAPS = "heatmaps"
    POINTS = "points"
    ROTATED = "rotated"
    QUERIES = "queries"
    INSTANCES = "instances"
    KEYPOINTS = "keypoints"
    PANOPTIC = "panoptic"


CANDIDATES: Final = frozenset(
    {ValueType.BOXES, ValueType.PROTOTYPES, ValueType.MASK_HEADS, ValueType.HEATMAPS, ValueType.POINTS}
    | {ValueType.ROTATED}
)
"""The types of `Candidates`: stages that choose among boxes take all of them."""


@dataclass(frozen=True, slots=True)
class ResizeTransform:
    """The mapping between an image and the network's input, all in pixels.

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
    def of(cls, height: int, width: int) -> ResizeTransform:
        """Return the transform of an image that was not resized."""
        return cls(height, width, 0, 0, height, width, height, width)

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the image per pixel of the input, along x and along y."""
        return self.width / self.inner_width, self.height / self.inner_height

    def to_image_coordinates(self, boxes: Float32) -> Float32:
        """Convert boxes in pixels of the network's input to pixels of the original image, not clipped.

        Both are float32 (N, 4) as x1 y1 x2 y2.
        """
        import numpy as np

        corner = np.array([self.left, self.top] * 2, np.float32)
        moved: Float32 = (boxes - corner) * np.array(self.scale * 2, np.float32)
        return moved

    def to_numbers(self) -> tuple[int, ...]:
        """Return the eight numbers that pass from preprocess to postprocess (tensor GEOMETRY, INT32 [8])."""
        return astuple(self)

    @classmethod
    def from_numbers(cls, numbers: Any) -> ResizeTransform:
        """Return the transform of the first eight numbers in the tensor GEOMETRY."""
        return cls(*numbers[:8].tolist())


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image file's bytes, with the colour and dtype to decode them to."""

    data: bytes
    colour: Literal["RGB", "GREY"]
    dtype: Literal["UINT8", "UINT16"]
    max_pixels: int


@dataclass(frozen=True, slots=True)
class Image:
    """Pixels shaped (H, W, C): uint8 or uint16 as decoded, float32 once normalised."""

    pixels: NDArray[Any]
    transform: ResizeTransform


class ImageStatistics(NamedTuple):
    """Statistics of an image as decoded, from a grid of its pixels.

    `brightness` is the mean, from 0 (black) to 1; `contrast` the standard deviation and `detail` the median of the
    absolute Laplacian divided by four, both as shares of the mean; `vertical_gradients` the vertical ones' share in the
    energy of all gradients; `top_brightness` the upper half's share in the sum of both halves' means.
    """

    brightness: float
    contrast: float
    detail: float
    vertical_gradients: float
    top_brightness: float


@dataclass(frozen=True, slots=True)
class Logits:
    """Class scores before softmax or sigmoid, shaped (C, h, w); (h, w) covers the network's whole input.

    They are shaped (C, 0, 0) beside the labels of a network that gives no scores.

    Probabilities are computed from `values / temperature`. `things` are the ids of the classes whose objects are
    counted. `guide` is the image at the network's resolution, uint8 (inner_height, inner_width, 3) without padding, if
    a stage needs it. With `align_corners` the first and the last of the (h, w) cells are points at the
    centres of the input's first and last pixel, else all are areas side by side.
    """

    values: Float32
    transform: ResizeTransform
    temperature: float = 1.0
    things: frozenset[int] = frozenset()
    guide: UInt8 | None = None
    align_corners: bool = False


@dataclass(frozen=True, slots=True)
class LabelMap:
    """Class ids per pixel of the original image, uint8 or uint16 shaped (H, W), with the logits they came from.

    `instances` are what a second network found in the same image.
    """

    labels: NDArray[Any]
    logits: Logits
    instances: Instances | None = None


@dataclass(frozen=True, slots=True)
class ClassMasks:
    """One mask per class, which may overlap, as COCO compressed RLE counts of the original image's size.

    `areas` is int64 (C,) in pixels, `confidence` float32 (C,) the mean probability over each mask, 0 if it is empty.
    """

    masks: tuple[bytes, ...]
    areas: NDArray[Any]
    confidence: Float32
    height: int
    width: int


class Heads(Protocol):
    """The data that candidates' masks or keypoints are computed from, one row per candidate."""

    def take(self, which: Any) -> Self:
        """Return the rows that an array of indices or of booleans picks."""


@dataclass(frozen=True, slots=True)
class NoHeads:
    """The heads of candidates that are boxes only."""

    def take(self, which: Any) -> NoHeads:
        """Return itself."""
        return self


@dataclass(frozen=True, slots=True)
class PrototypeHeads:
    """Masks as coefficients float32 (N, K) of prototypes float32 (K, h, w), which cover the network's whole input."""

    coefficients: Float32
    prototypes: Float32

    def take(self, which: Any) -> PrototypeHeads:
        """Return the heads of some candidates; the prototypes are shared."""
        return replace(self, coefficients=self.coefficients[which])


@dataclass(frozen=True, slots=True)
class MaskHeads:
    """Masks as probabilities float32 (N, M, M), each over its candidate's box."""

    masks: Float32

    def take(self, which: Any) -> MaskHeads:
        """Return the heads of some candidates."""
        return MaskHeads(self.masks[which])


@dataclass(frozen=True, slots=True)
class HeatmapHeads:
    """Keypoints as heat maps (logits) float32 (N, K, M, M), each over its candidate's box."""

    heatmaps: Float32

    def take(self, which: Any) -> HeatmapHeads:
        """Return the heads of some candidates."""
        return HeatmapHeads(self.heatmaps[which])


@dataclass(frozen=True, slots=True)
class PointHeads:
    """Keypoints as float32 (N, K, 3): x and y in pixels of the network's input, and their visibility."""

    points: Float32

    def take(self, which: Any) -> PointHeads:
        """Return the heads of some candidates."""
        return PointHeads(self.points[which])


@dataclass(frozen=True, slots=True)
class RotatedHeads:
    """Rotated boxes float32 (N, 5): cx cy w h in pixels of the network's input, and an angle in radians from x to y."""

    rectangles: Float32

    def take(self, which: Any) -> RotatedHeads:
        """Return the heads of some candidates."""
        return RotatedHeads(self.rectangles[which])

    def corners(self, transform: ResizeTransform) -> Float32:
        """Return the corners of each box in order, x and y in pixels of the original image, float32 (N, 4, 2)."""
        import numpy as np

        centres, sizes, angles = self.rectangles[:, None, :2], self.rectangles[:, None, 2:4], self.rectangles[:, 4:]
        cosine, sine = np.cos(angles), np.sin(angles)
        x, y = np.moveaxis(sizes * (np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]], np.float32) / 2), 2, 0)
        points = centres + np.stack([x * cosine - y * sine, x * sine + y * cosine], axis=2)
        moved: Float32 = (points - np.array([transform.left, transform.top], np.float32)) * np.array(
            transform.scale, np.float32
        )
        return moved


@dataclass(frozen=True, slots=True)
class Candidates:
    """Detections, with the heads that their masks or keypoints are computed from.

    `boxes` float32 (N, 4) as x1 y1 x2 y2 in pixels of the original image, `scores` float32 (N,), `classes` int32
    (N,). Their type is BOXES with `NoHeads`, with the other heads PROTOTYPES, MASK_HEADS, HEATMAPS, POINTS or
    ROTATED, whose boxes enclose the rotated ones.
    """

    boxes: Float32
    scores: Float32
    classes: Int32
    heads: Heads
    transform: ResizeTransform

    def take(self, which: Any) -> Candidates:
        """Return the candidates that an array of indices or of booleans picks."""
        return replace(
            self,
            boxes=self.boxes[which],
            scores=self.scores[which],
            classes=self.classes[which],
            heads=self.heads.take(which),
        )


@dataclass(frozen=True, slots=True)
class Anchors:
    """A dense detector's raw heads before decoding.

    `logits` float32 (A, C), `deltas` float32 (A, 4) as dx dy dw dh, `anchors` float32 (A, 4) as x1 y1 x2 y2 in pixels
    of the network's input; `levels` are the numbers of anchors of each feature level, in order, which add up to A.
    `channels` are the channels of the logits that are classes, by class id; None if all are.
    """

    logits: Float32
    deltas: Float32
    anchors: Float32
    levels: tuple[int, ...]
    transform: ResizeTransform
    channels: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class Queries:
    """The outputs of a transformer decoder's queries.

    `logits` float32 (Q, C + 1), the last class is "nothing"; with `sigmoid` (Q, C), each class by itself. `masks`
    float32 (Q, h, w) are logits over the network's whole input; `boxes` float32 (Q, 4) as cx cy w h in parts of the
    network's input, or with `within_image` of the image in it. `things` are the ids of the classes whose objects are
    counted.
    """

    logits: Float32
    masks: Float32 | None
    boxes: Float32 | None
    things: frozenset[int]
    transform: ResizeTransform
    sigmoid: bool = False
    within_image: bool = False


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


@dataclass(frozen=True, slots=True)
class KeypointDetections:
    """Detections with points float32 (N, K, 3) as x y score, in pixels of the original image."""

    boxes: Float32
    scores: Float32
    classes: Int32
    points: Float32
    height: int
    width: int

    def take(self, which: Any) -> KeypointDetections:
        """Return the detections that an array of indices or of booleans picks."""
        return replace(
            self,
            boxes=self.boxes[which],
            scores=self.scores[which],
            classes=self.classes[which],
            points=self.points[which],
        )


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of a panoptic map: its id (from 1), its class, and its score (a probability)."""

    id: int
    class_id: int
    is_thing: bool
    score: float


@dataclass(frozen=True, slots=True)
class Panoptic:
    """Segment ids per pixel of the original image, uint16 (H, W), 0 for no segment, with the table of segments."""

    ids: NDArray[Any]
    segments: tuple[Segment, ...]


Value: TypeAlias = (
    Encoded
    | Image
    | Logits
    | LabelMap
    | ClassMasks
    | Anchors
    | Candidates
    | Queries
    | Instances
    | KeypointDetections
    | Panoptic
)
