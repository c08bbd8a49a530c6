"""What the builder's last step encodes, the client decodes: the same masks whatever the encoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from pycocotools import mask as coco
from skimage import data, measure

from segserve.answers import INSTANCE_OUTPUTS, SEMANTIC_OUTPUTS, read_model_info, read_result
from segserve.types import ENCODINGS, InstanceResult, SemanticResult
from segserve.wire import InferAnswer, Tensor
from segserve_builder.encode import encode
from segserve_builder.pipeline import Input, ModelClass, Output, Runtime
from segserve_builder.stages.base import Request
from segserve_builder.steps import Pipeline
from segserve_builder.values import Instances, LabelMap, Logits, Placement

if TYPE_CHECKING:
    from segserve.types import Result

LABELS = measure.label(data.coins()[::3, ::3] > 120, connectivity=1)
PARTS = [part.label == LABELS for part in measure.regionprops(LABELS) if part.area > 20]
HEIGHT, WIDTH = LABELS.shape
CLASSES = tuple(ModelClass(id=number, name=f"class {number}") for number in range(3))


def answered(value: Instances | LabelMap, wanted: tuple[str, ...], encoding: str | None) -> Result:
    pipeline = Pipeline(
        model="coins",
        artifact_sha256="0" * 64,
        family="semantic-logits",
        input=Input(),
        classes=CLASSES,
        preprocess=(),
        postprocess=(),
        output=Output(),
        runtime=Runtime(),
    )
    arrays = encode(value, pipeline, Request(encoding=encoding), frozenset(wanted) - {"REVISION"})
    tensors = {
        name: Tensor.of_items(name, array.tolist()) if array.dtype == np.object_ else Tensor.of_array(name, array)
        for name, array in arrays.items()
    }
    tensors["REVISION"] = Tensor.of_items("REVISION", [b"coins-aa"])
    return read_result(InferAnswer("coins", tensors), read_model_info("coins", wanted, {}))


def filled(mask: np.ndarray) -> np.ndarray:
    return np.asarray(measure.label(~np.pad(mask, 1), connectivity=1) != 1)[1:-1, 1:-1]


@pytest.mark.parametrize("encoding", [None, *ENCODINGS])
def test_instances_have_the_same_masks_in_every_encoding(encoding: str | None) -> None:
    counts = tuple(bytes(coco.encode(np.asfortranarray(part.astype(np.uint8)))["counts"]) for part in PARTS)
    boxes = np.zeros((len(PARTS), 4), np.float32)
    scores, classes = np.linspace(1, 0.5, len(PARTS), dtype=np.float32), np.ones(len(PARTS), np.int32)

    result = answered(Instances(boxes, scores, classes, counts, HEIGHT, WIDTH), INSTANCE_OUTPUTS, encoding)

    assert isinstance(result, InstanceResult)
    assert len(result) == len(PARTS) > 10
    for instance, part in zip(result, PARTS, strict=True):
        expected = filled(part) if encoding == "polygons" else part
        np.testing.assert_array_equal(instance.mask, expected)
        assert instance.area == expected.sum()


@pytest.mark.parametrize("encoding", [None, *ENCODINGS])
def test_labels_are_the_same_in_every_encoding(encoding: str | None) -> None:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot(rows - 45, columns - 60)
    # A ring of the last class around a disc of the first but one: polygons have no holes for it.
    labels = np.select([distance < 15, distance < 30], [1, 2], 0).astype(np.uint8)
    logits = Logits(np.zeros((3, HEIGHT, WIDTH), np.float32), Placement.of(HEIGHT, WIDTH))

    result = answered(LabelMap(labels, logits), SEMANTIC_OUTPUTS, encoding)

    assert isinstance(result, SemanticResult)
    np.testing.assert_array_equal(result.labels, labels)
    assert list(result.areas.values()) == np.bincount(labels.ravel()).tolist()
