"""The runtime environment: its name, the search for Python's shared library, and errors of commands."""

from __future__ import annotations

import re
import sys
import threading
import venv
from pathlib import Path

import psutil
import pytest

from segserve_builder.steps.openvino_session import REQUIREMENT
from segserve_operator.adapters.local import runtime


@pytest.mark.parametrize("name", ["runtime", "openvino", "cuda"])
def test_every_package_of_a_list_has_a_version_and_the_digests_of_its_files(name: str) -> None:
    text = runtime.lock_file().with_name(f"{name}.lock").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]

    assert lines
    assert [
        line for line in lines if not re.fullmatch(r"[a-z0-9.-]+==[^ ]+( +--hash=sha256:[0-9a-f]{64})+", line)
    ] == []


def test_a_file_of_other_bytes_than_the_list_says_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "evil-1.0.tar.gz").write_bytes(b"other bytes")
    lock = tmp_path / "evil.lock"
    lock.write_text(f"evil==1.0 --hash=sha256:{'0' * 64}\n")
    venv.create(tmp_path / "root", with_pip=False)

    with pytest.raises(runtime.InstallError, match="DO NOT MATCH THE HASHES"):
        runtime.run_or_raise(
            [*runtime._pip_install(tmp_path / "root", lock), "--no-index", "--find-links", str(tmp_path)], "Why?"
        )


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
    assert {"--require-hashes", "--no-deps"} < set(command)
    assert command[-2:] == ["-r", str(runtime.lock_file().with_name("cuda.lock"))]


def test_all_lists_have_the_same_versions() -> None:
    def versions(name: str) -> dict[str, str]:
        lines = runtime.lock_file().with_name(f"{name}.lock").read_text().splitlines()
        return dict(line.split()[0].split("==") for line in lines if "==" in line)

    common, cuda = versions("runtime"), versions("cuda")
    assert cuda["onnxruntime-gpu"] == common["onnxruntime"]
    assert {name: version for name, version in cuda.items() if common.get(name, version) != version} == {}
    assert "openvino=={openvino}".format_map(versions("openvino")) == REQUIREMENT
