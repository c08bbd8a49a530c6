"""Which member a shared step runs now and which are open, in files: for the next process, and for the agent."""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final

_SERVER: Final = slice(0, 64)
_RUNNING: Final = slice(64, 192)
_OPENING: Final = slice(192, 320)
_PROCESS: Final = slice(320, 384)
_BYTES: Final = _PROCESS.stop
_MODE: Final = 0o775
"""Mode of the record: on a cluster the agent, which parts a member that hangs, is another user of the same group."""
_OPENED: Final = ".members"
"""Suffix after a shared step's name: the file of what became of each member that it was to open, one line each time."""


class CrashRecord:
    """The record of one shared step's process; where nothing can be written, nothing is recorded.

    Members that ended a process are `crashed`. A process that ended because its server did says nothing about one, nor
    does one that is still there: Triton starts the next one first when it loads a step again.
    """

    def __init__(self, repository: Path, step: str) -> None:
        """Read what the former process left, and begin the record of this one."""
        self._memory: mmap.mmap | None = None
        self._opened: int | None = None
        self._told: dict[str, str | None] = {}
        folder = _folder(repository)
        server = _identity(os.getppid())
        self._path = folder / f"{step}{_OPENED}"
        with suppress(OSError):  # whatever becomes of this one's record, the former process's says nothing any more
            self._path.unlink()
        with suppress(OSError, ValueError):
            folder.mkdir(exist_ok=True)
            folder.chmod(_MODE)
            path = folder / step
            former = path.read_bytes() if path.exists() else b""
            # A member that is opened in a thread runs beside another one; the one that served before is not blamed.
            member = _text(former[_OPENING]) or _text(former[_RUNNING])
            if member and _text(former[_SERVER]) == server and not _is_running(_text(former[_PROCESS])):
                (folder / member).touch()
            # Another file: a former process that goes on writes in its own.
            path.unlink(missing_ok=True)
            path.write_bytes(bytes(_BYTES))
            with path.open("r+b") as file:
                self._memory = mmap.mmap(file.fileno(), _BYTES)
            self._opened = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._write(_SERVER, server)
        self._write(_PROCESS, _identity(os.getpid()))
        self.crashed = crashed_members(repository)

    def running(self, member: str) -> AbstractContextManager[None]:
        """Record that `member` runs within the context."""
        return self._recorded(_RUNNING, member)

    def opening(self, member: str) -> AbstractContextManager[None]:
        """Record that `member` is opened within the context."""
        return self._recorded(_OPENING, member)

    def opened(self, member: str, failure: str | None = "") -> None:
        """Report to the agent that `member` is open, or why it cannot be; None: it went."""
        if self._opened is None or self._told.get(member) == failure:
            return
        line = json.dumps({"member": member, "failure": failure}).encode() + b"\n"
        try:
            if os.write(self._opened, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._told[member] = failure
        except OSError:  # without the file the agent waits for no member
            self._opened = None
            with suppress(OSError):
                self._path.unlink()

    @contextmanager
    def _recorded(self, place: slice, member: str) -> Iterator[None]:
        self._write(place, member)
        try:
            yield
        finally:
            self._write(place, "")

    def _write(self, place: slice, text: str) -> None:
        if self._memory is not None:
            self._memory[place] = text.encode().ljust(place.stop - place.start, b"\0")


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode(errors="replace")


def part_running(repository: Path, step: str) -> None:
    """Count the member that a shared step runs now, if any, as one that ended its process."""
    folder = _folder(repository)
    with suppress(OSError):
        if member := _text((folder / step).read_bytes()[_RUNNING]):
            (folder / member).touch()


def forget_crashes(repository: Path) -> None:
    """Forget the members that ended a process, before a server is started."""
    shutil.rmtree(_folder(repository), ignore_errors=True)


def crashed_members(repository: Path) -> frozenset[str]:
    """Return the members that ended the process of a shared step, and should have one of their own."""
    try:
        return frozenset(path.name for path in _folder(repository).iterdir() if "-member--" in path.name)
    except OSError:
        return frozenset()


def opened_members(repository: Path) -> dict[str, dict[str, str]]:
    """Return, by shared step, the members that it has opened, as "", and why others cannot be.

    A step whose process cannot write this is left out.
    """
    steps: dict[str, dict[str, str]] = {}
    paths: list[Path] = []
    with suppress(OSError):  # the folder goes when a server is started
        paths += _folder(repository).glob(f"*{_OPENED}")
    for path in paths:
        with suppress(OSError, ValueError, KeyError):  # its process is replaced, or its disk is full
            steps[path.name.removesuffix(_OPENED)] = _last(path.read_text())
    return steps


def _last(lines: str) -> dict[str, str]:
    # What stands after the last end of a line is not written yet.
    told = [json.loads(line) for line in lines.split("\n")[:-1]]
    last = {each["member"]: each["failure"] for each in told}
    return {member: failure for member, failure in last.items() if failure is not None}


def _folder(repository: Path) -> Path:
    # Beside the repository: Triton takes each of its folders for a model.
    return repository.parent / f".{repository.name}-running"


def _identity(pid: int) -> str:
    """Return what distinguishes a process from a later one of its number."""
    return f"{pid} {_stat(pid)[19]}"


def _is_running(identity: str) -> bool:
    pid, _, started = identity.partition(" ")
    try:
        fields = _stat(int(pid))
    except (OSError, ValueError):
        return False
    return fields[19] == started and fields[0] not in "ZX"


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
