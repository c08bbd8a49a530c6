"""Compiled kernels are found again: by another user, read-only, and only while they are true."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from segserve_builder.kernels.cache import FOLDER
from segserve_builder.kernels.sources import compiled_digests, module_imports

if TYPE_CHECKING:
    from collections.abc import Iterator

MACHINERY: Final = ("__init__", "__main__", "build", "cache", "compiled", "sources")
INNER: Final = """
from numba import njit, types
from segserve_builder.kernels.compiled import OPTIONS
@njit([types.int64(types.int64)], **OPTIONS)
def inner(number): return number + 1
"""
OUTER: Final = """
from numba import njit, types
from segserve_builder.kernels.compiled import OPTIONS
from segserve_builder.kernels.inner import inner
@njit([types.int64(types.int64)], **OPTIONS)
def outer(number): return inner(number) * 10
"""
ASK: Final = """
from segserve_builder.kernels.outer import outer
print(outer(1), "compiled" if outer.stats.cache_misses else "loaded")
"""
ANOTHER_PROCESSOR: Final = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}


@pytest.fixture(scope="module")
def compiled() -> Iterator[Path]:
    """A code folder with two compiled kernels, one of which inlines the other, that another user can reach."""
    with tempfile.TemporaryDirectory(prefix="segserve-kernels-") as name:
        root = Path(name)
        root.chmod(0o755)
        folder = _package(root)
        (folder / "inner.py").write_text(INNER)
        (folder / "outer.py").write_text(OUTER)
        done = _run(root, "-m", "segserve_builder.kernels")
        assert done.returncode == 0, done.stderr
        yield root


@pytest.fixture
def code(compiled: Path) -> Iterator[Path]:
    """Its copy, whose files have lost their times, as those of an image do."""
    with tempfile.TemporaryDirectory(prefix="segserve-kernels-") as name:
        root = Path(name)
        root.chmod(0o755)
        shutil.copytree(compiled, root, dirs_exist_ok=True, copy_function=shutil.copyfile)
        yield root
        _set_writable(root, True)


def _package(root: Path) -> Path:
    folder = root / "segserve_builder" / "kernels"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    for name in MACHINERY:
        shutil.copy2(FOLDER / f"{name}.py", folder)
    return folder


def _run(
    code: Path, *arguments: str, user: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run this Python on the kernels of `code` with a bare environment: without HOME there is no user's cache."""
    command = [*user, "env", "-i", f"PYTHONPATH={code}", *(f"{key}={value}" for key, value in environment.items())]
    return subprocess.run([*command, sys.executable, *arguments], capture_output=True, text=True, check=False)


def _answer(code: Path, user: tuple[str, ...] = (), **environment: str) -> str:
    done = _run(code, "-c", ASK, user=user, **environment)
    return done.stdout.strip() or done.stderr


def _somebody_else() -> tuple[str, ...]:
    """Return what makes a command run as a user who may read all and write nothing; nobody but root can do that."""
    if os.getuid() != 0:
        return ()
    reads = "+dac_read_search"
    caps = (f"--inh-caps=-all,{reads}", f"--ambient-caps=-all,{reads}", f"--bounding-set=-all,{reads}")
    return ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *caps)


def _set_writable(root: Path, writable: bool) -> None:
    for path in [root, *root.rglob("*")]:
        mode = path.stat().st_mode
        path.chmod(mode | 0o200 if writable else mode & ~0o222)


def test_another_user_loads_what_is_compiled_where_nobody_may_write(code: Path) -> None:
    _set_writable(code, False)
    user = _somebody_else()
    refused = _run(code, "-S", "-c", f"open({str(code / 'written')!r}, 'w')", user=user)
    assert "PermissionError" in refused.stderr
    assert _answer(code, user) == "20 loaded"


def test_a_kernel_is_compiled_again_when_a_module_that_it_inlines_changes(code: Path) -> None:
    inner = code / "segserve_builder" / "kernels" / "inner.py"
    inner.write_text(INNER.replace("+ 1", "+ 2"))
    assert _answer(code) == "30 compiled"


def test_what_nobody_may_write_and_another_processor_compiled_is_compiled_at_home(code: Path) -> None:
    home = code / "home"
    home.mkdir()
    _set_writable(code, False)
    home.chmod(0o777)
    assert _answer(code, _somebody_else(), HOME=str(home), **ANOTHER_PROCESSOR) == "20 compiled"
    assert list(home.rglob("*.nbc"))


def test_a_compilation_that_is_killed_fails_and_is_not_taken_for_complete(tmp_path: Path) -> None:
    (_package(tmp_path) / "killed.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    done = _run(tmp_path, "-m", "segserve_builder.kernels")
    assert done.returncode != 0
    assert "BrokenProcessPool" in done.stderr
    assert not list(tmp_path.rglob("complete-*"))


def test_named_modules_are_compiled_with_their_imports_and_the_rest_afterwards(tmp_path: Path) -> None:
    folder = _package(tmp_path)
    (folder / "inner.py").write_text(INNER)
    (folder / "outer.py").write_text(OUTER)
    (folder / "other.py").write_text(INNER)

    first = _run(tmp_path, "-m", "segserve_builder.kernels", "--report", "outer")

    assert first.stdout.splitlines() == ["1/3", "2/3", "3/3"], first.stderr  # with `compiled`
    assert {path.name.partition(".")[0] for path in folder.glob("__pycache__/*.nbi")} == {"inner", "outer"}
    assert not list(tmp_path.rglob("complete-*"))
    assert _answer(tmp_path) == "20 loaded"
    assert _run(tmp_path, "-m", "segserve_builder.kernels").returncode == 0
    assert {path.name.partition(".")[0] for path in folder.glob("__pycache__/*.nbi")} == {"inner", "outer", "other"}
    assert list(tmp_path.rglob("complete-*"))


def test_a_module_that_is_not_there_is_refused_with_those_that_are(code: Path) -> None:
    done = _run(code, "-m", "segserve_builder.kernels", "outter")

    assert done.returncode != 0
    assert "no module of kernels outter; there are: build, cache, compiled, inner, outer, sources" in done.stderr


def test_every_import_between_kernels_is_one_that_digests_follow() -> None:
    written = {}
    for path in FOLDER.glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        whole = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
        parts = {node.module or "": node for node in nodes if isinstance(node, ast.ImportFrom)}
        assert not [name for name in whole if name.startswith("segserve_builder")]
        prefix = "segserve_builder.kernels."
        written[path.stem] = {module.removeprefix(prefix) for module in parts if module.startswith(prefix)}
    followed = module_imports(FOLDER)
    for name in written.keys() - set(MACHINERY):
        assert followed[name] == written[name] - _typing_only(name)


def _typing_only(name: str) -> set[str]:
    """Return the kernel modules that a module imports for type checkers alone."""
    body = ast.parse((FOLDER / f"{name}.py").read_text()).body
    guarded = [node for node in body if isinstance(node, ast.If)]
    found = {part.module or "" for node in guarded for part in ast.walk(node) if isinstance(part, ast.ImportFrom)}
    outside = {node.module or "" for node in body if isinstance(node, ast.ImportFrom)}
    return {module.removeprefix("segserve_builder.kernels.") for module in found - outside}


def test_a_digest_covers_what_is_imported_through_others(tmp_path: Path) -> None:
    for name, imported in (("a", "b"), ("b", "c"), ("c", None), ("d", None)):
        line = f"from segserve_builder.kernels.{imported} import x\n" if imported else ""
        (tmp_path / f"{name}.py").write_text(line)
    before = compiled_digests(tmp_path)
    (tmp_path / "c.py").write_text("x = 1\n")
    after = compiled_digests(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {"a", "b", "c"}
