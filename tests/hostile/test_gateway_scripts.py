"""Inputs that want to keep a thread of the gateway in a script, or take its memory by one."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from lupa.luajit21 import LuaError, LuaRuntime

from fakes.guarded_gateway import Guarded, guarded_gateway
from fakes.hostile_caller import connected, head
from fakes.waiting import HANG_S, until
from segserve_builder.errors import BUSY
from segserve_common.kserve import HEADER_LENGTH
from segserve_operator.adapters.traffic.envoy_extensions import lua_script
from segserve_operator.adapters.traffic.envoy_plain_http import MAX_PLAIN_BYTES

PLAIN = "/v1/models/coins:segment"
NOTED, MEBIBYTE = "noted", 2**20
BOUNDS = {
    "MARK": "x-plain",
    "PAGE": "/page",
    "MAX_BYTES": 2**26,
    "MAX_JSON_BYTES": 2**26,
    "MOST_ANSWER_BYTES": 2**26,
    "MOST_HELD_BYTES": 2**28,
}
CONSTANTS: dict[str, dict[str, Any]] = {
    "plain_http.lua": {"IS_HEAD": False, "NOTED": NOTED, **BOUNDS},
    "affinity.lua": {"HEADER": "x-camera", "COOKIE": "session", "CALLER": True},
    "route_key.lua": {"NOTED": NOTED, "REPLAY_GROUP": "~", "REPLAYS": "~"},
    "faults.lua": {"RESTART_S": "2", "BUSY": BUSY},
}
JSON = {":path": "/v2/models/coins/infer"}
MESSAGE = {":path": "/inference.GRPCInferenceService/ModelInfer"}
QUICK_S = 0.005
QUARTER = MEBIBYTE // 4 - 64
"""So that four times as much is JSON that is read."""


@dataclass(frozen=True)
class Input:
    """What a caller, or his server, gives a script; `size` is the size that is doubled twice."""

    script: str
    size: int
    headers: Callable[[int], dict[str, str]] = lambda _: {}
    body: Callable[[int], bytes] = lambda _: b""
    noted: dict[str, Any] = field(default_factory=dict)
    route: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    function: str = "envoy_on_request"


def form(content: Callable[[int], bytes], boundary: str = "aa") -> dict[str, Any]:
    """Return the parts of an input that is a form with such an image."""
    start, end = (
        f'--{boundary}\r\nContent-Disposition: ; name="image"\r\n\r\n'.encode(),
        f"\r\n--{boundary}--\r\n".encode(),
    )
    noted = {NOTED: {"model": "coins", "boundary": boundary, "path": PLAIN, "method": "POST"}}
    return {"body": lambda size: start + content(size) + end, "noted": noted}


def answer(size: int, *, name: str = "MASKS") -> bytes:
    """Return an answer with one item of `size` bytes."""
    sizes = {"REVISION": 8, "SIZE": 8, name: size + 4}
    outputs = ",".join(
        f'{{"name":"{key}","datatype":"{"INT32" if key == "SIZE" else "BYTES"}","shape":[1],"parameters":'
        f'{{"binary_data_size":{count}}}}}'
        for key, count in sizes.items()
    )
    header = f'{{"outputs":[{outputs}]}}'.encode()
    return b"".join([header, b"\4\0\0\0main", bytes(8), size.to_bytes(4, "little"), bytes(size)])


def varint(value: int) -> bytes:
    """Return a number of less than 28 bits as protobuf has it, in four bytes."""
    return bytes((value >> 7 * at & 127) | (0 if at == 3 else 128) for at in range(4))


def framed(message: bytes) -> bytes:
    """Return a message as gRPC sends it."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def described(size: int, *, name: str = "MASKS") -> dict[str, str]:
    content = answer(size, name=name)
    length = len(content) - size - 4 - 16
    return {HEADER_LENGTH.lower(): str(length), "content-length": str(len(content))}


ASKED = {NOTED: {"model": "coins", "boundary": "", "path": PLAIN, "method": "POST"}}
SPLIT = {"salt": "s"}
INPUTS = {
    "cookie without a name": Input("affinity.lua", 2**13, lambda n: {"cookie": "a" * n}, route=SPLIT),
    "cookie of spaces": Input("affinity.lua", 2**13, lambda n: {"cookie": " " * n}, route=SPLIT),
    "cookie of pairs": Input("affinity.lua", 2**13, lambda n: {"cookie": "a=;" * (n // 3)}, route=SPLIT),
    "long id": Input("affinity.lua", 2**13, lambda n: {"x-camera": "a" * n, "x-segserve-model": "m"}, route=SPLIT),
    "path of slashes": Input("route_key.lua", 2**13, lambda n: {":path": "/v2/models/" + "a/" * (n // 2)}),
    "headers that go on": Input("forwarded.lua", 2**11, lambda n: {f"x-{at}": "a" * 64 for at in range(n // 64)}),
    "trace context": Input("unsampled.lua", 2**13, lambda n: {"traceparent": "a" * n}),
    "message of a failure": Input(
        "faults.lua", 2**13, lambda n: {":status": "200", "grpc-status": "5", "grpc-message": "'" * n},
        function="envoy_on_response",
    ),
    "query of options": Input(
        "plain_http.lua", 2**11, constants={"IS_HEAD": True},
        headers=lambda n: {"accept": "*" * n, "content-type": "multipart/form-data; " + 'boundary="' * (n // 10)},
        noted={NOTED: {"path": PLAIN, "method": "POST"}},
    ),
    **{
        f"content type of {name}": Input(
            "plain_http.lua", 2**12, constants={"IS_HEAD": True}, noted={NOTED: {"path": PLAIN, "method": "POST"}},
            headers=lambda n, piece=piece: {"content-type": "multipart/form-data" + piece * (n // len(piece))},
        )
        for name, piece in {
            "separators": ";", "spaces": "; ", "one name": ";a", "digits": "1", "marks": ";a*1", "sections": ";b*1=a",
            "quotes": ';a="', "backslashes": ';a="\\', "escapes": ";a*=%41'", "a quoted string": "\\",
        }.items()
    },
    "heads of parts": Input(
        "plain_http.lua", 2**11, noted=form(bytes)["noted"],
        body=lambda n: b"--aa\r\nContent-Disposition: x" + b'\r\n\t;a="\\b"' * (n // 12) + b"\r\n\r\n\r\n--aa--",
    ),
    "body of curl -d": Input(
        "plain_http.lua", 2**22, body=lambda n: b"\xff\xd8\xff" + b"a" * n,
        noted={NOTED: {**form(bytes)["noted"][NOTED], "boundary": "", "is_unlabelled": "true"}},
    ),
    "numbers of JSON": Input(
        "inference_requests.lua", QUARTER, lambda _: JSON, lambda n: b'{"data":[' + b"255," * (n // 4) + b"1]}"
    ),
    "names of JSON": Input(
        "inference_requests.lua", QUARTER, lambda _: JSON, lambda n: b"[" + b'{"shape":[1]},' * (n // 14) + b"1]"
    ),
    "spaces of JSON": Input("inference_requests.lua", QUARTER, lambda _: JSON, lambda n: b'"a"' + b" " * n),
    "fields of a message": Input(
        "grpc_messages.lua", 2**12, lambda _: MESSAGE, lambda n: framed(b"\x2a\x05\x1a\x03\1\1\1" * (n // 7))
    ),
    "sizes of a shape": Input(
        "grpc_messages.lua",
        2**18,
        lambda _: MESSAGE,
        lambda n: framed(b"\x2a" + varint(n + 5) + b"\x1a" + varint(n) + b"\1" * n),
    ),
    "image": Input("plain_http.lua", 2**22, body=bytes, noted=ASKED),
    "form of returns": Input("plain_http.lua", 2**22, **form(lambda n: b"\r" * n)),
    "form of dashes": Input("plain_http.lua", 2**22, **form(lambda n: b"-" * n, "-" * 70)),
    "form of half delimiters": Input("plain_http.lua", 2**22, **form(lambda n: b"\r\n--a" * (n // 5))),
    "form of returns and ends": Input("plain_http.lua", 2**22, **form(lambda n: b"\r\r\r\r\raaaaa" * (n // 10))),
    "part's head": Input("plain_http.lua", 2**22, body=lambda n: b"--aa\r\n" + b";" * n, noted=form(bytes)["noted"]),
    "mask": Input(
        "plain_http.lua", 2**22, lambda n: {":status": "200", **described(n)}, answer, ASKED,
        function="envoy_on_response",
    ),
    "error": Input(
        "plain_http.lua", 2**18, lambda _: {":status": "400"}, lambda n: b'{"error": "' + b'" ' * (n // 2), ASKED,
        function="envoy_on_response",
    ),
}  # fmt: skip


def seconds(case: Input, size: int) -> float:
    """Return the least processor time that the script takes for an input of this size."""
    lua = LuaRuntime(encoding=None)  # type: ignore[call-arg]
    lua.execute(Path(__file__).with_name("handle.lua").read_bytes())
    lua.execute(lua_script(case.script, **CONSTANTS.get(case.script, {}) | case.constants).encode())
    run, handle_of = lua.globals()[case.function.encode()], lua.globals()[b"handle_of"]
    body, took = case.body(size), []
    for _ in range(3):
        parts = [_table(lua, each) for each in (case.headers(size), case.noted, case.route)]
        handle = handle_of(parts[0], body, *parts[1:])
        began = time.thread_time()
        try:
            run(handle)
        except LuaError as error:
            assert "refused: " in str(error)  # noqa: PT017
        took.append(time.thread_time() - began)
    return min(took)


def _table(lua: Any, content: dict[str, Any]) -> Any:
    made = lua.table()
    for key, value in content.items():
        made[key.encode()] = _table(lua, value) if isinstance(value, dict) else value.encode()
    return made


@pytest.mark.parametrize("name", INPUTS)
def test_the_time_of_a_script_grows_as_its_input_does(name: str) -> None:
    """Four times the input takes 16 times as long where a script looks anew at each of its bytes."""
    case = INPUTS[name]

    least, most = seconds(case, case.size), seconds(case, 4 * case.size)

    assert most < QUICK_S or most < 9 * least, f"{least:.4f} s for {case.size}, {most:.4f} s for four times as much"


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Guarded]:
    with guarded_gateway(tmp_path, max_request_bytes=4 * MAX_PLAIN_BYTES, plain_http=True) as running:
        yield running


def ask(gateway: Guarded, content: bytes = b"image", **options: Any) -> httpx.Response:
    return httpx.post(f"{gateway.running.traffic.url}{PLAIN}", content=content, timeout=HANG_S, **options)


def test_an_image_that_a_few_bytes_become_is_refused_above_a_bound_of_its_own(gateway: Guarded) -> None:
    bomb = gzip.compress(bytes(MAX_PLAIN_BYTES + 1))

    answered = ask(gateway, bomb, headers={"content-encoding": "gzip"})

    assert (answered.status_code, answered.json()["detail"]) == (
        413,
        f"the image is too large for plain HTTP: at most {MAX_PLAIN_BYTES} bytes are allowed, and "
        f"{4 * MAX_PLAIN_BYTES} by POST /v2/models/NAME/infer",
    )
    assert gateway.triton.asked == []


@pytest.mark.parametrize(
    ("content_type", "most"),
    [("image/png", MAX_PLAIN_BYTES - 1000), ("application/json", 4 * MAX_PLAIN_BYTES // 3)],
    ids=["image", "JSON"],
)
def test_many_images_at_once_take_no_more_memory_than_their_bytes(
    gateway: Guarded, content_type: str, most: int
) -> None:
    """A script's memory is not in what Envoy bounds: each image was in it three times, until it was collected."""
    bomb = gzip.compress(bytes(most))
    kind = ("content-encoding: gzip", f"content-type: {content_type}", "connection: close")
    request = head(*kind, f"content-length: {len(bomb)}", path=PLAIN) + bomb
    with ExitStack() as stack:
        callers = [stack.enter_context(connected(gateway.port)) for _ in range(24)]
        for caller in callers:
            caller.sendall(request)
        first = [caller.recv(12) for caller in callers]

    assert first == [b"HTTP/1.1 200"] * len(callers)
    assert gateway.peak_mib < 2 * len(callers) * most / MEBIBYTE


def test_an_answer_beyond_the_bound_is_a_problem_that_says_what_to_do(gateway: Guarded) -> None:
    gateway.triton.said = (described(MAX_PLAIN_BYTES), answer(MAX_PLAIN_BYTES))

    answered = ask(gateway)

    assert answered.status_code == 422
    assert answered.json()["detail"].endswith(
        f" bytes, and plain HTTP allows {MAX_PLAIN_BYTES}; request encoding=rle, or POST /v2/models/coins/infer"
    )


@pytest.mark.parametrize("size", [100, 4 * MEBIBYTE])
def test_a_label_map_of_any_size_is_the_body_for_a_caller_that_requests_it(gateway: Guarded, size: int) -> None:
    gateway.triton.said = (described(size, name="LABELS"), answer(size, name="LABELS"))

    answered = ask(gateway, params={"picture": "labels"})

    assert (answered.status_code, answered.headers["content-type"]) == (200, "image/png")
    assert answered.content == bytes(size)
    gateway.triton.said = (described(100), answer(100))
    answered = ask(gateway, params={"picture": "labels"})
    assert (answered.status_code, answered.headers["content-type"]) == (406, "application/problem+json")
    assert answered.json()["detail"].startswith("the model answers no label map: leave out picture=labels")


@pytest.mark.parametrize("size", [100, 4 * MEBIBYTE])
def test_an_overlay_of_any_size_is_the_body_for_a_caller_that_accepts_pictures(gateway: Guarded, size: int) -> None:
    gateway.triton.said = (described(size, name="OVERLAY"), answer(size, name="OVERLAY"))

    for kind in ("image/png", "image/webp"):
        answered = ask(gateway, headers={"accept": kind})
        assert (answered.status_code, answered.headers["content-type"]) == (200, kind)
        assert answered.content == bytes(size)
    gateway.triton.said = (described(MAX_PLAIN_BYTES), answer(MAX_PLAIN_BYTES))
    for kind, other in (("image/png", "image/webp"), ("image/webp", "application/json")):
        assert f"; request {other}, or POST" in ask(gateway, headers={"accept": kind}).json()["detail"]


def test_answers_that_are_held_for_others_are_bounded_until_they_end(gateway: Guarded) -> None:
    size = MAX_PLAIN_BYTES - 1000
    whole = answer(size)
    gateway.triton.said = (described(size), whole[:1000])  # the rest does not come
    request = head("content-length: 1", path=PLAIN) + b"x"
    with ExitStack() as stack:
        for number in range(1, 5):
            stack.enter_context(connected(gateway.port)).sendall(request)
            until(lambda number=number: len(gateway.triton.asked) == number, "the server is asked")
        gateway.triton.said = (described(size), whole)

        refused = ask(gateway)

        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["detail"] == "too many large answers are under way; try again"

    until(lambda: ask(gateway).status_code == 200, "those whose callers have left are forgotten")
