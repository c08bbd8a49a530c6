"""The state of a rollout in its model's status."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import Field

from segserve_operator.api.meta import ApiValue, Timestamp

MAX_HANDLED_ANNOTATIONS: Final = 64


class RolloutPhase(StrEnum):
    """The phase of a rollout."""

    PENDING = "Pending"
    GOLDEN = "Golden"
    PROGRESSING = "Progressing"
    QUARANTINED = "Quarantined"
    BAKING = "Baking"
    SUCCEEDED = "Succeeded"
    ROLLED_BACK = "RolledBack"
    CANCELLED = "Cancelled"


class RolloutStatus(ApiValue):
    """State of a model's latest rollout; the gateway's weights follow from it."""

    name: str = Field(max_length=63, description="Name of the SegmentationRollout that records it.")
    revision: str = Field(description="Revision that is rolled out.")
    phase: RolloutPhase = Field(description="Phase of the rollout.")
    step: int = Field(-1, ge=-1, description="Index of the current step, from 0; -1 before the first.")
    sequence: int = Field(0, ge=0, description="Number of decisions that changed something.")
    paused: bool = Field(False, description="Whether a person has paused it.")
    quarantines: int = Field(0, ge=0, description="Number of quarantines.")
    started_at: Timestamp = Field(description="Time at which the rollout began.")
    since: Timestamp = Field(description="Time at which the phase began.")
    step_since: Timestamp = Field(description="Time at which the step began or was last resumed.")
    resumed_at: Timestamp | None = Field(
        None, description="Time at which a person last ended a pause; deadline and maxDuration count from it."
    )
    weight: int = Field(0, ge=0, le=100, description="Percent of requests sent to the revision.")
    skipped_gates: tuple[str, ...] = Field(
        (),
        max_length=16,
        description="Gates that a person has skipped.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    reason: str | None = Field(None, description="Reason as one CamelCase word.")
    message: str | None = Field(None, description="Reason as a sentence.")
