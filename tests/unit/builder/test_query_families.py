"""What the families of query decoders accept of a network's signature, and how they read its outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fakes.pipelines import pipeline_of
from segserve_builder.errors import SignatureError
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import NetworkIO, NetworkSignature, TensorSpec
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.values import Queries, ResizeTransform

IMAGE = TensorSpec("pixel_values", "FP32", (None, 3, 384, 384))
CLASSES = TensorSpec("class_queries_logits", "FP32", (None, 100, 6))
MASKS = TensorSpec("masks_queries_logits", "FP32", (None, 100, 96, 96))
HIDDEN = TensorSpec("transformer_decoder_last_hidden_state", "FP32", (None, 100, 256))
PIXELS = TensorSpec("pixel_decoder_last_hidden_state", "FP32", (None, 256, 96, 96))
LOGITS = TensorSpec("logits", "FP32", (None, 100, 6))
BOXES = TensorSpec("pred_boxes", "FP32", (None, 100, 4))
PRED_MASKS = TensorSpec("pred_masks", "FP32", (None, 100, 96, 96))


def pipeline(family: str, classes: int = 5) -> Pipeline:
    named = [{"id": i, "name": f"class {i}", "thing": i > 2} for i in range(classes)]
    return pipeline_of(family, named)


def chosen(family: str, *outputs: TensorSpec, classes: int = 5) -> NetworkIO:
    return FAMILIES[family].network_io(NetworkSignature((IMAGE,), outputs), pipeline(family, classes))


def named(tensor: TensorSpec, name: str) -> TensorSpec:
    return TensorSpec(name, tensor.dtype, tensor.shape)


@pytest.mark.parametrize("family", ["mask2former", "maskformer"])
def test_outputs_are_found_by_name_among_others(family: str) -> None:
    assert chosen(family, HIDDEN, MASKS, PIXELS, CLASSES).outputs == (CLASSES, MASKS)


def test_outputs_of_other_names_are_found_by_their_shapes() -> None:
    classes, masks = named(CLASSES, "output0"), named(MASKS, "output1")

    assert chosen("mask2former", masks, HIDDEN, classes).outputs == (classes, masks)


def test_detrs_outputs_are_told_apart_by_their_last_dimension() -> None:
    logits, boxes, masks = named(LOGITS, "a"), named(BOXES, "b"), named(PRED_MASKS, "c")

    assert chosen("detr", boxes, logits).outputs == (logits, boxes)
    assert chosen("detr-panoptic", masks, boxes, logits).outputs == (logits, boxes, masks)


def test_three_classes_look_like_boxes_unless_they_are_named() -> None:
    logits = TensorSpec("logits", "FP32", (None, 100, 4))

    assert chosen("detr", BOXES, logits, classes=3).outputs == (logits, BOXES)
    with pytest.raises(SignatureError, match="2 of the outputs may be 'logits'"):
        chosen("detr", named(BOXES, "a"), named(logits, "b"), classes=3)


def test_one_output_is_not_logits_and_boxes_at_once() -> None:
    dets, labels = named(BOXES, "dets"), TensorSpec("labels", "FP32", (None, 100, 91))

    with pytest.raises(SignatureError, match="0 of the outputs may be 'logits'"):
        chosen("detr", dets, labels, classes=3)


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ((CLASSES,), "0 of the outputs may be 'masks_queries_logits'"),
        ((named(CLASSES, "a"), MASKS, named(PIXELS, "b")), "2 of the outputs may be 'masks_queries_logits'"),
        ((TensorSpec("class_queries_logits", "FP32", (None, 100, 9)), MASKS), r"5 \+ 1 for the model's classes"),
        ((TensorSpec("class_queries_logits", "FP16", (None, 100, 6)), MASKS), "dtype must be FP32"),
        ((CLASSES, TensorSpec("masks_queries_logits", "FP32", (None, 100, 96))), "the shape must be"),
        ((CLASSES, TensorSpec("masks_queries_logits", "FP32", (4, 100, 96, 96))), "must be free or 1; it is 4"),
    ],
)
def test_outputs_that_are_not_the_familys_are_refused(outputs: tuple[TensorSpec, ...], says: str) -> None:
    with pytest.raises(SignatureError, match=says):
        chosen("mask2former", *outputs)


def arrays(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def test_queries_have_what_the_network_gives() -> None:
    outputs = arrays(logits=(1, 7, 6), pred_boxes=(1, 7, 4), pred_masks=(1, 7, 5, 9))

    found = FAMILIES["detr-panoptic"].read(outputs, ResizeTransform.of(20, 36), pipeline("detr-panoptic"))

    assert isinstance(found, Queries)
    assert found.masks is not None
    assert found.boxes is not None
    assert (found.logits.shape, found.masks.shape, found.boxes.shape) == ((7, 6), (7, 5, 9), (7, 4))
    assert found.things == {3, 4}


@pytest.mark.parametrize(
    "shapes",
    [
        {"class_queries_logits": (1, 7, 5), "masks_queries_logits": (1, 7, 5, 9)},
        {"class_queries_logits": (1, 7, 6), "masks_queries_logits": (1, 8, 5, 9)},
        {"class_queries_logits": (2, 7, 6), "masks_queries_logits": (2, 7, 5, 9)},
        {"class_queries_logits": (1, 7, 6), "masks_queries_logits": (1, 7, 5)},
    ],
)
def test_arrays_of_other_shapes_are_refused(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(SignatureError, match="has shape"):
        FAMILIES["mask2former"].read(arrays(**shapes), ResizeTransform.of(20, 36), pipeline("mask2former"))
