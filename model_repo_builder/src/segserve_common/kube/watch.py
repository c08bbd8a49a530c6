"""Lists objects and then watches them until it is stopped: client-go calls this a reflector."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from segserve_common.api_errors import GoneError
from segserve_common.backoff import Backoff, RetryDelays
from segserve_common.errors import ControlError
from segserve_common.kube.client import KubeClient
from segserve_common.kube.kinds import Json
from segserve_common.kube.requests import Selector, WatchEvent

BOOKMARK: Final = "BOOKMARK"
DELETED: Final = "DELETED"
LONGEST_S: Final = 15.0
BACKOFF: Final = Backoff(0.2, LONGEST_S, jitter=(0.5, 1.0))

_log = logging.getLogger(__name__)


class Reflector:
    """Gives `on_list` all objects that a selector chooses, then `on_event` every change, from a thread of its own.

    After an interruption the objects are listed again, also if a callback raised: what it missed comes once more.
    `on_error` gets why objects could not be listed or watched; an expired version is not an error.
    """

    def __init__(
        self,
        client: KubeClient,
        selector: Selector,
        *,
        on_list: Callable[[list[Json]], None],
        on_event: Callable[[WatchEvent], None],
        on_error: Callable[[ControlError], None],
    ) -> None:
        self._client, self._selector = client, selector
        self._on_list, self._on_event, self._on_error = on_list, on_event, on_error
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.contact_s = time.monotonic()
        """The time (`time.monotonic`) of the last answer or event."""

    def list(self) -> str:
        """List the objects now, and return the version to watch from."""
        selector = self._selector
        items, version = self._client.list(
            selector.kind, labels=selector.labels, fields=selector.fields, everywhere=selector.everywhere
        )
        self.contact_s = time.monotonic()
        self._on_list(items)
        return version

    def start(self, version: str = "") -> None:
        """Watch from a version on that `list` returned; without one, list first. Returns at once."""
        name = f"watch {self._selector.kind.plural} {self._selector.fields}".rstrip()
        self._thread = threading.Thread(target=self._run, args=(version,), name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Make the thread end; a stream that is open ends with the client."""
        self._stopping.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self, version: str) -> None:
        delays = RetryDelays(BACKOFF)
        while not self._stopping.is_set():
            try:
                version = version or self.list()
                while not self._stopping.is_set():
                    version = self._watch(version, delays)
                    self._stopping.wait(delays.next_s())
            except GoneError:
                pass
            except ControlError as error:
                if not self._stopping.is_set():
                    self._on_error(error)
            except Exception:
                _log.exception("a change of %s was not handled; it is listed again", self._selector.kind.plural)
            version = ""
            self._stopping.wait(delays.next_s())

    def _watch(self, version: str, delays: RetryDelays) -> str:
        """Follow one answer of the server to its end, and return the version to continue from."""
        began_s = time.monotonic()
        for event in self._client.watch(self._selector, version):
            if self._stopping.is_set():
                break
            version = event.version
            delays.reset()
            self.contact_s = time.monotonic()
            if event.type != BOOKMARK:
                self._on_event(event)
        # An answer that ends as soon as it began is no better than a refusal.
        if time.monotonic() - began_s > LONGEST_S:
            delays.reset()
        return version
