"""Starts Triton in its container and ends with it: `python3 -m segserve_builder.cluster.triton`.

The agent's container cannot see Triton's processes: the agent queries the launcher. They share only the
pod's network, so the launcher listens on an abstract socket, whose name follows from the folder that both have.
Any other process in the pod's network can query which steps run, and end Triton or a step that is idle.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.agent import secret
from segserve_builder.agent.processes import (
    ProcessUse,
    ServerUse,
    StepProcesses,
    gpu_count,
    resident_bytes,
    server_use,
)
from segserve_builder.agent.server import Repository
from segserve_builder.agent.state import StepDeath
from segserve_builder.cluster.settings import TritonSettings
from segserve_builder.errors import ServerSlowError
from segserve_builder.gpus import visible_gpus
from segserve_builder.memory import STEP_LIMIT_VARIABLE, step_limit_bytes
from segserve_builder.render.tritonserver import SILENT, STEP_ENVIRONMENT, server_arguments, sweep_shm
from segserve_builder.spec.names import ENGINES
from segserve_builder.steps.crash_record import forget_crashes
from segserve_builder.steps.engine_cache import FOLDER_VARIABLE
from segserve_common.files import replace_file
from segserve_common.process_record import ProcessRecord
from segserve_common.triton_log import TritonLogReader

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType
    from typing import IO

    from segserve_builder.agent.state import Ensemble

_MAX_MESSAGE_BYTES: Final = 8 * 2**20
"""A question names the steps of all models: 10,000 of them take 1 MiB."""
_ANSWER_S: Final = 5.0
START_S: Final = 60.0
"""The agent's container may start this much earlier than Triton's without a word in a status."""
_PAUSE_S: Final = 0.5
PAUSE_AFTER_CRASH_S: Final = 3.0
NVIDIA_ENTRYPOINT: Final = Path("/opt/nvidia/nvidia_entrypoint.sh")
_NO_GPUS: Final = ("", "void", "none")
_READ_BYTES: Final = 64 * 1024
_MAX_LINE_BYTES: Final = 2**20
OWNERS_INTERVAL_S: Final = 5.0
"""Time between two looks at which model has a step, for lines of JSON."""
_SHARED_MODE: Final = 0o775
"""Mode of the repository: the agent is another user of the same group."""
MAX_BYTES: Final = 20 * 2**20


class LauncherLink:
    """The launcher's end: answers questions about the processes that `record` names, until it is closed."""

    def __init__(self, folder: Path, record: Path) -> None:
        self._record = record
        self._processes = StepProcesses(record)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(_address(folder))
        self._listener.listen()
        threading.Thread(target=self._serve, name="process link", daemon=True).start()

    def close(self) -> None:
        """Refuse further questions, as the end of the process does."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            # A question that cannot be read or answered is the asker's trouble.
            with connection, suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                connection.settimeout(_ANSWER_S)
                _send(connection, self._answer(_receive(connection)))

    def _answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        if question.get("gpus"):
            return {"gpus": visible_gpus()}
        if question.get("devices"):
            return {"devices": gpu_count()}
        if question.get("endServer"):
            self._processes.end_server()
            return {}
        if question.get("memory"):
            return {"residentBytes": resident_bytes(self._record)}
        if question.get("use"):
            began_s = time.thread_time()
            uses = server_use(self._record)
            own = {"launcher": ProcessUse("", time.process_time(), 0.0)}
            took_s = time.thread_time() - began_s
            return {"uses": None if uses is None else {**uses, **own}, "gpus": gpu_count(), "lookCpuS": took_s}
        if "loading" in question:
            loading = {str(step): float(age_s) for step, age_s in question["loading"].items()}
            return {"ended": sorted(self._processes.end_idle(loading))}
        needed = {str(step): int(count) for step, count in question["needed"].items()}
        short = sorted(self._processes.short_of(needed)) if needed else []
        deaths = {step: [death.at_s, death.cause] for step, death in self._processes.deaths.items()}
        return {"serverRuns": self._processes.server_runs(), "short": short, "deaths": deaths}


class LinkedProcesses:
    """The agent's end, used like `StepProcesses`."""

    def __init__(self, folder: Path) -> None:
        self._address = _address(folder)
        self.deaths: dict[str, StepDeath] = {}
        """The last death of each step whose end could be read."""

    def server_runs(self) -> bool | None:
        """Return whether the server runs: False without a launcher, None if the launcher does not answer in time."""
        try:
            runs: bool | None = self._ask({"needed": {}})["serverRuns"]
        except ConnectionRefusedError:
            return False
        except (OSError, ValueError, KeyError):
            return None
        return runs

    def short_of(self, needed: Mapping[str, int]) -> frozenset[str]:
        """Return the steps with fewer live processes than `needed` says; none if the launcher does not answer."""
        try:
            answer = self._ask({"needed": dict(needed)})
            deaths = {str(step): StepDeath(float(at_s), str(cause)) for step, (at_s, cause) in answer["deaths"].items()}
            short = frozenset(map(str, answer["short"])) & needed.keys()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return frozenset()
        self.deaths |= {step: death for step, death in deaths.items() if step in needed}
        return short

    def end_idle(self, loading: Mapping[str, float]) -> frozenset[str]:
        """End idle processes of the steps `loading`, and return their steps: see `StepProcesses`."""
        try:
            return frozenset(map(str, self._ask({"loading": dict(loading)})["ended"])) & loading.keys()
        except (OSError, ValueError, KeyError, TypeError):
            return frozenset()

    def end_server(self) -> None:
        """End the server, whose container then starts it again: see `StepProcesses`."""
        with suppress(OSError, ValueError):
            self._ask({"endServer": True})

    def resident_bytes(self) -> float | None:
        """Return the memory of the server and its steps in bytes, None if it is not known."""
        try:
            found = self._ask({"memory": True})["residentBytes"]
            return None if found is None else float(found)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def gpus(self) -> tuple[str, ...]:
        """Return the server's GPUs by name, driver and compute capability; none if the launcher does not answer."""
        try:
            return tuple(map(str, self._ask({"gpus": True})["gpus"]))
        except (OSError, ValueError, KeyError, TypeError):
            return ()

    def gpu_count(self) -> int:
        """Return the number of NVIDIA devices of the server's container, once it runs; raises `ServerSlowError`."""
        until_s = time.monotonic() + START_S
        while True:
            try:
                return int(self._ask({"devices": True})["devices"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                if time.monotonic() > until_s:
                    text = f"Triton's container has not answered for {START_S:.0f} s how many GPUs it has"
                    raise ServerSlowError(text) from error
            time.sleep(_PAUSE_S)

    def uses(self) -> ServerUse | None:
        """Return the use of the server's processes; None if that is not known."""
        try:
            answer = self._ask({"use": True})
            uses = {str(key): ProcessUse(str(step), float(cpu), float(memory))
                    for key, (step, cpu, memory) in answer["uses"].items()}  # fmt: skip
            return ServerUse(uses, int(answer["gpus"]), float(answer["lookCpuS"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_ANSWER_S)
            connection.connect(self._address)
            _send(connection, question)
            answer = _receive(connection)
        if not isinstance(answer, dict):
            raise ValueError("the launcher's answer is not an object")
        return answer


def _address(folder: Path) -> str:
    return "\0segserve-processes-" + hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket) -> Any:
    """Return the JSON value of a line; ValueError if it is not JSON, or longer than `_MAX_MESSAGE_BYTES`."""
    with connection.makefile("rb") as stream:
        line = stream.readline(_MAX_MESSAGE_BYTES)
    if not line.endswith(b"\n"):
        raise ValueError("a message is cut off, or too long")
    try:
        return json.loads(line)
    except RecursionError as error:
        raise ValueError("a message is too deep") from error


class BoundedLog:
    """Appends to a file; no other process may write to it."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Append data; if the file exceeds its limit, keep about half of it."""
        self._file.write(data)
        if self._file.tell() > self._max_bytes:
            with self._path.open("rb") as old:
                old.seek(-(self._max_bytes // 2), 2)
                old.readline()  # the rest of a line whose beginning is cut off
                end = old.read()
            replace_file(self._path, end)
            self._file.close()
            self._file = self._path.open("ab", buffering=0)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def main() -> None:
    """Run Triton until SIGTERM or its own end, and exit with its code."""
    sys.exit(Launcher(TritonSettings.of(os.environ)).run())


def arguments(settings: TritonSettings, api_secret: str) -> tuple[str, ...]:
    """Return Triton's command line; it starts without models, and its restricted APIs require `api_secret`."""
    common = server_arguments(
        settings.executable,
        settings.folder.repository,
        settings.backends,
        settings.target,
        address=settings.address,
        ports=settings.ports,
        exit_timeout_s=settings.exit_timeout_s,
        shm_prefix=settings.shm_prefix,
        traces_url=settings.traces_url,
        max_request_bytes=settings.max_request_bytes,
    )
    return (*common, *secret.server_arguments(api_secret))


def gpu_entrypoint(inherited: Mapping[str, str]) -> tuple[str, ...]:
    """Return the entrypoint of NVIDIA's images, which prepares them for the node's driver and then becomes Triton.

    Without it CUDA does not start on a driver that is older than the image. Empty without such a file, or a GPU.
    """
    has_gpus = inherited.get("NVIDIA_VISIBLE_DEVICES", "") not in _NO_GPUS
    return (str(NVIDIA_ENTRYPOINT),) if has_gpus and NVIDIA_ENTRYPOINT.exists() else ()


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
        with suppress(PermissionError):  # it is the agent's, which came first
            folder.repository.chmod(_SHARED_MODE)
        if folder.record.exists():
            # Gateways still route to the crashed server: an empty one would answer their requests with errors.
            self._ending.wait(PAUSE_AFTER_CRASH_S)
        if self._ending.is_set():
            return 0
        sweep_shm(self._settings.shm_prefix)
        forget_crashes(folder.repository)
        return self._serve()

    def _serve(self) -> int:
        folder = self._settings.folder
        log = BoundedLog(folder.log)
        server = subprocess.Popen(
            (*gpu_entrypoint(os.environ), *arguments(self._settings, secret.obtain(folder.secret))),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(os.environ) | {FOLDER_VARIABLE: str(folder.root / ENGINES)},
            bufsize=0,
        )
        self._server = server
        if self._ending.is_set():
            server.terminate()  # the signal came just before there was a server
        replace_file(folder.record, ProcessRecord.of(server.pid).to_json())
        link = LauncherLink(folder.root, folder.record)
        shown = None
        if self._settings.log_format == "json":
            shown = JsonLog()
            follow = partial(shown.follow, Repository(folder.repository), self._ending)
            threading.Thread(target=follow, name="owners", daemon=True).start()
        tee = threading.Thread(target=_tee, args=(server.stdout, log, shown), name="log", daemon=True)
        tee.start()
        code = _wait_for(server)
        link.close()
        tee.join(1.0)  # a step that outlives its server keeps the pipe open
        return code

    def _forward(self, number: int, _: FrameType | None) -> None:
        self._ending.set()
        if self._server is not None and self._server.returncode is None:
            self._server.send_signal(number)


def _wait_for(server: subprocess.Popen[bytes]) -> int:
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == server.pid:
            code = os.waitstatus_to_exitcode(status)
            server.returncode = code
            return code if code >= 0 else 128 - code


class JsonLog:
    """Makes lines of JSON of Triton's output, which may come in pieces."""

    def __init__(self) -> None:
        self._owners: Mapping[str, Mapping[str, str]] = {}
        self._reader = TritonLogReader(lambda step: self._owners.get(step, {}))
        self._rest = b""

    def convert(self, data: bytes) -> bytes:
        """Return the lines that are whole with `data`, without which the output has ended."""
        *lines, self._rest = (self._rest + (data or b"\n")).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        now = datetime.now(UTC)
        records = [record for line in lines for record in self._read(line.decode(errors="replace"), now)]
        if not data:
            records += self._reader.flush()
        written = {"time": now.isoformat(timespec="milliseconds")}
        return "".join(json.dumps(written | record) + "\n" for record in records).encode()

    def follow(self, repository: Repository, ending: threading.Event) -> None:
        """Keep up with the models that steps belong to, until the end.

        Reading a repository takes too long for the thread that empties Triton's pipe: a full one blocks the server.
        """
        while not ending.is_set():
            with suppress(OSError):
                self._owners = _owners(repository.ensembles())
            ending.wait(OWNERS_INTERVAL_S)

    def _read(self, line: str, now: datetime) -> list[dict[str, Any]]:
        try:
            return self._reader.read(line, now)
        except Exception:  # the lines around it are written
            return [{"level": "info", "logger": "triton", "message": line}]


def _owners(ensembles: Mapping[str, Ensemble]) -> dict[str, dict[str, str]]:
    """Return `model` and `revision` of each step, and each member of a shared one, that only one model has."""
    names: defaultdict[str, set[str]] = defaultdict(set)
    for name, ensemble in ensembles.items():
        for folder in ensemble.folders:
            names[folder].add(name)
    owners = {}
    for folder, having in names.items():
        # A model's bare network is an ensemble of the same steps.
        models = [name for name in having if name.rpartition(".")[0] not in having]
        if len(models) == 1:
            owners[folder] = {"model": models[0], "revision": ensembles[models[0]].revision}
    return owners


def _tee(source: IO[bytes], log: BoundedLog, shown: JsonLog | None) -> None:
    ended = False
    while not ended:
        data = source.read(_READ_BYTES)
        ended = not data
        # Continue after an error in the log, whatever is in a line: a full pipe would block the server.
        with suppress(OSError):
            log.write(data)
        with suppress(Exception):
            sys.stdout.buffer.write(data if shown is None else shown.convert(data))
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
