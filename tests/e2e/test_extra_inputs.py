"""Networks of two and three inputs through the real Triton and Envoy: images of different size in one batch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from bench.coins import write as write_resources
from bench.platform import Running, platform
from fakes.waiting import until
from networks.extra_inputs import HEIGHT, KINDS, WIDTH, picture, write
from networks.served import model
from segserve import Client, InstanceResult

pytestmark = pytest.mark.platform

PICTURES = {(4, 8, 20, 40): (48, 32), (16, 8, 100, 40): (64, 128)}
BATCHED = {"intraOpThreads": 1, "maxBatchSize": 2, "maxQueueDelayUs": 300_000}
"""The network has a step of its own, where requests that come together are one batch."""
FAMILIES = {"masked": "detr", "sized": "faster-rcnn", "scaled": "faster-rcnn"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("inputs")

    def resource(name: str, kind: str, **spec: Any) -> dict[str, Any]:
        spec = {"family": FAMILIES[kind], "classes": [{"id": 0, "name": "white", "thing": True}], **spec}
        resize = {"mode": "letterbox", "height": HEIGHT, "width": WIDTH}
        return model(name, folder / f"{kind}.onnx", preprocess=[{"resize": resize}], **spec)

    for kind in KINDS:
        write(folder / f"{kind}.onnx", kind, image_first=kind != "sized")
    segments: dict[str, Any] = {"family": "detr-panoptic", "postprocess": [{"instanceQueries": {}}]}
    resources = [
        *(resource(kind, kind) for kind in KINDS),
        *(resource(f"{kind}-batched", kind, runtime=BATCHED) for kind in KINDS),
        resource("segments", "masked", **segments),
        resource("segments-batched", "masked", runtime=BATCHED, **segments),
    ]
    with platform(write_resources(folder / "models.yaml", *resources)) as served:
        yield served


@pytest.mark.parametrize("name", [*KINDS, "segments"])
def test_each_image_has_its_own_boxes_and_masks(running: Running, name: str) -> None:
    with Client(running.url) as client:
        for box in PICTURES:
            assert_found(client, name, box)


@pytest.mark.parametrize("name", [*KINDS, "segments"])
def test_images_of_different_size_in_one_batch_have_their_own_boxes_and_masks(running: Running, name: str) -> None:
    before = saved_runs(running)
    with Client(running.url) as client, ThreadPoolExecutor(2) as threads:

        def batched() -> bool:
            list(threads.map(lambda box: assert_found(client, f"{name}-batched", box), PICTURES))
            return saved_runs(running) > before

        until(batched, "a batch of two images")


def assert_found(client: Client, name: str, box: tuple[int, int, int, int]) -> None:
    height, width = PICTURES[box]
    image = picture(height, width, box)
    result: Any = client.segment(image, model=name)
    np.testing.assert_allclose(result.boxes, [box], atol=1e-3)
    if isinstance(result, InstanceResult):
        (found,) = result
        np.testing.assert_array_equal(found.mask, image[:, :, 0] > 0)


def saved_runs(running: Running) -> float:
    """Return how many inferences of networks' steps shared a run with another."""
    text = httpx.get(f"{running.url}/metrics").raise_for_status().text

    def total(metric: str) -> float:
        return sum(map(float, re.findall(rf"^{metric}{{.*--net-.*}} (\S+)$", text, re.MULTILINE)))

    return total("nv_inference_count") - total("nv_inference_exec_count")
