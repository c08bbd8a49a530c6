"""The YOLO families against a plain torch recreation of what their projects do with the same outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.pipelines import pipeline_of
from segserve_builder.errors import SignatureError
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import NetworkIO, NetworkSignature, TensorSpec
from segserve_builder.kernels.rle_reader import decode_bitmap
from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.crop_masks import CropMasks
from segserve_builder.values import Candidates, PrototypeHeads, ResizeTransform

if TYPE_CHECKING:
    import torch

    from networks.yolo import Layout

IMAGE = TensorSpec("image", "FP32", (None, 3, 640, 640))
# 1280 x 640 pixels at half their size in the middle of a square of 640.
TRANSFORM = ResizeTransform(640, 1280, 160, 0, 320, 640, 640, 640)
WITH_MASKS = ("yolo-seg", "yolov5-seg", "yolo-nms-free-seg")
BOXES_ONLY = ("yolo-detect", "yolov5-detect", "yolo-nms-free-detect")
SEEDS = st.integers(0, 2**32 - 1)


def chosen(family: str, outputs: list[np.ndarray], classes: int) -> Candidates:
    """What the family's default stages choose, before masks are made."""
    arrays = {str(index): array for index, array in enumerate(outputs)}
    value: Any = FAMILIES[family].read(arrays, TRANSFORM, pipeline_of(family, classes))
    for stage in FAMILIES[family].default_postprocess:
        if not isinstance(stage, CropMasks):
            value = stage(value, RequestOptions())
    assert isinstance(value, Candidates)
    return value


def head(rng: np.random.Generator, n: int, *numbers: int) -> np.ndarray:
    """Boxes cx cy w h around few places, then random numbers, some of them 0 and 1: float32 (n, 4 + sum)."""
    places = rng.random((max(n // 8, 1), 2)) * 640
    centres = places[rng.integers(0, len(places), n)] + rng.normal(size=(n, 2)) * 8
    sizes = 20 + rng.random((n, 2)) * 60
    rest = rng.random((n, sum(numbers)))
    rest[rng.random(rest.shape) < 0.05] = 0
    return np.concatenate([centres, sizes, rest], axis=1).astype(np.float32)


def reference(rows: np.ndarray, classes: int, layout: Layout) -> tuple[torch.Tensor, ...]:
    import torch

    from networks import yolo

    boxes, *others = yolo.chosen(torch.from_numpy(rows), layout, classes)
    return on_image(boxes), *others


def on_image(boxes: torch.Tensor) -> torch.Tensor:
    import torch

    return (boxes - torch.tensor([0.0, 160, 0, 160])) / 0.5


def assert_same(found: Candidates, expected: tuple[torch.Tensor, ...]) -> None:
    boxes, scores, labels, coefficients = (tensor.numpy() for tensor in expected)
    assert np.array_equal(found.scores, scores)
    assert np.array_equal(found.classes, labels)
    assert found.boxes == pytest.approx(boxes, abs=1e-3)
    if isinstance(found.heads, PrototypeHeads):
        assert np.array_equal(found.heads.coefficients, coefficients)


LAYOUTS: list[tuple[Layout, str]] = [
    *(("v8", family) for family in ("yolo-seg", "yolo-detect")),
    *(("v5", family) for family in ("yolov5-seg", "yolov5-detect")),
    *(("end to end", family) for family in ("yolo-nms-free-seg", "yolo-nms-free-detect")),
]


@pytest.mark.parametrize(("layout", "family"), LAYOUTS)
@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, n=st.integers(0, 120), classes=st.integers(1, 5))
def test_heads_are_read_as_their_project_does(layout: Layout, family: str, seed: int, n: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    coefficients = 3 if family in WITH_MASKS else 0
    numbers = {"v8": (classes,), "v5": (1, classes), "end to end": (2,)}
    rows = head(rng, n, *numbers[layout], coefficients)
    if layout == "end to end":  # corners, and a class beside the score; the best come first
        rows[:, 2:4] += rows[:, :2]
        rows[:, 5] = rng.integers(0, classes, n)
        rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    prototypes = [rng.normal(size=(1, 3, 16, 16)).astype(np.float32)] if coefficients else []

    found = chosen(family, [np.ascontiguousarray(rows.T if layout == "v8" else rows)[None], *prototypes], classes)

    assert_same(found, reference(rows, classes, layout))


@pytest.mark.parametrize("family", ["yolo-pose", "yolo-nms-free-pose"])
def test_keypoints_are_those_of_the_kept_detections_in_pixels_of_the_image(family: str) -> None:
    is_chosen = family == "yolo-nms-free-pose"
    # The image lies at half its size from row 160 on; the second detection is not kept.
    boxes = [[90, 250, 110, 350], [10, 250, 30, 350]] if is_chosen else [[100, 300, 20, 100], [20, 300, 20, 100]]
    rest = [[0.9, 0], [0.1, 0]] if is_chosen else [[0.9], [0.1]]
    points = [[100, 260, 0.75, -5, 500, 0.25], [1, 1, 1, 1, 1, 1]]
    rows = np.concatenate([boxes, rest, points], axis=1, dtype=np.float32)
    outputs = {"output0": (rows if is_chosen else rows.T)[None]}

    value: Any = FAMILIES[family].read(outputs, TRANSFORM, pipeline_of(family, 1))
    for stage in FAMILIES[family].default_postprocess:
        value = stage(value, RequestOptions())

    assert value.boxes.tolist() == [[180, 180, 220, 380]]
    assert value.points.tolist() == [[[200, 200, 0.75], [0, 640, 0.25]]]


@pytest.mark.parametrize("family", ["yolo-obb", "yolo-nms-free-obb"])
def test_rotated_boxes_are_instances_whose_masks_are_the_boxes_in_the_image(family: str) -> None:
    is_chosen = family == "yolo-nms-free-obb"
    # The image lies at half its size from row 160 on. A box stands on its corner; the second overlaps it, if turned.
    boxes = [[100, 300, 40, 40], [102, 300, 40, 40], [20, 80, 10, 10]]
    rest = [[0.9, 0], [0.8, 0], [0.7, 0]] if is_chosen else [[0.9], [0.8], [0.7]]
    rows = np.concatenate([boxes, rest, [[np.pi / 4], [np.pi * 3 / 4], [0]]], axis=1, dtype=np.float32)
    outputs = {"output0": (rows if is_chosen else rows.T)[None]}

    value: Any = FAMILIES[family].read(outputs, TRANSFORM, pipeline_of(family, 1))
    for stage in FAMILIES[family].default_postprocess:
        value = stage(value, RequestOptions())

    half = 40 * np.sqrt(2)
    assert value.scores.tolist() == pytest.approx([0.9, 0.8, 0.7] if is_chosen else [0.9, 0.7])
    assert value.boxes[0].tolist() == pytest.approx([200 - half, 280 - half, 200 + half, 280 + half], abs=0.01)
    mask = decode_bitmap(value.masks[0], value.height, value.width)
    assert mask.sum() == pytest.approx(80 * 80, abs=80)
    assert [mask[280, 200], mask[280, 254], mask[235, 235]] == [1, 1, 0]
    assert decode_bitmap(value.masks[-1], value.height, value.width).sum() == 0  # it is above the image


@pytest.mark.parametrize("classes", [1, 3])
def test_yolox_boxes_are_counted_from_their_cells(classes: int) -> None:
    sides = {8: 80, 16: 40, 32: 20}
    rows = np.zeros((8400, 5 + classes), np.float32)
    last = 6400 + 1600 + 7 * 20 + 3  # row 7, column 3 of the coarsest grid
    rows[last] = [0.5, 0.25, np.log(2), np.log(3), 0.8, *([0.5] * (classes - 1)), 0.75]

    found = chosen("yolox-detect", [rows[None]], classes)

    x, y, width, height = 3.5 * 32, 7.25 * 32, 2 * 32, 3 * 32
    expected = np.array([x - width / 2, y - height / 2 - 160, x + width / 2, y + height / 2 - 160]) * 2
    assert sum(side * side for side in sides.values()) == len(rows)
    assert np.allclose(found.boxes, [expected])
    assert np.allclose(found.scores, [0.6])
    assert found.classes.tolist() == [classes - 1]


def test_yolox_rows_that_are_no_grid_are_refused() -> None:
    with pytest.raises(SignatureError, match="yolox-detect has 8400 rows for an input of 640 x 640 pixels"):
        FAMILIES["yolox-detect"].read(
            {"o": np.zeros((1, 25200, 8), np.float32)}, TRANSFORM, pipeline_of("yolox-detect", 3)
        )


def test_rows_that_only_fill_an_end_to_end_head_are_left_out() -> None:
    rows = np.array([[[1, 1, 5, 5, 0.9, 2], [0, 0, 0, 0, 0, -1]]], np.float32)

    read: Any = FAMILIES["yolo-nms-free-detect"].read(
        {"output0": rows}, TRANSFORM, pipeline_of("yolo-nms-free-detect", 3)
    )

    assert read.classes.tolist() == [2]


def test_boxes_of_ultralytics_rt_detr_are_centred_and_relative() -> None:
    """As `RTDETRPredictor.postprocess`: xywh2xyxy, times the image's size, which was stretched."""
    rows = np.array([[[0.5, 0.25, 0.2, 0.1, 0.9, 2], [0.1, 0.1, 0.1, 0.1, 0.1, 0]]], np.float32)
    stretched = ResizeTransform(480, 600, 0, 0, 640, 640, 640, 640)

    read: Any = FAMILIES["rtdetr-ultralytics"].read({"output0": rows}, stretched, pipeline_of("rtdetr-ultralytics", 3))

    assert read.boxes[0].tolist() == pytest.approx([240, 96, 360, 144], abs=0.01)
    assert read.classes.tolist() == [2, 0]


@pytest.mark.parametrize("number", [3, -1, 0.5])
def test_a_detection_of_a_class_that_is_none_is_refused(number: float) -> None:
    rows = np.array([[[1, 1, 5, 5, 0.9, number]]], np.float32)

    with pytest.raises(SignatureError, match=rf"of class {number:g}; the model's are 0 to 2"):
        FAMILIES["yolo-nms-free-detect"].read({"output0": rows}, TRANSFORM, pipeline_of("yolo-nms-free-detect", 3))


@pytest.mark.parametrize(
    ("family", "row"),
    [
        pytest.param("yolo-detect", [40, 40, 9, 9, 0.1, 154.3, 0.2], id="coordinates of key points behind the classes"),
        pytest.param("yolo-detect", [40, 40, 9, 9, -0.2, -0.3, -0.1], id="no sigmoid"),
        pytest.param("yolov5-detect", [40, 40, 9, 9, -3, 0.5, 0.1, 0.2], id="objectness without sigmoid"),
        pytest.param("yolov5-detect", [40, 40, 9, 9, 0.9, 5, 0.1, 0.2], id="scores without sigmoid"),
        pytest.param("yolo-nms-free-detect", [1, 1, 9, 9, 1.2, 0], id="an end-to-end head"),
    ],
)
def test_scores_beyond_0_and_1_are_refused(family: str, row: list[float]) -> None:
    rows = np.array([row], np.float32)
    head = rows.T if family == "yolo-detect" else rows

    with pytest.raises(SignatureError, match="must be probabilities, 0 to 1; these are"):
        FAMILIES[family].read({"output0": head[None]}, TRANSFORM, pipeline_of(family, 3))


def checked(family: str, *outputs: tuple[int | None, ...], dtype: str = "FP32") -> NetworkIO:
    tensors = tuple(TensorSpec(f"output{index}", dtype, shape) for index, shape in enumerate(outputs))
    return FAMILIES[family].network_io(NetworkSignature((IMAGE,), tensors), pipeline_of(family, 3))


PROTOTYPES = (None, 32, 160, 160)


@pytest.mark.parametrize(
    ("family", "outputs"),
    [
        ("yolo-seg", [(None, 39, 8400), PROTOTYPES]),
        *(("yolo-seg", [(None, rows, None), (None,) * 4]) for rows in (None, 8, 39)),
        ("yolo-detect", [(None, 7, 8400)]),
        ("yolov5-detect", [(None, 25200, 8)]),
        ("yolov5-seg", [(None, 25200, 40), PROTOTYPES]),
        ("yolo-nms-free-detect", [(None, 300, 6)]),
        ("yolo-pose", [(None, 7 + 51, 8400)]),
        ("yolo-obb", [(None, 8, 8400)]),
        ("yolo-nms-free-pose", [(None, 300, 6 + 51)]),
        ("yolox-detect", [(None, 8400, 8)]),
        ("yolo-nms-free-seg", [PROTOTYPES, (None, 300, 38)]),
    ],
)
def test_the_outputs_of_a_yolo_export_are_accepted(family: str, outputs: list[tuple[int | None, ...]]) -> None:
    assert len(checked(family, *outputs).outputs[0].shape) == 3


@pytest.mark.parametrize(
    ("family", "outputs", "says"),
    [
        ("yolo-seg", [(None, 39, 8400)], "yolo-seg has two outputs"),
        ("yolo-seg", [(None, 40, 8400), PROTOTYPES], r"4 \+ 3 \+ coefficients rows, 39"),
        ("yolo-seg", [(None, 8400, 39), PROTOTYPES], "'output0' FP32 .*8400, 39.* rows, 39"),
        ("yolo-detect", [(None, 39, 8400)], r"the detections must have 4 \+ 3 rows, 7"),
        ("yolo-detect", [(None, 7, 8400), PROTOTYPES], r"has one output, FP32 \[batch, 4 \+ classes, candidates\]"),
        ("yolo-pose", [(None, 7 + 50, 8400)], r"4 \+ 3 \+ 3 for each keypoint rows, at least 10"),
        ("yolo-obb", [(None, 7, 8400)], r"4 \+ 3 \+ 1 for the angle rows, 8"),
        ("yolo-nms-free-pose", [(None, 300, 6)], r"6 \+ 3 for each keypoint columns, at least 9"),
        ("yolov5-detect", [(None, 25200, 7)], r"5 \+ 3 columns, 8"),
        ("yolov5-seg", [(None, 25200, 8), PROTOTYPES], r"5 \+ 3 \+ coefficients columns, 40"),
        (
            "yolov5-seg",
            [(None, 25200, 40)],
            r"two outputs, FP32 \[batch, candidates, 5 \+ classes \+ coefficients\] and",
        ),
        ("yolo-nms-free-detect", [(None, 7, 8400)], "must have 6 columns, 6"),
        ("yolo-nms-free-seg", [(None, 300, 6), PROTOTYPES], r"6 \+ coefficients columns, 38"),
    ],
)
def test_other_outputs_are_refused(family: str, outputs: list[tuple[int | None, ...]], says: str) -> None:
    with pytest.raises(SignatureError, match=says):
        checked(family, *outputs)


@pytest.mark.parametrize("family", WITH_MASKS + BOXES_ONLY)
def test_half_precision_is_refused(family: str) -> None:
    shapes = [(None, None, None)] + ([PROTOTYPES] if family in WITH_MASKS else [])

    with pytest.raises(SignatureError, match=r"FP16.*the dtype must be FP32"):
        checked(family, *shapes, dtype="FP16")


@pytest.mark.parametrize(
    ("family", "shapes", "says"),
    [
        ("yolo-seg", [(1, 9, 7), (1, 3, 8, 8)], r"\[1, 4 \+ 3 \+ K, N\] and \[1, K, h, w\]"),
        ("yolo-seg", [(2, 10, 7), (2, 3, 8, 8)], "for one image and 3 classes"),
        ("yolo-detect", [(1, 8, 5)], r"shapes \[1, 8, 5\]; for one image and 3 classes they are \[1, 4 \+ 3, N\]"),
        ("yolov5-detect", [(2, 5, 8)], r"\[1, N, 5 \+ 3\]"),
        ("yolov5-seg", [(1, 5, 8), (1, 3, 8, 8)], r"\[1, N, 5 \+ 3 \+ K\] and \[1, K, h, w\]"),
        ("yolo-nms-free-seg", [(1, 5, 9), (1, 3, 8)], r"\[1, N, 6 \+ K\] and \[1, K, h, w\]"),
    ],
)
def test_arrays_of_another_shape_are_refused(family: str, shapes: list[tuple[int, ...]], says: str) -> None:
    arrays = {str(index): np.zeros(shape, np.float32) for index, shape in enumerate(shapes)}

    with pytest.raises(SignatureError, match=says):
        FAMILIES[family].read(arrays, TRANSFORM, pipeline_of(family, 3))
