"""Code folders: the code that runs inside Triton, and which kernels are compiled again."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Final

import pytest

from segserve_operator.adapters.local import code_folder

KERNELS: Final = {"base": "x = 1\n", "user": "from segserve_builder.kernels.base import x\n", "other": "y = 1\n"}


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


def _write_kernels(package: Path, kernels: dict[str, str]) -> None:
    (package / "kernels").mkdir(exist_ok=True)
    for name, text in kernels.items():
        (package / "kernels" / f"{name}.py").write_text(text)


def _compile(staging: Path) -> None:
    """Write an index and a data file for each module, as numba does."""
    folder = staging / "segserve_builder" / "kernels"
    (folder / "__pycache__").mkdir(exist_ok=True)
    for name in KERNELS:
        (folder / "__pycache__" / f"{name}.f-1.py311.nbi").touch()
        (folder / "__pycache__" / f"{name}.f-1.py311.1.nbc").touch()


def _fail(_: Path) -> None:
    raise RuntimeError("the compiler died")


def _compiled(root: Path, package: Path) -> set[str]:
    """Install `package`, and return the modules that are compiled before its preparation."""
    names: set[str] = set()

    def collect(staging: Path) -> None:
        names.update(path.name.partition(".")[0] for path in staging.rglob("*.nbc"))
        assert names == {path.name.partition(".")[0] for path in staging.rglob("*.nbi")}

    code_folder.install_code(root, [package], collect)
    return names


def test_bytecode_does_not_change_the_code_digest_and_source_does(package: Path) -> None:
    before = code_folder.code_digest(package)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert code_folder.code_digest(package) == before
    _edit(package, "x = 1")
    assert code_folder.code_digest(package) != before


def test_the_code_folder_contains_only_the_package_and_is_imported(root: Path, package: Path) -> None:
    code = code_folder.install_code(root, [package])
    assert [path.name for path in code.iterdir()] == ["segserve_builder"]
    pointer = next(root.glob("lib/*/site-packages/segserve.pth"))
    assert str(code) in pointer.read_text()


def test_every_package_is_copied_and_names_the_folder(root: Path, package: Path) -> None:
    common = package.parent / "segserve_common"
    common.mkdir()
    (common / "files.py").write_text("x = 1\n")
    code = code_folder.install_code(root, [package, common])
    assert {path.name for path in code.iterdir()} == {"segserve_builder", "segserve_common"}
    (common / "files.py").write_text("x = 2\n")
    assert code_folder.install_code(root, [package, common]) != code


def test_the_same_code_is_installed_once_and_keeps_its_caches(root: Path, package: Path) -> None:
    code = code_folder.install_code(root, [package])
    (code / "segserve_builder" / "cache.nbi").write_bytes(b"x")
    assert code_folder.install_code(root, [package]) == code
    assert (code / "segserve_builder" / "cache.nbi").exists()


def test_only_the_last_code_folders_stay(root: Path, package: Path) -> None:
    folders = []
    for number in range(5):
        _edit(package, f"x = {number}")
        folders.append(code_folder.install_code(root, [package]))
        os.utime(folders[-1], (number, number))
    assert set((root / "code").iterdir()) == set(folders[-code_folder.KEPT_CODE_FOLDERS :])


def test_code_that_a_process_uses_stays(root: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = code_folder.install_code(root, [package])
    os.utime(used, (0, 0))
    monkeypatch.setattr(code_folder, "_code_in_use", lambda: frozenset({str(used)}))
    for number in range(4):
        _edit(package, f"x = {number}")
        code_folder.install_code(root, [package])
    assert used.exists()


def test_an_incomplete_code_folder_is_not_used(root: Path, package: Path) -> None:
    code = code_folder.install_code(root, [package])
    shutil.rmtree(code)
    (code.parent / ".half").mkdir()
    assert (code_folder.install_code(root, [package]) / "segserve_builder" / "__init__.py").exists()


def test_unchanged_kernels_are_not_compiled_again(root: Path, package: Path) -> None:
    _write_kernels(package, KERNELS)
    code_folder.install_code(root, [package], _compile)
    _edit(package, "x = 2")
    assert _compiled(root, package) == {"base", "user", "other"}


def test_kernels_compiled_in_the_source_folder_are_not_compiled_again(root: Path, package: Path) -> None:
    _write_kernels(package, KERNELS)
    _compile(package.parent)
    assert _compiled(root, package) == {"base", "user", "other"}


def test_a_changed_kernel_module_and_those_that_import_it_are_compiled_again(root: Path, package: Path) -> None:
    _write_kernels(package, KERNELS)
    code_folder.install_code(root, [package], _compile)
    _write_kernels(package, {"base": "x = 2\n"})
    assert _compiled(root, package) == {"other"}


def test_a_restored_kernel_module_is_copied_from_an_older_code_folder(root: Path, package: Path) -> None:
    _write_kernels(package, KERNELS)
    code_folder.install_code(root, [package], _compile)
    _write_kernels(package, {"other": "y = 2\n"})
    code_folder.install_code(root, [package], _compile)
    _write_kernels(package, {"other": "y = 1\n"})
    _edit(package, "x = 2")
    assert _compiled(root, package) == {"base", "user", "other"}


def test_a_code_folder_takes_the_kernels_that_it_lacks_from_the_source(root: Path, package: Path) -> None:
    _write_kernels(package, KERNELS)
    code = code_folder.install_code(root, [package])
    own = code / "segserve_builder/kernels/__pycache__"
    own.mkdir()
    (own / "base.f-1.py311.nbi").write_text("its own")
    _compile(package.parent)

    code_folder.reuse_kernels(code, [package])

    assert {path.name.partition(".")[0] for path in own.glob("*.nbc")} == {"user", "other"}
    assert (own / "base.f-1.py311.nbi").read_text() == "its own"


def test_a_folder_without_compiled_kernels_does_not_hide_one_that_has_them(root: Path, package: Path) -> None:
    _write_kernels(package, KERNELS)
    code_folder.install_code(root, [package])
    _compile(package.parent)
    _edit(package, "x = 2")
    assert _compiled(root, package) == {"base", "user", "other"}


def test_a_code_folder_has_all_kernels_once_their_compilation_ended(root: Path, package: Path) -> None:
    _write_kernels(package, KERNELS)
    code = code_folder.install_code(root, [package], _compile)
    assert not code_folder.has_all_kernels(code)
    (code / "segserve_builder/kernels/__pycache__/complete-0").touch()
    assert code_folder.has_all_kernels(code)


def test_code_whose_compilation_failed_is_never_used_and_is_removed(root: Path, package: Path) -> None:
    _write_kernels(package, KERNELS)
    first = code_folder.install_code(root, [package])
    _write_kernels(package, {"base": "x = 2\n"})
    with pytest.raises(RuntimeError, match="the compiler died"):
        code_folder.install_code(root, [package], _fail)
    assert str(first) in next(root.glob("lib/*/site-packages/segserve.pth")).read_text()
    second = code_folder.install_code(root, [package], _compile)
    assert set((root / "code").iterdir()) == {first, second}
    assert list(second.rglob("*.nbc"))
