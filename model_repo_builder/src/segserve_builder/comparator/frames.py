"""The frames in which a comparator and its worker speak: a length, a header of JSON, and blobs."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

LENGTH: Final = struct.Struct("<I")
"""Of the header in bytes; the header's `sizes` are the lengths of the blobs."""
READY: Final = b"\n"
"""Written by the worker once it has loaded what it needs."""


@dataclass(frozen=True, slots=True)
class WorkerFrame:
    """A header, and blobs behind it."""

    header: Mapping[str, Any]
    blobs: Sequence[bytes]

    def pack(self) -> list[bytes]:
        """Return the parts as they are written."""
        header = json.dumps({**self.header, "sizes": [len(blob) for blob in self.blobs]}).encode()
        return [LENGTH.pack(len(header)), header, *self.blobs]


def read_frame(stream: BinaryIO) -> WorkerFrame | None:
    """Read a frame; None at the end."""
    length = stream.read(LENGTH.size)
    if len(length) < LENGTH.size:
        return None
    header = json.loads(stream.read(LENGTH.unpack(length)[0]))
    return WorkerFrame(header, [stream.read(size) for size in header["sizes"]])
