"""Reads the bodies of requests and answers of both protocols. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from segserve_builder.copies.copies import CopyProtocol
from segserve_common.errors import ProtocolError, SegserveError
from segserve_common.kserve import BYTES, DTYPES, Tensor, decode_http, decode_raw, json_object

_IMAGES: Final = ("IMAGE", "PIXELS")
MALFORMED: Final = (SegserveError, ValueError, TypeError, LookupError, OverflowError, RecursionError)


class WireBody(NamedTuple):
    """A body as it crossed the wire, and what `Inference-Header-Content-Length` says of it; a message over gRPC."""

    content: bytes
    header_length: str = ""


def read_answer(protocol: CopyProtocol, answer: WireBody) -> Mapping[str, Tensor]:
    """Return the outputs of an answer; raises `ProtocolError`, or another error of values, for anything malformed."""
    if protocol == "grpc":
        message = _message("ModelInferResponse", answer.content)
        entries = [(output.name, output.datatype, tuple(output.shape)) for output in message.outputs]
        return decode_raw(entries, message.raw_output_contents).outputs
    if answer.header_length:
        return decode_http(answer.content, answer.header_length).outputs
    # A caller that did not request binary tensors is answered only in JSON.
    tensors = [_tensor_of_json(output) for output in json_object(answer.content)["outputs"]]
    return {tensor.name: tensor for tensor in tensors}


def read_image(protocol: CopyProtocol, request: WireBody) -> Tensor | None:
    """Return the image of a request, None without a binary one; raises as `read_answer` does."""
    if protocol == "grpc":
        message = _message("ModelInferRequest", request.content)
        found = zip(message.inputs, message.raw_input_contents, strict=True)
        images = [Tensor(each.name, each.datatype, tuple(each.shape), raw) for each, raw in found]
    else:
        length = int(request.header_length or len(request.content))
        inputs = json_object(request.content[:length])["inputs"]
        start = length
        tensors = []
        for entry in inputs:
            size = int(entry.get("parameters", {}).get("binary_data_size", 0))
            if size:
                raw = request.content[start : start + size]
                tensors.append(Tensor(str(entry["name"]), str(entry["datatype"]), tuple(map(int, entry["shape"])), raw))
            start += size
        images = tensors
    return next((image for image in images if image.name in _IMAGES), None)


def read_parameters(protocol: CopyProtocol, request: WireBody) -> dict[str, Any]:
    """Return the parameters of a request; raises as `read_image` does."""
    if protocol == "grpc":
        stated = _message("ModelInferRequest", request.content).parameters
        return {
            name: getattr(value, value.WhichOneof("parameter_choice") or "", None) for name, value in stated.items()
        }
    length = int(request.header_length or len(request.content))
    parameters = json_object(request.content[:length]).get("parameters", {})
    return dict(parameters)


def _message(kind: str, content: bytes) -> Any:
    try:
        return getattr(service_pb2, kind).FromString(content)
    except DecodeError as error:
        raise ProtocolError(f"not a {kind}: {error}") from None


def _tensor_of_json(output: Mapping[str, Any]) -> Tensor:
    name, datatype, shape = str(output["name"]), output["datatype"], tuple(map(int, output["shape"]))
    if datatype == BYTES:
        items = Tensor.of_items(name, [str(item).encode() for item in output["data"]])
        return Tensor(name, BYTES, shape, items.raw)
    return Tensor.of_array(name, np.array(output["data"], DTYPES[datatype]).reshape(shape))


def answer_arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Return the values of tensors; BYTES as arrays of objects."""
    return {name: _array(tensor) for name, tensor in tensors.items()}


def _array(tensor: Tensor) -> NDArray[Any]:
    if tensor.datatype != BYTES:
        return tensor.to_array()
    items = tensor.to_items()
    array = np.empty(len(items), np.object_)
    array[:] = items
    return array.reshape(tensor.shape)
