"""Recorded requests, and callers that send them again in their own time, whatever earlier answers take."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Protocol, Self, Unpack

from PIL import Image

from segserve.async_client import AsyncClient
from segserve.calls.credentials import Tls
from segserve.calls.many import SegmentKeywords
from segserve.calls.steps import SegmentOptions
from segserve.cli.errors import CommandError
from segserve.cli.image_files import image_content, images_in
from segserve.errors import (
    AuthenticationError,
    BadRequestError,
    PermissionDeniedError,
    RateLimitError,
    RequestTooLargeError,
    SegserveError,
)
from segserve.platforms.rollouts.rehearsal import CallerTraffic, CallOutcome, CallResult
from segserve.results.images import ImageLike
from segserve.results.result import Result

RECORDED: Final = "requests.jsonl"
KEYS: Final = ("at_s", "image", "parameters")
PARAMETERS: Final = ("score_threshold", "max_detections", "encoding", "confidence")
MOST_UNDER_WAY: Final = 1000
"""Requests beyond these are not sent: a machine that is so far behind shows nothing of a revision."""
GRACE_S: Final = 5.0
REFUSALS: Final = (
    AuthenticationError,
    BadRequestError,
    PermissionDeniedError,
    RateLimitError,
    RequestTooLargeError,
)


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request, `at_s` seconds after the first one of the recording."""

    at_s: float
    image: Path
    options: SegmentKeywords = field(default_factory=SegmentKeywords)


@dataclass(frozen=True, slots=True)
class Recording:
    """Requests in the order of their times, which begin anew every `period_s`."""

    requests: tuple[RecordedRequest, ...]
    period_s: float

    @property
    def requests_per_second(self) -> float:
        """The mean rate as recorded."""
        return len(self.requests) / self.period_s

    def due(self) -> Iterator[tuple[float, RecordedRequest]]:
        """Yield each request with its time in seconds since the first one, without end."""
        begun_s = 0.0
        while True:
            for request in self.requests:
                yield begun_s + request.at_s, request
            begun_s += self.period_s


def read_recording(folder: Path, rate: float) -> Recording:
    """Return the requests of a folder: those of its `requests.jsonl`, or its images at `rate` a second.

    Raises `CommandError` for a folder without images, an image that cannot be read and a line of another form.
    """
    file = folder / RECORDED
    if file.is_file():
        requests = _read_lines(file)
    else:
        requests = [RecordedRequest(number / rate, path) for number, path in enumerate(images_in(folder))]
    for image in dict.fromkeys(request.image for request in requests):
        _check_image(image)
    last_s = requests[-1].at_s
    # The recording says nothing of the time after its last request: as long as between two on average.
    gap_s = last_s / (len(requests) - 1) if last_s > 0 else 1.0 / rate
    return Recording(tuple(requests), last_s + gap_s)


def _read_lines(file: Path) -> list[RecordedRequest]:
    lines = file.read_text().splitlines()
    requests = [_request(line, file, number) for number, line in enumerate(lines, start=1) if line.strip()]
    if not requests:
        raise CommandError(f"{file} has no requests; each line is an object such as "
                           '{"at_s": 0.5, "image": "photo.png"}')  # fmt: skip
    first_s = min(request.at_s for request in requests)
    ordered = sorted(requests, key=lambda request: request.at_s)
    return [RecordedRequest(each.at_s - first_s, each.image, each.options) for each in ordered]


def _request(line: str, file: Path, number: int) -> RecordedRequest:
    where = f"{file}:{number}"
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise CommandError(f"{where}: not JSON: {error}") from error
    if not isinstance(entry, dict) or not {"at_s", "image"} <= entry.keys() <= set(KEYS):
        raise CommandError(f"{where}: expected an object with at_s, image and optionally parameters, got {line[:100]}")
    at_s, image, parameters = entry["at_s"], entry["image"], entry.get("parameters", {})
    if isinstance(at_s, bool) or not isinstance(at_s, int | float) or not 0 <= at_s < math.inf:
        raise CommandError(f"{where}: at_s must be seconds of at least 0, got {at_s!r}")
    path = file.parent / image if isinstance(image, str) else file.parent
    if not isinstance(image, str) or not path.resolve().is_relative_to(file.parent.resolve()):
        raise CommandError(f"{where}: image must be the path of a file in {file.parent}, got {image!r}")
    return RecordedRequest(float(at_s), path, _options(parameters, where))


def _options(parameters: Any, where: str) -> SegmentKeywords:
    if not isinstance(parameters, dict) or not parameters.keys() <= set(PARAMETERS):
        raise CommandError(f"{where}: parameters must be an object of {', '.join(PARAMETERS)}, got {parameters!r}")
    options = SegmentKeywords(**parameters)  # type: ignore[typeddict-item]
    try:
        SegmentOptions("model", **options)
    except BadRequestError as error:
        raise CommandError(f"{where}: {error}") from error
    return options


def _check_image(path: Path) -> None:
    try:
        with Image.open(path):
            pass
    except OSError as error:  # Pillow's own error for what is no image is one as well
        cause = error.strerror or "it is not an image of a format that is known here"
        raise CommandError(f"{path} cannot be read: {cause}") from error
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CommandError(f"{path} cannot be read: {error}") from error


@lru_cache(maxsize=64)
def _content(path: Path) -> ImageLike:
    return image_content(path.read_bytes()).image


class SegmentingClient(Protocol):
    """The part of a client that recorded callers need."""

    async def segment(self, image: ImageLike, *, model: str, **options: Unpack[SegmentKeywords]) -> Result:
        """Segment an image."""
        ...


@asynccontextmanager
async def gateway_client(url: str, ca_file: str | None) -> AsyncIterator[AsyncClient]:
    """Open a client that tries nothing again: each request that fails is seen."""
    async with AsyncClient(url, retries=0, tls=None if ca_file is None else Tls(ca_file=ca_file)) as client:
        yield client


class RecordedCallers:
    """Send a recording again and again while the block runs, `speed` times as fast, in a thread of its own.

    Open loop: requests are sent when they are due, however many are under way.
    """

    def __init__(
        self, client: AbstractAsyncContextManager[SegmentingClient], model: str, recording: Recording, speed: float
    ) -> None:
        self._client, self._model, self._recording, self._speed = client, model, recording, speed
        self._calls: list[CallResult] = []
        self._late_s, self._unsent = 0.0, 0
        self._defect: BaseException | None = None

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._executor = ThreadPoolExecutor(1)
        self._running: Future[None] = self._executor.submit(self._run)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._executor.shutdown()
        self._loop.close()
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raise what ended the callers early, if anything has."""
        if self._running.done():
            self._running.result()

    @property
    def traffic(self) -> CallerTraffic:
        """What callers have had so far."""
        rate = self._recording.requests_per_second
        return CallerTraffic(tuple(self._calls), rate, self._late_s, self._unsent)

    def _run(self) -> None:
        self._loop.run_until_complete(self._send_all())

    async def _send_all(self) -> None:
        under_way: set[asyncio.Task[None]] = set()
        async with self._client as client:
            begun_s = time.monotonic()
            for due_s, request in self._recording.due():
                await self._pause(begun_s + due_s / self._speed - time.monotonic())
                if self._ended.is_set():
                    break
                if len(under_way) >= MOST_UNDER_WAY:
                    self._unsent += 1
                    continue
                task = asyncio.create_task(self._send(client, request))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                task.add_done_callback(self._check_defect)
            if under_way:
                _, unanswered = await asyncio.wait(under_way, timeout=GRACE_S)
                for task in unanswered:
                    task.cancel()
                await asyncio.gather(*unanswered, return_exceptions=True)
        if self._defect is not None:
            raise self._defect

    def _check_defect(self, task: asyncio.Task[None]) -> None:
        """End all if a request could not be made at all, for example because its image is gone."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._defect = error
            self._ended.set()

    async def _pause(self, seconds: float) -> None:
        self._late_s = max(self._late_s, -seconds)
        if seconds <= 0:
            await asyncio.sleep(0)  # so that requests under way go on
            return
        try:
            await asyncio.wait_for(self._ended.wait(), seconds)
        except TimeoutError:
            return

    async def _send(self, client: SegmentingClient, request: RecordedRequest) -> None:
        begun_s = time.perf_counter()
        try:
            answer = await client.segment(_content(request.image), model=self._model, **request.options)
        except REFUSALS as error:
            revision, outcome = error.revision, CallOutcome.REFUSED
        except SegserveError as error:
            revision, outcome = error.revision, CallOutcome.FAILED
        else:
            revision, outcome = answer.revision, CallOutcome.ANSWERED
        self._calls.append(CallResult(revision or "", outcome, 1000 * (time.perf_counter() - begun_s)))
