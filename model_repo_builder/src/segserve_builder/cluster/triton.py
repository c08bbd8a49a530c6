"""Starts Triton in its container and ends with it: `python3 -m segserve_builder.cluster.triton`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import psutil

from segserve_builder.agent import secret
from segserve_builder.cluster.bounded_log import BoundedLog
from segserve_builder.cluster.process_link import LauncherLink
from segserve_builder.cluster.settings import TritonSettings
from segserve_builder.memory import STEP_LIMIT_VARIABLE, step_limit_bytes
from segserve_builder.render.tritonserver import SILENT, STEP_ENVIRONMENT, server_arguments, sweep_shm
from segserve_common.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import FrameType
    from typing import IO

PAUSE_AFTER_CRASH_S: Final = 3.0
_HTTP_LIMIT_SINCE: Final = (25, 7)
_READ_BYTES: Final = 64 * 1024
_SHARED_MODE: Final = 0o775
"""Of the repository: the agent is another user of the same group."""


def main() -> None:
    """Run Triton until SIGTERM or its own end, and exit with its code."""
    sys.exit(Launcher(TritonSettings.of(os.environ)).run())


def arguments(settings: TritonSettings, api_secret: str) -> tuple[str, ...]:
    """Return Triton's command line; it starts without models, and its restricted APIs require `api_secret`."""
    # Older releases exit with an error at arguments that they do not have.
    newer = []
    if settings.max_request_bytes is not None and settings.target.release >= _HTTP_LIMIT_SINCE:
        newer.append(f"--http-max-input-size={settings.max_request_bytes}")
    if settings.target.has_histograms:
        newer.append("--metrics-config=histogram_latencies=true")
    common = server_arguments(
        settings.executable,
        settings.folder.repository,
        settings.backends,
        address=settings.address,
        ports=settings.ports,
        exit_timeout_s=settings.exit_timeout_s,
        shm_prefix=settings.shm_prefix,
    )
    return (*common, *secret.server_arguments(api_secret), *newer)


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of Triton and its steps; variables of the user take precedence.

    Raises `StepMemoryError` if the user's limit of a step's memory is not a number of bytes.
    """
    return STEP_ENVIRONMENT | SILENT | dict(inherited) | {STEP_LIMIT_VARIABLE: str(step_limit_bytes(inherited))}


class Launcher:
    """The init process of the container: forwards signals to Triton, reaps orphans, and ends with Triton."""

    def __init__(self, settings: TritonSettings) -> None:
        self._settings = settings
        self._ending = threading.Event()
        self._server: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Start Triton, wait for its end, and return its exit code, or 128 plus the signal that killed it."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._forward)
        folder = self._settings.folder
        folder.repository.mkdir(parents=True, exist_ok=True)
        with suppress(PermissionError):  # it is the agent's, who came first
            folder.repository.chmod(_SHARED_MODE)
        if folder.record.exists():
            # Gateways still route to the crashed server: an empty one would answer their requests with errors.
            self._ending.wait(PAUSE_AFTER_CRASH_S)
        if self._ending.is_set():
            return 0
        sweep_shm(self._settings.shm_prefix)
        return self._serve()

    def _serve(self) -> int:
        folder = self._settings.folder
        log = BoundedLog(folder.log)
        server = subprocess.Popen(
            arguments(self._settings, secret.obtain(folder.secret)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(os.environ),
            bufsize=0,
        )
        self._server = server
        if self._ending.is_set():
            server.terminate()  # the signal came just before there was a server
        _write_record(folder.record, server.pid)
        link = LauncherLink(folder.root, folder.record)
        tee = threading.Thread(target=_tee, args=(server.stdout, log), name="log", daemon=True)
        tee.start()
        code = _wait_for(server)
        link.close()
        tee.join(1.0)  # a step that outlives its server keeps the pipe open
        return code

    def _forward(self, number: int, _: FrameType | None) -> None:
        self._ending.set()
        if self._server is not None and self._server.returncode is None:
            self._server.send_signal(number)


def _write_record(path: Path, pid: int) -> None:
    replace_file(path, json.dumps({"pid": pid, "create_time": psutil.Process(pid).create_time()}))


def _wait_for(server: subprocess.Popen[bytes]) -> int:
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == server.pid:
            code = os.waitstatus_to_exitcode(status)
            server.returncode = code
            return code if code >= 0 else 128 - code


def _tee(source: IO[bytes], log: BoundedLog) -> None:
    while data := source.read(_READ_BYTES):
        # Continue after an error of the log: a full pipe would block the server.
        with suppress(OSError):
            log.write(data)
        with suppress(OSError):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
