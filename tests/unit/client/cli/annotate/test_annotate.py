"""The service of `segserve annotate`: Label Studio's and CVAT's requests over models with known answers."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, get_args, get_origin

import httpx
import numpy as np
import pytest
from annotated_types import MaxLen
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from starlette.applications import Starlette

from fakes.kserve import Arrays, Asked, Gateway, Model, items
from segserve import AuthenticationError, BadRequestError, Client
from segserve.exports.label_studio import read_brush
from segserve_ui import prompts
from segserve_ui.annotate import images
from segserve_ui.annotate.app import MAX_VALUES, create_app
from segserve_ui.annotate.cvat import Invocation
from segserve_ui.annotate.images import TaskImages
from segserve_ui.annotate.label_studio import MAX_TASKS, TasksRequest

from ...conftest import CLASSES, HEIGHT, INSTANCE, WIDTH, coin_masks, parameters, rle_counts
from ..conftest import Command

HOSTS: Final = ("127.0.0.1",)
PERSONAL: Final = "header.payload.signature"
LEGACY: Final = "0123456789abcdef"
BRUSH: Final = '<BrushLabels name="masks" toName="photo"><Label value="coin"/><Label value="lid"/></BrushLabels>'
POLYGON: Final = '<PolygonLabels name="outlines" toName="photo"><Label value="coin"/></PolygonLabels>'
BOX: Final = '<RectangleLabels name="boxes" toName="photo"><Label value="coin"/></RectangleLabels>'
POINT: Final = '<KeyPointLabels name="clicks" toName="photo" smart="true"><Label value="coin"/></KeyPointLabels>'


def config(*controls: str) -> str:
    return f'<View><Image name="photo" value="$image"/>{"".join(controls)}</View>'


def sam_answer(asked: Asked) -> Arrays:
    """Select a disc around each point of the object, without those of the background, or all of a box."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    for x1, y1, x2, y2 in asked.inputs.get("PROMPT_BOXES", np.empty((0, 4))):
        mask |= (columns >= x1) & (columns < x2) & (rows >= y1) & (rows < y2)
    points = zip(asked.inputs.get("POINTS", ()), asked.inputs.get("POINT_LABELS", ()), strict=True)
    for (x, y), label in sorted(points, key=lambda point: -point[1]):
        mask[(columns - x) ** 2 + (rows - y) ** 2 < 36] = bool(label)
    found = [mask] if mask.any() else []
    return {
        "REVISION": items(b"sam-cccccccccc"),
        "SIZE": np.array([HEIGHT, WIDTH], np.int32),
        "BOXES": np.zeros((len(found), 4), np.float32),
        "SCORES": np.full(len(found), 0.75, np.float32),
        "CLASSES": np.zeros(len(found), np.int32),
        "MASKS": items(*map(rle_counts, found)),
        "EMBEDDING_ID": items(b"sam-cccccccccc.1"),
    }


def box_answer(_: Asked) -> Arrays:
    return {
        "REVISION": items(b"boxes-dddddddddd"),
        "SIZE": np.array([HEIGHT, WIDTH], np.int32),
        "BOXES": np.array([[8, 6, 32, 36]], np.float32),
        "SCORES": np.array([0.5], np.float32),
        "CLASSES": np.array([1], np.int32),
    }


@pytest.fixture
def gateway(gateway: Gateway) -> Gateway:
    """Also a promptable model and one that finds boxes."""
    promptable = {"revision": "sam-cccccccccc", "classes": json.dumps([{"id": 0, "name": "object"}])}
    gateway.models["sam"] = Model([*INSTANCE, "EMBEDDING_ID"], promptable, sam_answer)
    gateway.models["boxes"] = Model(INSTANCE[:-1], parameters("boxes-dddddddddd"), box_answer)
    return gateway


@dataclass
class Files:
    """Label Studio's files, for whom has a token; other hosts' need none."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    """Path and Authorization of each request."""
    counts: Counter[str] = field(default_factory=Counter)


@contextmanager
def serving_files() -> Iterator[Files]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.counts[self.path] += 1
            self._send(200 if given == {"refresh": PERSONAL} else 401, b'{"access": "for-minutes"}')

        def do_GET(self) -> None:
            found.seen.append((self.path, self.headers.get("Authorization", "")))
            if self.path in found.redirects:
                self._send(302, b"", location=found.redirects[self.path])
            elif self.path in found.files:
                self._send(200, found.files[self.path])
            else:
                self._send(404, b"")

        def _send(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in (headers | {"content-length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Files(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def label_studio(photo: bytes) -> Iterator[Files]:
    with serving_files() as found:
        found.files = dict.fromkeys(("/data/upload/1/a.png", "/data/local-files/?d=b.png", "/a.png"), photo)
        yield found


@pytest.fixture
def elsewhere(photo: bytes) -> Iterator[Files]:
    with serving_files() as found:
        found.files["/a.png"] = photo
        yield found


@dataclass
class Service:
    """The service as Label Studio and CVAT call it."""

    client: httpx.AsyncClient
    gateway: Gateway
    app: Starlette

    async def post(self, path: str, **body: Any) -> Any:
        answer = await self.client.post(path, json=body)
        return answer.json() | {"status": answer.status_code} if answer.is_error else answer.json()

    async def predict(
        self, model: str, *controls: str, clicks: Any = None, urls: Any = ("/data/upload/1/a.png",)
    ) -> Any:
        tasks = [{"id": number, "data": {"image": url}} for number, url in enumerate(urls)]
        params = {"login": None, "password": None, "context": None if clicks is None else {"result": clicks}}
        return await self.post(
            f"/{model}/predict", tasks=tasks, label_config=config(*controls), project="1.1", params=params
        )


@pytest.fixture
async def service(gateway: Gateway, label_studio: Files) -> AsyncIterator[Service]:
    with gateway.http() as url, Client(url) as client:
        clients = dict.fromkeys(gateway.models, client)
        app = create_app(clients, TaskImages(label_studio.url, LEGACY), HOSTS)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as connected:
            yield Service(connected, gateway, app)


def click(x: float, y: float, *, label: str = "coin", **more: Any) -> dict[str, Any]:
    """Return a click at pixels, as Label Studio sends it."""
    value = {"x": 100 * x / WIDTH, "y": 100 * y / HEIGHT, "width": 0.4, "keypointlabels": [label]}
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    return (
        {"id": "1", "type": "keypointlabels", "from_name": "clicks", "is_positive": True, "value": value} | size | more
    )


def box(x: float, y: float, width: float, height: float) -> dict[str, Any]:
    percent = {"x": x / WIDTH, "y": y / HEIGHT, "width": width / WIDTH, "height": height / HEIGHT}
    value = {key: 100 * each for key, each in percent.items()} | {"rotation": 0, "rectanglelabels": ["coin"]}
    return click(0, 0) | {"type": "rectanglelabels", "value": value}


def brush(region: dict[str, Any]) -> NDArray[np.bool_]:
    return read_brush(region["value"]["rle"], region["original_height"], region["original_width"])


def disc(x: int, y: int) -> NDArray[Any]:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 < 36)


async def test_label_studio_connects(service: Service) -> None:
    for path in ("/", "/health", "/discs", "/discs/health"):
        assert (await service.client.get(path)).json()["status"] == "UP"
    assert await service.post("/discs/setup", project="1.1", schema=config(BRUSH)) == {
        "model_version": "discs-bbbbbbbbbb"
    }
    assert (await service.client.post("/discs/webhook", json={"action": "TASKS_CREATED"})).status_code == 200


async def test_masks_become_brushes_and_keep_their_pixels(service: Service) -> None:
    (((prediction,)),) = (await service.predict("discs", BRUSH, POLYGON))["results"]

    assert prediction["model_version"] == "discs-bbbbbbbbbb"
    assert prediction["score"] == pytest.approx(0.9)
    regions = prediction["result"]
    assert {(each["from_name"], each["to_name"], each["type"]) for each in regions} == {
        ("masks", "photo", "brushlabels")
    }
    assert [each["value"]["brushlabels"] for each in regions] == [["coin"], ["coin"]]
    assert len({each["id"] for each in regions}) == 2
    np.testing.assert_array_equal(np.stack(list(map(brush, regions))), coin_masks())


async def test_without_brushes_masks_become_polygons_and_without_these_boxes(service: Service) -> None:
    (((outlined,)),) = (await service.predict("discs", BOX, POLYGON))["results"]
    (((boxed,)),) = (await service.predict("discs", BOX))["results"]

    assert [each["type"] for each in outlined["result"]] == ["polygonlabels"] * 2
    points = np.array(outlined["result"][0]["value"]["points"]) * (WIDTH, HEIGHT) / 100
    rows, columns = np.nonzero(coin_masks()[0])
    assert [*points.min(0), *points.max(0)] == pytest.approx(
        [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    )
    value = boxed["result"][0]["value"]
    assert [value[key] for key in ("x", "y", "width", "height")] == pytest.approx(
        [100 * 8 / WIDTH, 100 * 8 / HEIGHT, 100 * 25 / WIDTH, 100 * 25 / HEIGHT]
    )


async def test_a_label_shows_the_classes_that_it_lists(service: Service) -> None:
    control = (
        '<BrushLabels name="masks" toName="photo"><Label value="Money" predicted_values="note, coin"/></BrushLabels>'
    )
    (((prediction,)),) = (await service.predict("discs", control))["results"]

    assert prediction["result"][0]["value"]["brushlabels"] == ["Money"]


async def test_a_class_without_a_label_is_an_error_that_names_both(service: Service) -> None:
    control = '<BrushLabels name="masks" toName="photo"><Label value="car"/></BrushLabels>'
    answer = await service.predict("discs", control)

    assert (answer["status"], answer["kind"]) == (400, "LabelsError")
    assert "no label for {'coin': 2} (class: objects); labels of BrushLabels, PolygonLabels" in answer["error"]
    assert ": car; add labels" in answer["error"]


async def test_what_is_left_out_beside_what_is_shown_is_logged(
    service: Service, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = [{"id": 0, "name": "coin"}, {"id": 1, "name": "note"}]
    answer = gateway.models["discs"].answer
    two = Model(
        INSTANCE,
        {"revision": "discs-bbbbbbbbbb", "classes": json.dumps(kinds)},
        lambda asked: answer(asked) | {"CLASSES": np.array([0, 1], np.int32)},
    )
    gateway.models["discs"] = two
    (((prediction,)),) = (await service.predict("discs", BRUSH))["results"]

    assert [each["value"]["brushlabels"] for each in prediction["result"]] == [["coin"]]
    assert "left out: no label for {'note': 1}" in caplog.text


async def test_a_box_needs_rectangle_labels(service: Service) -> None:
    (((prediction,)),) = (await service.predict("boxes", BOX))["results"]
    refused = await service.predict("boxes", BRUSH)

    assert prediction["result"][0]["value"]["rectanglelabels"] == ["coin"]
    assert (refused["status"], refused["kind"]) == (400, "LabelsError")


async def test_clicks_become_the_brush_of_what_they_select(service: Service) -> None:
    first = await service.predict("sam", BRUSH, POINT, clicks=[click(20, 30)])
    second = await service.predict(
        "sam", BRUSH, POINT, clicks=[click(20, 30), click(24, 30, is_positive=False, label="lid")]
    )

    ((region,),) = (each["result"] for each in first["results"])
    assert (region["type"], region["from_name"], region["score"]) == ("brushlabels", "masks", 0.75)
    assert region["value"]["brushlabels"] == ["coin"]
    np.testing.assert_array_equal(brush(region), disc(20, 30))
    ((region,),) = (each["result"] for each in second["results"])
    assert region["value"]["brushlabels"] == ["lid"]
    np.testing.assert_array_equal(brush(region), disc(20, 30) & ~disc(24, 30))


async def test_a_box_selects_what_is_in_it(service: Service) -> None:
    answer = await service.predict("sam", BRUSH, clicks=[box(10, 20, 30, 15)])

    expected = np.zeros((HEIGHT, WIDTH), np.bool_)
    expected[20:35, 10:40] = True
    np.testing.assert_array_equal(brush(answer["results"][0]["result"][0]), expected)


async def test_an_image_is_embedded_once_and_each_click_stands_for_itself(service: Service, gateway: Gateway) -> None:
    for x in (20, 40, 60):
        answer = await service.predict("sam", BRUSH, clicks=[click(x, 30)])
        np.testing.assert_array_equal(brush(answer["results"][0]["result"][0]), disc(x, 30))

    assert ["IMAGE" in each.inputs for each in gateway.asked] == [True, False, False, False]


async def test_clicks_on_one_image_at_the_same_time_do_not_mix(service: Service) -> None:
    places = range(10, 70, 5)
    answers = await asyncio.gather(*(service.predict("sam", BRUSH, clicks=[click(x, 30)]) for x in places))

    for x, answer in zip(places, answers, strict=True):
        np.testing.assert_array_equal(brush(answer["results"][0]["result"][0]), disc(x, 30))


async def test_only_so_many_images_are_kept(
    service: Service, gateway: Gateway, label_studio: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "MAX_IMAGES", 2)
    names = [f"/{number}.png" for number in range(3)]
    for number, name in enumerate(names):
        file = io.BytesIO()
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(file, "PNG")
        label_studio.files[name] = file.getvalue()
    for name in (*names, names[2], names[0]):
        await service.predict("sam", BRUSH, clicks=[click(20, 30)], urls=[name])

    assert ["IMAGE" in each.inputs for each in gateway.asked] == [True, False] * 3 + [False] + [True, False]


async def test_a_promptable_model_predicts_nothing_before_the_first_click(service: Service) -> None:
    assert await service.predict("sam", BRUSH, urls=["/a.png"] * 2) == {"results": [[], []]}


async def test_clicks_are_on_the_image_as_its_exif_orientation_turns_it(service: Service, label_studio: Files) -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(file, "JPEG", exif=exif)
    label_studio.files["/turned.jpg"] = file.getvalue()
    answer = await service.predict("sam", BRUSH, clicks=[click(60, 30)], urls=["/turned.jpg"])
    stored = click(60, 30) | {"original_width": HEIGHT, "original_height": WIDTH}
    refused = await service.predict("sam", BRUSH, clicks=[stored], urls=["/turned.jpg"])

    np.testing.assert_array_equal(brush(answer["results"][0]["result"][0]), disc(60, 30))
    assert refused["status"] == 400
    assert "the click is on an image of (80, 60) (height, width); the model got (60, 80)" in refused["error"]


@pytest.mark.parametrize(
    ("region", "words"),
    [
        (click(5, 5) | {"type": "brushlabels"}, "'brushlabels', is_positive True"),
        (box(1, 1, 9, 9) | {"is_positive": False}, "'rectanglelabels', is_positive False"),
        (click(5, 5) | {"value": {"x": 1, "keypointlabels": ["coin"]}}, "params.context.result.0.value.y"),
        (click(5, 5) | {"value": {"x": 1, "y": 1}}, "value.keypointlabels"),
        (click(5, 5, label="car"), "no label for {'car': 1}"),
    ],
)
async def test_a_click_that_means_nothing_is_refused(service: Service, region: dict[str, Any], words: str) -> None:
    answer = await service.predict("sam", BRUSH, clicks=[region])

    assert answer["status"] == 400
    assert words in answer["error"]


async def test_a_click_needs_a_promptable_model(service: Service) -> None:
    answer = await service.predict("discs", BRUSH, clicks=[click(5, 5)])

    assert (answer["status"], "model 'discs' takes no clicks and boxes" in answer["error"]) == (400, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<View>", "is not XML"),
        ("<View><Text name='t' value='$t'/></View>", "no image with labels in BrushLabels"),
        (config(POINT), "no image with labels in BrushLabels"),
        (config('<BrushLabels name="b" toName="other"><Label value="coin"/></BrushLabels>'), "no image with labels"),
    ],
)
async def test_a_configuration_that_cannot_show_answers_is_refused_at_once(
    service: Service, text: str, words: str
) -> None:
    answer = await service.post("/discs/setup", schema=text)

    assert (answer["status"], answer["kind"]) == (400, "LabelsError")
    assert words in answer["error"]


async def test_unknown_models_and_malformed_requests_are_named(service: Service) -> None:
    unknown = await service.predict("cats", BRUSH)
    malformed = await service.post("/discs/predict", tasks=[{"id": 1}], label_config=config(BRUSH))
    foreign = await service.client.get("/health", headers={"host": "evil.example"})

    assert (unknown["status"], unknown["error"]) == (
        404,
        "no model 'cats'; this service has: coins, discs, sam, boxes",
    )
    assert (malformed["status"], "tasks.0.data" in malformed["error"]) == (400, True)
    assert foreign.status_code == 400


def lists(kind: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield all lists of a request's body by name, those of its parts included."""
    for name, each in kind.model_fields.items():
        if get_origin(each.annotation) is list:
            yield f"{kind.__name__}.{name}", each
            (item,) = get_args(each.annotation)
            if isinstance(item, type) and issubclass(item, BaseModel):
                yield from lists(item)


def test_each_list_of_a_request_is_bounded() -> None:
    found = dict([*lists(TasksRequest), *lists(Invocation)])

    assert {"TasksRequest.tasks", "TasksRequest.clicks", "Region.labels", "Invocation.pos_points"} <= found.keys()
    assert [name for name, each in found.items() if not any(isinstance(rule, MaxLen) for rule in each.metadata)] == []


@pytest.mark.parametrize("unit", ["{}", "[]", "0", '{"a":0}', '""'])
async def test_a_request_of_many_values_is_refused_before_they_are_read(service: Service, unit: str) -> None:
    many = {"tasks": f'{{"tasks":[{{"data":{{"a":[{",".join([unit] * MAX_VALUES)}]}}}}],"label_config":""}}'}
    many["clicks"] = f'{{"params":{{"context":{{"result":[{",".join([unit] * MAX_VALUES)},0]}}}}}}'

    for content in many.values():
        answer = await service.client.post(
            "/discs/predict", content=content, headers={"content-type": "application/json"}
        )
        assert (answer.status_code, answer.json()["kind"]) == (413, "RequestTooLargeError")
        assert f"values; allowed are {MAX_VALUES}" in answer.json()["error"]
    refused = await service.predict("discs", BRUSH, urls=["/a.png"] * (MAX_TASKS + 1))
    assert (refused["status"], f"at most {MAX_TASKS} items" in refused["error"]) == (400, True)


async def test_a_client_that_leaves_is_a_line_of_the_log(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/discs/predict",
        "query_string": b"",
        "http_version": "1.1",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
    }

    async def leave() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def nobody(_: Any) -> None:
        pass

    await service.app(scope, leave, nobody)

    assert caplog.messages == ["/discs/predict: the client has left"]


async def test_a_web_page_in_the_users_browser_cannot_send_requests(service: Service, gateway: Gateway) -> None:
    """What it may send without the service's permission is of another type."""
    body = json.dumps({"tasks": [{"id": 1, "data": {"image": "/a.png"}}], "label_config": config(BRUSH)})
    answers = [
        await service.client.post("/discs/predict", content=body, headers={"content-type": kind})
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=application/json",
        )
    ]

    assert [(each.status_code, "allowed is application/json" in each.text) for each in answers] == [(400, True)] * 3
    assert gateway.asked == []


@pytest.mark.parametrize(
    "url", ["/data/upload/1/a.png", "/data/local-files/?d=b.png", "{label_studio}/data/upload/1/a.png"]
)
async def test_label_studios_files_are_fetched_with_its_token(service: Service, label_studio: Files, url: str) -> None:
    answer = await service.predict("discs", BRUSH, urls=[url.format(label_studio=label_studio.url)])

    assert len(answer["results"][0][0]["result"]) == 2
    assert label_studio.seen[0][1] == f"Token {LEGACY}"


def test_a_personal_access_token_is_exchanged_once(label_studio: Files) -> None:
    files = TaskImages(label_studio.url, PERSONAL)
    assert files.fetch("/a.png") == files.fetch("/a.png")

    assert label_studio.seen == [("/a.png", "Bearer for-minutes")] * 2
    assert label_studio.counts == {"/api/token/refresh/": 1}


def test_a_token_that_label_studio_does_not_accept_is_an_error(label_studio: Files) -> None:
    with pytest.raises(AuthenticationError, match="does not accept LABEL_STUDIO_API_KEY: Client error '401"):
        TaskImages(label_studio.url, "an.other.token").fetch("/a.png")

    assert label_studio.seen == []


async def test_files_of_other_hosts_are_not_fetched(service: Service, label_studio: Files, elsewhere: Files) -> None:
    label_studio.redirects["/away"] = f"{elsewhere.url}/a.png"
    wanted = [f"{elsewhere.url}/a.png", f"//{elsewhere.url[7:]}/a.png", "/away", "file:///etc/passwd", "s3://b/a.png"]
    answers = [await service.predict("discs", BRUSH, urls=[url]) for url in wanted]

    assert [(each["status"], each["kind"]) for each in answers] == [(400, "ImageRefusedError")] * 5
    assert f"images of {elsewhere.url} are not allowed; allowed (--allow): {label_studio.url}" in answers[0]["error"]
    assert elsewhere.seen == []


def test_an_allowed_host_gets_no_token(label_studio: Files, elsewhere: Files, photo: bytes) -> None:
    label_studio.redirects["/away"] = f"{elsewhere.url}/a.png"
    files = TaskImages(label_studio.url, LEGACY, [elsewhere.url])

    assert [files.fetch("/away"), files.fetch(f"{elsewhere.url}/a.png")] == [photo, photo]
    assert elsewhere.seen == [("/a.png", "")] * 2


@pytest.mark.parametrize("url", ["ftp://host", "http://", "host:80"])
def test_what_is_no_url_is_not_allowed(url: str) -> None:
    with pytest.raises(BadRequestError):
        TaskImages("http://127.0.0.1", None, [url])


async def test_a_large_or_missing_image_is_an_error(
    service: Service, monkeypatch: pytest.MonkeyPatch, label_studio: Files
) -> None:
    missing = await service.predict("discs", BRUSH, urls=["/none.png"])
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    large = await service.predict("discs", BRUSH)

    assert (missing["status"], missing["kind"]) == (502, "ImageUnavailableError")
    assert f"'{label_studio.url}/none.png' answers 404; expected 200" in missing["error"]
    assert (large["status"], "is longer than 10 bytes" in large["error"]) == (413, True)


async def test_urls_with_spaces_and_umlauts_are_fetched_and_several_images_are_named(
    service: Service, label_studio: Files, caplog: pytest.LogCaptureFixture
) -> None:
    spelled = await service.predict("discs", BRUSH, urls=["/dä ta/a.png"])
    several = await service.post(
        "/discs/predict", tasks=[{"data": {"image": ["/a.png", "/b.png"]}}], label_config=config(BRUSH)
    )

    assert f"'{label_studio.url}/d%C3%A4%20ta/a.png' answers 404" in spelled["error"]
    assert "has several images at 'image'; allowed is one" in several["error"]
    assert caplog.text.count("answers 404") == 1


async def test_a_bad_task_does_not_take_the_others_along(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    answer = await service.predict("discs", BRUSH, urls=["/data/upload/1/a.png", "/none.png"])

    assert [len(each) for each in answer["results"]] == [1, 0]
    assert "task 1: " in caplog.text


def test_the_command_says_what_it_cannot_use(command: Command) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        taken = command("annotate", "coins", "--port", port, "--url", "http://127.0.0.1:1")
    scheme = command("annotate", "coins", "--allow", "ftp://host", "--url", "http://127.0.0.1:1")
    gone = command("annotate", "coins", "--port", port, "--url", "http://127.0.0.1:1")

    assert (taken[0], f"the service cannot listen at 127.0.0.1:{port}: Address already in use" in taken[2]) == (1, True)
    assert (gone[0], "127.0.0.1:1" in gone[2]) == (1, True)
    assert (scheme[0], "the scheme 'ftp' is not allowed here; allowed: http, https" in scheme[2]) == (1, True)


async def test_what_others_wrote_cannot_steer_the_terminal_of_the_log(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = [{"data": {"\x1b[2J": "/a.png"}}]
    answer = await service.post("/discs/predict", tasks=tasks, label_config=config(BRUSH))

    assert (answer["status"], "the task's data has no URL at 'image'" in answer["error"]) == (400, True)
    assert "\x1b" not in caplog.text


async def invoked(service: Service, model: str, photo: bytes, **more: Any) -> Any:
    body = {"image": base64.b64encode(photo).decode(), **more}
    answer = await service.client.post(
        "/api/function_invocations", json=body, headers={"x-nuclio-function-name": model, "x-nuclio-path": "/"}
    )
    return answer.json()


async def test_cvat_lists_the_models_as_functions(service: Service) -> None:
    found = (await service.client.get("/api/functions")).json()
    one = (await service.client.get("/api/functions/sam")).json()

    kinds = {name: each["metadata"]["annotations"]["type"] for name, each in found.items()}
    assert kinds == {"coins": "detector", "discs": "detector", "sam": "interactor", "boxes": "detector"}
    labels = {
        name: json.loads(each["metadata"]["annotations"]["spec"]) for name, each in found.items() if name != "sam"
    }
    assert labels["discs"] == [{"id": 1, "name": CLASSES[1]["name"], "type": "mask"}]
    assert labels["boxes"][0]["type"] == "rectangle"
    assert one == found["sam"]


async def test_a_detector_returns_masks_in_their_boxes(service: Service, photo: bytes) -> None:
    shapes = await invoked(service, "discs", photo)

    assert [(each["label"], each["type"]) for each in shapes] == [("coin", "mask")] * 2
    assert [float(each["confidence"]) for each in shapes] == pytest.approx([0.93, 0.87])
    for shape, mask in zip(shapes, coin_masks(), strict=True):
        *pixels, left, top, right, bottom = shape["mask"]
        own = np.zeros_like(mask)
        own[top : bottom + 1, left : right + 1] = np.array(pixels).reshape(bottom - top + 1, right - left + 1)
        np.testing.assert_array_equal(own, mask)
        outline = np.array(shape["points"]).reshape(-1, 2)
        assert [*outline.min(0), *outline.max(0)] == [left, top, right + 1, bottom + 1]
    assert await invoked(service, "discs", photo, threshold=0.95) == []
    assert (await invoked(service, "boxes", photo))[0]["points"] == [8, 6, 32, 36]


async def test_an_interactor_returns_the_mask_under_clicks_and_in_a_box(service: Service, photo: bytes) -> None:
    clicked = await invoked(service, "sam", photo, pos_points=[[20, 30]], neg_points=[[24, 30]], obj_bbox=None)
    boxed = await invoked(service, "sam", photo, pos_points=[], neg_points=[], obj_bbox=[[40, 35], [10, 20]])
    nothing = await invoked(service, "sam", photo, pos_points=[], neg_points=[])

    np.testing.assert_array_equal(np.array(clicked["mask"]) == 255, disc(20, 30) & ~disc(24, 30))
    assert sorted(map(tuple, boxed["points"])) == [(10, 20), (10, 35), (40, 20), (40, 35)]
    assert (np.array(nothing["mask"]).shape, np.any(nothing["mask"]), nothing["points"]) == ((HEIGHT, WIDTH), False, [])


async def test_what_is_no_call_of_cvat_is_refused(service: Service, photo: bytes) -> None:
    answers = [
        await invoked(service, "cats", photo),
        await invoked(service, "discs", photo, threshold=2),
        await invoked(service, "sam", photo, pos_points=[[1]]),
        await invoked(service, "sam", photo, obj_bbox=[[1, 1], [1, 5]]),
    ]

    assert [each["kind"] for each in answers] == ["ModelNotFoundError"] + ["BadRequestError"] * 3
