"""Samples of callers' requests on the local platform: captured, exported, corrected, and back as a golden set."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from bench.platform import Running
from fakes.waiting import until
from segserve import Client, SemanticResult
from segserve_builder.golden.judging import load
from segserve_builder.sources import folder_digest

pytestmark = pytest.mark.platform

CANARY = b"canary-4711"


def with_canary(photo: bytes) -> bytes:
    """Return the photograph as a JPEG with a text in its EXIF, in a comment and behind its end."""
    exif = Image.Exif()
    exif[0x010E] = CANARY.decode()
    written = io.BytesIO()
    Image.open(io.BytesIO(photo)).convert("L").save(written, "JPEG", quality=95, exif=exif, comment=CANARY)
    return written.getvalue() + CANARY


def listed(running: Running) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(running.segserve("samples", "list", "coins", "-o", "json"))
    return rows


def sampled(running: Running, image: bytes, samples: int) -> list[dict[str, Any]]:
    """Ask until so many samples are kept: copies are dropped until the capture service has started."""
    with Client(running.url) as client:

        def kept() -> list[dict[str, Any]] | None:
            client.segment(image, model="coins")
            time.sleep(0.6)
            rows = listed(running)
            return rows if len(rows) >= samples else None

        return until(kept, f"{samples} samples")


def test_captured_samples_come_back_as_a_golden_set_that_the_revision_passes(
    serve: Callable[..., Running], edited: Callable[..., Path], photo: bytes, tmp_path: Path
) -> None:
    store = tmp_path / "samples"
    capture = {"share": 1, "perMinute": 600, "sink": store.as_uri()}
    running = serve(edited(capture=capture))
    rows = sampled(running, with_canary(photo), 2)
    assert {row["revision"] for row in rows} == {status(running)["roles"]["stable"]["revision"]}
    assert all(row["reasons"] == ["share"] and row["request_id"] for row in rows)

    metrics = httpx.get(f"{running.url}/metrics").text
    assert 'segserve_process_cpu_seconds_total{process="capture"}' in metrics

    out, golden = tmp_path / "labels", tmp_path / "golden"
    running.segserve("samples", "export", "coins", "--output", str(out), "--limit", "2")
    document = json.loads((out / "annotations.json").read_text())
    assert len(document["images"]) == 2
    corrected = tmp_path / "corrected.json"
    corrected.write_text(json.dumps(one_coin_less(document)))
    running.segserve("samples", "label-back", "coins", str(corrected), "--golden", str(golden))

    assert [case.labels is not None for case in load(golden).cases] == [True, True]
    spec = {"uri": golden.as_uri(), "sha256": folder_digest(golden)}
    running.segserve("apply", "-f", str(edited(capture=capture, golden=spec)))
    running.segserve("wait", "coins")
    (passed,) = [each for each in conditions(running) if each["type"] == "GoldenPassed"]
    assert (passed["status"], passed["reason"]) == ("True", "AnswersMatch")
    assert passed["message"].startswith(f"golden set {spec['sha256'][:12]}: every image (2)")

    request_id = rows[0]["request_id"]
    running.segserve("samples", "delete", "coins", "--request-id", request_id)
    assert request_id not in {row["request_id"] for row in listed(running)}
    left = [path for path in (*store.rglob("*"), *running.state.rglob("*")) if path.is_file() and not path.is_socket()]
    assert not [path for path in left if CANARY in path.read_bytes()]


def status(running: Running) -> dict[str, Any]:
    resource: dict[str, Any] = json.loads(running.segserve("get", "coins", "-o", "json"))
    return dict(resource["status"])


def conditions(running: Running) -> list[dict[str, Any]]:
    return list(status(running)["conditions"])


def one_coin_less(document: dict[str, Any]) -> dict[str, Any]:
    """Return a COCO data set as a tool writes it: categories numbered anew, and the masks as polygons of a person."""
    names = {each["id"]: each["name"] for each in document["categories"]}
    square = [[10.0, 10.0, 60.0, 10.0, 60.0, 60.0, 10.0, 60.0]]
    annotations = [
        {"id": 1 + index, "image_id": image["id"], "category_id": 7, "segmentation": square, "bbox": [10, 10, 50, 50]}
        for index, image in enumerate(document["images"])
    ]
    assert "coin" in names.values()
    return {**document, "categories": [{"id": 7, "name": "coin"}], "annotations": annotations}


def test_a_redacted_class_is_in_no_sample(
    serve: Callable[..., Running], edited: Callable[..., Path], photo: bytes, tmp_path: Path
) -> None:
    store = tmp_path / "samples"
    redact = {"classes": ["coin"], "method": "fill"}
    running = serve(edited(capture={"share": 1, "perMinute": 600, "sink": store.as_uri(), "redact": redact}))
    (row, *_) = sampled(running, photo, 1)

    with Client(running.url) as client:
        coins = client.segment(photo, model="coins", expect=SemanticResult).labels == 1
    with Image.open(store / "coins" / row["image"]) as image:
        pixels = np.asarray(image.convert("L"))
    assert coins.any()
    assert not pixels[coins].any()
    assert pixels[~coins].any()
