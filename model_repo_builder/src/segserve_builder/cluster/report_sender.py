"""Sends what a pod reports into its key of the group's reports ConfigMap."""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.cluster.config_maps import ApiError
from segserve_builder.cluster.pause import Pause
from segserve_builder.cluster.shards import pack

if TYPE_CHECKING:
    from segserve_builder.cluster.config_maps import ConfigMaps

SHORTEST_INTERVAL_S: Final = 0.2
CHECK_S: Final = 20.0
JOIN_S: Final = 5.0
_LOG = logging.getLogger(__name__)


class ReportSender:
    """Keeps `binaryData[key]` of the ConfigMap `name` equal to the newest report, by at most 5 writes a second.

    Nothing is written while nothing changes. Now and then it looks whether what it wrote is still there: somebody may
    have deleted the ConfigMap, and it was made anew.
    """

    def __init__(self, config_maps: ConfigMaps, name: str, key: str) -> None:
        self._config_maps = config_maps
        self._name = name
        self._key = key
        self._newest: str | None = None
        self._sent: str | None = None
        self._check_at_s = 0.0
        self._answered_s: float | None = None
        self._stopped = False
        self._asked = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"report to {name}", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End; what was not sent yet is not sent any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(JOIN_S)

    def send(self, report: Any) -> None:
        """Make a JSON value the newest report; returns at once."""
        content = pack(report)
        with self._changed:
            if content != self._newest:
                self._newest = content
                self._changed.notify_all()

    def check(self) -> None:
        """Look at once whether what was written is still there, and try at once what failed."""
        with self._changed:
            self._check_at_s = 0.0
            self._asked = True
            self._changed.notify_all()

    def answered_age_s(self) -> float | None:
        """Return for how many seconds the API has not answered, None where it never did."""
        return None if self._answered_s is None else time.monotonic() - self._answered_s

    def _run(self) -> None:
        pause = Pause()
        while (newest := self._next()) is not None:
            try:
                if newest != self._sent or not self._is_stored(newest):
                    self._config_maps.patch_binary(self._name, self._key, newest)
                self._sent, self._answered_s = newest, time.monotonic()
                self._check_at_s = time.monotonic() + CHECK_S * random.uniform(0.8, 1.2)
                pause.reset()
                self._wait(SHORTEST_INTERVAL_S)
            except ApiError as error:
                _LOG.warning("the report to %s was not sent: %s", self._name, error)
                self._wait(pause.next_s(), unless_asked=True)

    def _next(self) -> str | None:
        """Wait until there is something to send or to check, and return what should be stored; None at the end."""
        with self._changed:
            while not self._stopped:
                if self._newest is not None:
                    left_s = self._check_at_s - time.monotonic()
                    if self._newest != self._sent or left_s <= 0:
                        return self._newest
                    self._changed.wait(left_s)
                else:
                    self._changed.wait()
            return None

    def _is_stored(self, content: str) -> bool:
        stored = self._config_maps.get(self._name).get("binaryData") or {}
        return bool(stored.get(self._key) == content)

    def _wait(self, seconds: float, *, unless_asked: bool = False) -> None:
        deadline_s = time.monotonic() + seconds
        with self._changed:
            while not self._stopped and (left_s := deadline_s - time.monotonic()) > 0:
                if unless_asked and self._asked:
                    break
                self._changed.wait(left_s)
            self._asked = False
