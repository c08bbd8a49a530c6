"""Which test files meet a change by what they import, and over how many imports."""

from __future__ import annotations

import ast
import subprocess
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final

import grimp

PACKAGES: Final[Mapping[str, str]] = {
    "segserve": "client/src",
    "segserve_builder": "model_repo_builder/src",
    "segserve_common": "model_repo_builder/src",
    "segserve_operator": "operator/src",
    "segserve_platform": "client/src",
}
SCRIPT_ROOTS: Final = ("tests", ".")
"""Folders whose Python files are imported by their path below it, as pytest is told in pyproject.toml."""

FOLDERS: Final[Mapping[str, tuple[str, ...]]] = {
    "charts/": ("tests/unit/chart",),
    "crds/": ("tests/unit/chart", "tests/unit/operator/api"),
    "docs/": ("tests/unit/docs",),
    "examples/": ("tests/unit/examples", "tests/unit/docs"),
    "images/": ("tests/unit/chart",),
    "tests/golden/": ("tests/unit/operator/kube",),
    "tests/unit/": ("tests/unit",),
}
"""Which tests read the files of a folder that are no Python; what no folder here holds meets every test."""

EVERY_TEST: Final = 1000
"""The distance of tests of which only this is known: something changed that is no module."""


def changed_files(root: Path, base: str) -> list[str]:
    """Return what differs from a commit, files that git does not know yet included, by path below `root`."""
    commands = (["diff", "--name-only", base], ["ls-files", "--others", "--exclude-standard"])
    texts = (subprocess.run(["git", *c], cwd=root, capture_output=True, text=True, check=True).stdout for c in commands)
    return sorted({line for text in texts for line in text.splitlines()})


def distances(root: Path, changed: Iterable[str]) -> dict[str, int]:
    """Return the test files that meet the changed files, each with the least number of imports between them.

    A file that changed itself is at 0. Imports inside functions and those for type checkers count like any other.
    """
    importers = _importers(root)
    found: dict[str, int] = {}
    queue = deque((path, 0) for path in changed if path.endswith(".py"))
    while queue:
        path, distance = queue.popleft()
        if path not in found:
            found[path] = distance
            queue.extend((importer, distance + 1) for importer in importers.get(path, ()))
    tests = [path for path in _python_files(root, "tests") if Path(path).name.startswith("test_")]
    for path in changed:
        if not path.endswith(".py"):
            folders = next((folders for start, folders in FOLDERS.items() if path.startswith(start)), None)
            for test in tests:
                if folders is None or test.startswith(folders):
                    found.setdefault(test, EVERY_TEST if folders is None else 1)
    return {test: found[test] for test in tests if test in found}


@cache
def _importers(root: Path) -> dict[str, set[str]]:
    """Return, by path, the files that import a file."""
    graph = grimp.build_graph(*PACKAGES, include_external_packages=False)
    paths = {module: _path_of(root, module) for module in graph.modules}
    importers: dict[str, set[str]] = {}
    for module, path in paths.items():
        importing = graph.find_modules_that_directly_import(module)
        importers.setdefault(path, set()).update(paths[each] for each in importing)
    for folder in ("tests", "bench", "examples"):
        for path in _python_files(root, folder):
            for imported in _imported_files(root, path, paths):
                importers.setdefault(imported, set()).add(path)
    return importers


def _path_of(root: Path, module: str) -> str:
    path = Path(PACKAGES[module.partition(".")[0]], *module.split("."))
    return str(path / "__init__.py") if (root / path).is_dir() else f"{path}.py"


def _python_files(root: Path, folder: str) -> Iterator[str]:
    for path in sorted((root / folder).rglob("*.py")):
        if not any(part.startswith((".", "__pycache__")) for part in path.parts):
            yield str(path.relative_to(root))


def _imported_files(root: Path, path: str, modules: Mapping[str, str]) -> Iterator[str]:
    """Yield the files that a script imports, and those that pytest reads before it."""
    for parent in Path(path).parents:
        if (
            path.startswith("tests/")
            and (conftest := parent / "conftest.py") != Path(path)
            and (root / conftest).exists()
        ):
            yield str(conftest)
    for name in _imported_names(path, (root / path).read_text(encoding="utf-8")):
        if name in modules:
            yield modules[name]
        elif (script := _script(root, name)) is not None:
            yield script


def _imported_names(path: str, text: str) -> Collection[str]:
    """Return all that may be a module in a file's imports: of `from a import b` both `a` and `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(Path(path).parts[: -node.level]) if node.level else ""
            module = ".".join(filter(None, (above, node.module)))
            names.update({module, *(f"{module}.{alias.name}" for alias in node.names)})
    return names


def _script(root: Path, name: str) -> str | None:
    for folder in SCRIPT_ROOTS:
        path = Path(folder, *name.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if (root / file).is_file():
                return str(file)
    return None
