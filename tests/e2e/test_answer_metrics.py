"""Counts of answers at the real Triton's /metrics, beside the answers that callers got."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc
from prometheus_client.parser import text_string_to_metric_families

from bench.monolith_server import embedded_triton
from bench.platform import MODELS, Running
from fakes.agent_group import assigned, picture, write_network
from fakes.waiting import until
from segserve import BadRequestError, Client, InstanceResult, SemanticResult
from segserve_builder.render.repository import build_tree, publish_tree
from segserve_builder.render.target import RenderTarget
from segserve_builder.steps.answer_metrics import ANSWERS, METRIC_FAMILIES, STEP_SECONDS

pytestmark = pytest.mark.platform

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
NAMES = {name for family in METRIC_FAMILIES for name in family.counters}


def scraped(running: Running) -> Series:
    """Return the series of answers, summed over the servers."""
    ports = (json.loads(file.read_text())["metrics"] for file in running.state.glob("groups/*/ports.json"))
    return series_of(*(f"http://127.0.0.1:{port}/metrics" for port in ports))


def series_of(*urls: str) -> Series:
    """Return the series of answers, summed over servers' metrics; a server writes its counters as they are."""
    found: Counter[tuple[str, frozenset[tuple[str, str]]]] = Counter()
    for url in urls:
        for family in text_string_to_metric_families(httpx.get(url).text):
            for sample in family.samples:
                # The parser ends a counter's name with _total, whether or not it has it.
                name = sample.name if sample.name in NAMES else sample.name.removesuffix("_total")
                if name.startswith("segserve_"):
                    found[name, frozenset(sample.labels.items())] += sample.value
    return dict(found)


def value(series: Series, name: str, **labels: str) -> float:
    """Return the sum of the series that have these labels."""
    wanted = {(key.removesuffix("_"), text) for key, text in labels.items()}
    return sum(amount for (found, own), amount in series.items() if found == name and wanted <= own)


def counted(running: Running, answers: int, **labels: str) -> Series:
    """Return the series once so many answers are in all of them: a step reports its families in order."""

    def reached() -> Series | None:
        series = scraped(running)
        return series if value(series, f"{STEP_SECONDS.name}_count", step="post", **labels) >= answers else None

    return until(reached, f"{answers} answers of {labels} are counted")


def test_what_callers_got_is_counted_exactly_and_failed_requests_are_not(
    serve: Callable[..., Running], photo: bytes
) -> None:
    running = serve(MODELS)
    with Client(running.url) as client, ThreadPoolExecutor(8) as threads:
        instances = list(
            threads.map(lambda _: client.segment(photo, model="coins-instances", expect=InstanceResult), range(24))
        )
        maps = list(threads.map(lambda _: client.segment(photo, model="coins", expect=SemanticResult), range(16)))
        for _ in range(3):
            with pytest.raises(BadRequestError):
                client.segment(b"no image", model="coins-instances")

    coins, found = {"model": "coins-instances"}, [item for answer in instances for item in answer]
    counted(running, len(instances), **coins)
    series = counted(running, len(maps), model="coins")

    assert value(series, "segserve_answers_total", **coins) == 24
    assert value(series, "segserve_answers_total", model="coins") == 16
    for name, amount in Counter(item.class_name for item in found).items():
        assert value(series, "segserve_class_instances_total", class_=name, **coins) == amount
    assert value(series, "segserve_class_score_count", **coins) == len(found)
    pixels = sum(item.area for item in found)
    assert value(series, "segserve_class_pixels_total", **coins) == pixels
    scores = sum(item.score for item in found)
    assert value(series, "segserve_class_score_sum", **coins) == pytest.approx(scores, rel=1e-4)
    confident = sum(item.score <= 0.9 for item in found)
    assert value(series, "segserve_class_score_bucket", le="0.9", **coins) == confident
    assert value(series, "segserve_class_area_ratio_count", model="coins") == 2 * len(maps)
    height, width = maps[0].labels.shape
    assert value(series, "segserve_image_pixels_sum", model="coins") == 16 * height * width
    assert value(series, "segserve_class_pixels_total", model="coins") == 16 * height * width
    assert value(series, "segserve_class_pixels_total", model="coins", class_="coin") == sum(
        int((answer.labels == 1).sum()) for answer in maps
    )
    assert {name for name, _ in series} <= NAMES
    answered = {
        dict(labels)["revision"] for (name, labels), count in series.items() if name in ANSWERS.counters and count
    }
    assert answered == {instances[0].revision, maps[0].revision}


def test_several_processes_of_the_steps_around_a_network_answer_and_count_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only networks on a GPU have them; the steps are the same."""
    monkeypatch.setattr(RenderTarget, "stage_instances", lambda *_: 2)
    repository, artifact = tmp_path / "repository", tmp_path / "bright.onnx"
    told = assigned("bright", artifact, write_network(artifact, 100.0))
    repository.mkdir()
    publish_tree(build_tree(told.networks, tmp_path / "cache"), repository)
    with embedded_triton(repository, "bright") as server, ThreadPoolExecutor(8) as threads:
        client = tritonclient.grpc.InferenceServerClient(server.grpc)
        image = tritonclient.grpc.InferInput("IMAGE", [1], "BYTES")
        image.set_data_from_numpy(np.array([picture()], np.object_))
        answers = [*threads.map(lambda _: client.infer("bright", [image]).as_numpy("AREAS").tolist(), range(32))]
        steps = Counter(Path(stub.cmdline()[1]).parts[-3] for stub in psutil.Process(server.pid).children())
        until(lambda: value(series_of(server.metrics_url), "segserve_answers_total") == 32, "all answers are counted")

    assert answers == [[768, 768]] * 32
    assert sorted(steps.values()) == [1, 2, 2]
