"""The local gateway's comparator: a child process that runs while some model's revisions are compared."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Final

import httpx

from segserve_builder.comparator import fetching
from segserve_builder.comparator.folder import ComparatorFolder
from segserve_builder.comparator.kept import KEPT_S
from segserve_operator.adapters.local import processes
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.traffic.envoy_config import EnvoyFiles

IDLE_S: Final = 60.0
"""How long it goes on when nothing is compared: a rollout may be tried again at once."""
START_INTERVAL_S: Final = 1.0
END_GRACE_S: Final = 5.0


class LocalComparator:
    """Starts the process in `folder` when it is wanted, again if it ends by itself, and ends it when it no longer is.

    It asks the gateway's listener `internal_url`, and takes copies of at most `max_request_bytes`.
    """

    def __init__(
        self,
        state: StateFolder,
        folder: ComparatorFolder,
        *,
        internal_url: str,
        max_request_bytes: int,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._folder = folder
        self._arguments = ["--gateway", internal_url, "--max-request-bytes", str(max_request_bytes)]
        self._monotonic_s = monotonic_s
        self._record = state.gateway / "comparator.process.json"
        self._started_s = float("-inf")
        self._wanted_s = float("-inf")
        self._is_own = False

    def keep(self, *, wanted: bool, keeps_pairs: bool = False) -> None:
        """Look after the process, as often as the supervisor passes; if it has pairs to keep, it goes on longer."""
        now_s = self._monotonic_s()
        if wanted:
            self._wanted_s = now_s
        running = processes.read_record(self._record)
        alive = processes.is_alive(running)
        # What an earlier supervisor started may be of another version of segserve.
        if alive and (not self._is_own or now_s - self._wanted_s >= (KEPT_S if keeps_pairs else IDLE_S)):
            processes.end(running, grace_s=END_GRACE_S)
            alive = False
        # One that ends at once is started once per interval.
        if wanted and not alive and now_s - self._started_s >= START_INTERVAL_S:
            self._start(now_s)

    def _start(self, now_s: float) -> None:
        self._started_s, self._is_own = now_s, True
        self._folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for socket in (self._folder.copies, self._folder.replays, self._folder.control):
            socket.unlink(missing_ok=True)  # one that was killed leaves them
        processes.start(
            [sys.executable, "-m", "segserve_builder.comparator", str(self._folder.path), *self._arguments],
            record=self._record,
            log=self._state.gateway / "comparator.log",
            environment=os.environ,
            state=self._state.root,
        )


def fetch_sheet(state: StateFolder, model: str) -> bytes | None:
    """Return the sheet of a model's pairs that differ most, `comparator.sheet.Sheet` as JSON.

    None if there is no comparator, or if it has no pairs of this model. Raises `RequestError` if it answers otherwise
    than with a sheet within bounds.
    """
    socket = EnvoyFiles(state.gateway).comparator.control
    return fetching.fetch_sheet(httpx.HTTPTransport(uds=str(socket)), model) if socket.exists() else None
