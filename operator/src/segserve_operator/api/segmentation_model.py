"""The SegmentationModel resource: what a user asks for, and what has become of it."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema, model_validator

from segserve_builder.agent.protocol import AssignedModel
from segserve_builder.families import FAMILIES
from segserve_builder.spec.model_spec import Artifact, Golden, Input, ModelClass, Output, Runtime
from segserve_builder.steps.pipeline import InferenceStep, Pipeline, PostprocessStep, PreprocessStep, SecondNetwork
from segserve_operator.api.checks import (
    check_class_ids,
    check_distinct,
    check_family,
    check_stages,
    in_order_of_id,
    located,
)
from segserve_operator.api.meta import (
    ApiValue,
    Condition,
    Duration,
    ObjectMeta,
    ResourceName,
    Timestamp,
    format_duration,
)
from segserve_operator.api.rollout_policy import GoldenQualityGate, RolloutPolicy, Slo
from segserve_operator.api.rollout_status import MAX_HANDLED_ANNOTATIONS, RolloutStatus

if TYPE_CHECKING:
    from pydantic.config import JsonDict

Classes = Annotated[tuple[ModelClass, ...], AfterValidator(in_order_of_id)]
FamilyName = Annotated[str, AfterValidator(check_family), WithJsonSchema({"type": "string", "enum": sorted(FAMILIES)})]

DEFAULT_KEEP_PREVIOUS: Final = timedelta(hours=1)


def _class_ids_rule() -> JsonDict:
    own = ", ".join(f"'{name}'" for name, family in FAMILIES.items() if not family.numbers_classes)
    return {
        "rule": f"self.family in [{own}] || self.classes.all(c, c.id < self.classes.size())",
        "message": "ids of this family's classes must count up from 0 without gaps",
    }


class InstancesSpec(ApiValue):
    """A second network, which finds instances in the input that the first one gets.

    Its classes are those of the model that are things: where its family counts channels, its channel i is the i-th.
    """

    artifact: Artifact = Field(description="The second network's file.")
    family: FamilyName = Field(description="What its raw outputs mean.")
    postprocess: tuple[PostprocessStep, ...] = Field(
        (),
        max_length=32,
        description="From its output to instances: stages in order; the family's own where none is listed.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    runtime: Runtime | None = Field(None, description="How Triton runs it; by default as the first network.")


class SegmentationModelSpec(ApiValue):
    """What is to be served."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": [_class_ids_rule()]})

    artifact: Artifact = Field(description="The network's file.")
    family: FamilyName = Field(description="What the network's raw outputs mean.")
    input: Input = Field(Input(), description="What images are decoded to, and what callers send as PIXELS.")
    classes: Classes = Field(
        min_length=1,
        max_length=2000,
        description="What the network tells apart; ids are its labels, or count up from 0 as its output's channels do.",
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["id"],
            # No rule for names: comparing 500 with each other costs more than an API server allows.
        },
    )
    preprocess: tuple[PreprocessStep, ...] = Field(
        (),
        max_length=32,
        description="From the encoded image to the network's input: stages in order; decode is first, listed or not.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    inference: tuple[InferenceStep, ...] = Field(
        (),
        max_length=8,
        description="How the network is run over one image: once unless tiles or augmentation are listed.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    postprocess: tuple[PostprocessStep, ...] = Field(
        (),
        max_length=32,
        description="From the network's output to the answer: stages in order; the family's own where none is listed.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    instances: InstancesSpec | None = Field(
        None, description="A second network, whose instances the stage panopticFusion lays over the first one's labels."
    )
    output: Output = Field(Output(), description="How answers look where a request does not say.")
    runtime: Runtime = Field(Runtime(), description="How Triton runs the network.")
    pool: ResourceName = Field(
        "default",
        description="The TritonPool that serves the model; it cannot be changed.",
        json_schema_extra={
            "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "the pool cannot be changed"}]
        },
    )
    golden: Golden | None = Field(
        None, description="Images with known answers; a revision that fails them gets no traffic."
    )
    expose: Annotated[tuple[Literal["network"], ...], AfterValidator(check_distinct)] = Field(
        (),
        description="What is public beside the model: network is the bare network, as <name>.network.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    keep_previous: Duration = Field(
        DEFAULT_KEEP_PREVIOUS,
        description="How long a replaced revision stays loaded, so that going back is immediate.",
        json_schema_extra={"default": format_duration(DEFAULT_KEEP_PREVIOUS)},
    )
    allow_class_changes: bool = Field(
        False,
        description="A new revision may drop or renumber classes of the stable one; else it is refused.",
    )
    slo: Slo | None = Field(None, description="What the model promises its callers.")
    rollout: RolloutPolicy | None = Field(
        None, description="How a new revision replaces the stable one; at once, where it is proved, without it."
    )

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        pipeline = self.pipeline("any")
        check_class_ids(pipeline)
        check_stages(pipeline)
        return self

    @model_validator(mode="after")
    def _floors_have_images(self) -> Self:
        gates = self.rollout.gates if self.rollout is not None else ()
        floors = [name for gate in gates if isinstance(gate, GoldenQualityGate) for name in gate.floors]
        if floors and self.golden is None:
            raise located(
                f"goldenQuality names {', '.join(floors)}: that needs spec.golden, got none", "rollout", "gates"
            )
        return self

    def pipeline(self, model_name: str) -> Pipeline:
        """Return all of the spec that can change an answer of the model `model_name`."""
        return Pipeline(
            model=model_name,
            artifact_sha256=self.artifact.sha256,
            family=self.family,
            input=self.input,
            classes=self.classes,
            preprocess=self.preprocess,
            inference=self.inference,
            postprocess=self.postprocess,
            output=self.output,
            runtime=self.runtime,
            instances=self._second_network(),
        )

    def assigned(self, model_name: str) -> AssignedModel:
        """Return what an agent is told to hold under the public name `model_name`."""
        return AssignedModel(
            pipeline=self.pipeline(model_name),
            artifact=self.artifact,
            golden=self.golden,
            expose=self.expose,
            second_artifact=None if self.instances is None else self.instances.artifact,
        )

    def _second_network(self) -> SecondNetwork | None:
        if self.instances is None:
            return None
        return SecondNetwork(
            artifact_sha256=self.instances.artifact.sha256,
            family=self.instances.family,
            postprocess=self.instances.postprocess,
            runtime=self.instances.runtime,
        )


class ConditionType(StrEnum):
    """The conditions of a SegmentationModel."""

    ARTIFACT_VERIFIED = "ArtifactVerified"
    REVISION_LOADED = "RevisionLoaded"
    GOLDEN_PASSED = "GoldenPassed"
    TRAFFIC_READY = "TrafficReady"
    READY = "Ready"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"


class Role(StrEnum):
    """What a revision is to its model."""

    STABLE = "stable"
    CANDIDATE = "candidate"
    PREVIOUS = "previous"


class CandidateState(StrEnum):
    """Whether a candidate may still become stable."""

    PENDING = "Pending"
    FAILED = "Failed"


class RoleStatus(ApiValue):
    """A revision in a role, and the group that serves it."""

    revision: str = Field(description="The revision's name.")
    group: str = Field(description="The group of servers that holds it.")
    since: Timestamp = Field(description="When it got the role and the group.")


class CandidateStatus(ApiValue):
    """The revision that is to replace the stable one."""

    revision: str = Field(description="The revision's name.")
    group: str | None = Field(None, description="The group of servers that proves it; one that failed has none.")
    since: Timestamp = Field(description="When it got the role and the group.")
    state: CandidateState = Field(description="Pending until it gets traffic; Failed until the spec changes.")
    reason: str | None = Field(None, description="Why, one CamelCase word.")
    message: str | None = Field(None, description="Why, for people.")


class Roles(ApiValue):
    """The revisions in a role; a role that nothing has is absent."""

    stable: RoleStatus | None = Field(None, description="The revision that serves.")
    candidate: CandidateStatus | None = Field(None, description="The revision that is to replace it.")
    previous: RoleStatus | None = Field(
        None, description="The revision that served before, kept for spec.keepPrevious."
    )


class RevisionStatus(ApiValue):
    """One of the model's latest revisions."""

    revision: str = Field(description="The revision's name.")
    role: Role | None = Field(None, description="Its role now, if it has one.")
    created_at: Timestamp = Field(description="When it was first seen.")


class SegmentationModelStatus(ApiValue):
    """What has become of the spec."""

    observed_generation: int | None = Field(None, ge=0, description="The generation that the status speaks of.")
    conditions: tuple[Condition, ...] = Field(
        (),
        max_length=32,
        description=f"One of each type: {', '.join(ConditionType)}.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    roles: Roles = Field(Roles(), description="The revisions in a role.")
    revisions: tuple[RevisionStatus, ...] = Field(
        (),
        max_length=32,
        description="The latest revisions, newest first.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["revision"]},
    )
    url: str | None = Field(None, description="Where the model answers.")
    weight: int | None = Field(
        None,
        ge=0,
        le=100,
        description="Percent of requests that the candidate gets; 100 for the stable one without it.",
    )
    slo: str | None = Field(None, max_length=40, description="Whether the SLO is met: Met, Breached or Unknown.")
    rollout: RolloutStatus | None = Field(None, description="Where the latest rollout stands.")
    handled_annotations: tuple[Annotated[str, Field(max_length=512)], ...] = Field(
        (),
        max_length=MAX_HANDLED_ANNOTATIONS,
        description="Requests (annotations) that were answered: the same text does nothing again.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )

    def condition(self, kind: ConditionType) -> Condition | None:
        """Return the condition of this type, if it was ever observed."""
        return next((condition for condition in self.conditions if condition.type == kind), None)


class SegmentationModel(ApiValue):
    """A segmentation network with its pre- and post-processing, served under the resource's name."""

    api_version: Literal["segserve.dev/v1alpha1"] = Field("segserve.dev/v1alpha1", description="The API's version.")
    kind: Literal["SegmentationModel"] = Field("SegmentationModel", description="The kind of resource.")
    metadata: ObjectMeta = Field(description="Name, labels, annotations.")
    spec: SegmentationModelSpec = Field(description="What is to be served.")
    status: SegmentationModelStatus = Field(SegmentationModelStatus(), description="What has become of it.")

    @property
    def pipeline(self) -> Pipeline:
        """All of the resource that can change an answer."""
        return self.spec.pipeline(self.metadata.name)

    @property
    def assigned(self) -> AssignedModel:
        """What an agent is told to hold."""
        return self.spec.assigned(self.metadata.name)
