"""Where a rollout stands, as its model's status and its own tell it."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import Field

from segserve_operator.api.meta import ApiValue, Timestamp

MAX_HANDLED_ANNOTATIONS: Final = 64


class RolloutPhase(StrEnum):
    """What a rollout is at."""

    PENDING = "Pending"
    GOLDEN = "Golden"
    PROGRESSING = "Progressing"
    QUARANTINED = "Quarantined"
    BAKING = "Baking"
    SUCCEEDED = "Succeeded"
    ROLLED_BACK = "RolledBack"
    CANCELLED = "Cancelled"


class RolloutStatus(ApiValue):
    """Where a model's latest rollout stands; traffic follows from it."""

    name: str = Field(max_length=63, description="The SegmentationRollout that is its record.")
    revision: str = Field(description="The revision that it is about.")
    phase: RolloutPhase = Field(description="What it is at.")
    step: int = Field(-1, ge=-1, description="The number of its step, from 0; -1 before the first.")
    sequence: int = Field(0, ge=0, description="How many decisions have changed something.")
    paused: bool = Field(False, description="Whether a person has stopped it for now.")
    quarantines: int = Field(0, ge=0, description="How often it was quarantined.")
    started_at: Timestamp = Field(description="When it began.")
    since: Timestamp = Field(description="When its phase began.")
    step_since: Timestamp = Field(description="When its step began, or it was last let on.")
    resumed_at: Timestamp | None = Field(
        None, description="When a person last ended a pause: deadline and maximum count from then."
    )
    weight: int = Field(0, ge=0, le=100, description="Percent of requests that the revision gets.")
    skipped_gates: tuple[str, ...] = Field(
        (),
        max_length=16,
        description="Gates that a person has put aside.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    reason: str | None = Field(None, description="Why, one CamelCase word.")
    message: str | None = Field(None, description="Why, for people.")
