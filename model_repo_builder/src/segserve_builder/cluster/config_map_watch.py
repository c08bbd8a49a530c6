"""Follows some ConfigMaps by name: whatever the API does in between, in the end the newest of each is known."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from segserve_builder.cluster.config_maps import ApiError, ExpiredError, Seen
from segserve_builder.cluster.pause import LONGEST_S, Pause

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from segserve_builder.cluster.config_maps import ConfigMap, ConfigMaps

JOIN_S: Final = 5.0
_LOG = logging.getLogger(__name__)


class ConfigMapWatch:
    """Tells `on_change` of each ConfigMap in `names`: at first, and whenever it changed, came or went.

    It gets the name and the object, None where there is none, one call at a time, from threads of its own; it may
    be told again what it knows. What it raises is logged, and it is told again. While the API cannot be reached nothing
    is told.
    """

    def __init__(
        self, config_maps: ConfigMaps, names: Sequence[str], on_change: Callable[[str, ConfigMap | None], None]
    ) -> None:
        self._config_maps = config_maps
        self._on_change = on_change
        self._telling = threading.Lock()
        self._stop = threading.Event()
        self._contact_s = dict.fromkeys(names, time.monotonic())
        self._threads = [
            threading.Thread(target=self._follow, args=(name,), name=f"watch {name}", daemon=True) for name in names
        ]

    def start(self) -> None:
        """Begin; returns at once."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, and close the link to the API."""
        self._stop.set()
        self._config_maps.close()
        for thread in self._threads:
            thread.join(JOIN_S)

    def contact_age_s(self) -> float:
        """Return for how many seconds the API has said nothing about the name that waits longest."""
        return time.monotonic() - min(self._contact_s.values())

    def _follow(self, name: str) -> None:
        pause = Pause()
        while not self._stop.is_set():
            try:
                seen = self._config_maps.list_one(name)
                self._take(name, seen)
                version = seen.version
                while not self._stop.is_set():
                    version = self._watch(name, version, pause)
                    self._stop.wait(pause.next_s())
            except ExpiredError:
                self._stop.wait(pause.next_s())
            except ApiError as error:
                if not self._stop.is_set():
                    _LOG.warning("%s is watched anew: %s", name, error)
                self._stop.wait(pause.next_s())
            except Exception:
                _LOG.exception("what became of %s was not taken in; it is told again", name)
                self._stop.wait(pause.next_s())

    def _watch(self, name: str, version: str, pause: Pause) -> str:
        """Follow one answer of the API to its end, and return the version to go on from."""
        began_s = time.monotonic()
        for event in self._config_maps.watch(name, version):
            version = event.version
            pause.reset()
            self._contact_s[name] = time.monotonic()
            if isinstance(event, Seen):
                self._take(name, event)
        # An answer that ends as soon as it began is no better than a refusal.
        if time.monotonic() - began_s > LONGEST_S:
            pause.reset()
        return version

    def _take(self, name: str, seen: Seen) -> None:
        self._contact_s[name] = time.monotonic()
        with self._telling:
            if not self._stop.is_set():
                self._on_change(name, seen.config_map)
