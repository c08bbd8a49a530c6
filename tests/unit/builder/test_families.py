"""What the families accept of a network's signature, and how they read its outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fakes.pipelines import pipeline_of
from segserve_builder.errors import SignatureError
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import NetworkIO, NetworkSignature, TensorSpec
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.values import ResizeTransform

GREY = TensorSpec("image", "UINT8", (None, 1, None, None))
LOGITS = TensorSpec("logits", "FP32", (None, 2, None, None))


def pipeline(family: str, classes: int, colour: str = "GREY", batch: int = 8) -> Pipeline:
    return pipeline_of(family, classes, input={"colour": colour}, runtime={"maxBatchSize": batch})


def semantic(image: TensorSpec = GREY, *outputs: TensorSpec, classes: int = 2, **options: Any) -> NetworkIO:
    signature = NetworkSignature((image,), outputs or (LOGITS,))
    return FAMILIES["semantic-logits"].network_io(signature, pipeline("semantic-logits", classes, **options))


@pytest.mark.parametrize(
    ("shape", "colour", "layout"),
    [
        ((None, 1, None, None), "GREY", "NCHW"),
        ((None, 384, 384, 1), "GREY", "NHWC"),
        ((None, 3, 384, 384), "RGB", "NCHW"),
        ((None, None, None, 3), "RGB", "NHWC"),
    ],
)
@pytest.mark.parametrize("dtype", ["UINT8", "UINT16", "FP16", "FP32"])
def test_the_layout_is_where_the_channels_are(
    shape: tuple[int | None, ...], colour: str, layout: str, dtype: str
) -> None:
    image = TensorSpec("image", dtype, shape)

    assert semantic(image, colour=colour) == NetworkIO(image, layout, (LOGITS,))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (
            TensorSpec("x", "INT64", (None, 1, 8, 8)),
            r"'x' INT64 \[\?, 1, 8, 8\]: allowed dtypes are UINT8, UINT16, FP16",
        ),
        (TensorSpec("x", "FP32", (None, 3, 8, 8)), r"for colour GREY the shape must be \[batch, 1, height, width\]"),
        (TensorSpec("x", "FP32", (None, None, None, 3)), "for colour GREY the shape must be"),
        (TensorSpec("x", "FP32", (None, 1, 8)), "for colour GREY the shape must be"),
        (TensorSpec("x", "FP32", (4, 1, 8, 8)), "the batch size must be free or 1; it is 4"),
    ],
)
def test_an_input_that_is_no_image_is_refused(image: TensorSpec, says: str) -> None:
    with pytest.raises(SignatureError, match=says):
        semantic(image)


@pytest.mark.parametrize("batch", [1, 8])
def test_a_fixed_batch_of_one_is_enough_for_any_batch_size(batch: int) -> None:
    image = TensorSpec("x", "FP32", (1, 1, 8, 8))

    assert semantic(image, TensorSpec("y", "FP32", (1, 2, 8, 8)), batch=batch).input == image


@pytest.mark.parametrize(("channels", "classes"), [(2, 2), (1, 2), (21, 21), (None, 5)])
def test_logits_have_a_channel_a_class_or_one_for_two(channels: int | None, classes: int) -> None:
    logits = TensorSpec("y", "FP32", (None, channels, 96, 96))

    assert semantic(GREY, logits, classes=classes).outputs == (logits,)


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        (
            (TensorSpec("y", "FP32", (None, 3, 8, 8)),),
            "for the model's 2 classes the number of channels must be 2, or 1",
        ),
        ((TensorSpec("y", "FP16", (None, 2, 8, 8)),), "'y' FP16.*the dtype must be FP32: export it with half=False"),
        ((TensorSpec("y", "INT64", (None, 8, 8)),), "the dtype must be FP32"),
        ((TensorSpec("y", "FP32", (None, 8, 8)),), r"the shape must be \[batch, classes, height, width\]"),
        ((TensorSpec("y", "FP32", (4, 2, 8, 8)),), "output 'y'.*the batch size must be free or 1; it is 4"),
        (
            (TensorSpec("y", "FP32", (None, 8)), TensorSpec("z", "FP32", (None, 9, 8, 8))),
            "an output FP32 .* for the model's 2 classes; the network has 'y' FP32",
        ),
    ],
)
def test_other_outputs_than_logits_are_refused(outputs: tuple[TensorSpec, ...], says: str) -> None:
    with pytest.raises(SignatureError, match=says):
        semantic(GREY, *outputs)


def test_one_channel_is_not_enough_for_three_classes() -> None:
    with pytest.raises(SignatureError, match="must be 3"):
        semantic(GREY, TensorSpec("y", "FP32", (None, 1, 8, 8)), classes=3)


def test_yolo_boxes_are_given_in_pixels_of_the_original_image() -> None:
    head = np.zeros((1, 4 + 2 + 3, 2), np.float32)
    head[0, :, 0] = [100, 60, 40, 20, 0.2, 0.7, 1, 2, 3]
    head[0, :, 1] = [100, 60, 0, 0, 0.4, 0.4, 4, 5, 6]
    prototypes = np.ones((1, 3, 8, 8), np.float32)
    transform = ResizeTransform(100, 50, 10, 30, 50, 100, 128, 128)  # rows shrunk to half, columns doubled

    read = FAMILIES["yolo-seg"].read({"a": head, "b": prototypes}, transform, pipeline("yolo-seg", 2))

    assert read.boxes.tolist() == [[25, 80, 45, 120], [35, 100, 35, 100]]  # type: ignore[union-attr]
    assert read.classes.tolist() == [1, 0]  # type: ignore[union-attr]
    assert read.scores.tolist() == pytest.approx([0.7, 0.4])  # type: ignore[union-attr]
    assert read.heads.coefficients.tolist() == [[1, 2, 3], [4, 5, 6]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((2, 3, 8, 8), r"shape \[2, 3, 8, 8\]; one image's are \[1, classes, h, w\]"),
        ((1, 4, 8, 8), "number of channels must be 3"),
    ],
)
def test_logits_of_another_shape_than_declared_are_refused(shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(SignatureError, match=says):
        FAMILIES["semantic-logits"].read(
            {"y": np.zeros(shape, np.float32)}, ResizeTransform.of(8, 8), pipeline("semantic-logits", 3)
        )
