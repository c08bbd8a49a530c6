"""What callers can get wrong, on the running system: a clear error with the right code, and nobody else is harmed."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2 as pb

from bench.platform import MODELS, Running, platform
from fakes.offenders import offenders
from fakes.waiting import HANG_S
from raw_inference import (
    PROTOCOLS,
    Protocol,
    RawRequest,
    RawTensor,
    check_refused,
    check_serves,
    http_body,
    image,
    pixels,
    png_header,
    post,
    send,
)
from segserve import BadRequestError, Client, ModelNotFoundError, RequestTooLargeError
from segserve_common.kserve import HEADER_LENGTH, pack_bytes

pytestmark = [pytest.mark.platform, pytest.mark.core]

BAD = {"http": 400, "grpc": "INVALID_ARGUMENT"}
UNKNOWN = {"http": 404, "grpc": "NOT_FOUND"}
TOO_LARGE = {"http": 413, "grpc": "RESOURCE_EXHAUSTED"}
LIMIT = 2**18


def photograph() -> Image.Image:
    return Image.open(MODELS.parent / "coins.png")


def saved(kind: str) -> bytes:
    buffer = io.BytesIO()
    photograph().save(buffer, kind)
    return buffer.getvalue()


PNG = saved("PNG")
PIXELS = np.zeros((8, 9, 1), np.uint8)


def sent_image(data: bytes, model: str = "coins", **parameters: Any) -> RawRequest:
    return RawRequest([image(data)], parameters, model=model)


def sent(name: str, datatype: str, shape: list[int], raw: bytes) -> RawRequest:
    return RawRequest([RawTensor(name, datatype, shape, raw)])


FORMATS = "not a JPEG, PNG, WebP or TIFF"
THRESHOLD = "allowed: a number from 0 to 1"
DETECTIONS = "allowed: a whole number from 1 to 10000"
INSTANCES = "coins-instances"
REFUSED: dict[str, tuple[RawRequest, str]] = {
    "no image": (sent_image(b"hello, world"), f"{FORMATS} ... b'hello, w'"),
    "no bytes": (sent_image(b""), f"{FORMATS} ... empty"),
    "a JPEG cut short": (sent_image(saved("JPEG")[:9000]), "JPEG image is damaged or cut short"),
    "a PNG cut short": (sent_image(PNG[:9000]), "PNG image is damaged or cut short"),
    "a GIF": (sent_image(saved("GIF")), f"{FORMATS} ... it is a GIF file"),
    "an EPS": (sent_image(saved("EPS")), f"{FORMATS} ... it is a PostScript file"),
    "a PNG of 60,000 x 60,000": (
        sent_image(png_header(60_000, 60_000)),
        "image of 60000 x 60000 = 3600000000 pixels; allowed are 1 to 16000000",
    ),
    "another input": (RawRequest([image(PNG, name="PICTURE")]), "unexpected inference input 'PICTURE'"),
    "an input twice": (RawRequest([image(PNG), image(PNG)]), "'IMAGE' already exists"),
    # By these words the client asks again without it, as in a rollout only one revision may have it.
    "an output of models that flag images": (
        RawRequest([image(PNG)], outputs=["SIZE", "OUT_OF_DISTRIBUTION"]),
        "unexpected inference output 'OUT_OF_DISTRIBUTION'",
    ),
    "an output that there is not": (RawRequest([image(PNG)], outputs=["BOXES"]), "unexpected inference output 'BOXES'"),
    "IMAGE and PIXELS": (RawRequest([image(PNG), pixels(PIXELS)]), "exactly one of IMAGE and PIXELS ... both"),
    "neither": (RawRequest([]), "exactly one of IMAGE and PIXELS ... neither"),
    "IMAGE as numbers": (sent("IMAGE", "UINT8", [4], bytes(4)), "'UINT8' ... expects 'BYTES'"),
    "IMAGE of no known type": (sent("IMAGE", "TEXT", [1], pack_bytes([PNG])), "expects 'BYTES'"),
    "IMAGE of another rank": (sent("IMAGE", "BYTES", [1, 1], pack_bytes([PNG])), "Expected [1], got [1,1]"),
    "two images in one": (sent("IMAGE", "BYTES", [2], pack_bytes([PNG, PNG])), "Expected [1], got [2]"),
    "more images than said": (sent("IMAGE", "BYTES", [1], pack_bytes([b"", b""])), "elements 2 ... expecting 1"),
    "a huge number of images": (sent("IMAGE", "BYTES", [2**40], b""), "'shape' has more elements"),
    "an image shorter than it says": (
        sent("IMAGE", "BYTES", [1], struct.pack("<I", 2**31) + b"short"),
        "string of length 2147483648 but only 5 bytes",
    ),
    "PIXELS as floats": (sent("PIXELS", "FP32", [8, 9, 1], bytes(288)), "'FP32' ... expects 'UINT8'"),
    "PIXELS of another rank": (sent("PIXELS", "UINT8", [8, 9], bytes(72)), "Expected [-1,-1,1], got [8,9]"),
    "PIXELS of other channels": (sent("PIXELS", "UINT8", [8, 9, 3], bytes(216)), "Expected [-1,-1,1], got [8,9,3]"),
    "PIXELS of no rows": (
        sent("PIXELS", "UINT8", [0, 9, 1], b""),
        "has shape [0, 9, 1]; allowed is [height, width, 1]",
    ),
    "PIXELS with a byte missing": (sent("PIXELS", "UINT8", [8, 9, 1], bytes(71)), "Expected 72, got 71"),
    "PIXELS with a byte too many": (sent("PIXELS", "UINT8", [8, 9, 1], bytes(73)), "Expected 72, got 73"),
    "PIXELS of a huge shape": (sent("PIXELS", "UINT8", [2**31, 2**31, 1], bytes(72)), "'shape' has more elements"),
    "an unknown encoding": (sent_image(PNG, encoding="bmp"), "'bmp'; allowed: rle, polygons, png, raw"),
    "an encoding that is a number": (sent_image(PNG, encoding=5), "is 5; allowed: rle, polygons, png, raw"),
    "an unknown parameter": (sent_image(PNG, colour="red"), "'colour' is not allowed; this model allows: score_thresh"),
    "a threshold for a semantic model": (
        sent_image(PNG, score_threshold=0.5),
        "is for models of task detection",
    ),
    "a number of instances for a semantic model": (
        sent_image(PNG, max_detections=3),
        "is for models of task detection",
    ),
    "a threshold that is NaN": (sent_image(PNG, INSTANCES, score_threshold=float("nan")), f"is nan; {THRESHOLD}"),
    "a threshold that is infinite": (sent_image(PNG, INSTANCES, score_threshold=float("inf")), f"is inf; {THRESHOLD}"),
    "a threshold above 1": (sent_image(PNG, INSTANCES, score_threshold=1.5), f"is 1.5; {THRESHOLD}"),
    "a threshold that is a text": (sent_image(PNG, INSTANCES, score_threshold="high"), f"is 'high'; {THRESHOLD}"),
    "a threshold that is true": (sent_image(PNG, INSTANCES, score_threshold=True), f"is True; {THRESHOLD}"),
    "no instances": (sent_image(PNG, INSTANCES, max_detections=0), f"is 0; {DETECTIONS}"),
    "half an instance": (sent_image(PNG, INSTANCES, max_detections=1.5), f"is 1.5; {DETECTIONS}"),
    "more instances than are kept": (sent_image(PNG, INSTANCES, max_detections=10**6), f"is 1000000; {DETECTIONS}"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_request_that_cannot_be_used_is_told_why_and_the_next_is_served(coins: Running, protocol: Protocol) -> None:
    def check(request: RawRequest, message: str) -> None:
        check_refused(send(coins.url, protocol, request), BAD[protocol], message)
        check_serves(coins.url, protocol, PNG, request.model)

    assert offenders(check, REFUSED) == {}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_unknown_model_is_not_found(coins: Running, protocol: Protocol) -> None:
    for name in ("nope", "Coins", "coins.", "coins.network.network", "../coins"):
        check_refused(send(coins.url, protocol, sent_image(PNG, name)), UNKNOWN[protocol], "")
    check_refused(send(coins.url, protocol, sent_image(PNG, "nope")), UNKNOWN[protocol], "unknown model 'nope'")
    check_serves(coins.url, protocol, PNG)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_hopeless_images_take_no_memory(coins: Running, protocol: Protocol) -> None:
    hopeless = [png_header(60_000, 60_000), saved("JPEG")[:9000], b"", b"hello", PNG[:9000]]
    check_serves(coins.url, protocol, PNG)
    before = coins.memory_mib()

    for _ in range(5):
        for data in hopeless:
            assert send(coins.url, protocol, sent_image(data)).status == BAD[protocol]

    assert coins.memory_mib() - before < 64


HEADER, TENSORS = http_body(sent_image(PNG))
MISSING_FIELDS = "only one of the following fields"
# Triton takes these for a fault of its own, 500; the gateway knows better.
BODIES: dict[str, tuple[int, bytes, str | None, str]] = {
    "nothing": (400, b"", None, "must only have 1 input"),
    "no JSON": (400, b"hello", None, "failed to parse the request JSON"),
    "JSON cut short": (400, HEADER[:30], None, "failed to parse the request JSON"),
    "another JSON": (400, b"[1, 2]", None, "'inputs'"),
    "an object without inputs": (400, b"{}", None, "'inputs'"),
    "inputs that are numbers": (400, b'{"inputs": [1]}', None, MISSING_FIELDS),
    "an input without data": (400, b'{"inputs": [{"name": "IMAGE"}]}', None, MISSING_FIELDS),
    "brackets without end": (400, b"[" * 100_000, None, "no JSON of KServe v2, which begins with '{'"),
    "bytes that are no text": (400, b"\xff\xfe\xff\xfe", None, "failed to parse the request JSON"),
    "a negative dimension": (400, HEADER.replace(b"[1]", b"[-1]") + TENSORS, str(len(HEADER) + 1), "'shape'"),
    "a shape that is a text": (400, HEADER.replace(b"[1]", b'"a"') + TENSORS, str(len(HEADER)), "'shape'"),
    "a header length of 0": (400, HEADER + TENSORS, "0", "must only have 1 input"),
    "a negative header length": (400, HEADER + TENSORS, "-1", "must be one number"),
    "a header length beyond the body": (400, HEADER + TENSORS, "999999999", "in range ... got: 999999999"),
    "a header length beyond 64 bits": (400, HEADER + TENSORS, "18446744073709551617", "in range"),
    "a header length that is no number": (400, HEADER + TENSORS, "many", "must be one number"),
    "a header length within the JSON": (400, HEADER + TENSORS, "9", "failed to parse the request JSON"),
    "fewer bytes than announced": (400, HEADER + TENSORS[:-1], str(len(HEADER)), "'IMAGE', expecting"),
    "more bytes than announced": (400, HEADER + TENSORS + b"x", str(len(HEADER)), "additional input data"),
}


def test_a_malformed_body_is_an_error_and_the_next_request_is_served(coins: Running) -> None:
    def check(status: int, body: bytes, length: str | None, message: str) -> None:
        check_refused(
            post(coins.url, "coins", body, {} if length is None else {HEADER_LENGTH: length}), status, message
        )
        check_serves(coins.url, "http", PNG)

    assert offenders(check, BODIES) == {}


def test_a_body_in_chunks_is_answered_as_a_whole_one_is(coins: Running) -> None:
    def chunks() -> Iterator[bytes]:
        yield HEADER[:10]
        yield HEADER[10:]
        for start in range(0, len(TENSORS), 5000):
            yield TENSORS[start : start + 5000]

    reply = post(coins.url, "coins", chunks(), {HEADER_LENGTH: str(len(HEADER))})

    assert reply.arrays()["LABELS"] == send(coins.url, "http", sent_image(PNG)).arrays()["LABELS"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_client_raises_its_typed_errors(coins: Running, protocol: Protocol) -> None:
    with Client(coins.url, transport=protocol) as client:
        with pytest.raises(BadRequestError, match=r"^image is not a JPEG, PNG, WebP or TIFF file") as bad:
            client.segment(b"hello", model="coins")
        with pytest.raises(BadRequestError, match="score_threshold' is for models of task detection"):
            client.segment(PNG, model="coins", score_threshold=0.5)
        with pytest.raises(BadRequestError, match="PIXELS has 4000 x 4001"):
            client.segment(np.zeros((4001, 4000), np.uint8), model="coins")
        with pytest.raises(ModelNotFoundError, match="unknown model 'nope'") as unknown:
            client.segment(PNG, model="nope")
        assert client.segment(PNG, model="coins").size == (303, 384)

    assert (bad.value.status, bad.value.model) == (BAD[protocol], "coins")
    assert (unknown.value.status, unknown.value.model) == (UNKNOWN[protocol], "nope")


POOL = """\
apiVersion: segserve.dev/v1alpha1
kind: TritonPool
metadata: {name: default}
spec:
  gateway: {maxRequestBytes: %d}
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The same models behind a gateway that takes small requests only; tests may harm it."""
    pool: Path = tmp_path_factory.mktemp("pool") / "pool.yaml"
    pool.write_text(POOL % LIMIT)
    with platform(MODELS, pool) as running:
        yield running


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_request_over_the_pools_limit_is_too_large(small: Running, protocol: Protocol) -> None:
    message = f"too large; at most {LIMIT} bytes are allowed"

    reply = send(small.url, protocol, sent_image(PNG + bytes(8 * LIMIT)))
    with Client(small.url, transport=protocol) as client, pytest.raises(RequestTooLargeError, match=message):
        client.segment(PNG + bytes(8 * LIMIT), model="coins")

    check_refused(reply, TOO_LARGE[protocol], message)
    check_serves(small.url, protocol, PNG)


def as_classes(output: str) -> RawRequest:
    return RawRequest([image(PNG)], outputs=[output], classification=2)


ENDING: dict[str, tuple[Protocol, RawRequest, str]] = {
    "an overflow over HTTP": ("http", sent("PIXELS", "UINT8", [2**32, 2**32, 1], b""), "'shape' has more elements"),
    "an overflow over gRPC": ("grpc", sent("PIXELS", "UINT8", [2**32, 2**32, 1], b""), "'shape' has more elements"),
    "two negative dimensions over gRPC": (
        "grpc",
        sent("PIXELS", "UINT8", [-8, -9, 1], bytes(72)),
        "'shape' has more elements",
    ),
    "strings as classes over HTTP": ("http", as_classes("LABELS"), "'classification' of an output is not supported"),
    "strings as classes over gRPC": ("grpc", as_classes("REVISION"), "'classification' of an output is not supported"),
}


@pytest.mark.parametrize(("protocol", "request_", "message"), ENDING.values(), ids=ENDING)
def test_what_would_end_triton_or_a_step_is_refused_before_it(
    coins: Running, protocol: Protocol, request_: RawRequest, message: str
) -> None:
    """Triton 2.51 multiplies dimensions without looking, and dies of its extension `classification` for BYTES."""
    reply = send(coins.url, protocol, request_)

    check_refused(reply, BAD[protocol], message)
    check_serves(coins.url, protocol, PNG)


def test_a_message_that_triton_cannot_read_is_its_callers_fault(coins: Running) -> None:
    """Triton's library for gRPC takes it for a fault of its own, INTERNAL."""
    text_of_no_text = pb.ModelInferRequest(model_name="coins").SerializeToString() + b"\x1a\x02\xff\xfe"
    with grpc.insecure_channel(coins.url.removeprefix("http://")) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as refused:
            infer(text_of_no_text, timeout=HANG_S)

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


ENDING_JSON = {
    "a shape of 8 TB": (b'{"inputs": [{"name": "PIXELS", "shape": [1099511627776], "data": [1]}]}', "'shape' has more"),
    "a shape in disguise": (b'{"inputs": [{"name": "PIXELS", "\\u0073hape": [1099511627776]}]}', "without escapes"),
    "values in values": (
        b'{"inputs": [{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]}",
        "nested more than 32 deep",
    ),
}


@pytest.mark.parametrize("name", ENDING_JSON)
def test_json_that_would_end_triton_is_refused_before_it(coins: Running, name: str) -> None:
    body, message = ENDING_JSON[name]

    check_refused(
        post(coins.url, "coins", body.replace(b'"PIXELS"', b'"PIXELS", "datatype": "UINT8"'), {}), 400, message
    )
    check_serves(coins.url, "http", PNG)
