"""An image that needs more memory than a step may have: refused with its size, at the expense of nobody else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bench.coins import variant, write
from bench.platform import Running
from fakes.callers import COIN_PIXELS, PHOTO
from fakes.waiting import HANG_S
from fakes.watching import Watched
from segserve import BadRequestError, Client
from segserve_builder.memory import STEP_LIMIT_VARIABLE

pytestmark = pytest.mark.platform

LIMIT_BYTES = 512 * 2**20
CALLERS = 4


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_an_image_beyond_the_memory_of_a_step_is_refused_and_the_next_one_is_answered(
    serve: Callable[..., Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    monkeypatch.setenv(STEP_LIMIT_VARIABLE, str(LIMIT_BYTES))
    watched = Watched(serve(write(tmp_path / "model.yaml", variant())))
    before = watched.steps()
    large = np.zeros((3000, 3200, 1), np.uint8)

    with Client(watched.running.url, transport=transport, retries=0, timeout_s=HANG_S) as client:
        with pytest.raises(BadRequestError) as refused:
            client.segment(large, model="coins")
        coins = client.segment(PHOTO, model="coins").areas["coin"]
        kept = max(step.memory_info().rss for step in before.values())
        # Three at a time take more than the step may have.
        with ThreadPoolExecutor(CALLERS) as threads:
            beside = [
                *threads.map(lambda _: client.segment(np.zeros((700, 700, 1), np.uint8), model="coins"), "abcdefgh")
            ]

    assert "the network's input of 3008 x 3200 pixels needs more memory than the 0.5 GB" in str(refused.value)
    assert "`segserve batch coins IMAGE -o tiled`" in str(refused.value)
    assert coins in COIN_PIXELS
    assert [result.size for result in beside] == [(700, 700)] * 8
    assert watched.steps() == before
    assert kept < LIMIT_BYTES
