"""Queries whose classes have sigmoids of their own, against plain torch: what RF-DETR and transformers do with them.

The functions are `RTDetrImageProcessor.post_process_object_detection`, `RfDetrImageProcessor.post_process_*` (the best
pairs of query and class, as many as there are queries), `rfdetr.models.postprocess.PostProcess`, and
`DeformableDetrImageProcessor.post_process_object_detection` (the best 100).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fakes.pipelines import pipeline_of
from segserve_builder.errors import SignatureError
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import NetworkSignature, TensorSpec
from segserve_builder.kernels.rle_reader import decode_bitmap
from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.instance_queries import InstanceQueries
from segserve_builder.stages.panoptic_queries import PanopticQueries
from segserve_builder.stages.semantic_queries import SemanticQueries
from segserve_builder.values import Queries, ResizeTransform

if TYPE_CHECKING:
    import torch

SIZE, INPUT = (101, 67), (64, 96)
STRETCHED = ResizeTransform(*SIZE, 0, 0, *INPUT, *INPUT)
QUERIES, CLASSES = 30, 4


def outputs(seed: int = 0) -> list[torch.Tensor]:
    """Class logits, boxes and masks of a batch of one; some queries are sure of two classes, some masks are empty."""
    import torch

    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, QUERIES, CLASSES, generator=rng) * 2
    boxes = torch.rand(1, QUERIES, 4, generator=rng) * torch.tensor([1, 1, 0.6, 0.6])
    masks = torch.randn(1, QUERIES, 8, 12, generator=rng) * 3
    masks[:, ::5] = -1
    return [logits, boxes, masks]


def queries(arrays: list[torch.Tensor], name: str = "detr-sigmoid") -> Queries:
    family = FAMILIES["detr-sigmoid-seg" if len(arrays) == 3 else name]
    named = {str(index): tensor.numpy() for index, tensor in enumerate(arrays)}
    value = family.read(named, STRETCHED, pipeline_of(family.name, CLASSES))
    assert isinstance(value, Queries)
    return value


def best(logits: torch.Tensor, boxes: torch.Tensor, threshold: float, most: int = QUERIES) -> tuple[torch.Tensor, ...]:
    """Ranks pairs, then gathers: query, class, score and x1 y1 x2 y2 in pixels of those above the threshold."""
    import torch

    scores, index = torch.topk(logits[0].sigmoid().flatten(), most)
    which, classes = index // CLASSES, index % CLASSES
    x, y, w, h = boxes[0][which].unbind(-1)
    corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1) * torch.tensor([SIZE[1], SIZE[0]] * 2)
    kept = scores > threshold
    return which[kept], classes[kept], scores[kept], corners[kept]


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.0])
@pytest.mark.parametrize(("family", "most"), [("detr-sigmoid", QUERIES), ("deformable-detr", 100)])
def test_boxes_are_the_best_pairs_of_query_and_class(threshold: float, family: str, most: int) -> None:
    logits, boxes, _ = outputs()
    which, classes, scores, corners = best(logits, boxes, threshold, most)
    (stage,) = FAMILIES[family].default_postprocess

    found: Any = stage(queries([logits, boxes], family), RequestOptions(score_threshold=threshold))

    assert found.classes.tolist() == classes.tolist()
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6)
    np.testing.assert_allclose(found.boxes, corners, atol=0.01)
    assert len(set(which.tolist())) < len(which) or threshold == 0.9  # several classes of one query


def test_masks_are_sampled_at_the_images_pixels_and_empty_ones_are_dropped() -> None:
    import torch

    arrays = outputs()
    which, classes, scores, corners = best(arrays[0], arrays[1], 0.5)
    full = torch.nn.functional.interpolate(arrays[2], SIZE, mode="bilinear", align_corners=False)[0] > 0
    shown = full[which].flatten(1).any(1)

    found = InstanceQueries()(queries(arrays), RequestOptions())

    assert 2 < shown.sum() < len(shown)
    assert found.classes.tolist() == classes[shown].tolist()
    np.testing.assert_allclose(found.scores, scores[shown], rtol=1e-6)
    np.testing.assert_allclose(found.boxes, corners[shown], atol=0.01)
    for counts, mask in zip(found.masks, full[which][shown], strict=True):
        assert (decode_bitmap(counts, *SIZE) != mask.numpy()).sum() <= 1


@pytest.mark.parametrize("stage", [PanopticQueries(), SemanticQueries(), InstanceQueries(exclusive=True)])
def test_stages_that_need_a_class_nothing_refuse_sigmoids(stage: Any) -> None:
    with pytest.raises(SignatureError, match="each class has a sigmoid of its own"):
        stage(queries(outputs()), RequestOptions())


@pytest.mark.parametrize(
    ("family", "names"),
    [
        pytest.param("detr-sigmoid", ("logits", "pred_boxes"), id="transformers"),
        pytest.param("detr-sigmoid", ("dets", "labels"), id="rfdetr"),
        pytest.param("detr-sigmoid-seg", ("dets", "labels", "masks"), id="rfdetr, with masks"),
    ],
)
def test_outputs_are_found_by_the_names_of_their_exporters(family: str, names: tuple[str, ...]) -> None:
    shapes = {"logits": (91,), "labels": (91,), "masks": (96, 96)}
    tensors = tuple(TensorSpec(name, "FP32", (1, 300, *shapes.get(name, (4,)))) for name in names)
    signature = NetworkSignature((TensorSpec("input", "FP32", (1, 3, 384, 384)),), tensors)
    model = pipeline_of(family, 91, runtime={"maxBatchSize": 1})

    logits, boxes, *masks = FAMILIES[family].network_io(signature, model).outputs

    assert (logits.shape, boxes.shape, len(masks)) == ((1, 300, 91), (1, 300, 4), len(names) - 2)
