"""A relay in front of a TCP server that can fall silent, as a network that loses everything does."""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress

BYTES = 64 * 1024


class TcpRelay:
    """Passes bytes on between its port and `target`.

    While it is paused nothing comes through at all; what goes through it when it is told to `lose` never comes through
    any more, while new connections do.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._others: dict[socket.socket, socket.socket] = {}
        self._running = threading.Event()
        self._running.set()
        self._losing = False
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def pause(self) -> None:
        self._running.clear()

    def resume(self) -> None:
        self._running.set()

    def lose(self) -> None:
        self._losing = True

    def close(self) -> None:
        self._ended = True
        self._running.set()
        self._thread.join(5)
        for open_socket in (*self._others, self._listener):
            open_socket.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._ended:
            self._running.wait()
            if self._losing:
                self._losing = False
                for lost in self._others:
                    self._selector.unregister(lost)
            for key, _ in self._selector.select(0.05):
                if not self._running.is_set():
                    break
                self._serve(key.fileobj)  # type: ignore[arg-type]

    def _serve(self, ready: socket.socket) -> None:
        if ready is self._listener:
            near, far = ready.accept()[0], socket.create_connection(self._target)
            for one, other in ((near, far), (far, near)):
                self._others[one] = other
                self._selector.register(one, selectors.EVENT_READ)
        elif ready in self._others:
            self._pass_on(ready, self._others[ready])

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        data = b""
        with suppress(OSError):
            data = source.recv(BYTES)
            sink.sendall(data)
        if not data:
            for ended in (source, sink):
                self._selector.unregister(ended)
                del self._others[ended]
                ended.close()
