"""Starts Triton in its container and ends with it: `python3 -m segserve_builder.cluster.triton`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from segserve_builder.cluster import secret
from segserve_builder.cluster.bounded_log import BoundedLog
from segserve_builder.cluster.settings import TritonSettings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType
    from typing import IO

PAUSE_AFTER_CRASH_S: Final = 3.0
_HTTP_LIMIT_SINCE: Final = (25, 7)
_SHM_FOLDER: Final = Path("/dev/shm")
_READ_BYTES: Final = 64 * 1024
_ENVIRONMENT: Final = {
    # Each stub is a process of its own; ONNX Runtime has its own setting.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    # Steps keep what they free between requests: to give pages back and fault them in again costs more than the work.
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "ORT_DISABLE_TELEMETRY": "1",
}


def main() -> None:
    """Serve until SIGTERM or until Triton ends, and exit as it did."""
    sys.exit(Launcher(TritonSettings.of(os.environ)).run())


def arguments(settings: TritonSettings, word: str) -> tuple[str, ...]:
    """Return Triton's command line: it holds nothing at first, and restricted questions need the `word`."""
    ports, address = settings.ports, settings.address
    newer = []
    if settings.max_request_bytes is not None and settings.target.release >= _HTTP_LIMIT_SINCE:
        newer.append(f"--http-max-input-size={settings.max_request_bytes}")
    if settings.target.has_histograms:
        newer.append("--metrics-config=histogram_latencies=true")
    return (
        str(settings.executable),
        f"--model-repository={settings.folder.repository}",
        f"--backend-directory={settings.backends}",
        "--model-control-mode=explicit",
        "--strict-readiness=false",  # else one failed load makes the whole server unready for good
        "--disable-auto-complete-config",  # configurations are complete; guessing starts every stub twice
        f"--exit-timeout-secs={settings.exit_timeout_s}",
        f"--http-address={address}",
        f"--http-port={ports.http}",
        f"--grpc-address={address}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-address={address}",
        f"--metrics-port={ports.metrics}",
        f"--backend-config=python,shm-region-prefix-name={settings.shm_prefix}",
        *secret.server_arguments(word),
        *newer,
    )


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of Triton and its steps; what a user set wins."""
    return _ENVIRONMENT | dict(inherited)


class Launcher:
    """The first process of a container: signals go on to Triton, what was orphaned is reaped, its end is ours."""

    def __init__(self, settings: TritonSettings) -> None:
        self._settings = settings
        self._ending = threading.Event()
        self._server: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Start Triton, wait for its end, and return its exit code; 128 and the signal where one killed it."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._forward)
        folder = self._settings.folder
        folder.repository.mkdir(parents=True, exist_ok=True)
        if folder.record.exists():
            # Until the gateways have heard that the earlier server is gone, they would take an empty one for it.
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
        tee = threading.Thread(target=_tee, args=(server.stdout, log), name="log", daemon=True)
        tee.start()
        code = _wait_for(server)
        tee.join(1.0)  # a step that outlives its server keeps the pipe open
        return code

    def _forward(self, number: int, _: FrameType | None) -> None:
        self._ending.set()
        if self._server is not None and self._server.returncode is None:
            self._server.send_signal(number)


def sweep_shm(prefix: str) -> None:
    """Remove the shared memory that an earlier server of this pod left."""
    for path in _SHM_FOLDER.glob(f"{prefix}*"):
        path.unlink(missing_ok=True)


def _write_record(path: Path, pid: int) -> None:
    staging = path.with_name(f".{path.name}.new")
    staging.write_text(json.dumps({"pid": pid, "create_time": psutil.Process(pid).create_time()}))
    staging.replace(path)


def _wait_for(server: subprocess.Popen[bytes]) -> int:
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == server.pid:
            code = os.waitstatus_to_exitcode(status)
            server.returncode = code
            return code if code >= 0 else 128 - code


def _tee(source: IO[bytes], log: BoundedLog) -> None:
    while data := source.read(_READ_BYTES):
        # Whatever becomes of the log: a pipe that nobody empties would stop the server.
        with suppress(OSError):
            log.write(data)
        with suppress(OSError):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
