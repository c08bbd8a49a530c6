"""An image as the body of a request, on the running system: the client's answer as JSON, and the model's own errors."""

from __future__ import annotations

import base64
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from bench.platform import ROOT, Running
from fakes.callers import COIN_PIXELS
from fakes.docs import blocks
from fakes.waiting import HANG_S
from segserve import Client
from segserve.results.objects import InstanceResult
from segserve.results.result import SemanticResult

pytestmark = [pytest.mark.platform, pytest.mark.core]


def ask(running: Running, image: bytes, model: str, **options: Any) -> httpx.Response:
    url = f"{running.url}/v1/models/{model}:segment"
    return httpx.post(url, content=image, params=options, timeout=HANG_S)


def test_instances_are_those_that_the_client_gets(coins: Running, photo: bytes) -> None:
    with Client(coins.url) as client:
        expected = client.segment(photo, model="coins-instances", expect=InstanceResult)

    document = ask(coins, photo, "coins-instances").json()

    assert (document["model"], document["revision"]) == ("coins-instances", expected.revision)
    assert (document["height"], document["width"]) == expected.size
    objects = document["objects"]
    assert np.array_equal(np.array([each["box"] for each in objects], np.float32), expected.boxes)
    assert np.array_equal(np.array([each["score"] for each in objects], np.float32), expected.scores)
    assert [each["class_id"] for each in objects] == expected.class_ids.tolist()
    assert [each["class"] for each in objects] == [each.class_name for each in expected]
    assert [each["mask"]["counts"].encode() for each in objects] == [each.rle["counts"] for each in expected]
    assert all(each["mask"]["size"] == list(expected.size) for each in objects)
    few = ask(coins, photo, "coins-instances", max_detections=3, encoding="polygons").json()["objects"]
    assert [each["box"] for each in few] == [each["box"] for each in objects[:3]]
    assert all(isinstance(each["mask"][0][0], int | float) for each in few)


def test_a_label_map_is_the_one_that_the_client_gets(coins: Running, photo: bytes) -> None:
    with Client(coins.url) as client:
        expected = client.segment(photo, model="coins", expect=SemanticResult)

    document = ask(coins, photo, "coins").json()

    labels = np.array(Image.open(io.BytesIO(base64.b64decode(document["labels"]))))
    assert np.array_equal(labels, expected.labels)
    assert [each["area"] for each in document["classes"]] == list(expected.areas.values())
    assert {each["class"]: each["area"] for each in document["classes"]} == expected.areas
    masks = [each["mask"] for each in ask(coins, photo, "coins", encoding="rle").json()["classes"]]
    assert [each["size"] for each in masks] == [list(expected.size)] * 2


@pytest.mark.parametrize("file_format", ["png", "webp"])
@pytest.mark.parametrize("model", ["coins", "coins-instances"])
def test_an_overlay_is_the_one_that_the_client_draws(
    coins: Running, photo: bytes, model: str, file_format: str
) -> None:
    with Client(coins.url) as client:
        expected = np.array(client.segment(photo, model=model).overlay(photo), float)

    url = f"{coins.url}/v1/models/{model}:segment"
    answer = httpx.post(url, content=photo, headers={"accept": f"image/{file_format}"}, timeout=HANG_S)

    assert answer.headers["content-type"] == f"image/{file_format}"
    drawn = np.array(Image.open(io.BytesIO(answer.content)), float)
    assert np.abs(drawn - expected).mean() <= (0 if file_format == "png" else 6)


def test_pixels_have_no_overlay_and_the_error_says_what_they_have(coins: Running) -> None:
    pixels = {"name": "PIXELS", "datatype": "UINT8", "shape": [64, 64, 1], "data": [0] * 4096}
    body = {"inputs": [pixels], "parameters": {"overlay": "png"}}

    refused = httpx.post(f"{coins.url}/v2/models/coins/infer", json=body, timeout=HANG_S)

    assert refused.status_code == 400
    assert "an overlay is drawn on an image's file: send IMAGE, or leave out 'overlay'" in refused.json()["error"]


def test_an_image_in_json_is_answered_as_the_image_itself(coins: Running, photo: bytes) -> None:
    url, text = f"{coins.url}/v1/models/coins-instances:segment", base64.b64encode(photo).decode()
    headers = {"content-type": "application/json; charset=utf-8"}
    expected = ask(coins, photo, "coins-instances", encoding="polygons").json()

    for image in (text, f"data:image/jpeg;base64,{text}"):
        answer = httpx.post(
            url, json={"image": image}, params={"encoding": "polygons"}, headers=headers, timeout=HANG_S
        )
        assert answer.json() == expected

    refused = httpx.post(url, json={"image": [text]}, timeout=HANG_S)
    assert (refused.status_code, refused.headers["content-type"]) == (400, "application/problem+json")
    assert refused.json()["detail"].startswith("the image in the JSON is a list, and must be one string")


def test_base64_is_named_at_every_door(coins: Running, photo: bytes) -> None:
    """Whatever a client of another server sends, the error names base64, and none of them ends the server."""
    text = base64.b64encode(photo).decode()
    segment, infer = (f"{coins.url}/{path}" for path in ("v1/models/coins:segment", "v2/models/coins/infer"))
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [1]}
    part = (
        f"--a\r\nContent-Disposition: form-data; name=image\r\nContent-Transfer-Encoding: base64\r\n\r\n{text}\r\n--a--"
    )
    form = {"content-type": "multipart/form-data; boundary=a"}
    sent: dict[str, tuple[str, dict[str, Any]]] = {
        "KServe v2": (infer, {"json": {"inputs": [{**tensor, "data": [text]}]}}),
        "KServe v2 with an object": (infer, {"json": {"inputs": [{**tensor, "data": [{"b64": text}]}]}}),
        "TensorFlow Serving": (infer, {"json": {"instances": [{"b64": text}]}}),
        "text for infer": (infer, {"content": text}),
        "text": (segment, {"content": text}),
        "a part of a form": (segment, {"content": part, "headers": form}),
        "a field of a form": (segment, {"data": {"image": text}}),
        "curl -d": (segment, {"content": text, "headers": {"content-type": "application/x-www-form-urlencoded"}}),
        "b64": (segment, {"json": {"b64": text}}),
        "a data: URL": (segment, {"content": f"data:image/jpeg;base64,{text}"}),
    }
    for name, (url, request) in sent.items():
        answer = httpx.post(url, timeout=HANG_S, **request)
        assert answer.status_code == 400, (name, answer.text)
        detail = answer.json().get("detail") or answer.json()["error"]
        assert "base64" in detail, (name, detail)
        assert "curl" not in detail, (name, detail)
    assert ask(coins, photo, "coins").status_code == 200


@pytest.mark.needs("chromium")
def test_the_page_sends_an_image_and_shows_the_answer(coins: Running, photo: bytes) -> None:
    from fakes.page_browser import chromium, silent

    with chromium() as browser, silent(browser, f"{coins.url}/docs") as page:
        page.get_by_label("Model").fill("coins-instances")
        page.get_by_label("Image").set_input_files([{"name": "a.jpg", "mimeType": "image/jpeg", "buffer": photo}])
        page.get_by_label("max_detections").fill("2")
        page.get_by_label("encoding").select_option("polygons")
        page.get_by_role("button", name="Send").click()
        page.locator("pre").wait_for()
        shown, paths = json.loads(page.locator("pre").inner_text()), page.locator("#paths").inner_text()

    expected = ask(coins, photo, "coins-instances", max_detections=2, encoding="polygons").json()
    assert shown == expected
    assert "POST /v1/models/{model}:segment: Segment an image" in paths


@pytest.mark.needs("chromium")
def test_the_call_on_the_first_page_has_the_pages_own_address(coins: Running) -> None:
    from fakes.page_browser import chromium, silent

    with chromium() as browser, silent(browser, f"{coins.url}/?a=b#c") as page:
        call = page.locator("pre").first.inner_text()

    assert call == f"curl --data-binary @photo.jpg {coins.url}/v1/models/coins:segment"


@pytest.mark.needs("curl")
def test_the_page_about_curl_does_what_it_says(coins: Running, photo: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(photo)
    shown = [block.text for block in blocks(ROOT / "docs/how-to/curl.md", "sh")]

    printed = [
        subprocess.run(
            ["sh", "-e", "-c", text.replace("http://127.0.0.1:8080", coins.url)],
            cwd=tmp_path,
            capture_output=True,
            check=True,
            timeout=HANG_S,
        ).stdout
        for text in shown
    ]

    first, form, masks, saved = printed
    with Client(coins.url) as client, Image.open(tmp_path / "overlay.png") as overlay:
        drawn = client.segment(photo, model="coins", expect=SemanticResult).overlay(photo)
        assert np.array_equal(np.array(overlay), np.array(drawn))
    assert json.loads(first)["objects"][: len(json.loads(form)["objects"])] == json.loads(form)["objects"]
    assert json.loads(masks)["classes"][1]["area"] in COIN_PIXELS
    assert saved == b""
    with Image.open(tmp_path / "labels.png") as labels:
        assert np.count_nonzero(np.array(labels)) == json.loads(masks)["classes"][1]["area"]
