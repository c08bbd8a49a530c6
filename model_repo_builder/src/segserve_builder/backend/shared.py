"""Steps inside Triton that many models share: the members of each are opened as they appear, and run in one process."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

from segserve_builder.backend import net, post
from segserve_builder.backend.metrics import MetricsReporter
from segserve_builder.backend.responses import error_response, log_error, running_member, unavailable_response
from segserve_builder.errors import BadImageError, BuilderError
from segserve_builder.memory import allow_total, limit_allocations, process_bytes, total_allowed
from segserve_builder.spec.members import NOT_OPENED, OPENING, OPTIONS_FILE, member_name, member_prefix, selected
from segserve_builder.spec.names import AGENT_REQUEST_ID
from segserve_builder.steps.crash_record import CrashRecord
from segserve_builder.steps.session import share_sessions
from segserve_builder.steps.step_options import MODEL_FILE, PARAMETER

LOOK_S: Final = 0.1
"""Time between two looks for new members; each reads only the time of the repository's last change."""
KEPT_S: Final = 120.0
"""A member stays open after its folder went: requests that Triton began with the former ensemble still reach it."""
RETRY_S: Final = 1.0
"""Time before a member that could not be opened is opened again, doubled after each further failure."""
LONGEST_RETRY_S: Final = 64.0
RENEW_S: Final = 30.0
"""A member that fails the agent's requests is opened anew, at most once in this time."""
_COARSE_NS: Final = 10**9
_OPEN_BYTES: Final = 4 * 2**20
"""Allowed while a member is opened, and three times its file."""


class PythonStep(Protocol):
    """A step of one model, as Triton calls it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Build the step from its options."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response per request, in order."""


class MemberError(BuilderError):
    """A member's files are not what it is named by, or it ended the process before."""


class NotOpenError(BuilderError):
    """A member is not open yet, or could not be opened a short time ago."""


@dataclass(frozen=True, slots=True)
class _Member:
    """An open member, the memory that it may have in addition to the requests' memory, and when it was opened."""

    step: PythonStep
    allowed_bytes: int
    opened_s: float


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a member could not be opened, how often in a row, and when it is tried again."""

    message: str
    attempts: int
    retry_at_s: float


class SharedStep(ABC):
    """Runs each request by the member that its ensemble selects.

    A thread opens members, so that requests to other members continue, and reopens members that failed. A member that a
    caller needs before its turn is opened at once, but never for a test of the agent.
    """

    kind: ClassVar[str]

    def initialize(self, args: dict[str, str]) -> None:
        """Look for members from now on."""
        folder = Path(args["model_repository"])
        self._name, self._repository = folder.name, folder.parent
        self._members: dict[str, _Member] = {}
        self._failures: dict[str, _Failure] = {}
        self._broken: set[str] = set()
        self._opening = threading.Lock()
        self._record = CrashRecord(self._repository, self._name)
        self._is_limited = limit_allocations() is not None
        self._least_allowed = total_allowed()
        self._runs = 0
        self._closed = threading.Event()
        self._owners: dict[str, str] = {}
        self._changed_ns = 0
        self._gone_s: dict[str, float] = {}
        self._thread = threading.Thread(target=self._follow, name="members", daemon=True)
        self._thread.start()

    def finalize(self) -> None:
        """End the members."""
        self._closed.set()
        self._thread.join()
        for name in tuple(self._members):
            self._close(name)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response per request, in order."""
        responses: list[Any] = []
        for digest, group in groupby(requests, key=self._selected):
            responses += self._run(None if digest is None else member_prefix(self.kind) + digest, list(group))
        return responses

    @abstractmethod
    def _selected(self, request: Any) -> str | None:
        """Return the digest of the member that a request selects."""

    @abstractmethod
    def _step(self) -> PythonStep:
        """Return a member that is not initialized yet."""

    def _run(self, name: str | None, requests: list[Any]) -> list[Any]:
        if name is None:
            error = BadImageError(f"{self._name} is a part of models and cannot be asked by itself")
            return [error_response(error) for _ in requests]
        is_test = all(request.request_id() == AGENT_REQUEST_ID for request in requests)
        try:
            member = self._member(name, is_test=is_test)
        except NotOpenError as error:
            return [unavailable_response(str(error)) for _ in requests]
        self._runs += 1
        with self._record.running(name), running_member(name) as running:
            try:
                responses = member.step.execute(requests)
            except Exception as error:
                responses = [error_response(error, request.request_id()) for request in requests]
        self._runs += 1
        if is_test and running.has_failed and time.monotonic() - member.opened_s > RENEW_S:
            self._broken.add(name)
        return responses

    def _member(self, name: str, *, is_test: bool) -> _Member:
        found = self._members.get(name)
        if found is not None:
            return found
        if failure := self._failures.get(name):
            raise NotOpenError(failure.message)
        if is_test and self._folder(name).exists():
            # Callers of other models do not wait for the network of a model that cannot be called yet.
            raise NotOpenError(f"{name} {OPENING}")
        return self._open(name)

    def _folder(self, name: str) -> Path:
        return self._repository / name

    def _open(self, name: str) -> _Member:
        with self._opening:
            former = self._members.get(name)
            if former is not None and name not in self._broken:
                return former
            with running_member(name):
                try:
                    self._members[name] = member = self._opened(name)
                    self._failures.pop(name, None)
                    self._record.opened(name)
                except Exception as error:
                    log_error(error)
                    attempts = self._failures[name].attempts + 1 if name in self._failures else 1
                    message = f"{name} {NOT_OPENED}: {type(error).__name__}: {error}"
                    self._failures[name] = _Failure(message, attempts, time.monotonic() + _delay_s(attempts))
                    if former is None:
                        self._record.opened(name, message)
                    raise NotOpenError(message) from error
                finally:
                    self._broken.discard(name)
                    self._allow(0)  # an initialized step sets a limit as if it were alone
        if former is not None:
            _finalize(former.step)
        return member

    def _opened(self, name: str) -> _Member:
        if name in self._record.crashed:
            raise MemberError("a process ended while it ran it; another one runs it from now on")
        folder = self._folder(name)
        try:
            text = (folder / OPTIONS_FILE).read_text()
        except FileNotFoundError:
            raise MemberError(f"{self._name} has no member {name}") from None
        content = json.loads(text)
        if member_name(self.kind, content) != name or content["step"] != self._name:
            raise MemberError(f"{folder / OPTIONS_FILE} is not what {name} stands for in {self._name}")
        network = folder / "1" / MODEL_FILE
        size = network.stat().st_size if network.exists() else 0
        step = self._step()
        config = {"parameters": {PARAMETER: {"string_value": content["options"]}}}
        arguments = {"model_config": json.dumps(config), "model_repository": str(folder), "model_version": "1"}
        needed = 3 * size + _OPEN_BYTES
        self._allow(needed)
        runs, before = self._runs, process_bytes("VmData")
        with self._record.opening(name):
            if size:
                _check_artifact(network, content["options"], name)
            step.initialize(arguments)
        grown = process_bytes("VmData") - before
        is_alone = runs % 2 == 0 and runs == self._runs
        # Beside requests, which take memory and give it back, its file says more than a small growth.
        needed = max(grown, 0) if is_alone else min(needed, max(grown, size))
        return _Member(step, needed, time.monotonic())

    def _close(self, name: str) -> None:
        with self._opening:
            member = self._members.pop(name)
            self._record.opened(name, None)
        _finalize(member.step)

    def _allow(self, more_bytes: int) -> None:
        if self._is_limited:
            members = sum(member.allowed_bytes for member in self._members.values())
            allow_total(self._least_allowed + members + more_bytes)

    def _follow(self) -> None:
        failures = 0
        while not self._closed.wait(_delay_s(failures) if failures else LOOK_S):
            try:
                self._look()
                failures = 0
            except Exception as error:  # whatever it was, members that come later are opened
                failures += 1
                log_error(error)

    def _look(self) -> None:
        changed_ns = self._repository.stat().st_mtime_ns
        # The clock of files stands still for some milliseconds: what comes in the same ones leaves no other time.
        if changed_ns != self._changed_ns or time.time_ns() - changed_ns < _COARSE_NS:
            self._list()
            self._changed_ns = changed_ns
        own = {name for name, owner in self._owners.items() if owner == self._name}
        for name in sorted((own - self._members.keys()) | self._broken):
            failure = self._failures.get(name)
            if self._closed.is_set():
                return
            if failure is None or time.monotonic() >= failure.retry_at_s:
                with suppress(NotOpenError):  # a caller of it gets the reason
                    self._open(name)
        for name, since_s in tuple(self._gone_s.items()):
            if time.monotonic() - since_s > KEPT_S:
                del self._gone_s[name]
                self._close(name)

    def _list(self) -> None:
        prefix = member_prefix(self.kind)
        present = {path.name for path in self._repository.iterdir() if path.name.startswith(prefix)}
        for name in self._failures.keys() - (present & self._owners.keys()):
            with self._opening:
                self._failures.pop(name, None)  # it went, or was requested before it came
                if name not in self._members:
                    self._record.opened(name, None)
        self._owners = {name: self._owners.get(name) or self._owner(name) for name in present}
        self._gone_s = {name: self._gone_s.get(name, time.monotonic()) for name in self._members.keys() - present}

    def _owner(self, name: str) -> str:
        """Return the shared step that a member says it belongs to; the one that opens it looks closer."""
        try:
            return str(json.loads((self._folder(name) / OPTIONS_FILE).read_text())["step"])
        except FileNotFoundError:  # it went meanwhile
            return ""
        except (ValueError, TypeError, KeyError):
            return self._name


class SharedNetworks(SharedStep):
    """Networks of equal tensors, on one arena of memory and one pool of threads."""

    kind = "net"

    def initialize(self, args: dict[str, str]) -> None:
        """Look for members from now on."""
        share_sessions()
        super().initialize(args)

    def _selected(self, request: Any) -> str | None:
        return selected(request.requested_output_names())

    def _step(self) -> PythonStep:
        return net.TritonPythonModel(shared=True)


class SharedPostprocess(SharedStep):
    """Last steps of models whose networks and answers have equal tensors."""

    kind = "post"

    def initialize(self, args: dict[str, str]) -> None:
        """Look for members from now on."""
        self._reporter = MetricsReporter()
        # Before memory is limited: its thread is not a member's, nor in the requests' memory.
        self._reporter.start()
        super().initialize(args)

    def finalize(self) -> None:
        """End the members, and what reports their counts."""
        super().finalize()
        self._reporter.end()

    def _selected(self, request: Any) -> str | None:
        return selected(tensor.name() for tensor in request.inputs())

    def _step(self) -> PythonStep:
        return post.TritonPythonModel(self._reporter)


def _delay_s(failures: int) -> float:
    return min(RETRY_S * 2.0 ** min(failures - 1, 10), LONGEST_RETRY_S)


def _finalize(step: PythonStep) -> None:
    if finalize := getattr(step, "finalize", None):
        finalize()


def _check_artifact(network: Path, options: str, member: str) -> None:
    with network.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != json.loads(options)["artifactSha256"]:
        raise MemberError(f"{network} is not the artifact that {member} stands for")
