"""What a client does, without I/O: which calls it makes, when it tries again, what it remembers of models.

A flow is a generator that yields the next `Send` or `Wait`; a client performs it and sends in what came back,
or throws the error in. `Client` and `AsyncClient` differ in nothing else.
"""

from __future__ import annotations

import random
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar
from uuid import uuid4

from segserve.calls.answers import read_result, read_revision, wanted_outputs
from segserve.calls.headers import REQUEST_ID, checked_request_id
from segserve.calls.hooks import SILENT, ErrorEvent, Hooks, RequestEvent, ResponseEvent, RetryEvent
from segserve.calls.timeouts import DEFAULT, Timeouts
from segserve.errors import DeadlineExceededError, ModelNotFoundError, RequestTimeoutError
from segserve.results.base import ENCODINGS
from segserve.results.pixels import fitted
from segserve_common.errors import BadRequestError, SegserveError
from segserve_common.kserve import InferAnswer, InferRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping

    from segserve.calls.frames import StreamPosition
    from segserve.calls.hooks import RequestKind
    from segserve.calls.telemetry import CallSpan, Telemetry
    from segserve.results.base import Encoding, ModelInfo
    from segserve.results.result import Result
    from segserve_common.kserve import Parameter, Tensor

T = TypeVar("T")

BACKOFF_S: Final = 0.1
REFETCH_S: Final = 10.0
# The gateway is told the same deadline, and may be the first to say that it has passed.
SLACK_S: Final = 0.05
SEQUENCE: Final = "sequence_id"


@dataclass(frozen=True, slots=True)
class ConfigRequest:
    """A question for a model's configuration; its reply is a `ModelInfo`."""

    model: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request and reply with its answer, or throw the `SegserveError`, within `timeout_s`."""

    request: ConfigRequest | InferRequest
    timeout_s: float
    timeouts: Timeouts = DEFAULT
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wait:
    """Let so many seconds pass."""

    seconds: float


Flow: TypeAlias = "Generator[Send | Wait, Any, T]"


@dataclass(frozen=True, slots=True)
class SegmentOptions:
    """What one call asks of a model; None leaves it to the model's file."""

    model: str
    score_threshold: float | None = None
    max_detections: int | None = None
    encoding: Encoding | None = None
    confidence: bool = False
    timeout_s: float | Timeouts | None = None
    request_id: str | None = None
    position: StreamPosition | None = None

    def parameters(self, outputs: Iterable[str]) -> dict[str, Parameter]:
        """Return the request parameters: what is set, and which outputs are read, so that no other is computed."""
        parameters: dict[str, Parameter] = {"outputs": ",".join(outputs)}
        if self.score_threshold is not None:
            parameters["score_threshold"] = float(self.score_threshold)
        if self.max_detections is not None:
            parameters["max_detections"] = int(self.max_detections)
        if self.encoding is not None:
            if self.encoding not in ENCODINGS:
                raise BadRequestError(f"encoding is one of {', '.join(ENCODINGS)}, got {self.encoding!r}")
            parameters["encoding"] = self.encoding
        return parameters if self.position is None else {**parameters, **self.position.parameters()}


@dataclass(frozen=True, slots=True)
class Policy:
    """How a client asks: all that `with_options` can change."""

    timeouts: Timeouts = DEFAULT
    retries: int = 2
    headers: Mapping[str, str] = field(default_factory=dict)
    hooks: Hooks = SILENT

    def __post_init__(self) -> None:
        if not isinstance(self.retries, int) or self.retries < 0:
            raise BadRequestError(f"retries is a whole number and at least 0, got {self.retries!r}")


@dataclass(frozen=True, slots=True)
class KnownModels:
    """What is known of models, shared by all copies of a client. Safe for threads: each change is one of a dict."""

    latest: dict[str, ModelInfo] = field(default_factory=dict)
    by_revision: dict[str, ModelInfo] = field(default_factory=dict)
    asked_at: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Call:
    """One call of the caller's, with all its requests and tries."""

    model: str
    request_id: str
    deadline: float
    timeouts: Timeouts
    headers: Mapping[str, str]
    span: CallSpan | None
    revision: str | None = None

    def about(self, error: SegserveError) -> None:
        """Note on an error what is known."""
        error.model = error.model or self.model
        error.revision = error.revision or self.revision
        error.request_id = error.request_id or self.request_id


@dataclass(frozen=True, slots=True)
class Session:
    """What one client's requests share. Safe for threads."""

    policy: Policy = field(default_factory=Policy)
    telemetry: Telemetry | None = None
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random
    known: KnownModels = field(default_factory=KnownModels)

    def with_policy(self, policy: Policy) -> Session:
        """Return a session that asks in another way, and knows the same models."""
        return replace(self, policy=policy)

    def segment(self, image: Tensor, options: SegmentOptions) -> Flow[Result]:
        """Ask one model for one image's segmentation."""
        model, known = options.model, self.known
        with self._call("segment", model, options.timeout_s, options.request_id) as call:
            info = known.latest.get(model) or (yield from self._fetch(model, call))
            outputs = wanted_outputs(info, confidence=options.confidence)
            request = InferRequest(
                model, (fitted(image, info.pixels),), outputs, options.parameters(outputs), call.request_id
            )
            try:
                answer = yield from self._attempts(request, call)
            except (BadRequestError, ModelNotFoundError):
                # The name may have gone to a model with other outputs since.
                known.latest.pop(model, None)
                raise
            call.revision = read_revision(answer)
            result = read_result(answer, (yield from self._info_of(call.revision, info, call)))
            return replace(result, request_id=call.request_id)

    def model_info(self, model: str) -> Flow[ModelInfo]:
        """Ask for what is served under a name now."""
        with self._call("model_info", model) as call:
            return (yield from self._fetch(model, call))

    @contextmanager
    def _call(
        self, name: str, model: str, timeout_s: float | Timeouts | None = None, request_id: str | None = None
    ) -> Iterator[Call]:
        """Begin a call, and see to its end: what is known goes onto its error, to its hooks and its span."""
        policy = self.policy
        timeouts = policy.timeouts.changed(timeout_s)
        request_id = uuid4().hex if request_id is None else checked_request_id(request_id)
        headers = {**policy.headers, REQUEST_ID: request_id}
        span = None
        if self.telemetry is not None:
            span = self.telemetry.start(name, model, request_id)
            headers |= span.headers()
        call = Call(model, request_id, self.clock() + timeouts.total_s, timeouts, headers, span)
        try:
            yield call
        except SegserveError as error:
            call.about(error)
            if policy.hooks.listening:
                policy.hooks.error(ErrorEvent(model, request_id, error))
            if span is not None:
                span.failed(error)
            raise
        finally:
            if span is not None:
                span.end(call.revision)

    def _info_of(self, revision: str, known: ModelInfo, call: Call) -> Flow[ModelInfo]:
        """Return the info of the revision that answered, or what is known where that one does not tell it.

        While a change is under way the gateway sends each question to either revision. Classes keep their
        numbers over revisions, so the other's names do for a while.
        """
        by_revision, asked_at = self.known.by_revision, self.known.asked_at
        if revision in by_revision or known.revision is None:
            return by_revision.get(revision, known)
        now = self.clock()
        if now - asked_at.get(revision, -REFETCH_S) < REFETCH_S:
            return known
        asked_at[revision] = now
        try:
            return (yield from self._fetch(known.model, call))
        except SegserveError:
            return known

    def _fetch(self, model: str, call: Call) -> Flow[ModelInfo]:
        info: ModelInfo = yield from self._attempts(ConfigRequest(model), call)
        self.known.latest[model] = info
        if info.revision is not None:
            self.known.by_revision[info.revision] = info
        return info

    def _attempts(self, request: ConfigRequest | InferRequest, call: Call) -> Flow[Any]:
        """Send until it is answered, an error will not pass, the retries are used or the time is up."""
        for attempt in count(1):
            try:
                return (yield from self._attempt(request, call, attempt))
            except SegserveError as error:
                pause_s = self._pause_s(error, request, attempt)
                if pause_s is None or self.clock() + pause_s >= call.deadline:
                    raise
                call.about(error)
                self._tell_retry(request, call, attempt, error, pause_s)
            yield Wait(pause_s)
        raise AssertionError("unreachable")

    def _attempt(self, request: ConfigRequest | InferRequest, call: Call, attempt: int) -> Flow[Any]:
        began = self.clock()
        left = call.deadline - began
        if left <= 0:
            raise DeadlineExceededError("no time was left to send the request")
        hooks = self.policy.hooks if self.policy.hooks.listening else None
        about = (call.model, call.request_id, _kind(request), attempt)
        if hooks is not None:
            hooks.request(RequestEvent(*about, _sent_bytes(request), left))
        try:
            answer = yield Send(request, left, call.timeouts, call.headers)
        except RequestTimeoutError as error:
            if isinstance(error, DeadlineExceededError) or self.clock() < call.deadline - SLACK_S:
                raise
            raise DeadlineExceededError(error.message, status=error.status, revision=error.revision) from error
        if hooks is not None:
            hooks.response(ResponseEvent(*about, self.clock() - began, _revision(answer)))
        return answer

    def _pause_s(self, error: SegserveError, request: ConfigRequest | InferRequest, attempt: int) -> float | None:
        """Return how long to wait before another try, or None for no other."""
        if not error.retryable or attempt > self.policy.retries:
            return None
        if not error.untouched and _is_frame(request):
            return None
        # Those who were turned away together do not come back together.
        backoff_s: float = BACKOFF_S * 2 ** (attempt - 1) * (0.5 + self.jitter())
        return backoff_s + (error.retry_after_s or 0.0)

    def _tell_retry(
        self, request: ConfigRequest | InferRequest, call: Call, attempt: int, error: SegserveError, pause_s: float
    ) -> None:
        if call.span is not None:
            call.span.retried(attempt, error)
        if self.policy.hooks.listening:
            about = (call.model, call.request_id, _kind(request), attempt)
            self.policy.hooks.retry(RetryEvent(*about, error, pause_s))


def _kind(request: ConfigRequest | InferRequest) -> RequestKind:
    return "infer" if isinstance(request, InferRequest) else "config"


def _is_frame(request: ConfigRequest | InferRequest) -> bool:
    """Whether it is a frame of a stream: a server that has seen it would take it for the next one."""
    return isinstance(request, InferRequest) and SEQUENCE in request.parameters


def _sent_bytes(request: ConfigRequest | InferRequest) -> int:
    return sum(len(tensor.raw) for tensor in request.inputs) if isinstance(request, InferRequest) else 0


def _revision(answer: ModelInfo | InferAnswer) -> str | None:
    return read_revision(answer) if isinstance(answer, InferAnswer) else answer.revision
