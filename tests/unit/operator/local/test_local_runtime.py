"""The runtime environment: its name, the search for Python's shared library, and errors of commands."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import psutil
import pytest

from segserve_operator.adapters.local import runtime


def test_every_package_of_the_lock_is_pinned() -> None:
    lines = [line for line in runtime.lock_file().read_text().splitlines() if line and not line.startswith("#")]
    assert lines
    assert all(line.count("==") == 1 for line in lines)


def test_another_list_of_packages_makes_another_environment() -> None:
    assert runtime.environment_digest(b"numpy==1.26.4") != runtime.environment_digest(b"numpy==1.26.3")


def test_a_python_without_its_shared_library_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_config_var", lambda _: str(tmp_path))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    with pytest.raises(runtime.PythonLibraryMissingError, match=f"apt-get install libpython{version}"):
        runtime.find_python_library(tmp_path)


def test_the_error_of_a_failed_command_ends_with_its_output() -> None:
    with pytest.raises(runtime.InstallError, match=r"exit code 3\. Is it on\?.*\n.*no such package"):
        runtime.run_or_raise([sys.executable, "-c", "print('no such package'); exit(3)"], "Is it on?")


def test_each_line_of_a_command_is_passed_on() -> None:
    lines: list[str] = []
    runtime.run_or_raise([sys.executable, "-c", "print('one'); print('two')"], "Is it on?", lines.append)
    assert lines == ["one\n", "two\n"]


def test_what_runs_beside_a_block_ends_with_it_and_with_what_it_started() -> None:
    started = threading.Event()
    lines: list[str] = []

    def note(line: str) -> None:
        lines.append(line)
        started.set()

    child = "import time; time.sleep(600)"
    parent = (
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {child!r}]); print(p.pid, flush=True)"
    )
    with runtime._running([sys.executable, "-c", f"{parent}; p.wait()"], note):
        assert started.wait(60)
        process = psutil.Process(int(lines[0]))
    gone, alive = psutil.wait_procs([process], timeout=60)
    assert (gone, alive) == ([process], []) or process.status() == psutil.STATUS_ZOMBIE


def test_the_lines_of_the_compiler_are_parts_of_a_step_and_others_are_not() -> None:
    steps: list[runtime.InstallStep] = []
    report = runtime._kernel_report(steps.append)
    for line in ("3/12\n", "a warning: 1/2 of it\n"):
        report(line)
    assert [str(step) for step in steps] == ["compiling kernels 3/12"]


def test_the_gpu_build_is_of_the_pinned_version_and_installed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real one has 1.6 GB."""
    commands: list[list[str]] = []
    made = runtime.RuntimeEnvironment(tmp_path, tmp_path, tmp_path)
    monkeypatch.setattr(runtime, "ensure_runtime", lambda *_, **__: made)
    monkeypatch.setattr(runtime, "run_or_raise", lambda command, _: commands.append(command))

    runtime.ensure_cuda(tmp_path)
    runtime.ensure_cuda(tmp_path)

    (command,) = commands
    assert command[-3:-1] == ["--constraint", str(runtime.lock_file())]
    package, _, version = command[-1].partition("==")
    assert package == "onnxruntime-gpu[cuda,cudnn]"
    assert f"onnxruntime=={version}" in runtime.lock_file().read_text().splitlines()
