"""What the R-CNN families accept of a network's signature, and how they read its outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fakes.pipelines import pipeline_of
from segserve_builder.errors import SignatureError
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import NetworkIO, NetworkSignature, TensorSpec
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.values import Candidates, HeatmapHeads, MaskHeads, NoHeads, ResizeTransform

IMAGE = TensorSpec("image", "UINT8", (1, 3, None, None))
BOXES = TensorSpec("boxes", "FP32", (None, 4))
LABELS = TensorSpec("labels", "INT64", (None,))
SCORES = TensorSpec("scores", "FP32", (None,))
MASKS = TensorSpec("masks", "FP32", (None, 1, 28, 28))
HEATMAPS = TensorSpec("keypoints", "FP32", (None, 17, 56, 56))
DETS = TensorSpec("dets", "FP32", (None, None, 5))
BATCHED = (DETS, TensorSpec("labels", "INT64", (None, None)), TensorSpec("masks", "FP32", (None, None, 28, 28)))
HEAD = {"mask-rcnn": MASKS, "keypoint-rcnn": HEATMAPS}
TRANSFORM = ResizeTransform(200, 400, 10, 20, 100, 100, 120, 140)  # 2 x 4 pixels of the image are one of the network's


def pipeline(family: str, ids: tuple[int, ...] = (1, 2, 3), batch: int = 1) -> Pipeline:
    return pipeline_of(family, ids, runtime={"maxBatchSize": batch})


def io(family: str, *outputs: TensorSpec, image: TensorSpec = IMAGE, batch: int = 1) -> NetworkIO:
    return FAMILIES[family].network_io(NetworkSignature((image,), outputs), pipeline(family, batch=batch))


def anonymous(*tensors: TensorSpec) -> list[TensorSpec]:
    return [TensorSpec(str(i), tensor.dtype, tensor.shape) for i, tensor in enumerate(tensors)]


def with_batch(tensor: TensorSpec) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.dtype, (1, *tensor.shape))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)])
@pytest.mark.parametrize("family", ["mask-rcnn", "keypoint-rcnn"])
@pytest.mark.parametrize("named", [True, False])
def test_outputs_are_found_by_name_or_by_form_in_any_order(named: bool, family: str, order: tuple[int, ...]) -> None:
    tensors = [BOXES, LABELS, HEAD[family], SCORES]
    tensors = tensors if named else anonymous(*tensors)

    found = io(family, *(tensors[i] for i in order))

    assert found == NetworkIO(IMAGE, "NCHW", tuple(map(with_batch, tensors)), batched=False)


def test_faster_rcnn_has_no_heads() -> None:
    assert [tensor.name for tensor in io("faster-rcnn", SCORES, BOXES, LABELS).outputs] == ["boxes", "labels", "scores"]


def test_mmdeploys_outputs_have_a_batch_and_the_score_beside_the_box() -> None:
    image = TensorSpec("input", "FP32", (None, 3, None, None))

    assert io("mask-rcnn", *BATCHED, image=image, batch=4) == NetworkIO(image, "NCHW", BATCHED)
    assert io("faster-rcnn", *BATCHED[:2], image=image, batch=4).outputs == BATCHED[:2]


def test_the_image_size_that_detectron2_adds_is_left_alone() -> None:
    names = ("pred_boxes", "pred_classes", "pred_masks", "scores")
    tensors = [TensorSpec(n, t.dtype, t.shape) for n, t in zip(names, (BOXES, LABELS, MASKS, SCORES), strict=True)]
    size = TensorSpec("image_size", "INT64", (2,))

    for given in ([*tensors, size], anonymous(*tensors, size)):
        assert [t.shape[1:] for t in io("mask-rcnn", *given).outputs] == [
            (None, 4),
            (None,),
            (None, 1, 28, 28),
            (None,),
        ]


def test_an_image_without_a_batch_gets_one() -> None:
    image = TensorSpec("image", "FP32", (3, None, None))

    assert io("faster-rcnn", BOXES, LABELS, SCORES, image=image).input.shape == (1, 3, None, None)


def test_only_detectors_take_an_image_without_a_batch() -> None:
    image, logits = TensorSpec("image", "FP32", (3, None, None)), TensorSpec("y", "FP32", (1, 3, None, None))

    with pytest.raises(SignatureError, match=r"the shape must be \[batch, 3, height, width\]"):
        FAMILIES["semantic-logits"].network_io(
            NetworkSignature((image,), (logits,)), pipeline("semantic-logits", (0, 1, 2))
        )


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ((BOXES, LABELS, SCORES), r"needs the output masks FP32 \[N, M, M\].*without a batch; none of the network's"),
        ((BOXES, LABELS, MASKS), r"needs the output scores FP32 \[N\].*'masks' FP32 \[\?, 1, 28, 28\]"),
        ((BOXES, SCORES, MASKS), "needs the output labels INT64 or INT32"),
        ((LABELS, SCORES, MASKS), "needs the output boxes FP32.*with or without a batch"),
        ((), "needs the output boxes.*: none"),
        ((*anonymous(BOXES, BOXES, LABELS), SCORES, MASKS), "2 of the network's outputs may be it"),
        ((TensorSpec("boxes", "FP16", (None, 4)), LABELS, SCORES, MASKS), "needs the output boxes FP32"),
        ((BOXES, with_batch(LABELS), SCORES, MASKS), "needs the output labels.*without a batch"),
        ((BOXES, LABELS, SCORES, TensorSpec("masks", "FP32", (None, 1, 800, 1333))), "masks of 800 x 1333 are already"),
        ((BOXES, LABELS, SCORES, TensorSpec("masks", "FP32", (None, 1, 512, 512))), "already pasted.*raw heads"),
    ],
)
def test_other_outputs_than_those_of_mask_rcnn_are_refused(outputs: tuple[TensorSpec, ...], says: str) -> None:
    with pytest.raises(SignatureError, match=says):
        io("mask-rcnn", *outputs)


@pytest.mark.parametrize("batch", [1, 8])
def test_outputs_without_a_batch_or_with_a_fixed_one_fit_any_batch_size(batch: int) -> None:
    outputs = (BOXES, LABELS, SCORES)

    assert not io("faster-rcnn", *outputs, batch=batch).batched
    assert io("faster-rcnn", *map(with_batch, outputs), batch=batch).batched


def arrays(n: int = 3, **changed: Any) -> dict[str, np.ndarray]:
    """Three detections of the labels 2, 1, 3, as `network_io` orders them."""
    plain = {
        "boxes": np.array([[[20, 10, 40, 30], [30, 20, 31, 21], [0, 0, 140, 120]]], np.float32)[:, :n],
        "labels": np.array([[2, 1, 3]])[:, :n],
        "heads": np.random.default_rng(0).random((1, n, 1, 28, 28)).astype(np.float32),
        "scores": np.array([[0.9, 0.5, 0.1]], np.float32)[:, :n],
    }
    return {name: array for name, array in (plain | changed).items() if array is not None}


def read(family: str, *, ids: tuple[int, ...] = (1, 2, 3), **changed: Any) -> Candidates:
    value = FAMILIES[family].read(arrays(**changed), TRANSFORM, pipeline(family, ids))
    assert isinstance(value, Candidates)
    return value


def masks_of(found: Candidates) -> np.ndarray:
    assert isinstance(found.heads, MaskHeads)
    return found.heads.masks


def test_boxes_become_pixels_of_the_original_image() -> None:
    found = read("faster-rcnn", heads=None)

    assert found.boxes.tolist() == [[0, 0, 80, 40], [40, 20, 44, 22], [-80, -20, 480, 220]]
    assert found.classes.tolist() == [2, 1, 3]
    assert found.scores.tolist() == pytest.approx([0.9, 0.5, 0.1])
    assert isinstance(found.heads, NoHeads)


def test_the_score_may_stand_beside_the_box() -> None:
    dets = np.concatenate([arrays()["boxes"], arrays()["scores"][..., None]], axis=2)

    assert read("faster-rcnn", boxes=dets, heads=None, scores=None).scores.tolist() == pytest.approx([0.9, 0.5, 0.1])
    assert masks_of(read("mask-rcnn", boxes=dets, scores=None)).shape == (3, 28, 28)


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_the_background_and_padding_are_left_out(dtype: type) -> None:
    heads = arrays()["heads"]

    found = read("mask-rcnn", labels=np.array([[0, 2, -1]], dtype))

    assert found.classes.tolist() == [2]
    assert found.scores.tolist() == [0.5]
    assert np.array_equal(masks_of(found), heads[0, 1])


def test_label_0_is_a_class_where_the_model_has_it() -> None:
    assert read("mask-rcnn", ids=(0, 1), labels=np.array([[0, 1, 0]])).classes.tolist() == [0, 1, 0]


def test_a_label_that_is_no_class_is_refused() -> None:
    with pytest.raises(SignatureError, match="label 3 is not a class of the model; its classes are 1, 2"):
        read("mask-rcnn", ids=(1, 2))


def test_of_masks_a_label_each_detection_has_its_own() -> None:
    heads = np.random.default_rng(1).random((1, 3, 4, 14, 14)).astype(np.float32)

    assert np.array_equal(masks_of(read("mask-rcnn", heads=heads)), heads[0, [0, 1, 2], [2, 1, 3]])
    with pytest.raises(SignatureError, match="have 3 channels, one per label; label 3 has none"):
        read("mask-rcnn", heads=heads[:, :, :3])


def test_masks_may_have_no_channel() -> None:
    heads = np.random.default_rng(1).random((1, 3, 28, 28)).astype(np.float32)

    assert np.array_equal(masks_of(read("mask-rcnn", heads=heads)), heads[0])


@pytest.mark.parametrize(
    ("heads", "says"),
    [
        (np.zeros((1, 3, 1, 100, 101), np.float32), "masks of 100 x 101 are already pasted.*export the raw heads"),
        (np.zeros((1, 3, 1, 300, 300), np.float32), "masks of 300 x 300 are already pasted"),
        (
            np.full((1, 3, 1, 28, 28), -2, np.float32),
            "masks must be probabilities, 0 to 1; these are -2 to -2: .* its last sigmoid",
        ),
        (np.full((1, 3, 1, 28, 28), 1.5, np.float32), "these are 1.5 to 1.5"),
        (np.zeros((1, 3, 28), np.float32), r"the masks have shape \[3, 28\]"),
        (np.zeros((1, 2, 1, 28, 28), np.float32), r"'heads' \[1, 2, 1, 28, 28\].*each begins with \[1, N\]"),
    ],
)
def test_masks_that_are_no_raw_heads_are_refused(heads: np.ndarray, says: str) -> None:
    with pytest.raises(SignatureError, match=says):
        read("mask-rcnn", heads=heads)


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": np.array([[1, 2]])},
        {"scores": np.zeros((1, 2), np.float32)},
        {"scores": None},
        {"boxes": np.zeros((1, 3, 6), np.float32)},
        {"boxes": np.zeros((3, 4), np.float32)},
    ],
)
def test_outputs_that_do_not_fit_together_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(SignatureError, match="faster-rcnn's outputs have the shapes"):
        read("faster-rcnn", heads=None, **changed)


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_masks_of_the_whole_image_are_no_heads_whatever_sizes_the_file_leaves_free(stride: int) -> None:
    whole = ResizeTransform.of(160, 160)
    of_image = arrays(heads=np.zeros((1, 3, 1, 160 // stride, 160 // stride), np.float32))

    with pytest.raises(SignatureError, match="or of all of it; export the raw heads"):
        FAMILIES["mask-rcnn"].read(of_image, whole, pipeline("mask-rcnn"))


def test_heat_maps_are_read_as_they_are() -> None:
    heads = np.random.default_rng(1).normal(size=(1, 3, 17, 56, 56)).astype(np.float32)

    found = read("keypoint-rcnn", heads=heads)

    assert isinstance(found.heads, HeatmapHeads)
    assert np.array_equal(found.heads.heatmaps, heads[0])
    with pytest.raises(SignatureError, match=r"the heat maps have shape \[3, 56, 56\]"):
        read("keypoint-rcnn", heads=heads[:, :, 0])


@pytest.mark.parametrize("family", ["faster-rcnn", "mask-rcnn", "keypoint-rcnn"])
def test_an_image_without_detections_has_none(family: str) -> None:
    heads = {"mask-rcnn": (1, 0, 1, 28, 28), "keypoint-rcnn": (1, 0, 17, 56, 56)}.get(family)

    found = read(family, n=0, heads=None if heads is None else np.zeros(heads, np.float32))

    assert found.boxes.shape == (0, 4)
    assert found.classes.shape == (0,)
