"""Steps and ensembles as Triton's ModelConfig messages, with only the fields that the target's release has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from segserve_builder.families.base import NetworkIO, TensorSpec
from segserve_builder.render.target import RenderTarget
from segserve_builder.spec.members import SELECTORS, selectors_of
from segserve_builder.spec.model_spec import Runtime
from segserve_builder.spec.names import DIGEST_LENGTH, canonical_json
from segserve_builder.stages.temporal_smoothing import MAX_IDLE_S
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.steps.public_outputs import (
    GEOMETRY,
    GUIDE,
    MEASURED_GEOMETRY,
    NETWORK_INPUT,
    SCORED,
    Task,
    extra_input,
    network_output,
    public_inputs,
    public_outputs,
    second_output,
)
from segserve_builder.steps.step_options import (
    PARAMETER,
    NetOptions,
    PipelineOptions,
    PostOptions,
    PreOptions,
    StepOptions,
    engines_name,
)
from segserve_builder.steps.streams import smoothing_of

VERSION: Final = 1
"""The only version of each model; a step's is written out, since -1 would follow any later load."""
_SELECTED: Final = "INT32"
LATENCY_MS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
CONDITIONAL: Final = "conditional_models"
"""Parameter of an ensemble's config: the models that a step of it calls for some images, of which Triton is unaware."""
_HEURISTIC: Final = "1"
"""Value of ONNX Runtime's `OrtCudnnConvAlgoSearch`, as Triton's backend reads it."""
_LATENCY: Final = "nv_inference_first_response_histogram_ms"


@dataclass(frozen=True, slots=True)
class Members:
    """The members of shared steps that a model is made of: its networks' by number, and its last step's."""

    networks: Mapping[int, str]
    post: str


def preprocess_config(options: PreOptions, instances: int) -> Any:
    """Return the step from IMAGE or PIXELS to the network's input and GEOMETRY, yet unnamed."""
    config = _python_step(options, instances=instances)
    _add_inputs(config, public_inputs(options.input), optional=True)
    extra = [_renamed(tensor, extra_input(place), free_batch=True) for place, tensor in enumerate(options.extra or ())]
    given = _renamed(options.network_input, NETWORK_INPUT, free_batch=True)
    _add_outputs(config, [given, *extra, *_facts(options.guided, options.measures)])
    return config


def network_config(
    options: NetOptions, io: NetworkIO, runtime: Runtime, target: RenderTarget, *, native: bool, single: bool = False
) -> Any:
    """Return the network, yet unnamed; a native one is run by the server itself.

    It has dynamic batching, unless the server itself runs a file that fixes the batch; with `single` the file's input
    has no batch. The queue is bounded by the gateway (`runtime.maxQueueSize`), not here: a queue policy turns
    prefetching off, and then a request that arrives between an answer and the release of its batch is forgotten for
    half a second.
    """
    # A network without a device is a native one only on servers with a GPU.
    on_gpu = runtime.device == "gpu" or (native and runtime.device is None)
    if native:
        config = _native_step(options, io, runtime, target, on_gpu=on_gpu)
    else:
        config = _python_step(options, instances=runtime.instances, kind="KIND_GPU" if on_gpu else "KIND_CPU")
    _add_histogram(config, target)
    _add_network_tensors(config, io, runtime, native=native)
    if config.max_batch_size:
        config.dynamic_batching.max_queue_delay_microseconds = runtime.max_queue_delay_us
        apart = options.runs_images_apart and not on_gpu and not native
        if apart and target.cpus and 1 < target.cpus < config.max_batch_size:
            # It runs an image on each: more of them at a time would only hold memory.
            config.dynamic_batching.preferred_batch_size.append(target.cpus)
    else:
        for tensor in (*(config.input[:1] if single else ()), *(() if io.batched else config.output)):
            tensor.reshape.shape.extend(tensor.dims[1:])
    if on_gpu:
        _add_warmup(config)
    return config


def postprocess_config(options: PostOptions, task: Task, instances: int) -> Any:
    """Return the step from the network's outputs and GEOMETRY to the public outputs, yet unnamed."""
    config = _python_step(options, instances=instances)
    raw = [_renamed(tensor, network_output(tensor.name), free_batch=True) for tensor in options.io.outputs]
    if options.second_io is not None:
        raw += [_renamed(tensor, second_output(tensor.name), free_batch=True) for tensor in options.second_io.outputs]
    _add_inputs(config, [*raw, *_facts(options.pipeline.needs_guide, options.measures)])
    # Overlays are drawn on IMAGE; the heavy network gets what the caller sent.
    image, pixels = public_inputs(options.pipeline.input)
    _add_inputs(config, [image] if options.heavy is None else [image, pixels], optional=True)
    smoothing = smoothing_of(options.pipeline)
    flags = options.pipeline.flags_images
    _add_outputs(config, public_outputs(task, streams=smoothing is not None, flags=flags, prompts=False))
    config.metric_tags["revision"] = options.revision
    if smoothing is not None and smoothing.sequence_batcher:
        # The direct strategy would give each stream the whole step until it ends: this one takes requests by age.
        config.sequence_batching.oldest.max_candidate_sequences = smoothing.max_streams
        config.sequence_batching.max_sequence_idle_microseconds = MAX_IDLE_S * 1_000_000
    return config


def pipeline_config(options: PipelineOptions, task: Task, target: RenderTarget) -> Any:
    """Return the step that is all of a model, from IMAGE or PIXELS to the public outputs, yet unnamed."""
    pipeline = options.post.pipeline
    prompts = pipeline.decoder is not None
    config = _python_step(options, instances=target.joined_instances)
    _add_histogram(config, target)
    _add_inputs(config, public_inputs(pipeline.input, prompts=prompts), optional=True)
    _add_outputs(config, public_outputs(task, streams=False, flags=pipeline.flags_images, prompts=prompts))
    config.metric_tags["revision"] = options.post.revision
    return config


def shared_network(config: Any) -> Any:
    """Return the configuration of a step that runs all networks whose own step would differ only in options."""
    shared = _without_options(config)
    # Its networks have the threads of the process together, and run whole batches.
    del shared.dynamic_batching.preferred_batch_size[:]
    _add_outputs(shared, [TensorSpec(name, _SELECTED, (1,)) for name in SELECTORS])
    return shared


def shared_postprocess(config: Any, networks: Iterable[int]) -> Any:
    """Return the configuration of a last step shared by all models whose own would differ only in options.

    `networks` are the numbers of the models' networks that are members of shared steps.
    """
    shared = _without_options(config)
    del shared.metric_tags["revision"]
    wired = [name for number in networks for name in _wired_selectors(number)]
    _add_inputs(shared, [TensorSpec(name, _SELECTED, (None,)) for name in (*SELECTORS, *wired)], optional=True)
    return shared


def ensemble_config(
    pipeline: Pipeline,
    revision: str,
    io: NetworkIO,
    task: Task,
    steps: tuple[str, str, str],
    second: tuple[str, NetworkIO] | None = None,
    *,
    measures: bool,
    members: Members | None = None,
    conditional: Sequence[str] = (),
) -> Any:
    """Chain the steps (pre, net, post) into an ensemble, yet unnamed.

    `second` is the step of a second network, which runs beside the first; with `measures` the first step passes its
    measurements to the last one; `members` are the model's in steps that are shared. `revision` is the whole model's,
    of which `pipeline` may be the light network's part; `conditional` are the models that the last step then calls for
    some images, which it gives the image itself. No public output feeds a later step: Triton would then refuse every
    request for a subset of the outputs.
    """
    pre, net, post = steps
    config, inputs, outputs = _public_ensemble(pipeline, revision, task)
    if conditional:
        config.parameters[CONDITIONAL].string_value = canonical_json(list(conditional))
    raw = {tensor.name: network_output(tensor.name) for tensor in io.outputs}
    facts = [tensor.name for tensor in _facts(pipeline.needs_guide, measures)]
    given = [io.inputs, () if second is None else second[1].inputs]
    extra = [extra_input(place) for place in range(sum(len(each[1:]) for each in given))]
    _add_step(config, pre, _same(tensor.name for tensor in inputs), _same([NETWORK_INPUT, *extra, *facts]))
    chosen = [_chosen_network(members, number) for number in range(1 if second is None else 2)]
    _add_step(config, net, _fed(given[0], extra), raw | chosen[0])
    wired = _same([*raw.values(), *facts])
    if second is not None:
        found = {tensor.name: second_output(tensor.name) for tensor in second[1].outputs}
        _add_step(config, second[0], _fed(given[1], extra[len(given[0]) - 1 :]), found | chosen[1])
        wired |= _same(found.values())
    if members is not None:
        # Triton refuses a tensor that nothing takes. The network's step never gives those that select its member.
        wired |= _same(name for each in chosen for name in each.values())
        wired |= dict.fromkeys(selectors_of(members.post), GEOMETRY.name)
    wired |= _same(tensor.name for tensor in (inputs if conditional else inputs[:1]))
    _add_step(config, post, wired, _same(tensor.name for tensor in outputs))
    return config


def joined_ensemble_config(pipeline: Pipeline, revision: str, task: Task, step: str) -> Any:
    """Return the ensemble of the step that is all of a model, yet unnamed."""
    config, inputs, outputs = _public_ensemble(pipeline, revision, task)
    _add_step(config, step, _same(tensor.name for tensor in inputs), _same(tensor.name for tensor in outputs))
    return config


def _public_ensemble(
    pipeline: Pipeline, revision: str, task: Task
) -> tuple[Any, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return an ensemble without steps, with its public inputs and outputs."""
    config = _ensemble(revision)
    classes = [item.model_dump(exclude_none=True) for item in pipeline.classes]
    config.parameters["classes"].string_value = canonical_json(classes)
    if (window := pipeline.decode.window) is not None:
        config.parameters["window"].string_value = canonical_json(list(window))
    streams, prompts = smoothing_of(pipeline) is not None, pipeline.decoder is not None
    inputs = public_inputs(pipeline.input, prompts=prompts)
    outputs = public_outputs(task, streams=streams, flags=pipeline.flags_images, prompts=prompts)
    if task in SCORED:
        config.parameters["maxDetections"].string_value = str(pipeline.max_detections)
    _add_inputs(config, inputs, optional=True)
    _add_outputs(config, outputs)
    return config, inputs, outputs


def _chosen_network(members: Members | None, number: int) -> dict[str, str]:
    """Return the outputs of a shared network step that select a model's network, by the ensemble's tensors."""
    if members is None or number not in members.networks:
        return {}
    return dict(zip(selectors_of(members.networks[number]), _wired_selectors(number), strict=True))


def _wired_selectors(number: int) -> list[str]:
    return [f"NETWORK_{number}_MEMBER_{place}" for place in range(DIGEST_LENGTH)]


def network_alias_config(name: str, pipeline: Pipeline, io: NetworkIO, net: str, *, native: bool) -> Any:
    """Return the ensemble `name` of only the network step, batched as that is."""
    config = _ensemble(pipeline.revision, name)
    _add_network_tensors(config, io, pipeline.runtime, native=native)
    _add_step(config, net, _same(tensor.name for tensor in io.inputs), _same(tensor.name for tensor in io.outputs))
    return config


def to_pbtxt(config: Any) -> bytes:
    """Return the text of `config.pbtxt`."""
    from google.protobuf import text_format

    return str(text_format.MessageToString(config)).encode()


def to_plain(config: Any) -> dict[str, Any]:
    """Return the message as JSON values, for its digest."""
    from google.protobuf import json_format

    plain: dict[str, Any] = json_format.MessageToDict(config, preserving_proto_field_name=True)
    return plain


def _model_config(**fields: Any) -> Any:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    return ModelConfig(**fields)


def _python_step(options: StepOptions, *, instances: int, kind: str = "KIND_CPU") -> Any:
    config = _model_config(backend="python")
    config.parameters[PARAMETER].string_value = options.to_parameter()
    config.instance_group.add(count=instances, kind=kind)
    return config


def _without_options(config: Any) -> Any:
    shared = _model_config()
    shared.CopyFrom(config)
    del shared.parameters[PARAMETER]
    return shared


def _native_step(options: NetOptions, io: NetworkIO, runtime: Runtime, target: RenderTarget, *, on_gpu: bool) -> Any:
    config = _model_config(backend="onnxruntime")
    # The backend does not read it: the step's name is a digest that covers the network by it.
    config.parameters[PARAMETER].string_value = options.to_parameter()
    # Patterns are kept for each shape ever seen, so images of many sizes would fill the memory.
    config.parameters["enable_mem_pattern"].string_value = "0"
    if threads := options.intra_op_threads or target.cpus:
        config.parameters["intra_op_thread_count"].string_value = str(threads)
    if on_gpu:
        # By default each new shape is timed with all of cuDNN's algorithms while its first caller waits.
        config.parameters["cudnn_conv_algo_search"].string_value = _HEURISTIC
    # With KIND_AUTO a GPU whose driver Triton cannot use is no reason to refuse a network that does not require one.
    kind = "KIND_CPU" if not on_gpu else "KIND_GPU" if runtime.device == "gpu" else "KIND_AUTO"
    config.instance_group.add(count=runtime.instances, kind=kind)
    accelerators = config.optimization.execution_accelerators
    match options.engine:
        case "openvino":
            accelerators.cpu_execution_accelerator.add(name="openvino")
        case "tensorrt":
            folder = f"{target.engines}/{engines_name(options.artifact_sha256, options)}"
            settings = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": folder}
            settings |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": folder}
            if options.precision is not None:
                settings["precision_mode"] = options.precision.upper()
            if io.has_free_batch and not any(None in tensor.shape[1:] for tensor in io.inputs):
                # One engine for all batches; without a profile TensorRT builds one for each shape that comes.
                sizes = {"min": 1, "opt": options.max_batch_size, "max": options.max_batch_size}
                settings |= {
                    f"trt_profile_{name}_shapes": ",".join(
                        f"{tensor.name}:{'x'.join(map(str, (size, *tensor.shape[1:])))}" for tensor in io.inputs
                    )
                    for name, size in sizes.items()
                }
            accelerators.gpu_execution_accelerator.add(name="tensorrt").parameters.update(settings)
    return config


def _add_network_tensors(config: Any, io: NetworkIO, runtime: Runtime, *, native: bool) -> None:
    """Add a network's tensors and its batch size; a native network whose file fixes the batch has no batch size."""
    if native and not io.has_free_batch:
        _add_inputs(config, io.inputs)
        _add_outputs(config, io.outputs)
        return
    config.max_batch_size = runtime.max_batch_size
    _add_inputs(config, map(_without_batch, io.inputs))
    _add_outputs(config, map(_without_batch, io.outputs))


def _add_histogram(config: Any, target: RenderTarget) -> None:
    if target.has_histograms:
        metric = config.model_metrics.metric_control.add()
        metric.metric_identifier.family = _LATENCY
        metric.histogram_options.buckets.extend(LATENCY_MS)


def _add_warmup(config: Any) -> None:
    """Add a run of each power of two of images in a batch, and of the largest, unless the network takes any size.

    A GPU prepares its kernels for each shape; a proof reaches one instance, with one image.
    """
    if any(-1 in tensor.dims for tensor in config.input):
        return
    largest = max(config.max_batch_size, 1)
    for size in sorted({2**power for power in range(largest.bit_length())} | {largest}):
        sample = config.model_warmup.add(name=f"batch of {size}", batch_size=size)
        for given in config.input:
            tensor = sample.inputs[given.name]
            tensor.data_type, tensor.zero_data = given.data_type, True
            tensor.dims.extend(given.dims)


def _ensemble(revision: str, name: str = "") -> Any:
    config = _model_config(name=name, platform="ensemble")
    config.parameters["revision"].string_value = revision
    config.metric_tags["revision"] = revision
    return config


def _add_step(config: Any, name: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    step = config.ensemble_scheduling.step.add(model_name=name, model_version=VERSION)
    step.input_map.update(inputs)
    step.output_map.update(outputs)


def _fed(inputs: Sequence[TensorSpec], extra: Sequence[str]) -> dict[str, str]:
    """Return the tensors between the steps that a network's inputs get, by the inputs' names."""
    return dict(zip((tensor.name for tensor in inputs), (NETWORK_INPUT, *extra), strict=False))


def _facts(guided: bool, measures: bool) -> tuple[TensorSpec, ...]:
    """Return the tensors about the image that pass from the first step to the last."""
    return (MEASURED_GEOMETRY if measures else GEOMETRY, *([GUIDE] if guided else []))


def _same(names: Iterable[str]) -> dict[str, str]:
    return {name: name for name in names}


def _add_inputs(config: Any, tensors: Iterable[TensorSpec], *, optional: bool = False) -> None:
    for tensor in tensors:
        config.input.add(name=tensor.name, data_type=_dtype(tensor), dims=_dims(tensor.shape), optional=optional)


def _add_outputs(config: Any, tensors: Iterable[TensorSpec]) -> None:
    for tensor in tensors:
        config.output.add(name=tensor.name, data_type=_dtype(tensor), dims=_dims(tensor.shape))


def _renamed(tensor: TensorSpec, name: str, *, free_batch: bool) -> TensorSpec:
    shape = (None, *tensor.shape[1:]) if free_batch else tensor.shape
    return replace(tensor, name=name, shape=shape)


def _without_batch(tensor: TensorSpec) -> TensorSpec:
    return replace(tensor, shape=tensor.shape[1:])


def _dims(shape: Iterable[int | None]) -> list[int]:
    return [-1 if size is None else size for size in shape]


def _dtype(tensor: TensorSpec) -> str:
    return "TYPE_STRING" if tensor.dtype == "BYTES" else f"TYPE_{tensor.dtype}"
