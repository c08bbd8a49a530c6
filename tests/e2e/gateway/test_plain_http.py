"""Plain HTTP at the real Envoy: an image as a body becomes a request of KServe v2, and its answer plain JSON."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from fakes.credentials import api_key, key_line
from fakes.gateway import RunningGateway, running_gateway
from fakes.gateway_clients import LIMIT, served
from fakes.mounted_secret import MountedSecret
from fakes.plain_answers import answer_schema
from fakes.triton import StubTriton
from fakes.waiting import HANG_S
from segserve_builder import openapi
from segserve_common.kserve import HEADER_LENGTH, Tensor, unpack_bytes
from segserve_operator.adapters.traffic.envoy_auth import AuthSettings
from segserve_operator.api.access import Auth, Cors
from segserve_operator.core.traffic import RequestRate, RouteLimits, TrafficPlan

pytestmark = [pytest.mark.platform, pytest.mark.core]

PATH = "/v1/models/coins:segment"
HOW = "send the image itself (curl --data-binary @FILE), or as a form's file (curl -F image=@FILE)"
KINDS = "the answer is application/json, or a picture as image/png or image/webp"
OPTIONS = (
    "allowed are encoding, max_detections, multimask, picture, point_labels, points, prompt_boxes, score_threshold"
)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
RLE = b"ab\\c0"
SIZE = Tensor.of_array("SIZE", np.array([3, 4], np.int32))
ABOUT = {"model": "coins", "revision": "coins-old", "height": 3, "width": 4}
SEGMENT = {"id": 1, "class": 7, "isThing": True, "score": 0.5, "area": 3, "box": [1, 2, 3, 4]}


def numbers(name: str, *values: Any, dtype: str = "f4") -> Tensor:
    return Tensor.of_array(name, np.array(values, dtype))


def answered(*tensors: Tensor, revision: str = "coins-old") -> tuple[dict[str, str], bytes]:
    """Return headers and body of a server's answer with these tensors and those of every model."""
    sent = (Tensor.of_items("REVISION", [revision.encode()]), SIZE, *tensors)
    outputs = [
        {"name": t.name, "datatype": t.datatype, "shape": t.shape, "parameters": {"binary_data_size": len(t.raw)}}
        for t in sent
    ]
    head = json.dumps({"model_name": "coins", "model_version": "1", "outputs": outputs}, separators=(",", ":")).encode()
    body = b"".join([head, *(t.raw for t in sent)])
    return {HEADER_LENGTH: str(len(head)), "content-type": "application/octet-stream"}, body


@dataclass
class Plain:
    """A gateway that takes plain HTTP and API keys, a client with a key, and the server behind it."""

    gateway: RunningGateway
    client: httpx.AsyncClient
    server: StubTriton

    async def ask(self, content: Any = b"image", path: str = PATH, **options: Any) -> httpx.Response:
        return await self.client.post(path, content=content, **options)

    def arrived(self) -> tuple[bytes, dict[str, Any]]:
        """Return the image that has come to the server, and the request's parameters."""
        asked, body = self.server.asked[-1], self.server.body
        assert asked.path == "/v2/models/coins/infer"
        length = int(asked.headers[HEADER_LENGTH.lower()])
        head = json.loads(body[:length])
        (tensor,) = head["inputs"]
        assert tensor["parameters"]["binary_data_size"] == len(body) - length
        (image,) = unpack_bytes(body[length:])
        return image, head["parameters"]


@pytest.fixture
async def plain(tmp_path: Path, old: StubTriton) -> AsyncIterator[Plain]:
    MountedSecret(tmp_path / "callers", {"htpasswd": key_line("team-a", "s").encode()})
    spec = Auth.model_validate({"apiKeys": [{"secretRef": {"name": "callers", "key": "htpasswd"}}]})
    auth = AuthSettings(spec, (tmp_path,), tmp_path / "auth")
    async with running_gateway(tmp_path / "gateway", max_request_bytes=LIMIT, auth=auth, plain_http=True) as gateway:
        plan = served(old)
        (route,) = plan.routes
        private = replace(route, model="private", steps=(), exposed=(), access=())
        await gateway.traffic.apply(replace(plan, routes=(route, private)))
        key = {"x-api-key": api_key("team-a", "s")}
        async with httpx.AsyncClient(base_url=gateway.traffic.url, headers=key, timeout=HANG_S) as client:
            old.said = answered()
            yield Plain(gateway, client, old)


async def test_an_image_arrives_as_it_was_sent_however_its_size_is_told(plain: Plain) -> None:
    image = b"\xff\xd8\r\n--" + bytes(range(256)) * 1000

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(image), 50_000):
            yield image[start : start + 50_000]

    form = {"files": {"image": ("x.jpg", image, "image/jpeg")}}
    ways: dict[str, Any] = {
        "announced": {"content": image},
        "in pieces": {"content": pieces()},
        "gzip": {"content": gzip.compress(image), "headers": {"content-encoding": "gzip"}},
        "a form": {"content": None, **form},
        "a form whose field has another name": {"content": None, "files": {"photo": ("x.jpg", image, "image/jpeg")}},
        "JSON, which no script reads": {
            "content": image,
            "headers": {"content-type": "Application/JSON; charset=utf-8"},
        },
        **{f"a form, {name}": {"content": content, "headers": headers} for name, content, headers in forms(image)},
    }
    for name, way in ways.items():
        answer = await plain.ask(**way)
        assert answer.status_code == 200, (name, answer.text)
        assert plain.arrived() == (image, {"binary_data_output": True}), name


def forms(image: bytes) -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """Yield forms in the ways in which RFC 2231, 5987 and 9110 let parameters of headers be written."""
    boundaries = (
        "boundary=a;charset=utf-8",
        "BOUNDARY=a",
        'charset="x;boundary=b"; Boundary = "a"',
        'boundary="\\a"',
        "boundary*=us-ascii''%61",
        'boundary*0="";boundary*1="a"',
    )
    parts = (
        'form-data; NAME=image; FileName="a.jpg"',
        "form-data;name*=UTF-8''im%61ge",
        'form-data; name="im\\age"',
        'form-data; name*0=im; name*1="age"',
        "form-data; name=photo; filename*=UTF-8''M%C3%BCnzen.jpg",
        "form-data; filename*0*=UTF-8''M%C3%BC; filename*1=\"nzen.jpg\"; name=x",
        'form-data; name="a\\"; name=b; filename=\\"c"; filename="d"',
        'form-data;\r\n\tname="image"',
    )
    for boundary in boundaries:
        for disposition in parts:
            head = f"--a\r\nContent-Type: image/jpeg; name=z\r\ncontent-DISPOSITION: {disposition}\r\n\r\n"
            kind = {"content-type": f"Multipart/Form-Data; {boundary}"}
            yield f"{boundary}, {disposition}", head.encode() + image + b"\r\n--a--", kind


async def test_an_image_that_arrives_before_the_gateway_has_a_connection_to_a_server_is_one_request(
    plain: Plain,
) -> None:
    """With a wrong length the rest of its bytes would be a request that nobody has checked."""
    image = bytes(range(256)) * 1000
    key = plain.client.headers["x-api-key"]
    head = f"POST {PATH} HTTP/1.1\r\nhost: a\r\nx-api-key: {key}\r\ncontent-length: {len(image)}\r\n\r\n"
    reader, writer = await asyncio.open_connection(plain.client.base_url.host, plain.client.base_url.port)
    try:
        writer.write(head.encode() + image)
        assert b" 200 " in await asyncio.wait_for(reader.readline(), HANG_S)
    finally:
        writer.close()

    assert plain.arrived()[0] == image
    assert len(plain.server.asked) == 1


async def test_the_query_and_a_forms_other_fields_are_options(plain: Plain) -> None:
    await plain.ask(path=f"{PATH}?score_threshold=0.5&encoding=%22r%6Ce%22")
    assert plain.arrived()[1] == {"binary_data_output": True, "score_threshold": "0.5", "encoding": '"rle"'}

    form = {"files": {"image": b"image"}, "data": {"max_detections": "3"}}
    await plain.ask(None, f"{PATH}?score_threshold=1", **form)
    assert plain.arrived() == (b"image", {"binary_data_output": True, "max_detections": "3", "score_threshold": "1"})


PNG, WEBP = ({"overlay": kind, "outputs": "OVERLAY"} for kind in ("png", "webp"))


@pytest.mark.parametrize(
    ("accepted", "query", "parameters", "kind"),
    [
        ("image/png", "", PNG, "image/png"),
        ("image/webp, image/png;q=0.5", "?score_threshold=1", {**WEBP, "score_threshold": "1"}, "image/webp"),
        ("image/webp;q=0.5, IMAGE/PNG ; Q=0.6", "", PNG, "image/png"),
        ("image/webp, image/png", "", WEBP, "image/webp"),
        ("image/png;q=0, image/webp;q=0.1", "", WEBP, "image/webp"),
        ("image/png;q=0, image/*", "", WEBP, "image/webp"),
        ("image/*", "?encoding=rle", {**PNG, "encoding": "rle"}, "image/png"),
        ("*/*", "?picture=overlay", PNG, "image/png"),
        ("*/*, image/png;q=0.0", "?picture=overlay", WEBP, "image/webp"),
        ("image/png", "?picture=labels", {"outputs": "LABELS"}, "image/png"),
        ("image/webp, image/png", "?picture=labels", {"outputs": "LABELS"}, "image/png"),
        ("application/json;q=0, */*", "", PNG, "image/png"),
        ("application/*;q=0.2, image/webp;q=0.4", "", WEBP, "image/webp"),
        ("image/png, */*;q=0.1", "", PNG, "image/png"),
        ("image/webp,*/*", "", {}, "application/json"),
        ("image/png;q=0.5, application/json;charset=utf-8;q=0.5", "", {}, "application/json"),
        (BROWSER, "", {}, "application/json"),
        ("", "", {}, "application/json"),
    ],
)
async def test_an_answer_is_what_the_request_accepts_most_and_names(
    plain: Plain, accepted: str, query: str, parameters: dict[str, str], kind: str
) -> None:
    plain.server.said = answered(
        *OBJECTS, MAP, Tensor.of_items("OVERLAY", [b"drawn"] if "overlay" in parameters else [])
    )

    answer = await plain.ask(path=f"{PATH}{query}", headers={"accept": accepted})

    assert plain.arrived()[1] == {"binary_data_output": True, **parameters}
    assert answer.headers["content-type"] == kind
    if kind != "application/json":
        assert answer.content == (b"drawn" if "overlay" in parameters else MAP.to_items()[0])
    await plain.ask(None, PATH, files={"image": b"image"}, data={"picture": "labels"})
    assert plain.arrived() == (b"image", {"binary_data_output": True, "outputs": "LABELS"})


OBJECTS = [
    numbers("BOXES", [0.5, 1, 2, 3], [4, 5, 6, 7]),
    numbers("SCORES", 0.1, 1e-40),
    numbers("CLASSES", 1, -2, dtype="i4"),
]
CLASSES = [numbers("CLASSES", 0, 5, dtype="i4"), numbers("AREAS", 9, 3, dtype="i8"), numbers("CONFIDENCE", 0.25, 0)]
SEGMENTS = Tensor.of_items("SEGMENTS", [json.dumps([SEGMENT, SEGMENT]).encode()])
MAP = Tensor.of_items("LABELS", [b"\x89PNG\0\xff"])
SCHEMAS = {"objects": "ObjectsAnswer", "classes": "ClassesAnswer", "segments": "SegmentsAnswer"}
PARTS = {"objects", "classes", "segments"}
NO_MASKS = Tensor.of_items("MASKS", [])
OBJECT = {"class_id": 1, "score": float(np.float32(0.1)), "box": [0.5, 1, 2, 3]}
OTHER = {"class_id": -2, "score": float(np.float32(1e-40)), "box": [4, 5, 6, 7]}
COUNTS = {"size": [3, 4], "counts": RLE.decode()}
SHOWN = {"id": 1, "class_id": 7, "is_thing": True, "score": 0.5, "area": 3, "box": [1, 2, 3, 4]}
SHOWN_CLASSES = [{"class_id": 0, "area": 9, "confidence": 0.25}, {"class_id": 5, "area": 3, "confidence": 0}]
ANSWERS: dict[str, tuple[list[Tensor], dict[str, Any]]] = {
    "boxes": (OBJECTS, {"objects": [OBJECT, OTHER]}),
    "no boxes": (
        [Tensor("BOXES", "FP32", (0, 4), b""), numbers("SCORES"), numbers("CLASSES", dtype="i4"), NO_MASKS],
        {"objects": []},
    ),
    "keypoints": (
        [*OBJECTS, numbers("KEYPOINTS", [[1, 2, 0.5], [3, 4, 1]], [[5, 6, 0], [7, 8, 1]])],
        {
            "objects": [
                {**OBJECT, "keypoints": [[1, 2, 0.5], [3, 4, 1]]},
                {**OTHER, "keypoints": [[5, 6, 0], [7, 8, 1]]},
            ]
        },
    ),
    "masks as RLE": (
        [*OBJECTS, Tensor.of_items("MASKS", [RLE, RLE])],
        {"objects": [{**OBJECT, "mask": COUNTS}, {**OTHER, "mask": COUNTS}]},
    ),
    "masks as polygons": (
        [*OBJECTS, Tensor.of_items("MASKS", [b"[[1,2,3,4,5.5,6]]", b"[]"])],
        {"objects": [{**OBJECT, "mask": [[1, 2, 3, 4, 5.5, 6]]}, {**OTHER, "mask": []}]},
    ),
    "masks as pictures": (
        [*OBJECTS, Tensor.of_items("MASKS", [b"\x89PNG\0", b"\0\1\1"])],
        {"objects": [{**OBJECT, "mask": "iVBORwA="}, {**OTHER, "mask": "AAEB"}]},
    ),
    "a label map": (
        [MAP, NO_MASKS, *CLASSES],
        {"classes": SHOWN_CLASSES, "labels": base64.b64encode(b"\x89PNG\0\xff").decode()},
    ),
    "masks of classes": (
        [Tensor.of_items("LABELS", []), Tensor.of_items("MASKS", [RLE, RLE]), *CLASSES],
        {"classes": [{**each, "mask": COUNTS} for each in SHOWN_CLASSES]},
    ),
    "segments": ([MAP, SEGMENTS, NO_MASKS], {"segments": [SHOWN, SHOWN], "labels": "iVBORwD/"}),
    "masks of segments": (
        [Tensor.of_items("LABELS", []), SEGMENTS, Tensor.of_items("MASKS", [RLE, RLE])],
        {"segments": [{**SHOWN, "mask": COUNTS}] * 2},
    ),
    "a strange frame of a stream": (
        [*OBJECTS, numbers("CONTINUED", 1, dtype="i4"), numbers("OUT_OF_DISTRIBUTION", 2.5, 2)],
        {"objects": [OBJECT, OTHER], "continued": True, "out_of_distribution": {"score": 2.5, "threshold": 2}},
    ),
}


async def test_the_answer_of_each_task_is_plain_json(plain: Plain) -> None:
    for name, (tensors, expected) in ANSWERS.items():
        plain.server.said = answered(*tensors)
        answer = await plain.ask(headers={"accept-encoding": "gzip"})
        assert "accept-encoding" not in plain.server.asked[-1].headers
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-segserve-revision"] == "coins-old"
        # Numbers of 32 bits are told with as many digits as tell them apart.
        document = json.loads(answer.text, parse_float=lambda text: float(np.float32(text)))
        assert document == ABOUT | expected, name
        (part,) = PARTS & expected.keys()
        answer_schema(SCHEMAS[part]).validate(answer.json())


NAMES = ('a "coin"\\', "dünne {Münze} %1")


async def test_classes_have_the_names_that_they_have_in_the_revision_that_answered(
    plain: Plain, new: StubTriton
) -> None:
    (route,) = served(plain.server, new, 50).routes
    old_share, new_share = route.shares
    # A class of the first revision has another name in the second one, and two have none.
    shares = (
        replace(old_share, classes=((1, NAMES[0]), (5, NAMES[1]), (7, NAMES[1]))),
        replace(new_share, classes=((1, "disc"), (7, "siete"))),
    )
    await plain.gateway.traffic.apply(TrafficPlan((replace(route, shares=shares),)))
    expected = {
        "boxes": {"coins-old": [NAMES[0], None], "coins-new": ["disc", None]},
        "a label map": {"coins-old": [None, NAMES[1]], "coins-new": [None, None]},
        "masks of segments": {"coins-old": [NAMES[1]] * 2, "coins-new": ["siete", "siete"]},
    }
    for case, by_revision in expected.items():
        tensors, about = ANSWERS[case]
        plain.server.said = answered(*tensors)
        new.said = answered(*tensors, revision="coins-new")
        (part,) = set(about) & PARTS
        told: dict[str, list[str | None]] = {}
        while len(told) < len(by_revision):
            document = (await plain.ask()).json()
            told[document["revision"]] = [each.pop("class", None) for each in document[part]]
            assert [each["class_id"] for each in document[part]] == [each["class_id"] for each in about[part]]
        assert told == by_revision, case


async def test_an_answer_of_many_pieces_is_whole(plain: Plain) -> None:
    many = 5_000
    boxes = Tensor.of_array("BOXES", np.arange(4 * many, dtype=np.float32).reshape(many, 4))
    each = [boxes, numbers("SCORES", *[0.5] * many), numbers("CLASSES", *range(many), dtype="i4")]
    plain.server.said = answered(*each, Tensor.of_items("MASKS", [RLE * 20] * many))

    objects = (await plain.ask()).json()["objects"]

    assert [one["class_id"] for one in objects] == list(range(many))
    assert objects[-1]["box"] == list(range(4 * many - 4, 4 * many))
    assert {one["mask"]["counts"] for one in objects} == {(RLE * 20).decode()}


async def test_whatever_is_wrong_is_a_problem_that_says_what(plain: Plain) -> None:
    form = {"content-type": "multipart/form-data; boundary=x"}
    field = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nimage\r\n--x'
    large = f"the image is too large for plain HTTP: at most {LIMIT} bytes are allowed"
    refused: dict[str, tuple[dict[str, Any], int, str]] = {
        "no model": ({"path": "/v1/models/nope:segment"}, 404, "unknown model 'nope'"),
        "no model of this caller": ({"path": "/v1/models/private:segment"}, 404, "unknown model 'private'"),
        "a form to no model of this caller, which is not read": (
            {"path": "/v1/models/private:segment", "content": field[:-3], "headers": form},
            404,
            "unknown model 'private'",
        ),
        "no body": ({"content": b""}, 400, "the request has no body; it must be an image"),
        "no such option": ({"path": f"{PATH}?size=3"}, 400, f'unknown option "size"; {OPTIONS}'),
        "an option twice": ({"path": f"{PATH}?encoding=rle&encoding=png"}, 400, "option 'encoding' is given twice"),
        "too large": ({"content": bytes(LIMIT + 1)}, 413, large),
        "too large with what stands before it": ({"content": bytes(LIMIT - 50)}, 413, large),
        "JSON that is too large": (
            {"content": bytes(LIMIT + 1), "headers": {"content-type": "application/json"}},
            413,
            large,
        ),
        "another answer": (
            {"headers": {"accept": "text/html"}},
            406,
            f'{KINDS}; the request accepts "text/html"',
        ),
        "types that resemble an answer's": (
            {"headers": {"accept": "application/javascript, image/pjpeg, image/png;q=0"}},
            406,
            f"{KINDS}; the request accepts",
        ),
        "a picture that is not accepted": (
            {"path": f"{PATH}?picture=overlay", "headers": {"accept": "application/json"}},
            406,
            f"{KINDS}; picture=overlay needs one of the last two",
        ),
        "a label map with a loss": (
            {"path": f"{PATH}?picture=labels", "headers": {"accept": "image/webp"}},
            406,
            "a label map (picture=labels) is image/png with encoding=png alone",
        ),
        "no such picture": (
            {"path": f"{PATH}?picture=x"},
            400,
            "option 'picture' is \"x\"; allowed are labels, overlay",
        ),
        "no key": ({"headers": {"x-api-key": "wrong"}}, 401, ""),
        "a form without a boundary": (
            {"headers": {"content-type": "multipart/form-data"}},
            400,
            "a form needs a boundary of 1 to 70 characters in its content type",
        ),
        "a form whose boundary is long": (
            {"headers": {"content-type": f"multipart/form-data; boundary={71 * '-'}"}},
            400,
            "a form needs a boundary of 1 to 70 characters in its content type",
        ),
        "a form without the image": ({"content": b"--x--\r\n", "headers": form}, 400, f"the form has no image: {HOW}"),
        "a form cut short": ({"content": field[:-3], "headers": form}, 400, f"the form has no image: {HOW}"),
        "an image that is said to be a form": (
            {"content": b"\xff\xd8\xff" + 200_000 * b"\r", "headers": form},
            400,
            f"the body is no form: it does not begin with the boundary; {HOW}",
        ),
        "a form whose part has a long head": (
            {"content": field.replace(b"name=", 9000 * b";" + b"name="), "headers": form},
            400,
            "the head of a part of the form has more than 8192 bytes",
        ),
        "two images": (
            {"content": field + field[3:] + b"--\r\n", "headers": form},
            400,
            "the form has more than one image; one is allowed",
        ),
    }
    for name, (request, status, detail) in refused.items():
        answer = await plain.ask(**request)
        assert_problem(answer, status, detail, name)
    assert_problem(await plain.client.get(PATH), 405, "allowed is POST, with an image as the body", "GET")
    assert plain.server.asked == []

    plain.server.status, plain.server.said = 400, ({}, b'{"error":"in ensemble \'coins\', the image is \\"x\\""}')
    error = await plain.ask()
    assert_problem(error, 400, 'the image is "x"', "an error of the server")
    assert error.json()["detail"] == 'the image is "x"'
    unlabelled = {"content-type": "application/x-www-form-urlencoded"}
    for whole, start in (
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\x89PNG"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", b"\xff\xd8"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", b"RIFF"),
        (b"II*\0\x08\0\0\0", b"II*"),
        (b"MM\0*\0\0\0\x08", b"MM"),
    ):
        assert (await plain.ask(whole, headers=unlabelled)).json()["detail"] == 'the image is "x"', start
        by_curl = await plain.ask(whole.translate(None, b"\0\r\n"), headers=unlabelled)
        hint = 'the image is "x"; curl -d changes the bytes of a file, --data-binary does not'
        assert by_curl.json()["detail"] == hint, start
    for text in (b"iVBORw0KGgo=", b"image=%2F9j%2F4AAQ", "Münze".encode()):
        assert (await plain.ask(text, headers=unlabelled)).json()["detail"] == 'the image is "x"', text
    plain.server.said = ({}, b'{"error":"image is not a JPEG, PNG, WebP or TIFF file: it is empty"}')
    hint = 'it is empty; as application/json the body is {"image": "<base64>"}'
    assert_problem(await plain.ask(b"[1]", headers={"content-type": "text/json"}), 400, hint, "no JSON object")


def assert_problem(answer: httpx.Response, status: int, detail: str, name: str) -> None:
    assert answer.status_code == status, (name, answer.text)
    assert answer.headers["content-type"] == "application/problem+json", (name, answer.text)
    document = answer.json()
    assert (set(document), document["status"]) == ({"title", "status", "detail"}, status), name
    assert detail in document["detail"], name


async def test_a_request_without_a_credential_is_refused_before_anything_is_read_of_it(plain: Plain) -> None:
    missing = "credentials are missing: this gateway takes an API key as `x-api-key`"
    async with httpx.AsyncClient(base_url=plain.client.base_url, timeout=HANG_S) as stranger:
        for path in (PATH, "/v1/models/private:segment", "/v1/models/nope:segment", f"{PATH}?size=3"):
            answer = await stranger.post(path, content=b"image")
            assert_problem(answer, 401, missing, path)
            assert answer.headers["www-authenticate"] == 'ApiKey realm="segserve"'
        wrong = await stranger.post(PATH, content=b"image", headers={"x-api-key": api_key("team-a", "t")})
        assert_problem(wrong, 401, "", "a wrong key")
        large = await stranger.post(PATH, content=bytes(LIMIT + 1))
        assert_problem(large, 401, missing, "too large")

    assert plain.server.asked == []


async def test_a_models_limit_holds_for_plain_requests_and_others_together(plain: Plain) -> None:
    plan = served(plain.server)
    limits = {
        "total": RouteLimits(total=RequestRate(requests_per_s=2)),
        "per caller": RouteLimits(per_caller=RequestRate(requests_per_s=2)),
    }
    for name, each in limits.items():
        await plain.gateway.traffic.apply(replace(plan, routes=(replace(plan.routes[0], limits=each),)))
        plain.server.asked.clear()

        # Two pass, and two more in each second that these take.
        answers = await asyncio.gather(*(plain.ask() for _ in range(30)))
        of_others = await asyncio.gather(*(plain.ask(path="/v2/models/coins/infer") for _ in range(30)))

        refused = [answer for answer in answers if answer.status_code != 200]
        for answer in refused:
            assert_problem(answer, 429, "rate limit: spec.limits of model 'coins' allows no more requests now", name)
            assert answer.headers["retry-after"] == "1"
        assert 0 < len(refused) < len(answers), name
        assert 429 in {answer.status_code for answer in of_others}, name
        passed = [answer for answer in (*answers, *of_others) if answer.status_code == 200]
        assert len(plain.server.asked) == len(passed), name
        unread = await asyncio.gather(*(plain.ask(b"") for _ in range(30)))
        statuses = {answer.status_code for answer in unread}
        assert 429 in statuses <= {400, 429}, name  # beyond the limit no body is read


async def test_probes_say_without_a_credential_what_those_of_kserve_say_with_one(plain: Plain) -> None:
    probes = {"/healthz": "/v2/health/live", "/readyz": "/v2/health/ready", "/readyz?verbose": "/v2/health/ready"}
    plain.server.said = ({}, b"")
    async with httpx.AsyncClient(base_url=plain.client.base_url, timeout=HANG_S) as stranger:
        for path, of_kserve in probes.items():
            assert ((await stranger.get(path)).status_code, plain.server.asked[-1].path) == (200, of_kserve)
        plain.server.status = 400
        assert_problem(await stranger.get("/readyz"), 400, "", "a server that is not ready")
        await plain.gateway.traffic.apply(TrafficPlan())
        assert_problem(await stranger.get("/readyz"), 503, "", "no server")

        plain.server.asked.clear()
        for path in (
            "/healthz/",
            "/healthz;a",
            "/healthz%3f",
            "/healthzz",
            "/readyz/../v2",
            *probes.values(),
            "/",
            "/openapi.json",
            "/docs",
        ):
            assert (await stranger.get(path)).status_code == 401, path
        assert_problem(await stranger.post("/healthz", content=b"a"), 405, "allowed is GET", "POST")
        assert_problem(
            await stranger.request("GET", "/healthz", content=bytes(5000)), 413, "a probe needs no body", "body"
        )
        assert (await stranger.get("/healthz", headers={"x-api-key": "wrong"})).status_code == 401
    assert plain.server.asked == []


async def test_the_index_names_the_models_only_where_nobody_is_kept_from_any(plain: Plain) -> None:
    links = {"openapi": "/openapi.json", "docs": "/docs", "health": "/healthz", "ready": "/readyz", "kserve": "/v2"}
    about = {"name": "segserve", "version": version("segserve"), "links": links}
    restricted = await plain.client.get("/")
    assert_problem(
        await plain.client.get("/v1/models"), 404, "no such path: /v1/models", "a list where some are private"
    )
    nameless = await plain.client.get("/openapi.json")
    (route,) = served(plain.server).routes
    names = ["coins", *(f"model-{number:03}" for number in range(100))]
    await plain.gateway.traffic.apply(TrafficPlan(tuple(replace(route, model=name, exposed=()) for name in names)))

    answer = await plain.client.get("/")

    assert (restricted.status_code, restricted.json()) == (200, about)
    assert answer.headers["content-type"] == "application/json"
    models = answer.json().pop("models")
    assert answer.json() == about | {"models": models}
    assert [each["name"] for each in models] == names
    assert models[0] == {"name": "coins", "segment": PATH, "kserve": "/v2/models/coins"}
    assert (await plain.client.get("/v1/models")).json() == {"models": models}
    described = await plain.client.get("/openapi.json")
    assert described.headers["content-type"] == "application/json"
    assert described.json() == openapi.describe_gateway(names, version=version("segserve"))
    assert "coins" not in nameless.text
    assert nameless.json() == openapi.describe_gateway(None, version=version("segserve"))
    assert_problem(await plain.client.post("/", content=b"image"), 405, "allowed is GET", "POST")
    assert plain.server.asked == []


async def test_a_browser_gets_a_page_at_the_root_and_other_programs_json(plain: Plain) -> None:
    kept = (await plain.client.get("/", headers={"accept": BROWSER})).text
    (route,) = served(plain.server).routes
    await plain.gateway.traffic.apply(TrafficPlan((replace(route, model="coins", exposed=()),)))

    page = await plain.client.get("/", headers={"accept": BROWSER})

    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.text.startswith("<!doctype html>")
    assert all(text in page.text for text in ("<li>coins</li>", "/v1/models/coins:segment", "segserve ui"))
    assert "coins" not in kept
    policy = page.headers["content-security-policy"]
    for kind in ("style", "script"):
        content = page.text.partition(f"<{kind}>")[2].partition(f"</{kind}>")[0]
        assert base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() in policy
    assert "default-src 'none'" in policy
    assert "connect-src" not in policy
    for accept in ("*/*", "application/json", "text/plain"):
        answer = await plain.client.get("/", headers={"accept": accept})
        assert answer.json()["name"] == "segserve", accept
        assert answer.headers["vary"] == "accept"
    refused = await plain.client.post("/", headers={"accept": BROWSER}, content=b"image")
    assert_problem(refused, 405, "allowed is GET", "POST")


async def test_a_page_tries_the_description_and_loads_nothing_from_elsewhere(plain: Plain) -> None:
    page = await plain.client.get("/docs")

    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = page.headers["content-security-policy"].split("; ")
    for kind in ("style", "script"):
        content = page.text.partition(f"<{kind}>")[2].partition(f"</{kind}>")[0]
        assert f"{kind}-src 'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'" in policy
    assert {"default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "form-action 'none'"} <= set(policy)
    assert "://" not in page.text
    assert "coins" not in page.text
    assert_problem(await plain.client.post("/docs", content=b"image"), 405, "allowed is GET", "POST")
    assert plain.server.asked == []


async def test_an_answer_to_head_is_without_a_body_so_that_the_next_one_is_not_mistaken(plain: Plain) -> None:
    key = plain.client.headers["x-api-key"]
    for path in (PATH, "/", "/openapi.json", "/healthz", "/v1/models/nope:segment"):
        head, get = (f"{method} {path} HTTP/1.1\r\nhost: a\r\nx-api-key: {key}\r\n" for method in ("HEAD", "GET"))
        reader, writer = await asyncio.open_connection(plain.client.base_url.host, plain.client.base_url.port)
        try:
            writer.write(f"{head}\r\n{get}connection: close\r\n\r\n".encode())
            sent = await asyncio.wait_for(reader.read(), HANG_S)
        finally:
            writer.close()
        first, _, rest = sent.partition(b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 "), path
        assert rest.startswith(b"HTTP/1.1 "), (path, rest)


PLACES = "tensors go to POST /v2/models/NAME/infer, images to POST /v1/models/NAME:segment"
OTHERS = (
    "/v1/models/coins:predict",
    "/predict",
    "/invocations",
    "/segment",
    "/predictions/coins",
    "/v1/predict",
    "/v22",
)


async def test_other_requests_are_answered_as_without_it(plain: Plain) -> None:
    paths = ("/v1/models/coins", "/v1/models/coins:segments", "/v1/models/a/b:segment", "/v1/models/:segment", *OTHERS)
    for path in paths:
        assert_problem(await plain.ask(path=path), 404, f"no such path: {path}; {PLACES}", path)
    assert (await plain.ask(path="/v2/none")).json() == {"error": f"no such path: /v2/none; {PLACES}"}

    for path in ("/v2/models/coins/infer", "/v2/models/coins/versions/1/infer"):
        answer = await plain.ask(b"any", path)
        assert (answer.status_code, answer.content, plain.server.body) == (200, answered()[1], b"any")
        assert plain.server.asked[-1].path == path


NO_JSON = "no JSON of KServe v2"
IMAGES_GO = "images go to POST /v1/models/NAME:segment"
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"
DEEP = 40 * b"["
FORMATS: dict[str, tuple[bytes, str]] = {
    "PNG": (PNG + DEEP, f"the body is an image (PNG), and {NO_JSON}; {IMAGES_GO}"),
    "JPEG": (JPEG + DEEP, f"the body is an image (JPEG), and {NO_JSON}; {IMAGES_GO}"),
    "WebP": (b"RIFF" + DEEP, f"the body is an image (WebP), and {NO_JSON}; {IMAGES_GO}"),
    "TIFF": (b"II*\0" + DEEP, f"the body is an image (TIFF), and {NO_JSON}; {IMAGES_GO}"),
    "big-endian TIFF": (b"MM\0*" + DEEP, f"the body is an image (TIFF), and {NO_JSON}; {IMAGES_GO}"),
    "large PNG": (PNG + bytes(2**20), f"the body is an image (PNG), and {NO_JSON}; {IMAGES_GO}"),
    "base64": (base64.b64encode(PNG), f"the body is an image (PNG in base64), and {NO_JSON}; {IMAGES_GO}"),
    "string of base64": (b'"/9j/4AAQ"', f"the body is an image (JPEG in base64), and {NO_JSON}; {IMAGES_GO}"),
    "data: URL": (b"data:image/png;base64,", f"the body is an image (data: URL, base64), and {NO_JSON}; {IMAGES_GO}"),
    "form": (b"--x\r\n" + DEEP, f"the body is a form, and {NO_JSON}; {IMAGES_GO}"),
    "another file": (b"\0\0\0\x18ftypheic" + DEEP, f"the body is {NO_JSON}, which begins with '{{'; {IMAGES_GO}"),
    "another large file": (bytes(2**20 + 1), f"the body is {NO_JSON}, which begins with '{{'; {IMAGES_GO}"),
    "another server's JSON": (
        b'{"instances": [{"data": "iVBORw0KGgo="}]}',
        f"the JSON has an image (PNG in base64), and no inputs of KServe v2; {IMAGES_GO}",
    ),
    "b64": (b'{"inputs": [{"data": [{"b64": "eA=="}]}]}', f"KServe v2 has no 'b64' (base64); {IMAGES_GO}"),
    "large base64": (
        b'{"inputs": [{"data": ["iVBORw0K' + 2**20 * b"A" + b'"]}]}',
        "the request's JSON has more than 1048576 bytes: send tensors as binary data, not in base64",
    ),
    "deep JSON": (b'{"a":' + DEEP, "the JSON is nested more than 32 deep"),
}


async def test_a_body_that_is_no_json_is_named_before_any_limit_of_json(plain: Plain) -> None:
    for name, (content, wrong) in FORMATS.items():
        answer = await plain.ask(content, "/v2/models/coins/infer")
        assert answer.status_code == 400, name
        assert wrong in answer.json()["error"], name
    assert plain.server.asked == []


async def test_a_proxy_that_speaks_http_1_0_gets_an_answer(plain: Plain) -> None:
    host, port = plain.gateway.authority.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    key = plain.client.headers["x-api-key"]
    writer.write(f"POST {PATH} HTTP/1.0\r\nx-api-key: {key}\r\ncontent-length: 5\r\n\r\nimage".encode())

    sent = await asyncio.wait_for(reader.read(), HANG_S)
    writer.close()

    head, _, body = sent.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 ")
    assert json.loads(body)["revision"] == "coins-old"


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [("http://localhost:3000", True), ("http://127.0.0.1", True), ("http://localhost.evil.example", False)],
)
async def test_pages_of_this_machine_may_call_a_local_gateway(
    tmp_path: Path, old: StubTriton, origin: str, allowed: bool
) -> None:
    local = {"plain_http": True, "metrics_socket": str(tmp_path / "metrics.sock")}
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    old.said = answered()
    async with running_gateway(tmp_path, **local) as gateway, httpx.AsyncClient(timeout=HANG_S) as page:
        await gateway.traffic.apply(served(old))
        preflight = await page.options(f"{gateway.traffic.url}{PATH}", headers=asked)
        answer = await page.post(f"{gateway.traffic.url}{PATH}", content=b"image", headers={"origin": origin})

    said = "access-control-allow-origin"
    assert (preflight.headers.get(said) == origin, answer.headers.get(said) == origin) == (allowed, allowed)
    assert answer.status_code == 200


ORIGINS = ("https://app.example.com", "http://tools.example.com:8443", "https://[::1]:8443")


async def test_pages_of_named_origins_may_call_a_gateway_that_wants_credentials(
    tmp_path: Path, old: StubTriton
) -> None:
    MountedSecret(tmp_path / "callers", {"htpasswd": key_line("team-a", "s").encode()})
    spec = Auth.model_validate({"apiKeys": [{"secretRef": {"name": "callers", "key": "htpasswd"}}]})
    auth = AuthSettings(spec, (tmp_path,), tmp_path / "auth")
    old.said = answered()
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    options = {"auth": auth, "plain_http": True, "cors": Cors(origins=ORIGINS)}
    async with running_gateway(tmp_path / "gateway", **options) as gateway, httpx.AsyncClient(timeout=HANG_S) as page:
        await gateway.traffic.apply(served(old))
        url = f"{gateway.traffic.url}{PATH}"
        for origin in ORIGINS:
            allowed = await page.options(url, headers={"origin": origin, **preflight})
            assert allowed.status_code == 204
            assert "x-api-key" in allowed.headers["access-control-allow-headers"]
            answer = await page.post(
                url, content=b"image", headers={"origin": origin, "x-api-key": api_key("team-a", "s")}
            )
            stranger = await page.post(url, content=b"image", headers={"origin": origin})
            assert (answer.status_code, stranger.status_code) == (200, 401)
            for each in (allowed, answer, stranger):
                assert each.headers["access-control-allow-origin"] == origin
                assert "access-control-allow-credentials" not in each.headers
        others = ("https://app.example.com.evil.example", "https://app", "", "*", "null", "http://app.example.com")
        for origin in (*others, "http://localhost", f"{ORIGINS[0]}/", ORIGINS[0].upper()):
            refused = await page.options(url, headers={"origin": origin, **preflight})
            assert refused.status_code == 401, origin
            assert "access-control-allow-origin" not in refused.headers, origin
        assert (await page.options(url, headers={"origin": ORIGINS[0]})).status_code == 401


async def test_a_gateway_without_it_has_no_such_path(tmp_path: Path, old: StubTriton) -> None:
    async with running_gateway(tmp_path) as gateway:
        await gateway.traffic.apply(served(old))
        async with httpx.AsyncClient(base_url=gateway.traffic.url, timeout=HANG_S) as client:
            answer = await client.post(PATH, content=b"image")

    error = f"no such path: {PATH}; {PLACES}, if the pool has gateway.plainHttp"
    assert (answer.status_code, answer.json(), old.asked) == (404, {"error": error}, [])
