"""The SegmentationRollout resource: the record of one attempt to replace a stable revision. segserve writes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from segserve_operator.api.meta import ApiValue, ObjectMeta, ResourceName, Timestamp
from segserve_operator.api.rollout_policy import RolloutPolicy, Slo

MAX_HANDLED_ANNOTATIONS: Final = 64
RECORD_NAME_MAX_LENGTH: Final = 63
MAX_DECISIONS: Final = 200
MESSAGE_MAX_LENGTH: Final = 1024
RecordName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=RECORD_NAME_MAX_LENGTH)]
RevisionName = Annotated[str, Field(max_length=RECORD_NAME_MAX_LENGTH)]


class RolloutPhase(StrEnum):
    """The phase of a rollout."""

    PENDING = "Pending"
    GOLDEN = "Golden"
    SHADOW = "Shadow"
    PROGRESSING = "Progressing"
    QUARANTINED = "Quarantined"
    BAKING = "Baking"
    SUCCEEDED = "Succeeded"
    ROLLED_BACK = "RolledBack"
    CANCELLED = "Cancelled"
    JUDGED = "Judged"


class RolloutStatus(ApiValue):
    """State of a model's latest rollout; the gateway's weights follow from it."""

    name: str = Field(max_length=63, description="Name of the SegmentationRollout that records it.")
    revision: str = Field(description="Revision that is rolled out.")
    phase: RolloutPhase = Field(description="Phase of the rollout.")
    step: int = Field(default=-1, ge=-1, description="Index of the current step, from 0; -1 before the first.")
    sequence: int = Field(default=0, ge=0, description="Number of decisions that changed something.")
    paused: bool = Field(default=False, description="Whether a person has paused it.")
    quarantines: int = Field(default=0, ge=0, description="Number of quarantines.")
    started_at: Timestamp = Field(description="Time at which the rollout began.")
    since: Timestamp = Field(description="Time at which the phase began.")
    step_since: Timestamp = Field(description="Time at which the step began or was last resumed.")
    resumed_at: Timestamp | None = Field(
        default=None, description="Time at which a person last ended a pause; deadline and maxDuration count from it."
    )
    weight: int = Field(default=0, ge=0, le=100, description="Percent of requests sent to the revision.")
    skipped_gates: tuple[str, ...] = Field(
        default=(),
        max_length=16,
        description="Gates that a person has skipped.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    reason: str | None = Field(default=None, description="Reason as one CamelCase word.")
    message: str | None = Field(default=None, description="Reason as a sentence.")


class RecordMeta(ObjectMeta):
    """The metadata of a record."""

    name: RecordName = Field(description="Name of the record; a DNS label.")


class SegmentationRolloutSpec(ApiValue):
    """Revisions and policy of a rollout. Immutable."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "the spec of a rollout is immutable"}]
        }
    )

    model: ResourceName = Field(description="Name of the SegmentationModel.")
    stable: RevisionName = Field(description="Stable revision when the rollout began.")
    candidate: RevisionName = Field(description="Revision that is to replace it.")
    policy: RolloutPolicy = Field(description="Rollout policy in force.")
    slo: Slo = Field(default=Slo(), description="Service level objective in force.")


class VerdictStatus(ApiValue):
    """Verdict of a gate, with the numbers behind it."""

    gate: str = Field(max_length=63, description="Name of the gate.")
    outcome: Literal["Pass", "Breach", "Undecided"] = Field(
        description="Outcome of the gate: Pass, Breach or Undecided."
    )
    reason: str = Field(max_length=1024, description="Reason as one CamelCase word.")
    message: str = Field(default="", max_length=MESSAGE_MAX_LENGTH, description="Reason as a sentence.")
    progress: float = Field(
        default=0.0, description="Evidence as a fraction of its bound, 0 to 1; 1 is proof of a breach."
    )
    numbers: Mapping[str, str] = Field(
        default={},
        max_length=100,
        description="Numbers behind the verdict, by name, in full precision; inf and nan are possible.",
    )


class DecisionStatus(ApiValue):
    """One decision that changed something."""

    sequence: int = Field(ge=0, description="Number of the decision, from 1.")
    at: Timestamp = Field(description="Time of the decision.")
    at_seconds: float = Field(description="Time of the decision in Unix seconds, in full precision.")
    signal: str = Field(max_length=63, description="Signal that caused it.")
    phase: RolloutPhase = Field(description="Phase from then on.")
    weight: int = Field(ge=0, le=100, description="Percent of requests sent to the candidate from then on.")
    actor: str = Field(max_length=1024, description="Who decided: segserve, or a person's annotation.")
    reason: str = Field(default="", max_length=1024, description="Reason as one CamelCase word.")
    message: str = Field(default="", max_length=MESSAGE_MAX_LENGTH, description="Reason as a sentence.")
    inputs: str | None = Field(
        default=None,
        description="Inputs, result and verdicts of the decision as gzipped JSON in base64; absent from very old ones.",
    )


class SegmentationRolloutStatus(ApiValue):
    """State of the rollout and its packed evidence, which `segserve rollout status` and `replay` read."""

    sequence: int = Field(default=0, ge=0, description="Number of decisions that changed something.")
    phase: RolloutPhase = Field(default=RolloutPhase.PENDING, description="Phase of the rollout.")
    weight: int = Field(default=0, ge=0, le=100, description="Percent of requests sent to the candidate.")
    reason: str | None = Field(default=None, description="Reason of the last decision as one CamelCase word.")
    message: str | None = Field(default=None, description="Reason as a sentence.")
    step: int = Field(default=-1, ge=-1, description="Index of the current step, from 0; -1 before the first.")
    paused: bool = Field(default=False, description="Whether a person has paused it.")
    quarantines: int = Field(default=0, ge=0, description="Number of quarantines.")
    started_at: Timestamp | None = Field(default=None, description="Time at which the rollout began.")
    written_at: Timestamp | None = Field(default=None, description="Time at which this status was written.")
    verdicts: tuple[VerdictStatus, ...] = Field(
        default=(),
        max_length=32,
        description="Current verdicts of the gates.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    decisions: tuple[DecisionStatus, ...] = Field(
        default=(),
        max_length=MAX_DECISIONS,
        description="Latest decisions, oldest first.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    rows: int = Field(default=0, ge=0, description="Number of rows of evidence.")
    chunked_rows: int = Field(default=0, ge=0, description="Number of the oldest rows, which are stored in ConfigMaps.")
    evidence: str | None = Field(default=None, description="The remaining rows as gzipped JSON in base64.")
    state: str | None = Field(
        default=None, description="Exact state of the engine (progress, gates, gateway counters), packed."
    )


class SegmentationRollout(ApiValue):
    """Record of one attempt to replace a stable revision: evidence, verdicts, decisions. Written by segserve."""

    api_version: Literal["segserve.dev/v1alpha1"] = Field(
        default="segserve.dev/v1alpha1", description="Version of the API."
    )
    kind: Literal["SegmentationRollout"] = Field(default="SegmentationRollout", description="Kind of resource.")
    metadata: RecordMeta = Field(description="Name, labels and annotations.")
    spec: SegmentationRolloutSpec = Field(description="Revisions and policy of the rollout. Immutable.")
    status: SegmentationRolloutStatus = Field(default=SegmentationRolloutStatus(), description="State of the rollout.")

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Yield what tells rollouts apart."""
        yield None, self.metadata.name
        yield from (("phase", str(self.status.phase)), ("weight", self.status.weight), ("reason", self.status.reason))
