"""The public outputs in every encoding, against pycocotools, Pillow and numpy."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from fakes.pipelines import pipeline_of
from segserve_builder.imaging.masks import default_colour, label_png, polygons_json
from segserve_builder.imaging.probabilities import mean_confidence
from segserve_builder.kernels.rle import MaskWindow, encode_bitmap
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.encode import encode
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.public_outputs import PUBLIC_OUTPUTS
from segserve_builder.values import Instances, LabelMap, Logits, ResizeTransform

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, numpy 2
SEMANTIC = frozenset(tensor.name for tensor in PUBLIC_OUTPUTS["semantic"]) - {"REVISION"}
INSTANCE = frozenset(tensor.name for tensor in PUBLIC_OUTPUTS["instance"]) - {"REVISION"}
DTYPES = {"BYTES": np.object_, "INT32": np.int32, "INT64": np.int64, "FP32": np.float32}


def pipeline(classes: int, **output: Any) -> Pipeline:
    named = [{"id": i, "name": str(i)} for i in range(classes)]
    named[1]["colour"] = "#ffcc00"
    return pipeline_of(classes=named, output=output)


def label_map(classes: int = 3, height: int = 7, width: int = 9) -> LabelMap:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, min(classes, 3), (height, width)).astype(np.uint8 if classes <= 256 else np.uint16)
    values = rng.normal(size=(classes, 4, 5)).astype(np.float32)
    return LabelMap(labels, Logits(values, ResizeTransform(height, width, 0, 0, 16, 20, 16, 20)))


def instances(n: int = 3, height: int = 7, width: int = 9) -> tuple[Instances, np.ndarray]:
    rng = np.random.default_rng(3)
    masks = (rng.random((n, height, width)) < 0.4).astype(np.uint8)
    masks[n - 1 :] = 0
    counts = tuple(encode_bitmap(mask) for mask in masks)
    boxes, scores = rng.random((n, 4)).astype(np.float32), rng.random(n).astype(np.float32)
    return Instances(boxes, scores, np.arange(n, dtype=np.int32), counts, height, width), masks


def rings(counts: list[list[int]], height: int, width: int) -> np.ndarray:
    """The mask that pycocotools makes of polygons."""
    if not counts:
        return np.zeros((height, width), np.uint8)
    return coco.decode(coco.merge(coco.frPyObjects(counts, height, width)))


@pytest.mark.parametrize("encoding", ["rle", "polygons", "png", "raw", None])
@pytest.mark.parametrize("task", ["semantic", "instance", "no instances"])
def test_every_output_is_there_with_the_type_and_rank_of_the_contract(task: str, encoding: str | None) -> None:
    value = label_map() if task == "semantic" else instances(0 if task == "no instances" else 3)[0]
    table = PUBLIC_OUTPUTS["semantic" if task == "semantic" else "instance"]

    outputs = encode(value, pipeline(3), RequestOptions(encoding=encoding), SEMANTIC | INSTANCE)

    assert set(outputs) == {tensor.name for tensor in table} - {"REVISION"}
    for tensor in table[1:]:
        assert outputs[tensor.name].dtype == DTYPES[tensor.dtype]
        assert outputs[tensor.name].ndim == len(tensor.shape)
        assert outputs[tensor.name].flags.c_contiguous


def test_only_wanted_outputs_are_made() -> None:
    assert set(encode(label_map(), pipeline(3), RequestOptions(), frozenset({"SIZE", "AREAS", "REVISION"}))) == {
        "SIZE",
        "AREAS",
    }
    assert encode(instances()[0], pipeline(3), RequestOptions(), frozenset({"REVISION"})) == {}


def test_semantic_numbers_are_counted_per_class_in_order_of_id() -> None:
    value = label_map(5)

    outputs = encode(value, pipeline(5), RequestOptions(), SEMANTIC)

    assert outputs["SIZE"].tolist() == [7, 9]
    assert outputs["CLASSES"].tolist() == [0, 1, 2, 3, 4]
    assert outputs["AREAS"].tolist() == [int((value.labels == i).sum()) for i in range(5)]
    assert outputs["CONFIDENCE"][3:].tolist() == [0, 0]


@pytest.mark.parametrize(("classes", "bits"), [(3, 8), (256, 8), (257, 16)])
def test_a_label_map_is_a_png_whose_pixels_are_class_ids(classes: int, bits: int) -> None:
    value = label_map(classes)

    outputs = encode(value, pipeline(classes), RequestOptions(), SEMANTIC)

    (data,) = outputs["LABELS"]
    assert data[24] == bits
    image = PIL.Image.open(io.BytesIO(data))
    assert np.array_equal(np.array(image), value.labels)
    assert len(outputs["MASKS"]) == 0


def test_the_palette_has_the_colours_of_the_classes_and_default_ones() -> None:
    data = label_png(np.array([[0, 1, 2]], np.uint8), (None, "#ffcc00", None))

    colours = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    assert np.array(colours).tolist() == [[[0, 0, 0], [255, 204, 0], [0, 128, 0]]]
    assert len({default_colour(label) for label in range(256)}) == 256


def test_raw_labels_are_little_endian() -> None:
    value = label_map(300)

    (data,) = encode(value, pipeline(300), RequestOptions(encoding="raw"), SEMANTIC)["LABELS"]

    assert np.array_equal(np.frombuffer(data, "<u2").reshape(7, 9), value.labels)


def test_semantic_masks_are_one_rle_a_class() -> None:
    value = label_map(4)

    outputs = encode(value, pipeline(4, encoding="rle"), RequestOptions(), SEMANTIC)

    expected = [
        coco.encode(np.asfortranarray(value.labels == i).astype(np.uint8, order="F"))["counts"] for i in range(4)
    ]
    assert outputs["MASKS"].tolist() == expected
    assert len(outputs["LABELS"]) == 0


def test_instance_masks_are_the_same_in_every_encoding() -> None:
    value, masks = instances()

    made = {e: encode(value, pipeline(3), RequestOptions(encoding=e), INSTANCE)["MASKS"] for e in ("rle", "png", "raw")}

    for i, mask in enumerate(masks):
        assert made["rle"][i] == encode_bitmap(mask)
        assert np.array_equal(np.array(PIL.Image.open(io.BytesIO(made["png"][i]))), mask * 255)
        assert made["png"][i][24] == 8
        assert made["raw"][i] == mask.tobytes()


def test_the_encoding_of_a_request_overrides_that_of_the_model() -> None:
    asked = encode(label_map(), pipeline(3, encoding="rle"), RequestOptions(encoding="raw"), SEMANTIC)

    assert (len(asked["LABELS"]), len(asked["MASKS"])) == (1, 0)


def test_polygons_of_instances_are_where_the_masks_are() -> None:
    from scipy import ndimage

    value, masks = instances()

    made = encode(value, pipeline(3), RequestOptions(encoding="polygons"), INSTANCE)["MASKS"]

    for data, mask in zip(made, masks, strict=True):
        assert np.array_equal(rings(json.loads(data), *mask.shape), ndimage.binary_fill_holes(mask))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.sampled_from([0.1, 0.5, 0.9]),
    st.integers(1, 5),
    st.integers(0, 2**32 - 1),
)
def test_pycocotools_makes_the_mask_with_its_holes_filled_of_its_polygons(
    height: int, width: int, density: float, block: int, seed: int
) -> None:
    from scipy import ndimage

    coarse = np.random.default_rng(seed).random((height, width)) < density
    bitmap = coarse.repeat(block, 0).repeat(block, 1).astype(np.uint8)
    mask = np.pad(bitmap, ((3, 5), (4, 2)))

    made = polygons_json(MaskWindow(bitmap, 3, 4))

    assert np.array_equal(rings(json.loads(made), *mask.shape), ndimage.binary_fill_holes(mask))


@pytest.mark.parametrize("classes", [1, 2, 7])
@pytest.mark.parametrize("size", [(7, 9), (300, 401), (4, 5)])
def test_confidence_is_the_mean_probability_of_the_label(classes: int, size: tuple[int, int]) -> None:
    from scipy import special
    from torch import from_numpy
    from torch.nn.functional import interpolate

    rng = np.random.default_rng(classes)
    labels = rng.integers(0, max(classes, 2) - (classes > 2), size).astype(np.uint8)
    logits = (rng.normal(size=(classes, 4, 5)) * 40).astype(np.float32)
    value = LabelMap(labels, Logits(logits, ResizeTransform(*size, 0, 0, 4, 5, 4, 5)))

    mean = mean_confidence(value, max(classes, 2))

    upsampled = interpolate(from_numpy(logits.astype(np.float64))[None], size, mode="bilinear")[0].numpy()
    stacked = upsampled if classes > 1 else np.concatenate([np.zeros_like(upsampled), upsampled])
    probability = np.take_along_axis(special.softmax(stacked, axis=0), labels[None].astype(int), axis=0)[0]
    expected = [probability[labels == c].mean() if (labels == c).any() else 0 for c in range(max(classes, 2))]
    assert mean == pytest.approx(expected, abs=1e-5)
    assert mean.dtype == np.float32
