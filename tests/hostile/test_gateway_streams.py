"""Streams that want more than the model of their first message, where a pool allows streams."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from fakes.gateway_clients import LIMIT, STEP
from fakes.guarded_gateway import Guarded, guarded_gateway
from fakes.hostile_caller import Http2Caller, connected
from fakes.waiting import HANG_S, until

pytestmark = pytest.mark.platform

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
REFUSED = "(refused: a stream is for the model of its first message)"
COINS = b"\x0a\x05coins"
ELSEWHERE = b"\x0a" + bytes([len(STEP)]) + STEP.encode()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder: Path = tmp_path_factory.mktemp("gateway")
    with guarded_gateway(folder, streams=True) as running:
        yield running


def streamed(gateway: Guarded, *messages: bytes) -> tuple[list[str], grpc.StatusCode]:
    """Send these messages in one stream; return the models that the server was asked for, and how the stream ended."""
    gateway.triton.streamed.clear()
    with grpc.insecure_channel(gateway.running.authority) as channel:
        call: Any = channel.stream_stream(STREAM)(iter(messages), timeout=HANG_S)
        try:
            list(call)
        except grpc.RpcError as error:
            return list(gateway.triton.streamed), error.code()
        return list(gateway.triton.streamed), call.code()


def test_a_second_message_to_another_model_or_a_hidden_step_reaches_neither(gateway: Guarded) -> None:
    other = pb.ModelInferRequest(model_name="coins-instances", id="1").SerializeToString()

    asked, code = streamed(gateway, COINS, other, ELSEWHERE, COINS)

    assert asked == ["coins", REFUSED, REFUSED, "coins"]
    assert code is grpc.StatusCode.OK


FIELD_3 = b"\x1a\x01x"
FIRST = {
    "its name": ELSEWHERE,
    "its name behind another field": FIELD_3 + ELSEWHERE,
    "its name behind that of a model": COINS + ELSEWHERE,
    "its name behind others": FIELD_3 + COINS + ELSEWHERE,
}


@pytest.mark.parametrize("message", FIRST.values(), ids=FIRST)
def test_a_first_message_to_a_hidden_step_begins_no_stream(gateway: Guarded, message: bytes) -> None:
    asked, code = streamed(gateway, message, COINS)

    assert asked == []
    assert code is not grpc.StatusCode.OK


HIDDEN_NAMES = {
    "a name behind other fields": FIELD_3 + ELSEWHERE,
    "no name": FIELD_3,
    "nothing": b"",
    "a name that goes beyond its message": b"\x0a\x7fcoins",
    "a longer name": b"\x0a\x06coins2",
}


@pytest.mark.parametrize("message", HIDDEN_NAMES.values(), ids=HIDDEN_NAMES)
def test_a_message_whose_name_is_not_where_clients_write_it_is_refused(gateway: Guarded, message: bytes) -> None:
    assert streamed(gateway, COINS, message, COINS) == (["coins", REFUSED, "coins"], grpc.StatusCode.OK)


UNREADABLE = {
    "a second name, which Triton would read": COINS + FIELD_3 + ELSEWHERE,
    "a second name in a key of three bytes": COINS + b"\x8a\x80\x00" + ELSEWHERE[1:],
    "a second name in a key beyond 32 bits": COINS + b"\x8a\x80\x80\x80\x10" + ELSEWHERE[1:],
    "a group": COINS + b"\x4b" + ELSEWHERE + b"\x4c",
    "a field that goes beyond its message": COINS + b"\x1a\x7f",
    "a number without end": COINS + b"\x18" + b"\xff" * 20,
    "a key of an unknown kind": COINS + b"\x1f",
    "more fields than any request has": COINS + FIELD_3 * 5000,
}


@pytest.mark.parametrize("message", UNREADABLE.values(), ids=UNREADABLE)
def test_a_message_that_two_readers_may_read_differently_ends_the_stream(gateway: Guarded, message: bytes) -> None:
    asked, code = streamed(gateway, COINS, message, ELSEWHERE, COINS)

    assert asked == ["coins"]
    assert code is not grpc.StatusCode.OK


def test_each_message_has_the_limit_and_the_stream_has_none(gateway: Guarded) -> None:
    large = COINS + b"\x3a" + b"\x80\x80\x60" + bytes(0x60 << 14)  # 1.5 MiB of field 7
    beyond = COINS + b"\x3a" + b"\x80\x80\x80\x01" + bytes(1 << 21)

    asked, code = streamed(gateway, COINS, large, large, beyond, large)

    assert len(beyond) > LIMIT > len(large)
    too_large = f"(refused: the message is too large; at most {LIMIT} bytes are allowed)"
    assert asked == ["coins", "coins", "coins", too_large, "coins"]
    assert code is grpc.StatusCode.OK


@pytest.mark.parametrize("seed", range(6))
def test_no_cut_of_the_bytes_into_frames_lets_another_model_through(gateway: Guarded, seed: int) -> None:
    random = Random(seed)
    messages = [COINS, *random.choices([COINS, COINS + FIELD_3 * 3, ELSEWHERE, FIELD_3 + ELSEWHERE, b""], k=60)]
    stream = b"".join(b"\0" + len(message).to_bytes(4, "big") + message for message in messages)
    expected = ["coins" if message.startswith(COINS) else REFUSED for message in messages]
    gateway.triton.streamed.clear()

    with connected(gateway.port) as connection:
        caller = Http2Caller(connection, STREAM, ("content-type", "application/grpc"), ("te", "trailers"))
        while stream:
            size = random.choice([1, 2, 3, 5, 8, 40])
            caller.send(stream[:size])
            stream = stream[size:]
        until(lambda: len(gateway.triton.streamed) >= len(expected), "all messages have arrived")

    assert gateway.triton.streamed == expected
