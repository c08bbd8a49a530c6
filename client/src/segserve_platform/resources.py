"""Types of the resources that `client.models`, `client.pools` and `client.rollouts` accept and return."""

from __future__ import annotations

from segserve_operator.api.meta import Condition, ObjectMeta
from segserve_operator.api.segmentation_model import (
    ConditionType,
    SegmentationModel,
    SegmentationModelSpec,
    SegmentationModelStatus,
)
from segserve_operator.api.segmentation_rollout import RolloutPhase, RolloutStatus, SegmentationRollout
from segserve_operator.api.triton_pool import TritonPool, TritonPoolSpec

__all__ = [
    "Condition",
    "ConditionType",
    "ObjectMeta",
    "RolloutPhase",
    "RolloutStatus",
    "SegmentationModel",
    "SegmentationModelSpec",
    "SegmentationModelStatus",
    "SegmentationRollout",
    "TritonPool",
    "TritonPoolSpec",
]
