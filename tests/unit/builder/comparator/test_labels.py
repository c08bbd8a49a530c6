"""The label of a request: where it is read, and what is taken."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from tritonclient.grpc import service_pb2 as pb

from fakes.compared_groups import INFER, copy_of, framed
from segserve_builder.copies.copies import MODEL_INFER, OTHER, read_copy
from segserve_builder.copies.http_server import ReceivedRequest
from segserve_common.kserve import InferRequest, Tensor, encode_http

LONGEST = 40


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
    ["a b", "caf\u00e9", "x" * (LONGEST + 1), "../up", '{"a":1}', "a\nb"],
    ids=lambda label: repr(label)[:20],
)
def test_what_is_no_label_is_counted_as_other(label: str) -> None:
    assert with_parameter("grpc", label) == OTHER
    assert with_parameter("grpc", "x" * LONGEST) == "x" * LONGEST


@pytest.mark.parametrize("entry", [b"\x0a\x0esegserve_slice", b"\x0a\x0esegserve_slice\x12\xff", b"segserve_slice"])
def test_a_damaged_parameter_is_no_label_and_breaks_nothing(entry: bytes) -> None:
    message = b"\x0a\x05coins" + b"\x22" + bytes([len(entry)]) + entry
    copy = read_copy(ReceivedRequest("POST", MODEL_INFER, {}, framed(message)))

    assert copy is None or copy.slice == ""
