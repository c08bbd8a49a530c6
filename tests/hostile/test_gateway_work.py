"""What a request costs the gateway's thread is bounded by a constant, its bytes and its frames, whatever it has.

Requests are made of a grammar for each protocol: units that a script looks at, repeated to a size.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.grown_messages import MODEL_INFER, framed, grown_messages, message_field, varint
from fakes.guarded_gateway import Guarded, guarded_gateway
from fakes.hostile_caller import INFER, Http2Caller, connected
from fakes.waiting import HANG_S
from segserve_common.kserve import HEADER_LENGTH
from segserve_operator.adapters.traffic.envoy_plain_http import MAX_PLAIN_BYTES
from segserve_operator.api.session_affinity import SessionAffinity

MEBIBYTE = 2**20
CONSTANT_S, BY_MEBIBYTE_S, BY_FRAME_S = 0.030, 0.004, 8e-6
LOOKS = 4
"""A busy machine makes a request dearer, never cheaper: the cheapest look of some counts."""
PLAIN = "/v1/models/coins:segment"
MOST_BYTES, MOST_JSON, MOST_HEADERS = 64 * MEBIBYTE - 4096, MEBIBYTE, 48 * 1024


@dataclass(frozen=True)
class Call:
    """A request; its body is repeated units, so that an example stays readable."""

    path: str
    before: bytes = b""
    unit: bytes = b""
    count: int = 0
    after: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    is_gzip: bool = False
    frame_bytes: int = 16384

    @property
    def body(self) -> bytes:
        """The body as it is unpacked."""
        whole = self.before + self.unit * self.count + self.after
        return framed(whole) if self.path == MODEL_INFER else whole


NAME = message_field(1, b"coins")


def repeated(most: int, unit: bytes) -> st.SearchStrategy[int]:
    """Draw how often a unit is repeated: up to 1 kB, up to the most, and any number between them."""
    bound = max(1, most // max(1, len(unit)))
    return st.sampled_from(sorted({min(bound, 1 + size // max(1, len(unit))) for size in (1024, 2**16, 2**20, most)}))


# The least that Envoy does not join to what came before, and the most that HTTP/2 allows.
FRAMES = st.sampled_from([513, 16384])


@st.composite
def messages(draw: st.DrawFn) -> Call:
    """Draw a gRPC message whose fields repeat at its top, in one input, or as numbers of one field."""
    content = draw(
        st.sampled_from([b"", b"\1", b"\x80", b"\xff" * 9 + b"\1", b"\x1a\3\1\1\1", b"\x18\1", b"IMAGE", b"\x0a" * 7])
    )
    number = draw(st.integers(1, 8))
    within = draw(st.sampled_from(["top", "numbers", "input", "inputs"]))
    unit = content if within == "numbers" else message_field(number, content)
    count = draw(repeated(MOST_BYTES, unit))
    size = len(unit) * count
    match within:
        case "top":
            before = NAME
        case "input":
            before = NAME + varint(5 << 3 | 2) + varint(size)
        case "inputs":
            unit, before = message_field(5, unit), NAME
            count = min(count, MOST_BYTES // len(unit))
        case _:
            inner = varint(number << 3 | 2) + varint(size)
            before = NAME + varint(5 << 3 | 2) + varint(len(inner) + size) + inner
    frame_bytes = draw(FRAMES) if size <= 4 * MEBIBYTE else 16384
    return Call(MODEL_INFER, before, unit, count, frame_bytes=frame_bytes)


@st.composite
def grown(draw: st.DrawFn) -> Call:
    """Draw a message in which a field that the schema has, or has not, is repeated."""
    message = draw(st.sampled_from(list(grown_messages())))
    size = draw(st.sampled_from([1024, 2**16, 2**20, 4 * MEBIBYTE]))
    return Call(MODEL_INFER, before=message.to_bytes(size), frame_bytes=draw(FRAMES))


JSON_TOKENS = [
    *('"shape":', '"classification"', '"a"', '""', '"\\\\"', '"', "\\", ":", ",", "[", "]", "{", "}", " ", "\n"),
    *("1", "255,", "1,", "0", "-1", "1e9", "[1],", "[1,1,1]", '{"shape":[1]},', "\xff"),
]


@st.composite
def json_bodies(draw: st.DrawFn) -> Call:
    """Draw JSON, mostly broken, with some KServe v2 before it."""
    unit = "".join(draw(st.lists(st.sampled_from(JSON_TOKENS), min_size=1, max_size=8))).encode("latin-1")
    before = draw(st.sampled_from([b"", b'{"inputs":[{"shape":[', b'{"inputs":[{"data":[', b'{"a":"', b"[" * 31]))
    count = draw(repeated(MOST_JSON - len(before), unit))
    return Call(INFER, before, unit, count, is_gzip=draw(st.booleans()))


@st.composite
def binary_bodies(draw: st.DrawFn) -> Call:
    """Draw a body of KServe v2 with binary data, whose JSON has the length that the header says, or not."""
    length = draw(st.sampled_from(["0", "13", "1024", str(MEBIBYTE), str(MOST_BYTES), "9" * 40, "1" * 5000]))
    unit = draw(st.sampled_from([b"\0", b"[", b'"', b'"a":']))
    count = draw(repeated(MOST_BYTES, unit))
    return Call(INFER, b'{"inputs":[]}', unit, count, headers={HEADER_LENGTH: length}, is_gzip=draw(st.booleans()))


@st.composite
def forms(draw: st.DrawFn) -> Call:
    """Draw a form, or an image, for plain HTTP."""
    boundary = draw(st.sampled_from(["a", "aa", "ab", "-" * 24 + "0123456789abcdef", "-" * 70, "\ra", "aab" * 23]))
    start = f'--{boundary}\r\ncontent-disposition: form-data; name="image"\r\n\r\n'
    tokens = [
        *(
            "\r",
            "\n",
            "\r\n",
            "-",
            "--",
            "\0",
            "a",
            ";",
            '"',
            f"\r\n--{boundary[:-1]}",
            f"\r\n--{boundary}",
            "\r\n\r\n",
        ),
        *(
            "\r\n-",
            f'\r\n--{boundary}\r\nx: ; name="image"\r\n\r\n',
            f'\r\n--{boundary}\r\nx: ; name="encoding"\r\n\r\n',
        ),
    ]
    unit = "".join(draw(st.lists(st.sampled_from(tokens), min_size=1, max_size=4))).encode()
    before = draw(st.sampled_from([start, "", start[: len(boundary) + 4]])).encode()
    kind = draw(st.sampled_from(["image/png", f"multipart/form-data; boundary={boundary}"]))
    count = draw(repeated(MAX_PLAIN_BYTES - 1024, unit))
    after = draw(st.sampled_from(["", f"\r\n--{boundary}--\r\n"])).encode()
    headers = {"content-type": kind.replace("\r", "")}
    return Call(PLAIN, before, unit, count, after, headers, is_gzip=draw(st.booleans()))


READ_HEADERS = [
    *("cookie", "x-camera", "x-sequence-id", "x-request-id", "traceparent", "tracestate", "accept", "content-type"),
    *("x-segserve-slice", "origin", "content-encoding", "grpc-encoding", HEADER_LENGTH, "authorization", "x-other"),
]


@st.composite
def heads(draw: st.DrawFn) -> Call:
    """Draw a request with a long header, or a long path."""
    tokens = [
        "a",
        "=",
        ";",
        "a=;",
        "visitor=",
        "%41",
        "*",
        "*/*,",
        '"',
        "\t",
        " ",
        ",",
        "-",
        "/",
        "&",
        "boundary=",
        "a/",
        "'",
    ]
    unit = "".join(draw(st.lists(st.sampled_from(tokens), min_size=1, max_size=5)))
    text = unit * draw(repeated(MOST_HEADERS, unit.encode()))
    path = draw(st.sampled_from([INFER, PLAIN, "/v2/models/", f"{PLAIN}?", "/"]))
    if draw(st.booleans()) and " " not in text and '"' not in text and "\t" not in text:
        return Call(path + text, b"x", headers={})
    name = draw(st.sampled_from(READ_HEADERS))
    kind = {} if name == "content-type" else {"content-type": draw(st.sampled_from(["", "multipart/form-data;"]))}
    return Call(path, b"x", headers={**kind, name: text.strip() or "a"})


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    affinity = SessionAffinity(header="x-camera", cookie="visitor")
    folder = tmp_path_factory.mktemp("gateway")
    with guarded_gateway(folder, max_request_bytes=64 * MEBIBYTE, plain_http=True, affinity=affinity) as running:
        for call in (Call(INFER, b'{"a":1}'), Call(MODEL_INFER, NAME), Call(PLAIN, b"x")):
            send(running, call)  # what a connection to a server costs is no part of a request
        yield running


def processor_s(gateway: Guarded) -> float:
    """Return what Envoy's threads have run, in seconds."""
    tasks = Path(f"/proc/{gateway.running.process.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def send(gateway: Guarded, call: Call) -> None:
    """Send a request and wait for the end of its answer, whatever that is."""
    body, headers = call.body, dict(call.headers)
    if call.is_gzip:
        body, headers["content-encoding"] = gzip.compress(body, 1), "gzip"
    if call.path != MODEL_INFER:
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        with suppress(httpx.RemoteProtocolError):  # of a head that Envoy does not read
            httpx.post(f"{gateway.running.traffic.url}{call.path}", content=body, headers=raw, timeout=HANG_S)
        return
    headers |= {"content-type": "application/grpc", "te": "trailers"}
    with connected(gateway.port) as connection, suppress(ConnectionError):  # of a request refused before its end
        caller = Http2Caller(connection, call.path, *headers.items())
        for at in range(0, len(body), call.frame_bytes):
            caller.send(body[at : at + call.frame_bytes])
        caller.end()


def within_bounds(gateway: Guarded, call: Call) -> None:
    """Check that a request costs at most the constant, and a share for each MiB of its unpacked body and frame."""
    size = len(call.body)
    allowed = CONSTANT_S + BY_MEBIBYTE_S * size / MEBIBYTE + BY_FRAME_S * size / call.frame_bytes
    took = []
    for _ in range(LOOKS):
        before = processor_s(gateway)
        send(gateway, call)
        took.append(processor_s(gateway) - before)
        if took[-1] <= allowed:
            return
    pytest.fail(f"{min(took):.4f} s of Envoy's threads, allowed are {allowed:.4f}")


def of_input(content: bytes) -> bytes:
    return message_field(5, content)


SHAPE = varint(3 << 3 | 2)
FIXED = {
    "sizes of a shape": Call(
        MODEL_INFER,
        NAME + b"\x2a" + varint(4 * MEBIBYTE + 5) + SHAPE + varint(4 * MEBIBYTE),
        b"\1",
        4 * MEBIBYTE,
    ),
    "sizes, each a field": Call(MODEL_INFER, NAME + b"\x2a" + varint(4 * MEBIBYTE), b"\x18\1", 2 * MEBIBYTE),
    "inputs of short fields": Call(MODEL_INFER, NAME, of_input(message_field(1, b"a") * 200), 5000),
    "inputs with gaps": Call(MODEL_INFER, NAME, of_input(message_field(1, bytes(4000))), 4000),
    "outputs": Call(MODEL_INFER, NAME, message_field(6, bytes(4000)), 4000),
    "outputs in small frames": Call(
        MODEL_INFER, NAME, message_field(6, bytes(4000)), 1000, message_field(7, bytes(12 * MEBIBYTE)), frame_bytes=513
    ),
    "outputs behind raw data in small frames": Call(
        MODEL_INFER, message_field(7, bytes(12 * MEBIBYTE)), message_field(6, bytes(4000)), 1000, frame_bytes=513
    ),
    "raw data in small frames": Call(MODEL_INFER, NAME, message_field(7, bytes(20_000)), 800, frame_bytes=513),
    "empty names": Call(MODEL_INFER, NAME, b"\n\0", 4 * MEBIBYTE),
    "parameters": Call(MODEL_INFER, NAME, message_field(4, b"a"), 2**20),
    "an image of 60 MiB": Call(MODEL_INFER, NAME + varint(7 << 3 | 2) + varint(60 * MEBIBYTE), b"\0", 60 * MEBIBYTE),
    "numbers of JSON": Call(INFER, b'{"a":[', b"255,", MOST_JSON // 4 - 2),
    "sizes of JSON": Call(INFER, b'{"shape":[', b"1,", MOST_JSON // 2 - 8, is_gzip=True),
    "shapes of JSON": Call(INFER, b"[", b'{"shape":[1]},', MOST_JSON // 14 - 1),
    "strings of JSON": Call(INFER, b"[", b'"",', MOST_JSON // 3 - 1),
    "JSON beyond its bound": Call(INFER, b"[", b'"a":1,', 2 * MEBIBYTE),
    "image": Call(PLAIN, b"", b"\r", MAX_PLAIN_BYTES - 1024),
    "form of returns": Call(
        PLAIN,
        b"--a\r\nx: y\r\n\r\n",
        b"\r",
        8 * MEBIBYTE,
        b"\r\n--a--\r\n",
        {"content-type": "multipart/form-data; boundary=a"},
    ),
    "form of half delimiters": Call(
        PLAIN,
        b"--ab\r\nx: y\r\n\r\n",
        b"\r\n--a",
        MEBIBYTE,
        b"\r\n--ab--\r\n",
        {"content-type": "multipart/form-data; boundary=ab"},
    ),
    "cookies": Call(INFER, b"x", headers={"cookie": "a=;" * (MOST_HEADERS // 3)}),
    "accepted types": Call(PLAIN, b"x", headers={"accept": "*" * MOST_HEADERS}),
}


@pytest.mark.parametrize("name", FIXED)
def test_a_request_costs_at_most_30_ms_4_ms_a_mebibyte_and_8_us_a_frame(gateway: Guarded, name: str) -> None:
    within_bounds(gateway, FIXED[name])

    assert gateway.serves()


@given(st.one_of(messages(), grown(), json_bodies(), binary_bodies(), forms(), heads()))
def test_whatever_a_request_has_it_costs_no_more(gateway: Guarded, call: Call) -> None:
    within_bounds(gateway, call)
