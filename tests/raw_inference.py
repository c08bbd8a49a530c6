"""Sends inference requests byte for byte as told, right or wrong, over both protocols."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import grpc
import httpx
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from segserve_common.kserve import BYTES, HEADER_LENGTH, InferAnswer, decode_http, decode_raw, pack_bytes

Protocol = Literal["http", "grpc"]
PROTOCOLS: Final[tuple[Protocol, ...]] = ("http", "grpc")
REVISION_HEADER: Final = "x-segserve-revision"
_FIELDS: Final = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}


@dataclass(frozen=True)
class RawTensor:
    """What a request says of an input, and the bytes that it sends, whether they agree or not."""

    name: str
    datatype: str
    shape: Sequence[int]
    raw: bytes


@dataclass(frozen=True)
class RawRequest:
    """One inference, as it is to be sent."""

    inputs: Sequence[RawTensor]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[str] = ()
    model: str = "coins"
    classification: int = 0


@dataclass(frozen=True)
class Reply:
    """What came back: HTTP status or gRPC code, the error's text, or the answer."""

    status: int | str
    message: str = ""
    revision: str | None = None
    answer: InferAnswer | None = None

    def arrays(self) -> dict[str, Any]:
        """Return the outputs: arrays, and for BYTES tuples of items."""
        assert self.answer is not None, (self.status, self.message)
        tensors = self.answer.outputs.items()
        return {name: t.to_items() if t.datatype == BYTES else t.to_array() for name, t in tensors}


def image(data: bytes, *, name: str = "IMAGE") -> RawTensor:
    """Return the input of one encoded image."""
    return RawTensor(name, BYTES, [1], pack_bytes([data]))


def pixels(array: np.ndarray) -> RawTensor:
    """Return the input of an image's pixels, (H, W, C)."""
    return RawTensor("PIXELS", {"uint8": "UINT8", "uint16": "UINT16"}[array.dtype.name], array.shape, array.tobytes())


def send(url: str, protocol: Protocol, request: RawRequest, headers: Mapping[str, str] | None = None) -> Reply:
    """Send a request."""
    return {"http": _send_http, "grpc": _send_grpc}[protocol](url, request, headers or {})


def http_body(request: RawRequest) -> tuple[bytes, bytes]:
    """Return the JSON and the tensors of an HTTP request, which are sent one behind the other."""
    inputs = [
        {"name": t.name, "datatype": t.datatype, "shape": t.shape, "parameters": {"binary_data_size": len(t.raw)}}
        for t in request.inputs
    ]
    header: dict[str, Any] = {"inputs": inputs, "parameters": {**request.parameters, "binary_data_output": True}}
    if request.outputs:
        asked = {"classification": request.classification} if request.classification else {"binary_data": True}
        header["outputs"] = [{"name": name, "parameters": asked} for name in request.outputs]
    return json.dumps(header).encode(), b"".join(tensor.raw for tensor in request.inputs)


def post(url: str, model: str, content: Any, headers: Mapping[str, str]) -> Reply:
    """Send any body to a model's inference."""
    answer = httpx.post(f"{url}/v2/models/{model}/infer", content=content, headers=dict(headers), timeout=60)
    revision = answer.headers.get(REVISION_HEADER)
    if answer.status_code != 200:
        return Reply(answer.status_code, answer.json()["error"], revision)
    return Reply(200, "", revision, decode_http(answer.content, answer.headers.get(HEADER_LENGTH)))


def _send_http(url: str, request: RawRequest, headers: Mapping[str, str]) -> Reply:
    header, tensors = http_body(request)
    return post(url, request.model, header + tensors, {HEADER_LENGTH: str(len(header)), **headers})


def _send_grpc(url: str, request: RawRequest, headers: Mapping[str, str]) -> Reply:
    message = pb.ModelInferRequest(model_name=request.model, raw_input_contents=[t.raw for t in request.inputs])
    for tensor in request.inputs:
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    for name in request.outputs:
        output = message.outputs.add(name=name)
        if request.classification:
            output.parameters["classification"].int64_param = request.classification
    for name, value in request.parameters.items():
        setattr(message.parameters[name], _FIELDS[type(value)], value)
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(url.removeprefix("http://"), unlimited) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            answer, call = stub.ModelInfer.with_call(message, timeout=60, metadata=tuple(headers.items()))
        except grpc.RpcError as error:
            return Reply(error.code().name, error.details(), _revision(error))
    entries = [(output.name, output.datatype, tuple(output.shape)) for output in answer.outputs]
    return Reply("OK", "", _revision(call), decode_raw(entries, answer.raw_output_contents, model=answer.model_name))


def _revision(call: Any) -> str | None:
    found = dict(call.initial_metadata() or ()).get(REVISION_HEADER)
    return None if found is None else str(found)


def png_header(width: int, height: int) -> bytes:
    """Return the beginning of a PNG file of that size, up to the end of its header."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


# Nothing of the machine or of the server's inside belongs into an answer.
PRIVATE: Final = ("Traceback", 'File "', ".py", "shm", "/tmp", "/root", "/home", "/dev", "/work", "segserve--", "0x")
GOOD: Final = {"http": 200, "grpc": "OK"}


def check_refused(reply: Reply, status: object, message: str) -> None:
    """Check code and text of an error; ` ... ` stands between parts that the text must have."""
    assert reply.status == status, reply
    for text in message.split(" ... "):
        assert text in reply.message
    assert not [text for text in PRIVATE if text in reply.message]


def check_serves(url: str, protocol: Protocol, photo: bytes, model: str = "coins") -> None:
    """Check that a good request is answered."""
    assert send(url, protocol, RawRequest([image(photo)], model=model)).status == GOOD[protocol]
