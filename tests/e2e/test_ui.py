"""The page of `segserve ui` in a real browser, with the coins' platform behind it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar, Literal
from zipfile import ZipFile

import cv2
import numpy as np
import pytest
import yaml
from anyio.from_thread import start_blocking_portal
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from bench.platform import MODELS, Running
from fakes import rollout_records as records
from fakes import sheets
from fakes.captured_samples import keep_samples
from fakes.comparator import running_comparator
from fakes.control import LocalHarness, answering, status
from fakes.docs import ROOT
from fakes.page_browser import chromium, opened, served_page, silent
from segserve import Client
from segserve_common.kserve import Tensor
from segserve_operator.adapters.traffic.envoy_config import EnvoyFiles
from segserve_operator.api.rollout_policy import Shadow
from segserve_platform.cli.options import PlatformOptions
from segserve_platform.cli.page import page as page_of
from segserve_ui.guard import PageAccess
from segserve_ui.server import open_browser

pytestmark = [pytest.mark.platform, pytest.mark.needs("chromium")]
PHOTO = MODELS.parent / "coins.png"
PICTURES = ROOT / "docs/images"
COINS = 24
MARKUP = "<img src=x onerror=alert(1)>"
READY = {
    "play": ".objects",
    "compare": ".big",
    "models": "tbody",
    "rollouts": ".rollouts > *",
    "history": "main .card",
    "samples": ".gallery > *",
}
"""What each page shows once it has asked."""
WIDTHS = {"phone": (360, 740), "tablet": (820, 1000), "wide": (1440, 900), "large": (1920, 1080)}


@pytest.fixture(scope="module")
def access(coins: Running) -> Iterator[PageAccess]:
    """The page, served beside the coins' platform."""
    with served_page(coins.state) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser, access: PageAccess) -> Iterator[Page]:
    with opened(browser, access) as found:
        yield found


def segment(page: Page, model: str, image: Path = PHOTO) -> None:
    """Give the page an image, and wait for what a model says of it."""
    page.get_by_role("combobox", name="Model").select_option(model)
    page.locator("input[type=file]").set_input_files(image)
    page.get_by_role("img", name=f"{model} found").wait_for()


def shown(page: Page) -> int:
    return int(page.locator("canvas.top").get_attribute("data-shown") or -1)


def test_an_image_is_segmented_and_the_slider_hides_objects_without_a_request(page: Page, coins: Running) -> None:
    segment(page, "coins-instances")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/api/segment" in request.url else None)
    with Client(coins.url) as client:
        scores = sorted(each.score for each in client.segment(PHOTO, model="coins-instances"))
    assert shown(page) == len(scores) == COINS
    middle = round((scores[9] + scores[10]) / 2, 2)

    page.get_by_role("slider", name="Score from").fill(str(middle))

    assert shown(page) == sum(score >= middle for score in scores)
    assert page.locator(".objects li").count() == shown(page)
    assert asked == []
    page.get_by_role("tab", name="curl").click()
    expect(page.get_by_role("tabpanel")).to_contain_text(f"score_threshold={middle:g}")
    with page.expect_download() as download:
        page.get_by_role("button", name="COCO").click()
    assert len(json.loads(download.value.path().read_text())["annotations"]) == shown(page)


def compare_labels(page: Page, picture: Path) -> None:
    """Compare the labels of the page with what the comment of its picture names.

    `SEGSERVE_WRITE_GOLDEN=1` takes the picture again: look at it before it is committed.
    """
    page.mouse.move(0, 0)
    named = re.findall(r'(?:button|link|heading|tab|checkbox|slider) "([^"\d]+)"', page.locator("body").aria_snapshot())
    labels = list(dict.fromkeys(named))
    if os.environ.get("SEGSERVE_WRITE_GOLDEN"):
        with Image.open(io.BytesIO(page.screenshot())) as found:
            found.convert("RGB").save(picture, quality=88, optimize=True, comment="\n".join(labels).encode())
    with Image.open(picture) as found:
        assert found.info["comment"].decode().splitlines() == labels


def test_the_picture_of_the_page_shows_it_as_it_is(page: Page) -> None:
    segment(page, "coins-instances")

    compare_labels(page, PICTURES / "ui-playground.jpg")


def test_several_images_are_segmented_at_once_and_a_refused_file_is_named_until_it_is_dismissed(
    browser: Browser, access: PageAccess, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("a.png", "b.gif", "c.bmp", "d.tif", "text.png")]
    with Image.open(PHOTO) as photo:
        for path in files[:4]:
            photo.convert("L").save(path)
    files[4].write_text("no image")
    with silent(browser, access.url, complaints=("Failed to load resource",)) as page:
        segment(page, "coins-instances")
        page.locator("input[type=file]").set_input_files(files[4])
        line = page.get_by_role("alert")
        expect(line).to_contain_text("text.png: the image cannot be read")
        expect(page.locator("canvas.top")).to_have_count(0)
        expect(page.get_by_role("heading", name="Drop images here")).to_be_visible()

        page.locator("input[type=file]").set_input_files(files)
        gallery = page.get_by_role("region", name="Gallery")
        gallery.get_by_role("button", name="Segment all").click()
        expect(gallery.get_by_role("status")).to_contain_text("4 of 5 images segmented, 1 failed, 96 objects")
        expect(gallery.locator("li", has_text="24 coin")).to_have_count(4)
        gallery.get_by_text("Table", exact=True).click()
        expect(gallery.get_by_role("row", name="text.png failed")).to_be_visible()
        assert Axe().run(page).response["violations"] == []
        saved = {}
        for name in ("COCO", "CSV", "Overlays (zip)"):
            with page.expect_download() as download:
                gallery.get_by_role("button", name=name).click()
            saved[name] = download.value.path().read_bytes()
        gallery.get_by_role("button", name="c.bmp").click()
        expect(page.locator(".caption")).to_contain_text("c.bmp")
        page.get_by_role("link", name="Models").click()
        page.get_by_role("link", name="Playground").click()
        expect(line).to_contain_text("text.png")
        page.get_by_role("button", name="Dismiss").click()
        expect(line).to_have_count(0)

    coco = json.loads(saved["COCO"])
    assert [each["file_name"] for each in coco["images"]] == [path.name for path in files[:4]]
    assert len(coco["annotations"]) == 4 * COINS
    assert len(list(csv.DictReader(io.StringIO(saved["CSV"].decode(), newline="")))) == 4 * COINS
    with ZipFile(io.BytesIO(saved["Overlays (zip)"])) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["001-a.jpg", "002-b.jpg", "003-c.jpg", "004-d.jpg"]


def test_more_images_than_the_page_takes_are_refused_with_the_command_for_them(page: Page) -> None:
    one = {"name": "a.png", "mimeType": "image/png", "buffer": PHOTO.read_bytes()}
    page.locator("input[type=file]").set_input_files([one] * 201)  # type: ignore[list-item]

    expect(page.get_by_role("alert")).to_contain_text("201 images: this page takes at most 200 at a time")
    expect(page.get_by_role("alert").locator("code")).to_have_text("segserve predict MODEL folder/")


def test_all_images_stop_at_once_and_go_on_later(page: Page, tmp_path: Path) -> None:
    files = [shutil.copy(PHOTO, tmp_path / f"{number:02}.png") for number in range(12)]
    page.get_by_role("combobox", name="Model").select_option("coins-instances")
    page.locator("input[type=file]").set_input_files(files)
    page.get_by_role("img", name="coins-instances found").wait_for()
    asked: list[str] = []
    page.route("**/api/segment?*batch*", lambda route: asked.append(route.request.url) if len(asked) >= 5 else (
        asked.append(route.request.url), route.continue_()))  # fmt: skip
    gallery = page.get_by_role("region", name="Gallery")
    gallery.get_by_role("button", name="Segment all").click()
    expect(gallery.get_by_role("status")).to_contain_text("5 of 12")
    gallery.get_by_role("button", name="Stop").click()
    expect(gallery.locator(".strip .tag")).to_have_count(0)
    assert len(asked) <= 5 + 4, "four are under way at a time"

    page.unroute("**/api/segment?*batch*")
    gallery.get_by_role("button", name="Segment the rest").click()

    expect(gallery.get_by_role("status")).to_contain_text("12 of 12")


def test_a_video_is_segmented_frame_by_frame(page: Page, tmp_path: Path) -> None:
    video = tmp_path / "scene.webm"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"VP80"), 25, (384, 303))
    for number in range(50):
        writer.write(np.full((303, 384, 3), 30 if number < 30 else 225, np.uint8))
    writer.release()

    def is_bright() -> bool:
        with Image.open(io.BytesIO(page.locator(".stage").screenshot())) as shown:
            return bool(np.asarray(shown.convert("L").crop((300, 100, 500, 300))).mean() > 128)

    page.get_by_role("combobox", name="Model").select_option("coins")
    page.locator("input[type=file]").set_input_files(video)
    expect(page.get_by_role("img", name="in scene-frame-1.png")).to_be_visible()
    slider = page.get_by_role("slider", name="Frame")
    expect(slider).to_have_attribute("aria-valuetext", "Frame 1 of 50, 0.00 s")
    assert not is_bright()

    slider.fill("30")
    expect(page.get_by_role("img", name="in scene-frame-31.png")).to_be_visible()
    assert is_bright()
    page.get_by_role("button", name="Previous frame").click()
    expect(page.get_by_role("img", name="in scene-frame-30.png")).to_be_visible()
    assert not is_bright()
    assert Axe().run(page).response["violations"] == []

    page.locator("input[type=file]").set_input_files(PHOTO)
    expect(slider).to_have_count(0)


def test_nothing_that_is_shown_is_of_another_image(browser: Browser, access: PageAccess, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.new("L", (384, 303), 225).save(other)
    with silent(browser, access.url, complaints=("Failed to load resource",)) as page:
        segment(page, "coins")
        page.route("**/api/segment?*", lambda _: None)  # it is never answered

        page.locator("input[type=file]").set_input_files(other)

        expect(page.get_by_text("Waiting for the answer")).to_be_visible()
        expect(page.get_by_role("img", name="no answer yet")).to_have_count(1)
        expect(page.get_by_role("button", name="COCO")).to_have_count(0)

        page.get_by_role("link", name="Compare").click()
        page.get_by_role("combobox", name="Second").select_option("coins-twostage")
        expect(page.locator(".big")).to_have_count(1)
        page.route("**/api/compare?*", lambda _: None)

        page.locator("input[type=file]").set_input_files(PHOTO)

        expect(page.get_by_text("Both models are at work.")).to_be_visible()
        expect(page.locator(".big")).to_have_count(0)

        refusal = "this image has no pixels"
        page.route("**/api/compare?*", lambda route: route.fulfill(status=400, json={"error": refusal}))
        page.locator("input[type=file]").set_input_files(other)
        expect(page.get_by_text(refusal)).to_be_visible()
        page.route("**/api/compare?*", lambda _: None)

        page.locator("input[type=file]").set_input_files(PHOTO)

        expect(page.get_by_text("Both models are at work.")).to_be_visible()
        expect(page.get_by_text(refusal)).to_have_count(0)


def test_a_comparison_under_way_goes_on_while_the_state_of_a_model_changes(page: Page) -> None:
    seen: list[str] = []
    held: list[Route] = []

    def changed(route: Route) -> None:
        seen.append(route.request.url)
        response = route.fetch()
        route.fulfill(response=response, json={**response.json(), "change": len(seen)})

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/api/models", changed)
    page.route("**/api/compare?*", hold)
    page.get_by_role("link", name="Compare").click()
    page.locator("input[type=file]").set_input_files(PHOTO)
    expect(page.get_by_text("Both models are at work.")).to_be_visible()
    while len(seen) < 4:
        page.wait_for_timeout(200)
    assert len(held) == 1

    held[0].continue_()

    expect(page.locator(".big")).to_have_count(1)
    page.unroute_all(behavior="wait")


def test_a_picture_from_the_camera_is_segmented(page: Page) -> None:
    page.get_by_role("button", name="Take a picture").click()

    expect(page.get_by_role("img", name="in camera.png")).to_be_visible()


def test_the_mask_under_the_pointer_is_the_models(page: Page, coins: Running) -> None:
    segment(page, "coins-instances")
    with Client(coins.url) as client:
        result = client.segment(PHOTO, model="coins-instances")
    canvas = page.locator("canvas.top")
    area = canvas.bounding_box()
    assert area is not None
    scale = area["width"] / result.size[1]

    for index in (0, 7, 23):
        x1, y1, x2, y2 = result[index].box  # type: ignore[index]
        canvas.click(position={"x": scale * (x1 + x2) / 2, "y": scale * (y1 + y2) / 2})
        pinned = page.get_by_role("button", name=f"coin {index + 1} ", exact=False).and_(
            page.locator("[aria-pressed=true]")
        )
        expect(pinned).to_have_count(1)
        expect(page.locator(".pinned")).to_contain_text(f"{result[index].score:.4f}")  # type: ignore[index]


def test_markup_in_the_name_of_a_class_is_text(page: Page) -> None:
    def renamed(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, body=response.text().replace('"coin"', json.dumps(MARKUP)))

    page.route("**/api/segment*", renamed)
    segment(page, "coins-instances")

    for place in (".legend", ".objects", ".caption"):
        expect(page.locator(place)).to_contain_text(MARKUP)
    page.locator(".objects button").first.click()
    expect(page.locator(".pinned")).to_contain_text(MARKUP)
    expect(page.locator("img[src=x]")).to_have_count(0)


def test_the_page_goes_on_by_itself_after_a_lost_connection(browser: Browser, access: PageAccess) -> None:
    with silent(browser, access.url, complaints=("Failed to load resource",)) as page:
        page.get_by_role("heading", name="Playground").wait_for()
        for name in ("play", "models", "rollouts"):
            page.route("**/api/**", lambda route: route.abort())
            page.goto(f"{access.origins[0]}/#/{name}")
            page.reload()
            expect(page.get_by_role("alert")).to_contain_text("is segserve ui still running?")

            page.unroute("**/api/**")

            expect(page.locator("main")).to_contain_text("coins")
            expect(page.get_by_role("alert")).to_have_count(0)


def test_the_models_are_listed_as_ready_and_their_rates_come_by_themselves(page: Page, coins: Running) -> None:
    page.get_by_role("link", name="Models").click()

    rows = page.locator("tbody tr")
    expect(rows).to_have_count(3)
    for row in rows.all():
        expect(row.locator(".tag")).to_have_text("Ready")
    expect(page.locator(".servers")).to_contain_text("Memory")
    page.get_by_role("button", name="Details of coins-instances").click()
    expect(page.locator(".conditions")).to_contain_text("was answered within its tolerance")


def test_two_models_are_compared(page: Page, coins: Running) -> None:
    segment(page, "coins-instances")
    page.get_by_role("link", name="Compare").click()
    page.get_by_role("combobox", name="Second").select_option("coins-twostage")
    expect(page.locator(".caption")).to_contain_text("coins-twostage: 24 coin")
    printed = json.loads(
        coins.segserve("diff", "coins-instances", "coins-twostage", str(PHOTO), "--json", "--url", coins.url)
    )

    expect(page.locator(".big")).to_have_text(f"{printed['agreement']:.3f}")
    page.get_by_role("radio", name="Difference").check()
    expect(page.get_by_text("of the pixels differ")).to_be_visible()


def test_after_init_and_up_a_new_user_needs_the_page_alone(
    browser: Browser, coins: Running, serve: Callable[..., Running], tmp_path: Path
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "found"
    photos.mkdir()
    shutil.copy(PHOTO, photos / "a.png")
    with Image.open(PHOTO) as photo:
        photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photos / "b.png")
    coins.segserve("init", str(photos), str(MODELS.parent / "coins-yolo.onnx"), "--name", "found", "-o", str(out))
    other = yaml.safe_load((out / "model.yaml").read_text())
    other["metadata"]["name"] = "other"
    (out / "other.yaml").write_text(yaml.safe_dump(other))
    mine = serve(out / "model.yaml", out / "other.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSERVE_STATE", str(mine.state))
        with page_of(PlatformOptions(local=True)) as access, opened(browser, access) as page:
            page.get_by_role("button", name="Golden image").first.click()
            page.get_by_role("img", name=f"found found {COINS}").wait_for()
            page.get_by_role("button", name="Next").click()
            expect(page.get_by_role("group", name="Images")).to_contain_text("2 of 2")
            segment(page, "found", photos / "b.png")

            page.get_by_role("link", name="Compare").click()
            page.get_by_role("combobox", name="Second").select_option("other")
            expect(page.locator(".big")).to_have_text("1.000")

            page.get_by_role("link", name="Models").click()
            expect(page.locator("tbody .tag.good", has_text="Ready")).to_have_count(2)


@pytest.mark.parametrize(("scheme", "checked"), [("light", "phone"), ("dark", "wide")])
def test_every_page_is_accessible_and_fits_at_every_width(
    page: Page, access: PageAccess, scheme: Literal["light", "dark"], checked: str
) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    segment(page, "coins-instances")
    found = []
    for name, ready in READY.items():
        page.goto(f"{access.origins[0]}/#/{name}")
        page.locator(ready).first.wait_for()
        for title, (width, height) in WIDTHS.items():
            page.set_viewport_size({"width": width, "height": height})
            wide = page.evaluate("document.documentElement.scrollWidth")
            found += [(name, title, "scrolls sideways", wide)] if wide > width else []
        width, height = WIDTHS[checked]
        page.set_viewport_size({"width": width, "height": height})
        violations = Axe().run(page).response["violations"]
        found += [(name, checked, each["id"], each["nodes"][0]["html"]) for each in violations]

    assert found == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_gallery_shows_the_samples_that_a_model_keeps_by_class_and_reason(
    browser: Browser, tmp_path: Path, scheme: Literal["light", "dark"]
) -> None:
    """A platform that is not up: its samples are where they were."""
    harness = LocalHarness(tmp_path / "state")
    model = next(yaml.safe_load_all(MODELS.read_text()))
    keep_samples(harness, model, tmp_path / "samples")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSERVE_STATE", str(tmp_path / "state"))
        with page_of(PlatformOptions(local=True)) as access, opened(browser, access) as page:
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            page.get_by_role("link", name="Samples").click()
            cards = page.locator(".sample")
            expect(page.get_by_role("status").first).to_have_text("3 of 3 samples")
            expect(cards).to_have_count(3)
            assert Axe().run(page).response["violations"] == []

            page.get_by_role("combobox", name="Kept because").select_option("share")
            expect(cards).to_have_count(2)
            page.get_by_role("combobox", name="With").select_option("ring")
            expect(cards).to_have_count(1)
            expect(cards).to_contain_text("1 coin, 2 ring")
            expect(cards.locator("img")).to_have_js_property("naturalWidth", 40)
            page.reload()
            expect(cards).to_have_count(1)
            page.get_by_role("button", name="Open the sample").click()
            expect(page.get_by_role("heading", name="Playground")).to_be_visible()
            expect(page.locator(".stage canvas.top")).to_be_visible()


class OtherPort(BaseHTTPRequestHandler):
    """A server of another user of the machine, whose page asks the page for what it knows."""

    headers_of: ClassVar[list[str]] = []
    page = ""

    def do_GET(self) -> None:
        self.headers_of.append(str(self.headers))
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(f'<title>other</title><img src="{self.page}/api/models"><h1>other</h1>'.encode())

    def log_message(self, *_: object) -> None:
        pass


def test_the_browser_is_led_to_the_page_which_outlives_a_reload_and_no_other_port_gets_its_token(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness, started = LocalHarness(tmp_path / "state"), list[str]()
    with Client(platform=harness.place()) as client:
        client.models.apply(next(yaml.safe_load_all(MODELS.read_text())))
    for name, value in {"SEGSERVE_STATE": tmp_path / "state", "DISPLAY": ":0", "HOME": tmp_path}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("webbrowser.open", lambda url: started.append(url) or True)
    other = ThreadingHTTPServer(("127.0.0.1", 0), OtherPort)
    Thread(target=other.serve_forever, daemon=True).start()
    with page_of(PlatformOptions(local=True)) as access, other:
        OtherPort.page = access.origins[0]
        assert open_browser(access)
        with silent(browser, started[0], complaints=("Failed to load resource", "ERR_BLOCKED")) as page:
            for _ in range(2):
                page.get_by_role("link", name="Models").click()
                expect(page.get_by_role("button", name="Details of coins")).to_be_visible()
                assert "token" not in page.url
                page.reload()

            page.evaluate("url => { location.href = url; }", f"http://127.0.0.1:{other.server_port}/")
            page.get_by_role("heading", name="other").wait_for()
            kept = page.evaluate("[document.cookie, document.referrer, sessionStorage.length, localStorage.length]")
            page.go_back()
            expect(page.get_by_role("button", name="Details of coins")).to_be_visible()

            page.goto(access.origins[0].replace("127.0.0.1", "localhost"))  # another origin, without the token
            expect(page.get_by_role("alert").first).to_contain_text("open the address that segserve ui printed")
        other.shutdown()

    assert kept == ["", "", 0, 0]
    assert OtherPort.headers_of
    assert [each for each in OtherPort.headers_of if access.token in each or "Cookie" in each] == []


@contextmanager
def rollout_page(
    browser: Browser,
    folder: Path,
    scheme: Literal["light", "dark"],
    size: str,
    started_s: float = records.STARTED_S,
) -> Iterator[tuple[Page, LocalHarness]]:
    """Open the page at a rollout that has compared pairs in Shadow, of a platform that is not up."""
    harness = LocalHarness(folder / "state")
    with Client(platform=harness.place()) as client:
        client.models.apply(next(yaml.safe_load_all(MODELS.read_text())))
    record = records.record(started_s, policy=records.POLICY.model_copy(update={"shadow": Shadow()}))
    harness.tell("coins", status(at=records.standing(record)))
    harness.keep(record)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSERVE_STATE", str(folder / "state"))
        with page_of(PlatformOptions(local=True)) as access, opened(browser, access) as page:
            width, height = WIDTHS[size]
            page.set_viewport_size({"width": width, "height": height})
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            page.get_by_role("link", name="Rollouts").click()
            page.get_by_role("button", name="Skip latency").wait_for()
            yield page, harness


def test_the_picture_of_a_rollout_shows_it_as_it_is(browser: Browser, tmp_path: Path) -> None:
    with rollout_page(browser, tmp_path, "light", "wide", started_s=time.time() - 275) as (page, _):
        compare_labels(page, PICTURES / "ui-rollout.jpg")


@pytest.mark.parametrize(("scheme", "size"), [("light", "phone"), ("dark", "wide")])
def test_a_platform_that_is_gone_is_named_on_every_page_until_it_is_back(
    browser: Browser, tmp_path: Path, scheme: Literal["light", "dark"], size: str
) -> None:
    with rollout_page(browser, tmp_path, scheme, size) as (page, harness):
        record = harness.state.platform.read_text()
        harness.state.platform.unlink()
        for name in READY:
            page.get_by_role("link", name=name.title().replace("Play", "Playground")).click()
            expect(page.get_by_role("alert").first).to_contain_text(
                "The platform is not running. Start it with: segserve up"
            )
        assert Axe().run(page).response["violations"] == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

        harness.state.platform.write_text(record)

        expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize(("scheme", "size"), [("light", "phone"), ("dark", "wide")])
def test_a_gate_of_a_rollout_is_skipped_after_a_question(
    browser: Browser, tmp_path: Path, scheme: Literal["light", "dark"], size: str
) -> None:
    with rollout_page(browser, tmp_path, scheme, size) as (page, harness):
        assert Axe().run(page).response["violations"] == []
        questions: list[str] = []
        page.once("dialog", lambda dialog: (questions.append(dialog.message), dialog.dismiss()))
        page.get_by_role("button", name="Skip latency").click()
        assert questions[0].startswith("Skip latency of coins?")
        assert harness.annotations("coins") == {}
        at = replace(records.standing(), skipped=("latency",))
        with answering(harness, "coins", lambda text: status(at=at, handled=(text,))):
            page.once("dialog", lambda dialog: dialog.accept())
            page.get_by_role("button", name="Skip latency").click()
            page.get_by_text("skipped").first.wait_for()

    assert list(harness.annotations("coins")) == ["segserve.dev/skip-gate"]


@pytest.mark.parametrize(("scheme", "size"), [("light", "phone"), ("dark", "wide")])
def test_the_images_that_differ_most_in_shadow_are_shown(
    browser: Browser, tmp_path: Path, scheme: Literal["light", "dark"], size: str
) -> None:
    image = Tensor.of_items("IMAGE", [sheets.photo()])
    pair = sheets.pair(image, sheets.labels("coins-1", (40, 60, 25)), sheets.labels("coins-2", (110, 60, 25)))
    content = sheets.sheet(pair, pair.model_copy(update={"candidate": ()})).model_dump_json().encode()
    with rollout_page(browser, tmp_path, scheme, size) as (page, harness), start_blocking_portal() as portal:
        folder = EnvoyFiles(harness.state.gateway).comparator
        with portal.wrap_async_context_manager(running_comparator(folder, pairs=content)):
            page.get_by_text("Images on which they differ most").click()
            expect(page.locator("figure").first).to_contain_text(f"Agreement {pair.agreement:.3f}")
        page.wait_for_function("document.querySelector('figure img').naturalWidth > 4 * 480")
        expect(page.locator("figure").last).to_contain_text("not drawn: ")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert Axe().run(page).response["violations"] == []

        harness.tell("coins", status(at=replace(records.standing(), weight=30)))

        expect(page.locator(".rollout .headline")).to_contain_text("30 %")
        expect(page.locator("figure img")).to_be_visible()
