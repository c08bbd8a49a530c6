"""Copies of callers' requests, and the little that is read of them before they are asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Literal, TypeAlias

from segserve_builder.comparator.http_server import ReceivedRequest

CopyProtocol: TypeAlias = Literal["http", "grpc"]

MODEL_INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
HEADER_LENGTH: Final = "inference-header-content-length"
"""As `segserve_common.kserve` has it, without its numpy: this process only passes on what others compute with."""
_INFER: Final = re.compile(r"/v2/models/(?P<model>[^/]+)(/versions/[0-9]+)?/infer")
_FRAME_BYTES: Final = 5
_NAMES_BYTES: Final = 512
"""Of a gRPC message: its tensors come last, and what differs between requests for one image is a short id."""
_MAX_FIELDS: Final = 10_000
"""A message that asks has some dozen fields; to walk through millions would keep copies of others waiting."""
_SEQUENCE: Final = b"sequence_id"
_MODEL_NAME, _PARAMETERS = 1, 4
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class RequestCopy:
    """An inference as a caller sent it: over HTTP a body and what its headers say of it, over gRPC a message.

    in_stream: it continues a stream, whose next image only the caller may send.
    """

    model: str
    protocol: CopyProtocol
    target: str
    body: bytes
    content_type: str = ""
    header_length: str = ""
    in_stream: bool = False


def image_digest(copy: RequestCopy) -> bytes:
    """Return a digest of what a copy has behind its names and ids: equal images have equal ones."""
    names = int(copy.header_length) if copy.header_length.isdecimal() else min(_NAMES_BYTES, len(copy.body) // 2)
    return blake2b(copy.body[names:], digest_size=16).digest()


def read_copy(request: ReceivedRequest) -> RequestCopy | None:
    """Return the inference that a request asks for, None for anything else and for what is malformed."""
    path = request.target.partition("?")[0]
    if request.body is None or request.method != "POST":
        return None
    if path == MODEL_INFER:
        return _grpc_copy(request.body)
    match = _INFER.fullmatch(path)
    if match is None:
        return None
    header_length = request.headers.get(HEADER_LENGTH, "")
    return RequestCopy(
        match["model"],
        "http",
        request.target,
        request.body,
        request.headers.get("content-type", ""),
        header_length,
        _continues_stream(request.body, header_length),
    )


def model_of(request: ReceivedRequest) -> str | None:
    """Return the model that the path of a request names."""
    match = _INFER.fullmatch(request.target.partition("?")[0])
    return None if match is None else match["model"]


def _continues_stream(body: bytes, header_length: str) -> bool:
    is_length = header_length.isascii() and header_length.isdecimal() and len(header_length) <= 18
    end = int(header_length) if is_length else len(body)
    # Whoever escapes a letter may hide the word, so that he is not compared either.
    return body.find(_SEQUENCE, 0, end) >= 0 or body.find(b"\\u", 0, end) >= 0


def _grpc_copy(body: bytes) -> RequestCopy | None:
    if len(body) < _FRAME_BYTES or body[0] or int.from_bytes(body[1:_FRAME_BYTES], "big") != len(body) - _FRAME_BYTES:
        return None  # compressed, cut off, or more than one message
    message = body[_FRAME_BYTES:]
    models: list[bytes] = []
    in_stream = False
    try:
        for number, start, end in _fields(message):
            if number == _MODEL_NAME:
                models.append(message[start:end])
            elif number == _PARAMETERS:
                in_stream |= message.find(_SEQUENCE, start, end) >= 0
        # Readers differ about a message that names two: the gateway may have chosen its route by the other.
        (model,) = (name.decode() for name in models)
    except ValueError:
        return None
    return RequestCopy(model, "grpc", MODEL_INFER, message, in_stream=in_stream)


def _fields(message: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of the fields that are bytes; raises `ValueError` for anything malformed."""
    at = 0
    for _ in range(_MAX_FIELDS):
        if at == len(message):
            return
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == _BYTES:
            size, start = _varint(message, at)
            at = start + size
            if at <= len(message):
                yield number, start, at
        elif kind == _VARINT:
            _, at = _varint(message, at)
        elif kind in (_FIXED_64, _FIXED_32):
            at += 8 if kind == _FIXED_64 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at > len(message):
            raise ValueError("a field runs past the end")
    raise ValueError("too many fields")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return a number and where the next thing begins."""
    value = 0
    for place in range(10):
        if at + place >= len(message):
            break
        byte = message[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if not byte & 0x80:
            return value, at + place + 1
    raise ValueError("a number runs past the end")
