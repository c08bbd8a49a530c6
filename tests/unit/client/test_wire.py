"""The wire's bytes are those that tritonclient makes and reads, and nothing malformed gets through."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from segserve.calls.endpoint import GatewayEndpoint
from segserve.calls.steps import ConfigRequest
from segserve.transports.base import Connection
from segserve.transports.grpc import to_grpc
from segserve.transports.http import to_http
from segserve_common.errors import BadRequestError, ProtocolError
from segserve_common.kserve import (
    DTYPES,
    HEADER_LENGTH,
    InferRequest,
    Tensor,
    decode_http,
    decode_raw,
    encode_http,
    pack_bytes,
    unpack_bytes,
)

GATEWAY = Connection(GatewayEndpoint.parse("http://gateway.example"))
arrays = st.sampled_from(list(DTYPES.values())).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4))
)
byte_lists = st.lists(st.binary(max_size=40), max_size=6)


def answer_bytes(tensors: list[Tensor]) -> tuple[bytes, str]:
    entries = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
            "parameters": {"binary_data_size": len(tensor.raw)},
        }
        for tensor in tensors
    ]
    header = json.dumps({"model_name": "m", "model_version": "1", "id": "7", "outputs": entries}).encode()
    return header + b"".join(tensor.raw for tensor in tensors), str(len(header))


@given(byte_lists)
def test_bytes_items_survive_the_round_trip_and_are_framed_as_tritonclient_frames_them(
    items: list[bytes],
) -> None:
    packed = pack_bytes(items)

    assert unpack_bytes(packed) == tuple(items)
    assert list(deserialize_bytes_tensor(packed)) == items
    if items:
        assert serialize_byte_tensor(np.array(items, dtype=np.object_)).item() == packed


@given(st.binary(max_size=64))
def test_any_bytes_are_either_framed_items_or_a_protocol_error(raw: bytes) -> None:
    try:
        items = unpack_bytes(raw)
    except ProtocolError:
        return
    assert pack_bytes(items) == raw


@given(arrays)
def test_every_array_survives_the_round_trip_in_any_byte_order(array: np.ndarray) -> None:
    for given_array in (array, array.astype(array.dtype.newbyteorder(">"))):
        tensor = Tensor.of_array("x", given_array)
        np.testing.assert_array_equal(tensor.to_array(), array)


def test_a_dtype_that_triton_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(BadRequestError, match="complex128"):
        Tensor.of_array("x", np.zeros(2, np.complex128))


@given(arrays, byte_lists, st.floats(0, 1), st.integers(0, 9), st.text(max_size=5))
def test_an_http_request_says_what_tritonclients_says(
    array: np.ndarray, items: list[bytes], threshold: float, count: int, request_id: str
) -> None:
    first, second = Tensor.of_array("PIXELS", array), Tensor.of_items("IMAGE", items)
    parameters = {"score_threshold": threshold, "max_detections": count, "encoding": "rle"}
    headers, body = encode_http(InferRequest("m", (first, second), ("MASKS", "SIZE"), parameters, request_id))
    theirs_input = triton_http.InferInput("PIXELS", list(array.shape), first.datatype)
    theirs_input.set_data_from_numpy(array)
    their_items = triton_http.InferInput("IMAGE", [len(items)], "BYTES")
    their_items.set_data_from_numpy(np.array(items, dtype=np.object_))
    their_body, their_length = triton_http.InferenceServerClient.generate_request_body(
        [theirs_input, their_items],
        outputs=[triton_http.InferRequestedOutput(name) for name in ("MASKS", "SIZE")],
        request_id=request_id,
        parameters=parameters,
    )

    length = int(headers[HEADER_LENGTH])
    their_length = len(their_body) if their_length is None else their_length
    assert body[length:] == their_body[their_length:]
    assert json.loads(body[:length]) == json.loads(their_body[:their_length])


@given(arrays, byte_lists, st.floats(0, 1))
def test_a_grpc_request_is_tritonclients_message(array: np.ndarray, items: list[bytes], threshold: float) -> None:
    first, second = Tensor.of_array("PIXELS", array), Tensor.of_items("IMAGE", items)
    parameters = {"score_threshold": threshold, "max_detections": 3, "encoding": "rle"}
    request = InferRequest("m", (first, second), ("MASKS",), parameters, "7")
    their_input = triton_grpc.InferInput("PIXELS", list(array.shape), first.datatype)
    their_input.set_data_from_numpy(array)
    their_items = triton_grpc.InferInput("IMAGE", [len(items)], "BYTES")
    their_items.set_data_from_numpy(np.array(items, dtype=np.object_))
    theirs = triton_grpc._utils._get_inference_request(
        model_name="m",
        inputs=[their_input, their_items],
        model_version="",
        request_id="7",
        outputs=[triton_grpc.InferRequestedOutput("MASKS")],
        sequence_id=0,
        sequence_start=False,
        sequence_end=False,
        priority=0,
        timeout=None,
        parameters=parameters,
    )

    _, message = to_grpc(_AnyStub(), request)

    assert message == theirs


class _AnyStub:
    ModelInfer = None


@given(arrays, byte_lists)
def test_an_answer_is_read_as_tritonclient_reads_it(array: np.ndarray, items: list[bytes]) -> None:
    body, length = answer_bytes([Tensor.of_array("A", array), Tensor.of_items("B", items)])

    answer = decode_http(body, length)
    theirs = triton_http.InferResult.from_response_body(body, header_length=int(length))

    assert (answer.model, answer.id) == ("m", "7")
    np.testing.assert_array_equal(answer["A"].to_array(), theirs.as_numpy("A"))
    assert answer["B"].to_items() == tuple(theirs.as_numpy("B"))


@given(st.data())
def test_no_cut_or_flip_of_an_answer_escapes_as_anything_but_a_protocol_error(data: st.DataObject) -> None:
    body, length = answer_bytes(
        [Tensor.of_array("A", np.arange(6, dtype=np.int32)), Tensor.of_items("B", [b"one", b""])]
    )
    start = data.draw(st.integers(0, len(body)))
    damage = data.draw(st.binary(max_size=8))
    stop = start if damage else len(body)
    damaged = body[:start] + damage + body[stop + len(damage) :]

    try:
        answer = decode_http(damaged, data.draw(st.sampled_from([length, None])))
        for tensor in answer.outputs.values():
            (tensor.to_items if tensor.datatype == "BYTES" else tensor.to_array)()
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    ("body", "length"),
    [
        pytest.param(b"", None, id="an empty body"),
        pytest.param(b"<html>", None, id="a page of a proxy"),
        pytest.param(b"[]", None, id="a list"),
        pytest.param(b"[" * 100_000, None, id="JSON nested too deep"),
        pytest.param(b"{}", None, id="no outputs"),
        pytest.param(b"{}", "9", id="a header longer than the body"),
        pytest.param(b"{}", "-1", id="a negative length"),
        pytest.param(b"{}", "²", id="a length in other digits"),
        pytest.param(b'{"outputs":[7]}', None, id="an output that is a number"),
        pytest.param(b'{"outputs":[{"name":"A","datatype":"INT8","shape":[1]}]}', None, id="JSON data"),
    ],
)
def test_what_is_no_answer_is_a_protocol_error(body: bytes, length: str | None) -> None:
    with pytest.raises(ProtocolError):
        decode_http(body, length)


@pytest.mark.parametrize(
    ("entry", "raw"),
    [
        pytest.param(("A", "INT32", (2,)), b"1234567", id="too few bytes"),
        pytest.param(("A", "INT32", (-1, -1)), b"1234", id="a negative shape"),
        pytest.param(("A", "BF17", (1,)), b"12", id="an unknown type"),
    ],
)
def test_a_tensor_that_contradicts_itself_is_a_protocol_error(entry: tuple[str, str, tuple[int]], raw: bytes) -> None:
    with pytest.raises(ProtocolError, match="'A'"):
        decode_raw([entry], [raw])


def test_contents_missing_from_a_grpc_answer_are_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="1 outputs and the contents of 0"):
        decode_raw([("A", "INT8", (0,))], [])


def test_a_tensor_that_comes_twice_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="twice"):
        decode_raw([("A", "INT8", (1,)), ("A", "INT8", (1,))], [b"1", b"2"])


def test_bytes_items_of_another_number_than_the_shape_are_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="2 items, got 1"):
        Tensor("A", "BYTES", (2,), pack_bytes([b"x"])).to_items()


def test_a_parameter_that_json_cannot_carry_is_refused_before_it_is_sent() -> None:
    with pytest.raises(BadRequestError, match="nan"):
        encode_http(InferRequest("m", (), parameters={"score_threshold": float("nan")}))


@pytest.mark.parametrize(
    ("model", "path"),
    [("coins", "/v2/models/coins/config"), ("a/../b?c", "/v2/models/a%2F..%2Fb%3Fc/config")],
)
def test_a_models_name_cannot_leave_its_place_in_the_path(model: str, path: str) -> None:
    assert to_http(ConfigRequest(model), GATEWAY, {}).url.target == path


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(BadRequestError, match="empty"):
        to_http(ConfigRequest(""), GATEWAY, {})
