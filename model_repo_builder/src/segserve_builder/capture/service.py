"""The capture service: takes copies, queries stable again, and has samples made and written."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

from pydantic import ValidationError

from segserve_builder.capture.rule import RULES, CaptureFolder, CaptureReason, CaptureRule
from segserve_builder.capture.store import ManifestRow, StoredSample
from segserve_builder.copies.bodies import MALFORMED, WireBody, read_image, read_parameters
from segserve_builder.copies.copies import FrameWorker, RequestCopy, WorkerFrame, model_of, read_copy
from segserve_builder.copies.groups import Answer, AnswerKind, AskGroup
from segserve_builder.copies.http_server import ByteBudget, HttpReply, ReceivedRequest
from segserve_builder.errors import BuilderError
from segserve_builder.sources.access import ACCESS_VARIABLE
from segserve_common.kserve import HEADER_LENGTH, InferRequest, Parameter, Tensor, encode_http, model_path

MAX_WAITING: Final = 8
"""Copies of one model that wait; all that is held of it has at most half of the budget's bytes."""
REFRESH_S: Final = 0.5
SWEEP_S: Final = 600.0
MAX_WRITES: Final = 4
"""Samples of one model that are being written; while a store does not answer, further ones are dropped."""
WRITING_BYTES: Final = 64 * 2**20
"""Samples of all models that are being written; samples for one store have at most half of it."""
STORE_CALLS: Final = 4
"""Calls of one store at once, each in a thread. While eight stores do not answer, the others are still written to."""
MAX_RULES_BYTES: Final = 8 * 2**20
WRITE_PAUSES_S: Final = (1.0, 4.0, 15.0, 60.0)
"""Pauses before a sample that could not be written is written again; then it is dropped."""
_SET_DUMPABLE: Final = 4
_TAKEN: Final = HttpReply(204)
_TAKEN_GRPC: Final = HttpReply(200, headers={"content-type": "application/grpc", "grpc-status": "0"})

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_KEPT_PARAMETERS: Final = ("score_threshold", "max_detections")
"""Parameters that change an answer and hold nothing of a person; all others are left out, and never written."""


@dataclass(frozen=True, slots=True)
class OwnRequest:
    """A copy as the service sends it, with all outputs: the image, and the caller's parameters that are kept."""

    copy: RequestCopy
    image: Tensor
    parameters: Mapping[str, float]


def own_request(copy: RequestCopy, rule: CaptureRule) -> OwnRequest | None:
    """Return the request for a copy's image, None if that cannot be read, or is a batch of several.

    If its answer says what is redacted, it has no parameter of the caller: a threshold would uncover what is hidden.
    """
    body = WireBody(copy.body, copy.header_length)
    kept: dict[str, float] = {}
    try:
        image = read_image(copy.protocol, body)
        stated = read_parameters(copy.protocol, body)
        if rule.redact is None or rule.redact.model:
            kept |= {name: _number(stated[name]) for name in _KEPT_PARAMETERS if name in stated}
    except MALFORMED:
        return None
    if image is None or (len(image.shape) == 4 and image.shape[0] != 1):
        return None
    encoding = {"encoding": "rle"} if rule.as_rle else {}
    return OwnRequest(_infer_copy(copy.model, image, {**kept, **encoding}), image, kept)


def _number(value: Any) -> float:
    """Return a parameter as a server reads it, also from text; raises for what every server refuses."""
    number = math.nan if isinstance(value, bool) else float(value)
    if not math.isfinite(number):
        raise ValueError(f"a parameter is {value!r}; allowed is a finite number")
    return number


def _infer_copy(model: str, image: Tensor, parameters: Mapping[str, Parameter]) -> RequestCopy:
    headers, content = encode_http(InferRequest(model, (image,), parameters=parameters))
    return RequestCopy(
        model, "http", f"{model_path(model)}/infer", content, headers["Content-Type"], headers[HEADER_LENGTH]
    )


def request_id_of(request: ReceivedRequest) -> str:
    """Return the id of a request, `x-request-id` as its caller sent it; bytes that are not UTF-8 are surrogates."""
    return request.headers.get("x-request-id", "").encode("latin-1").decode("utf-8", "surrogateescape")


class Sink(Protocol):
    """Where samples are written, as `SampleStore` is."""

    def write(self, sample: StoredSample) -> None:
        """Write a sample."""

    def delete(self, model: str, *, before_s: float | None = None, request_id: str | None = None) -> int:
        """Delete samples."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    copy: RequestCopy
    request_id: str
    taken_s: float


@dataclass(slots=True)
class _Lane:
    """Copies and samples of one model that are under way: a model that hangs keeps no other one waiting."""

    budget: ByteBudget
    waiting: deque[_Waiting] = field(default_factory=deque)
    sampling: asyncio.Task[None] | None = None
    written_s: deque[float] = field(default_factory=deque)
    writes: set[asyncio.Task[None]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Store:
    """A host or bucket, whose sinks answer or do not answer together."""

    calls: asyncio.Semaphore
    budget: ByteBudget


class CaptureService:
    """Samples the models that `rules.json` names: for each model one copy after the other.

    A copy that is not kept is counted with its cause, and reported nowhere else: no log, file or message has a part of
    a request. A sample is in memory until it is written; one that cannot be written for a while is dropped, and so is
    one whose model is not captured any more, or with another sink or redaction.
    """

    def __init__(
        self,
        folder: CaptureFolder,
        ask: AskGroup,
        worker: FrameWorker,
        budget: ByteBudget,
        open_sink: Callable[[str], Sink],
        *,
        write_pauses_s: tuple[float, ...] = WRITE_PAUSES_S,
        writing_bytes: int = WRITING_BYTES,
    ) -> None:
        self._folder = folder
        self._ask = ask
        self._worker = worker
        self._budget = budget
        self._open_sink = open_sink
        self._write_pauses_s = write_pauses_s
        self._version: tuple[int, ...] | None = None
        self._rules: Mapping[str, CaptureRule] = {}
        self._sinks: dict[str, Sink] = {}
        self._lanes: dict[str, _Lane] = {}
        self._stores: dict[tuple[str, str], _Store] = {}
        self._writing = ByteBudget(writing_bytes)
        self._threads = ThreadPoolExecutor(8 * STORE_CALLS, thread_name_prefix="store")
        self.copies: Counter[str] = Counter()
        self.captured: Counter[tuple[str, str]] = Counter()
        self.dropped: Counter[tuple[str, str]] = Counter()

    async def run(self) -> None:
        """Follow the rules, make samples and delete old ones, forever."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow())
                tasks.create_task(self._sweep())
        finally:
            for lane in self._lanes.values():
                for task in (*lane.writes, *([] if lane.sampling is None else [lane.sampling])):
                    task.cancel()
            self._threads.shutdown(wait=False, cancel_futures=True)

    def take(self, request: ReceivedRequest) -> HttpReply:
        """Take a copy; it becomes a sample later, if at all."""
        if request.body is None:
            name = model_of(request)
            if name in self._rules:
                self.dropped[str(name), "bytes"] += 1
            return _TAKEN
        copy = read_copy(request)
        rule = None if copy is None else self._rules.get(copy.model)
        if copy is None or rule is None or not self._admit(copy, rule, request):
            self._budget.give_back(len(request.body))
        else:
            self._budget.give_back(len(request.body) - len(copy.body))
        return _TAKEN if copy is None or copy.protocol == "http" else _TAKEN_GRPC

    def control(self, request: ReceivedRequest) -> HttpReply:
        """Answer a question of the gateway's side."""
        if request.method != "GET" or urlsplit(request.target).path != "/metrics":
            return HttpReply(404)
        return HttpReply(200, self.metrics(), {"content-type": "text/plain; version=0.0.4; charset=utf-8"})

    def metrics(self) -> bytes:
        """Return the counts in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client import Counter as Series

        registry = CollectorRegistry()
        copies = Series(
            "segserve_capture_copies", "Copies of requests taken for samples.", ["model"], registry=registry
        )
        written = Series("segserve_captured_samples", "Samples written.", ["model", "reason"], registry=registry)
        lost = Series(
            "segserve_capture_dropped", "Copies that became no sample.", ["model", "cause"], registry=registry
        )
        for model, count in self.copies.items():
            copies.labels(model).inc(count)
        for labels, count in self.captured.items():
            written.labels(*labels).inc(count)
        for labels, count in self.dropped.items():
            lost.labels(*labels).inc(count)
        return generate_latest(registry)

    def refresh(self) -> None:
        """Read the rules if they were replaced since."""
        try:
            status = self._folder.rules.stat()
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            version = None
        if version == self._version:
            return
        self._version = version
        try:
            with self._folder.rules.open("rb") as file:
                rules = RULES.validate_json(file.read(MAX_RULES_BYTES))
        except (OSError, ValidationError) as error:
            if version is not None:
                _log.warning(
                    "nothing is captured: %s cannot be read: %s", self._folder.rules.name, type(error).__name__
                )
            rules = {}
        for name in rules.keys() ^ self._rules.keys():
            _log.info("%s: %s", name, "capturing" if name in rules else "no longer capturing")
        self._rules = rules

    def _admit(self, copy: RequestCopy, rule: CaptureRule, request: ReceivedRequest) -> bool:
        self.copies[copy.model] += 1
        if copy.in_stream or (rule.slices and copy.slice not in rule.slices):
            self.dropped[copy.model, "stream" if copy.in_stream else "slice"] += 1
            return False
        lane = self._lanes.setdefault(copy.model, _Lane(ByteBudget(self._budget.limit // 2)))
        if len(lane.waiting) >= MAX_WAITING or not lane.budget.take(len(copy.body)):
            self.dropped[copy.model, "queue"] += 1
            return False
        lane.waiting.append(_Waiting(copy, request_id_of(request), time.time()))
        if lane.sampling is None or lane.sampling.done():
            lane.sampling = asyncio.create_task(self._sample(lane))
        return True

    async def _follow(self) -> None:
        while True:
            self.refresh()
            await asyncio.sleep(REFRESH_S)

    async def _sample(self, lane: _Lane) -> None:
        while lane.waiting:
            waiting = lane.waiting.popleft()
            model = waiting.copy.model
            try:
                cause = await self._sample_one(lane, waiting)
            except Exception as error:  # an error from a caller's bytes ends no other samples
                _log.warning("%s: a sample was not kept: %s", model, type(error).__name__)
                cause = "failed"
            finally:
                self._budget.give_back(len(waiting.copy.body))
                lane.budget.give_back(len(waiting.copy.body))
            if cause is not None:
                self.dropped[model, cause] += 1

    async def _sample_one(self, lane: _Lane, waiting: _Waiting) -> str | None:
        """Make the sample of a copy and begin to write it; otherwise return why there is no sample."""
        copy, rule = waiting.copy, self._rules.get(waiting.copy.model)
        if rule is None:
            return "ended"
        while lane.written_s and lane.written_s[0] < time.monotonic() - 60:
            lane.written_s.popleft()
        if len(lane.written_s) >= rule.per_minute:
            return "perMinute"
        if len(lane.writes) >= MAX_WRITES:
            return "sink"
        own = own_request(copy, rule)
        if own is None:
            return "unreadable"
        answers = await self._answers(own, rule)
        if isinstance(answers, str):
            return answers
        header = {
            "rule": rule.model_dump(mode="json"),
            "image": [own.image.name, own.image.datatype, own.image.shape],
            "lengths": [None if each is None else each.header_length for each in answers],
            "about": {
                "request_id": waiting.request_id,
                "captured_at_s": waiting.taken_s,
                "model": copy.model,
                "slice": copy.slice,
                "parameters": own.parameters,
            },
        }
        contents = [b"" if each is None or each.content is None else each.content for each in answers]
        held = sum(map(len, contents))
        if not self._budget.take(held):
            return "bytes"
        try:
            made = await self._worker.ask(WorkerFrame(header, [own.image.raw, *contents]))
        finally:
            self._budget.give_back(held)
        if made is None:
            return "unreadable"
        if "row" not in made.header:
            return str(made.header.get("dropped", "unremarkable"))
        sample = StoredSample(ManifestRow.model_validate(made.header["row"]), made.blobs[0], made.blobs[1] or None)
        return self._begin_write(lane, rule, sample)

    def _begin_write(self, lane: _Lane, rule: CaptureRule, sample: StoredSample) -> str | None:
        """Begin to write a sample in the background; return why it is not written."""
        store, size = self._store(rule.sink), len(sample.image) + len(sample.annotations or b"")
        if not store.budget.take(size):
            return "sink"
        if not self._writing.take(size):
            store.budget.give_back(size)
            return "sink"

        def ended(write: asyncio.Task[None]) -> None:
            lane.writes.discard(write)
            self._writing.give_back(size)
            store.budget.give_back(size)

        lane.written_s.append(time.monotonic())
        write = asyncio.create_task(self._write(rule, sample))
        lane.writes.add(write)
        write.add_done_callback(ended)
        return None

    async def _answers(self, own: OwnRequest, rule: CaptureRule) -> list[Answer | None] | str:
        """Return the answers of stable, the other revision and the redacting model, or why there can be no sample."""
        stable = await self._ask(own.copy, rule.group)
        if stable.kind in (AnswerKind.UNREACHED, AnswerKind.REFUSED):
            return "unreached"
        if stable.kind is AnswerKind.ANSWERED and stable.content is None:
            return "unreadable"  # an answer that is too large is not a failure
        other = redactor = None
        if rule.other and CaptureReason.DISAGREE in rule.when and stable.content is not None:
            other = await self._ask(own.copy, rule.other)
        if rule.redact is not None and rule.redact.model:
            # Without any parameter of the caller.
            redactor = await self._ask(_infer_copy(rule.redact.model, own.image, {}), rule.redact.group)
        return [None if each is None or each.content is None else each for each in (stable, other, redactor)]

    async def _write(self, rule: CaptureRule, sample: StoredSample) -> None:
        model = sample.row.model
        for pause_s in (*self._write_pauses_s, None):
            try:
                async with self._store(rule.sink).calls:
                    now = self._rules.get(model)
                    if now is None or (now.sink, now.redact) != (rule.sink, rule.redact):
                        self.dropped[model, "ended"] += 1
                        return
                    await self._in_thread(lambda: self._sink(rule.sink).write(sample))
            except Exception as error:  # of any library of a store
                self._sinks.pop(rule.sink, None)  # its credentials may have changed
                if pause_s is None:
                    _log.warning(
                        "%s: a sample cannot be written: %s",
                        model,
                        error if isinstance(error, BuilderError) else type(error).__name__,
                    )
                    self.dropped[model, "sink"] += 1
                    return
                await asyncio.sleep(pause_s)
                continue
            self.captured.update((model, reason.value) for reason in sample.row.reasons)
            return

    async def _sweep(self) -> None:
        """Delete what is older than its model's retention, now and then; every gateway does, which does no harm."""
        while True:
            async with asyncio.TaskGroup() as sweeps:
                for model, rule in self._rules.items():
                    sweeps.create_task(self._delete_old(model, rule))
            await asyncio.sleep(SWEEP_S if self._rules else REFRESH_S)

    async def _delete_old(self, model: str, rule: CaptureRule) -> None:
        try:
            async with self._store(rule.sink).calls:
                before_s = time.time() - rule.retention_s
                gone = await self._in_thread(lambda: self._sink(rule.sink).delete(model, before_s=before_s))
        except Exception as error:  # of any library of a store
            _log.warning(
                "%s: old samples cannot be deleted: %s",
                model,
                error if isinstance(error, BuilderError) else type(error).__name__,
            )
            return
        if gone:
            _log.info("%s: %d objects of old samples are deleted", model, gone)

    def _in_thread(self, call: Callable[[], _T]) -> asyncio.Future[_T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _store(self, uri: str) -> _Store:
        parts = urlsplit(uri)
        budget = ByteBudget(self._writing.limit // 2)
        return self._stores.setdefault((parts.scheme, parts.netloc), _Store(asyncio.Semaphore(STORE_CALLS), budget))

    def _sink(self, uri: str) -> Sink:
        if uri not in self._sinks:
            self._sinks[uri] = self._open_sink(uri)
        return self._sinks[uri]


def worker_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of the process that reads callers' bytes: without credentials, nor where they are.

    Files of Secrets it could open: it is the same user in the same container.
    """
    hidden = ("AWS_", "AZURE_", "GOOGLE_", ACCESS_VARIABLE)
    return {name: value for name, value in environment.items() if not name.startswith(hidden)}


def hide_memory() -> None:
    """Keep other processes of the same user from this one's environment and memory, above all its worker."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the capture service cannot hide its memory")
