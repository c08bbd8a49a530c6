"""The wire: requests and answers as values, and their bytes. Pure, and shared by all transports."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import quote

import numpy as np

from segserve_common.errors import BadRequestError, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

Parameter: TypeAlias = bool | int | float | str

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
BYTES: Final = "BYTES"
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named tensor with its bytes as they cross the wire.

    Numbers are little-endian in C order; each item of BYTES is behind its length. Raises `ProtocolError`
    where type, shape and number of bytes contradict each other.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes

    def __post_init__(self) -> None:
        if min(self.shape, default=0) < 0:
            raise ProtocolError(f"tensor {self.name!r} has shape {list(self.shape)}")
        if self.datatype == BYTES:
            return
        if self.datatype not in DTYPES:
            known = ", ".join((*DTYPES, BYTES))
            raise ProtocolError(f"tensor {self.name!r} has type {self.datatype!r}; known: {known}")
        expected = math.prod(self.shape) * DTYPES[self.datatype].itemsize
        if len(self.raw) != expected:
            raise ProtocolError(
                f"tensor {self.name!r}, {self.datatype} {list(self.shape)}, has {expected} bytes, got {len(self.raw)}"
            )

    @classmethod
    def of_array(cls, name: str, array: NDArray[Any]) -> Tensor:
        """Return the tensor of a bool, integer or float array; another dtype raises `BadRequestError`."""
        little = array.dtype.newbyteorder("<")
        if little not in _NAMES:
            raise BadRequestError(f"{name} has dtype {array.dtype}; allowed: {', '.join(map(str, _NAMES))}")
        return cls(name, _NAMES[little], array.shape, array.astype(little, copy=False).tobytes())

    @classmethod
    def of_items(cls, name: str, items: Sequence[bytes]) -> Tensor:
        """Return the one-dimensional BYTES tensor of `items`."""
        return cls(name, BYTES, (len(items),), pack_bytes(items))

    def to_array(self) -> NDArray[Any]:
        """Return the values as a read-only array; a BYTES tensor raises `ProtocolError`."""
        if self.datatype == BYTES:
            raise ProtocolError(f"tensor {self.name!r} is of type BYTES, not a number type")
        return np.frombuffer(self.raw, DTYPES[self.datatype]).reshape(self.shape)

    def to_items(self) -> tuple[bytes, ...]:
        """Return a BYTES tensor's items in C order, or raise `ProtocolError`."""
        if self.datatype != BYTES:
            raise ProtocolError(f"tensor {self.name!r} is of type {self.datatype}, not BYTES")
        items = unpack_bytes(self.raw, self.name)
        if len(items) != math.prod(self.shape):
            raise ProtocolError(
                f"tensor {self.name!r}, BYTES {list(self.shape)}, has {math.prod(self.shape)} items, got {len(items)}"
            )
        return items


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One inference. `outputs` names the requested outputs; empty requests all of them."""

    model: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """The tensors that a model answered with, by name."""

    model: str
    outputs: Mapping[str, Tensor]
    id: str = ""

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.outputs:
            raise ProtocolError(f"the answer has no tensor {name!r}; it has {', '.join(self.outputs) or 'none'}")
        return self.outputs[name]


def pack_bytes(items: Iterable[bytes]) -> bytes:
    """Return the items one after another, each behind its length as 4 bytes, little-endian."""
    return b"".join(part for item in items for part in (_LENGTH.pack(len(item)), item))


def unpack_bytes(raw: bytes, name: str = "BYTES") -> tuple[bytes, ...]:
    """Return what `pack_bytes` packed; raises `ProtocolError` where a length points past the end."""
    items: list[bytes] = []
    start, end = 0, len(raw)
    length_at, width = _LENGTH.unpack_from, _LENGTH.size
    while start < end:
        body = start + width
        stop = body + length_at(raw, start)[0] if body <= end else end + 1
        if stop > end:
            raise ProtocolError(f"tensor {name!r}: item {len(items)} at byte {start} runs past the end at {end}")
        items.append(raw[body:stop])
        start = stop
    return tuple(items)


def model_path(model: str) -> str:
    """Return the URL path of a model, safe for any name."""
    if not model:
        raise BadRequestError("the model's name is empty")
    return f"/v2/models/{quote(model, safe='')}"


def encode_http(request: InferRequest) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of `POST /v2/models/<model>/infer` with binary tensors both ways."""
    header: dict[str, Any] = {
        "inputs": [
            {
                "name": tensor.name,
                "shape": tensor.shape,
                "datatype": tensor.datatype,
                "parameters": {"binary_data_size": len(tensor.raw)},
            }
            for tensor in request.inputs
        ]
    }
    if request.id:
        header["id"] = request.id
    if request.outputs:
        header["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in request.outputs]
    header["parameters"] = dict(request.parameters)
    if not request.outputs:
        header["parameters"]["binary_data_output"] = True
    try:
        text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    except ValueError:
        raise BadRequestError(f"parameters must be finite, got {dict(request.parameters)!r}") from None
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(text))}
    return headers, b"".join((text, *(tensor.raw for tensor in request.inputs)))


def decode_http(body: bytes, header_length: str | None) -> InferAnswer:
    """Read the answer to `encode_http`: its body, and its header Inference-Header-Content-Length.

    Raises `ProtocolError` for anything malformed.
    """
    if header_length is None:
        length = len(body)
    else:
        if not (header_length.isascii() and header_length.isdecimal() and len(header_length) <= 18):
            raise ProtocolError(f"{HEADER_LENGTH} is not a length: {_shown(header_length)}")
        length = int(header_length)
        if length > len(body):
            raise ProtocolError(f"{HEADER_LENGTH} is {length} in a body of {len(body)} bytes")
        length = length
    header = json_object(body[:length])
    entries = header.get("outputs")
    if not isinstance(entries, list):
        raise ProtocolError(f"the answer's header has no list of outputs: {_shown(header)}")
    tensors = []
    start = length
    for entry in entries:
        name, datatype, shape, size = _output_entry(entry)
        if start + size > len(body):
            raise ProtocolError(f"tensor {name!r} ends at byte {start + size} of a body of {len(body)}")
        tensors.append(Tensor(name, datatype, shape, body[start : start + size]))
        start += size
    if start != len(body):
        raise ProtocolError(f"the answer's tensors end at byte {start} of a body of {len(body)}")
    return InferAnswer(str(header.get("model_name", "")), _by_name(tensors), str(header.get("id", "")))


def decode_raw(
    entries: Sequence[tuple[str, str, tuple[int, ...]]],
    contents: Sequence[bytes],
    *,
    model: str = "",
    request_id: str = "",
) -> InferAnswer:
    """Read a gRPC answer: name, datatype and shape of its outputs, and its `raw_output_contents`.

    Raises `ProtocolError` for anything malformed.
    """
    if len(entries) != len(contents):
        raise ProtocolError(f"the answer has {len(entries)} outputs and the contents of {len(contents)}")
    tensors = [Tensor(*entry, raw) for entry, raw in zip(entries, contents, strict=True)]
    return InferAnswer(model, _by_name(tensors), request_id)


def json_object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object, or raise `ProtocolError`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"expected a JSON object, got {_shown(text)}: {error}") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"expected a JSON object, got {_shown(value)}")
    return value


def _by_name(tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for tensor in tensors:
        if named.setdefault(tensor.name, tensor) is not tensor:
            raise ProtocolError(f"the answer has tensor {tensor.name!r} twice")
    return named


def _output_entry(entry: Any) -> tuple[str, str, tuple[int, ...], int]:
    """Return name, datatype, shape and size in bytes of one entry of the header's outputs."""
    # Many times quicker than a pattern. By `type`, since booleans are also ints.
    try:
        name, datatype, shape = entry["name"], entry["datatype"], entry["shape"]
        size = entry["parameters"]["binary_data_size"]
        is_output = type(name) is type(datatype) is str and type(shape) is list
        if is_output and all(type(number) is int and number >= 0 for number in (size, *shape)):
            return name, datatype, tuple(shape), size
    except (TypeError, LookupError):
        pass
    raise ProtocolError(f"expected an output with name, datatype, shape and binary_data_size, got {_shown(entry)}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
