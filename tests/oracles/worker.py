"""Runs in Debian's Python, where torchvision is: calls functions of one file with arrays that come on standard input.

Frames are pickles behind their length; arrays travel as (dtype, shape, bytes), since the two Pythons' numpy differ.
"""

from __future__ import annotations

import pickle
import runpy
import struct
import sys
import time
import traceback
from typing import Any, BinaryIO

import numpy as np

LENGTH = struct.Struct("<Q")


def send(stream: BinaryIO, value: Any) -> None:
    body = pickle.dumps(packed(value), protocol=4)
    stream.write(LENGTH.pack(len(body)) + body)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError("the other side has ended")
    return unpacked(pickle.loads(stream.read(LENGTH.unpack(head)[0])))


def packed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return ("array", value.dtype.str, value.shape, np.ascontiguousarray(value).tobytes())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return ("dict", {key: packed(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return ("list", [packed(item) for item in value])
    return value


def unpacked(value: Any) -> Any:
    match value:
        case ("array", str(dtype), shape, bytes(data)):
            return np.frombuffer(data, np.dtype(dtype)).reshape(shape).copy()
        case ("dict", dict(items)):
            return {key: unpacked(item) for key, item in items.items()}
        case ("list", list(items)):
            return [unpacked(item) for item in items]
        case _:
            return value


def main() -> None:
    functions = runpy.run_path(sys.argv[1])
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    prepared: list[Any] = []
    while True:
        try:
            name, arguments = receive(stdin)
        except EOFError:
            return
        try:
            if arguments is not None:
                prepared = arguments
            started = time.perf_counter()
            result = functions[name](*prepared)
            seconds = time.perf_counter() - started
        except Exception:
            send(stdout, {"error": traceback.format_exc()})
        else:
            send(stdout, {"result": result if arguments is not None else None, "seconds": seconds})


if __name__ == "__main__":
    main()
