"""Sessions: the requests of a call, their retries, and the cache of models, without I/O.

A flow is a generator that yields the next `Send` or `Pause`; a client carries it out, and sends the reply or throws the
error into the flow. `Client` and `AsyncClient` differ only in that.
"""

from __future__ import annotations

import math
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, Final

from segserve.calls.answers import (
    OPTIONAL_OUTPUTS,
    check_expected,
    check_size,
    read_embedding_id,
    read_result,
    read_revision,
    wanted_outputs,
)
from segserve.calls.credentials import REQUEST_ID, checked_request_id
from segserve.calls.hooks import SILENT, ErrorEvent, Hooks, RequestEvent, RequestKind, ResponseEvent, RetryEvent
from segserve.calls.steps import (
    DEFAULT_TIMEOUTS,
    ConfigRequest,
    Flow,
    Pause,
    SegmentOptions,
    Send,
    Timeouts,
    check_model_name,
)
from segserve.calls.telemetry import CallSpan, Telemetry
from segserve.errors import (
    DeadlineExceededError,
    EmbeddingLostError,
    ImageTooLargeError,
    ModelNotFoundError,
    PoolTimeoutError,
    ReadTimeoutError,
    RequestTimeoutError,
    RequestTooLargeError,
    ResultTypeError,
    WriteTimeoutError,
)
from segserve.results.images import MAX_DECODED_PIXELS, PIXELS, image_size, to_pixel_format
from segserve.results.objects import InstanceResult
from segserve.results.result import Result
from segserve.results.values import ModelInfo
from segserve_common.backoff import Backoff
from segserve_common.errors import BadRequestError, SegserveError
from segserve_common.image_file import TIFF_SIGNATURES
from segserve_common.kserve import InferAnswer, InferRequest, Tensor

BACKOFF: Final = Backoff(first_s=0.1, jitter=(0.5, 1.5))
REFETCH_S: Final = 10.0
# The gateway gets the same deadline and may report it first.
SLACK_S: Final = 0.05
SEQUENCE: Final = "sequence_id"
# Images of up to two tiles of the default size are hardly faster in tiles.
TILED_MEGAPIXELS: Final = 2.1
TILE_PX: Final = 1024
# The limit in the words of a server, and its words for the tiled way.
LIMIT: Final = re.compile(r"allowed are 1 to (\d+) \(input\.maxPixels\)")
_IN_TILES: Final = "segment this one in tiles (`segserve batch`, `Client.segment_tiled`)"
# Triton's words for a request that does not fit the model: its inputs or outputs differ from the client's.
_CHANGED_MODEL: Final = re.compile(r"\b(?:in|out)puts?\b|\b(?:PIXELS|IMAGE)\b|datatype|shape", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CallPolicy:
    """The settings of a client that `with_options` can change."""

    timeouts: Timeouts = DEFAULT_TIMEOUTS
    retries: int = 2
    headers: Mapping[str, str] = field(default_factory=dict)
    hooks: Hooks = SILENT

    def __post_init__(self) -> None:
        if not isinstance(self.hooks, Hooks):
            raise BadRequestError(f"hooks must be a segserve.Hooks, got {type(self.hooks).__name__}")
        if not isinstance(self.retries, int) or self.retries < 0:
            raise BadRequestError(f"retries must be a non-negative integer, got {self.retries!r}")


@dataclass(frozen=True, slots=True)
class ModelCache:
    """Infos of models, shared by all copies of a client. Thread-safe: each change is a single dict operation."""

    latest: dict[str, ModelInfo] = field(default_factory=dict)
    by_revision: dict[str, ModelInfo] = field(default_factory=dict)
    fetched_at: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Call:
    """One call of the caller's, with all its requests and attempts."""

    model: str
    request_id: str
    deadline: float
    timeouts: Timeouts
    headers: Mapping[str, str]
    span: CallSpan | None
    revision: str | None = None

    def annotate(self, error: SegserveError) -> None:
        """Add the model, revision and request id to an error that lacks them."""
        error.model = error.model or self.model
        error.revision = error.revision or self.revision
        error.request_id = error.request_id or self.request_id


@dataclass(frozen=True, slots=True)
class Session:
    """State and policy that a client's requests share. Thread-safe."""

    policy: CallPolicy = field(default_factory=CallPolicy)
    telemetry: Telemetry | None = None
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random
    models: ModelCache = field(default_factory=ModelCache)

    def with_policy(self, policy: CallPolicy) -> Session:
        """Return a session with another policy and the same cache of models."""
        return replace(self, policy=policy)

    def segment(self, image: Tensor, options: SegmentOptions) -> Flow[Result]:
        """Segment one image with one model."""
        result, _ = yield from self._segmented(image, options)
        return result

    def prompted(self, image: Tensor, options: SegmentOptions) -> Flow[tuple[InstanceResult, str]]:
        """Segment one image by the prompt of the options, and return the id of its embedding as well."""
        result, answer = yield from self._segmented(image, options)
        assert isinstance(result, InstanceResult)  # of a model with embeddings
        return result, read_embedding_id(answer)

    def _segmented(self, image: Tensor, options: SegmentOptions) -> Flow[tuple[Result, InferAnswer]]:
        model, cache = options.model, self.models
        with self._call("segment", model, options.timeout_s, options.request_id) as call:
            call.headers = {**call.headers, **options.headers()}
            info = yield from self._info(options, call)
            try:
                answer = yield from self._answer(image, options, info, call)
            except (BadRequestError, ModelNotFoundError) as error:
                # A model with other inputs or outputs may have taken over the name. Errors about the image itself keep
                # the cache: the next call would otherwise pay for another configuration request.
                if isinstance(error, ModelNotFoundError) or _CHANGED_MODEL.search(error.message):
                    cache.latest.pop(model, None)
                _explain_size(error, image, model)
                raise
            except (RequestTimeoutError, RequestTooLargeError) as error:
                _explain_size(error, image, model)
                raise
            call.revision = read_revision(answer)
            answered = yield from self._info_of(call.revision, info, call)
            if answered.revision == call.revision:
                # The revision that answers now says best which outputs the next one has.
                cache.latest[model] = answered
            most = options.max_detections
            result = read_result(answer, answered, request_id=call.request_id, max_detections=most)
            check_size(result.size, image)
            return result, answer

    def model_info(self, model: str) -> Flow[ModelInfo]:
        """Fetch the info of the model that is served under a name."""
        check_model_name(model)
        with self._call("model_info", model) as call:
            return (yield from self._fetch(model, call))

    @contextmanager
    def _call(
        self, name: str, model: str, timeout_s: float | Timeouts | None = None, request_id: str | None = None
    ) -> Iterator[Call]:
        """Start a call; at its end, annotate its error, run the hooks and end the span."""
        policy = self.policy
        timeouts = policy.timeouts.changed(timeout_s)
        request_id = os.urandom(16).hex() if request_id is None else checked_request_id(request_id)
        headers = {**policy.headers, REQUEST_ID: request_id}
        span = None
        if self.telemetry is not None:
            span = self.telemetry.start(name, model, request_id)
            headers |= span.headers()
        call = Call(model, request_id, self.clock() + timeouts.total_s, timeouts, headers, span)
        try:
            yield call
        except SegserveError as error:
            call.annotate(error)
            if policy.hooks.listening:
                policy.hooks.error(ErrorEvent(model, request_id, error))
            if span is not None:
                span.failed(error)
            raise
        finally:
            if span is not None:
                span.end(call.revision)

    def _info(self, options: SegmentOptions, call: Call) -> Flow[ModelInfo]:
        """Return the info of the model to segment with, which returns the type of result that the caller expects."""
        cached = self.models.latest.get(options.model)
        if cached is not None:
            try:
                check_expected(options.expect, cached)
            except ResultTypeError:
                pass  # a model of another task may have taken over the name
            else:
                return cached
        info = yield from self._fetch(options.model, call)
        check_expected(options.expect, info)
        return info

    def _answer(self, image: Tensor, options: SegmentOptions, info: ModelInfo, call: Call) -> Flow[InferAnswer]:
        """Ask for an image's answer; during a rollout the other revision may lack an output that `info` has."""
        prompt = options.prompt
        outputs = wanted_outputs(
            info, confidence=options.confidence, continued=options.position is not None, prompted=prompt is not None
        )
        beside = () if prompt is None else prompt.tensors()
        # An image that its server knows is neither converted nor sent.
        known = None if prompt is None else prompt.known_image()
        inputs = (to_pixel_format(image, info.pixels) if known is None else known, *beside)
        request = InferRequest(options.model, inputs, outputs, options.parameters(outputs), call.request_id)
        answer: InferAnswer
        try:
            answer = yield from self._attempts(request, call)
        except EmbeddingLostError:
            if known is None:
                raise
            inputs = (to_pixel_format(image, info.pixels), *beside)
            answer = yield from self._attempts(replace(request, inputs=inputs), call)
        except BadRequestError as error:
            if not any(name in error.message for name in OPTIONAL_OUTPUTS if name in outputs):
                raise
            outputs = tuple(name for name in outputs if name not in OPTIONAL_OUTPUTS)
            request = replace(request, outputs=outputs, parameters=options.parameters(outputs))
            answer = yield from self._attempts(request, call)
        return answer

    def _info_of(self, revision: str, cached: ModelInfo, call: Call) -> Flow[ModelInfo]:
        """Return the info of the revision that answered, or the cached one if that cannot be fetched.

        During a rollout the gateway sends each configuration request to either revision. Class ids are stable across
        revisions, so the other revision's names serve for a while.
        """
        by_revision, fetched_at = self.models.by_revision, self.models.fetched_at
        if revision in by_revision or cached.revision is None:
            return by_revision.get(revision, cached)
        now = self.clock()
        if now - fetched_at.get(revision, -REFETCH_S) < REFETCH_S:
            return cached
        fetched_at[revision] = now
        try:
            return (yield from self._fetch(cached.model, call))
        except SegserveError:
            return cached

    def _fetch(self, model: str, call: Call) -> Flow[ModelInfo]:
        info: ModelInfo = yield from self._attempts(ConfigRequest(model), call)
        self.models.latest[model] = info
        if info.revision is not None:
            self.models.by_revision[info.revision] = info
        return info

    def _attempts(self, request: ConfigRequest | InferRequest, call: Call) -> Flow[Any]:
        """Send until there is an answer, an error that is not retryable, no retry left or no time left."""
        attempt = 1
        while True:
            try:
                return (yield from self._attempt(request, call, attempt))
            except SegserveError as error:
                pause_s = self._pause_s(error, request, attempt)
                if pause_s is None or self.clock() + pause_s >= call.deadline:
                    raise
                call.annotate(error)
                if call.span is not None:
                    call.span.retried(attempt, error)
                if self.policy.hooks.listening:
                    event = RetryEvent(call.model, call.request_id, _kind(request), attempt, error, pause_s)
                    self.policy.hooks.retry(event)
            yield Pause(pause_s)
            attempt += 1

    def _attempt(self, request: ConfigRequest | InferRequest, call: Call, attempt: int) -> Flow[Any]:
        began = self.clock()
        left_s = call.deadline - began
        if left_s <= 0:
            raise DeadlineExceededError("no time was left to send the request")
        hooks = self.policy.hooks if self.policy.hooks.listening else None
        about = (call.model, call.request_id, _kind(request), attempt)
        if hooks is not None:
            sent_bytes = sum(len(tensor.raw) for tensor in request.inputs) if isinstance(request, InferRequest) else 0
            hooks.request(RequestEvent(*about, sent_bytes, left_s))
        try:
            answer = yield Send(request, left_s, call.timeouts, call.headers)
        except RequestTimeoutError as error:
            if isinstance(error, DeadlineExceededError) or self.clock() < call.deadline - SLACK_S:
                raise
            raise DeadlineExceededError(error.message, status=error.status, revision=error.revision) from error
        if hooks is not None:
            revision = read_revision(answer) if isinstance(answer, InferAnswer) else answer.revision
            hooks.response(ResponseEvent(*about, self.clock() - began, revision))
        return answer

    def _pause_s(self, error: SegserveError, request: ConfigRequest | InferRequest, attempt: int) -> float | None:
        """Return how long to wait before the next attempt, or None to give up."""
        if not error.retryable or attempt > self.policy.retries:
            return None
        # A server that has already seen a frame of a stream would take it for the next one.
        is_frame = isinstance(request, InferRequest) and SEQUENCE in request.parameters
        if is_frame and not error.untouched:
            return None
        return BACKOFF.delay_s(attempt, self.jitter) + (error.retry_after_s or error.retry_pause_s)


def _kind(request: ConfigRequest | InferRequest) -> RequestKind:
    return "infer" if isinstance(request, InferRequest) else "config"


def _explain_size(error: SegserveError, image: Tensor, model: str) -> None:
    """Add to an error that the image's size may have caused what that size is, and what helps."""
    caused_by_size = isinstance(error, RequestTimeoutError | RequestTooLargeError | ImageTooLargeError)
    if not caused_by_size or isinstance(error, PoolTimeoutError) or (size := image_size(image)) is None:
        return
    height, width = size
    megapixels = height * width / 1e6
    seen = f"; the image is {width} x {height} ({megapixels:.3g} megapixels)"
    is_large = LIMIT.search(error.message) is not None or megapixels > TILED_MEGAPIXELS
    advice = [_in_tiles(model, image, size, tile_options(error.message))] if is_large else []
    if isinstance(error, ImageTooLargeError):
        seen = ""  # the server has said it
    elif isinstance(error, DeadlineExceededError | ReadTimeoutError | WriteTimeoutError):
        advice.insert(0, "allow more time (timeout_s, `--timeout`)")
    if advice and _IN_TILES in error.message:
        error.message = error.message.replace(_IN_TILES, advice[-1])
    elif advice:
        error.message += f"{seen}: {', or '.join(advice)}"
    error.args = (error.message,)


def tile_options(refusal: str) -> dict[str, int]:
    """Return the options `tile` and `overlap` of `segment_tiled` that a model's limit requires; {} if it allows any."""
    limit = LIMIT.search(refusal)
    if limit is None or int(limit[1]) >= TILE_PX**2:
        return {}
    side = math.isqrt(int(limit[1]))
    side -= side % 32 if side > 32 else 0
    return {"tile": side, "overlap": side // 8}


def _in_tiles(model: str, image: Tensor, size: tuple[int, int], tiles: Mapping[str, int]) -> str:
    """Return how to segment an image in tiles by a call and by a command."""
    height, width = size
    arguments = "".join(f", {name}={value}" for name, value in tiles.items())
    options = "".join(f" --{name} {value}" for name, value in tiles.items())
    first = []
    if image.name != PIXELS:
        (encoded,) = image.to_items()
        is_tiff = encoded.startswith(TIFF_SIGNATURES)
        if not is_tiff and height * width > MAX_DECODED_PIXELS:
            first.append("saved as a TIFF")
        if (is_tiff or first) and not (find_spec("tifffile") and find_spec("zarr")):
            first.append("after pip install 'segserve[batch]'")
    before = f"{', '.join(first)}: " if first else ""
    call = f"client.segment_tiled(image, model={model!r}{arguments})"
    return f"segment it in tiles ({before}{call}, `segserve batch {model} IMAGE -o tiled{options}`)"
