"""Leftovers of servers that have ended on this machine: shared memory by its names, and folders of their steps."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import psutil

from segserve_operator.adapters.local.files import StateFolder

TMP: Final = Path("/tmp")
# Start times of processes have a resolution of 10 ms, relative to a boot time in whole seconds.
_CLOCK_TOLERANCE_S: Final = 2.0


def shm_prefix(state: StateFolder, group: str) -> str:
    """Return the prefix of the names of a group's shared memory regions."""
    return f"{state.shm_prefix}{group}-"


def orphaned_step_environments(folder: Path = TMP) -> tuple[Path, ...]:
    """Return this user's empty folders that no running Triton can have created.

    Nothing in such a folder identifies its server. Each server creates one folder, after its own start and before its
    first step starts. So a folder is orphaned if it is older than every running server, or newer than a step of each
    server that is older. Undecidable ones are left out, for example if a server has no step yet.
    """
    folders = [path for path in folder.glob("python_env_??????") if _is_ours_and_empty(path)]
    # Only after listing the folders: a server that created one of them has loaded the backend by now.
    servers = [process for process in psutil.process_iter() if _has_backend(process)] if folders else []
    return tuple(path for path in folders if not any(_may_have_created(server, path) for server in servers))


def sweep_step_environments(folder: Path = TMP) -> tuple[Path, ...]:
    """Remove the `orphaned_step_environments`, and return those removed."""
    removed = []
    for path in orphaned_step_environments(folder):
        with contextlib.suppress(OSError):  # another process removed it first
            path.rmdir()
            removed.append(path)
    return tuple(removed)


def _is_ours_and_empty(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.lstat().st_uid == os.geteuid() and path.is_dir() and not any(path.iterdir())
    return False


def _has_backend(process: psutil.Process) -> bool:
    with contextlib.suppress(OSError):
        return "libtriton_python.so" in Path(f"/proc/{process.pid}/maps").read_text(errors="replace")
    return False


def _may_have_created(server: psutil.Process, path: Path) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
        created_s = path.stat().st_mtime
        if server.create_time() > created_s + _CLOCK_TOLERANCE_S:
            return False
        steps = [child for child in server.children() if _is_step(child)]
        return not any(step.create_time() + _CLOCK_TOLERANCE_S < created_s for step in steps)
    return False


def _is_step(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(part.endswith("triton_python_backend_stub") for part in process.cmdline()[:1])
    return False
