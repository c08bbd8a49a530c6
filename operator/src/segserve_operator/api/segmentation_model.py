"""The SegmentationModel resource: the model to serve and its observed state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.config import JsonDict

from segserve_builder.agent.protocol import AssignedModel
from segserve_builder.capture.rule import SINK_SCHEMES
from segserve_builder.families import FAMILIES
from segserve_builder.spec.model_spec import (
    Artifact,
    CascadeScore,
    Golden,
    Input,
    ModelClass,
    ModelMetrics,
    OutOfDistributionPolicy,
    Output,
    Runtime,
    SliceLabel,
)
from segserve_builder.steps.pipeline import (
    Cascade,
    DecoderNetwork,
    InferenceStep,
    LightNetwork,
    Pipeline,
    PostprocessStep,
    PreprocessStep,
    SecondNetwork,
)
from segserve_operator.api.access import AccessRules
from segserve_operator.api.checks import (
    check_class_ids,
    check_distinct,
    check_family,
    check_own_stages,
    check_shared,
    check_stages,
    in_order_of_id,
    located,
    unknown_name,
)
from segserve_operator.api.drift import Drift
from segserve_operator.api.meta import (
    UNSEEN,
    ApiValue,
    Condition,
    Duration,
    ObjectMeta,
    Problem,
    ResourceName,
    SpecError,
    Timestamp,
    format_duration,
)
from segserve_operator.api.rollout_policy import GoldenQualityGate, RolloutPolicy, Slo, SomeTime
from segserve_operator.api.segmentation_rollout import MAX_HANDLED_ANNOTATIONS, RolloutPhase, RolloutStatus

_FIELDS = ("requestsPerSecond", "megabytesPerSecond")
_MESSAGE = "perCaller must not allow more than total"

Classes = Annotated[tuple[ModelClass, ...], AfterValidator(in_order_of_id)]
PreprocessSteps = Annotated[
    tuple[PreprocessStep, ...],
    Field(
        max_length=32,
        description="Stages from the encoded image to the network's input, in order. decode is always first.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    ),
]
PostprocessSteps = Annotated[
    tuple[PostprocessStep, ...],
    Field(
        max_length=32,
        description="Stages from the network's output to the answer, in order. Default: the family's own.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    ),
]
FamilyName = Annotated[str, AfterValidator(check_family), WithJsonSchema({"type": "string", "enum": sorted(FAMILIES)})]
NETWORKS: Final = "networks"
"""Key of the validation context: the specs of the models that a spec may name, by name."""
DEFAULT_KEEP_PREVIOUS: Final = timedelta(hours=1)
DEFAULT_PROGRESS_DEADLINE: Final = timedelta(minutes=10)


class Redact(ApiValue):
    """Pixels that are made unrecognisable in a sample's image before its first byte is written."""

    classes: Annotated[tuple[str, ...], AfterValidator(check_distinct)] = Field(
        min_length=1, max_length=100, description="Names of the classes whose pixels are redacted."
    )
    model: ResourceName | None = Field(
        default=None,
        description="Model of the same pool whose answer locates them. Without its answer nothing is kept. Default: "
        "the model itself.",
    )
    method: Literal["fill", "blur"] = Field(
        default="fill", description="fill makes the pixels black; blur leaves their rough colours."
    )


class Capture(ApiValue):
    """Samples of requests: image, answer and a manifest row, written to a store beside callers' way."""

    share: float = Field(default=0.01, gt=0, le=1, description="Share of inference requests that are looked at.")
    per_minute: int = Field(
        default=6,
        ge=1,
        le=600,
        description="Maximum number of samples per minute that each gateway keeps of the model.",
    )
    when: Annotated[
        tuple[Literal["uncertain", "disagree", "error", "empty", "drift"], ...], AfterValidator(check_distinct)
    ] = Field(
        default=(),
        max_length=5,
        description="Reasons to keep a request that is looked at; one suffices. uncertain: a score near the "
        "threshold, or a map of low confidence; disagree: another revision that is loaded answers differently; "
        "error: stable fails it; empty: the answer shows nothing; drift: the model's condition Drifting is True. "
        "Default: every one is kept.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    slices: Annotated[tuple[SliceLabel, ...], AfterValidator(check_distinct)] = Field(
        default=(),
        max_length=100,
        description="Labels of requests (`X-Segserve-Slice`) that are kept. Default: all, also those without one.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    redact: Redact | None = Field(default=None, description="Parts to make unrecognisable. Default: none.")
    sink: Annotated[str, Field(pattern=f"^({'|'.join(SINK_SCHEMES)})://", min_length=1, max_length=1024)] = Field(
        description="URI of the store's folder: s3:, gs: or az:, with the pool's credentials for artifacts, and on "
        "one machine file:."
    )
    retention: Duration = Field(
        default=timedelta(days=30), description="Age at which samples are deleted. Default 720h."
    )


class Rate(ApiValue):
    """Inference requests per second, and bytes of them, at each gateway; what is not set is not limited."""

    requests_per_second: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Requests per second, and at once after a pause."
    )
    megabytes_per_second: int | None = Field(
        default=None,
        ge=1,
        le=2000,
        description="Million bytes of requests per second. A burst has at most the same amount, or one request of "
        "the gateway's maxRequestBytes.",
    )


class Limits(ApiValue):
    """Limits of inference requests, each held by every gateway for itself; more get 429 with Retry-After."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": " && ".join(
                        f"(!has(self.perCaller) || !has(self.total) || !has(self.perCaller.{name}) || "
                        f"!has(self.total.{name}) || self.perCaller.{name} <= self.total.{name})"
                        for name in _FIELDS
                    ),
                    "message": _MESSAGE,
                }
            ]
        }
    )

    per_caller: Rate | None = Field(
        default=None,
        description="Limits per caller, identified by name if authenticated (gateway.auth), otherwise by IP address.",
    )
    total: Rate | None = Field(default=None, description="Of all callers together.")

    @model_validator(mode="after")
    def _check_total(self) -> Self:
        for field, name in zip(Rate.model_fields, _FIELDS, strict=True):
            own, every = (getattr(rate, field) if rate is not None else None for rate in (self.per_caller, self.total))
            if own is not None and every is not None and own > every:
                raise located(f"{_MESSAGE}, got {own} and {every}", "perCaller", name)
        return self


def _class_ids_rule() -> JsonDict:
    own = ", ".join(f"'{name}'" for name, family in FAMILIES.items() if not family.numbers_classes)
    return {
        "rule": f"self.family in [{own}] || self.classes.all(c, c.id < self.classes.size())",
        "message": "ids of this family's classes must count up from 0 without gaps",
    }


class NetworkReference(ApiValue):
    """Another SegmentationModel, whose artifact, family, stages and runtime are used as a second network."""

    model: ResourceName = Field(
        description="Name of a SegmentationModel of the same pool, which has one network and the same classes."
    )


class CascadeSpec(ApiValue):
    """A light network that answers first; the model's own, heavy network is asked where its answer is not enough."""

    light: NetworkReference = Field(
        description="Model whose network answers first. A change of its spec is a new revision of this model as well."
    )
    when: CascadeScore = Field(
        description="Score of the light answer, from 0 to 1: confidence, 1 minus the mean probability of the answer; "
        "area, 1 minus the relative side length of the smallest region; or class, the highest score of a region of "
        "`classes`. For an answer without objects, confidence and area are 1, and class is 0."
    )
    threshold: float = Field(
        ge=0,
        le=1,
        description="The heavy network answers if the score is at least this, as `segserve golden cascade` finds it; "
        "0: always.",
    )
    max_loss: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Largest expected loss of quality against the heavy network alone, such as 0.005 for 0.5 points of "
        "IoU. Servers prove it on the golden set, which needs at least 1 / maxLoss - 1 images. Default: it is not "
        "proved.",
    )
    classes: tuple[str, ...] = Field(
        default=(),
        max_length=50,
        description="Names of the classes that the score class looks for.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


class DecoderSpec(ApiValue):
    """The decoder of a promptable network: the file beside the image encoder's, and what is kept for it."""

    artifact: Artifact = Field(description="File of the prompt decoder.")
    embeddings_mebibytes: int = Field(
        default=256,
        ge=1,
        le=65_536,
        description="MiB of images' embeddings that a server keeps for further prompts, the last used ones; one of "
        "segment-anything takes 4, one of SAM 2 takes 16.",
    )


class SegmentationModelSpec(ApiValue):
    """The model to serve."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": [_class_ids_rule()]})

    artifact: Artifact = Field(description="File of the network.")
    family: FamilyName = Field(description="Meaning of the network's raw outputs.")
    input: Input = Field(
        default=Input(), description="Format that images are decoded to and that callers send as PIXELS."
    )
    classes: Classes = Field(
        min_length=1,
        max_length=2000,
        description="Classes of the network. Ids are its labels, or count up from 0 like the channels of its output.",
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["id"],
            # No rule for names: comparing 500 with each other costs more than an API server allows.
        },
    )
    preprocess: PreprocessSteps = ()
    inference: tuple[InferenceStep, ...] = Field(
        default=(),
        max_length=8,
        description="Steps that run the network more than once per image: tiles and augmentation. Default: one run.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    postprocess: PostprocessSteps = ()
    instances: NetworkReference | None = Field(
        default=None,
        description="Model whose instances the stage panopticFusion lays over the labels. Its classes are this model's "
        "things, and its preprocess is the same. A change of its spec is a new revision of this model as well.",
    )
    cascade: CascadeSpec | None = Field(
        default=None,
        description="Light network that answers first, so that the model's own answers few images only. It is part "
        "of the revision. Default: the model's own network answers.",
    )
    decoder: DecoderSpec | None = Field(
        default=None, description="Prompt decoder, of the families promptable and promptable-sam2."
    )
    output: Output = Field(default=Output(), description="Form of answers if a request does not specify it.")
    runtime: Runtime = Field(default=Runtime(), description="How Triton runs the network.")
    pool: ResourceName = Field(
        default="default",
        description="TritonPool that serves the model. Immutable.",
        json_schema_extra={
            "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "the pool of a model is immutable"}]
        },
    )
    golden: Golden | None = Field(
        default=None, description="Images with known answers. A revision that fails them gets no traffic."
    )
    expose: Annotated[tuple[Literal["network"], ...], AfterValidator(check_distinct)] = Field(
        default=(),
        description="Further public names; network is the bare network, as <name>.network.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    access: AccessRules | None = Field(
        default=None,
        description="Callers who may use the model; to others it does not exist (404). Default: every caller that the "
        "pool's gateway takes. A change applies at once, and makes no revision.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    limits: Limits | None = Field(
        default=None,
        description="How much callers may send. Default: no limit. A change applies at once, and makes no revision.",
    )
    metrics: ModelMetrics | None = Field(
        # The API server would write a default into every object.
        default=None,
        description="What servers count of answers. A change applies without a new revision or rollout.",
    )
    processes: Literal["own", "shared"] | None = Field(
        default=None,
        description="Whether the model's steps share processes with other models' steps. If shared, a further model "
        "needs little more memory than its network, and a step that dies fails requests of all models in the "
        "process. A change applies without a new revision or rollout. Default own.",
    )
    capture: Capture | None = Field(
        default=None,
        description="Samples of requests that are kept, for labelling and training. On a cluster it needs "
        "gateway.capture of the pool. A change applies at once, and makes no revision. Default: nothing is kept.",
    )
    keep_previous: Duration = Field(
        default=DEFAULT_KEEP_PREVIOUS,
        description="How long a replaced revision stays loaded, so that a rollback is immediate.",
        json_schema_extra={"default": format_duration(DEFAULT_KEEP_PREVIOUS)},
    )
    progress_deadline: SomeTime = Field(
        default=DEFAULT_PROGRESS_DEADLINE,
        description="How long the servers of a new revision may take to load and prove it. Then the model is Stalled, "
        "and if others wait for servers, the revision gives its own up and waits again.",
        json_schema_extra={"default": format_duration(DEFAULT_PROGRESS_DEADLINE)},
    )
    allow_class_changes: bool = Field(
        default=False,
        description="Whether a new revision may drop or renumber classes of the stable one; otherwise it is refused.",
    )
    slo: Slo | None = Field(default=None, description="Service level objective of the model.")
    drift: Drift | None = Field(
        default=None,
        description="Comparison of the images and answers with a reference: the condition Drifting. Default: none. A "
        "change applies at once, and makes no revision.",
    )
    out_of_distribution: OutOfDistributionPolicy | None = Field(
        default=None,
        description="How images are judged that the model was not made for. It is part of the revision. Default: none "
        "is judged.",
    )
    rollout: RolloutPolicy | None = Field(
        default=None,
        description="How a new revision replaces the stable one. Default: at once, as soon as it is proved.",
    )

    _networks: Mapping[str, SegmentationModelSpec] = PrivateAttr(default_factory=dict)
    """The specs of the models that this one names, once they have been read."""

    @property
    def references(self) -> Mapping[tuple[str, ...], str]:
        """The models that this one names as its second network, by the place of the name."""
        return {
            at: reference.model
            for at, reference in (
                (("instances",), self.instances),
                (("cascade", "light"), None if self.cascade is None else self.cascade.light),
            )
            if reference is not None
        }

    @model_validator(mode="after")
    def _stages_fit(self, info: ValidationInfo) -> Self:
        """Check all stages if the context has the models that the spec names, else those of its own network."""
        known: Mapping[str, SegmentationModelSpec] | None = (info.context or {}).get(NETWORKS)
        if known is None and self.references:
            own = self._own_network()
            check_class_ids(own)
            check_own_stages(own, fuses=self.instances is not None)
            return self
        for at, name in self.references.items():
            if known is None or name not in known:
                raise located(f"there is no model {name!r}; apply it as well, or correct the name", *at, "model")
            if known[name].references:
                raise located(f"{name} has two networks itself; name a model of one network", *at, "model")
            check_shared(self._own_network(), known[name]._own_network(name), at)
        self._networks = {name: known[name] for name in self.references.values()} if known else {}
        pipeline = self.pipeline("any")
        check_class_ids(pipeline)
        check_stages(pipeline)
        return self

    @model_validator(mode="after")
    def _counted_classes_exist(self) -> Self:
        counted = () if self.metrics is None else self.metrics.classes
        unknown = sorted(set(counted) - {item.name for item in self.classes})
        if unknown:
            names = ", ".join(item.name for item in self.classes[:20])
            raise located(f"no class is named {', '.join(unknown)}; the model has {names}", "metrics", "classes")
        return self

    @model_validator(mode="after")
    def _cascade_fits(self) -> Self:
        if self.cascade is None:
            return self
        if self.cascade.max_loss is not None and self.golden is None:
            raise located("maxLoss needs spec.golden, which is not set", "cascade", "maxLoss")
        if self.processes == "shared":
            raise located("the steps of a cascade are not shared; allowed is own, the default", "processes")
        return self

    @model_validator(mode="after")
    def _prompts_have_a_process(self) -> Self:
        if self.decoder is None:
            return self
        if self.processes == "shared":
            raise located("the step of a promptable model is not shared; allowed is own, the default", "processes")
        if self.expose:
            raise located("the network of a promptable model has no step of its own; leave it out", "expose")
        if self.capture is not None:
            raise located("a sample is of an image, and a promptable model answers prompts; leave it out", "capture")
        return self

    @model_validator(mode="after")
    def _drift_has_counts(self) -> Self:
        if self.drift is not None and self.metrics is not None and not self.metrics.answers:
            raise located("drift needs counts of answers, which spec.metrics.answers: false switches off", "drift")
        return self

    @model_validator(mode="after")
    def _flagged_images_are_counted(self) -> Self:
        counts = self.out_of_distribution is not None and self.out_of_distribution.on_flag == "Count"
        if counts and self.metrics is not None and not self.metrics.answers:
            raise located(
                "Count needs counts of answers, which spec.metrics.answers: false switches off; "
                "allowed without them are Flag and Refuse",
                "outOfDistribution",
                "onFlag",
            )
        return self

    @model_validator(mode="after")
    def _captured_classes_exist(self) -> Self:
        redact = None if self.capture is None else self.capture.redact
        if redact is not None and redact.model is None:
            known = [item.name for item in self.classes]
            for index, name in enumerate(redact.classes):
                if name not in known:
                    raise located(unknown_name("class", name, known), "capture", "redact", "classes", index)
        return self

    @model_validator(mode="after")
    def _floors_have_images(self) -> Self:
        gates = self.rollout.gates if self.rollout is not None else ()
        floors = [name for gate in gates if isinstance(gate, GoldenQualityGate) for name in gate.floors]
        if floors and self.golden is None:
            raise located(
                f"{', '.join(floors)} of goldenQuality needs spec.golden, which is not set", "rollout", "gates"
            )
        return self

    def pipeline(self, model_name: str) -> Pipeline:
        """Return the part of the spec that can change an answer of the model `model_name`.

        Raises `SpecError` if the spec names other models and was read without them.
        """
        return self._own_network(model_name).model_copy(
            update={"instances": self._second_network(), "cascade": self._cascade()}
        )

    def _own_network(self, model_name: str = "any") -> Pipeline:
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
            out_of_distribution=self.out_of_distribution,
            decoder=None
            if self.decoder is None
            else DecoderNetwork(
                artifact_sha256=self.decoder.artifact.sha256,
                cache_bytes=self.decoder.embeddings_mebibytes * 2**20,
            ),
        )

    def _network(self, reference: NetworkReference, at: str) -> SegmentationModelSpec:
        if reference.model not in self._networks:
            message = f"the spec of model {reference.model!r} is needed, and was not read with this one"
            raise SpecError([Problem("", f"spec.{at}.model", message)])
        return self._networks[reference.model]

    def assigned(self, model_name: str) -> AssignedModel:
        """Return the assignment for agents that serve the model under the public name `model_name`."""
        return AssignedModel(
            pipeline=self.pipeline(model_name),
            artifact=self.artifact,
            golden=self.golden,
            expose=self.expose,
            second_artifact=None if self.instances is None else self._network(self.instances, "instances").artifact,
            light_artifact=None
            if self.cascade is None
            else self._network(self.cascade.light, "cascade.light").artifact,
            decoder_artifact=None if self.decoder is None else self.decoder.artifact,
            metrics=self.metrics or ModelMetrics(),
            # The default written out is no other assignment.
            processes=None if self.processes == "own" else self.processes,
        )

    def _cascade(self) -> Cascade | None:
        if self.cascade is None:
            return None
        light = self._network(self.cascade.light, "cascade.light")
        names = {item.name: item.id for item in self.classes}
        unknown = next((name for name in self.cascade.classes if name not in names), None)
        if unknown is not None:
            at = self.cascade.classes.index(unknown)
            raise located(unknown_name("class", unknown, names), "cascade", "classes", at)
        return Cascade(
            light=LightNetwork(
                artifact_sha256=light.artifact.sha256,
                family=light.family,
                preprocess=light.preprocess,
                inference=light.inference,
                postprocess=light.postprocess,
                runtime=light.runtime,
            ),
            when=self.cascade.when,
            threshold=self.cascade.threshold,
            max_loss=self.cascade.max_loss,
            classes=tuple(names[name] for name in self.cascade.classes),
        )

    def _second_network(self) -> SecondNetwork | None:
        if self.instances is None:
            return None
        second = self._network(self.instances, "instances")
        return SecondNetwork(
            artifact_sha256=second.artifact.sha256,
            family=second.family,
            postprocess=second.postprocess,
            runtime=second.runtime,
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
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    DRIFTING = "Drifting"


class Role(StrEnum):
    """The role of a revision in its model."""

    STABLE = "stable"
    CANDIDATE = "candidate"
    PREVIOUS = "previous"


class CandidateState(StrEnum):
    """Whether a candidate can still become stable."""

    PENDING = "Pending"
    FAILED = "Failed"
    JUDGED = "Judged"


class RoleStatus(ApiValue):
    """A revision that has a role, and the group that serves it."""

    revision: str = Field(description="Name of the revision.")
    group: str = Field(description="Group of servers that holds it.")
    since: Timestamp = Field(description="Time at which it got the role and the group.")


class CandidateStatus(ApiValue):
    """Revision that is to replace the stable one."""

    revision: str = Field(description="Name of the revision.")
    group: str | None = Field(
        default=None,
        description="Group of servers that proves it; absent after a failure or verdict and while it waits for one.",
    )
    since: Timestamp = Field(description="Time at which it got the role and the group.")
    state: CandidateState = Field(
        description="Pending until it gets traffic; Failed until the spec or the servers' template changes; Judged, "
        "if its strategy promotes nothing by itself, until a person promotes it or the spec changes."
    )
    promoted: bool | None = Field(
        default=None, description="True if a person has started the rollout of a Judged candidate."
    )
    reason: str | None = Field(
        default=None, description="Why it failed, or why it gave its group up, as one CamelCase word."
    )
    message: str | None = Field(default=None, description="The same as a sentence.")
    template: str | None = Field(
        default=None, description="Template of the servers that failed to serve it: those of another one try it again."
    )


class RolesStatus(ApiValue):
    """Revisions by role; a role without a revision is absent."""

    stable: RoleStatus | None = Field(default=None, description="Revision that serves.")
    candidate: CandidateStatus | None = Field(default=None, description="Revision that is to replace it.")
    previous: RoleStatus | None = Field(
        default=None, description="Revision that served before, kept loaded for spec.keepPrevious."
    )


class RevisionStatus(ApiValue):
    """One of the model's latest revisions."""

    revision: str = Field(description="Name of the revision.")
    role: Role | None = Field(default=None, description="Current role, if any.")
    created_at: Timestamp = Field(
        description="Time at which it got its role. A candidate's also changes when it gets or gives up its servers."
    )


class SegmentationModelStatus(ApiValue):
    """Observed state of the model."""

    observed_generation: int | None = Field(
        default=None,
        ge=UNSEEN,
        description="Latest generation of the spec that serves, or that a condition reports as refused or stalled; "
        "-1 if no operator has seen it.",
    )
    conditions: tuple[Condition, ...] = Field(
        default=(),
        max_length=32,
        description=f"Conditions, one of each type: {', '.join(ConditionType)}.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    roles: RolesStatus = Field(default=RolesStatus(), description="Revisions by role.")
    revisions: tuple[RevisionStatus, ...] = Field(
        default=(),
        max_length=32,
        description="Latest revisions, newest first.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["revision"]},
    )
    url: str | None = Field(default=None, description="URL at which the model answers.")
    phase: RolloutPhase | None = Field(
        default=None, description="Phase of the latest rollout; absent once its revision is no longer what it says."
    )
    weight: int | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Percent of requests that the candidate gets now; without a candidate, that the stable one gets.",
    )
    slo: str | None = Field(default=None, max_length=40, description="State of the SLO: Met, Breached or Unknown.")
    drift: str | None = Field(
        default=None, max_length=196_608, description="Reference that `spec.drift` compares with, packed."
    )
    device: str | None = Field(
        default=None, max_length=40, description="Device of the stable revision's networks: cpu, gpu, or cpu,gpu."
    )
    rollout: RolloutStatus | None = Field(default=None, description="State of the latest rollout.")
    handled_annotations: tuple[Annotated[str, Field(max_length=512)], ...] = Field(
        default=(),
        max_length=MAX_HANDLED_ANNOTATIONS,
        description="Annotations that have been handled; the same text has no effect a second time.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )

    def condition(self, kind: ConditionType) -> Condition | None:
        """Return the condition of this type, or None if it has not been observed."""
        return next((condition for condition in self.conditions if condition.type == kind), None)


class SegmentationModel(ApiValue):
    """A segmentation network with its pre- and post-processing, served under the resource's name."""

    api_version: Literal["segserve.dev/v1alpha1"] = Field(
        default="segserve.dev/v1alpha1", description="Version of the API."
    )
    kind: Literal["SegmentationModel"] = Field(default="SegmentationModel", description="Kind of resource.")
    metadata: ObjectMeta = Field(description="Name, labels and annotations.")
    spec: SegmentationModelSpec = Field(description="The model to serve.")
    status: SegmentationModelStatus = Field(
        default=SegmentationModelStatus(), description="Observed state of the model."
    )

    @property
    def pipeline(self) -> Pipeline:
        """The part of the resource that can change an answer."""
        return self.spec.pipeline(self.metadata.name)

    @property
    def assigned(self) -> AssignedModel:
        """The assignment for agents that serve the model."""
        return self.spec.assigned(self.metadata.name)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Yield what tells models apart; a list of models with all their fields could not be read."""
        ready, roles = self.status.condition(ConditionType.READY), self.status.roles
        yield None, self.metadata.name
        yield "ready", "Unknown" if ready is None else ready.status.value
        if roles.stable is not None:
            yield "stable", roles.stable.revision
        if roles.candidate is not None:
            yield from (("candidate", roles.candidate.revision), ("weight", self.status.weight))
