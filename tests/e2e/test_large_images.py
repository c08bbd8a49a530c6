"""Images that take a model's processors for long, legal as they are, keep nobody else waiting."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from bench.platform import Running
from fakes.waiting import HANG_S, until
from segserve_builder.errors import BUSY

pytestmark = pytest.mark.platform


def png(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((side, side), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_callers_of_small_images_are_answered_while_large_ones_are_computed(coins: Running, photo: bytes) -> None:
    def ask(image: bytes) -> Any:
        return httpx.post(f"{coins.url}/v1/models/coins:segment", content=image, timeout=HANG_S)

    assert ask(photo).status_code == 200
    with ThreadPoolExecutor(6) as pool:
        large = [pool.submit(ask, png(3900)) for _ in range(6)]
        until(lambda: any(each.done() for each in large), "one is refused, or answered")
        answered = ask(photo)
        under_way = [each for each in large if not each.done()]
        answers = [each.result() for each in large]

    assert answered.status_code == 200
    assert under_way != []
    assert {each.status_code for each in answers} == {200, 429}
    assert all(BUSY in each.text for each in answers if each.status_code == 429)
