"""Mask queries to panoptic maps, label maps and instances, compared with transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.stages.case import Case, Peer
from segserve_builder.kernels.rle_reader import decode_bitmap
from segserve_builder.stages.argmax import Argmax
from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.instance_queries import InstanceQueries
from segserve_builder.stages.panoptic_queries import PanopticQueries
from segserve_builder.stages.semantic_queries import SemanticQueries
from segserve_builder.values import Queries, ResizeTransform

QUERIES, SURE, CLASSES, SIDE, SIZE = 100, 30, 133, 160, 1024
NO_REQUEST = RequestOptions()


def cells(rng: np.random.Generator) -> NDArray[np.float32]:
    """Return mask logits (Q, h, w) of queries that divide the image among them, with soft and rough edges."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    centres = rng.uniform(0, SIDE, (SURE, 2))
    away = np.hypot(y - centres[:, :1, None], x - centres[:, 1:, None])
    nearest = np.sort(away, axis=0)
    margin = np.where(away == nearest[0], nearest[1], nearest[0]) - away
    logits = np.resize((0.8 * margin).clip(-9, 9), (QUERIES, SIDE, SIDE))
    return np.asarray(logits + rng.normal(0, 0.3, logits.shape), np.float32)


def class_logits(rng: np.random.Generator) -> NDArray[np.float32]:
    """Return class logits (Q, C + 1): the first `SURE` queries are sure of a class, the others of none."""
    logits = rng.normal(size=(QUERIES, CLASSES + 1)).astype(np.float32)
    logits[np.arange(SURE), rng.integers(0, CLASSES, SURE)] += 9
    logits[SURE:, -1] += 9
    return logits


def transformers(family: str, logits: NDArray[np.float32], masks: NDArray[np.float32]) -> tuple[Any, Any]:
    """Return transformers' image processor, and network outputs as it expects them."""
    from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil
    from transformers.models.maskformer.image_processing_pil_maskformer import MaskFormerImageProcessorPil

    processors = {"Mask2Former": Mask2FormerImageProcessorPil, "MaskFormer": MaskFormerImageProcessorPil}
    outputs = SimpleNamespace(
        class_queries_logits=torch.from_numpy(logits)[None], masks_queries_logits=torch.from_numpy(masks)[None]
    )
    return processors[family](), outputs


def panoptic(family: str, name: str, value: Queries, *, worst: bool = False) -> Case:
    """Return the case of one panoptic map, without fusing, after which the ids of transformers are not unique."""
    assert value.masks is not None
    stage = PanopticQueries(mask_size=(384, 384) if family == "Mask2Former" else None, fuse=())
    processor, outputs = transformers(family, value.logits, value.masks)

    def theirs() -> Any:
        return processor.post_process_panoptic_segmentation(
            outputs, target_sizes=[(SIZE, SIZE)], label_ids_to_fuse=set()
        )[0]

    def agrees() -> str:
        ours, reference = stage(value, NO_REQUEST), theirs()
        different = np.count_nonzero(ours.ids != np.maximum(reference["segmentation"].numpy(), 0))
        assert different <= ours.ids.size * 1e-6, different
        assert [s.class_id for s in ours.segments] == [s["label_id"] for s in reference["segments_info"]]
        return f"{different} px differ, {len(ours.segments)} segments"

    return case(f"panopticQueries, {family}, {name}", lambda: stage(value, NO_REQUEST), theirs, agrees, worst=worst)


def semantic(value: Queries) -> Case:
    assert value.masks is not None
    processor, outputs = transformers("MaskFormer", value.logits, value.masks)
    stage, argmax = SemanticQueries(), Argmax()

    def ours() -> Any:
        return argmax(stage(value, NO_REQUEST), NO_REQUEST).labels

    def theirs() -> Any:
        return processor.post_process_semantic_segmentation(outputs, target_sizes=[(SIZE, SIZE)])[0].numpy()

    def agrees() -> str:
        different = np.count_nonzero(ours() != theirs())
        assert different <= SIZE * SIZE * 1e-5, different
        return f"{different} px differ"

    return case(f"semanticQueries + argmax, MaskFormer, {CLASSES} classes", ours, theirs, agrees)


def instances(value: Queries) -> Case:
    assert value.masks is not None
    processor, outputs = transformers("Mask2Former", value.logits, value.masks)
    stage = InstanceQueries(mask_size=(384, 384))

    def theirs() -> Any:
        return processor.post_process_instance_segmentation(
            outputs, target_sizes=[(SIZE, SIZE)], return_binary_maps=True
        )[0]

    def agrees() -> str:
        ours, reference = stage(value, NO_REQUEST), theirs()
        order = np.argsort([-s["score"] for s in reference["segments_info"]], kind="stable")
        expected = reference["segmentation"].numpy()[order].astype(np.uint8)
        same = sum(
            np.array_equal(decode_bitmap(counts, SIZE, SIZE), mask)
            for counts, mask in zip(ours.masks, expected, strict=True)
        )
        assert same == len(expected), same
        return f"{same}/{len(expected)} masks identical"

    return case("instanceQueries to RLE, Mask2Former", lambda: stage(value, NO_REQUEST), theirs, agrees)


def case(
    name: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    agrees: Callable[[], str],
    *,
    worst: bool = False,
) -> Case:
    scene = f"{QUERIES} queries, {SURE} kept, {SIDE}x{SIDE} to {SIZE}x{SIZE}"
    return Case(f"{name}; {scene}", ours, (Peer("transformers", version("transformers"), theirs, agrees),), worst)


def cases() -> Iterator[Case]:
    """Yield the cases; noise has no flat regions to skip."""
    rng = np.random.default_rng(0)
    transform = ResizeTransform(SIZE, SIZE, 0, 0, 4 * SIDE, 4 * SIDE, 4 * SIDE, 4 * SIDE)
    logits, masks = class_logits(rng), cells(rng)
    value = Queries(logits, masks, None, frozenset(), transform)
    noise = Queries(logits, rng.normal(size=masks.shape).astype(np.float32), None, frozenset(), transform)
    yield panoptic("MaskFormer", "image", value)
    yield panoptic("Mask2Former", "image", value)
    yield panoptic("MaskFormer", "noise", noise, worst=True)
    yield semantic(value)
    yield instances(value)
