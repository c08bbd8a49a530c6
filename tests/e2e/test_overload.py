"""More requests than a model may hold are refused at once, by the gateway, and the others are served."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import pytest

from bench.coins import variant, write
from bench.platform import Running, platform
from segserve import Client, OverloadedError

pytestmark = pytest.mark.platform
CALLERS = 24


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The U-Net with room for one request that runs and two that wait."""
    runtime = {"maxBatchSize": 1, "maxQueueSize": 2}
    with platform(write(tmp_path_factory.mktemp("narrow") / "model.yaml", variant(runtime=runtime))) as running:
        yield running


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_requests_beyond_the_queue_get_503_and_the_others_their_answer(
    narrow: Running, photo: bytes, transport: Literal["http", "grpc"]
) -> None:
    with Client(narrow.url, transport=transport, retries=0) as client:

        def ask(_: int) -> int | str:
            try:
                return client.segment(photo, model="coins").areas["coin"]
            except OverloadedError as error:
                return str(error)

        with ThreadPoolExecutor(CALLERS) as callers:
            answers = list(callers.map(ask, range(3 * CALLERS)))
        right = client.segment(photo, model="coins").areas["coin"]

    refused = [answer for answer in answers if isinstance(answer, str)]
    assert refused
    assert all("overloaded: more requests wait than spec.runtime.maxQueueSize allows" in text for text in refused)
    assert {answer for answer in answers if not isinstance(answer, str)} == {right}
