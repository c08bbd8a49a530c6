"""Writes a pod's reports to its key of the group's ConfigMap, or to a ConfigMap of its own."""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import Any, Final

from segserve_common.api_errors import ApiError, ForbiddenError, NotFoundError
from segserve_common.backoff import Backoff, RetryDelays
from segserve_common.kube.client import KubeClient
from segserve_common.kube.kinds import CONFIG_MAPS
from segserve_common.kube.names import REPORT_KEY
from segserve_common.kube.shards import pack

BACKOFF: Final = Backoff(0.2, 15.0, jitter=(0.5, 1.0))
MIN_INTERVAL_S: Final = 0.2
CHECK_S: Final = 20.0
JOIN_S: Final = 5.0
MAX_LENGTH: Final = 512 * 1024
"""Longest packed report: base64 of at most 384 KiB, of the 1 MiB that a ConfigMap holds."""
_log = logging.getLogger(__name__)


class ReportSender:
    """Keeps `binaryData[key]` of the ConfigMap `name` equal to the newest report, by at most 5 writes a second.

    The ConfigMap `own`, which holds only this report, is used instead if it exists at the start, or as soon as it does
    after `use_own`. Nothing is written while nothing changes. Every `CHECK_S` it checks that the report is still
    stored: the ConfigMap may have been deleted and created again.
    """

    def __init__(self, client: KubeClient, name: str, key: str, own: str | None = None) -> None:
        self._client = client
        self._name = name
        self._key = key
        self._own = own
        self._own_wanted = False
        self._own_found: bool | None = None if own is not None else False
        self._stored_in: str | None = None
        self._newest: str | None = None
        self._sent: str | None = None
        self._check_at_s = 0.0
        self._stopped = False
        self._requested = False
        self._is_shortened = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"report to {name}", daemon=True)

    def start(self) -> None:
        """Start sending; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Stop sending; a report that was not sent yet is dropped."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(JOIN_S)

    def send(self, report: Any) -> None:
        """Make a JSON value the newest report; returns at once.

        One that no ConfigMap holds loses its counts of answers, and then its messages.
        """
        content = pack(report)
        if len(content) > MAX_LENGTH and not self._is_shortened:
            self._is_shortened = True
            text = "the report to %s is too long: it loses counts of answers, then messages"
            _log.warning(text, self._name)
        for part in ("answers", "message"):
            if len(content) > MAX_LENGTH:
                models = [{name: each for name, each in model.items() if name != part} for model in report["models"]]
                report = {**report, "models": models}
                content = pack(report)
        with self._changed:
            if content != self._newest:
                self._newest = content
                self._changed.notify_all()

    def check(self) -> None:
        """Check now that the report is stored, and retry now what failed."""
        with self._changed:
            self._check_at_s = 0.0
            self._requested = True
            self._changed.notify_all()

    def use_own(self) -> None:
        """Use the ConfigMap `own` from now on, and the shared one until it exists."""
        if not self._own_wanted:
            self._own_wanted = True
            self.check()

    def _run(self) -> None:
        delays = RetryDelays(BACKOFF)
        while (newest := self._next()) is not None:
            try:
                if self._own is None or not self._store_in_own(self._own, newest):
                    self._put(self._name, self._key, newest)
                self._sent = newest
                self._check_at_s = time.monotonic() + CHECK_S * random.uniform(0.8, 1.2)
                delays.reset()
                self._wait(MIN_INTERVAL_S)
            except ApiError as error:
                _log.warning("the report to %s was not sent: %s", self._name, error)
                self._wait(delays.next_s(), unless_requested=True)

    def _next(self) -> str | None:
        """Wait until there is a report to send or to check, and return it; None at the end."""
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

    def _store_in_own(self, own: str, content: str) -> bool:
        if self._own_found is False and not self._own_wanted:
            return False
        try:
            self._put(own, REPORT_KEY, content)
        except NotFoundError:
            self._own_found = False
        except ForbiddenError:
            # One that exists must not stay with an old report, and one that never did is nothing to wait for.
            if self._own_found:
                raise
            self._own_found = False
        else:
            self._own_found = True
        return self._own_found

    def _put(self, name: str, key: str, content: str) -> None:
        known = self._sent == content and self._stored_in == name
        if known or self._own_found is None:
            stored = self._client.get(CONFIG_MAPS, name).get("binaryData") or {}
            if stored.get(key) == content:
                self._stored_in = name
                return
        self._client.patch(CONFIG_MAPS, name, {"binaryData": {key: content}})
        self._stored_in = name

    def _wait(self, seconds: float, *, unless_requested: bool = False) -> None:
        deadline_s = time.monotonic() + seconds
        with self._changed:
            while not self._stopped and (left_s := deadline_s - time.monotonic()) > 0:
                if unless_requested and self._requested:
                    break
                self._changed.wait(left_s)
            self._requested = False
