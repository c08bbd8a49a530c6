"""A relay in front of a TCP server that breaks its first large answers off, as a network that fails does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

BYTES = 64 * 1024


class CuttingRelay:
    """Passes everything on; of the next `cuts` connections that carry more than `after` bytes back, no more."""

    def __init__(self, target: tuple[str, int], after: int) -> None:
        self.cuts = 0
        self._target = target
        self._after = after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)

    def _start(self, work: object, *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._start(self._pass, client, server, False)
            self._start(self._pass, server, client, True)

    def _pass(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        passed = 0
        with suppress(OSError):
            while part := source.recv(BYTES):
                sink.sendall(part)
                passed += len(part)
                if is_answer and passed > self._after and self.cuts:
                    self.cuts -= 1
                    break
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        if is_answer:
            source.close()
            sink.close()


@contextmanager
def cutting_relay(address: str, after: int) -> Iterator[CuttingRelay]:
    """Relay to `address`, a host and a port."""
    host, _, port = address.rpartition(":")
    relay = CuttingRelay((host, int(port)), after)
    try:
        yield relay
    finally:
        relay.close()
