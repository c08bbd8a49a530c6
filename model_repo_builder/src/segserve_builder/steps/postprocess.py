"""The step `post` as a function: from a network's raw outputs to the public outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.errors import BadImageError, NonFiniteError, PipelineError, UnknownNameError
from segserve_builder.families import FAMILIES
from segserve_builder.families.base import Family, NetworkIO
from segserve_builder.families.network_inputs import PIXEL_MASK
from segserve_builder.families.promptable import MOST_MASKS, PromptableFamily
from segserve_builder.spec.model_spec import Output
from segserve_builder.spec.names import (
    CALLER_HEADER,
    OPTIONAL_OUTPUTS,
    SLICE_HEADER,
    SLICE_PARAMETER,
    listed_outputs,
)
from segserve_builder.stages import POSTPROCESS
from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.stages.temporal_smoothing import TemporalSmoothing
from segserve_builder.steps.encode import ENCODINGS, OVERLAYS, encode
from segserve_builder.steps.out_of_distribution import check_score
from segserve_builder.steps.pipeline import Pipeline, named_postprocess
from segserve_builder.steps.public_outputs import SCORED, Task, empty, public_outputs
from segserve_builder.steps.streams import Frame, smoothing_of
from segserve_builder.values import Candidates, Instances, KeypointDetections, Queries, ResizeTransform, ValueType

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_DETECTIONS: Final = 10_000
_OF_SLICES: Final = (SLICE_HEADER, SLICE_PARAMETER)
_NO_OPTIONS: Final = (*_OF_SLICES, CALLER_HEADER)
TASKS: Final[Mapping[ValueType, Task]] = {
    ValueType.LABELS: "semantic",
    ValueType.CLASS_MASKS: "semantic",
    ValueType.INSTANCES: "instance",
    ValueType.PANOPTIC: "panoptic",
    ValueType.BOXES: "detection",
    ValueType.KEYPOINTS: "keypoints",
}
"""The types of value that are answers, with the task of a model that returns them."""
ALWAYS: Final = frozenset({"SIZE"})
SCORED_ONLY: Final = ("score_threshold", "max_detections")


class Postprocess:
    """The postprocess stages of one pipeline, from the raw outputs of one image to public outputs."""

    def __init__(self, pipeline: Pipeline, io: NetworkIO, second: NetworkIO | None = None) -> None:
        """Check the stages; raises `PipelineError` if they do not fit together.

        `second` are the tensors of the pipeline's second network, if it has one.
        """
        self._task = check_postprocess(pipeline)
        self._pipeline = pipeline
        self._reader = _Reader(pipeline, io)
        self._second = None if pipeline.second is None or second is None else _Reader(pipeline.second, second)
        is_streamed = smoothing_of(pipeline) is not None
        prompts = pipeline.decoder is not None
        outputs = public_outputs(self._task, streams=is_streamed, flags=pipeline.flags_images, prompts=prompts)
        self._empty = {tensor.name: empty(tensor) for tensor in outputs}

    def __call__(
        self,
        outputs: Mapping[str, NDArray[Any]],
        transform: ResizeTransform,
        request: RequestOptions,
        wanted: frozenset[str],
        guide: NDArray[Any] | None = None,
        second: Mapping[str, NDArray[Any]] | None = None,
        frame: Frame | None = None,
        observe: Callable[[Any], object] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Return the public outputs named in `wanted` for one image, except those about revision, stream and
        scores.

        `outputs` are the network's, by their own names, with a batch of one; they may be read-only. `guide` is the
        image at the network's resolution, for a pipeline that needs it (`Logits.guide`); `second` are the outputs of
        its second network; `frame` is the image's place in a stream, whose history is then replaced; `observe` is
        called with the answer as a value, such as `Instances`. Raises `NonFiniteError`, `SignatureError` if shapes are
        not the family's, and `BadImageError` if the request sets an option that the task does not have.
        """
        value = self.value(outputs, transform, request, guide, second, frame)
        if observe is not None:
            observe(value)
        return self.encoded(value, request, wanted)

    def value(
        self,
        outputs: Mapping[str, NDArray[Any]],
        transform: ResizeTransform,
        request: RequestOptions,
        guide: NDArray[Any] | None = None,
        second: Mapping[str, NDArray[Any]] | None = None,
        frame: Frame | None = None,
    ) -> Any:
        """Return the answer to one image as a value; arguments and errors are as for a call."""
        self._check_request(request)
        instances = None
        if self._second is not None and second is not None:
            instances = _with_ids(self._second(second, transform, request), self._pipeline)
        value: Any = self._reader(outputs, transform, request, guide, instances, frame)
        if isinstance(value, Candidates | Instances | KeypointDetections):
            limit = request.max_detections or self._pipeline.output.max_detections
            value = _best(value, limit)
        return value

    def encoded(self, value: Any, request: RequestOptions, wanted: frozenset[str]) -> dict[str, NDArray[Any]]:
        """Return the public outputs named in `wanted` of an answer."""
        read = wanted if request.outputs is None else wanted & (request.outputs | ALWAYS)
        return encode(value, self._pipeline, request, read) | {name: self._empty[name] for name in wanted - read}

    def encoded_masks(self, value: Any, request: RequestOptions, transform: ResizeTransform) -> tuple[int, str]:
        """Return how much `encoded` and an overlay compute: the pixels of all masks, and of which kind they are."""
        found = (getattr(value, name, None) for name in ("masks", "segments"))
        masks = next((each for each in found if each is not None), self._pipeline.classes)
        encoding = request.encoding or self._pipeline.output.encoding or "default"
        if request.outputs is not None and not request.outputs & {"MASKS", "LABELS"}:
            encoding = "nothing"
        kind = f"pixels of masks as {encoding}{f' and a {request.overlay}' if request.overlay else ''}"
        return transform.height * transform.width * max(len(masks), 1), kind

    def _check_request(self, request: RequestOptions) -> None:
        # One list of outputs is for all revisions of a model.
        unknown = sorted((request.outputs or frozenset()) - self._empty.keys() - set(OPTIONAL_OUTPUTS))
        if unknown:
            raise BadImageError(
                f"the model has no output {', '.join(unknown)}; its outputs are {', '.join(self._empty)}"
            )
        if self._task in SCORED:
            return
        for name in SCORED_ONLY:
            if getattr(request, name) is not None:
                allowed = ", ".join(sorted(SCORED))
                raise BadImageError(f"parameter {name!r} is for models of task {allowed}; this one is {self._task}")


class _Reader:
    """Reads one network's outputs by its family, and applies its pipeline's stages."""

    def __init__(self, pipeline: Pipeline, io: NetworkIO) -> None:
        self._pipeline = pipeline
        self._family = _family(pipeline)
        self._stages = postprocess_stages(pipeline)
        self._outputs = tuple(tensor.name for tensor in io.outputs)
        self._is_masked = any(tensor.name.lower() == PIXEL_MASK for tensor in io.extra or ())

    def __call__(
        self,
        outputs: Mapping[str, NDArray[Any]],
        transform: ResizeTransform,
        request: RequestOptions,
        guide: NDArray[Any] | None = None,
        instances: Instances | None = None,
        frame: Frame | None = None,
    ) -> Any:
        raw = {name: _finite(name, outputs[name]) for name in self._outputs}
        value: Any = self._family.read(raw, transform, self._pipeline)
        if self._is_masked and isinstance(value, Queries):
            # Networks that get the padding as a mask count positions, and so boxes, without it.
            value = replace(value, within_image=True)
        for stage in self._stages:
            if stage.needs_guide:
                value = replace(value, guide=guide)
            if stage.needs_instances:
                value = replace(value, instances=instances)
            if frame is not None and isinstance(stage, TemporalSmoothing):
                value, frame.history = stage.step(value, frame.history, frame.number)
            else:
                value = stage(value, request)
        return value


def check_postprocess(pipeline: Pipeline) -> Task:
    """Check that the stages lead from the family's value to an answer, and return its task.

    Raises `PipelineError` that names the stage and its position, and `UnknownNameError` for the family.
    """
    family = _family(pipeline)
    check_second(pipeline)
    check_decoder(pipeline)
    smoothing_of(pipeline)
    if family.numbers_classes and [item.id for item in pipeline.classes] != list(range(len(pipeline.classes))):
        ids = ", ".join(str(item.id) for item in pipeline.classes)
        raise PipelineError(f"classes have the ids {ids}; they must count up from 0, as the network's channels do")
    kind, before = family.gives, f"family {pipeline.family!r}"
    for position, (name, stage) in enumerate(named_postprocess(pipeline)):
        here = f"postprocess[{position}] {name!r}"
        if kind not in stage.takes:
            takes = " or ".join(sorted(stage.takes))
            raise PipelineError(f"{here} takes {takes}; {before} gives {kind}")
        if isinstance(stage, TemporalSmoothing):
            stage.check_place(kind)
        kind, before = stage.gives or kind, here
    if kind not in TASKS:
        raise PipelineError(f"{before} gives {kind}; the last stage must give {', '.join(TASKS)}")
    if pipeline.out_of_distribution is not None:
        check_score(pipeline.out_of_distribution.score, kind, scored=family.gives != ValueType.LABELS)
    return TASKS[kind]


def check_fusion(pipeline: Pipeline, *, fuses: bool) -> None:
    """Raise `PipelineError` unless a stage needs a second network's instances if and only if there is one, `fuses`."""
    needing = [name for name, stage in named_postprocess(pipeline) if stage.needs_instances]
    if needing and not fuses:
        raise PipelineError(f"the stage {needing[0]!r} needs a second network: `instances` is missing")
    if fuses and not needing:
        known = ", ".join(name for name, stage in POSTPROCESS.items() if stage.needs_instances)
        raise PipelineError(f"no postprocess stage uses the second network's instances; these do: {known}")


def check_second(pipeline: Pipeline) -> None:
    """Check that there is a second network if and only if a stage needs its instances.

    Raises `PipelineError` if not, if the second network returns something else, or if no class is a thing, and
    `UnknownNameError` for a family.
    """
    _family(pipeline)
    second = pipeline.second
    check_fusion(pipeline, fuses=second is not None)
    if second is None:
        return
    if not second.classes:
        raise PipelineError("the second network finds the classes that are things; no class has `thing: true`")
    if second.needs_guide:
        raise PipelineError("stages that need the image are for the first network; `instances` lists one")
    try:
        task = check_postprocess(second)
    except PipelineError as error:
        raise PipelineError(f"instances: {error}") from error
    if task != "instance":
        raise PipelineError(f"the second network's stages give an answer of task {task}; they must give instances")


def check_decoder(pipeline: Pipeline) -> None:
    """Check that there is a prompt decoder if and only if the family needs one, and that the rest fits it.

    Raises `PipelineError` if not, and `UnknownNameError` for the family.
    """
    family = _family(pipeline)
    if not isinstance(family, PromptableFamily):
        if pipeline.decoder is not None:
            known = ", ".join(name for name, each in FAMILIES.items() if isinstance(each, PromptableFamily))
            raise PipelineError(f"family {pipeline.family!r} has no prompt decoder; with `decoder` allowed are {known}")
        return
    if pipeline.decoder is None:
        raise PipelineError(f"family {pipeline.family!r} needs the file of its prompt decoder: `decoder` is missing")
    runtime = pipeline.runtime
    unlike, limit = pipeline.out_of_distribution, pipeline.output.max_detections
    has_own = runtime.instances > 1 or runtime.engine is not None or runtime.device == "gpu"
    strange = {
        "instances": pipeline.instances is not None,
        "cascade": pipeline.cascade is not None,
        "inference": bool(pipeline.inference),
        "runtime with instances, engine or device: gpu": has_own,
        "stages of postprocess": bool(pipeline.postprocess),
        "outOfDistribution by the score of an answer": unlike is not None and unlike.score != "detail",
        f"an output.maxDetections below {MOST_MASKS}, the masks of all prompts": limit < MOST_MASKS,
    }
    if named := [name for name, is_there in strange.items() if is_there]:
        raise PipelineError(
            f"family {pipeline.family!r} runs both files in one process on a CPU and answers with each prompt's masks, "
            f"without {named[0]}"
        )


def postprocess_stages(pipeline: Pipeline) -> tuple[Stage, ...]:
    """Return the pipeline's stages, or its family's default ones if it lists none."""
    return tuple(stage for _, stage in named_postprocess(pipeline))


def slice_of_parameters(parameters: Mapping[str, Any]) -> str:
    """Return the label by which a request says where its image comes from, empty without one."""
    # Straight to Triton, a header's name keeps its capitals.
    given = {name.lower(): value for name, value in parameters.items()}
    return str(next((given[name] for name in _OF_SLICES if given.get(name)), ""))


def request_from_parameters(parameters: Mapping[str, Any], output: Output) -> RequestOptions:
    """Read a request's parameters.

    Numbers may come as text. Where an image comes from and who calls are no options and change no answer. Raises
    `BadImageError` for a parameter that is unknown, not allowed by `output.overrides`, or has a value that is not
    allowed.
    """
    options = {name: value for name, value in parameters.items() if name.lower() not in _NO_OPTIONS}
    for name in options:
        if name not in (*output.overrides, "outputs", "overlay"):
            allowed = ", ".join((*output.overrides, "outputs", "overlay"))
            raise BadImageError(f"parameter {name!r} is not allowed; this model allows: {allowed}")
    return RequestOptions(**{name: _READERS[name](value) for name, value in options.items()})


def _score_threshold(value: Any) -> float:
    number = _number("score_threshold", value, "a number from 0 to 1")
    if not 0 <= number <= 1:
        raise _refused("score_threshold", value, "a number from 0 to 1")
    return number


def _max_detections(value: Any) -> int:
    allowed = f"a whole number from 1 to {MAX_DETECTIONS}"
    number = _number("max_detections", value, allowed)
    if not 1 <= number <= MAX_DETECTIONS or number != int(number):
        raise _refused("max_detections", value, allowed)
    return int(number)


def _one_of(name: str, allowed: Sequence[str], value: Any) -> str:
    if value not in allowed:
        raise _refused(name, value, ", ".join(allowed))
    return str(value)


_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "score_threshold": _score_threshold,
    "max_detections": _max_detections,
    "encoding": partial(_one_of, "encoding", ENCODINGS),
    "outputs": listed_outputs,
    "overlay": partial(_one_of, "overlay", OVERLAYS),
}


def _number(name: str, value: Any, allowed: str) -> float:
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not math.isfinite(number):
        raise _refused(name, value, allowed)
    return number


def _refused(name: str, value: Any, allowed: str) -> BadImageError:
    return BadImageError(f"parameter {name!r} is {value!r}; allowed: {allowed}")


def _family(pipeline: Pipeline) -> Family:
    if pipeline.family not in FAMILIES:
        raise UnknownNameError("family", pipeline.family, FAMILIES)
    return FAMILIES[pipeline.family]


def _finite(name: str, values: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    # If the sum is finite, all values are; that costs a fraction of checking each.
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(values.sum())
    if suspicious and not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise NonFiniteError(
            f"the network's output {name!r} has {bad} values of {values.size} that are NaN or infinite"
        )
    return values


def _with_ids(instances: Instances, pipeline: Pipeline) -> Instances:
    """Return what a second network found with the ids that the pipeline gives its classes."""
    import numpy as np

    second = pipeline.second
    if second is None or not _family(second).numbers_classes:
        return instances
    ids = np.array([item.id for item in pipeline.classes if item.thing], np.int32)
    return replace(instances, classes=ids[instances.classes])


def _best(
    value: Candidates | Instances | KeypointDetections, limit: int
) -> Candidates | Instances | KeypointDetections:
    import numpy as np

    if len(value.scores) <= limit:
        return value
    return value.take(np.argsort(-value.scores, kind="stable")[:limit].tolist())
