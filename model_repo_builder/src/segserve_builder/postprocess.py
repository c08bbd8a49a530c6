"""The step `post` as a function: a network's raw outputs become the public answer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.encode import ENCODINGS, encode
from segserve_builder.errors import BadImageError, NonFiniteError, PipelineError, UnknownNameError
from segserve_builder.families import FAMILIES
from segserve_builder.public_outputs import PUBLIC_OUTPUTS, empty
from segserve_builder.stages.base import Request
from segserve_builder.steps import named_postprocess
from segserve_builder.values import Candidates, Instances, Keypoints, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from segserve_builder.families.base import Family, NetworkIO
    from segserve_builder.pipeline import Output
    from segserve_builder.public_outputs import Task
    from segserve_builder.stages.base import Stage
    from segserve_builder.steps import Pipeline
    from segserve_builder.values import Placement

MAX_DETECTIONS: Final = 10_000
TASKS: Final[Mapping[Kind, Task]] = {
    Kind.LABELS: "semantic",
    Kind.CLASS_MASKS: "semantic",
    Kind.INSTANCES: "instance",
    Kind.PANOPTIC: "panoptic",
    Kind.BOXES: "detection",
    Kind.KEYPOINTS: "keypoints",
}
"""The kinds of value that are an answer, and the task of a model that gives it."""
ALWAYS: Final = frozenset({"SIZE"})
SCORED: Final[frozenset[Task]] = frozenset({"instance", "detection", "keypoints"})
SCORED_ONLY: Final = ("score_threshold", "max_detections")


class Postprocess:
    """The postprocess stages of one pipeline, from the raw outputs of one image to public outputs."""

    def __init__(self, pipeline: Pipeline, io: NetworkIO) -> None:
        """Check the stages; raises `PipelineError` where they do not fit together."""
        self._task = check_postprocess(pipeline)
        self._pipeline = pipeline
        self._family = _family(pipeline)
        self._stages = postprocess_stages(pipeline)
        self._outputs = tuple(tensor.name for tensor in io.outputs)
        self._empty = {tensor.name: empty(tensor) for tensor in PUBLIC_OUTPUTS[self._task]}

    def __call__(
        self,
        outputs: Mapping[str, NDArray[Any]],
        placement: Placement,
        request: Request,
        wanted: frozenset[str],
        guide: NDArray[Any] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Return the public outputs named in `wanted` (REVISION is not made here) for one image.

        `outputs` are the network's, by their own names, with a batch of one; they may be read-only. `guide` is the
        image as the network saw it, for a pipeline that needs it (`Logits.guide`). Raises
        `NonFiniteError`, `SignatureError` where shapes are not the family's, `BadImageError` where the request asks
        for something that the task does not have.
        """
        self._check_request(request)
        raw = {name: _finite(name, outputs[name]) for name in self._outputs}
        value: Any = self._family.read(raw, placement, self._pipeline)
        for stage in self._stages:
            if stage.needs_guide:
                value = replace(value, guide=guide)
            value = stage(value, request)
        if isinstance(value, Candidates | Instances | Keypoints):
            limit = request.max_detections or self._pipeline.output.max_detections
            value = _best(value, limit)
        return self._encode(value, request, wanted)

    def _encode(self, value: Any, request: Request, wanted: frozenset[str]) -> dict[str, NDArray[Any]]:
        read = wanted if request.outputs is None else wanted & (request.outputs | ALWAYS)
        return encode(value, self._pipeline, request, read) | {name: self._empty[name] for name in wanted - read}

    def _check_request(self, request: Request) -> None:
        unknown = sorted((request.outputs or frozenset()) - self._empty.keys())
        if unknown:
            raise BadImageError(f"parameter 'outputs' names {', '.join(unknown)}; allowed are {', '.join(self._empty)}")
        if self._task in SCORED:
            return
        for name in SCORED_ONLY:
            if getattr(request, name) is not None:
                allowed = ", ".join(sorted(SCORED))
                raise BadImageError(f"parameter {name!r} is for models of task {allowed}; this one is {self._task}")


def check_postprocess(pipeline: Pipeline) -> Task:
    """Check that the stages lead from what the family gives to an answer, and return the task that it is of.

    Raises `PipelineError` that names the stage and its position, and `UnknownNameError` for the family.
    """
    family = _family(pipeline)
    if family.numbers_classes and [item.id for item in pipeline.classes] != list(range(len(pipeline.classes))):
        ids = ", ".join(str(item.id) for item in pipeline.classes)
        raise PipelineError(f"classes have the ids {ids}; they must count up from 0, as the network's channels do")
    kind, before = family.gives, f"family {pipeline.family!r}"
    for position, (name, stage) in enumerate(named_postprocess(pipeline)):
        here = f"postprocess[{position}] {name!r}"
        if kind not in stage.takes:
            takes = " or ".join(sorted(stage.takes))
            raise PipelineError(f"{here} takes {takes}; {before} gives {kind}")
        kind, before = stage.gives or kind, here
    if kind not in TASKS:
        raise PipelineError(f"{before} gives {kind}; the last stage must give {', '.join(TASKS)}")
    return TASKS[kind]


def postprocess_stages(pipeline: Pipeline) -> tuple[Stage, ...]:
    """Return the pipeline's stages, or its family's default ones where it lists none."""
    return tuple(stage for _, stage in named_postprocess(pipeline))


def request_from_parameters(parameters: Mapping[str, Any], output: Output) -> Request:
    """Read a request's parameters.

    Numbers may come as text. Raises `BadImageError` for a parameter that is unknown, not allowed by
    `output.overrides`, or has a value that is not allowed.
    """
    for name in parameters:
        if name not in (*output.overrides, "outputs"):
            allowed = ", ".join((*output.overrides, "outputs"))
            raise BadImageError(f"parameter {name!r} is not allowed; this model allows: {allowed}")
    return Request(**{name: _READERS[name](value) for name, value in parameters.items()})


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


def _encoding(value: Any) -> str:
    if value not in ENCODINGS:
        raise _refused("encoding", value, ", ".join(ENCODINGS))
    return str(value)


def _outputs(value: Any) -> frozenset[str]:
    return frozenset(name.strip() for name in str(value).split(","))


_READERS: Final = {
    "score_threshold": _score_threshold,
    "max_detections": _max_detections,
    "encoding": _encoding,
    "outputs": _outputs,
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

    # A sum is finite only where every value is, and costs a fraction of looking at each.
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(values.sum())
    if suspicious and not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise NonFiniteError(
            f"the network's output {name!r} has {bad} values of {values.size} that are NaN or infinite"
        )
    return values


def _best(value: Candidates | Instances | Keypoints, limit: int) -> Candidates | Instances | Keypoints:
    import numpy as np

    if len(value.scores) <= limit:
        return value
    return value.take(np.argsort(-value.scores, kind="stable")[:limit].tolist())
