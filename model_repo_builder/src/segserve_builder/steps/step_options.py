"""Typed options of the steps inside Triton, as JSON in `parameters["segserve"]` of their config."""

from __future__ import annotations

import json
from typing import Any, Final, Literal, Self

from segserve_builder.families import FAMILIES
from segserve_builder.families.base import NetworkIO, TensorSpec
from segserve_builder.families.promptable import DecoderIO
from segserve_builder.spec.model_spec import UNCOUNTED, Engine, FrozenModel, Input, ModelMetrics, Precision, Runtime
from segserve_builder.spec.names import canonical_json, digest
from segserve_builder.steps.pipeline import Cascade, InferenceStep, Pipeline, PreprocessStep
from segserve_builder.steps.postprocess import postprocess_stages
from segserve_builder.steps.public_outputs import NETWORK_INPUT

PARAMETER: Final = "segserve"
MODEL_FILE: Final = "model.onnx"
DECODER_FILE: Final = "decoder.onnx"


class StepOptions(FrozenModel):
    """Options of one step. `step_version` is raised whenever the step's own code changes what it answers."""

    def to_parameter(self) -> str:
        """Return the text of the config's parameter."""
        return canonical_json(self.model_dump(mode="json", by_alias=True, exclude_none=True))

    @classmethod
    def from_model_config(cls, model_config: str) -> Self:
        """Read the options from the JSON configuration that Triton hands to a Python model."""
        config: dict[str, Any] = json.loads(model_config)
        return cls.model_validate_json(config["parameters"][PARAMETER]["string_value"])


class PreOptions(StepOptions):
    """Exactly the options that decoding and preprocessing depend on: equal ones are shared between models.

    `stage_versions` are the versions of `preprocess`, item by item. `extra` are the inputs beside the image.
    """

    step_version: Literal[1] = 1
    input: Input
    preprocess: tuple[PreprocessStep, ...]
    stage_versions: tuple[int, ...]
    network_input: TensorSpec
    layout: Literal["NCHW", "NHWC"]
    guided: bool = False
    measures: bool = False
    extra: tuple[TensorSpec, ...] | None = None

    @classmethod
    def of(cls, pipeline: Pipeline, io: NetworkIO, *, measures: bool = False) -> Self:
        """Return the options of `pipeline`'s first step; the tensor's name is the network's affair."""
        tensor = TensorSpec(NETWORK_INPUT, io.input.dtype, io.input.shape)
        versions = tuple(step.stage.version for step in pipeline.preprocess)
        return cls(
            input=pipeline.input,
            preprocess=pipeline.preprocess,
            stage_versions=versions,
            network_input=tensor,
            layout=io.layout,
            guided=pipeline.needs_guide,
            measures=measures,
            extra=io.extra,
        )


class NetOptions(StepOptions):
    """How the network's file is run.

    `layout` is its input's; outputs that have no batch (`batched` is False) get a batch of one. `inference_versions`
    are the versions of `inference`, item by item; a step that runs the network more than once an image does so with at
    most `max_batch_size` at a time. Without an `engine`, ONNX Runtime runs it; without a `precision`, in FP32. `extra`
    are the names of the inputs beside the image.
    """

    step_version: Literal[1] = 1
    artifact_sha256: str
    input: str
    layout: Literal["NCHW", "NHWC"]
    outputs: tuple[str, ...]
    batched: bool
    inference: tuple[InferenceStep, ...]
    inference_versions: tuple[int, ...]
    max_batch_size: int
    intra_op_threads: int
    engine: Engine | None = None
    precision: Precision | None = None
    extra: tuple[str, ...] | None = None

    @classmethod
    def of(cls, pipeline: Pipeline, io: NetworkIO) -> Self:
        """Return the options of `pipeline`'s network."""
        return cls(
            artifact_sha256=pipeline.artifact_sha256,
            input=io.input.name,
            layout=io.layout,
            outputs=tuple(tensor.name for tensor in io.outputs),
            batched=io.batched,
            inference=pipeline.inference,
            inference_versions=tuple(step.stage.version for step in pipeline.inference),
            max_batch_size=pipeline.runtime.max_batch_size,
            intra_op_threads=pipeline.runtime.intra_op_threads,
            engine=pipeline.runtime.engine,
            precision=pipeline.runtime.precision,
            extra=None if io.extra is None else tuple(tensor.name for tensor in io.extra),
        )

    @property
    def runs_images_apart(self) -> bool:
        """Whether each image of a batch has a core of its own where the step runs on a CPU and shares no session."""
        return self.engine != "openvino" and not self.intra_op_threads


def engines_name(artifact_sha256: str, settings: NetOptions | Runtime) -> str | None:
    """Return the name of the folder of a network's TensorRT engines, None if another engine runs it.

    ONNX Runtime names engines by the graph alone, so those of other weights, batches or precisions have another folder.
    """
    built_of = [artifact_sha256, settings.max_batch_size, settings.precision]
    return digest(built_of) if settings.engine == "tensorrt" else None


class HeavyOptions(FrozenModel):
    """How the last step of a light network calls the heavy one.

    `model` is the name of its ensemble, which gets at most `max_requests` at a time, while `max_queue_size` wait.
    """

    cascade: Cascade
    model: str
    max_requests: int
    max_queue_size: int


class PostOptions(StepOptions):
    """All that turns raw outputs into an answer; it carries the revision, so it is one a revision.

    `stage_versions` are the versions of the postprocess stages, the family's own if the pipeline lists none.
    """

    step_version: Literal[1] = 1
    revision: str
    pipeline: Pipeline
    stage_versions: tuple[int, ...]
    family_version: int
    io: NetworkIO
    second_io: NetworkIO | None = None
    metrics: ModelMetrics = UNCOUNTED
    heavy: HeavyOptions | None = None

    @property
    def measures(self) -> bool:
        """Whether the first step passes its measurements to the last one."""
        return self.metrics.answers or self.pipeline.scores_detail

    @classmethod
    def of(
        cls,
        pipeline: Pipeline,
        io: NetworkIO,
        second: NetworkIO | None = None,
        metrics: ModelMetrics = UNCOUNTED,
    ) -> Self:
        """Return the options of `pipeline`'s last step; `second` are the tensors of its second network."""
        return cls(
            revision=pipeline.revision,
            pipeline=pipeline,
            stage_versions=tuple(stage.version for stage in postprocess_stages(pipeline)),
            family_version=FAMILIES[pipeline.family].version,
            io=io,
            second_io=second,
            metrics=metrics,
        )


class DecoderOptions(FrozenModel):
    """How a prompt decoder is run: its file's digest, its tensors, and the bytes of embeddings that are kept."""

    artifact_sha256: str
    io: DecoderIO
    cache_bytes: int


class PipelineOptions(StepOptions):
    """The options of a step that is all of a model: the options of the steps that it runs one after the other."""

    step_version: Literal[1] = 1
    pre: PreOptions
    net: NetOptions
    post: PostOptions
    decoder: DecoderOptions | None = None
