"""The folder that every Triton with Python steps makes in /tmp, whatever TMPDIR says, and leaves where it is killed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

TMP: Final = Path("/tmp")
_PATTERN: Final = "python_env_??????"
_BACKEND: Final = "libtriton_python.so"
_STUB: Final = "triton_python_backend_stub"
# The clock of process starts ticks every 10 ms and is counted from a boot time in whole seconds.
_CLOCK_S: Final = 2.0


def orphaned_step_environments(folder: Path = TMP) -> tuple[Path, ...]:
    """Return this user's empty folders that no living Triton can have made.

    Nothing in such a folder names its server. A server makes one, after its own start and before its first step: a
    folder that is older than every living server, or younger than the steps of those that are older, is nobody's.
    What cannot be told, as where a server of somebody else has no step yet, is left out.
    """
    found = [path for path in folder.glob(_PATTERN) if _is_ours_and_empty(path)]
    # After the folders were listed: who made one of them has loaded the backend by now.
    servers = _living_servers() if found else ()
    return tuple(path for path in found if not any(_may_have_made(server, path) for server in servers))


def sweep_step_environments(folder: Path = TMP) -> tuple[Path, ...]:
    """Remove `orphaned_step_environments`, and return them."""
    swept = []
    for path in orphaned_step_environments(folder):
        with contextlib.suppress(OSError):  # another call was first
            path.rmdir()
            swept.append(path)
    return tuple(swept)


def _is_ours_and_empty(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.lstat().st_uid == os.geteuid() and path.is_dir() and not any(path.iterdir())
    return False


def _living_servers() -> Sequence[psutil.Process]:
    return [process for process in psutil.process_iter() if _has_backend(process)]


def _has_backend(process: psutil.Process) -> bool:
    with contextlib.suppress(OSError):
        return _BACKEND in Path(f"/proc/{process.pid}/maps").read_text(errors="replace")
    return False


def _may_have_made(server: psutil.Process, path: Path) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
        made_s = path.stat().st_mtime
        if server.create_time() > made_s + _CLOCK_S:
            return False
        steps = [child for child in server.children() if _is_step(child)]
        return not any(step.create_time() + _CLOCK_S < made_s for step in steps)
    return False


def _is_step(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(part.endswith(_STUB) for part in process.cmdline()[:1])
    return False
