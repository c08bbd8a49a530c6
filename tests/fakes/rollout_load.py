"""Callers that come by themselves (open loop, Poisson), over both protocols, and what each of them got from whom."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import random
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Final, Self

import grpc
import httpx
import numpy as np
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc

from fakes.waiting import until

EXAMPLE: Final = Path(__file__).parents[2] / "examples/coins/coins.png"
HEADER: Final = "x-segserve-revision"
OUTPUTS: Final = ("AREAS", "CLASSES", "LABELS", "SIZE")
"""Without CLASSES and SIZE, masks could not be compared in Shadow."""
PATIENCE_S: Final = 75.0
BROKEN: Final = ("ReadError", "WriteError", "RemoteProtocolError")
"""Errors of httpx for a connection that ended."""
STILL_S: Final = 4.0
"""Callers that stand still for so long lose connections by their own fault: a gateway waits 5 s for what is begun."""
SIDE_PX: Final = 96
STEP_PX: Final = 28


def pictures() -> tuple[bytes, ...]:
    """Return 88 parts of the example's photograph: small, so that a machine of two processors can answer many."""
    with Image.open(EXAMPLE) as whole:
        width, height = whole.size
        corners = product(range(0, width - SIDE_PX, STEP_PX), range(0, height - SIDE_PX, STEP_PX))
        return tuple(_encoded(whole.crop((x, y, x + SIDE_PX, y + SIDE_PX))) for x, y in corners)


def _encoded(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True, slots=True)
class Call:
    """One request. Times are Unix seconds; `revision` is the gateway's word, empty where it named none.

    `error` is empty where it was answered; `right` says that the answer was the one of the revision that was stable at
    first.
    """

    began_s: float
    ended_s: float
    protocol: str
    revision: str
    error: str
    right: bool

    @property
    def bad(self) -> bool:
        """Whether the caller got no answer, or a wrong one."""
        return not self.right

    @property
    def latency_ms(self) -> float:
        """From the call to its end."""
        return 1000 * (self.ended_s - self.began_s)


@dataclass
class RolloutLoad:
    """Calls a model `rate` times a second on average, whether or not earlier calls have ended, until it is left.

    The rate may be changed at any time. The calls are spread over `protocols`; none is tried again. What is right
    is asked for first, once for each picture. A call whose connection broke while the callers themselves stood still,
    as on a machine that has no core for them, says nothing of the gateway: it is in `broken` instead of `calls`.
    """

    url: str
    model: str = "coins"
    rate: float = 10.0
    seed: int = 0
    pictures: Sequence[bytes] = field(default_factory=pictures, repr=False)
    protocols: Sequence[str] = ("http", "grpc")
    calls: list[Call] = field(default_factory=list, repr=False)
    broken: list[Call] = field(default_factory=list, repr=False)

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        self._began = threading.Event()
        self._answers: dict[bytes, str] = {}
        self._stood_still: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        self._began.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        try:
            async with (
                httpx.AsyncClient(base_url=self.url, timeout=PATIENCE_S, trust_env=False, limits=limits) as http,
                grpc.aio.insecure_channel(self.url.removeprefix("http://")) as channel,
            ):
                every = (_Http(http, self.model), _Grpc(channel, self.model))
                callers = [each for each in every if each.protocol in self.protocols]
                for picture in self.pictures:
                    self._answers[picture], _, error = await callers[0].ask(picture)
                    assert not error, error
                self._began.set()
                watching = asyncio.create_task(self._watch_the_loop())
                await self._come(callers)
                watching.cancel()
        finally:
            self._began.set()

    async def _come(self, callers: Sequence[_Caller]) -> None:
        chosen = random.Random(self.seed)
        under_way: set[asyncio.Task[None]] = set()
        due_s = time.monotonic()
        while not self._ended.is_set():
            due_s = max(due_s + chosen.expovariate(self.rate), time.monotonic() - 1)
            # In short sleeps: the rate may change, and the end come, before a rare caller does.
            while (left_s := due_s - time.monotonic()) > 0 and not self._ended.is_set():
                await asyncio.sleep(min(left_s, 0.1))
            task = asyncio.create_task(self._call(chosen.choice(callers), chosen.choice(self.pictures)))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)

    async def _call(self, caller: _Caller, picture: bytes) -> None:
        began_s = time.time()
        answer, revision, error = await caller.ask(picture)
        right = not error and answer == self._answers[picture]
        call = Call(began_s, time.time(), caller.protocol, revision, error, right)
        await asyncio.sleep(0.2 if error else 0)  # for a word of having stood still
        stood_still = any(began_s <= until_s and since_s <= call.ended_s for since_s, until_s in self._stood_still)
        (self.broken if stood_still and error.startswith(BROKEN) else self.calls).append(call)

    async def _watch_the_loop(self) -> None:
        while True:
            since_s = time.time()
            await asyncio.sleep(0.1)
            if time.time() - since_s > STILL_S:
                self._stood_still.append((since_s, time.time()))

    # What was seen.

    def of(self, revision: str, since_s: float = 0.0) -> list[Call]:
        """Return the calls that a revision answered or failed, by their beginning."""
        mine = [call for call in list(self.calls) if call.revision == revision and call.began_s >= since_s]
        return sorted(mine, key=lambda call: call.began_s)

    def bad_of(self, revision: str) -> list[Call]:
        """Return a revision's failed and wrong answers, by their end."""
        return sorted((call for call in self.of(revision) if call.bad), key=lambda call: call.ended_s)

    def third_in_a_row(self, revision: str) -> float | None:
        """Return when the third bad answer of a revision in a row ended; None where there was none."""
        row = 0
        for call in sorted(self.of(revision), key=lambda call: call.ended_s):
            row = row + 1 if call.bad else 0
            if row == 3:
                return call.ended_s
        return None

    def answered(self, count: int) -> None:
        """Return once so many more calls were answered right."""
        wanted = count + self._right()
        until(lambda: self._right() >= wanted, f"{count} right answers; the last were {self.calls[-3:]}")

    def settles_on(self, revision: str, count: int = 40) -> None:
        """Return once the calls that began last, so many of them, all went to this revision."""

        def has_settled() -> bool:
            last = sorted(self.calls, key=lambda call: call.began_s)[-count:]
            return len(last) == count and all(call.revision == revision for call in last)

        until(has_settled, f"only {revision} is called")

    def _right(self) -> int:
        return sum(call.right for call in list(self.calls))


def p95_ms(calls: Iterable[Call]) -> float | None:
    """Return the 95th percentile of the latencies of what was answered; None where nothing was."""
    latencies = [call.latency_ms for call in calls if not call.error]
    return float(np.percentile(latencies, 95)) if latencies else None


Asked = tuple[str, str, str]
"""The answer's digest, the revision's name, and the error: empty where there is none."""


@dataclass(frozen=True)
class _Caller:
    connection: Any
    model: str
    protocol = ""

    async def ask(self, picture: bytes) -> Asked:
        raise NotImplementedError


class _Http(_Caller):
    protocol = "http"

    async def ask(self, picture: bytes) -> Asked:
        size = len(picture).to_bytes(4, "little")
        parameters = {"binary_data_size": len(size) + len(picture)}
        image = {"name": "IMAGE", "shape": [1], "datatype": "BYTES", "parameters": parameters}
        outputs = [{"name": name, "parameters": {"binary_data": True}} for name in OUTPUTS]
        header = json.dumps({"inputs": [image], "outputs": outputs}).encode()
        try:
            reply = await self.connection.post(
                f"/v2/models/{self.model}/infer",
                content=header + size + picture,
                headers={"Inference-Header-Content-Length": str(len(header))},
            )
        except httpx.HTTPError as error:
            return "", "", f"{type(error).__name__}: {error} {_causes(error)}"
        revision = reply.headers.get(HEADER, "")
        if reply.status_code != 200:
            return "", revision, f"{reply.status_code} {reply.text[:120]}"
        return _digest(reply.content[int(reply.headers["Inference-Header-Content-Length"]) :]), revision, ""


class _Grpc(_Caller):
    protocol = "grpc"

    async def ask(self, picture: bytes) -> Asked:
        request = service_pb2.ModelInferRequest(model_name=self.model)
        request.inputs.add(name="IMAGE", datatype="BYTES", shape=[1])
        for name in OUTPUTS:
            request.outputs.add(name=name)
        request.raw_input_contents.append(len(picture).to_bytes(4, "little") + picture)
        call = service_pb2_grpc.GRPCInferenceServiceStub(self.connection).ModelInfer(request, timeout=PATIENCE_S)
        try:
            reply = await call
        except grpc.aio.AioRpcError as error:
            said = [*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())]
            return "", _named(said), f"{error.code().name} {(error.details() or '')[:120]}"
        by_name = {output.name: raw for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)}
        return _digest(b"".join(by_name[name] for name in OUTPUTS)), _named(await call.initial_metadata()), ""


def _causes(error: BaseException) -> list[str]:
    """Return what led to an error: that of a connection has no text of its own."""
    causes = []
    cause = error.__cause__ or error.__context__
    while cause is not None:
        causes.append(repr(cause))
        cause = cause.__cause__ or cause.__context__
    return causes


def _named(metadata: Iterable[Sequence[Any]]) -> str:
    return next((str(value) for key, value in metadata if key == HEADER), "")


def _digest(answer: bytes) -> str:
    return hashlib.sha256(answer).hexdigest()
