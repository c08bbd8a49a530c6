"""The memory that the process of one step may use, and what it keeps of it between requests."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from segserve_builder.errors import BuilderError

T = TypeVar("T")

STEP_LIMIT_VARIABLE: Final = "SEGSERVE_STEP_MEMORY_BYTES"
"""Environment variable of Triton: bytes that each process of a step may allocate for requests."""

SERVER_MALLOC: Final = {"MALLOC_TRIM_THRESHOLD_": str(32 * 2**20), "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20)}
"""Environment of Triton, which holds the tensors of all requests that wait: freed ones go back to the system."""
STEP_MALLOC: Final = {"MALLOC_TRIM_THRESHOLD_": (-1, 256 * 2**20), "MALLOC_MMAP_THRESHOLD_": (-3, 32 * 2**20)}
"""Options of `mallopt` in glibc's malloc.h and their values for steps, by their variables."""

_ARENA_MAX: Final = -8
"""Option of `mallopt`: the number of heaps that threads are spread over."""

LEAST_BYTES: Final = 256 * 2**20
_DEFAULT_SHARE: Final = 4
_DEFAULT_LEAST_BYTES: Final = 2**30
_CGROUPS: Final = Path("/sys/fs/cgroup")
# ONNX Runtime's own allocator, C++'s, OpenCV's (StsNoMem), a thread's stack, and WebP's: none raises MemoryError.
_MESSAGES: Final = (
    "Failed to allocate", "bad_alloc", "bad allocation", "(-4:Insufficient memory)", "can't start new thread",
    "encoding error 1", "encoding error 2",
)  # fmt: skip


class StepMemoryError(BuilderError):
    """The environment variable of the steps' limit is not a number of bytes that is allowed."""


def step_limit_bytes(environment: Mapping[str, str] = os.environ, cgroups: Path = _CGROUPS) -> int:
    """Return how many bytes the process of a step may allocate for requests.

    It is what the environment says, or else a quarter of the memory of this container or machine, and at least 1 GiB:
    `pre`, `net` and `post` of a model and Triton itself then fit beside each other. Raises `StepMemoryError`.
    """
    given = environment.get(STEP_LIMIT_VARIABLE)
    if given is None:
        return max(available_bytes(cgroups) // _DEFAULT_SHARE, _DEFAULT_LEAST_BYTES)
    if not (given.isascii() and given.isdigit() and int(given) >= LEAST_BYTES):
        raise StepMemoryError(f"{STEP_LIMIT_VARIABLE} is {given!r}; allowed are numbers of bytes from {LEAST_BYTES} on")
    return int(given)


def available_bytes(cgroups: Path = _CGROUPS) -> int:
    """Return the memory of this machine in bytes, or the limit of this process's container if that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Inside a container its own group is mounted as the root; version 2 of cgroups, then version 1.
    limits = (_limit(cgroups / "memory.max"), _limit(cgroups / "memory" / "memory.limit_in_bytes"))
    return min([machine, *(limit for limit in limits if limit is not None)])


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> None:
    """Let this process keep what it frees for its next request, unlike Triton, whose environment it has.

    To return pages and fault them in again costs a step more than its work. Other values than Triton's stay.
    """
    mallopt = ctypes.CDLL(None).mallopt
    for name, (option, threshold) in STEP_MALLOC.items():
        if environment.get(name) == SERVER_MALLOC[name]:
            mallopt(option, threshold)


def share_freed_memory() -> None:
    """Let all threads of this process take from one heap: each would else keep freed memory of its own."""
    ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


def return_freed_memory() -> None:
    """Return to the system what this process has freed."""
    ctypes.CDLL(None).malloc_trim(0)


def limit_allocations(environment: Mapping[str, str] = os.environ, *, parts: int = 1) -> int | None:
    """Let this process allocate a part of the step's limit beyond what it has allocated now; return the whole limit.

    Called once the step is loaded, so that a network's weights do not count. Allocations beyond it fail; memory that is
    shared with Triton does not count. Without the environment variable nothing is limited. Raises `StepMemoryError`.
    """
    if STEP_LIMIT_VARIABLE not in environment:
        return None
    limit_bytes = step_limit_bytes(environment)
    allow_allocations(limit_bytes // parts)
    return limit_bytes


class InstanceMemory:
    """The limit of a step whose instances are processes: each has a part of it, and one at a time has all of it.

    Half of the limit is divided, so that all instances together have one and a half.
    """

    def __init__(self, args: Mapping[str, str]) -> None:
        """Limit this process, an instance that Triton gives these arguments; raises `StepMemoryError`."""
        instances = sum(group["count"] for group in json.loads(args["model_config"]).get("instance_group", ()))
        self._lock = Path(args["model_repository"])
        self.limit_bytes = limit_allocations(parts=2 * instances if instances > 1 else 1)
        self.is_divided = instances > 1 and self.limit_bytes is not None

    def run(self, work: Callable[[], T]) -> T:
        """Return what `work` returns: in this instance's part, or with the whole limit if that did not suffice."""
        try:
            return work()
        except Exception as error:
            if not (self.is_divided and is_out_of_memory(error)):
                raise
        with self.whole():
            return work()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Wait until no other instance has the whole limit, and have it."""
        assert self.limit_bytes is not None
        folder = os.open(self._lock, os.O_RDONLY | os.O_DIRECTORY)
        part_bytes = total_allowed()
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            allow_allocations(self.limit_bytes)
            yield
        finally:
            return_freed_memory()
            allow_total(part_bytes)
            os.close(folder)


def allow_allocations(limit_bytes: int) -> None:
    """Let this process allocate so many bytes beyond what it has allocated now, in place of an earlier limit."""
    allow_total(process_bytes("VmData") + limit_bytes)


def total_allowed() -> int:
    """Return how many bytes this process may have allocated at a time; negative without a limit."""
    return resource.getrlimit(resource.RLIMIT_DATA)[0]


def allow_total(total_bytes: int) -> None:
    """Let this process have allocated so many bytes at a time, in place of an earlier limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = total_bytes if hard == resource.RLIM_INFINITY else min(total_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed: in Python, numpy or numba, ONNX Runtime, OpenCV or C++."""
    return isinstance(error, MemoryError) or any(message in str(error) for message in _MESSAGES)


def process_bytes(name: str) -> int:
    """Return a size of this process as Linux names it in /proc/self/status: `VmRSS`, `VmHWM`, `VmData`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(kilobytes) * 1024


def _limit(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
