"""The SegmentationRollout resource: the record of one attempt to replace a stable revision. segserve writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from segserve_operator.api.meta import ApiValue, ObjectMeta, ResourceName, Timestamp
from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.api.rollout_status import RolloutPhase

RECORD_NAME_MAX_LENGTH: Final = 63
MAX_DECISIONS: Final = 200
MESSAGE_MAX_LENGTH: Final = 1024
RecordName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=RECORD_NAME_MAX_LENGTH)]
RevisionName = Annotated[str, Field(max_length=RECORD_NAME_MAX_LENGTH)]


class RecordMeta(ObjectMeta):
    """The metadata of a record."""

    name: RecordName = Field(description="A DNS label.")


class SegmentationRolloutSpec(ApiValue):
    """What is decided, and by which policy; it never changes."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {"rule": "self == oldSelf", "message": "what a rollout is about cannot be changed"}
            ]
        }
    )

    model: ResourceName = Field(description="The SegmentationModel.")
    stable: RevisionName = Field(description="The revision that served when it began.")
    candidate: RevisionName = Field(description="The revision that was to replace it.")
    policy: RolloutPolicy = Field(description="How it was decided.")
    slo: Slo = Field(Slo(), description="What the model promised its callers.")


class VerdictStatus(ApiValue):
    """What a gate says, with the numbers that made it."""

    gate: str = Field(max_length=63, description="The gate's name.")
    outcome: Literal["Pass", "Breach", "Undecided"] = Field(description="Pass, Breach or Undecided.")
    reason: str = Field(max_length=1024, description="Why, one CamelCase word.")
    message: str = Field("", max_length=MESSAGE_MAX_LENGTH, description="Why, for people.")
    progress: float = Field(0.0, description="The evidence's share of its bound: 1 is proof.")
    numbers: Mapping[str, str] = Field(
        {}, max_length=100, description="The numbers by name, in full precision; inf and nan are among them."
    )


class DecisionStatus(ApiValue):
    """One decision that changed something."""

    sequence: int = Field(ge=0, description="Its number.")
    at: Timestamp = Field(description="When.")
    at_seconds: float = Field(description="When, in Unix seconds, exactly.")
    signal: str = Field(max_length=63, description="What asked for it.")
    phase: RolloutPhase = Field(description="What the rollout was at from then on.")
    weight: int = Field(ge=0, le=100, description="Percent of requests that the candidate got from then on.")
    actor: str = Field(max_length=1024, description="Who: the engine, or a person's annotation.")
    reason: str = Field("", max_length=1024, description="Why, one CamelCase word.")
    message: str = Field("", max_length=MESSAGE_MAX_LENGTH, description="Why, for people.")
    saw: str | None = Field(
        None,
        description="All that it was made from and came to, with the gates' verdicts: base64 of gzip of JSON; very old "
        "ones may lack it.",
    )


class SegmentationRolloutStatus(ApiValue):
    """What has become of it. The evidence is packed: `segserve rollout status` and `replay` read it."""

    sequence: int = Field(0, ge=0, description="How many decisions have changed something.")
    phase: RolloutPhase = Field(RolloutPhase.PENDING, description="What it is at.")
    weight: int = Field(0, ge=0, le=100, description="Percent of requests that the candidate gets.")
    reason: str | None = Field(None, description="Why, one CamelCase word: the last decision's.")
    message: str | None = Field(None, description="Why, for people.")
    step: int = Field(-1, ge=-1, description="The number of its step, from 0; -1 before the first.")
    paused: bool = Field(False, description="Whether a person has stopped it for now.")
    quarantines: int = Field(0, ge=0, description="How often it was quarantined.")
    started_at: Timestamp | None = Field(None, description="When it began.")
    written_at: Timestamp | None = Field(None, description="When this was written.")
    verdicts: tuple[VerdictStatus, ...] = Field(
        (),
        max_length=32,
        description="What the gates say now.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    decisions: tuple[DecisionStatus, ...] = Field(
        (),
        max_length=MAX_DECISIONS,
        description="The latest decisions, oldest first.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    rows: int = Field(0, ge=0, description="How many rows of evidence there are.")
    chunked_rows: int = Field(0, ge=0, description="How many of them, the oldest, are kept apart.")
    evidence: str | None = Field(None, description="The other rows: base64 of gzip of JSON.")
    state: str | None = Field(
        None, description="What the engine goes on from, exactly: its progress, gates and the gateways' counts; packed."
    )


class SegmentationRollout(ApiValue):
    """The record of one attempt to replace a stable revision: evidence, verdicts, decisions. segserve writes it."""

    api_version: Literal["segserve.dev/v1alpha1"] = Field("segserve.dev/v1alpha1", description="The API's version.")
    kind: Literal["SegmentationRollout"] = Field("SegmentationRollout", description="The kind of resource.")
    metadata: RecordMeta = Field(description="Name, labels, annotations.")
    spec: SegmentationRolloutSpec = Field(description="What is decided, and by which policy; it never changes.")
    status: SegmentationRolloutStatus = Field(SegmentationRolloutStatus(), description="What has become of it.")
