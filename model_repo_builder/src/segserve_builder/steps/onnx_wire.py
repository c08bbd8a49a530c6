"""The memory that an ONNX file takes once it is parsed, counted in its bytes, before anything is parsed.

A message of two bytes becomes an object of hundreds: without a bound, a file of 10 MiB takes a gigabyte.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from segserve_builder.errors import SignatureError, UnsafeArtifactError

MAX_EXPANDED_BYTES: Final = 128 * 2**20
"""Bound of what parsing takes beside the weights, by the costs below; networks of 5,000 nodes cost 20 MiB."""

MESSAGE_BYTES: Final = 256
FIELD_BYTES: Final = 32
"""Cost of a text or a single number: more than its memory, as counting it also takes time."""
PACKED_BYTES: Final = 8
MAX_DEPTH: Final = 100
"""Nesting of messages that protobuf itself allows."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES: Final = 10
Fields: TypeAlias = "Mapping[int, tuple[int, Fields | None]]"
"""Fields by number: cost of one (0: it takes what it has in the file; below 0: of each byte), inner fields."""


def check_expansion(path: Path) -> None:
    """Raise `UnsafeArtifactError` for a file that would take too much memory, `SignatureError` for none of ONNX."""
    if not path.stat().st_size:
        raise SignatureError(f"{path.name} is not an ONNX model: it is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            is_too_large = _expanded_bytes(data) > MAX_EXPANDED_BYTES
        except (IndexError, ValueError) as error:
            what = "it is a checkpoint or an archive" if data[:2] in (b"PK", b"\x80\x02", b"\x89H") else error
            raise SignatureError(
                f"{path.name} ({len(data)} bytes) is not an ONNX model: {what}; export it first, as by `yolo export "
                "format=onnx` or torch.onnx.export"
            ) from None
    if is_too_large:
        raise UnsafeArtifactError(
            f"{path.name} would take more than {MAX_EXPANDED_BYTES >> 20} MiB beside its weights: it has too many "
            "nodes, attributes or numbers for a network"
        )


def _expanded_bytes(data: mmap.mmap) -> int:
    """Return what the file expands to, or anything above the bound as soon as it is passed."""
    import onnx

    spent, at, end = 0, 0, len(data)
    fields = _fields(onnx.ModelProto.DESCRIPTOR)
    outer: list[tuple[int, Fields]] = []
    while spent <= MAX_EXPANDED_BYTES:
        if at == end:
            if not outer:
                break
            end, fields = outer.pop()
            continue
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _LENGTH:
            length, at = _varint(data, at)
            if length > end - at:
                raise ValueError("it is truncated")
            cost, inner = fields.get(tag >> 3, (0, None))
            spent += cost if cost >= 0 else -cost * length
            if inner is None:
                at += length
                continue
            if len(outer) == MAX_DEPTH:
                raise ValueError(f"its messages are nested deeper than {MAX_DEPTH}")
            outer.append((end, fields))
            end, fields = at + length, inner
        elif kind == _VARINT:
            _, at = _varint(data, at)
            spent += FIELD_BYTES
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"it has a field of kind {kind}")
        if at > end:
            raise ValueError("it is truncated")
    return spent


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value = byte & 0x7F
    for place in range(1, _VARINT_BYTES):
        byte = data[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("it has a number of more than 64 bits")


def _fields(descriptor: Any) -> Fields:
    if descriptor.full_name in _FIELDS:
        return _FIELDS[descriptor.full_name]
    found: dict[int, tuple[int, Fields | None]] = {}
    _FIELDS[descriptor.full_name] = found  # a graph is in attributes of its own nodes
    for field in descriptor.fields:
        inner = None
        if field.message_type is not None:
            inner, cost = _fields(field.message_type), MESSAGE_BYTES
        elif field.type in (field.TYPE_STRING, field.TYPE_BYTES):
            cost = FIELD_BYTES
        elif field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
            cost = 0  # packed, as they are in memory
        else:
            cost = -PACKED_BYTES
        found[field.number] = (cost, inner)
    return found


_FIELDS: Final[dict[str, Fields]] = {}
