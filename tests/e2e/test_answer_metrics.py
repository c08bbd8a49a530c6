"""Counts of answers at the real Triton's /metrics, beside the answers that callers got."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench.platform import MODELS, Running
from fakes.waiting import until
from raw_inference import RawRequest, http_body, image
from segserve import BadRequestError, Client, InstanceResult, SemanticResult
from segserve_builder.steps.answer_metrics import ANSWERS, METRIC_FAMILIES, STEP_SECONDS
from segserve_common.kserve import HEADER_LENGTH, decode_http

pytestmark = pytest.mark.platform

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
NAMES = {name for family in METRIC_FAMILIES for name in family.counters}


def scraped(running: Running) -> Series:
    """Return the series of answers, summed over the servers; a server writes its counters as they are."""
    found: Counter[tuple[str, frozenset[tuple[str, str]]]] = Counter()
    for file in running.state.glob("groups/*/ports.json"):
        port = json.loads(file.read_text())["metrics"]
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        for family in text_string_to_metric_families(text):
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


def first_step(running: Running) -> str:
    """Return the name of the loaded ensemble's first step, which has another one where it measures nothing."""
    config = httpx.get(f"{running.url}/v2/models/coins/config").raise_for_status().json()
    return str(config["ensemble_scheduling"]["step"][0]["model_name"])


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


def test_a_new_revision_counts_by_itself_and_metrics_are_switched_without_one(
    serve: Callable[..., Running], photo: bytes, edited: Callable[..., Path]
) -> None:
    running = serve(edited(metrics={"classes": ["coin"]}))
    with Client(running.url) as client:

        def ask(times: int) -> Any:
            return [client.segment(photo, model="coins", expect=SemanticResult) for _ in range(times)][-1]

        first = ask(4).revision
        series = counted(running, 4, model="coins")
        pixels = value(series, "segserve_class_pixels_total", model="coins", class_="other")
        assert pixels > value(series, "segserve_class_pixels_total", model="coins", class_="coin") > 0

        measuring = first_step(running)
        running.segserve("apply", "-f", str(edited(metrics={"answers": False})))
        until(lambda: first_step(running) != measuring, "the model is served by steps that measure nothing")
        assert ask(3).revision == first

        running.segserve("apply", "-f", str(edited(output={"maxDetections": 7})))
        second = until(lambda: (found := ask(1).revision) != first and found, "another revision answers")
        ask(4)
        series = counted(running, 5, revision=second)

    assert value(series, "segserve_class_answers_total", revision=second, class_="background") == 5
    assert value(series, "segserve_answers_total", revision=first) == 4


def test_answers_are_counted_by_the_slice_that_a_header_names_over_http_and_grpc(
    serve: Callable[..., Running], photo: bytes, edited: Callable[..., Path]
) -> None:
    running = serve(edited(metrics={"slices": ["north", "south"]}))
    with Client(running.url) as http, Client(running.url, transport="grpc") as grpc:
        for client, north, south in ((http, 3, 1), (grpc, 2, 4)):
            for name, times in (("north", north), ("south", south), ("elsewhere", 1)):
                of_slice = client.with_options(headers={"x-segserve-slice": name})
                for _ in range(times):
                    of_slice.segment(photo, model="coins")
            client.segment(photo, model="coins")
    header, tensors = http_body(RawRequest([image(photo)], {"encoding": "rle"}))
    headers = {HEADER_LENGTH.encode(): b"%d" % len(header), b"x-segserve-slice": b"caf\xe9"}
    unreadable = httpx.post(
        f"{running.url}/v2/models/coins/infer", content=header + tensors, headers=headers, timeout=60
    )
    assert unreadable.status_code == 200, unreadable.text
    assert not decode_http(unreadable.content, unreadable.headers[HEADER_LENGTH])["LABELS"].to_items()

    series = counted(running, 15, model="coins")

    by_slice = {name: value(series, "segserve_answers_total", slice=name) for name in ("north", "south", "other")}
    assert by_slice == {"north": 5, "south": 5, "other": 5}
    assert value(series, "segserve_image_detail_ratio_count", slice="south") == 5
    assert value(series, "segserve_class_answers_total", slice="north", class_="coin") == 5
    detail = value(series, "segserve_image_detail_ratio_sum") / 15
    assert 0 < detail < 0.1
