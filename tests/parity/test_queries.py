"""The stages on queries against transformers' image processors, on the outputs of its own networks.

The networks are small ones with random weights. What their queries say is spread out before both sides see it:
untrained ones hardly differ from each other, and none would be sure enough to be kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fakes.pipelines import pipeline_of
from segserve_builder.families import FAMILIES
from segserve_builder.kernels.rle_reader import decode_bitmap
from segserve_builder.stages.argmax import Argmax
from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.detection_queries import DetectionQueries
from segserve_builder.stages.instance_queries import InstanceQueries
from segserve_builder.stages.panoptic_queries import PanopticQueries
from segserve_builder.stages.semantic_queries import SemanticQueries
from segserve_builder.values import Instances, Panoptic, Queries, ResizeTransform

if TYPE_CHECKING:
    import torch

QUERIES, CLASSES = 14, 5
INPUT = (64, 96)
ROUNDING = 2e-6
SIZES = [(64, 96), (101, 67), (333, 500)]
MASK_FAMILIES = ["mask2former", "maskformer", "detr-panoptic"]
MASK_SIZE = {"mask2former": (384, 384)}
NAMES = {
    "mask2former": ("class_queries_logits", "masks_queries_logits"),
    "maskformer": ("class_queries_logits", "masks_queries_logits"),
    "detr": ("logits", "pred_boxes"),
    "detr-panoptic": ("logits", "pred_boxes", "pred_masks"),
}


def network(family: str) -> Any:
    import transformers as tr

    shape = {"encoder_layers": 1, "decoder_layers": 2, "num_queries": QUERIES, "num_labels": CLASSES}
    heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 8, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    stages = ["stage1", "stage2", "stage3", "stage4"]
    resnet = tr.ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic")
    resnet.out_features = stages
    detr = {"use_timm_backbone": False, "backbone": None, "backbone_config": resnet, "d_model": 32}
    swin = tr.SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=2,
        out_features=stages,
    )  # fmt: skip
    if family == "mask2former":
        sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "dim_feedforward": 16}
        config = tr.Mask2FormerConfig(
            backbone_config=swin, encoder_feedforward_dim=16, num_attention_heads=8, **sizes, **shape
        )
        return tr.Mask2FormerForUniversalSegmentation(config)
    if family == "maskformer":
        decoder = tr.DetrConfig(**detr, **shape, **heads)
        config = tr.MaskFormerConfig(
            backbone_config=swin, fpn_feature_size=32, mask_feature_size=32, decoder_config=decoder, num_labels=CLASSES
        )
        return tr.MaskFormerForInstanceSegmentation(config)
    built = {"detr": tr.DetrForObjectDetection, "detr-panoptic": tr.DetrForSegmentation}[family]
    return built(tr.DetrConfig(**detr, **shape, **heads))


def processor(family: str) -> Any:
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
    from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil
    from transformers.models.maskformer.image_processing_pil_maskformer import MaskFormerImageProcessorPil

    return {
        "mask2former": Mask2FormerImageProcessorPil,
        "maskformer": MaskFormerImageProcessorPil,
        "detr": DetrImageProcessorPil,
        "detr-panoptic": DetrImageProcessorPil,
    }[family]()


def spread(logits: torch.Tensor, by: float) -> torch.Tensor:
    """What a query says more than the others do, with a standard deviation of `by` in each query."""
    apart = logits - logits.mean(dim=1, keepdim=True)
    inner = tuple(range(2, logits.ndim))
    return (apart - apart.mean(dim=inner, keepdim=True)) / apart.std(dim=inner, keepdim=True) * by


class Case:
    """A network's outputs, which transformers and the family read alike."""

    def __init__(self, family: str) -> None:
        import torch

        torch.manual_seed(7)
        model = network(family).eval()
        with torch.no_grad():
            raw = model(torch.randn(1, 3, *INPUT))
        outputs = {name: raw[name] for name in NAMES[family]}
        outputs |= {name: spread(outputs[name], 4) for name in outputs if name.endswith("logits")}
        outputs |= {name: spread(outputs[name], 3) for name in outputs if "masks" in name}
        self.family, self.outputs, self.theirs = family, SimpleNamespace(**outputs), processor(family)

    def queries(self, size: tuple[int, int], things: frozenset[int] = frozenset()) -> Queries:
        classes = [{"id": i, "name": f"class {i}", "thing": i in things} for i in range(CLASSES)]
        pipeline = pipeline_of(self.family, classes)
        arrays = {name: array.numpy() for name, array in vars(self.outputs).items()}
        value = FAMILIES[self.family].read(arrays, ResizeTransform(*size, 0, 0, *INPUT, *INPUT), pipeline)
        assert isinstance(value, Queries)
        return value


@pytest.fixture(scope="module")
def cases() -> Iterator[dict[str, Case]]:
    import torch

    pytest.importorskip("transformers")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {family: Case(family) for family in NAMES}
    torch.set_num_threads(threads)


def tied(case: Case, size: tuple[int, int], threshold: float, mask_threshold: float = 0.5) -> NDArray[np.bool_]:
    """The pixels at which rounding decides which query has them, or whether one has: processors round differently."""
    import torch
    from torch.nn.functional import interpolate

    classes, masks = (vars(case.outputs)[NAMES[case.family][at]].double() for at in (0, -1))
    scores, labels = classes[0].softmax(-1).max(-1)
    if case.family in MASK_SIZE:
        masks = interpolate(masks, MASK_SIZE[case.family], mode="bilinear")
    products = interpolate(masks.sigmoid(), size, mode="bilinear")[0] * scores[:, None, None]
    best, second = products[(labels < CLASSES) & (scores > threshold)].topk(2, dim=0).values
    return (torch.minimum(best - second, (best - mask_threshold).abs()) < ROUNDING).numpy()


def options(family: str) -> dict[str, Any]:
    return {"mask_size": MASK_SIZE.get(family)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", MASK_FAMILIES)
def test_semantic_maps_are_those_of_transformers(cases: dict[str, Case], family: str, size: tuple[int, int]) -> None:
    import torch

    case = cases[family]

    scores = SemanticQueries(**options(family))(case.queries(size), RequestOptions())

    (expected,) = case.theirs.post_process_semantic_segmentation(case.outputs, target_sizes=[size])
    sums = torch.nn.functional.interpolate(torch.from_numpy(scores.values)[None], size, mode="bilinear")
    best, second = sums[0].topk(2, dim=0).values.numpy()
    untied = best - second > ROUNDING
    np.testing.assert_array_equal(Argmax()(scores, RequestOptions()).labels[untied], expected.numpy()[untied])
    assert untied.mean() > 0.99
    assert len(np.unique(expected)) > 2


def panoptic(case: Case, size: tuple[int, int], fuse: set[int], **thresholds: float) -> tuple[Any, list[Any]]:
    (found,) = case.theirs.post_process_panoptic_segmentation(
        case.outputs, target_sizes=[size], label_ids_to_fuse=fuse, **thresholds
    )
    return np.maximum(found["segmentation"].numpy(), 0), found["segments_info"]  # -1 where nothing was found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", MASK_FAMILIES)
@pytest.mark.parametrize("thresholds", [(0.5, 0.5, 0.8), (0.4, 0.3, 0.2), (0.6, 0.6, 0.0)])
def test_panoptic_maps_are_those_of_transformers(
    cases: dict[str, Case], family: str, size: tuple[int, int], thresholds: tuple[float, float, float]
) -> None:
    case = cases[family]
    names = ("threshold", "mask_threshold", "overlap_mask_area_threshold")
    ids, segments = panoptic(case, size, set(), **dict(zip(names, thresholds, strict=True)))

    ours = PanopticQueries(
        threshold=thresholds[0], mask_threshold=thresholds[1], overlap_threshold=thresholds[2], **options(family)
    )(case.queries(size), RequestOptions())

    untied = ~tied(case, size, *thresholds[:2])
    np.testing.assert_array_equal(ours.ids[untied], ids[untied])
    assert untied.mean() > 0.99
    assert [(s.id, s.class_id) for s in ours.segments] == [(s["id"], s["label_id"]) for s in segments]
    np.testing.assert_allclose([s.score for s in ours.segments], [s["score"] for s in segments], atol=ROUNDING)


def test_most_of_what_is_compared_has_segments(cases: dict[str, Case]) -> None:
    numbers = [
        len(panoptic(cases[family], size, set(), threshold=0.4, overlap_mask_area_threshold=0.2)[1])
        for family in MASK_FAMILIES
        for size in SIZES
    ]

    assert min(numbers) >= 3


@pytest.mark.parametrize("family", MASK_FAMILIES)
def test_fused_classes_are_one_segment_each(cases: dict[str, Case], family: str) -> None:
    """transformers gives a new segment the id of another one after it has fused two; ours stay different."""
    case, size = cases[family], SIZES[1]
    apart, segments = panoptic(case, size, set(), threshold=0.3, overlap_mask_area_threshold=0.1)
    of = {s["id"]: s["label_id"] for s in segments}
    fused, every = set(range(CLASSES)), frozenset[int]()
    classes = np.vectorize(lambda i: of.get(i, -1))(apart)

    ours = PanopticQueries(threshold=0.3, overlap_threshold=0.1, fuse=tuple(fused), **options(family))(
        case.queries(size, every), RequestOptions()
    )

    assert len(ours.segments) == len({s.class_id for s in ours.segments}) == len(set(of.values())) < len(of)
    np.testing.assert_array_equal(class_map(ours), classes)
    best = {c: max(s["score"] for s in segments if s["label_id"] == c) for c in of.values()}
    assert {s.class_id: s.score for s in ours.segments} == pytest.approx(best, abs=2e-6)


def class_map(found: Panoptic) -> NDArray[np.int64]:
    table = np.full(len(found.segments) + 1, -1)
    for segment in found.segments:
        table[segment.id] = segment.class_id
    return table[found.ids]


def test_what_is_no_thing_is_fused_by_default(cases: dict[str, Case]) -> None:
    case, things = cases["detr-panoptic"], frozenset({0, 1})
    stuff = tuple(set(range(CLASSES)) - things)

    plain = PanopticQueries(threshold=0.3, overlap_threshold=0.1)(case.queries(SIZES[0], things), RequestOptions())
    told = PanopticQueries(threshold=0.3, overlap_threshold=0.1, fuse=stuff)(
        case.queries(SIZES[0], things), RequestOptions()
    )

    np.testing.assert_array_equal(plain.ids, told.ids)
    assert {s.class_id for s in plain.segments if s.is_thing} <= things


def assert_same(found: Instances, info: list[Any], masks: Any, at: Any = ...) -> None:
    """In any order: transformers keeps none. `at` are the pixels that are compared."""
    ours = [decode_bitmap(counts, found.height, found.width)[at].tobytes() for counts in found.masks]
    theirs = [np.asarray(mask, np.uint8)[at].tobytes() for mask in masks]
    own = sorted(zip(found.classes.tolist(), ours, found.scores.tolist(), strict=True))
    other = sorted((s["label_id"], mask, s["score"]) for s, mask in zip(info, theirs, strict=True))
    assert [row[:2] for row in own] == [row[:2] for row in other]
    np.testing.assert_allclose([row[2] for row in own], [row[2] for row in other], atol=ROUNDING)
    assert len(info) > 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", ["mask2former", "maskformer"])
@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.0])
def test_instances_are_those_of_transformers(
    cases: dict[str, Case], family: str, size: tuple[int, int], threshold: float
) -> None:
    case = cases[family]

    ours = InstanceQueries(threshold=threshold, **options(family))(case.queries(size), RequestOptions())

    (found,) = case.theirs.post_process_instance_segmentation(
        case.outputs, target_sizes=[size], threshold=threshold, return_binary_maps=True
    )
    info = found["segments_info"]
    assert_same(ours, info, found["segmentation"].numpy())
    assert (np.diff(ours.scores) <= 0).all()


@pytest.mark.parametrize("size", SIZES)
def test_exclusive_instances_are_those_of_detr(cases: dict[str, Case], size: tuple[int, int]) -> None:
    case = cases["detr-panoptic"]

    ours = InstanceQueries(threshold=0.4, exclusive=True, overlap_threshold=0.2)(case.queries(size), RequestOptions())

    (found,) = case.theirs.post_process_instance_segmentation(
        case.outputs, target_sizes=[size], threshold=0.4, overlap_mask_area_threshold=0.2
    )
    info, ids = found["segments_info"], found["segmentation"].numpy()
    assert_same(ours, info, [ids == s["id"] for s in info], ~tied(case, size, 0.4))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("thresholds", [(0.5, 0.5, 0.3), (0.3, 0.7, 0.2)])
def test_panoptic_maps_of_eomt_are_those_of_transformers(
    size: tuple[int, int], thresholds: tuple[float, float, float]
) -> None:
    """Its images are padded below and on the right; there the library lets padding into the last half of a cell."""
    import torch
    from transformers.models.eomt.image_processing_pil_eomt import EomtImageProcessorPil

    side, cells = 96, 24
    edge = {"shortest_edge": side, "longest_edge": side}
    inner = tuple(round(length * side / max(size)) for length in size)
    drawn = torch.Generator().manual_seed(3)
    coarse = torch.randn(1, QUERIES, 6, 6, generator=drawn) * 6
    masks = torch.nn.functional.interpolate(coarse, (cells, cells), mode="bicubic")
    classes = torch.randn(1, QUERIES, CLASSES + 1, generator=drawn) * 3
    outputs = SimpleNamespace(masks_queries_logits=masks, class_queries_logits=classes, patch_offsets=None)
    names = ("threshold", "mask_threshold", "overlap_mask_area_threshold")
    (expected,) = EomtImageProcessorPil(size=edge).post_process_panoptic_segmentation(
        outputs, target_sizes=[size], size=edge, **dict(zip(names, thresholds, strict=True))
    )

    value = FAMILIES["eomt"].read(
        {"classes": classes.numpy(), "masks": masks.numpy()},
        ResizeTransform(*size, 0, 0, *inner, side, side),
        pipeline_of("eomt", CLASSES),
    )
    assert isinstance(value, Queries)
    stage = PanopticQueries(
        convention="eomt", threshold=thresholds[0], mask_threshold=thresholds[1], overlap_threshold=thresholds[2]
    )
    found = stage(value, RequestOptions())

    info = expected["segments_info"]
    assert [(s.id, s.class_id) for s in found.segments] == [(s["id"] + 1, s["label_id"]) for s in info]
    np.testing.assert_allclose([s.score for s in found.segments], [s["score"] for s in info], atol=ROUNDING)
    assert (found.ids != expected["segmentation"].numpy() + 1).mean() < 0.01
    assert len(info) >= 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", ["detr", "detr-panoptic"])
@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.0])
def test_detections_are_those_of_transformers(
    cases: dict[str, Case], family: str, size: tuple[int, int], threshold: float
) -> None:
    case = cases[family]

    ours = DetectionQueries()(case.queries(size), RequestOptions(score_threshold=threshold))

    (found,) = case.theirs.post_process_object_detection(case.outputs, target_sizes=[size], threshold=threshold)
    order = np.argsort(-found["scores"].numpy(), kind="stable")
    np.testing.assert_array_equal(ours.classes, found["labels"].numpy()[order])
    np.testing.assert_allclose(ours.scores, found["scores"].numpy()[order], rtol=1e-6)
    np.testing.assert_allclose(ours.boxes, found["boxes"].numpy()[order], rtol=1e-5, atol=1e-5)
    assert len(order) > 2
