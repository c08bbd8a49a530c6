"""Triton's folders in /tmp are removed once no running server can have created them."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from segserve_operator.adapters.local.leftovers import sweep_step_environments

SERVER = """
import mmap, subprocess, sys
with open(sys.argv[1], "rb") as library:
    held = mmap.mmap(library.fileno(), 0, prot=mmap.PROT_READ)
step = subprocess.Popen(sys.argv[2:]) if sys.argv[2:] else None
print("ready", flush=True)
sys.stdin.read()
if step is not None:
    step.kill()
    step.wait()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder instead of /tmp, on a machine that runs only the processes of the test."""
    own = psutil.Process()
    monkeypatch.setattr(psutil, "process_iter", lambda: iter(own.children(recursive=True)))
    folder = tmp_path / "tmp"
    folder.mkdir()
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., psutil.Process]]:
    """Start processes that appear to have loaded Triton's Python backend, with or without a step."""
    library = tmp_path / "libtriton_python.so"
    library.write_bytes(bytes(mmap.PAGESIZE))
    stub = tmp_path / "triton_python_backend_stub"
    shutil.copy2("/bin/sleep", stub)
    with ExitStack() as stack:

        def start(*, with_step: bool) -> psutil.Process:
            step = [str(stub), "1000"] if with_step else []
            command = [sys.executable, "-c", SERVER, str(library), *step]
            process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            stack.callback(process.stdin.close)
            assert process.stdout.readline() == b"ready\n"
            return psutil.Process(process.pid)

        yield start


def created(folder: Path, *, ago_s: float, name: str = "python_env_abcdef") -> Path:
    path = folder / name
    path.mkdir()
    at_s = time.time() - ago_s
    os.utime(path, (at_s, at_s))
    return path


def test_a_folder_older_than_every_running_server_is_removed(
    folder: Path, server: Callable[..., psutil.Process]
) -> None:
    server(with_step=False)
    path = created(folder, ago_s=3600)

    assert path in sweep_step_environments(folder)
    assert not path.exists()


def test_a_folder_that_a_running_server_may_have_created_stays_until_the_server_ends(
    folder: Path, server: Callable[..., psutil.Process]
) -> None:
    running = server(with_step=False)
    path = created(folder, ago_s=-3600)

    assert sweep_step_environments(folder) == ()
    running.kill()
    psutil.wait_procs([running])

    assert sweep_step_environments(folder) == (path,)


def test_a_server_with_older_steps_cannot_have_created_the_folder(
    folder: Path, server: Callable[..., psutil.Process]
) -> None:
    server(with_step=True)
    path = created(folder, ago_s=-3600)

    assert sweep_step_environments(folder) == (path,)


def test_folders_in_use_and_other_files_stay(folder: Path) -> None:
    used = created(folder, ago_s=3600)
    (used / "0").mkdir()
    os.utime(used, (0, 0))
    created(folder, ago_s=3600, name="python_environment")
    (folder / "python_env_linked").symlink_to(folder)
    (folder / "python_env_012345").touch()

    assert sweep_step_environments(folder) == ()
    assert len(list(folder.iterdir())) == 4
