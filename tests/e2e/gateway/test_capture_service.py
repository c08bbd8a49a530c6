"""The capture service beside a real Envoy: whole samples of callers' requests, and that only pixels are kept."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image
from pycocotools import mask as coco

from fakes.gateway import RunningGateway, running_gateway
from fakes.kserve import Arrays, Asked, Gateway, Model, items
from fakes.waiting import eventually
from segserve import Client
from segserve_builder.capture.rule import CapturedClass, CaptureReason, CaptureRule, RedactionRule
from segserve_builder.capture.store import ManifestRow, SampleStore
from segserve_builder.sources.access import ACCESS_VARIABLE, LOCAL
from segserve_operator.adapters.traffic.envoy_config import EnvoyFiles
from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan

pytestmark = [pytest.mark.platform, pytest.mark.asyncio(loop_scope="module")]

CANARY = b"canary-4711"
SIDE = 64
OUTPUTS = ["REVISION", "SIZE", "BOXES", "SCORES", "CLASSES", "MASKS"]
CLASSES = (CapturedClass(id=0, name="coin"), CapturedClass(id=1, name="face"))


def answer(asked: Asked) -> Arrays:
    masks = np.zeros((2, SIDE, SIDE), np.uint8)
    masks[0, 4:20, 4:20], masks[1, 32:52, 32:52] = 1, 1
    return {
        "REVISION": items(b"coins-1"),
        "SIZE": np.array([SIDE, SIDE], np.int32),
        "BOXES": np.array([[4, 4, 20, 20], [32, 32, 52, 52]], np.float32),
        "SCORES": np.array([0.95, 0.55], np.float32),
        "CLASSES": np.array([0, 1], np.int32),
        "MASKS": items(*(coco.encode(np.asfortranarray(mask))["counts"] for mask in masks)),
    }


def photo() -> bytes:
    exif = Image.Exif()
    exif[0x010E] = CANARY.decode()
    pixels = np.random.default_rng(0).integers(100, 250, (SIDE, SIDE, 3), np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "JPEG", quality=95, exif=exif)
    return written.getvalue() + CANARY


@pytest.fixture(scope="module")
def server() -> Iterator[Endpoint]:
    classes = json.dumps([{"id": item.id, "name": item.name} for item in CLASSES])
    triton = Gateway({"coins": Model(OUTPUTS, {"revision": "coins-1", "classes": classes}, answer)})
    with triton.http() as http, triton.grpc() as grpc:
        yield Endpoint("127.0.0.1", *(int(url.rpartition(":")[2]) for url in (http, grpc)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path_factory.mktemp("captured"), capture=True) as running:
        yield running


@contextmanager
def service(gateway: RunningGateway, log: Path) -> Iterator[None]:
    """Run the capture service beside the gateway."""
    folder = EnvoyFiles(gateway.folder).capture.path
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "segserve_builder.capture", str(folder), "--gateway", f"http://{gateway.internal}"]
    environment = {**os.environ, ACCESS_VARIABLE: LOCAL.model_dump_json()}
    with log.open("wb") as written, subprocess.Popen(command, env=environment, stderr=written) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait()


async def sampled(
    gateway: RunningGateway, server: Endpoint, rule: CaptureRule, transport: Literal["http", "grpc"] = "http"
) -> list[ManifestRow]:
    """Ask until there is a sample: copies are dropped until the service has started."""
    route = Route("coins", (Share("main", "coins-1", 100, (server,)),), capture=rule)
    await gateway.traffic.apply(TrafficPlan((route,), (server,)))
    store = SampleStore(rule.sink, LOCAL)
    with Client(f"http://{gateway.authority}", transport=transport) as client:

        async def kept() -> list[ManifestRow]:
            await asyncio.to_thread(client.segment, photo(), model="coins")
            await asyncio.sleep(0.5)
            return list(store.rows("coins"))

        return await eventually(kept, "a sample")


def rule(sink: Path, **fields: object) -> CaptureRule:
    given = {"group": "main", "revision": "coins-1", "share": 1.0, "per_minute": 600, "retention_s": 3600.0}
    return CaptureRule.model_validate(
        {**given, "sink": sink.as_uri(), "classes": CLASSES, "max_pixels": 10**6, "threshold": 0.5, **fields}
    )


@pytest.mark.parametrize("transport", ["http", "grpc"])
async def test_a_request_becomes_a_sample_and_only_its_pixels_are_kept(
    gateway: RunningGateway, server: Endpoint, tmp_path: Path, transport: Literal["http", "grpc"]
) -> None:
    made = rule(tmp_path / "samples", when=("uncertain",))
    with service(gateway, tmp_path / "log"):
        row, *_ = await sampled(gateway, server, made, transport)

        async def counted() -> bool:
            count = b'segserve_captured_samples_total{model="coins",reason="uncertain"}'
            return count in await gateway.traffic.metrics()

        await eventually(counted, "a sample that is counted")

    assert (row.revision, row.reasons, row.size) == ("coins-1", (CaptureReason.UNCERTAIN,), (SIDE, SIDE))
    assert row.request_id
    document = SampleStore(made.sink, LOCAL).coco(row)
    assert document is not None
    assert [(each["category_id"], each["area"]) for each in document["annotations"]] == [(0, 256.0), (1, 400.0)]
    files = [path for folder in (tmp_path, gateway.folder) for path in folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if CANARY in path.read_bytes()]


async def test_a_redacted_class_is_in_no_file(gateway: RunningGateway, server: Endpoint, tmp_path: Path) -> None:
    made = rule(tmp_path / "samples", redact=RedactionRule(ids=(1,)))
    with service(gateway, tmp_path / "log"):
        row, *_ = await sampled(gateway, server, made)

    with Image.open(io.BytesIO(SampleStore(made.sink, LOCAL).image(row))) as image:
        pixels = np.asarray(image)
    # JPEG leaves a little noise.
    assert pixels[32:52, 32:52].max() < 30
    assert pixels[4:20, 4:20].min() > 60


async def test_nothing_is_kept_where_both_revisions_answer_alike(
    gateway: RunningGateway, server: Endpoint, tmp_path: Path
) -> None:
    made = rule(tmp_path / "samples", when=("disagree",), other="main")
    route = Route("coins", (Share("main", "coins-1", 100, (server,)),), capture=made)
    await gateway.traffic.apply(TrafficPlan((route,), (server,)))
    with service(gateway, tmp_path / "log"), Client(f"http://{gateway.authority}") as client:

        async def looked_at() -> bool:
            await asyncio.to_thread(client.segment, photo(), model="coins")
            await asyncio.sleep(0.5)
            return (
                b'segserve_capture_dropped_total{cause="unremarkable",model="coins"}' in await gateway.traffic.metrics()
            )

        await eventually(looked_at, "a request that is looked at")
    assert list(SampleStore(made.sink, LOCAL).rows("coins")) == []
