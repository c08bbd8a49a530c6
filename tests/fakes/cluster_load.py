"""Clients of both protocols that note every request: when it was on its way, and what became of it."""

from __future__ import annotations

import io
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Self, TypeVar

import httpx
import numpy as np
import tritonclient.grpc
from PIL import Image
from tritonclient.utils import InferenceServerException

from fakes.cluster_pool import EXAMPLE
from fakes.waiting import HANG_S, until
from segserve import Client, SegserveError, SemanticResult

C = TypeVar("C")

CLIENTS = 8


def picture() -> bytes:
    """Return a corner of the example's photograph: small, so that the servers have time for other things."""
    with Image.open(EXAMPLE / "coins.png") as whole:
        corner = io.BytesIO()
        whole.crop((0, 0, 96, 96)).save(corner, "PNG")
    return corner.getvalue()


@dataclass(frozen=True, slots=True)
class Request:
    """One request; `error` is empty where it was answered right. Times are the monotonic clock's."""

    client: str
    began_s: float
    ended_s: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class Strike:
    """When something was done to the world: not before `from_s`, and it was done by `until_s`."""

    from_s: float
    until_s: float

    def caught(self, request: Request) -> bool:
        """Tell whether a request was on its way then."""
        return request.began_s <= self.until_s and request.ended_s >= self.from_s


@contextmanager
def strike() -> Iterator[Callable[[], Strike]]:
    """Note when the block began and ended; what it gives is called after it."""
    began_s = time.monotonic()
    ended: list[float] = []
    try:
        yield lambda: Strike(began_s, ended[0])
    finally:
        ended.append(time.monotonic())


@dataclass
class Load:
    """Asks for `coins` from so many threads, without retries of their own, until it is left.

    Half the clients are segserve's and half are plain ones; half speak HTTP and half gRPC. `reconnects`: each request
    on a connection of its own.
    """

    url: str
    model: str = "coins"
    pause_s: float = 0.05
    reconnects: bool = False
    clients: int = CLIENTS
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        kinds = itertools.cycle((self._segserve_http, self._segserve_grpc, self._plain_http, self._plain_grpc))
        self._threads = [threading.Thread(target=next(kinds), daemon=True) for _ in range(self.clients)]
        self._picture = picture()
        self._right: int | None = None
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(HANG_S)
        assert not any(thread.is_alive() for thread in self._threads), "a client waits for ever"

    @property
    def failures(self) -> list[Request]:
        """Return the requests that were not answered, or not right."""
        return [request for request in self.requests if request.error]

    def unexcused(self, *strikes: Strike, excuses: Sequence[str] = ()) -> list[Request]:
        """Return the failures of requests that were on their way at none of the strikes, and have no excuse."""
        return [
            failed
            for failed in self.failures
            if not any(strike.caught(failed) for strike in strikes)
            and not any(excuse in failed.error for excuse in excuses)
        ]

    def on_their_way(self, strike: Strike) -> int:
        """Return how many requests were on their way at a strike."""
        return sum(map(strike.caught, self.requests))

    def answers_go_on(self, count: int = 40) -> None:
        """Return once so many more requests were answered right."""
        wanted = self._answered() + count
        until(lambda: self._answered() >= wanted, f"{count} answers; the last failures were {self.failures[-3:]}")

    def summary(self, *strikes: Strike) -> dict[str, object]:
        """Return what was seen as JSON."""
        return {
            "requests": len(self.requests),
            "failed": len(self.failures),
            "on_their_way": sum(self.on_their_way(strike) for strike in strikes),
            "failed_otherwise": len(self.unexcused(*strikes)),
            "errors": dict(Counter(f"{failed.client}: {failed.error[:120]}" for failed in self.failures)),
        }

    def _answered(self) -> int:
        return sum(not request.error for request in list(self.requests))

    def _judge(self, pixels: int) -> str:
        """Return an error where an answer differs from the first one."""
        if self._right is None:
            self._right = pixels
        return "" if pixels == self._right else f"{pixels} pixels instead of {self._right}"

    def _segserve_http(self) -> None:
        self._segserve("http")

    def _segserve_grpc(self) -> None:
        self._segserve("grpc")

    def _segserve(self, transport: Literal["http", "grpc"]) -> None:
        def connect() -> Client:
            return Client(self.url, transport=transport, retries=0, timeout_s=HANG_S)

        def ask(client: Client) -> int:
            answer = client.segment(self._picture, model=self.model, encoding="rle")
            assert isinstance(answer, SemanticResult)
            return answer.areas["coin"]

        self._call(f"segserve {transport}", connect, ask, Client.close)

    def _plain_http(self) -> None:
        size = len(self._picture).to_bytes(4, "little")
        parameters = {"binary_data_size": len(size) + len(self._picture)}
        image = {"name": "IMAGE", "shape": [1], "datatype": "BYTES", "parameters": parameters}
        header = json.dumps({"inputs": [image], "outputs": [{"name": "AREAS"}]}).encode()
        length = {"Inference-Header-Content-Length": str(len(header))}

        def connect() -> httpx.Client:
            return httpx.Client(base_url=self.url, timeout=HANG_S, trust_env=False)

        def ask(client: httpx.Client) -> int:
            body = header + size + self._picture
            answer = client.post(f"/v2/models/{self.model}/infer", content=body, headers=length)
            return int(answer.raise_for_status().json()["outputs"][0]["data"][1])

        self._call("plain http", connect, ask, httpx.Client.close)

    def _plain_grpc(self) -> None:
        image = tritonclient.grpc.InferInput("IMAGE", [1], "BYTES")
        image.set_data_from_numpy(np.array([self._picture], dtype=object))
        plain = tritonclient.grpc.InferenceServerClient

        def ask(client: tritonclient.grpc.InferenceServerClient) -> int:
            return int(client.infer(self.model, [image], client_timeout=HANG_S).as_numpy("AREAS")[1])

        self._call("plain grpc", lambda: plain(self.url.removeprefix("http://")), ask, plain.close)

    def _call(
        self, client: str, connect: Callable[[], C], ask: Callable[[C], int], close: Callable[[C], object]
    ) -> None:
        kept = None if self.reconnects else connect()
        while not self._ended.wait(self.pause_s):
            began_s = time.monotonic()
            connection = kept or connect()
            try:
                error = self._judge(ask(connection))
            except (SegserveError, InferenceServerException, httpx.HTTPError) as raised:
                error = f"{type(raised).__name__}: {raised}"
            self.requests.append(Request(client, began_s, time.monotonic(), error))
            if kept is None:
                close(connection)
        if kept is not None:
            close(kept)
