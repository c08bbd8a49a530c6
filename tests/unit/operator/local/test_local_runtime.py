"""The pure parts of the runtime environment: names, code folders, and where Python's library is looked for."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from segserve_operator.adapters.local import runtime

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "source" / "segserve_builder"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / "root" / "lib" / version / "site-packages").mkdir(parents=True)
    return tmp_path / "root"


def _edit(package: Path, text: str) -> None:
    (package / "__init__.py").write_text(text)


def test_every_package_of_the_lock_is_pinned() -> None:
    lines = [line for line in runtime.lock_file().read_text().splitlines() if line and not line.startswith("#")]
    assert lines
    assert all(line.count("==") == 1 for line in lines)


def test_another_lock_makes_another_environment() -> None:
    assert runtime.environment_digest(b"numpy==1.26.4") != runtime.environment_digest(b"numpy==1.26.3")


def test_bytecode_does_not_change_the_code_digest_and_source_does(package: Path) -> None:
    before = runtime.code_digest(package)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert runtime.code_digest(package) == before
    _edit(package, "x = 1")
    assert runtime.code_digest(package) != before


def test_the_code_folder_holds_the_package_alone_and_is_pointed_at(root: Path, package: Path) -> None:
    code = runtime.install_code(root, package)
    assert [path.name for path in code.iterdir()] == ["segserve_builder"]
    pointer = next(root.glob("lib/*/site-packages/segserve.pth"))
    assert str(code) in pointer.read_text()


def test_the_same_code_is_installed_once_and_keeps_its_caches(root: Path, package: Path) -> None:
    code = runtime.install_code(root, package)
    (code / "segserve_builder" / "cache.nbi").write_bytes(b"x")
    assert runtime.install_code(root, package) == code
    assert (code / "segserve_builder" / "cache.nbi").exists()


def test_only_the_last_code_folders_stay(root: Path, package: Path) -> None:
    made = []
    for number in range(5):
        _edit(package, f"x = {number}")
        made.append(runtime.install_code(root, package))
        os.utime(made[-1], (number, number))
    assert set((root / "code").iterdir()) == set(made[-runtime.KEPT_CODE_FOLDERS :])


def test_code_that_a_process_uses_stays(root: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = runtime.install_code(root, package)
    os.utime(used, (0, 0))
    monkeypatch.setattr(runtime, "_code_in_use", lambda: frozenset({str(used)}))
    for number in range(4):
        _edit(package, f"x = {number}")
        runtime.install_code(root, package)
    assert used.exists()


def test_a_half_copied_code_folder_is_not_taken_for_a_whole(root: Path, package: Path) -> None:
    code = runtime.install_code(root, package)
    shutil.rmtree(code)
    (code.parent / ".half").mkdir()
    assert (runtime.install_code(root, package) / "segserve_builder" / "__init__.py").exists()


def test_a_python_without_its_shared_library_is_refused_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_config_var", lambda _: str(tmp_path))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    with pytest.raises(runtime.PythonLibraryMissingError, match=f"apt-get install libpython{version}"):
        runtime.find_python_library(tmp_path)


def test_a_failed_command_tells_what_it_printed_last() -> None:
    with pytest.raises(runtime.InstallError, match=r"exit code 3\. Is it on\?.*\n.*no such package"):
        runtime.run_or_raise([sys.executable, "-c", "print('no such package'); exit(3)"], "Is it on?")
