"""The processes that get copies of requests beside the local gateway: the comparator, and the capture service."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import httpx

from segserve_builder.capture.rule import CaptureFolder
from segserve_builder.comparator import fetching
from segserve_builder.comparator.folder import ComparatorFolder
from segserve_builder.sources.access import ACCESS_VARIABLE, Access
from segserve_common.files import private_folder
from segserve_common.interpreter import python
from segserve_operator.adapters.local import processes
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.traffic.envoy_config import EnvoyFiles

IDLE_S: Final = 60.0
"""How long it goes on when nothing is compared: a rollout may be tried again at once."""
START_INTERVAL_S: Final = 1.0
END_GRACE_S: Final = 5.0


class CopyService:
    """A child process that gets copies of requests: started when it is needed, restarted if it ends by itself.

    It is the module `module` with `arguments`, and leaves `sockets` if it is killed. `name` is its log's.
    """

    def __init__(
        self,
        state: StateFolder,
        name: str,
        module: str,
        arguments: Sequence[str],
        sockets: Sequence[Path],
        *,
        environment: Mapping[str, str] | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._name = name
        self._command = python("-m", module, *arguments)
        self._sockets = sockets
        self._environment = environment or {}
        self._monotonic_s = monotonic_s
        self._record = state.gateway / f"{name}.process.json"
        self._started_s = float("-inf")
        self._wanted_s = float("-inf")
        self._is_own = False

    def keep(self, *, wanted: bool, idle_s: float = IDLE_S) -> None:
        """Look after the process in each of the supervisor's passes; if not needed, it goes on for `idle_s`."""
        now_s = self._monotonic_s()
        if wanted:
            self._wanted_s = now_s
        running = processes.read_record(self._record)
        alive = processes.is_alive(running)
        # What an earlier supervisor started may be of another version of segserve.
        if alive and (not self._is_own or now_s - self._wanted_s >= idle_s):
            processes.end(running, grace_s=END_GRACE_S)
            alive = False
        # One that ends at once is started once per interval.
        if wanted and not alive and now_s - self._started_s >= START_INTERVAL_S:
            self._start(now_s)

    def _start(self, now_s: float) -> None:
        self._started_s, self._is_own = now_s, True
        for socket in self._sockets:
            private_folder(socket.parent)
            socket.unlink(missing_ok=True)
        processes.start(
            self._command,
            record=self._record,
            log=self._state.gateway / f"{self._name}.log",
            environment={**os.environ, **self._environment},
            state=self._state.root,
        )


def local_comparator(
    state: StateFolder,
    folder: ComparatorFolder,
    *,
    internal_url: str,
    max_request_bytes: int,
    monotonic_s: Callable[[], float] = time.monotonic,
) -> CopyService:
    """Return the comparator in `folder`, which calls the gateway's listener `internal_url`."""
    arguments = [str(folder.path), "--gateway", internal_url, "--max-request-bytes", str(max_request_bytes)]
    sockets = (folder.copies, folder.control)
    return CopyService(state, "comparator", "segserve_builder.comparator", arguments, sockets, monotonic_s=monotonic_s)


def local_capture(
    state: StateFolder, folder: CaptureFolder, access: Access, *, internal_url: str, max_request_bytes: int
) -> CopyService:
    """Return the capture service in `folder`; it reaches stores with `access`."""
    arguments = [str(folder.path), "--gateway", internal_url, "--max-request-bytes", str(max_request_bytes)]
    environment = {ACCESS_VARIABLE: access.model_dump_json()}
    sockets = (folder.copies, folder.control)
    return CopyService(state, "capture", "segserve_builder.capture", arguments, sockets, environment=environment)


def fetch_sheet(state: StateFolder, model: str) -> bytes | None:
    """Return the sheet of a model's pairs that differ most, `comparator.sheet.Sheet` as JSON.

    None if there is no comparator, or if it has no pairs of this model. Raises `RequestError` if it answers otherwise
    than with a sheet within bounds.
    """
    socket = EnvoyFiles(state.gateway).comparator.control
    return fetching.fetch_sheet(httpx.HTTPTransport(uds=str(socket)), model) if socket.exists() else None
