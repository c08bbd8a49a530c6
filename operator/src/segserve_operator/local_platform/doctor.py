"""Checks of the prerequisites of the local platform on this machine, each with a remedy."""

from __future__ import annotations

import platform
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from segserve_operator.adapters.local.files import CACHE_VARIABLE, cache_folder

GIB: Final = 1024**3
DISK_BYTES: Final = 2 * GIB
SHM_BYTES: Final = GIB // 4
MEMORY_BYTES: Final = GIB
ADDRESS_SPACE_BYTES: Final = 16 * GIB
"""Triton and its steps map far more memory than they use."""
OPEN_FILES: Final = 1024
GLIBC: Final = (2, 35)
MEMORY_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")
MEMORY_USED: Final = Path("/sys/fs/cgroup/memory.current")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: what was observed, and if it failed, advice and a command that fixes it."""

    name: str
    passed: bool
    observed: str
    advice: str = ""
    fix: str = ""


def examine() -> list[Finding]:
    """Return a finding for each prerequisite, in the order in which to fix them."""
    return [_guarded(check) for check in (_system, _disk, _shm, _memory, _open_files)]


def _guarded(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except OSError as error:
        name = check.__name__.strip("_")
        return Finding(name, passed=False, observed=str(error), advice="it cannot be checked")


def _system() -> Finding:
    glibc = platform.libc_ver()[1]
    observed = f"{platform.system()} {platform.machine()}, glibc {glibc or 'none'}"
    version = tuple(int(part) for part in glibc.split(".") if part.isdecimal())
    passed = (platform.system(), platform.machine()) == ("Linux", "x86_64") and version >= GLIBC
    return Finding("system", passed, observed, "the embedded Triton needs Linux on x86_64 with glibc 2.35 or newer")


def _disk() -> Finding:
    folder = cache_folder()
    nearest = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(nearest).free
    advice = f"the runtime environment needs 2 GiB; free some space, or set {CACHE_VARIABLE} to a folder elsewhere"
    return Finding("disk", free >= DISK_BYTES, f"{free / GIB:.1f} GiB free for {folder}", advice, f"du -sh {nearest}/*")


def _shm() -> Finding:
    free = shutil.disk_usage("/dev/shm").free
    advice = "Triton's Python steps exchange data through /dev/shm; start a container with --shm-size=1g"
    fix = "mount -o remount,size=1g /dev/shm"
    return Finding("/dev/shm", free >= SHM_BYTES, f"{free / GIB:.2f} GiB free", advice, fix)


def _memory() -> Finding:
    address_space, _hard = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY and address_space < ADDRESS_SPACE_BYTES:
        observed = f"processes may map {address_space / GIB:.1f} GiB (ulimit -v)"
        advice = f"Triton maps far more memory than it uses, up to {ADDRESS_SPACE_BYTES // GIB} GiB"
        return Finding("memory", passed=False, observed=observed, advice=advice, fix="ulimit -v unlimited")
    free = _free_memory()
    advice = "a server with a small network needs about 1 GiB; stop other processes, or raise the container's limit"
    return Finding("memory", free >= MEMORY_BYTES, f"{free / GIB:.1f} GiB free", advice, "ps aux --sort=-rss | head")


def _free_memory() -> int:
    free: int = psutil.virtual_memory().available
    try:
        return min(free, int(MEMORY_LIMIT.read_text()) - int(MEMORY_USED.read_text()))
    except (OSError, ValueError):  # no cgroup, or no limit ("max")
        return free


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    advice = "the gateway and each server keep a file open for every connection"
    enough = hard == resource.RLIM_INFINITY or hard >= OPEN_FILES
    fix = f"ulimit -n {OPEN_FILES}" if enough else f"sudo prlimit --pid $$ --nofile={OPEN_FILES}"
    return Finding("open files", soft >= OPEN_FILES, f"at most {soft} (ulimit -n)", advice, fix)
