"""Networks of transformers through the real Triton: the answer is that of transformers' own post-processing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from bench.coins import write
from bench.platform import platform
from networks.served import model, photograph
from segserve import Client, DetectionResult, InstanceResult, PanopticResult, SemanticResult

if TYPE_CHECKING:
    from networks.hugging_face import Exported

pytestmark = pytest.mark.platform

SIZE = (100, 150)
THINGS = [0, 1, 3]
SEMANTIC_384 = [{"semanticQueries": {"maskSize": [384, 384]}}, {"argmax": {}}]
SEMANTIC = [{"semanticQueries": {}}, {"argmax": {}}]
PANOPTIC = {"threshold": 0.3, "overlapThreshold": 0.3}
INSTANCES = {"threshold": 0.3}
MODELS: dict[str, tuple[str, str, list[dict[str, Any]]]] = {
    "segformer": ("segformer", "semantic-logits", []),
    "m2f-semantic": ("mask2former", "mask2former", SEMANTIC_384),
    "m2f-instances": ("mask2former", "mask2former", [{"instanceQueries": INSTANCES | {"maskSize": [384, 384]}}]),
    "m2f-panoptic": ("mask2former", "mask2former", [{"panopticQueries": PANOPTIC | {"maskSize": [384, 384]}}]),
    "mf-semantic": ("maskformer", "maskformer", SEMANTIC),
    "mf-panoptic": ("maskformer", "maskformer", [{"panopticQueries": PANOPTIC}]),
    "detr": ("detr", "detr", []),
    "conditional": ("conditional-detr", "deformable-detr", []),
    "detr-panoptic": ("detr-panoptic", "detr-panoptic", [{"panopticQueries": PANOPTIC}]),
}


@pytest.fixture(scope="module")
def exported() -> dict[str, Exported]:
    from networks.hugging_face import NETWORKS

    return {name: make() for name, make in NETWORKS.items()}


@pytest.fixture(scope="module")
def served(exported: dict[str, Exported], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("hugging-face")
    for name, network in exported.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing
            network.write(folder / f"{name}.onnx")
    resources = write(folder / "models.yaml", *(resource(folder, name) for name in MODELS))
    with platform(resources) as running, Client(running.url, transport="grpc") as client:
        yield client


def photo() -> np.ndarray:
    """The photograph on which the networks were made to differ, larger."""
    return np.asarray(cv2.resize(photograph(128, 128), SIZE[::-1], interpolation=cv2.INTER_LINEAR))


def resource(folder: Path, name: str) -> dict[str, Any]:
    from networks.hugging_face import CLASSES, SIDE

    network, family, postprocess = MODELS[name]
    return model(
        name,
        folder / f"{network}.onnx",
        family=family,
        classes=[{"id": i, "name": f"class {i}", "thing": i in THINGS} for i in range(CLASSES)],
        preprocess=[{"resize": {"mode": "stretch", "height": SIDE, "width": SIDE}}],
        postprocess=postprocess,
    )


def outputs(network: Exported) -> Any:
    """What transformers itself gives for the photograph."""
    import torch

    from networks.hugging_face import SIDE

    resized = cv2.resize(photo(), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    return network.forward(torch.from_numpy(resized.transpose(2, 0, 1).copy())[None])


def agreement(ours: np.ndarray, theirs: Any) -> float:
    return float((ours == np.asarray(theirs)).mean())


def test_segformer_is_transformers_upsampled_argmax(served: Client, exported: dict[str, Exported]) -> None:
    import torch

    logits = outputs(exported["segformer"]).logits
    expected = torch.nn.functional.interpolate(logits, SIZE, mode="bilinear", align_corners=False)[0].argmax(0)

    result = served.segment(photo(), model="segformer")

    assert isinstance(result, SemanticResult)
    assert agreement(result.labels, expected) > 0.999
    assert len(np.unique(result.labels)) > 1


@pytest.mark.parametrize(
    ("model", "processor"),
    [("m2f-semantic", "Mask2FormerImageProcessorPil"), ("mf-semantic", "MaskFormerImageProcessorPil")],
)
def test_semantic_maps_of_queries_are_those_of_transformers(
    served: Client, exported: dict[str, Exported], model: str, processor: str
) -> None:
    import transformers

    theirs = outputs(exported[MODELS[model][0]])
    (expected,) = getattr(transformers, processor)().post_process_semantic_segmentation(theirs, target_sizes=[SIZE])

    result = served.segment(photo(), model=model)

    assert isinstance(result, SemanticResult)
    assert agreement(result.labels, expected) > 0.999
    assert len(np.unique(result.labels)) > 1


@pytest.mark.parametrize(
    ("model", "processor"),
    [
        ("m2f-panoptic", "Mask2FormerImageProcessorPil"),
        ("mf-panoptic", "MaskFormerImageProcessorPil"),
        ("detr-panoptic", "DetrImageProcessorPil"),
    ],
)
def test_panoptic_segments_are_those_of_transformers(
    served: Client, exported: dict[str, Exported], model: str, processor: str
) -> None:
    import transformers

    from networks.hugging_face import CLASSES

    (expected,) = getattr(transformers, processor)().post_process_panoptic_segmentation(
        outputs(exported[MODELS[model][0]]),
        threshold=0.3,
        overlap_mask_area_threshold=0.3,
        label_ids_to_fuse=set(range(CLASSES)) - set(THINGS),
        target_sizes=[SIZE],
    )

    result = served.segment(photo(), model=model)

    assert isinstance(result, PanopticResult)
    rows = [(one["id"], one["label_id"]) for one in expected["segments_info"]]
    assert len(rows) >= 1
    assert [(one.id, one.class_id) for one in result] == rows
    assert [one.score for one in result] == pytest.approx([one["score"] for one in expected["segments_info"]], abs=1e-4)
    assert agreement(result.ids, expected["segmentation"]) > 0.999


def test_instances_of_queries_are_those_of_transformers(served: Client, exported: dict[str, Exported]) -> None:
    import transformers

    (expected,) = transformers.Mask2FormerImageProcessorPil().post_process_instance_segmentation(
        outputs(exported["mask2former"]), threshold=0.3, target_sizes=[SIZE], return_binary_maps=True
    )

    result = served.segment(photo(), model="m2f-instances")

    assert isinstance(result, InstanceResult)
    theirs = sorted((-one["score"], one["label_id"], index) for index, one in enumerate(expected["segments_info"]))
    assert len(result) == len(theirs) > 3
    for ours, (score, label, index) in zip(sorted(result, key=lambda one: -one.score), theirs, strict=True):
        assert (ours.class_id, ours.score) == (label, pytest.approx(-score, abs=1e-4))
        assert agreement(ours.mask, expected["segmentation"][index] == 1) > 0.998


@pytest.mark.parametrize(
    ("model", "processor"), [("detr", "DetrImageProcessorPil"), ("conditional", "ConditionalDetrImageProcessorPil")]
)
def test_boxes_are_those_of_transformers(
    served: Client, exported: dict[str, Exported], model: str, processor: str
) -> None:
    import transformers

    (expected,) = getattr(transformers, processor)().post_process_object_detection(
        outputs(exported[MODELS[model][0]]), threshold=0.5, target_sizes=[SIZE]
    )
    order = np.argsort(-expected["scores"].numpy(), kind="stable")

    result = served.segment(photo(), model=model)

    assert isinstance(result, DetectionResult)
    assert len(result) == len(order) > 3
    ours = np.argsort(-result.scores, kind="stable")
    limits = np.array([SIZE[1], SIZE[0]] * 2)
    np.testing.assert_allclose(result.boxes[ours], np.clip(expected["boxes"].numpy()[order], 0, limits), atol=0.02)
    assert result.class_ids[ours].tolist() == expected["labels"].numpy()[order].tolist()
