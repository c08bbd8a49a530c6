"""A caller that sends bytes as no client's library would."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import StreamEnded, StreamReset

from fakes.waiting import HANG_S

INFER = "/v2/models/coins/infer"


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    """Connect to a port of this machine."""
    with socket.create_connection(("127.0.0.1", port), timeout=HANG_S) as connection:
        yield connection


def head(*headers: str, path: str = INFER) -> bytes:
    """Return the head of a POST request with these header lines."""
    return "\r\n".join((f"POST {path} HTTP/1.1", "host: a", *headers, "", "")).encode()


def answer(connection: socket.socket) -> bytes:
    """Return all that is sent until the other side closes or resets the connection."""
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionError:
        pass
    return received


def reply(port: int, parts: Iterable[bytes]) -> bytes:
    """Send these bytes until the other side has had enough, and return what it sends until it closes."""
    with connected(port) as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except ConnectionError:
            pass
        return answer(connection)


class Http2Caller:
    """One connection of HTTP/2 with one request, whose frames have the sizes that they are given."""

    def __init__(self, connection: socket.socket, path: str, *headers: tuple[str, str]) -> None:
        self._socket = connection
        self._is_answered = False
        self._state = H2Connection(H2Configuration(client_side=True))
        self._state.initiate_connection()
        self._flush()
        # The settings tell how much may be sent.
        while self._state.remote_settings.initial_window_size == 65_535:
            self._receive()
        pseudo = [(":method", "POST"), (":path", path), (":scheme", "http"), (":authority", "a")]
        self._state.send_headers(1, [*pseudo, *headers])
        self._flush()

    def send(self, frame: bytes) -> None:
        """Send one frame, of at most 16 KiB; raises `ConnectionError` once the request has been reset."""
        while not self._is_answered and self._state.local_flow_control_window(1) < len(frame):
            self._receive()
        if self._is_answered:
            raise ConnectionResetError
        self._state.send_data(1, frame)
        self._flush()

    def end(self) -> None:
        """End the request, and return once its answer has ended; raises `ConnectionError` if the connection has."""
        if not self._is_answered:
            self._state.end_stream(1)
            self._flush()
        while not self._is_answered:
            self._receive()

    def _receive(self) -> None:
        received = self._socket.recv(65536)
        if not received:
            raise ConnectionResetError
        events = self._state.receive_data(received)
        self._is_answered |= any(isinstance(event, StreamEnded | StreamReset) for event in events)
        self._flush()

    def _flush(self) -> None:
        self._socket.sendall(self._state.data_to_send())
