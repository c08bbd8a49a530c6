"""Passes requests from the instances of a step to the one whose process answers them, over a Unix socket."""

from __future__ import annotations

import hashlib
import itertools
import mmap
import os
import pickle
import select
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

_MODE: Final = 0o700
"""A process that can write to the socket runs code in the step's process, since messages are unpickled."""
_HIDDEN: Final = "."
_COUNT: Final = struct.Struct("<I")
_LARGE_BYTES: Final = 2**20
_PAUSE_S: Final = 0.1
_LOOK_S: Final = 1.0
"""Between two looks at whether a later process listens by now, while an answer is waited for."""
REPLACED_S: Final = 30.0
"""Time in which a process may still answer after a later one listens: it does unless it hangs."""
_NUMBERS: Final = itertools.count()


class DeadInstanceError(Exception):
    """The process that answers requests has ended or hangs, or does not listen yet."""


def socket_folder(repository: Path) -> Path:
    """Return the folder of the instances' sockets; Triton takes each folder in the repository itself for a model.

    It is beside the repository, or in the folder of temporary files if nothing can be written there, as beside the
    `/models` of a container.
    """
    if os.access(repository.parent, os.W_OK):
        return repository.parent / f".{repository.name}-instances"
    name = hashlib.sha256(os.fsencode(repository.absolute())).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f".segserve-{os.getuid()}-{name}-instances")


class InstanceListener:
    """Answers the requests of other instances, each in a thread of its own.

    A step that is loaded again has two listeners for a while, each with a socket of its own: the later one gets the
    requests.
    """

    def __init__(self, folder: Path, step: str, instances: int, answer: Callable[[Any], Any]) -> None:
        """Prepare to answer so many instances of this step, and the instances of a former process; raises `OSError`.

        If `answer` raises, the instance gets a `DeadInstanceError`.
        """
        self._answer = answer
        folder.mkdir(mode=_MODE, exist_ok=True)
        folder.chmod(_MODE)
        name = f"{step}.{os.getpid()}-{next(_NUMBERS)}"
        self._path, self._hidden = folder / name, folder / f"{_HIDDEN}{name}"
        self._hidden.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX)
        with _short(self._hidden) as short:
            self._socket.bind(short)
        threads = 2 * instances
        self._socket.listen(threads)
        self._closed = threading.Event()
        self._connections: set[socket.socket] = set()
        # Started now: under load there may be no memory for a thread.
        self._threads = [threading.Thread(target=self._serve, name="instance", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def listen(self) -> None:
        """Let instances find this process from now on."""
        self._hidden.rename(self._path)

    def close(self) -> None:
        """Answer the pending requests, unless that hangs, and end."""
        self._closed.set()
        for path in (self._path, self._hidden):
            path.unlink(missing_ok=True)
        for each in (self._socket, *tuple(self._connections)):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RD)  # wakes the threads that wait for a request; an answer can still be sent
        until_s = time.monotonic() + REPLACED_S
        for thread in self._threads:
            thread.join(max(until_s - time.monotonic(), 0.0))
        self._socket.close()

    def _serve(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._socket.accept()
                self._connections.add(connection)
            except (OSError, MemoryError):
                self._closed.wait(_PAUSE_S)
                continue
            # Whatever it was, the thread goes on with other connections.
            with connection, suppress(Exception):
                while not self._closed.is_set():
                    _send(connection, self._answer(_received(connection)))
            self._connections.discard(connection)


class InstanceLink:
    """One instance's way to the listener of its step. It is used by one thread."""

    def __init__(self, folder: Path, step: str) -> None:
        self._folder, self._step = folder, step
        self._socket: socket.socket | None = None
        self._path = folder

    def ask(self, request: Any) -> Any:
        """Return the answer to a request; raises `DeadInstanceError`."""
        try:
            connection = self._connected()
            _send(connection, request)
            replaced_s = 0.0
            while not select.select([connection], [], [], _LOOK_S)[0]:
                # A process that gets no core stays connected after Triton has replaced it.
                replaced_s = replaced_s + _LOOK_S if self._listeners()[:1] not in ([], [self._path]) else 0.0
                if replaced_s > REPLACED_S:
                    raise TimeoutError("a later process answers requests by now")
            return _received(connection)
        except (OSError, EOFError) as error:
            self.close()
            raise DeadInstanceError(f"{type(error).__name__}: {error}") from error
        except BaseException:
            self.close()  # what is left of the request or answer there belongs to no other
            raise

    def close(self) -> None:
        """Let go of the connection; the next request makes another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _listeners(self) -> list[Path]:
        """Return the sockets of the step, the latest first."""
        found = []
        for path in self._folder.glob(f"{self._step}.*"):
            with suppress(FileNotFoundError):
                found.append((path.stat().st_ctime_ns, path))
        return [path for _, path in sorted(found, reverse=True)]

    def _connected(self) -> socket.socket:
        # Between requests nothing comes but the end of the connection: the step was loaded again.
        if self._socket is not None and select.select([self._socket], [], [], 0)[0]:
            self.close()
        if self._socket is None:
            for path in self._listeners():
                connection = socket.socket(socket.AF_UNIX)
                try:
                    with _short(path) as short:
                        connection.connect(short)
                    self._socket, self._path = connection, path
                    break
                except ConnectionRefusedError:
                    connection.close()
                    path.unlink(missing_ok=True)  # its process has ended
                except BaseException:
                    connection.close()
                    raise
        if self._socket is None:
            raise ConnectionRefusedError(f"nobody listens for {self._step}")
        return self._socket


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """Name a socket by its folder's descriptor: an address has at most 107 bytes."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _send(connection: socket.socket, value: Any) -> None:
    buffers: list[pickle.PickleBuffer] = []
    # Arrays are sent from where they are.
    parts = [memoryview(pickle.dumps(value, protocol=5, buffer_callback=buffers.append))]
    parts += [buffer.raw() for buffer in buffers]
    sizes = struct.pack(f"<{len(parts)}Q", *(part.nbytes for part in parts))
    connection.sendall(_COUNT.pack(len(parts)) + sizes)
    for part in parts:
        connection.sendall(part)


def _received(connection: socket.socket) -> Any:
    """Return the next value; raises `EOFError` if the other side has ended."""
    (count,) = _COUNT.unpack(_filled(connection, bytearray(_COUNT.size)))
    sizes = struct.unpack(f"<{count}Q", _filled(connection, bytearray(8 * count)))
    pickled, *buffers = [_filled(connection, part) for part in _parts(sizes)]
    return pickle.loads(pickled, buffers=buffers)


def _parts(sizes: Sequence[int]) -> Iterator[bytearray | mmap.mmap]:
    """Yield memory for the parts of a value: for large ones not the step's own, as Triton's tensors are not."""
    for size in sizes:
        yield bytearray(size) if size < _LARGE_BYTES else mmap.mmap(-1, size)


def _filled(connection: socket.socket, data: bytearray | mmap.mmap) -> bytearray | mmap.mmap:
    left = memoryview(data)
    while left:
        got = connection.recv_into(left)
        if not got:
            raise EOFError("the other side has ended")
        left = left[got:]
    return data
