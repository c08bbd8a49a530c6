"""Watches ConfigMaps by name, and eventually delivers the newest state of each."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

from segserve_common.errors import ControlError
from segserve_common.kube.client import KubeClient
from segserve_common.kube.kinds import CONFIG_MAPS
from segserve_common.kube.requests import Selector, WatchEvent
from segserve_common.kube.watch import DELETED, Reflector

ConfigMap: TypeAlias = Mapping[str, Any]

JOIN_S: Final = 5.0
_log = logging.getLogger(__name__)


class ConfigMapWatch:
    """Calls `on_change` for each ConfigMap in `names`: at first, and whenever it changes, appears or is deleted.

    The callback gets the name and the object (None if it does not exist), one call at a time, from threads of its own;
    it may get the same content again. Its errors are logged, and it is called again. While the API server cannot be
    reached nothing is delivered.
    """

    def __init__(
        self, client: KubeClient, names: Sequence[str], on_change: Callable[[str, ConfigMap | None], None]
    ) -> None:
        self._client = client
        self._on_change = on_change
        self._delivering = threading.Lock()
        self._stopped = threading.Event()
        self._reflectors = [self._reflector(name) for name in names]

    def start(self) -> None:
        """Start the watches; returns at once."""
        for reflector in self._reflectors:
            reflector.start()

    def stop(self) -> None:
        """End the watches, and close the client."""
        self._stopped.set()
        for reflector in self._reflectors:
            reflector.stop()
        self._client.close()
        for reflector in self._reflectors:
            reflector.join(JOIN_S)

    def contact_age_s(self) -> float:
        """Return the seconds since the API server last answered, for the watch that has waited longest."""
        return time.monotonic() - min(reflector.contact_s for reflector in self._reflectors)

    def _reflector(self, name: str) -> Reflector:
        def on_event(event: WatchEvent) -> None:
            self._deliver(name, None if event.type == DELETED else event.object)

        return Reflector(
            self._client,
            # A Role with resourceNames allows a list or watch only with this field selector.
            Selector(CONFIG_MAPS, fields=f"metadata.name={name}"),
            on_list=lambda items: self._deliver(name, next(iter(items), None)),
            on_event=on_event,
            on_error=partial(_warn, name),
        )

    def _deliver(self, name: str, config_map: ConfigMap | None) -> None:
        with self._delivering:
            if not self._stopped.is_set():
                self._on_change(name, config_map)


def _warn(name: str, error: ControlError) -> None:
    _log.warning("%s is watched again: %s", name, error)
