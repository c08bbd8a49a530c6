"""What the page's scripts are answered, on this machine's platform and on a cluster."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import time
from base64 import b64decode
from collections import Counter
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

from fakes import rollout_records as records
from fakes import sheets
from fakes.comparator import running_comparator
from fakes.control import FAILED, ClusterHarness, Harness, LocalHarness, answering, status
from fakes.kserve import Fault, Gateway, Model, items
from fakes.tcp_relay import TcpRelay
from segserve import Client
from segserve_common.kserve import Tensor
from segserve_operator.adapters.local.request_history import RequestHistory
from segserve_operator.adapters.traffic.envoy_config import EnvoyFiles
from segserve_operator.core.rollout.counters import Counters, Series, SeriesCounts
from segserve_operator.core.rollout.phases import Phase
from segserve_platform.platforms.activity import WINDOW_S
from segserve_platform.platforms.errors import unreachable
from segserve_platform.platforms.local import LocalPlatform
from segserve_platform.platforms.metrics import MetricsSnapshot, MetricsSource, read_series
from segserve_platform.platforms.selection import open_platform
from segserve_ui.app import DOCS, STATIC, TimedCache
from segserve_ui.history import describe_history
from segserve_ui.models import ModelsList, ModelsOverview, StoredModels, state_of_model
from segserve_ui.rollouts import VERBS, describe_rollout
from segserve_ui.server import serving

from ...conftest import CLASSES, HEIGHT, INSTANCE, WIDTH, parameters
from ..conftest import conditions, model
from .conftest import EXAMPLE, Page, entered


async def test_an_image_is_segmented_by_the_model_that_is_named(page: Page, photo: bytes) -> None:
    discs, coins = await page.segment(photo, "discs"), await page.segment(photo, "coins")

    assert (discs["status"], discs["kind"], discs["revision"]) == (200, "instance", "discs-bbbbbbbbbb")
    assert [each["score"] for each in discs["objects"]] == [0.93, 0.87]
    assert (coins["kind"], coins["width"], coins["height"]) == ("semantic", WIDTH, HEIGHT)
    assert [each["name"] for each in coins["classes"]] == [each["name"] for each in CLASSES]
    assert coins["id"] != discs["id"]


async def test_a_lowest_score_is_passed_on(page: Page, photo: bytes) -> None:
    assert (await page.segment(photo, score_threshold="0.96"))["objects"] == []


async def test_a_platform_that_came_back_at_another_address_is_found(
    harness: Harness, gateway: Gateway, photo: bytes
) -> None:
    with gateway.http() as url:
        urls = iter(["http://127.0.0.1:1", url])
        async for page in entered(harness, lambda _: nullcontext(next(urls))):
            assert (await page.segment(photo))["status"] == 200


async def asked(page: Page, path: str, content: bytes = b"") -> tuple[int, str]:
    """Return the status, and the id of the image that was asked about, or the kind of the error."""
    answer = await page.client.post(path, content=content)
    return answer.status_code, answer.json().get("image") or answer.json()["kind"]


async def test_objects_that_are_selected_one_after_the_other_are_one_answer(
    page: Page, gateway: Gateway, photo: bytes
) -> None:
    discs = gateway.models["discs"]
    prompted = replace(discs, outputs=[*INSTANCE, "EMBEDDING_ID"],
                       answer=lambda given: {**discs.answer(given), "EMBEDDING_ID": items(b"x-1")})  # fmt: skip
    gateway.models["discs"] = prompted
    first = (await page.client.post("/api/prompts?model=discs&point=1,2", content=photo)).json()
    again = f"/api/prompts/{first['image']}?point=3,4&before="
    others = [(await page.client.post(f"{again}{first['id']}")).json() for _ in range(12)]
    both = others[-1]
    exported = await page.client.get(f"/api/answers/{both['id']}/coco?name=photo.png")
    gone = await page.client.post(f"{again}nothing")

    found = len(first["objects"])
    assert found > 0
    assert len(both["objects"]) == 2 * found == len(exported.json()["annotations"])
    assert [each["number"] for each in both["objects"]] == list(range(1, 2 * found + 1))
    assert (gone.status_code, gone.json()["kind"]) == (404, "GoneAnswerError")


async def test_an_image_of_a_gateway_that_came_back_at_another_address_is_to_be_opened_again(
    harness: Harness, gateway: Gateway, photo: bytes
) -> None:
    answers = {"SIZE": np.array([HEIGHT, WIDTH], np.int32), "BOXES": np.zeros((0, 4), np.float32)}
    answers |= {"SCORES": np.zeros(0, np.float32), "CLASSES": np.zeros(0, np.int32), "MASKS": items()}
    answers |= {"REVISION": items(b"sam-1"), "EMBEDDING_ID": items(b"sam-1.1")}
    gateway.models["discs"] = Model([*INSTANCE, "EMBEDDING_ID"], parameters("sam-1"), lambda _: answers)
    with gateway.http() as url:
        relay = TcpRelay(("127.0.0.1", int(url.rpartition(":")[2])))
        urls = iter([f"http://127.0.0.1:{relay.port}", url])
        async for page in entered(harness, lambda _: nullcontext(next(urls))):
            opened = await asked(page, "/api/prompts?model=discs", photo)
            again = await asked(page, f"/api/prompts/{opened[1]}?point=1,2")
            relay.close()
            lost = [await asked(page, f"/api/prompts/{opened[1]}?point=1,2") for _ in range(2)]
            anew = await asked(page, "/api/prompts?model=discs&point=1,2", photo)

    assert (opened[0], again, anew[0]) == (200, opened, 200)
    assert lost == [(404, "GoneAnswerError")] * 2


@pytest.mark.parametrize(
    ("fault", "code", "text"),
    [
        (Fault(http=400, message="the image is broken"), 400, "the image is broken"),
        (Fault(http=413, message="too large"), 413, "too large"),
        (Fault(http=401, message="who?"), 502, "who?; the page uses SEGSERVE_API_KEY of the terminal"),
        (Fault(http=403, message="not yours"), 403, "not yours"),
        (Fault(http=500, message="it broke"), 502, "it broke"),
        (Fault(http=504, message="too late"), 504, "too late"),
    ],
)
async def test_an_error_of_the_gateway_is_shown_in_its_words(
    page: Page, gateway: Gateway, photo: bytes, fault: Fault, code: int, text: str
) -> None:
    gateway.faults.append(fault)

    answer = await page.segment(photo)

    assert answer["status"] == code
    assert text in answer["error"]
    assert "Traceback" not in answer["error"]


async def test_a_model_that_is_not_there_is_named(page: Page, photo: bytes) -> None:
    answer = await page.segment(photo, "coin")

    assert answer["status"] == 404
    assert "'coin'" in answer["error"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/api/segment", "the request has no model"),
        ("/api/segment?model=discs&score_threshold=x", "score_threshold must be a number from 0 to 1, got 'x'"),
        ("/api/segment?model=discs&score_threshold=7", "score_threshold must be a number from 0 to 1, got '7'"),
        ("/api/segment?model=discs", "the request has no image: its body is empty"),
        ("/api/compare?first=coins", "the request has no second"),
        ("/api/preview", "the request has no image: its body is empty"),
        ("/api/prompts?model=discs&point=1", "point is '1'; allowed: X,Y, in pixels of the image"),
        ("/api/prompts/x?background=1,x", "background is '1,x'; allowed: X,Y, in pixels of the image"),
        ("/api/prompts/x?box=1,2,0,4", "a box needs a width and height above 0, got 0.0 x 4.0"),
        ("/api/prompts/x?point=nan,2", "a click needs finite numbers, got nan, 2.0"),
    ],
)
async def test_what_is_missing_or_wrong_in_a_request_is_said(page: Page, path: str, text: str) -> None:
    answer = await page.client.post(path)

    assert (answer.status_code, answer.json()["error"]) == (400, text)


async def test_an_image_that_is_no_longer_kept_is_named_for_the_page_to_open_it_again(page: Page) -> None:
    answer = await page.client.post("/api/prompts/gone?point=1,2")

    assert (answer.status_code, answer.json()["kind"]) == (404, "GoneAnswerError")


@pytest.mark.parametrize("declared", [True, False])
async def test_an_image_beyond_the_gateways_limit_is_refused_before_it_is_read_whole(
    page: Page, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, declared: bool
) -> None:
    monkeypatch.setattr("segserve_ui.app.body_limit_bytes", lambda _: 2**20)
    read = 0

    async def body() -> object:
        nonlocal read
        for _ in range(40):
            read += 1
            yield bytes(2**19)

    headers = {"content-length": str(20 * 2**20)} if declared else {}
    answer = await page.client.post("/api/segment?model=discs", content=body(), headers=headers)  # type: ignore[arg-type]

    assert answer.status_code == 413
    assert "the gateway takes at most 1.0 MiB (spec.gateway.maxRequestBytes of the pool)" in answer.json()["error"]
    assert not gateway.asked


async def test_the_limit_is_that_of_the_largest_pool(page: Page) -> None:
    before = (await page.get("/api/platform"))["bodyLimit"]
    pool = {"apiVersion": "segserve.dev/v1alpha1", "kind": "TritonPool", "metadata": {"name": "default"}}
    with Client(platform=page.place.platform) as client:
        client.pools.apply(pool | {"spec": {"gateway": {"maxRequestBytes": 2**20}}})

    after = (await page.get("/api/platform"))["bodyLimit"]

    assert 2**26 - 2**16 < before < 2**26
    assert 2**20 - 2**16 < after < 2**20


async def test_a_format_that_browsers_do_not_know_is_decoded_for_them(page: Page, tiff: bytes) -> None:
    preview = await page.client.post("/api/preview", content=tiff)
    broken = await page.client.post("/api/preview", content=b"no image")

    with Image.open(io.BytesIO(preview.content)) as image:
        assert (image.format, image.size) == ("JPEG", (WIDTH, HEIGHT))
    assert (broken.status_code, broken.json()["kind"]) == (400, "BadRequestError")


async def test_a_download_has_what_is_shown(page: Page, photo: bytes) -> None:
    answer = await page.segment(photo)
    shown = {"name": "my photo.png", "min_score": "0.9", "hidden": "7"}

    coco = await page.client.get(f"/api/answers/{answer['id']}/coco", params=shown)
    geojson = await page.client.get(f"/api/answers/{answer['id']}/geojson", params=shown | {"hidden": "1"})

    assert coco.headers["content-disposition"] == 'attachment; filename="my_photo-coco.json"'
    assert coco.headers["content-type"] == "application/octet-stream"
    assert [each["score"] for each in coco.json()["annotations"]] == [pytest.approx(0.93)]
    assert coco.json()["images"][0]["file_name"] == "my photo.png"
    assert geojson.json()["features"] == []


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("{id}/pdf?name=a", 400, "unknown format 'pdf'; there are: coco,"),
        ("{id}/coco-panoptic?name=a", 400, "needs a PanopticResult"),
        ("{id}/coco?name=a&hidden=x", 400, "hidden must be ids of classes"),
        ("{id}/coco", 400, "the request has no name"),
        ("other/coco?name=a", 404, "segment the image again"),
    ],
)
async def test_a_download_that_is_not_possible_is_an_error(
    page: Page, photo: bytes, path: str, code: int, text: str
) -> None:
    answer = await page.client.get("/api/answers/" + path.format(id=(await page.segment(photo))["id"]))

    assert answer.status_code == code
    assert text in answer.json()["error"]


async def test_the_calls_name_the_gateway_the_model_and_the_image(page: Page) -> None:
    found = (await page.get("/api/calls", model="discs", name="a.png", score_threshold="0.5"))["calls"]

    assert [each["title"] for each in found] == ["Python", "curl", "Command line"]
    assert all("discs" in each["text"] and "a.png" in each["text"] and "0.5" in each["text"] for each in found)
    assert ("--context lab-context -n lab" in found[2]["text"]) is isinstance(page.harness, ClusterHarness)


async def test_two_models_are_compared_as_segserve_diff_does(page: Page, photo: bytes) -> None:
    same = await page.client.post("/api/compare", params={"first": "discs", "second": "discs"}, content=photo)
    apart = await page.client.post("/api/compare", params={"first": "discs", "second": "coins"}, content=photo)

    assert same.json()["agreement"] == {
        "value": 1.0,
        "classes": [{"class": "coin", "agreement": 1.0}],
        "only": [0, 0],
    }
    assert [each["model"] for each in same.json()["answers"]] == ["discs", "discs"]
    assert apart.status_code == 400
    assert "cannot be compared: InstanceResult of 80 x 60 and SemanticResult of 80 x 60" in apart.json()["error"]


async def test_models_are_listed_with_their_states(page: Page) -> None:
    page.harness.tell("discs", status(FAILED))

    seen = await page.get("/api/models")

    assert [(each["name"], each["state"]["tone"]) for each in seen["models"]] == [("coins", "good"), ("discs", "bad")]
    assert "IoU 0.2, allowed 0.9" in seen["models"][1]["state"]["text"]
    assert {each["task"] for each in seen["models"]} == {"semantic"}
    is_local = isinstance(page.harness, LocalHarness)
    assert seen["examples"] == ({"coins": ["coins.png"], "discs": ["coins.png"]} if is_local else {})


THING = [{"id": 0, "name": "background"}, {"id": 1, "name": "coin", "thing": True}]
FUSION = [{"argmax": {}}, {"panopticFusion": {"stuffArea": 1000}}]


@pytest.mark.parametrize(
    ("fields", "task"),
    [
        ({"cascade": {"light": {"model": "named"}, "when": "confidence", "threshold": 0.5}}, "semantic"),
        ({"instances": {"model": "named"}, "classes": THING, "postprocess": FUSION}, "panoptic"),
    ],
)
def test_a_model_has_a_task_once_the_model_that_it_names_is_applied(
    local: LocalHarness, fields: dict[str, Any], task: str
) -> None:
    semantic, instances, *_ = yaml.safe_load_all(EXAMPLE.read_text())
    other = deepcopy(instances if task == "panoptic" else semantic)
    other["metadata"]["name"] = "named"
    semantic["spec"] |= fields | {"preprocess": other["spec"]["preprocess"]}
    listed, platform = ModelsList(examples=False), open_platform(local.place())
    with Client(platform=local.place()) as client:
        client.models.apply_all(yaml.safe_dump_all([semantic, other]))
        local.vanish("named")
        before = listed.describe(StoredModels.of(platform))["models"]
        client.models.apply(other)

    assert [each["task"] for each in before] == [""]
    after = listed.describe(StoredModels.of(platform))["models"]
    assert {each["name"]: each["task"] for each in after}["coins"] == task


async def test_a_golden_image_can_be_taken_on_this_machine_alone(page: Page) -> None:
    first = await page.client.get("/api/models/coins/examples/0")
    other = await page.client.get("/api/models/coins/examples/7")

    if isinstance(page.harness, LocalHarness):
        with Image.open(io.BytesIO(first.content)) as image:
            assert image.size == (384, 303)
        assert other.json()["error"] == "coins has 1 example images, got the number 7"
    else:
        assert (first.status_code, other.status_code) == (404, 404)


async def test_the_overview_has_conditions_in_words_and_why_there_are_no_numbers(page: Page) -> None:
    seen = await page.get("/api/overview")

    row = seen["models"][0]
    assert row["revisions"][0] | {"age": ""} == {
        "role": "stable",
        "revision": records.STABLE,
        "weight": 100,
        "failed": False,
        "text": "",
        "age": "",
    }
    assert {each["type"]: each["tone"] for each in row["conditions"]} == {
        "Ready": "good",
        "Progressing": "good",
        "Degraded": "good",
    }
    (note,) = seen["notes"]
    assert ("--prometheus URL" in note) is isinstance(page.harness, ClusterHarness)
    assert row["activity"] is None


class CountedMetrics(MetricsSource):
    """Metrics of a model that is asked ten times a second."""

    def snapshot(self) -> MetricsSnapshot:
        at_s = time.monotonic()
        labels = 'envoy_cluster_name="default/coins/infer/main/http"'
        return MetricsSnapshot(at_s, tuple(read_series(f"envoy_cluster_upstream_rq_completed{{{labels}}} {10 * at_s}")))


@pytest.mark.parametrize(
    ("said", "tone"), [("True", "bad"), ("False", "good"), ("Unknown", "quiet"), (None, None)], ids=str
)
def test_the_overview_has_the_device_and_whether_a_model_drifts(said: str | None, tone: str | None) -> None:
    manifest = model(conditions=conditions(**({} if said is None else {"Drifting": said})))
    if said is not None:
        manifest["status"]["device"] = "cpu,gpu"

    (row,) = ModelsOverview(None, WINDOW_S).describe(StoredModels(True, [manifest]))["models"]

    assert row["device"] == ("cpu,gpu" if said is not None else None)
    assert (None if row["drift"] is None else row["drift"]["tone"]) == tone


async def test_rates_are_between_two_snapshots(page: Page) -> None:
    overview, stored = ModelsOverview(CountedMetrics(), WINDOW_S), StoredModels.of(page.place.platform)

    first, second = overview.describe(stored), overview.describe(stored)

    assert first["models"][0]["activity"] is None
    rates = {each["name"]: each["activity"]["requestsPerSecond"] for each in second["models"]}
    assert rates["discs"] == 0.0
    assert second["servers"] is not None


async def test_many_viewers_cost_one_read() -> None:
    reads = []

    def read() -> int:
        time.sleep(0.01)
        reads.append(1)
        return len(reads)

    shared = TimedCache(read, 3600)
    derived = [TimedCache(lambda number: -number, 3600, shared) for _ in range(2)]

    assert await asyncio.gather(*(shared.get() for _ in range(50))) == [1] * 50
    assert [await each.get() for each in derived] == [-1, -1]
    for each in (shared, *derived):
        each.clear()
    assert [await each.get() for each in derived] == [-2, -2]


@pytest.mark.parametrize("harness", ["this machine"], indirect=True)
async def test_all_pages_share_one_reading_of_models_and_of_pools(
    harness: Harness, gateway: Gateway, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segserve_ui.app.REFRESH_S", 3600)
    reads = Counter[str]()

    class Counted(LocalPlatform):
        def models(self) -> list[dict[str, Any]]:
            reads["models"] += 1
            return super().models()

        def pools(self) -> list[dict[str, Any]]:
            reads["pools"] += 1
            return super().pools()

    monkeypatch.setattr("segserve_platform.platforms.local.LocalPlatform", Counted)
    with gateway.http() as url:
        async for page in entered(harness, lambda _: nullcontext(url)):
            for path in ("platform", "models", "overview", "rollouts", "samples", "models/coins/examples/0"):
                assert (await page.client.get(f"/api/{path}")).status_code == 200
            await page.get("/api/calls", model="discs", name="a.png")
            for _ in range(3):
                assert (await page.segment(photo))["status"] == 200

    assert reads == {"models": 1, "pools": 1}


@pytest.mark.parametrize(
    ("given", "word", "tone"),
    [
        pytest.param({}, "Ready", "good", id="it serves"),
        pytest.param({"Progressing": "True"}, "Changing", "moving", id="a change is in progress"),
        pytest.param({"Degraded": "True"}, "Degraded", "bad", id="the newest spec failed, a former one serves"),
        pytest.param({"Ready": "False", "Degraded": "True"}, "Failed", "bad", id="nothing serves"),
        pytest.param(
            {"Ready": "False", "Degraded": "True", "reason": "NoServer"}, "Not ready", "moving", id="no server"
        ),
    ],
)
def test_a_model_has_a_word_for_its_state(given: dict[str, str], word: str, tone: str) -> None:
    said = {"Ready": "True", "Progressing": "False", "Degraded": "False"} | given
    manifest = model(conditions=conditions(**{"reason": "Said", **said}))

    found = state_of_model(manifest)

    assert (found["word"], found["tone"]) == (word, tone)
    assert state_of_model(manifest, runs=False)["word"] == "Stopped"


def test_a_rollout_is_described_in_words_with_its_evidence_and_decisions() -> None:
    described = describe_rollout(records.seen(), records.outlook())

    assert described["headline"].startswith("25 % of requests for")
    assert (described["phase"], described["tone"], described["ended"]) == ("Progressing", "moving", False)
    assert [(each["name"], each["state"]) for each in described["steps"]][:3] == [
        ("5 %", "done"),
        ("25 %", "now"),
        ("50 %", "to come"),
    ]
    assert [each["role"] for each in described["sides"]] == ["stable", "candidate"]
    assert [each["weight"] for each in described["decisions"]] == [25, 5, 0, 0]
    gates = {each["gate"]: each for each in described["gates"]}
    assert gates["goldenQuality"]["text"] == "0.1 points better than stable on 64 golden images"
    assert all(each["evidence"] is None or 0 <= each["evidence"] <= 1 for each in described["gates"])
    json.dumps(described, allow_nan=False)


async def test_the_running_rollout_comes_with_what_can_be_done(page: Page) -> None:
    page.harness.tell("coins", status(at=records.standing()))
    page.harness.keep(records.record())

    seen = await page.get("/api/rollouts")

    (one,) = seen["rollouts"]
    assert (one["model"], one["weight"], one["earlier"]) == ("coins", 25, [])
    assert one["actions"] == ["promote", "pause", "abort"]
    assert {each["model"]: each["actions"] for each in seen["without"]} == {"discs": []}


@pytest.mark.parametrize("harness", ["this machine"], indirect=True)
async def test_the_pairs_that_differ_most_in_shadow_are_drawn_or_the_page_says_why_not(page: Page) -> None:
    assert isinstance(page.harness, LocalHarness)
    image, side = Tensor.of_items("IMAGE", [sheets.photo()]), sheets.labels("coins-1", (40, 60, 25))
    pair = sheets.pair(image, side, sheets.labels("coins-2", (110, 60, 25)))
    told = sheets.sheet(pair, pair.model_copy(update={"candidate": ()}))
    none = await page.get("/api/rollouts/coins/pairs")
    async with running_comparator(
        EnvoyFiles(page.harness.state.gateway).comparator, pairs=told.model_dump_json().encode()
    ):
        seen = await page.get("/api/rollouts/coins/pairs")

    assert "while a rollout with spec.rollout.shadow is in Shadow" in none["error"]
    drawn, broken = seen["pairs"]
    assert (seen["compared"], drawn["figures"][0][:16]) == (212, f"agreement {pair.agreement:.3f},")
    with Image.open(io.BytesIO(b64decode(drawn["picture"]))) as picture:
        assert picture.format == "JPEG"
        assert picture.width > 4 * 480
    assert "not drawn: " in broken["figures"][-1]
    assert broken["picture"] == ""


async def test_what_is_paused_can_be_resumed(page: Page) -> None:
    page.harness.tell("coins", status(at=records.standing(paused=True)))
    page.harness.keep(records.record())

    (one,) = (await page.get("/api/rollouts"))["rollouts"]

    assert one["paused"]
    assert one["actions"] == ["promote", "resume", "abort"]
    assert one["facts"][0]["text"].startswith("you, as it is paused")


async def test_a_rollout_is_aborted_as_by_the_command(page: Page) -> None:
    at = records.standing()
    page.harness.tell("coins", status(at=at))
    page.harness.keep(records.record())

    def aborted(text: str) -> dict[str, object]:
        ended = replace(
            at, phase=Phase.ROLLED_BACK, weight=0, sequence=5, reason="Aborted", message="a person ended it"
        )
        return status(at=ended, handled=(text,))

    with answering(page.harness, "coins", aborted):
        answer = await page.client.post("/api/rollouts/coins/abort")

    assert answer.json() == {"text": f"coins: {records.CANDIDATE} is RolledBack at 0 % (Aborted: a person ended it)"}
    assert list(page.harness.annotations("coins")) == ["segserve.dev/abort"]


async def test_a_gate_of_a_running_rollout_is_skipped_once(page: Page) -> None:
    at = records.standing()
    page.harness.tell("coins", status(at=at))
    page.harness.keep(records.record())
    (before,) = (await page.get("/api/rollouts"))["rollouts"]
    gate = before["skippable"][0]

    with answering(page.harness, "coins", lambda text: status(at=replace(at, skipped=(gate,)), handled=(text,))):
        answer = await page.client.post("/api/rollouts/coins/skip-gate", params={"gate": gate})

    assert answer.status_code == 200
    (after,) = (await page.get("/api/rollouts"))["rollouts"]
    assert set(before["skippable"]) - set(after["skippable"]) == {gate}
    assert next(each for each in after["gates"] if each["gate"] == gate)["state"] == "skipped"


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("coins/skip-gate?gate=beauty", 409, "skip-gate"),
        ("coins/abort", 409, "coins"),
        ("coins/explode", 400, f"unknown action 'explode'; there are: {', '.join(VERBS)}"),
        ("nope/abort", 404, "nope"),
    ],
)
async def test_an_action_that_is_not_possible_says_why(page: Page, path: str, code: int, text: str) -> None:
    answer = await page.client.post(f"/api/rollouts/{path}")

    assert answer.status_code == code
    assert text in answer.json()["error"]
    assert page.harness.annotations("coins") == {}


async def test_the_server_listens_on_loopback_and_ends_with_its_block(page: Page) -> None:
    with serving(page.place) as access:
        async with httpx.AsyncClient() as client:
            assert (await client.get(access.url)).status_code == 200

    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(access.url)


@pytest.mark.parametrize("path", ["/api/segment", "/api/compare", "/api/preview"])
async def test_a_client_that_leaves_during_an_upload_is_no_error(page: Page, path: str) -> None:
    """What the application raises is a traceback in the terminal of `segserve ui`."""
    messages = iter(
        [{"type": "http.request", "body": b"the first bytes", "more_body": True}, {"type": "http.disconnect"}]
    )
    given = {"host": page.access.hosts[0], "authorization": page.access.authorization, "content-length": "1000"}
    headers = [(name.encode(), value.encode()) for name, value in given.items()]
    query = b"model=coins&first=coins&second=discs"
    scope = {"type": "http", "method": "POST", "path": path, "query_string": query, "headers": headers}

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: dict[str, Any]) -> None:
        assert message.get("status", 400) == 400

    await page.app(scope, receive, send)


PYTHON_WORDS = re.compile(
    r"Errno|SEGSERVE_URL|Client\(|segment_stream|segment_tiled|PIL|pixel_array|\bb'|Traceback|:8080|pass "
)


@pytest.mark.parametrize("harness", ["this machine"], indirect=True)
async def test_a_platform_that_is_gone_is_named_with_its_command_until_it_is_back(
    harness: LocalHarness, photo: bytes
) -> None:
    record = harness.state.platform.read_text()
    async for page in entered(harness, open_platform(harness.place()).gateway):  # type: ignore[arg-type]
        there = await page.get("/api/platform")
        harness.state.platform.unlink()
        gone = await page.get("/api/platform")
        answer, calls = await page.segment(photo), await page.get("/api/calls", model="discs", name="a.png")
        overview = await page.get("/api/overview")
        harness.state.platform.write_text(record)
        back = await page.get("/api/platform")

    assert (there["gone"], back["gone"]) == (None, None)
    assert gone["gone"] == {"text": "The platform is not running. Start it with:", "command": "segserve up"}
    assert (answer["status"], answer["gone"]) == (503, True)
    assert (overview["runs"], overview["notes"]) == (False, [])
    for text in (answer["error"], calls["error"]):
        assert "`segserve up` starts it" in text
        assert not PYTHON_WORDS.search(text)


@pytest.mark.parametrize("harness", ["a cluster"], indirect=True)
async def test_a_cluster_that_is_gone_is_named_in_a_clusters_words(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> list[dict[str, Any]]:
        raise unreachable("https://lab", "lab-context", "[Errno 111] Connection refused")

    monkeypatch.setattr(type(page.place.platform), "models", refuse)

    banner = (await page.get("/api/platform"))["gone"]

    assert banner["command"] == "kubectl --context lab-context -n lab cluster-info"
    assert "https://lab of context 'lab-context' does not respond: Connection refused" in banner["text"]
    assert "segserve up" not in banner["text"]


async def test_a_gateway_that_is_gone_is_named_without_words_of_python(harness: Harness, photo: bytes) -> None:
    async for page in entered(harness, lambda _: nullcontext("http://127.0.0.1:1")):
        text = (await page.segment(photo))["error"]

    command = "segserve logs" if isinstance(harness, LocalHarness) else "kubectl --context lab-context -n lab get pods"
    assert text.startswith(f"the gateway does not answer: `{command}")
    assert not PYTHON_WORDS.search(text)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "AVIF", "JPEG2000", "ICO", "PPM", "TGA"])
async def test_the_page_reads_what_predict_reads(page: Page, kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (9, 99, 199)).save(
        buffer, kind, **({"sizes": [(80, 60)]} if kind == "ICO" else {})
    )

    answer = await page.segment(buffer.getvalue())
    preview = await page.client.post("/api/preview", content=buffer.getvalue())

    assert (answer["status"], answer["width"], answer["height"]) == (200, WIDTH, HEIGHT)
    assert preview.status_code == 200


HEADS = [b"\0\0\0\x18ftypheic", b"\0\0\0\x18ftypisom", b"RIFF\0\0\0\0AVI ", bytes(128) + b"DICM", bytes(344) + b"n+1\0"]
HEADS += [b"\x1f\x8b", b"\x93NUMPY", b"PK\x03\x04", b"\x89HDF\r\n", b"%PDF-1.7", b"%!PS", b"<svg>", b"<html>", b"<?xml"]
HEADS += [
    b"NRRD0004",
    b"ZISRAWFILE",
    b"\xff\x0a",
    b"8BPS",
    b"#?RADIANCE",
    b"GIF89a",
    b"BM",
    b"\xff\xd8\xff",
    b"II*\0",
    b"hello",
]


async def test_a_file_that_is_refused_is_named_without_words_of_python(page: Page) -> None:
    random = np.random.default_rng(59)
    for data in [*(head + bytes(64) for head in HEADS), *(random.bytes(40) for _ in range(40))]:
        answer = await page.client.post("/api/preview", content=data)

        assert answer.status_code == 400, data
        assert not PYTHON_WORDS.search(answer.json()["error"]), (data, answer.json())


async def test_several_images_are_exported_together(page: Page, photo: bytes) -> None:
    for number, name in enumerate(["a.jpg", 'b,\n".jpg']):
        await page.segment(photo, batch="x", number=str(number), name=name)
    given = {"name": "nothing.jpg", "score_threshold": "0.96"}
    await page.segment(photo, batch="x", number="2", **given)

    coco, table = [(await page.client.get(f"/api/batches/x/{kind}")) for kind in ("coco", "csv")]
    overlay = await page.client.post("/api/batches/x/overlays/0", content=photo)
    gone = [
        await page.client.get("/api/batches/y/csv"),
        await page.client.post("/api/batches/x/overlays/9", content=photo),
    ]
    wrong = await page.client.get("/api/batches/x/pdf")

    names = ["a.jpg", 'b,\n".jpg', "nothing.jpg"]
    assert [each["file_name"] for each in coco.json()["images"]] == names
    assert [each["image_id"] for each in coco.json()["annotations"]] == [1, 1, 2, 2]
    rows = list(csv.DictReader(io.StringIO(table.text, newline="")))
    assert [row["file_name"] for row in rows] == [names[0]] * 2 + [names[1]] * 2 + [names[2]]
    assert [row["class"] for row in rows] == ["coin"] * 4 + [""]
    assert [row["score"][:4] for row in rows] == ["0.93", "0.87", "0.93", "0.87", ""]
    with Image.open(io.BytesIO(overlay.content)) as image:
        assert (image.format, image.size) == ("JPEG", (WIDTH, HEIGHT))
    assert [each.status_code for each in (*gone, wrong)] == [404, 404, 400]
    assert "segment the images again" in gone[0].json()["error"]


async def test_more_images_than_a_batch_has_are_refused_with_the_command_for_them(page: Page, photo: bytes) -> None:
    answer = await page.segment(photo, batch="x", number="200", name="a.jpg")

    assert answer["status"] == 400
    assert "a batch has at most 200 images" in answer["error"]
    assert "`segserve predict MODEL folder/`" in answer["error"]


async def test_a_frame_of_a_video_is_a_stream_of_its_own(page: Page, photo: bytes, gateway: Gateway) -> None:
    answer = await page.segment(photo, frame="7")

    assert (answer["status"], answer["kind"]) == (200, "instance")
    assert gateway.asked[-1].parameters["sequence_start"]


async def test_the_pages_of_the_documentation_that_empty_pages_name_are_there(page: Page) -> None:
    named = {name for path in STATIC.glob("js/*.js") for name in re.findall(r'"([a-z-]+\.md)"', path.read_text())}

    answers = {name: await page.client.get(f"/docs/{name}", headers={"authorization": ""}) for name in named}

    assert named <= DOCS
    assert all(answer.text.startswith("# ") for answer in answers.values())
    assert (await page.client.get("/docs/..%2f..%2fpyproject.toml")).status_code == 404


async def test_the_last_day_is_shown_with_past_rollouts(page: Page) -> None:
    page.harness.keep(records.record())
    if isinstance(page.harness, LocalHarness):
        history = RequestHistory(page.harness.state.requests)
        for at_s, requests in ((0, 0), (time.time() - 2 * 86400, 5), (time.time() - 60, 45), (time.time(), 85)):
            series = SeriesCounts(requests, requests // 5, latencies=((10.0, requests // 2), (1000.0, requests // 10)))
            counters = Counters("1", at_s, {Series("g", "http"): series})
            history.observe({"coins": {"gateway": counters}}, at_s)

    seen = await page.get("/api/history")

    (rollout,) = seen["rollouts"]
    assert (rollout["model"], rollout["phase"]) == ("coins", "Progressing")
    if isinstance(page.harness, LocalHarness):
        (model,) = seen["models"]
        assert len(model["bins"]) == 96
        assert (model["total"]["requests"], model["total"]["failed"]) == (80, 16)
        assert 9 < model["total"]["p50"] < 13
        assert 800 < model["total"]["p95"] < 1300
    else:
        assert (seen["models"], seen["example"][:27]) == ([], "segserve ui --prometheus ht")


class Ranges(BaseHTTPRequestHandler):
    """A Prometheus that has ten requests of coins in the last quarter of an hour, one of them failed."""

    def do_GET(self) -> None:
        given = parse_qs(urlsplit(self.path).query)
        query, end_s = given["query"][0], float(given["end"][0])
        cluster = {"envoy_cluster_name": "coins/g/infer/http"}
        values = {
            "rq_completed": [({}, 10)],
            "rq_xx": [({}, 1)],
            "time_bucket": [({"le": "10"}, 5), ({"le": "+Inf"}, 10)],
        }
        found = next((each for name, each in values.items() if name in query), [])
        result = [{"metric": cluster | labels, "values": [[end_s, str(value)]]} for labels, value in found]
        content = json.dumps({"data": {"result": result}}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("harness", ["a cluster"], indirect=True)
async def test_the_last_day_of_a_cluster_is_its_prometheus(page: Page) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Ranges) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        seen = describe_history(replace(page.place, metrics=MetricsSource(prometheus=url, namespace="lab")))
        server.shutdown()
    gone = describe_history(replace(page.place, metrics=MetricsSource(prometheus=url)))

    (model,) = seen["models"]
    assert (model["model"], model["total"] | {"p50": 0}) == (
        "coins", {"requests": 10, "failed": 1, "p50": 0, "p95": 10.0}
    )  # fmt: skip
    assert model["bins"][-1]["requests"] == 10
    assert gone["models"] == []
    assert f"the Prometheus at {url} does not answer" in gone["note"]
    assert not PYTHON_WORDS.search(gone["note"])
