"""The steps of a call, which clients carry out: `Send` a request, or `Pause`; options and timeouts of a request."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar
from urllib.parse import quote

from segserve.calls.prompts import Prompt
from segserve.results.values import ENCODINGS, Encoding
from segserve_builder.spec.names import MODEL_NAME_MAX_LENGTH, MODEL_NAME_PATTERN, network_alias
from segserve_common.errors import BadRequestError
from segserve_common.kserve import InferRequest, Parameter

if TYPE_CHECKING:
    from segserve.results.result import Result

T = TypeVar("T")

TransportName: TypeAlias = Literal["http", "grpc"]
StreamId: TypeAlias = str | int
SEQUENCE_HEADER: Final = "x-sequence-id"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Timeouts of a call in seconds.

    `total_s` covers the whole call including retries and pauses; the gateway receives the remainder. The others apply
    to one attempt: `connect_s` to reach the gateway, `read_s` and `write_s` without progress, `pool_s` until a pooled
    connection is free; None leaves them to the total. gRPC uses only the total. Raises `BadRequestError` for values
    that are not above 0.
    """

    total_s: float = 30.0
    connect_s: float | None = 5.0
    read_s: float | None = None
    write_s: float | None = None
    pool_s: float | None = None

    def __post_init__(self) -> None:
        for part in fields(self):
            seconds = getattr(self, part.name)
            if seconds is None and part.name != "total_s":
                continue
            if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
                name = "timeout_s" if part.name == "total_s" else part.name
                raise BadRequestError(f"{name} must be a finite number of seconds above 0, got {seconds!r}")

    def changed(self, by: float | Timeouts | None) -> Timeouts:
        """Return these timeouts changed by `timeout_s=by`: replaced, with another total, or unchanged for None."""
        if by is None:
            return self
        return by if isinstance(by, Timeouts) else replace(self, total_s=by)


DEFAULT_TIMEOUTS: Final = Timeouts()
_OTHER_NAMES: Final = {
    "score_threshold": "confidence conf conf_thres conf_threshold confidence_threshold min_confidence min_score "
    "score score_thr score_thresh thresh threshold box_threshold",
    "max_detections": "limit max_det max_dets max_objects max_results top_k topk",
    "timeout_s": "deadline timeout timeout_seconds",
    "encoding": "format mask_format output_format",
}
"""The options that other libraries call otherwise."""
MEANT: Final = {other: name for name, others in _OTHER_NAMES.items() for other in others.split()}


def check_option_names(given: Iterable[str], options: type[Any]) -> None:
    """Raise `TypeError` for names that are not fields of `options`, with the one that is meant."""
    allowed = [one.name for one in fields(options) if one.name not in ("position", "prompt")]
    for name in given:
        if name not in allowed:
            meant = MEANT.get(name) or next(iter(difflib.get_close_matches(name, allowed, 1)), "")
            advice = f" (did you mean {meant}?)" if meant in allowed else ""
            raise TypeError(f"there is no option {name!r}{advice}; there are: {', '.join(sorted(allowed))}")


@dataclass(frozen=True, slots=True)
class ConfigRequest:
    """A request for a model's configuration; its reply is a `ModelInfo`."""

    model: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request within `timeout_s` and reply with its answer, or throw the `SegserveError` into the flow."""

    request: ConfigRequest | InferRequest
    timeout_s: float
    timeouts: Timeouts = DEFAULT_TIMEOUTS
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pause:
    """Let this many seconds pass."""

    seconds: float


Flow: TypeAlias = "Generator[Send | Pause, Any, T]"


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """The place of a frame in a stream; `number` counts frames from 0, including those that were not sent."""

    stream: StreamId
    number: int
    starts: bool = False
    ends: bool = False

    def parameters(self) -> dict[str, Parameter]:
        """Return the request parameters: Triton's sequence parameters, and the frame's number."""
        flags = {"sequence_start": self.starts, "sequence_end": self.ends}
        return {"sequence_id": self.stream, "frame": self.number, **flags}


@dataclass(frozen=True, slots=True)
class SegmentOptions:
    """The options of one segmentation; None leaves an option to the model's resource.

    Raises `BadRequestError` for a value that cannot be sent.
    """

    model: str
    score_threshold: float | None = None
    max_detections: int | None = None
    encoding: Encoding | None = None
    confidence: bool = False
    timeout_s: float | Timeouts | None = None
    request_id: str | None = None
    position: StreamPosition | None = None
    prompt: Prompt | None = None
    expect: type[Result] | None = None

    @classmethod
    def of(cls, model: str, **given: Any) -> SegmentOptions:
        """Return the options of a call; raises `TypeError` for a name that is unknown."""
        check_option_names(given, cls)
        return cls(model, **given)

    def __post_init__(self) -> None:
        check_model_name(self.model)
        if not isinstance(self.confidence, bool):
            raise BadRequestError(
                "confidence must be True or False, whether to compute the mean probability of each class, got "
                f"{self.confidence!r}: score_threshold={self.confidence!r} leaves out detections of lower scores"
            )
        if self.score_threshold is not None and not _is_number(self.score_threshold):
            raise BadRequestError(f"score_threshold must be a finite number, got {self.score_threshold!r}")
        if self.max_detections is not None and not _is_index(self.max_detections):
            raise BadRequestError(f"max_detections must be a whole number, got {self.max_detections!r}")
        if self.encoding is not None and self.encoding not in ENCODINGS:
            raise BadRequestError(f"encoding must be one of {', '.join(ENCODINGS)}, got {self.encoding!r}")

    def parameters(self, outputs: Iterable[str]) -> dict[str, Parameter]:
        """Return the request parameters: the options that are set, and the outputs to compute."""
        parameters: dict[str, Parameter] = {"outputs": ",".join(outputs)}
        if self.score_threshold is not None:
            parameters["score_threshold"] = float(self.score_threshold)
        if self.max_detections is not None:
            parameters["max_detections"] = operator.index(self.max_detections)
        if self.encoding is not None:
            parameters["encoding"] = self.encoding
        for more in (self.position, self.prompt):
            if more is not None:
                parameters |= more.parameters()
        return parameters

    def headers(self) -> dict[str, str]:
        """Return the header by which a gateway sends a stream or session to one server: its id, percent-encoded."""
        stream = self.position.stream if self.position is not None else self.prompt and self.prompt.session
        return {} if stream is None else {SEQUENCE_HEADER: quote(str(stream), safe="")}


def check_model_name(model: object) -> None:
    """Raise `BadRequestError` for a name that no model can have; it might lead to another model."""
    name = model.removesuffix(_NETWORK) if isinstance(model, str) else ""
    if len(name) > MODEL_NAME_MAX_LENGTH or not _MODEL_NAME.fullmatch(name):
        raise BadRequestError(
            f"a model's name must match {MODEL_NAME_PATTERN.strip('^$')} (lower-case letters and digits, joined by "
            f"single hyphens) with at most {MODEL_NAME_MAX_LENGTH} characters, got {model!r}"
        )


_MODEL_NAME: Final = re.compile(MODEL_NAME_PATTERN)
_NETWORK: Final = network_alias("")


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False


def _is_index(value: Any) -> bool:
    try:
        return operator.index(value) is not None
    except TypeError:
        return False
