"""Images that take a model's processors for long, legal as they are, keep nobody else waiting."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from bench.coins import write
from bench.platform import Running, platform
from fakes.waiting import HANG_S, until
from networks.prompts import DISC, scene, written_by_init
from raw_inference import PROTOCOLS, Protocol, RawRequest, RawTensor, image, send
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
    began_s = time.monotonic()
    assert ask(png(1000)).status_code == 200
    # As large as takes several times as long here as one waits for a place, and far less than the gateway's timeout.
    large_image = png(round(1000 * min(3.5, math.sqrt(8 / (time.monotonic() - began_s)))))
    with ThreadPoolExecutor(6) as pool:
        large = [pool.submit(ask, large_image) for _ in range(6)]
        until(lambda: any(each.done() for each in large), "one is refused, or answered")
        answered = ask(photo)
        under_way = [each for each in large if not each.done()]
        answers = [each.result() for each in large]

    assert answered.status_code == 200, answered.text
    assert under_way != []
    assert {each.status_code for each in answers} == {200, 429}
    assert all(BUSY in each.text for each in answers if each.status_code == 429)


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("sam")
    with platform(write(folder / "sam/models.yaml", written_by_init(folder))) as running:
        yield running


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("parameters", [{}, {"encoding": "png"}])
def test_callers_are_answered_while_prompts_by_the_id_of_a_large_image_are_computed(
    sam: Running, protocol: Protocol, parameters: dict[str, Any]
) -> None:
    side, count = 4000, 32
    embedded = send(sam.url, protocol, RawRequest([image(png(side))], model="sam")).arrays()["EMBEDDING_ID"][0]
    boxes = RawTensor("PROMPT_BOXES", "FP32", [count, 4], np.float32([[0, 0, side, side]] * count).tobytes())
    points = RawTensor("POINTS", "FP32", [1, 2], np.float32([DISC]).tobytes())

    def ask(_: int) -> Any:
        about = RawRequest([image(embedded, name="EMBEDDING"), boxes], parameters, model="sam")
        return send(sam.url, protocol, about).status

    with ThreadPoolExecutor(12) as pool:
        large = [pool.submit(ask, number) for number in range(12)]
        until(lambda: any(each.done() for each in large), "one is refused, or answered")
        answered = [send(sam.url, protocol, RawRequest([image(scene()), points], model="sam")) for _ in range(3)]
        statuses = {each.result() for each in large}

    assert [each.message for each in answered] == [""] * 3
    assert statuses <= {200, 429, "OK", "RESOURCE_EXHAUSTED"}
