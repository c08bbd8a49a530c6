"""A process for files that nobody vouches for: it reads them, writes one file, and can do nothing else.

The child is an isolated Python (`-I`) with an empty environment. Before it imports what parses the file it gives up,
for good, and for root too: all files but the libraries and those it is given (landlock), sockets of any kind, other
processes and their memory, signals, opening a file for writing, changing a file's rights or times (seccomp), all
capabilities, and memory and time without limit. What it writes goes to a file that its parent has opened. It keeps
signals by `fcntl` (F_SETOWN, F_SETSIG), attributes of files that it may read (FS_IOC_SETFLAGS), and System V IPC by id.

There is no library for it that is kept up: `landlock` on PyPI is a development version of 2023 that knows no more than
landlock, `pyseccomp` needs libseccomp and has not changed since 2021. The kernel's interface is stable.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import platform
import resource
import struct
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from segserve_builder.errors import ExportError
from segserve_common.interpreter import python

TIMEOUT_S: Final = 600
DATA_BYTES: Final = 8 * 2**30
"""Memory that the child may write to, beside `COPIES` times the size of its source."""
MAPPED_BYTES: Final = 32 * 2**30
"""What it may map beyond that: libraries, of which those for GPUs are large."""
COPIES: Final = 6
OPEN_FILES: Final = 256
REASON_LENGTH: Final = 500
HELD: Final = "no other files, no network, no sockets, no other processes"

_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_ABI_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 5: 16}
"""Number of rights to files that landlock knows, by the first version of its interface; none but reading is granted."""
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_SYSTEM: Final = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/proc/cpuinfo", "/proc/meminfo",
    "/sys/devices/system/cpu", "/dev/null", "/dev/urandom",
)  # fmt: skip

_ARCHITECTURES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_REFUSED: Final = {
    # The number of each call on x86_64 and aarch64; see syscalls(2).
    "socket": (41, 198), "socketpair": (53, 199), "io_uring_setup": (425, 425),
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "unshare": (272, 97), "setns": (308, 268), "ptrace": (101, 117), "bpf": (321, 280), "perf_event_open": (298, 241),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "userfaultfd": (323, 282),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "creat": (85, None), "truncate": (76, 45), "chmod": (90, None), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "fchmod": (91, 52), "fchown": (93, 55), "fsetxattr": (190, 7), "fremovexattr": (199, 16),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "setxattrat": (463, 463), "removexattrat": (466, 466),
    "shmget": (29, 194), "shmat": (30, 196), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
}  # fmt: skip
_ABSENT: Final = {"clone3": (435, 435), "openat2": (437, 437)}
"""Calls whose arguments a filter cannot see; the C library falls back on the older ones."""
_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CLONE_THREAD: Final = 0x00010000
_CONDITIONAL: Final = {
    # numbers, argument, mask, whether the call is refused if a bit of the mask is set (or if none is)
    "open": ((2, None), 1, _WRITES, True),
    "openat": ((257, 56), 2, _WRITES, True),
    "clone": ((56, 220), 0, _CLONE_THREAD, False),
    "prlimit64": ((302, 261), 0, 0xFFFFFFFF, True),  # of another process
}
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_X32: Final = 0x40000000
_SET_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_CAPABILITY_VERSION: Final = 0x20080522


class SandboxMissingError(ExportError):
    """This system cannot confine a process as it must be for a file that nobody vouches for."""


@dataclass(frozen=True)
class Task:
    """The work of a child: `module` has `perform(source, options, output)`, which writes to a binary file."""

    module: str
    source: Path
    options: Mapping[str, Any]
    inputs: tuple[Path, ...] = ()
    """Files of the caller's own that the child may read, beside the source."""


def run(task: Task, output: Path) -> None:
    """Perform a task in a child, which writes to the file `output`.

    Raises `SandboxMissingError` where the system cannot confine it, and `ExportError` with the child's words.
    """
    order = {
        "module": task.module,
        "source": str(task.source.resolve()),
        "options": dict(task.options),
        "reads": [str(path) for path in (*_libraries(), *task.inputs, task.source.resolve())],
        "data_bytes": DATA_BYTES + COPIES * task.source.stat().st_size,
    }
    start = f"import sys; sys.path += {_packages()!r}; from {__name__} import _main; _main()"
    with output.open("wb") as file, tempfile.TemporaryFile() as messages:
        command = python("-I", "-B", "-c", start, json.dumps({**order, "output": file.fileno()}))
        try:
            done = subprocess.run(
                command,
                env={},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=messages,
                pass_fds=(file.fileno(),),
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ExportError(f"{task.source.name} was not read within {TIMEOUT_S} s") from None
        size = messages.seek(0, os.SEEK_END)
        messages.seek(max(0, size - 4 * REASON_LENGTH))
        lines = messages.read().decode(errors="replace").strip().splitlines()
    if done.returncode:
        last = lines[-1] if lines else f"the process ended with {done.returncode}"
        reason = "".join(each for each in last if each.isprintable())[:REASON_LENGTH]
        if reason.startswith(SandboxMissingError.__name__):
            raise SandboxMissingError(reason.partition(": ")[2])
        raise ExportError(reason.removeprefix(f"{ExportError.__name__}: "))


def _packages() -> list[str]:
    """Return where this process has its packages: an isolated Python knows neither an editable install nor a user's."""
    folders = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    return [*folders, str(Path(__file__).parents[2])]


def _libraries() -> Iterable[Path]:
    places = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    prefixes = [str(Path(prefix) / "lib") for prefix in (sys.prefix, sys.base_prefix)]
    named = dict.fromkeys([*places, *prefixes, *_packages(), *_SYSTEM])
    return [Path(place) for place in named if Path(place).exists()]


def _main() -> None:
    try:
        order = json.loads(sys.argv[1])
        confine(order["reads"], order["data_bytes"])
        # It would run a compiler and write a file. torch built for CUDA calls it on import, and does without an answer.
        ctypes.util.find_library = lambda name: None
        from importlib import import_module

        with os.fdopen(order["output"], "wb") as output:
            import_module(order["module"]).perform(Path(order["source"]), order["options"], output)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())[:REASON_LENGTH]}")


def confine(reads: Sequence[str], data_bytes: int) -> None:
    """Confine this process, before it has threads, to reading the files and folders `reads` and what it has open.

    Raises `SandboxMissingError`, after which it may be confined in part.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform != "linux" or platform.machine() not in _ARCHITECTURES:
        raise SandboxMissingError(f"no sandbox for {sys.platform} on {platform.machine()}; {_ADVICE}")
    cpu_s = TIMEOUT_S * (os.cpu_count() or 1)
    wanted = (
        (resource.RLIMIT_DATA, data_bytes),
        (resource.RLIMIT_AS, data_bytes + MAPPED_BYTES),
        (resource.RLIMIT_FSIZE, data_bytes),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_CORE, 0),
    )
    for kind, value in wanted:
        hard = resource.getrlimit(kind)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bound, bound))
    _call("no_new_privs", libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    version = _call("landlock", libc.syscall(_CREATE_RULESET, None, 0, 1))
    count = next(count for since, count in sorted(_ABI_RIGHTS.items(), reverse=True) if version >= since)
    handled = struct.pack("Q", (1 << count) - 1)
    ruleset = _call("landlock", libc.syscall(_CREATE_RULESET, handled, len(handled), 0))
    for read in reads:
        place = os.open(read, os.O_PATH | os.O_CLOEXEC)
        rights = _READ_FILE | _READ_DIR if Path(read).is_dir() else _READ_FILE
        _call("landlock", libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, place), 0))
        os.close(place)
    _call("landlock", libc.syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)
    header, nothing = struct.pack("Ii", _CAPABILITY_VERSION, 0), bytes(24)
    _call("capset", libc.capset(header, nothing))
    program = _program(*_ARCHITECTURES[platform.machine()])
    lines = ctypes.create_string_buffer(program)
    described = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(lines))
    _call("seccomp", libc.prctl(_SET_SECCOMP, _FILTER, described, 0, 0))


_ADVICE: Final = "use a .safetensors file, which holds data alone, or Linux 5.13 or newer with landlock"


def _call(name: str, result: int) -> int:
    if result < 0:
        raise SandboxMissingError(f"this system has no {name} ({os.strerror(ctypes.get_errno())}); {_ADVICE}")
    return result


def _program(column: int, architecture: int) -> bytes:
    """Return the filter of system calls, in the kernel's form: (code, jump if true, jump if false, value) each."""
    lines = [
        (_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _ERRNO | _EPERM),
    ]  # fmt: skip
    for calls, errno in ((_REFUSED, _EPERM), (_ABSENT, _ENOSYS)):
        for numbers in calls.values():
            if (number := numbers[column]) is not None:
                lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno)]
    for numbers, argument, mask, refused_if_set in _CONDITIONAL.values():
        if (number := numbers[column]) is not None:
            if_set, if_not = (_ERRNO | _EPERM, _ALLOW) if refused_if_set else (_ALLOW, _ERRNO | _EPERM)
            lines += [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, 16 + 8 * argument), (_ANY_BIT, 0, 1, mask),
                      (_RETURN, 0, 0, if_set), (_RETURN, 0, 0, if_not)]  # fmt: skip
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *line) for line in lines)
