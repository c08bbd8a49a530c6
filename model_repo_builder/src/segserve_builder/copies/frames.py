"""The frames in which a service and its worker speak, a length, a header of JSON, and blobs; and the worker's loop."""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from segserve_common.logs import LogSettings, start_logging

NICENESS: Final = 10
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


def answer_frames(answer: Callable[[WorkerFrame], WorkerFrame], *, memory_bytes: int) -> None:
    """Answer the frames at stdin until it ends, with so much memory (RLIMIT_DATA), and behind other processes."""
    # Whatever prints must not write between the frames.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    start_logging(LogSettings.of(os.environ))
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    answers.write(READY)
    answers.flush()
    while (frame := read_frame(sys.stdin.buffer)) is not None:
        answers.writelines(answer(frame).pack())
        answers.flush()
