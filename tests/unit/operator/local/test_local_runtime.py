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
    monkeypatch.setattr(runtime, "PYTHON_VERSIONS", (sys.version_info[:2],))
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
    made = runtime.RuntimeEnvironment(*[tmp_path] * 5)
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


@pytest.fixture
def embedded(tmp_path: Path) -> runtime.RuntimeEnvironment:
    """An environment whose wheel has a library of the server's, under a name of its own."""
    root = tmp_path / "root"
    library = runtime._libraries(root) / "libtritonserver-1234abcd.so"
    stub = root / "backends" / runtime._STUB
    for path in (library, stub):
        path.parent.mkdir(parents=True)
        path.touch()
    return runtime.RuntimeEnvironment(root, root / "code", root / "lib", root / "triton", root / "backends")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of a Triton with both backends, whose stub is of this Python."""
    folder = tmp_path / "own"
    for name in ("onnxruntime/libtriton_onnxruntime.so", str(runtime._STUB)):
        (folder / "backends" / name).parent.mkdir(parents=True)
        (folder / "backends" / name).write_bytes(f"libpython3.{sys.version_info.minor}.so.1.0".encode())
    return folder


def write_server(folder: Path, *lines: str) -> None:
    """Write a server that prints lines, as Triton does before it ends without models."""
    (folder / "bin").mkdir()
    (folder / "bin/tritonserver").write_text("\n".join(["#!/bin/sh", "cat <<END", *lines, "END", "exit 1", ""]))
    (folder / "bin/tritonserver").chmod(0o755)


@pytest.mark.parametrize(
    ("version", "release"),
    [
        *(("2.51.0", "24.10"), ("2.54.0", "25.01"), ("2.59.0", "25.06"), ("2.60.0", "25.08")),
        *(("2.64.0", "25.12"), ("2.65.0", "26.01"), ("2.68.0", "26.04"), ("2.72.0", "26.08")),
    ],
)
def test_a_triton_of_ones_own_has_the_release_that_it_prints(
    embedded: runtime.RuntimeEnvironment, own: Path, version: str, release: str
) -> None:
    write_server(own, "| server_id        | triton |", f"| server_version   | {version} |")

    made = runtime._with_triton(embedded, own)

    assert (made.target.name, made.target.backend) == (release, "onnxruntime")
    assert (made.tritonserver, made.backends) == (own / "bin/tritonserver", own / "backends")


def test_backends_alone_are_loaded_by_the_embedded_triton_beside_its_own_python_backend(
    embedded: runtime.RuntimeEnvironment, own: Path
) -> None:
    for _ in range(2):
        made = runtime._with_triton(embedded, own)

    assert (made.target.name, made.target.backend) == ("24.10", "onnxruntime")
    assert made.tritonserver == embedded.tritonserver
    assert {path.name: path.resolve() for path in made.backends.iterdir()} == {
        "onnxruntime": own / "backends/onnxruntime",
        "python": embedded.backends / "python",
        "libtritonserver.so": runtime._libraries(embedded.root) / "libtritonserver-1234abcd.so",
    }
    assert str(made.backends) in made.library_path["LD_LIBRARY_PATH"].split(":")


def test_a_triton_that_cannot_run_here_is_refused_with_what_is_wrong(
    embedded: runtime.RuntimeEnvironment, own: Path, tmp_path: Path
) -> None:
    with pytest.raises(runtime.TritonFolderError, match=f"SEGSERVE_TRITON={tmp_path}/none: expected backends/"):
        runtime._with_triton(embedded, tmp_path / "none")

    write_server(own, "cannot open shared object file")
    with pytest.raises(runtime.TritonFolderError, match=r"does not print a version 2\.N:\ncannot open shared"):
        runtime._with_triton(embedded, own)

    (own / "backends" / runtime._STUB).write_bytes(b"libpython3.9.so.1.0")
    with pytest.raises(runtime.PythonVersionError, match=r"needs 3\.9"):
        runtime._with_triton(embedded, own)

    (own / "backends" / runtime._STUB).unlink()
    with pytest.raises(runtime.TritonFolderError, match="triton_python_backend_stub is missing"):
        runtime._with_triton(embedded, own)
