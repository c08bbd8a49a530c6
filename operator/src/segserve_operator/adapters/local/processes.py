"""Child processes that outlive the process that started them: starting, finding again after a restart, ending."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import signal
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from segserve_common.files import DamagedFileError, read_file, write_private
from segserve_common.interpreter import python
from segserve_common.process_record import ProcessRecord

# Environment variable that marks child processes. Not SEGSERVE_STATE, which users export: their shell would be marked.
MARK: Final = "SEGSERVE_CHILD_OF"
RECORD_MARK: Final = "SEGSERVE_CHILD_RECORD"
"""The environment variable with the record's path, by which a process is found whose record is damaged."""
MAX_ROUNDS: Final = 5
POLL_S: Final = 0.02
KILL_TIMEOUT_S: Final = 5.0
STOP_GRACE_S: Final = 20.0
"""For a platform's processes, among them Triton with its exit timeout of 15 s."""
ALREADY_RUNS: Final = 3
"""Exit code of a supervisor that finds another one."""
_PRIVATE: Final = """import ctypes, os, struct, sys
libc, lines = ctypes.CDLL(None), ctypes.create_string_buffer(bytes.fromhex(sys.argv[1]))
os.umask(0o077)
libc.prctl(38, 1, 0, 0, 0) and sys.exit("this system has no PR_SET_NO_NEW_PRIVS")
filter = struct.pack("HxxxxxxP", len(lines) // 8, ctypes.addressof(lines))
libc.prctl(22, 2, filter, 0, 0) and sys.exit("this system does not allow a filter of system calls (seccomp)")
libc.ptrace(0, 0, None, None) and sys.exit("this system does not allow ptrace")  # PTRACE_TRACEME
os.execv(sys.argv[2], sys.argv[2:])"""
_FCHMOD: Final = {"x86_64": (91, 0xC000003E), "aarch64": (52, 0xC00000B7)}
"""Its number by architecture, and what seccomp calls that."""


class VisibleArgumentsError(Exception):
    """A process is not started, because other users could read its hidden arguments or its shared memory."""


def start(
    argv: Sequence[str], *, record: Path, log: Path, environment: Mapping[str, str], state: Path
) -> ProcessRecord:
    """Start a process in a new session, append its output to `log`, and write its record to `record`.

    It and all its descendants are marked as belonging to the platform of the state folder `state`. Variables of the
    `environment` that begin with `--` become its last arguments, which other users of the machine cannot read. Nor can
    they read the files of such a process, also those whose mode Boost sets past the umask: its shared memory. Raises
    `VisibleArgumentsError` if that cannot be. One that runs already, without a record, gets one instead.
    """
    if (running := _unrecorded(record)) is not None:
        return running
    hidden = [name for name in environment if name.startswith("--")]
    if hidden:
        argv = python("-I", "-S", "-c", _PRIVATE, _without_fchmod().hex(), *argv, *hidden)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=marked_environment(environment, state) | {RECORD_MARK: str(record)},
            start_new_session=True,
            cwd=record.parent,
        )
    if hidden:
        _swap_arguments(child, len(hidden))
    # Its end is noticed by polling, as for processes that an earlier supervisor started; Popen must not wait for it.
    child.returncode = 0
    started = ProcessRecord.of(child.pid)
    write_private(record, started.to_json())
    return started


def _without_fchmod() -> bytes:
    """Return the filter of system calls that refuses only `fchmod`, in the kernel's form (see seccomp(2))."""
    number, architecture = _FCHMOD[platform.machine()]
    load, equal, end = 0x20, 0x15, 0x06
    lines = [(load, 0, 0, 4), (equal, 0, 3, architecture), (load, 0, 0, 0), (equal, 0, 1, number),
             (end, 0, 0, 0x50000 | errno.EPERM), (end, 0, 0, 0x7FFF0000)]  # fmt: skip
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def _swap_arguments(child: subprocess.Popen[bytes], count: int) -> None:
    """Swap the last arguments of a program, stopped before its first instruction, with the variables of these names.

    All users read /proc/PID/cmdline, which shows the memory of the arguments, and only its own /proc/PID/environ.
    """
    try:
        _, status = os.waitpid(child.pid, 0)
        if not (os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTRAP):
            raise ChildProcessError(f"status {status}")
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[25]), int(fields[48])  # startstack and env_end; see proc_pid_stat(5)
        with Path(f"/proc/{child.pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            stack = bytearray(memory.read(end - start))
            words = memoryview(stack)[: len(stack) // 8 * 8].cast("Q")  # argc, argv, NULL, the variables, NULL
            for argument in range(words[0] - count + 1, words[0] + 1):
                name = stack[words[argument] - start :].partition(b"\0")[0]
                variable = words.tolist().index(start + stack.index(b"\0" + name + b"=") + 1)
                words[argument], words[variable] = words[variable], words[argument]
            memory.seek(start)
            memory.write(stack)
        ctypes.CDLL(None).ptrace(17, child.pid, None, None)  # PTRACE_DETACH
    except (OSError, ValueError) as error:
        child.kill()
        child.wait()
        raise VisibleArgumentsError(
            "Triton is not started: other users could read its secret and its shared memory, because this system "
            "(kernel.yama.ptrace_scope, or a container's seccomp) does not allow ptrace of a child, or a filter of its "
            f"system calls: {error}"
        ) from error


def marked_environment(environment: Mapping[str, str], state: Path) -> dict[str, str]:
    """Return the environment that marks a process and its descendants as belonging to this platform.

    Processes that are not started by `segserve_common.interpreter`, such as Triton's steps, do without the current
    folder.
    """
    return {**environment, MARK: str(state), "PYTHONSAFEPATH": "1"}


def current_process() -> ProcessRecord:
    """Return the record of this process."""
    return ProcessRecord.of(os.getpid())


def read_record(record: Path) -> ProcessRecord | None:
    """Read a record; None if it is missing. One that is damaged is written again if its process runs."""
    try:
        return read_file(record, ProcessRecord.from_json)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, DamagedFileError):
        return _unrecorded(record)


def _unrecorded(record: Path) -> ProcessRecord | None:
    """Return the running process that was started with a record, and write it."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            # Its children inherit the mark, and not its session's lead.
            marked = process.environ().get(RECORD_MARK) == str(record)
            if marked and os.getsid(process.pid) == process.pid and _runs(process):
                found = ProcessRecord.of(process.pid)
                write_private(record, found.to_json())
                return found
    return None


def is_alive(process: ProcessRecord | None) -> bool:
    """Return whether exactly this process runs; an ended child of this process is reaped."""
    return process is not None and _find(process) is not None


def _find(process: ProcessRecord) -> psutil.Process | None:
    try:
        candidate = psutil.Process(process.pid)
        if not process.is_present:
            return None
        if candidate.status() == psutil.STATUS_ZOMBIE:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
            return None
    except psutil.NoSuchProcess:
        return None
    return candidate


def arguments_of(process: ProcessRecord | None, *, hidden: bool = False) -> dict[str, str]:
    """Return the options of a running process, from those that all users can read or from the `hidden` ones."""
    running = _find(process) if process is not None else None
    if running is None:
        return {}
    with contextlib.suppress(psutil.Error, OSError):
        if hidden:
            return {name: value for name, value in running.environ().items() if name.startswith("--")}
        return dict(part.split("=", 1) for part in running.cmdline() if part.startswith("--") and "=" in part)
    return {}


def terminate(process: ProcessRecord | None) -> None:
    """Send SIGTERM and return at once; `is_alive` says when the process has ended."""
    running = _find(process) if process is not None else None
    if running is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            running.terminate()


def end(process: ProcessRecord | None, *, grace_s: float, descendants: bool = True) -> None:
    """End a process and its descendants: SIGTERM, then SIGKILL for processes that still run after `grace_s`."""
    running = _find(process) if process is not None else None
    if running is None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [running, *(running.children(recursive=True) if descendants else ())]
        running.terminate()
        _wait_or_kill(family, grace_s)


def marked_processes(state: Path) -> list[psutil.Process]:
    """Return all processes with the platform's mark, except this one."""
    return [process for process in psutil.process_iter() if _is_marked(process, state)]


def end_marked_processes(state: Path, *, grace_s: float) -> int:
    """End the platform's `marked_processes`, and return how many there were.

    Repeats until none is left, because one that was ending may have started another.
    """
    count = 0
    for _ in range(MAX_ROUNDS):
        marked = [process for process in marked_processes(state) if _runs(process)]
        if not marked:
            break
        count += len(marked)
        _end_leaders(marked)
        _wait_or_kill(marked, grace_s)
    return count


def _end_leaders(marked: Sequence[psutil.Process]) -> None:
    # A server ends its own steps, which are in its session, and cleans up after them.
    pids = {process.pid for process in marked}
    for process in marked:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == process.pid or process.ppid() not in pids:
                process.terminate()


def kill_by_argument(state: Path, prefix: str) -> None:
    """Kill this platform's processes that have an argument with this prefix."""
    for process in marked_processes(state):
        with contextlib.suppress(psutil.Error):
            if any(argument.startswith(prefix) for argument in process.cmdline()):
                process.kill()


def _is_marked(process: psutil.Process, state: Path) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get(MARK) == str(state)
    except (psutil.Error, OSError):
        return False


def _wait_or_kill(family: Sequence[psutil.Process], grace_s: float) -> None:
    remaining = _wait(family, grace_s)
    for process in remaining:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _wait(remaining, KILL_TIMEOUT_S)


def _wait(family: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait until all processes have ended, and return those that still run after `timeout_s`."""
    # Not psutil.wait_procs: for it an ended process runs until its parent has reaped it, and the init process of a
    # container may take seconds to do so, or never do it.
    deadline_s = time.monotonic() + timeout_s
    remaining = [process for process in family if _runs(process)]
    while remaining and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
        remaining = [process for process in remaining if _runs(process)]
    return remaining


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and _find(ProcessRecord.of(process.pid)) is not None
    except OSError:
        return False
