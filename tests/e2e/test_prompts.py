"""Clicks and boxes: promptable networks equal their own libraries, and serve sessions on the real Triton and Envoy."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, Route, expect

from bench.coins import variant, write
from bench.platform import ROOT, Running, platform
from fakes.cluster_models import pool
from fakes.page_browser import chromium, served_page, silent
from fakes.pipelines import pipeline_of
from fakes.waiting import until
from fakes.watching import Watched
from networks.prompts import DISC, SQUARE, scene, shows, written_by_init
from raw_inference import PROTOCOLS, Protocol, RawRequest, image, send
from segserve import AsyncClient, BadRequestError, Box, Click, Client, EmbeddingLostError
from segserve.errors import http_error
from segserve.results.masks import EncodedMask
from segserve_builder.kernels.rle_reader import decode_bitmap
from segserve_builder.spec.names import CALLER_HEADER
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.inference import decoder_io, network_io
from segserve_builder.steps.onnx_signature import read_signature
from segserve_builder.steps.prompts import PromptDecoder, PromptInputs
from segserve_ui.guard import PageAccess
from tools import EXPORTERS

LONGEST = {"mode": "shortSide", "size": 1024, "maxSize": 1024, "multipleOf": 1024, "padding": "zeros"}
WHOLE = {"mode": "stretch", "height": 1024, "width": 1024}
NORMALISE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
ORIGINAL = {"scale": 1.0, "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}


@pytest.mark.needs("exporters")
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("case", "family", "resize", "normalise"),
    [
        ("mobile-sam", "promptable", LONGEST, ORIGINAL),
        ("sam", "promptable", LONGEST, NORMALISE),
        ("sam2", "promptable-sam2", WHOLE, NORMALISE),
    ],
)
def test_masks_are_those_of_the_networks_own_library(
    case: str, family: str, resize: dict[str, Any], normalise: dict[str, Any], tmp_path: Path
) -> None:
    command = [EXPORTERS, "-W", "ignore", ROOT / "tests/oracles/prompt_networks.py", case, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    before = [{"resize": {**resize, "antialias": True, "rounding": "eachPass"}}, {"normalise": normalise}]
    pipeline = pipeline_of(family, [0], preprocess=before)
    encoder, decoder = tmp_path / "encoder.onnx", tmp_path / "decoder.onnx"
    served = InProcessModel(pipeline, encoder, decoder=decoder)
    tensors = decoder_io(pipeline, read_signature(decoder), network_io(pipeline, read_signature(encoder)))
    logits = PromptDecoder(decoder, tensors)
    answers = np.load(tmp_path / "answers.npz")

    wrong = {
        (number, place): found
        for number, prompts in enumerate(json.loads((tmp_path / "prompts.json").read_text()))
        for place, found in enumerate(
            differences(served, logits, tmp_path / f"{number:02}.png", number, prompts, answers)
        )
        if found
    }

    assert wrong == {}


def differences(
    served: InProcessModel,
    decoder: PromptDecoder,
    photograph: Path,
    number: int,
    prompts: list[dict[str, Any]],
    answers: Any,
) -> Iterator[str]:
    """Yield what is wrong with the answer to each prompt about a photograph; nothing for a right one."""
    file = photograph.read_bytes()
    shown = served.network_input(file)
    raw, former = served.raw(shown), None
    for place, prompt in enumerate(prompts):
        tensors = {"POINTS": np.array(prompt["points"], np.float32).reshape(-1, 2)}
        tensors["POINT_LABELS"] = np.array(prompt["labels"], np.int32)
        if "box" in prompt:
            tensors["PROMPT_BOXES"] = np.array([prompt["box"]], np.float32)
        if prompt.get("refined") and former is not None:
            tensors["MASK_INPUT"] = former
        given = PromptInputs.of(tensors)
        former = next(iter(decoder(raw, given, shown.transform).values()))[0, 0]
        answer = served.answer(file, RequestOptions(), raw, given)
        height, width = answer["SIZE"].tolist()
        mask = decode_bitmap(answer["MASKS"][0], height, width).astype(bool).ravel()
        above, near = (np.unpackbits(answers[f"{name} {number} {place}"])[: mask.size] for name in ("above", "near"))
        pixels = int(np.count_nonzero((mask != above.astype(bool)) & ~near.astype(bool)))
        distance = abs(float(answer["SCORES"][0]) - float(answers[f"score {number} {place}"]))
        yield f"{pixels} pixels, score {distance:.4f} off" if pixels or distance > 1e-3 else ""


HELD = {"strategy": "canary", "steps": [{"weight": 50, "pause": True}], "gates": [], "shadow": {"enabled": False}}


@pytest.fixture(scope="module")
def photo_of_both() -> bytes:
    return scene()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """What `segserve init` writes for two files, with a cache of 31 embeddings."""
    folder = tmp_path_factory.mktemp("prompts")
    sam = written_by_init(folder)
    sam["spec"]["decoder"]["embeddingsMebibytes"] = 1
    resources = write(folder / "sam/models.yaml", pool(gateway={"sessionAffinity": {}}), sam, variant())
    with platform(resources) as running:
        yield running


@pytest.mark.platform
@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_a_session_selects_objects_and_takes_clicks_back(served: Running, photo_of_both: bytes, transport: Any) -> None:
    with Client(served.url, transport=transport) as client, client.prompt(photo_of_both, model="sam") as shown:
        assert shown.result is not None
        assert shown.result.instances == ()
        one = shown.click(*DISC)
        both = shown.click(*SQUARE)
        again = shown.undo()
        shown.clear()
        boxed = shown.box(100, 30, 90, 80)

    assert [shows(each.instances[0].mask, DISC, SQUARE) for each in (one, both, again, boxed)] == [
        [True, False],
        [True, True],
        [True, False],
        [False, True],
    ]


@pytest.mark.platform
async def test_an_asynchronous_session_answers_alike(served: Running, photo_of_both: bytes) -> None:
    async with AsyncClient(served.url) as client, client.prompt(photo_of_both, model="sam") as shown:
        masks = (await shown.click(*DISC, multimask=True)).instances
        one = await shown.ask(Click(*SQUARE, foreground=False), Box(0, 0, 200, 120))

    assert len(masks) == 3
    assert shows(one.instances[0].mask, DISC, SQUARE) == [True, False]


@pytest.mark.platform
def test_an_image_whose_embedding_is_gone_is_sent_once_more(served: Running, photo_of_both: bytes) -> None:
    with Client(served.url) as client, client.prompt(photo_of_both, model="sam") as shown:
        for shade in range(40):
            file = io.BytesIO()
            Image.new("RGB", (64, 64), (shade, 0, 0)).save(file, "PNG")
            client.prompt(file.getvalue(), model="sam").click(5, 5)

        found = shown.click(*DISC)

    assert shows(found.instances[0].mask, DISC, SQUARE) == [True, False]


@pytest.mark.platform
def test_an_unknown_id_is_an_error_of_its_own(served: Running) -> None:
    request = RawRequest([image(b"sam-0000000000." + b"0" * 32, name="EMBEDDING")], model="sam")

    reply = send(served.url, "http", request)

    assert reply.status == 400
    assert isinstance(http_error(400, reply.message), EmbeddingLostError)


@pytest.mark.platform
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_id_is_of_the_caller_that_the_gateway_names(
    served: Running, photo_of_both: bytes, protocol: Protocol
) -> None:
    """Servers believe the header, which only gateways can send: straight to them stands for a gateway."""
    words = next(words for each in served.processes() if "tritonserver" in (words := each.cmdline())[0])
    (port,) = (word.partition("=")[2] for word in words if word.startswith(f"--{protocol}-port="))
    url = f"http://127.0.0.1:{port}"
    sent = RawRequest([image(photo_of_both)], model="sam")
    name = send(url, protocol, sent, {CALLER_HEADER: "key:team-a"}).arrays()["EMBEDDING_ID"][0]
    by_id = RawRequest([image(name, name="EMBEDDING")], model="sam")

    callers = [{CALLER_HEADER: "key:team-a"}, {CALLER_HEADER: "key:team-b"}, {CALLER_HEADER: ""}, {}]
    found = [send(url, protocol, by_id, headers) for headers in callers]

    assert found[0].message == ""
    assert [each.status for each in found[1:]] == [found[1].status] * 3
    assert ["send the image again" in each.message for each in found] == [False, True, True, True]


@pytest.mark.platform
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", [CALLER_HEADER, "X-Segserve-Caller"])
def test_a_caller_cannot_name_himself(served: Running, photo_of_both: bytes, name: str, protocol: Protocol) -> None:
    request = RawRequest([image(photo_of_both)], {name: "key:team-a"}, model="sam")

    found = [send(served.url, protocol, request, headers) for headers in ({}, {name.lower(): "key:team-a"})]
    coins = send(served.url, protocol, RawRequest([image(photo_of_both)], model="coins"), {name.lower(): "key:team-a"})

    assert ["gateways set the header" in each.message for each in found] == [True, True]
    assert coins.message == ""


@pytest.mark.platform
def test_curl_clicks_by_the_query(served: Running, photo_of_both: bytes) -> None:
    url = f"{served.url}/v1/models/sam:segment?points={DISC[0]},{DISC[1]};{SQUARE[0]},{SQUARE[1]}&point_labels=1;0"

    answer = httpx.post(url, content=photo_of_both, timeout=60).json()
    refused = httpx.post(url.replace("sam", "coins"), content=photo_of_both, timeout=60)

    (found,) = answer["objects"]
    assert shows(EncodedMask(found["mask"]["counts"].encode(), 120, 200).bitmap, DISC, SQUARE) == [True, False]
    assert (refused.status_code, "parameter 'point" in refused.text) == (400, True)


@pytest.mark.platform
def test_an_image_is_not_sent_to_a_model_that_takes_no_click_or_needs_one(served: Running, photo: bytes) -> None:
    with Client(served.url) as client:
        with pytest.raises(BadRequestError, match="takes no clicks and boxes"):
            client.prompt(photo, model="coins").click(5, 5)
        with pytest.raises(BadRequestError, match=r"use `Client\.prompt`"):
            client.segment(photo, model="sam")


@pytest.fixture(scope="module")
def access(served: Running) -> Iterator[PageAccess]:
    with served_page(served.state) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser, access: PageAccess, photo_of_both: bytes) -> Iterator[Page]:
    """The page with the scene open, before the first click."""
    file = FilePayload(name="both.png", mimeType="image/png", buffer=photo_of_both)
    # The warning is of the test, which reads the canvas.
    with silent(browser, access.url, complaints=("willReadFrequently", "Failed to load resource")) as found:
        found.get_by_role("combobox", name="Model").select_option("sam")
        found.locator("input[type=file]").set_input_files(file)
        found.get_by_role("img", name="sam found nothing").wait_for()
        yield found


def click(page: Page, x: float, y: float, **options: Any) -> None:
    """Click on a place of the scene, in its pixels."""
    area = page.locator("canvas.top").bounding_box()
    assert area is not None
    across, down = area["width"] / 200, area["height"] / 120
    page.locator("canvas.top").click(position={"x": x * across, "y": y * down}, **options)


def covered(page: Page, *places: tuple[int, int]) -> list[bool]:
    """Return whether the masks on the page cover places of the scene that no prompt is drawn at."""
    script = """(canvas, places) => places.map(([x, y]) => canvas.getContext("2d")
        .getImageData(Math.floor(x * canvas.width / 200), Math.floor(y * canvas.height / 120), 1, 1).data[3] > 0)"""
    found: list[bool] = page.locator("canvas.top").evaluate(script, [list(each) for each in places])
    return found


IN_BOTH = (35, 35), (170, 90)


def answered(page: Page, prompts: str) -> list[bool]:
    """Wait for the answer to so many prompts, and return where its masks are: on the disc, on the square."""
    expect(page.get_by_text(prompts, exact=True)).to_be_visible()
    expect(page.locator("canvas.top")).to_have_attribute("data-busy", "false")
    return covered(page, *IN_BOTH)


@pytest.mark.platform
@pytest.mark.needs("chromium")
def test_clicks_and_a_box_on_the_page_select_objects(page: Page, served: Running, photo_of_both: bytes) -> None:
    sent: list[int] = []
    page.on(
        "request", lambda each: sent.append(len(each.post_data_buffer or b"")) if "/api/prompts" in each.url else None
    )

    click(page, *DISC)
    seen = [answered(page, "1 prompt")]
    click(page, *SQUARE)
    seen.append(answered(page, "2 prompts"))
    click(page, 140, 70, button="right")
    seen.append(answered(page, "3 prompts"))
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Undo").click()
    seen.append(answered(page, "1 prompt"))
    page.get_by_role("button", name="Clear").click()
    seen.append(answered(page, "0 prompts"))
    area = page.locator("canvas.top").bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + area["width"] * 0.5, area["y"] + area["height"] * 0.25)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 0.95, area["y"] + area["height"] * 0.9, steps=5)
    page.mouse.up()
    seen.append(answered(page, "1 prompt"))

    assert seen == [[True, False], [True, True], [True, False], [True, False], [False, False], [False, True]]
    assert {*sent} == {0}  # the image was sent once, before
    page.get_by_role("tab", name="Command line").click()
    expect(page.get_by_role("tabpanel")).to_contain_text("--box 100,30,90,78")


@pytest.mark.platform
@pytest.mark.needs("chromium")
def test_a_failed_request_leaves_what_was_answered_and_a_click_waits_for_the_image(
    page: Page, photo_of_both: bytes
) -> None:
    click(page, *DISC)
    answered(page, "1 prompt")
    click(page, *SQUARE)
    answered(page, "2 prompts")
    page.route("**/api/prompts/*", lambda route: route.fulfill(status=503, json={"error": "busy", "kind": "x"}))
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("alert")).to_contain_text("busy")
    after_undo = answered(page, "2 prompts")
    page.get_by_role("checkbox", name="Several masks").click()
    expect(page.get_by_role("checkbox", name="Several masks")).not_to_be_checked()
    after_several = answered(page, "2 prompts")
    page.unroute("**/api/prompts/*")
    waiting: list[Route] = []
    page.route("**/api/prompts?*", lambda route: waiting.append(route))
    page.locator("input[type=file]").set_input_files(
        FilePayload(name="again.png", mimeType="image/png", buffer=photo_of_both)
    )
    until(lambda: page.wait_for_timeout(50) or waiting, "the image is sent")
    page.locator("canvas.top").click(position={"x": 20, "y": 20})
    waiting[0].continue_()
    none = answered(page, "0 prompts")

    assert (after_undo, after_several, none) == ([True, True], [True, True], [False, False])
    assert len(waiting) == 1


@pytest.mark.platform
@pytest.mark.needs("chromium")
def test_the_keyboard_clicks_and_takes_back(page: Page) -> None:
    page.locator("canvas.top").focus()
    for _ in range(13):
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    one = answered(page, "1 prompt")
    page.keyboard.press("Backspace")
    none = answered(page, "0 prompts")

    assert (one, none) == ([True, False], [False, False])
    assert Axe().run(page).response["violations"] == []


@pytest.mark.platform
@pytest.mark.timeout(600)
def test_a_session_stays_on_one_revision_through_a_canary_and_survives_its_abort(
    photo_of_both: bytes, tmp_path: Path
) -> None:
    sam = written_by_init(tmp_path)
    sam["spec"]["rollout"] = HELD
    with platform(write(tmp_path / "sam/models.yaml", pool(gateway={"sessionAffinity": {}}), sam)) as running:
        watched = Watched(running)
        with Client(running.url) as client, ExitStack() as stack:
            images = [stack.enter_context(client.prompt(photo_of_both, model="sam")) for _ in range(12)]
            before = [each.click(*DISC).revision for each in images]
            sam["spec"].setdefault("input", {})["maxPixels"] = 1_000_000
            running.segserve("apply", "-f", str(write(tmp_path / "sam/next.yaml", sam)))
            until(
                lambda: watched.manifest("sam")["status"].get("rollout", {}).get("phase") == "Progressing", "a canary"
            )
            during = [[each.click(x, 50).revision for x in (45, 55, 60)] for each in images]
            candidate = watched.role("sam", "candidate")
            assert candidate is not None
            ids = {name: send_prompt(running, photo_of_both, name) for name in ("a", "b", "c", "d", "e", "f", "g", "h")}
            foreign = [
                send(
                    running.url,
                    "http",
                    RawRequest([image(found, name="EMBEDDING")], model="sam"),
                    {"x-sequence-id": name},
                )
                for name in ids
                for found in ids.values()
                if found.rpartition(b".")[0] != ids[name].rpartition(b".")[0]
            ]
            watched.command("rollout", "abort", "sam")

            def of_new_sessions() -> set[str]:
                with ExitStack() as new:
                    prompts = [new.enter_context(client.prompt(photo_of_both, model="sam")) for _ in range(8)]
                    return {each.click(*DISC).revision for each in prompts}

            # The gateway follows the status within a second.
            until(lambda: of_new_sessions() == {before[0]}, "the candidate gets no new session")
            after = [each.undo() for each in images]

    assert len({*before}) == 1
    assert [len({*each}) for each in during] == [1] * len(images)
    assert {each[0] for each in during} == {before[0], candidate[0]}
    assert {(each.status, "of revision" in each.message) for each in foreign} == {(400, True)}
    assert {each.revision for each in after} == {before[0]}
    assert [shows(each.instances[0].mask, DISC, SQUARE) for each in after] == [[True, False]] * len(images)


def send_prompt(running: Running, photo: bytes, session: str) -> bytes:
    """Return the id of the embedding that a session gets."""
    reply = send(running.url, "http", RawRequest([image(photo)], model="sam"), {"x-sequence-id": session})
    return bytes(reply.arrays()["EMBEDDING_ID"][0])
