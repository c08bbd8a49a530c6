"""A light and a heavy network as one model, served by the real Triton: one request, answered by either."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from bench.coins import variant, write
from bench.platform import MODELS, Running, platform
from fakes.waiting import HANG_S, until
from raw_inference import PROTOCOLS, Protocol, RawRequest, image, send
from segserve import Client
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_platform.platforms.manifests import complete_models, read_files

pytestmark = pytest.mark.platform

ARTIFACT: Final = MODELS.parent / "coins-unet.onnx"
MODEL: Final = "tiers"
LIGHT: Final = "tiers-light"
HARD_SIZE: Final = (150, 120)


def hard(photo: bytes) -> bytes:
    """Return the photograph with little contrast, which the light network is unsure of."""
    with Image.open(io.BytesIO(photo)) as whole:
        pixels = np.asarray(whole.convert("L").crop((0, 0, *HARD_SIZE)))
    file = io.BytesIO()
    Image.fromarray((110 + pixels // 8).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def documents(threshold: float) -> list[dict[str, Any]]:
    """The example's network, and the same asked for coins it is surer of as the light one, so that answers differ."""
    light = variant(name=LIGHT, postprocess=[{"argmax": {"threshold": 0.9}}])
    del light["spec"]["golden"]  # it has the heavy network's answers
    cascade = {"light": {"model": LIGHT}, "when": "confidence", "threshold": threshold}
    return [variant(name=MODEL, cascade=cascade), light]


def read(folder: Path, threshold: float) -> SegmentationModel:
    """Return the model of `documents` with both networks."""
    return complete_models(read_files([write(folder / "model.yaml", *documents(threshold))]))[MODEL]


@pytest.fixture(scope="module")
def scores(photo: bytes, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, float]:
    """The light network's scores of the photograph and of the hard image."""
    pipeline = read(tmp_path_factory.mktemp("scores"), 0.0).pipeline
    assert pipeline.light is not None
    assert pipeline.cascade is not None
    light = InProcessModel(pipeline.light, ARTIFACT)
    easy, unsure = (light.scored(each, RequestOptions(), pipeline.cascade)[0] for each in (photo, hard(photo)))
    return easy, unsure


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, scores: tuple[float, float]) -> Path:
    """The file of both models; the threshold is between the two images."""
    assert scores[0] < scores[1]
    return write(tmp_path_factory.mktemp("cascade") / "model.yaml", *documents(sum(scores) / 2))


@pytest.fixture(scope="module")
def model(file: Path) -> SegmentationModel:
    """The model that asks both networks."""
    return complete_models(read_files([file]))[MODEL]


@pytest.fixture(scope="module")
def offline(model: SegmentationModel) -> InProcessModel:
    """The same stages in this process."""
    return InProcessModel(model.pipeline, ARTIFACT, light=ARTIFACT)


@pytest.fixture(scope="module")
def served(file: Path) -> Iterator[Running]:
    """Both networks, served as one model."""
    with platform(file) as running:
        yield running


def labels(arrays: dict[str, Any]) -> bytes:
    (content,) = arrays["LABELS"]
    return bytes(content)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_image_is_answered_by_the_network_that_the_rule_says(
    served: Running, model: SegmentationModel, offline: InProcessModel, photo: bytes, protocol: Protocol
) -> None:
    heavy = InProcessModel(model.pipeline.model_copy(update={"cascade": None}), ARTIFACT)
    raw = RequestOptions(encoding="raw")
    for content, by_heavy in ((photo, False), (hard(photo), True)):
        request = RawRequest([image(content)], {"encoding": "raw"}, ("LABELS", "REVISION", "AREAS"), model=MODEL)

        arrays = send(served.url, protocol, request).arrays()

        expected = labels(offline.answer(content, raw))
        assert labels(arrays) == expected
        assert (expected == labels(heavy.answer(content, raw))) is by_heavy
        assert bytes(arrays["REVISION"][0]).decode() == model.pipeline.revision


def test_many_requests_at_a_time_are_each_answered_by_the_right_network(
    served: Running, offline: InProcessModel, photo: bytes
) -> None:
    raw = RequestOptions(encoding="raw")
    contents = [photo, hard(photo)]
    expected = [labels(offline.answer(content, raw)) for content in contents]

    def ask(number: int) -> bool:
        request = RawRequest([image(contents[number % 2])], {"encoding": "raw"}, ("LABELS",), model=MODEL)
        return labels(send(served.url, "http", request).arrays()) == expected[number % 2]

    with ThreadPoolExecutor(12) as threads:
        assert all(threads.map(ask, range(36)))


def test_the_requests_of_each_network_are_counted(served: Running, photo: bytes) -> None:
    with Client(served.url) as client:
        for content in (photo, photo, hard(photo)):
            client.segment(content, model=MODEL)

    def counted() -> bool:
        (file,) = served.state.glob("groups/*/ports.json")
        metrics = f"http://127.0.0.1:{json.loads(file.read_text())['metrics']}/metrics"
        text = httpx.get(metrics, timeout=HANG_S).raise_for_status().text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        counts = {each.labels["tier"]: each.value for each in samples if "cascade_answers" in each.name}
        answers = sum(each.value for each in samples if each.name.startswith("segserve_answers"))
        return counts.get("light", 0) >= 2 and counts.get("heavy", 0) >= 1 and answers == sum(counts.values())

    until(counted, "both networks' answers are counted, and each once")
