"""Questions of the agent about Triton's processes, which its container cannot see, and the launcher's answers.

They share the pod's network alone, so the launcher listens on an abstract socket, whose name follows from the folder
that both have. Whoever else could ask learns which steps run, and can end Triton or a step that is idle.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.agent.processes import (
    ProcessUse,
    ServerUse,
    StepProcesses,
    gpu_count,
    resident_bytes,
    server_use,
)
from segserve_builder.agent.state import StepDeath
from segserve_builder.gpus import visible_gpus

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MAX_MESSAGE_BYTES: Final = 8 * 2**20
"""A question names the steps of all models: 10,000 of them take 1 MiB."""
_ANSWER_S: Final = 5.0


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
    """Return the JSON value of a line; ValueError if it is none, or longer than `_MAX_MESSAGE_BYTES`."""
    with connection.makefile("rb") as stream:
        line = stream.readline(_MAX_MESSAGE_BYTES)
    if not line.endswith(b"\n"):
        raise ValueError("a message is cut off, or too long")
    try:
        return json.loads(line)
    except RecursionError as error:
        raise ValueError("a message is too deep") from error
