"""The YOLO families: detection and segmentation heads of YOLOv5 to v12 and v26, and Ultralytics' RT-DETR.

Layouts are read from the tensors that the projects' exporters document; none of their code is used.
"""

from __future__ import annotations

import ast
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from segserve_builder.errors import SignatureError
from segserve_builder.families.base import (
    ULTRALYTICS,
    EvidenceWeight,
    Family,
    FamilyEvidence,
    InspectedNetwork,
    LibraryPreprocessing,
    ModelContext,
    NetworkIO,
    NetworkSignature,
    StageNote,
    TensorSpec,
    check_grid,
    check_probabilities,
    described,
    described_all,
    float_output,
)
from segserve_builder.families.network_inputs import image_input
from segserve_builder.stages.crop_masks import CropMasks
from segserve_builder.stages.fill_boxes import FillBoxes
from segserve_builder.stages.keypoints import Keypoints
from segserve_builder.stages.nms import Nms
from segserve_builder.stages.score_threshold import ScoreThreshold
from segserve_builder.values import (
    Candidates,
    Float32,
    Heads,
    NoHeads,
    PointHeads,
    PrototypeHeads,
    ResizeTransform,
    RotatedHeads,
    ValueType,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROTOTYPES: Final = "[batch, coefficients, height, width]"
STRIDES: Final = (8, 16, 32)
"""Sides of the cells of YOLOX's grids, in pixels of the network's input."""
GRID_STRIDES: Final = (4, 8, 16, 32, 64, 128)
ANCHORS: Final = (1, 3)
"""Boxes of a cell: of heads without anchors, and of YOLOv5's."""
LARGEST_LOGARITHM: Final = 16
"""A side of e to this, in cells, is larger than any image."""
MOST_CHOSEN: Final = 300
"""Heads that choose among their boxes return at most this many; others return thousands."""


@dataclass(frozen=True, kw_only=True)
class YoloFamily(Family):
    """A head with one detection per row or column, and optionally prototypes [batch, K, h, w] of its masks.

    The output of detections has three dimensions. The values of a detection lie along `axis`: `leading_values`, then a
    score for each class if `scored`, then K mask coefficients if `masks`, x y visibility of each keypoint if `points`,
    or the angle of a box, then cx cy w h, if `rotated`; coefficients times prototypes are the mask's logits. The two
    outputs are distinguished by their number of dimensions. Boxes and keypoints are in pixels of the network's input.
    """

    output_names: tuple[str, ...] = ("output0",)
    axis: ClassVar[Literal[1, 2]]
    leading_values: ClassVar[int]
    scored: ClassVar[bool]
    masks: bool = False
    points: bool = False
    rotated: bool = False
    preprocessing: LibraryPreprocessing | None = ULTRALYTICS

    def tensors(self, signature: NetworkSignature, model: ModelContext) -> NetworkIO:
        """Return the image input, the detections and, for masks, the prototypes.

        Raises `SignatureError` if the network has others.
        """
        image, layout = image_input(signature, model)
        meaning = self._shape("batch", "classes", "coefficients", "candidates")
        outputs = sorted(signature.outputs, key=lambda tensor: len(tensor.shape))
        if [len(tensor.shape) for tensor in outputs] != self._ranks:
            allowed = f"two outputs, FP32 {meaning} and {PROTOTYPES}" if self.masks else f"one output, FP32 {meaning}"
            raise SignatureError(f"{self.name} has {allowed}; the network has {described_all(signature.outputs)}")
        detections = float_output(outputs[0], 3, meaning)
        prototypes = [float_output(tensor, 4, PROTOTYPES) for tensor in outputs[1:]]
        self._check_values(detections, prototypes, len(model.classes))
        io = NetworkIO(image, layout, (detections, *prototypes))
        if (why := self._no_grid(detections.shape, io.image_size)) is not None:
            raise SignatureError(f"output {described(detections)}: {why}")
        return io

    def read(self, outputs: Mapping[str, NDArray[Any]], transform: ResizeTransform, model: ModelContext) -> Candidates:
        """Return all of one image's candidates, with boxes in pixels of the original image.

        Raises `SignatureError` if the outputs have other shapes, or a detection has the number of no class. `outputs`
        are float32 detections [1, values, N] or [1, N, values], and prototypes [1, K, h, w].
        """
        number = len(model.classes)
        head, heads = self._split(outputs, number, transform)
        candidates = self._candidates(head, heads, transform, number)
        if not isinstance(candidates.heads, RotatedHeads):
            return candidates
        import numpy as np

        corners = candidates.heads.corners(transform)
        return replace(candidates, boxes=np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1))

    def implied_classes(self, network: InspectedNetwork) -> int | None:
        """Return the number of values that are neither leading values nor coefficients."""
        detections, prototypes = _by_rank(network, 3), _by_rank(network, 4)
        if not self.scored or len(detections) != 1 or len(prototypes) != int(self.masks):
            return None
        values = network.shape(detections[0])[self.axis]
        coefficients = network.shape(prototypes[0])[1] if prototypes else self._last_values(network)
        if values is None or coefficients is None:
            return None
        number = values - self.leading_values - coefficients
        return number if number >= 1 else None

    def implausibility(self, network: InspectedNetwork) -> str | None:
        """Return that there are fewer candidates than values of each, or too many or too few values."""
        head = _by_rank(network, 3)[0]
        shape = network.shape(head)
        values, candidates = shape[self.axis], shape[3 - self.axis]
        if values is None:
            return None
        observed = f"output {head.name!r} has {values}"
        if self.rotated and network.metadata.get("task") not in self.tasks:
            return f"{self.name} needs the metadata 'task' {self.tasks[0]!r} that Ultralytics writes"
        if self.points and not self._last_values(network):
            return f"{self.name} needs the metadata 'kpt_shape' [keypoints, 3] that Ultralytics writes"
        if not self.scored:
            prototypes = _by_rank(network, 4)
            coefficients = network.shape(prototypes[0])[1] or 0 if prototypes else self._last_values(network)
            expected = self.leading_values + coefficients
            return None if values == expected else f"{self.name} has {expected} values per candidate, {observed}"
        if candidates is not None and values > candidates:
            return (
                f"{self.name} has more candidates than values of each; output {head.name!r} has {candidates} "
                f"candidates and {values} values"
            )
        if self.implied_classes(network) is None:
            return f"{self.name} has at least {self.leading_values + 1} values per candidate, {observed}"
        return self._no_grid(shape, network.image_size)

    def _no_grid(self, shape: tuple[int | None, ...], size: tuple[int, int] | None) -> str | None:
        """Return why candidates are not the cells of grids over an image (height, width), None if they may be."""
        _, rows, columns = shape
        candidates = shape[3 - self.axis]
        if not self.scored or size is None or candidates is None:
            return None
        height, width = size
        if rows is not None and columns is not None and rows * width == columns * height:
            return f"a map without an axis of classes; export it as [batch, 1, {rows}, {columns}]"
        if candidates in _grids(height, width):
            return None
        return (
            f"{self.name} has a candidate for each cell of grids of 8, 16 and 32 pixels or the like, or three; "
            f"{candidates} are not those of an input of {height} x {width}"
        )

    def evidence(self, network: InspectedNetwork) -> Iterator[FamilyEvidence]:
        """Yield what Ultralytics' metadata says of the head."""
        task, metadata = network.metadata.get("task"), network.metadata
        if task not in self.tasks:
            return
        arguments = literal(metadata.get("args", ""))
        nms = isinstance(arguments, dict) and arguments.get("nms") is True
        chosen = metadata.get("end2end") == "True" or nms
        head: type[YoloFamily] = ChosenHead if chosen else ScoredHead
        if "v5" in metadata.get("description", "").lower():
            head = ObjectnessHead
        elif _is_rt_detr(network):
            head = RelativeHead
        if type(self) is head:
            inside = ", with NMS inside" if chosen else ""
            yield FamilyEvidence(EvidenceWeight.METADATA, f"its Ultralytics metadata says task {task!r}{inside}")

    @abstractmethod
    def _candidates(self, head: Float32, heads: Heads, transform: ResizeTransform, classes: int) -> Candidates:
        """Return the candidates of one image's detections, shaped as the output without its batch."""

    @property
    def _ranks(self) -> list[int]:
        return [3, 4] if self.masks else [3]

    def _last_values(self, network: InspectedNetwork) -> int:
        """Return the number of values of an angle or, by Ultralytics' metadata, of all keypoints; 0 without either."""
        if self.rotated:
            return 1
        numbers = literal(network.metadata.get("kpt_shape", "")) if self.points else None
        return 3 * numbers[0] if isinstance(numbers, list) and numbers[1:] == [3] else 0

    def _values(self, classes: int) -> int:
        """Return the number of values before the coefficients."""
        return self.leading_values + (classes if self.scored else 0)

    def _shape(self, batch: str, classes: str, coefficients: str, candidates: str) -> str:
        values = str(self.leading_values)
        if self.scored:
            values += f" + {classes}"
        if self.masks:
            values += f" + {coefficients}"
        if self.points:
            values += " + 3 for each keypoint"
        if self.rotated:
            values += " + 1 for the angle"
        return f"[{batch}, {values}, {candidates}]" if self.axis == 1 else f"[{batch}, {candidates}, {values}]"

    def _check_values(self, detections: TensorSpec, prototypes: list[TensorSpec], classes: int) -> None:
        size, before = detections.shape[self.axis], self._values(classes)
        coefficients = prototypes[0].shape[1] if prototypes else None
        free = bool(prototypes) and coefficients is None
        least = before + (coefficients or 1 if prototypes else 3 if self.points else int(self.rotated))
        if size is None or size == least or (free and size > least):
            return
        if self.points and size > least and (size - least) % 3 == 0:
            return
        outputs = " and ".join(described(tensor) for tensor in (detections, *prototypes))
        parts = f"{self.leading_values} + {classes}" if self.scored else str(self.leading_values)
        raise SignatureError(
            f"{self.name} output {outputs}: for the model's {classes} classes the detections must have "
            f"{parts}{' + coefficients' if self.masks else ''}{' + 3 for each keypoint' if self.points else ''}"
            f"{' + 1 for the angle' if self.rotated else ''} "
            f"{'rows' if self.axis == 1 else 'columns'}, {'at least ' if free or self.points else ''}{least}"
        )

    def _split(
        self, outputs: Mapping[str, NDArray[Any]], classes: int, transform: ResizeTransform
    ) -> tuple[Float32, Heads]:
        """Return one image's detections without the batch, and the heads of their masks."""
        detections, *prototypes = outputs.values()
        shapes = [array.shape for array in (detections, *prototypes)]
        coefficients = shapes[1][1] if self.masks and len(shapes[1]) == 4 else int(self.rotated)
        if self.points and len(shapes[0]) == 3:  # any number of them
            coefficients = max(3, (shapes[0][self.axis] - self._values(classes)) // 3 * 3)
        expected = self._values(classes) + coefficients
        if [len(shape) for shape in shapes] != self._ranks or ((shapes[0][0], shapes[0][self.axis]) != (1, expected)):
            observed = " and ".join(str(list(shape)) for shape in shapes)
            allowed = self._shape("1", str(classes), "K", "N") + (" and [1, K, h, w]" if self.masks else "")
            raise SignatureError(
                f"the outputs have shapes {observed}; for one image and {classes} classes they are {allowed}"
            )
        head = detections[0]
        rows = head.T if self.axis == 1 else head
        if self.points:
            return head, PointHeads(rows[:, self._values(classes) :].reshape(len(rows), -1, 3))
        if self.rotated:
            return head, RotatedHeads(rows[:, [0, 1, 2, 3, -1]])
        if not self.masks:
            return head, NoHeads()
        check_grid("the prototypes", prototypes[0].shape[2:], transform)
        return head, PrototypeHeads(rows[:, self._values(classes) :], prototypes[0][0])


class ScoredHead(YoloFamily):
    """YOLOv8, v9, v11 and v12: cx cy w h and a score in 0..1 for each class, one detection per column."""

    axis = 1
    leading_values = 4
    scored = True

    def _candidates(self, head: Float32, heads: Heads, transform: ResizeTransform, classes: int) -> Candidates:
        import numpy as np

        scores = head[4 : 4 + classes]
        if classes == 1:
            labels, best = np.zeros(scores.shape[1], np.int32), scores[0]
        else:
            from segserve_builder.kernels.labels import best_class

            labels, best = best_class(scores)
        check_probabilities("the best scores of detections", best)
        return Candidates(_centred_boxes(head, transform), best, labels, heads, transform)


class ObjectnessHead(YoloFamily):
    """YOLOv5 and v7: cx cy w h, objectness and a score for each class, one detection per row.

    A detection's score is its best class's score times its objectness. With a single class it is the objectness alone,
    as in YOLOv7, which does not train the score of a single class.
    """

    axis = 2
    leading_values = 5
    scored = True

    def implausibility(self, network: InspectedNetwork) -> str | None:
        """Return that each cell has one row and no decoded box, as YOLOX's."""
        cells, rows = _cells_of(network), network.shape(_by_rank(network, 3)[0])[1]
        if not isinstance(self, GridHead) and cells is not None and rows == cells and "Exp" not in network.operators:
            return f"{self.name} has three rows for each cell; the network has {rows}, one for each, as YOLOX"
        return super().implausibility(network)

    def _candidates(self, head: Float32, heads: Heads, transform: ResizeTransform, classes: int) -> Candidates:
        from segserve_builder.kernels.rows import best_of_rows

        labels, scores = best_of_rows(head, 4, 5, 5 + classes)
        check_probabilities("objectness", head[:, 4])
        check_probabilities("the best scores of detections", scores)
        return Candidates(_centred_boxes(head.T, transform), scores, labels, heads, transform)


class GridHead(ObjectnessHead):
    """YOLOX as its exporter writes it by default: the values of `ObjectnessHead`, with boxes relative to grid cells.

    Rows are the cells of three grids, row by row: of 8, 16 and 32 pixels a side. A box's centre is counted in
    cells from its own, its size is the logarithm of a number of cells.
    """

    def implausibility(self, network: InspectedNetwork) -> str | None:
        """Return that the rows are not as many as the grids' cells, or that boxes are decoded in the graph."""
        rows, cells = network.shape(_by_rank(network, 3)[0])[1], _cells_of(network)
        if cells is None or rows != cells:
            expected = "rows for the cells of an input of fixed size" if cells is None else f"{cells} rows, one a cell"
            return f"{self.name} has {expected}; output {_by_rank(network, 3)[0].name!r} has {rows or 'any number'}"
        if "Exp" in network.operators:
            return f"{self.name} has boxes that are not decoded; this network's operator Exp decodes them"
        return super().implausibility(network)

    def evidence(self, network: InspectedNetwork) -> Iterator[FamilyEvidence]:
        """Yield that the rows are the grids' cells, as `implausibility` saw to."""
        del network
        yield FamilyEvidence(EvidenceWeight.OBSERVATION, "it has a row for each cell of 8, 16 and 32 pixels")

    def _candidates(self, head: Float32, heads: Heads, transform: ResizeTransform, classes: int) -> Candidates:
        import numpy as np

        p = transform
        if head[:, 2:4].max(initial=0) > LARGEST_LOGARITHM:
            raise SignatureError(f"{self.name} has boxes that are not decoded; these are: yolov5-detect reads them")
        grids = [(p.input_height // stride, p.input_width // stride, stride) for stride in STRIDES]
        cells = sum(height * width for height, width, _ in grids)
        if len(head) != cells:
            raise SignatureError(
                f"{self.name} has {cells} rows for an input of {p.input_height} x {p.input_width} pixels, one for each "
                f"cell of {', '.join(map(str, STRIDES))} pixels; the network returns {len(head)}"
            )
        centres = np.concatenate([np.argwhere(np.ones(grid[:2]))[:, ::-1] for grid in grids]).astype(np.float32)
        strides = np.concatenate([np.full((grid[0] * grid[1], 1), grid[2], np.float32) for grid in grids])
        decoded = head.copy()
        decoded[:, :2] = (head[:, :2] + centres) * strides
        decoded[:, 2:4] = np.exp(head[:, 2:4]) * strides
        return super()._candidates(decoded, heads, transform, classes)


class ChosenHead(YoloFamily):
    """YOLOv10 and v26, whose NMS is inside: x1 y1 x2 y2, a score and a class number, one detection per row.

    Rows with a score of 0 only fill the tensor and are dropped, whatever their class.
    """

    axis = 2
    leading_values = 6
    scored = False

    def implausibility(self, network: InspectedNetwork) -> str | None:
        """Return that the values are others, or that the metadata says what the four of a box are."""
        if _is_rt_detr(network) is not isinstance(self, RelativeHead):
            units = "relative as cx cy w h" if _is_rt_detr(network) else "in pixels as x1 y1 x2 y2"
            return f"{self.name} does not read boxes {units}, as this network's are if its metadata is right"
        return super().implausibility(network)

    def evidence(self, network: InspectedNetwork) -> Iterator[FamilyEvidence]:
        """Yield the metadata's evidence, and a small number of candidates."""
        yield from super().evidence(network)
        candidates = network.shape(_by_rank(network, 3)[0])[1]
        if (candidates or MOST_CHOSEN + 1) <= MOST_CHOSEN:
            text = f"it returns only {candidates} candidates, so it has chosen among them"
            yield FamilyEvidence(EvidenceWeight.OBSERVATION, text)

    def _candidates(self, head: Float32, heads: Heads, transform: ResizeTransform, classes: int) -> Candidates:
        import numpy as np

        check_probabilities("scores of detections", head[:, 4])
        rows = np.flatnonzero(head[:, 4] > 0)
        numbers = head[rows, 5]
        wrong = (numbers < 0) | (numbers >= classes) | (numbers != np.floor(numbers))
        if wrong.any():
            raise SignatureError(f"a detection is of class {numbers[wrong][0]:g}; the model's are 0 to {classes - 1}")
        boxes = transform.to_image_coordinates(head[rows, :4])
        return Candidates(boxes, head[rows, 4], numbers.astype(np.int32), heads.take(rows), transform)


class RelativeHead(ChosenHead):
    """Ultralytics' RT-DETR: cx cy w h in parts of the network's input, a score and a class number, one row each."""

    def _candidates(self, head: Float32, heads: Heads, transform: ResizeTransform, classes: int) -> Candidates:
        import numpy as np

        size = np.array([transform.input_width, transform.input_height], np.float32)
        centre, half = head[:, :2] * size, head[:, 2:4] * (size / 2)
        rows = np.concatenate([centre - half, centre + half, head[:, 4:]], axis=1)
        return super()._candidates(rows, heads, transform, classes)


def _is_rt_detr(network: InspectedNetwork) -> bool:
    """Return whether Ultralytics' metadata says so: older versions name only the model."""
    metadata = network.metadata
    return metadata.get("head") == "RTDETRDecoder" or "rtdetr" in metadata.get("description", "").lower()


def _by_rank(network: InspectedNetwork, rank: int) -> list[TensorSpec]:
    return [tensor for tensor in network.signature.outputs if len(tensor.shape) == rank]


def _cells_of(network: InspectedNetwork) -> int | None:
    """Return the number of cells of YOLOX's grids over the network's input, None if its size is unknown."""
    if network.image_size is None:
        return None
    height, width = network.image_size
    return sum((height // stride) * (width // stride) for stride in STRIDES)


def _grids(height: int, width: int) -> frozenset[int]:
    """Return the numbers of boxes that heads may have over an image: of two strides in a row or more, sides rounded."""
    numbers = set[int]()
    for up in (0, 1):
        cells = [(height + up * (s - 1)) // s * ((width + up * (s - 1)) // s) for s in GRID_STRIDES]
        ranges = [sum(cells[first:last]) for first in range(5) for last in range(first + 2, 7)]
        numbers.update(anchors * each for each in ranges for anchors in ANCHORS)
    return frozenset(numbers)


def literal(text: str) -> Any:
    """Parse a value as Python writes it, which is how Ultralytics keeps arguments and lists; None if it is not one."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _centred_boxes(head: Float32, transform: ResizeTransform) -> Float32:
    """Return x1 y1 x2 y2 in pixels of the original image, not clipped, float32 (N, 4), of cx cy w h (4, N)."""
    import numpy as np

    x_scale, y_scale = map(np.float32, transform.scale)
    x, y = (head[0] - np.float32(transform.left)) * x_scale, (head[1] - np.float32(transform.top)) * y_scale
    half_width, half_height = head[2] * (x_scale / 2), head[3] * (y_scale / 2)
    return np.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=1)


_V5_NMS: Final = Nms(iou_threshold=0.45, max_detections=1000)  # the defaults of YOLOv5's own detect.py

YOLO_SEG: Final = ScoredHead(
    name="yolo-seg",
    gives=ValueType.PROTOTYPES,
    default_postprocess=(ScoreThreshold(), Nms(), CropMasks()),
    output_names=("output0", "output1"),
    masks=True,
    tasks=("segment",),
)
YOLO_DETECT: Final = ScoredHead(
    name="yolo-detect",
    gives=ValueType.BOXES,
    default_postprocess=(ScoreThreshold(), Nms()),
    tasks=("detect",),
)
YOLOV5_SEG: Final = ObjectnessHead(
    name="yolov5-seg",
    gives=ValueType.PROTOTYPES,
    default_postprocess=(ScoreThreshold(), _V5_NMS, CropMasks()),
    output_names=("output0", "output1"),
    masks=True,
    tasks=("segment",),
)
YOLOV5_DETECT: Final = ObjectnessHead(
    name="yolov5-detect",
    gives=ValueType.BOXES,
    default_postprocess=(ScoreThreshold(), _V5_NMS),
    tasks=("detect",),
)
YOLOX_DETECT: Final = GridHead(
    name="yolox-detect",
    gives=ValueType.BOXES,
    default_postprocess=(ScoreThreshold(), Nms(iou_threshold=0.45)),
    output_names=("output",),
    preprocessing=LibraryPreprocessing(
        networks="YOLOX networks",
        resize={"mode": "shortSide", "padValue": 114},
        normalise={"scale": 1.0},
        pixels=StageNote(
            "YOLOX networks take BGR pixels of 0 to 255; those before 0.2 took RGB, normalised as for ImageNet"
        ),
        colour="BGR",
    ),
)
YOLO_POSE: Final = ScoredHead(
    name="yolo-pose",
    gives=ValueType.POINTS,
    default_postprocess=(ScoreThreshold(), Nms(), Keypoints()),
    points=True,
    tasks=("pose",),
)
YOLO_OBB: Final = ScoredHead(
    name="yolo-obb",
    gives=ValueType.ROTATED,
    default_postprocess=(ScoreThreshold(), Nms(), FillBoxes()),
    rotated=True,
    tasks=("obb",),
)
YOLO_NMS_FREE_OBB: Final = ChosenHead(
    name="yolo-nms-free-obb",
    gives=ValueType.ROTATED,
    default_postprocess=(ScoreThreshold(), FillBoxes()),
    rotated=True,
    tasks=("obb",),
)
YOLO_NMS_FREE_POSE: Final = ChosenHead(
    name="yolo-nms-free-pose",
    gives=ValueType.POINTS,
    default_postprocess=(ScoreThreshold(), Keypoints()),
    points=True,
    tasks=("pose",),
)
YOLO_NMS_FREE_SEG: Final = ChosenHead(
    name="yolo-nms-free-seg",
    gives=ValueType.PROTOTYPES,
    default_postprocess=(ScoreThreshold(), CropMasks()),
    output_names=("output0", "output1"),
    masks=True,
    tasks=("segment",),
)
YOLO_NMS_FREE_DETECT: Final = ChosenHead(
    name="yolo-nms-free-detect",
    gives=ValueType.BOXES,
    default_postprocess=(ScoreThreshold(),),
    tasks=("detect",),
)
RTDETR_ULTRALYTICS: Final = RelativeHead(
    name="rtdetr-ultralytics",
    gives=ValueType.BOXES,
    default_postprocess=(ScoreThreshold(),),
    tasks=("detect",),
    preprocessing=replace(ULTRALYTICS, networks="Ultralytics' RT-DETR networks", resize={"mode": "stretch"}),
)
