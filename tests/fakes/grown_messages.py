"""Messages of gRPC that have something very often, for each thing that the schema of an inference has or lacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from tritonclient.grpc import service_pb2 as pb

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5
_FIXED = {
    FieldDescriptor.TYPE_DOUBLE: FIXED_64,
    FieldDescriptor.TYPE_FLOAT: FIXED_32,
    FieldDescriptor.TYPE_STRING: BYTES,
    FieldDescriptor.TYPE_BYTES: BYTES,
    FieldDescriptor.TYPE_MESSAGE: BYTES,
}
_VALUES = {VARINT: b"\1", FIXED_64: bytes(8), FIXED_32: bytes(4)}
_UNKNOWN = {
    "an unknown number": b"\x78\0",
    "an unknown text": b"\x7a\0",
    "an unknown long text": b"\x7a\xa0\x1f" + bytes(4000),
    "an unknown float": b"\x7d" + bytes(4),
    "a group": b"\x7b\x7c",
    "groups in groups": b"\x7b" * 40 + b"\x7c" * 40,
    "an end of a group": b"\x7c",
}


def varint(value: int) -> bytes:
    """Return a number as protobuf has it."""
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def message_field(number: int, content: bytes) -> bytes:
    """Return a field of a message that has bytes, or another message."""
    return varint(number << 3 | BYTES) + varint(len(content)) + content


def framed(message: bytes) -> bytes:
    """Return a message as gRPC sends it."""
    return b"\0" + len(message).to_bytes(4, "big") + message


@dataclass(frozen=True)
class GrownMessage:
    """A ModelInferRequest of `coins` with `unit` very often, in the nested message that field numbers lead to.

    All units are in one such message, or with `apart` each is in one of its own.
    """

    name: str
    path: tuple[int, ...]
    unit: bytes
    apart: bool = False

    def to_bytes(self, size: int) -> bytes:
        """Return the message, with at most `size` bytes of units."""
        unit, path = self.unit, self.path
        if self.apart:
            for number in reversed(path):
                unit = message_field(number, unit)
            path = ()
        content = unit * max(size // len(unit), 1)
        for number in reversed(path):
            content = message_field(number, content)
        return message_field(1, b"coins") + content


def grown_messages() -> Iterator[GrownMessage]:
    """Yield a message for each field of each message that a ModelInferRequest can have, and for what it lacks."""
    for path, name, unit in _units(pb.ModelInferRequest.DESCRIPTOR, (), "request"):
        yield GrownMessage(name, path, unit)
        if path:
            yield GrownMessage(f"{name}, each apart", path, unit, apart=True)


def _units(message: Descriptor, path: tuple[int, ...], name: str) -> Iterator[tuple[tuple[int, ...], str, bytes]]:
    for what, unit in _UNKNOWN.items():
        yield path, f"{name}: {what}", unit
    for field in message.fields:
        yield from _units_of(field, path, f"{name}.{field.name}")


def _units_of(field: Any, path: tuple[int, ...], name: str) -> Iterator[tuple[tuple[int, ...], str, bytes]]:
    kind = _FIXED.get(field.type, VARINT)
    if kind == BYTES:
        for what, content in {"empty": b"", "short": b"a", "long": bytes(4000)}.items():
            yield path, f"{name}, {what}", message_field(field.number, content)
    else:
        yield path, name, varint(field.number << 3 | kind) + _VALUES[kind]
        yield (*path, field.number), f"{name}, packed", _VALUES[kind]
    other = FIXED_64 if kind == FIXED_32 else FIXED_32
    yield path, f"{name}, of another type", varint(field.number << 3 | other) + _VALUES[other]
    if field.message_type is not None:
        yield from _units(field.message_type, (*path, field.number), name)
