"""Bodies that want more of the gateway or of a server than one request may have."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from fakes.gateway_clients import LIMIT
from fakes.grown_messages import MODEL_INFER, framed, message_field
from fakes.guarded_gateway import Guarded, guarded_gateway
from fakes.hostile_caller import INFER, head, reply
from fakes.waiting import HANG_S

pytestmark = pytest.mark.platform

TOO_LARGE = f"the request is too large; at most {LIMIT} bytes are allowed"
GRPC = "application/grpc"
NAME = message_field(1, b"coins")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder: Path = tmp_path_factory.mktemp("gateway")
    with guarded_gateway(folder) as running:
        yield running


def compressed(megabytes: int) -> bytes:
    """Return so many MiB of zeros, as gzip."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(megabytes)) + packer.flush()


def post(gateway: Guarded, content: bytes, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{gateway.running.traffic.url}{INFER}", content=content, headers=named, timeout=HANG_S)


def arrived(gateway: Guarded) -> list[int]:
    """Return the bytes of each request that came to the server since the last call."""
    sizes = [asked.body_bytes for asked in gateway.triton.asked]
    gateway.triton.asked.clear()
    return sizes


def test_a_mebibyte_of_gzip_does_not_become_a_gibibyte_anywhere(gateway: Guarded) -> None:
    bomb = compressed(1024)
    before = gateway.peak_mib

    answer = post(gateway, bomb, content_encoding="gzip")

    assert len(bomb) < 1.1 * 2**20
    assert (answer.status_code, answer.json()) == (413, {"error": TOO_LARGE})
    # One read of 32 KiB at most becomes 33 MiB, twice for a moment.
    assert gateway.peak_mib - before < 80
    assert arrived(gateway) == []
    assert gateway.serves()


def test_a_compressed_body_within_the_limit_arrives_whole_and_plain(gateway: Guarded) -> None:
    noise, black = os.urandom(300_000), bytes(LIMIT)
    arrived(gateway)

    for content in (noise, black):
        # A body that is not JSON: the length of its JSON is 0.
        packed = gzip.compress(content)
        sent = post(gateway, packed, content_encoding="gzip", inference_header_content_length="0")
        assert sent.status_code == 200

    assert [asked.headers.get("content-encoding") for asked in gateway.triton.asked] == [None, None]
    assert arrived(gateway) == [len(noise), len(black)]


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "x-gzip", "gzip, gzip", "gzip, br", "identity, gzip"])
def test_an_encoding_that_is_not_bounded_here_reaches_no_server(gateway: Guarded, encoding: str) -> None:
    arrived(gateway)

    answer = post(gateway, gzip.compress(gzip.compress(b"x" * 1000)), content_encoding=encoding)

    assert answer.status_code == 415
    assert "is not supported; allowed is gzip, once" in answer.json()["error"]
    assert arrived(gateway) == []


def test_two_headers_do_not_hide_a_second_encoding(gateway: Guarded) -> None:
    body = gzip.compress(gzip.compress(b"x" * 1000))
    lines = ("content-encoding: gzip", "content-encoding: gzip", f"content-length: {len(body)}", "connection: close")
    arrived(gateway)

    assert reply(gateway.port, [head(*lines), body]).startswith(b"HTTP/1.1 415 ")
    assert arrived(gateway) == []


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_compressed_grpc_message_is_not_inflated_by_a_server(gateway: Guarded, compression: object) -> None:
    channel = grpc.insecure_channel(gateway.running.authority, compression=compression)
    with channel, pytest.raises(grpc.RpcError, match="compressed gRPC messages are not supported") as caught:
        # The name of no model is read from it, so no filter looks at its frames.
        channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(bytes(LIMIT // 2), timeout=HANG_S)

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def infer(gateway: Guarded, message: bytes, **options: Any) -> tuple[grpc.StatusCode, str]:
    """Send a message, and return what becomes of it."""
    with grpc.insecure_channel(gateway.running.authority) as channel:
        try:
            channel.unary_unary(MODEL_INFER)(message, timeout=HANG_S, **options)
        except grpc.RpcError as error:
            return error.code(), error.details()
    return grpc.StatusCode.OK, ""


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip"])
@pytest.mark.parametrize("message", [NAME, gzip.compress(NAME + bytes(LIMIT))])
def test_a_compressed_body_of_grpc_reaches_no_server(gateway: Guarded, encoding: str, message: bytes) -> None:
    arrived(gateway)

    code, text = infer(gateway, message, metadata=[("content-encoding", encoding)])

    assert (code, "send them uncompressed" in text) == (grpc.StatusCode.UNIMPLEMENTED, True)
    assert arrived(gateway) == []


def filled(message: Message) -> None:
    """Set each field of a message, and of those in it; of alternatives the last one."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            filled(value["key"])
        elif field.message_type is not None:
            filled(value.add() if field.is_repeated else value)
        else:
            sample = b"x" if field.type == field.TYPE_BYTES else "x" if field.type == field.TYPE_STRING else 1
            value.append(sample) if field.is_repeated else setattr(message, field.name, sample)


def test_a_message_with_each_field_of_the_schema_arrives(gateway: Guarded) -> None:
    message = pb.ModelInferRequest()
    filled(message)
    message.model_name = "coins"

    assert infer(gateway, message.SerializeToString()) == (grpc.StatusCode.OK, "")


MANY = {
    "strings": message_field(5, message_field(5, message_field(8, b"") * 2000)),
    "packed numbers": message_field(5, message_field(5, message_field(3, b"\1" * 20_000))),
    "a field that there is not": message_field(15, b""),
    "a group": b"\x7b\x7c",
    "a field of an input that there is not": message_field(5, message_field(6, b"")),
    "a long name": message_field(3, b"a" * 20_000),
    "a second message": framed(b""),
    "outputs far apart": (message_field(6, b"") + message_field(7, bytes(20_000))) * 70,
}


@pytest.mark.parametrize("name", MANY)
def test_what_takes_a_server_many_times_its_bytes_does_not_arrive(gateway: Guarded, name: str) -> None:
    arrived(gateway)

    code, text = infer(gateway, NAME + MANY[name])

    assert code is grpc.StatusCode.INVALID_ARGUMENT, text
    assert arrived(gateway) == []


@pytest.mark.parametrize("method", ["ServerLive", "ModelReady", "ModelStatistics"])
def test_a_question_has_no_more_than_a_name_needs(gateway: Guarded, method: str) -> None:
    path = f"/inference.GRPCInferenceService/{method}"
    channel = grpc.insecure_channel(gateway.running.authority)
    with channel, pytest.raises(grpc.RpcError, match="the message has more than 4096 bytes"):
        channel.unary_unary(path)(message_field(15, bytes(5000)), timeout=HANG_S)


def test_a_message_of_a_method_without_a_model_is_no_way_around_the_limit(gateway: Guarded) -> None:
    channel = grpc.insecure_channel(gateway.running.authority)
    with channel, pytest.raises(grpc.RpcError, match="too large") as caught:
        channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(bytes(LIMIT), timeout=HANG_S)

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("kind", ["application/octet-stream", GRPC, f"{GRPC}+proto"])
def test_a_body_without_end_is_answered_and_let_go_whatever_it_calls_itself(gateway: Guarded, kind: str) -> None:
    before = gateway.peak_mib
    headers = head("transfer-encoding: chunked", f"content-type: {kind}")
    chunks = chain([headers], repeat(b"10000\r\n" + bytes(65536) + b"\r\n"))
    arrived(gateway)

    received = reply(gateway.port, chunks)  # it ends only as the connection does

    assert TOO_LARGE.encode() in received
    assert gateway.peak_mib - before < 30
    assert arrived(gateway) == []


def test_a_hundred_gigabytes_that_are_announced_are_refused_before_they_come(gateway: Guarded) -> None:
    with_length = head("content-length: 107374182400")

    received = reply(gateway.port, [with_length])

    assert received.startswith(b"HTTP/1.1 413 ")
    assert json.loads(received.partition(b"\r\n\r\n")[2]) == {"error": TOO_LARGE}
    assert gateway.serves()


def test_three_megabytes_of_one_byte_chunks_arrive_as_one_body(gateway: Guarded) -> None:
    size = 600_000
    arrived(gateway)

    received = reply(
        gateway.port, [head("transfer-encoding: chunked", "connection: close"), b"1\r\nx\r\n" * size, b"0\r\n\r\n"]
    )

    assert received.startswith(b"HTTP/1.1 200 ")
    assert [asked.headers["content-length"] for asked in gateway.triton.asked] == [str(size)]
    assert arrived(gateway) == [size]


def test_a_stream_is_refused(gateway: Guarded) -> None:
    before = list(gateway.triton.methods)
    with grpc.insecure_channel(gateway.running.authority) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError, match=r"no such method: .*/ModelStreamInfer") as caught:
            list(stub.ModelStreamInfer(iter([pb.ModelInferRequest(model_name="coins")]), timeout=HANG_S))

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert gateway.triton.methods == before
