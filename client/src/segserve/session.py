"""What a client does, without I/O: which calls it makes, when it tries again, what it remembers of models.

A flow is a generator that yields the next `Send` or `Wait`; a client performs it and sends in what came back,
or throws the error in. `Client` and `AsyncClient` differ in nothing else.
"""

from __future__ import annotations

import random
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from segserve.answers import read_result, read_revision, wanted_outputs
from segserve.errors import BadRequestError, ModelNotFoundError, RequestTimeoutError, SegserveError
from segserve.types import ENCODINGS
from segserve.wire import InferRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from segserve.results import Result
    from segserve.types import Encoding, ModelInfo
    from segserve.wire import Parameter, Tensor

T = TypeVar("T")

BACKOFF_S: Final = 0.1
REFETCH_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class ConfigRequest:
    """A question for a model's configuration; its reply is a `ModelInfo`."""

    model: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request and reply with its answer, or throw the `SegserveError`, within `timeout_s`."""

    request: ConfigRequest | InferRequest
    timeout_s: float


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
    timeout_s: float | None = None

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
        return parameters


@dataclass(slots=True)
class Session:
    """What one client's requests share. Safe for threads: every change is one assignment in a dict."""

    timeout_s: float
    retries: int
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random
    latest: dict[str, ModelInfo] = field(default_factory=dict)
    by_revision: dict[str, ModelInfo] = field(default_factory=dict)
    asked_at: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.timeout_s > 0 or self.retries < 0:
            raise BadRequestError(
                f"timeout_s is above 0 and retries at least 0, got {self.timeout_s!r} and {self.retries!r}"
            )

    def segment(self, image: Tensor, options: SegmentOptions) -> Flow[Result]:
        """Ask one model for one image's segmentation."""
        model = options.model
        deadline = self.clock() + (self.timeout_s if options.timeout_s is None else options.timeout_s)
        with about(model):
            info = self.latest.get(model) or (yield from self._fetch(model, deadline))
            outputs = wanted_outputs(info, confidence=options.confidence)
            request = InferRequest(model, (image,), outputs, options.parameters(outputs))
            try:
                answer = yield from self._attempts(request, deadline)
            except (BadRequestError, ModelNotFoundError):
                # The name may have gone to a model with other outputs since.
                self.latest.pop(model, None)
                raise
            revision = read_revision(answer)
        with about(model, revision):
            return read_result(answer, (yield from self._info_of(revision, info, deadline)))

    def model_info(self, model: str) -> Flow[ModelInfo]:
        """Ask for what is served under a name now."""
        with about(model):
            return (yield from self._fetch(model, self.clock() + self.timeout_s))

    def _info_of(self, revision: str, known: ModelInfo, deadline: float) -> Flow[ModelInfo]:
        """Return the info of the revision that answered, or what is known where that one does not tell it.

        While a change is under way the gateway sends each question to either revision. Classes keep their
        numbers over revisions, so the other's names do for a while.
        """
        if revision in self.by_revision or known.revision is None:
            return self.by_revision.get(revision, known)
        now = self.clock()
        if now - self.asked_at.get(revision, -REFETCH_S) < REFETCH_S:
            return known
        self.asked_at[revision] = now
        try:
            return (yield from self._fetch(known.model, deadline))
        except SegserveError:
            return known

    def _fetch(self, model: str, deadline: float) -> Flow[ModelInfo]:
        info: ModelInfo = yield from self._attempts(ConfigRequest(model), deadline)
        self.latest[model] = info
        if info.revision is not None:
            self.by_revision[info.revision] = info
        return info

    def _attempts(self, request: ConfigRequest | InferRequest, deadline: float) -> Flow[Any]:
        """Send until it is answered, an error will not pass, the retries are used or the time is up."""
        for attempt in range(self.retries + 1):
            left = deadline - self.clock()
            if left <= 0:
                raise RequestTimeoutError("no time was left to send the request")
            try:
                return (yield Send(request, left))
            except SegserveError as error:
                backoff = BACKOFF_S * 2**attempt * (0.5 + self.jitter())
                pause = max(backoff, error.retry_after_s or 0.0)
                if not error.retryable or attempt == self.retries or self.clock() + pause >= deadline:
                    raise
            yield Wait(pause)
        raise AssertionError("unreachable")


@contextmanager
def about(model: str, revision: str | None = None) -> Iterator[None]:
    """Name the model, and the revision where it is known, on every `SegserveError` that passes."""
    try:
        yield
    except SegserveError as error:
        error.model = error.model or model
        error.revision = error.revision or revision
        raise
