"""A semantic and an instance network as one panoptic model, served by the real Triton."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bench.coins import variant, write
from bench.platform import MODELS, Running, platform
from raw_inference import PROTOCOLS, Protocol, RawRequest, image, send
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_platform.platforms.manifests import complete_models, read_files

pytestmark = pytest.mark.platform

COIN = 1


def both() -> list[dict[str, Any]]:
    """The example's two networks on one letterboxed input: the background of the one, the coins of the other."""
    instances = variant(model="coins-instances")
    document = variant(
        name="both",
        preprocess=instances["spec"]["preprocess"],
        postprocess=[{"argmax": {}}, {"panopticFusion": {"stuffArea": 1000}}],
        classes=[{"id": 0, "name": "background"}, {"id": COIN, "name": "coin", "thing": True}],
        instances={"model": "coins-instances"},
    )
    del document["spec"]["golden"]  # it is one of the semantic network alone
    return [document, instances]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Both networks, served as one model."""
    with platform(write(tmp_path_factory.mktemp("both") / "model.yaml", *both())) as running:
        yield running


@pytest.fixture(scope="module")
def offline(photo: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answer of the same stages in this process."""
    file = write(tmp_path_factory.mktemp("offline") / "model.yaml", *both())
    spec = complete_models(read_files([file]))["both"].spec
    networks = [MODELS.parent / name for name in ("coins-unet.onnx", "coins-yolo.onnx")]
    return InProcessModel(spec.pipeline("both"), *networks).answer(photo, RequestOptions(encoding="raw"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_answer_is_that_of_the_same_stages_in_this_process(
    served: Running, offline: dict[str, Any], photo: bytes, protocol: Protocol
) -> None:
    request = RawRequest([image(photo)], {"encoding": "raw"}, ("LABELS", "SEGMENTS"), model="both")

    arrays = send(served.url, protocol, request).arrays()

    assert arrays["LABELS"] == tuple(offline["LABELS"])
    assert arrays["SEGMENTS"] == tuple(offline["SEGMENTS"])
