"""The label of a request: where it is read, what is taken, and that pairs are counted by it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from fakes.compared_groups import COMPARISON, INFER, World, comparing, copy_of, framed
from segserve_builder.comparator.tally import MAX_SLICES, PairTally
from segserve_builder.copies.copies import MODEL_INFER, OTHER, read_copy
from segserve_builder.copies.groups import Answer, AnswerKind
from segserve_builder.copies.http_server import ReceivedRequest
from segserve_common.kserve import InferRequest, Tensor, encode_http
from segserve_operator.core.evidence import MAX_LABEL_LENGTH


@pytest.fixture(params=["http", "grpc"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with comparing(request.param) as compared:
        compared.compare(coins=COMPARISON)
        yield compared


def label_of(target: str, body: bytes, headers: Mapping[str, str]) -> str:
    lower = {name.lower(): value for name, value in headers.items()}
    copy = read_copy(ReceivedRequest("POST", target, lower, body))
    assert copy is not None
    return copy.slice


def with_headers(**headers: str) -> str:
    copy = copy_of("http", b"an image")
    return label_of(INFER, copy["content"], {**copy["headers"], **headers})


def with_parameter(protocol: str, label: str, **headers: str) -> str:
    if protocol == "grpc":
        message = pb.ModelInferRequest(model_name="coins")
        message.parameters["encoding"].string_param = "rle"
        message.parameters["segserve_slice"].string_param = label
        return label_of(MODEL_INFER, framed(message.SerializeToString()), headers)
    parameters = {"encoding": "rle", "segserve_slice": label}
    own, body = encode_http(InferRequest("coins", (Tensor.of_items("IMAGE", [b"x"]),), parameters=parameters))
    return label_of(INFER, body, {**own, **headers})


async def test_pairs_are_counted_by_the_label_of_their_request_and_those_without_one_in_no_slice(world: World) -> None:
    await world.warm_up()
    world.servers.answers["green"] = 500 if world.protocol == "http" else b""
    await world.send(**{"x-segserve-slice": "camera-7"})
    await world.idle()
    world.servers.answers["green"] = b""
    for _ in range(2):
        await world.send(baggage="segserve.slice=camera-8")
    await world.send_all(1)

    pairs = (await world.pairs())["coins"]

    failed = {each["name"]: each["failed"] for each in pairs["slices"]}
    assert failed == {"camera-7": [0, 1, 0, 0] if world.protocol == "http" else [1, 0, 0, 0], "camera-8": [2, 0, 0, 0]}
    assert sum(pairs["failed"]) == 4
    assert {each["name"]: sum(each["ratios"]) for each in pairs["slices"]}["camera-8"] == 2


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_parameter_of_the_request_is_its_label_and_its_header_comes_first(protocol: str) -> None:
    assert with_parameter(protocol, "site_2.north") == "site_2.north"
    assert with_parameter(protocol, "site_2", **{"x-segserve-slice": "camera-7"}) == "camera-7"
    assert with_parameter(protocol, "site_2", baggage="segserve.slice=camera-7") == "site_2"


def test_baggage_is_read_as_opentelemetry_writes_it() -> None:
    assert with_headers(baggage="user=ann;ttl=5, segserve.slice = scan%2D3 ;p=1,last=x") == "scan-3"
    assert with_headers(baggage="user=ann") == ""


@pytest.mark.parametrize(
    "label",
    ["a b", "caf\u00e9", "x" * (MAX_LABEL_LENGTH + 1), "../up", '{"a":1}', "a\nb"],
    ids=lambda label: repr(label)[:20],
)
def test_what_is_no_label_is_counted_as_other(label: str) -> None:
    assert with_parameter("grpc", label) == OTHER
    assert with_parameter("grpc", "x" * MAX_LABEL_LENGTH) == "x" * MAX_LABEL_LENGTH


@pytest.mark.parametrize("entry", [b"\x0a\x0esegserve_slice", b"\x0a\x0esegserve_slice\x12\xff", b"segserve_slice"])
def test_a_damaged_parameter_is_no_label_and_breaks_nothing(entry: bytes) -> None:
    message = b"\x0a\x05coins" + b"\x22" + bytes([len(entry)]) + entry
    copy = read_copy(ReceivedRequest("POST", MODEL_INFER, {}, framed(message)))

    assert copy is None or copy.slice == ""


def test_labels_beyond_the_two_hundredth_are_counted_together() -> None:
    tally, answer = PairTally("1", "blue", "green"), Answer(AnswerKind.ANSWERED, 0.1)
    for number in range(MAX_SLICES + 50):
        tally.count(answer, answer, f"camera-{number}")
    tally.count(answer, answer, "camera-0")
    counted: dict[str, Any] = {each["name"]: sum(each["failed"]) for each in tally.to_json()["slices"]}

    assert len(counted) == MAX_SLICES + 1
    assert (counted[OTHER], counted["camera-0"]) == (50, 2)
    assert sum(tally.failed) == MAX_SLICES + 51
