"""A model's pipeline: its network, stages and options, and the revision's name that follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self, TypeAlias

from pydantic import ConfigDict, Field, create_model, model_validator

from segserve_builder.families import FAMILIES
from segserve_builder.spec.model_spec import (
    Artifact,
    CascadeScore,
    FrozenModel,
    Input,
    ModelClass,
    OutOfDistributionPolicy,
    Output,
    Runtime,
    Sha256,
)
from segserve_builder.spec.names import digest
from segserve_builder.stages import INFERENCE, POSTPROCESS, PREPROCESS
from segserve_builder.stages.base import Stage
from segserve_builder.stages.decode import Decode, decode_of


class PipelineStep(FrozenModel):
    """One item of a list of stages: a mapping with one key, the stage's name, to its options."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, alias_generator=None)

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        named = sorted(self.model_fields_set)
        if len(named) != 1 or getattr(self, named[0]) is None:
            raise ValueError(f"a step names exactly one stage, got {', '.join(named) or 'none'}")
        return self

    @property
    def name(self) -> str:
        """The stage's name."""
        return next(iter(self.model_fields_set))

    @property
    def stage(self) -> Stage:
        """The stage with its options."""
        stage: Stage = getattr(self, self.name)
        return stage


def _step_type(name: str, stages: Mapping[str, type[Stage]]) -> type[PipelineStep]:
    fields: dict[str, Any] = {
        key: (stage | None, Field(None, description=(stage.__doc__ or key).splitlines()[0]))
        for key, stage in stages.items()
    }
    return create_model(name, __base__=PipelineStep, __doc__="One stage: exactly one key is set.", **fields)


if TYPE_CHECKING:
    PreprocessStep = PipelineStep
    InferenceStep = PipelineStep
    PostprocessStep = PipelineStep
else:
    PreprocessStep = _step_type("PreprocessStep", PREPROCESS)
    InferenceStep = _step_type("InferenceStep", INFERENCE)
    PostprocessStep = _step_type("PostprocessStep", POSTPROCESS)


APART: Final = {"preprocess", "inference", "postprocess", "instances", "cascade"}
"""The fields that a pipeline's identity lists by themselves."""


def _identity(name: str, stage: Stage) -> dict[str, Any]:
    options = stage.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"stage": name, "version": stage.version, "options": options}


class SecondNetwork(FrozenModel):
    """A second network that finds instances in the same input; `runtime` defaults to the first network's."""

    artifact_sha256: Sha256
    family: str
    postprocess: tuple[PostprocessStep, ...] = ()
    runtime: Runtime | None = None


class LightNetwork(FrozenModel):
    """The network of a cascade that answers first."""

    artifact_sha256: Sha256
    family: str
    preprocess: tuple[PreprocessStep, ...] = ()
    inference: tuple[InferenceStep, ...] = ()
    postprocess: tuple[PostprocessStep, ...] = ()
    runtime: Runtime = Runtime()


class Cascade(FrozenModel):
    """When a light network's answer is not enough: if its score is at least the threshold.

    `classes` are the ids that the score `class` looks for; `max_loss` is what golden images may lose on average against
    the heavy network alone.
    """

    light: LightNetwork
    when: CascadeScore
    threshold: float = Field(ge=0, le=1)
    max_loss: float | None = Field(default=None, gt=0, lt=1)
    classes: tuple[int, ...] = ()


class DecoderNetwork(FrozenModel):
    """The decoder of a promptable network, and how many bytes of its images' embeddings a server keeps.

    The latter changes no answer, and is not part of a revision.
    """

    artifact_sha256: Sha256
    cache_bytes: int


class Pipeline(FrozenModel):
    """Everything that can change a model's answers. Its digest names the revision."""

    model: str
    artifact_sha256: Sha256
    family: str
    input: Input
    classes: tuple[ModelClass, ...]
    preprocess: tuple[PreprocessStep, ...]
    inference: tuple[InferenceStep, ...] = ()
    postprocess: tuple[PostprocessStep, ...]
    output: Output
    runtime: Runtime
    instances: SecondNetwork | None = None
    out_of_distribution: OutOfDistributionPolicy | None = None
    cascade: Cascade | None = None
    decoder: DecoderNetwork | None = None

    def identity(self) -> dict[str, Any]:
        """Return the JSON value whose digest names the revision.

        A list that relies on defaults equals one that spells them out. Options that are None are left out, so that
        a new optional one does not change existing revisions.
        """
        plain = self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=APART)
        family = FAMILIES[self.family]
        before = [(step.name, step.stage) for step in self.preprocess]
        if not any(isinstance(stage, Decode) for _, stage in before):
            before.insert(0, ("decode", Decode()))
        identity = plain | {
            "familyVersion": family.version,
            "preprocess": [_identity(*named) for named in before],
            "postprocess": [_identity(*named) for named in named_postprocess(self)],
        }
        if self.decoder is not None:
            identity["decoder"] = {"artifactSha256": self.decoder.artifact_sha256}
        # Left out if empty, as options that are None are.
        if self.inference:
            identity["inference"] = [_identity(step.name, step.stage) for step in self.inference]
        if self.second is not None:
            identity["instances"] = self.second.identity()
        if self.cascade is not None and self.light is not None:
            rule = self.cascade.model_dump(mode="json", by_alias=True, exclude={"light"}, exclude_none=True)
            identity["cascade"] = rule | {"light": self.light.identity()}
        return identity

    @property
    def decode(self) -> Decode:
        """The stage that decodes images."""
        return decode_of(step.stage for step in self.preprocess)

    @property
    def second(self) -> Pipeline | None:
        """The pipeline of the second network alone, if there is one.

        Its classes are the model's things; if its family numbers classes by channel, channel i is the i-th thing.
        """
        if self.instances is None:
            return None
        things = tuple(item for item in self.classes if item.thing)
        if self.instances.family in FAMILIES and FAMILIES[self.instances.family].numbers_classes:
            things = tuple(item.model_copy(update={"id": index}) for index, item in enumerate(things))
        changes = {
            "artifact_sha256": self.instances.artifact_sha256,
            "family": self.instances.family,
            "classes": things,
            "inference": (),
            "postprocess": self.instances.postprocess,
            "runtime": self.instances.runtime or self.runtime,
            "instances": None,
            "out_of_distribution": None,
        }
        return self.model_copy(update=changes)

    @property
    def light(self) -> Pipeline | None:
        """The pipeline of the cascade's light network alone, if there is one; input, classes and output are shared."""
        if self.cascade is None:
            return None
        own = {name: getattr(self.cascade.light, name) for name in LightNetwork.model_fields}
        return self.model_copy(update={**own, "instances": None, "cascade": None})

    @property
    def networks(self) -> tuple[Pipeline, ...]:
        """The pipeline itself, and the second network's pipeline if there is one."""
        return (self,) if self.second is None else (self, self.second)

    @property
    def needs_guide(self) -> bool:
        """Whether a postprocess stage needs the image itself, at the network's resolution."""
        return any(stage.needs_guide for _, stage in named_postprocess(self))

    @property
    def max_detections(self) -> int:
        """Largest number of objects in an answer, of a task that has them, unless a request sets it."""
        own = self.output.max_detections
        limits: list[int] = [getattr(stage, "max_detections", own) for _, stage in named_postprocess(self)]
        return min([own, *limits])

    @property
    def flags_images(self) -> bool:
        """Whether answers say how unlike the model's usual images theirs is."""
        return self.out_of_distribution is not None and self.out_of_distribution.on_flag == "Flag"

    @property
    def scores_detail(self) -> bool:
        """Whether an answer depends on statistics of the image."""
        return self.out_of_distribution is not None and self.out_of_distribution.score == "detail"

    @property
    def revision(self) -> str:
        """The revision's name: `<model>-<10 hex>`."""
        return f"{self.model}-{digest(self.identity())}"


NetworkRole: TypeAlias = Literal["first", "second", "light", "decoder"]
"""The first network of a model, the second one beside it, the light one of its cascade, and its prompt decoder."""


class NetworkArtifact(NamedTuple):
    """A network's pipeline and its file."""

    pipeline: Pipeline
    artifact: Artifact


def named_postprocess(pipeline: Pipeline) -> tuple[tuple[str, Stage], ...]:
    """Return the pipeline's postprocess stages by name, or its family's default ones if it lists none."""
    if pipeline.postprocess:
        return tuple((step.name, step.stage) for step in pipeline.postprocess)
    names = {stage: name for name, stage in POSTPROCESS.items()}
    return tuple((names[type(stage)], stage) for stage in FAMILIES[pipeline.family].default_postprocess)


def code_modules(pipeline: Pipeline) -> set[str]:
    """Return the modules that hold the code of a pipeline: its steps', its families' and its stages'."""
    networks = [*pipeline.networks, *(() if pipeline.light is None else (pipeline.light,))]
    parts: list[object] = [FAMILIES[each.family] for each in networks]
    for each in networks:
        parts += (step.stage for step in (*each.preprocess, *each.inference))
        parts += (stage for _, stage in named_postprocess(each))
    steps = {f"{__package__}.{path.stem}" for path in Path(__file__).parent.glob("*.py")}
    return steps | {type(part).__module__ for part in parts}
