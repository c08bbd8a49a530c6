"""Clients of both protocols that call as fast as they are answered, and what they saw."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from fakes.waiting import HANG_S, until
from segserve import Client, SegserveError

PHOTO = (Path(__file__).parents[2] / "examples/coins/coins.png").read_bytes()
COIN_PIXELS = range(39_000, 40_000)
PLAIN = "plain grpc"
FIVE = ("http", "grpc", "http", "grpc", PLAIN)
EIGHT = ("http", "grpc", "http", "grpc", "http", "grpc", PLAIN, PLAIN)


@dataclass
class Load:
    """Asks a model from a thread for each of `transports`, without retries, until it is left; every answer is checked.

    `pause_s` is between an answer and the next request of the same thread.
    """

    url: str
    model: str = "coins"
    pause_s: float = 0.0
    transports: Sequence[str] = FIVE
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        callers = [(self._plain_client if t == PLAIN else self._client, t) for t in self.transports]
        self._threads = [threading.Thread(target=caller, args=(transport,)) for caller, transport in callers]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, revision: str, count: int = 3) -> None:
        """Return once so many more answers came from a revision, and none but from it since."""
        before = self.answers.copy()

        def answers_alone() -> bool:
            nonlocal before
            new = self.answers - before
            if set(new) - {revision}:
                before = self.answers.copy()
            return set(new) == {revision} and new[revision] >= count

        until(answers_alone, f"only {revision} answers; answers {self.answers}, failures {self.failures[-3:]}")

    def _client(self, transport: str) -> None:
        with Client(self.url, transport=transport, retries=0) as client:
            while not self._ended.wait(self.pause_s):
                try:
                    answer = client.segment(PHOTO, model=self.model, encoding="rle")
                except SegserveError as error:
                    self._failed(transport, error)
                else:
                    self._answered(transport, answer.revision, answer.areas["coin"])

    def _plain_client(self, transport: str) -> None:
        client = tritonclient.grpc.InferenceServerClient(self.url.removeprefix("http://"))
        image = tritonclient.grpc.InferInput("IMAGE", [1], "BYTES")
        image.set_data_from_numpy(np.array([PHOTO], dtype=object))
        while not self._ended.wait(self.pause_s):
            try:
                answer = client.infer(self.model, [image], client_timeout=HANG_S)
            except InferenceServerException as error:
                self._failed(transport, error)
            else:
                self._answered(transport, answer.as_numpy("REVISION")[0].decode(), answer.as_numpy("AREAS")[1])
        client.close()

    def _answered(self, transport: str, revision: str, pixels: int) -> None:
        self.answers[revision] += 1
        if pixels not in COIN_PIXELS:
            self.failures.append(f"{transport}: {pixels} pixels of coins")

    def _failed(self, transport: str, error: Exception) -> None:
        self.failures.append(f"{time.strftime('%H:%M:%S')} {transport}: {type(error).__name__}: {error}")
        time.sleep(0.05)


@dataclass
class SteadyCaller:
    """Asks models one after the other for an image, which may be replaced meanwhile; errors of segserve pass by."""

    url: str
    models: Sequence[str]
    image: bytes
    pause_s: float

    def call(self, ended: threading.Event) -> None:
        """Call until the event is set."""
        with Client(self.url, retries=0) as client:
            while not ended.wait(self.pause_s):
                for model in self.models:
                    with suppress(SegserveError):
                        client.segment(self.image, model=model)
