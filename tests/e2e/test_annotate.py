"""`segserve annotate` on the real Triton and Envoy, with the real Label Studio, and as CVAT calls it."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bench.coins import variant, write
from bench.platform import ROOT, Running, platform
from bench.ports import free_port
from fakes.artifact_server import artifact_server
from fakes.cluster_models import pool
from fakes.waiting import HANG_S
from networks.prompts import DISC, SQUARE, scene, shows, written_by_init
from segserve import Client, SemanticResult
from segserve.exports.label_studio import read_brush
from tools import ANNOTATORS

CONFIG: Final = """<View><Image name="photo" value="$image"/>
<BrushLabels name="masks" toName="photo"><Label value="coin"/><Label value="thing"/></BrushLabels>
<KeyPointLabels name="clicks" toName="photo" smart="true"><Label value="thing"/></KeyPointLabels>
<RectangleLabels name="boxes" toName="photo" smart="true"><Label value="thing"/></RectangleLabels></View>"""
PASSWORD, TOKEN = "for-this-test-1", "0123456789abcdef0123456789abcdef01234567"
START_S: Final = 300.0

pytestmark = [pytest.mark.platform, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A semantic model, `coins`, and a promptable one, `sam`."""
    folder = tmp_path_factory.mktemp("annotate")
    sam = written_by_init(folder)
    with platform(write(folder / "sam/models.yaml", pool(gateway={"sessionAffinity": {}}), sam, variant())) as running:
        yield running


@contextmanager
def annotating(served: Running, label_studio: str, token: str = "") -> Iterator[str]:
    """Run the command for the time of the block, and yield its URL."""
    port = free_port()
    command = [sys.executable, "-m", "segserve_platform.cli", "annotate", "coins", "sam", "--port", str(port)]
    own = {"SEGSERVE_STATE": str(served.state), "LABEL_STUDIO_API_KEY": token}
    with subprocess.Popen(
        [*command, "--label-studio", label_studio], env=os.environ | own, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == f"coins: http://127.0.0.1:{port}/coins\n"
            yield f"http://127.0.0.1:{port}"
        finally:
            child.terminate()


@pytest.fixture
def service(served: Running, photo: bytes, tmp_path: Path) -> Iterator[str]:
    """The service beside a web server that has the images."""
    (tmp_path / "both.png").write_bytes(scene())
    (tmp_path / "coins.png").write_bytes(photo)
    exif, file = Image.Exif(), tmp_path / "turned.jpg"
    exif[0x0112] = 6
    Image.open(io.BytesIO(scene())).transpose(Image.Transpose.ROTATE_90).save(file, exif=exif, quality=98)
    with artifact_server("127.0.0.1", tmp_path) as files, annotating(served, files.url) as url:
        yield url


def region(kind: str, x: float, y: float, **more: Any) -> dict[str, Any]:
    """Return a click, or a box of `width` and `height`, at pixels of the scene."""
    sides = {side: 100 * more.pop(side) / size for side, size in (("width", 200), ("height", 120)) if side in more}
    value = {"x": x / 2, "y": y / 1.2, kind: ["thing"]} | sides
    size = {"original_width": 200, "original_height": 120, "image_rotation": 0}
    return {"id": "r", "type": kind, "from_name": "clicks", "to_name": "photo", "value": value} | size | more


click = partial(region, "keypointlabels", is_positive=True)


def predict(service: str, model: str, image: str, *clicks: dict[str, Any]) -> httpx.Response:
    context = {"result": clicks} if clicks else None
    body = {"tasks": [{"id": 1, "data": {"image": image}}], "label_config": CONFIG, "params": {"context": context}}
    return httpx.post(f"{service}/{model}/predict", json=body, timeout=HANG_S)


def test_the_service_ends_while_a_host_of_images_sends_without_end(served: Running) -> None:
    asked = threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            asked.set()
            with suppress(OSError):
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.2)

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as host:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        with annotating(served, f"http://127.0.0.1:{host.server_port}") as url:
            pool = ThreadPoolExecutor(1)
            pool.submit(predict, url, "coins", "/a.png")
            assert asked.wait(HANG_S)
            pool.shutdown(wait=False)
        # `annotating` returns once the process has ended.
        host.shutdown()


def brush(found: dict[str, Any]) -> NDArray[np.bool_]:
    return read_brush(found["value"]["rle"], found["original_height"], found["original_width"])


def of_coins(served: Running, photo: bytes) -> NDArray[np.bool_]:
    with Client(served.url) as client:
        return client.segment(photo, model="coins", expect=SemanticResult).mask("coin")


def test_pre_labels_are_what_the_model_finds(served: Running, service: str, photo: bytes) -> None:
    ((prediction,),) = predict(service, "coins", "/coins.png").json()["results"]

    (found,) = prediction["result"]
    assert prediction["model_version"].startswith("coins-")
    np.testing.assert_array_equal(brush(found), of_coins(served, photo))


@pytest.mark.parametrize("image", ["/both.png", "/turned.jpg"])
def test_clicks_and_boxes_select_objects(service: str, image: str) -> None:
    one = predict(service, "sam", image, click(*DISC))
    two = predict(service, "sam", image, click(*DISC), click(*SQUARE))
    less = predict(service, "sam", image, click(*DISC), click(*SQUARE, is_positive=False))
    boxed = predict(service, "sam", image, region("rectanglelabels", 100, 30, width=90, height=80))

    masks = [brush(each.json()["results"][0]["result"][0]) for each in (one, two, less, boxed)]
    assert [shows(mask, DISC, SQUARE) for mask in masks] == [[True, False], [True, True], [True, False], [False, True]]


def test_a_click_beside_the_image_or_on_another_model_is_refused(service: str) -> None:
    outside = predict(service, "sam", "/both.png", click(300, 50))
    unprompted = predict(service, "coins", "/both.png", click(*DISC))

    assert [outside.status_code, unprompted.status_code] == [400, 400]
    assert "takes no clicks and boxes" in unprompted.json()["error"]


def invoke(service: str, model: str, image: bytes, **more: Any) -> Any:
    body = {"image": base64.b64encode(image).decode(), **more}
    headers = {"x-nuclio-function-name": model}
    return httpx.post(f"{service}/api/function_invocations", json=body, headers=headers, timeout=HANG_S).json()


def test_cvat_clicks(service: str) -> None:
    answer = invoke(service, "sam", scene(), pos_points=[DISC], neg_points=[SQUARE], obj_bbox=None)

    assert shows(np.array(answer["mask"]), DISC, SQUARE) == [True, False]
    assert np.array(answer["points"]).mean(0) == pytest.approx(DISC, abs=5)


@pytest.mark.needs("annotators")
def test_shapes_are_of_cvats_schema(served: Running, service: str, photo: bytes, tmp_path: Path) -> None:
    function = httpx.get(f"{service}/api/functions/coins").json()
    size = Image.open(io.BytesIO(photo)).size[::-1]
    contents = {"function": function, "shapes": invoke(service, "coins", photo), "size": size}
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    script = ROOT / "tests/oracles/cvat_shapes.py"
    done = subprocess.run([ANNOTATORS / "python", script, tmp_path], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr[-4000:]
    read = np.load(tmp_path / "shapes.npz")
    assert read["labels"].tolist() == ["coin"]
    np.testing.assert_array_equal(read["masks"][0], of_coins(served, photo))


@dataclass(frozen=True, slots=True)
class LabelStudio:
    """A running Label Studio, its API as its only user calls it, and that user's personal access token."""

    url: str
    api: httpx.Client
    personal_token: str

    def connected(self, service: str, model: str, name: str, image: bytes) -> tuple[int, int]:
        """Create a project with one task and the model; return the ids of the task and of the ML backend."""
        project = self.post("/api/projects", json={"title": model, "label_config": CONFIG})["id"]
        self.post(f"/api/projects/{project}/import", files={"file": (name, image, "image/png")})
        given = {"project": project, "url": f"{service}/{model}", "title": model, "is_interactive": True}
        backend = self.post("/api/ml", json=given)
        assert backend["readable_state"] == "Connected", backend
        (task,) = self.get("/api/tasks", project=project)["tasks"]
        return task["id"], backend["id"]

    def get(self, path: str, **query: Any) -> Any:
        return self.api.get(path, params=query).raise_for_status().json()

    def post(self, path: str, **given: Any) -> Any:
        return self.api.post(path, **given).raise_for_status().json()

    def mask(self, project: int) -> NDArray[Any]:
        """Return the mask of a project's only annotation, as Label Studio's own exporter draws it."""
        query = {"exportType": "BRUSH_TO_PNG"}
        exported = self.api.get(f"/api/projects/{project}/export", params=query).raise_for_status()
        return np.asarray(Image.open(io.BytesIO(exported.content))) > 0


@pytest.fixture(scope="module")
def label_studio() -> Iterator[LabelStudio]:
    """Label Studio from its package, which may call the service on loopback and nothing beyond."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="label-studio-") as folder:
        environment = os.environ | {
            "HOME": folder,
            "LABEL_STUDIO_BASE_DATA_DIR": folder,
            "LABEL_STUDIO_USERNAME": "somebody@example.org",
            "LABEL_STUDIO_PASSWORD": PASSWORD,
            "LABEL_STUDIO_USER_TOKEN": TOKEN,
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "ML_BLOCK_LOCAL_IP": "false",
            "SSRF_PROTECTION_ENABLED": "false",
            "COLLECT_ANALYTICS": "false",
            "LATEST_VERSION_CHECK": "false",
            "SENTRY_DSN": "",
            "https_proxy": "http://127.0.0.1:1",  # where nothing listens
        }
        command = [ANNOTATORS / "label-studio", "start", "--no-browser", "--port", str(port)]
        with (
            (Path(folder) / "log").open("w") as log,
            subprocess.Popen(
                [*command, "--internal-host", "127.0.0.1"], env=environment, cwd=folder, stdout=log, stderr=log
            ) as child,
            httpx.Client(
                base_url=f"http://127.0.0.1:{port}", headers={"authorization": f"Token {TOKEN}"}, timeout=HANG_S
            ) as api,
        ):
            try:
                deadline_s = time.monotonic() + START_S
                while not answers(api):
                    assert child.poll() is None, (Path(folder) / "log").read_text()[-4000:]
                    assert time.monotonic() < deadline_s, (Path(folder) / "log").read_text()[-4000:]
                    time.sleep(0.5)
                token = api.post("/api/token/").raise_for_status().json()["token"]
                yield LabelStudio(f"http://127.0.0.1:{port}", api, token)
            finally:
                child.terminate()


def answers(api: httpx.Client) -> bool:
    try:
        return api.get("/health").is_success
    except httpx.TransportError:
        return False


@pytest.mark.needs("annotators")
def test_label_studio_stores_what_the_model_finds(served: Running, label_studio: LabelStudio, photo: bytes) -> None:
    with annotating(served, label_studio.url, label_studio.personal_token) as service:
        task, _ = label_studio.connected(service, "coins", "münzen 1.png", photo)
        project = label_studio.get(f"/api/tasks/{task}")["project"]
        selected = {"selectedItems": {"all": True, "excluded": []}}
        query = {"id": "retrieve_tasks_predictions", "project": project}
        label_studio.post("/api/dm/actions", params=query, json=selected)

    (prediction,) = label_studio.get("/api/predictions", task=task)
    (found,) = prediction["result"]
    np.testing.assert_array_equal(brush(found), of_coins(served, photo))


@pytest.mark.needs("annotators")
def test_label_studio_shows_what_a_click_selects(served: Running, label_studio: LabelStudio) -> None:
    with annotating(served, label_studio.url, label_studio.personal_token) as service:
        task, backend = label_studio.connected(service, "sam", "both.png", scene())
        given = {"task": task, "context": {"result": [click(*DISC), click(*SQUARE, is_positive=False)]}}
        shown = label_studio.post(f"/api/ml/{backend}/interactive-annotating", json=given)["data"]
    label_studio.post(f"/api/tasks/{task}/annotations", json={"result": shown["result"]})

    project = label_studio.get(f"/api/tasks/{task}")["project"]
    mask = label_studio.mask(project)
    assert shows(mask, DISC, SQUARE) == [True, False]
    np.testing.assert_array_equal(mask, brush(shown["result"][0]))
