"""The code of agents and of the steps inside Triton: copies of our packages, in a folder named by their digest."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

import psutil

from segserve_builder.kernels.sources import compiled_digests
from segserve_common.files import replace_file

CODE_VARIABLE: Final = "SEGSERVE_CODE"
KEPT_CODE_FOLDERS: Final = 3


def install_code(root: Path, packages: Sequence[Path], prepare: Callable[[Path], None] = lambda _: None) -> Path:
    """Copy `packages` into a folder of `root` named by their digest, and make the environment's Python import them.

    `prepare` is called with the folder before it gets its name, so that the folder is complete or does not exist.
    Callers must hold a lock: incomplete copies of others are removed.
    """
    digests = "".join(map(code_digest, packages))
    target = root / "code" / hashlib.sha256(digests.encode()).hexdigest()[:16]
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        for incomplete in target.parent.glob(".*"):
            shutil.rmtree(incomplete)
        staging = Path(tempfile.mkdtemp(prefix=".", dir=target.parent))
        for package in packages:
            shutil.copytree(package, staging / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        reuse_kernels(staging, packages)
        staging.chmod(0o755)
        prepare(staging)
        staging.rename(target)
    os.utime(target)
    _point_at(root, target)
    _remove_old_code(target.parent)
    return target


def has_all_kernels(code: Path) -> bool:
    """Return whether every kernel of a code folder is compiled."""
    return any(code.glob("*/kernels/__pycache__/complete-*"))


def missing_kernels(code: Path, names: Collection[str]) -> set[str]:
    """Return which of the named kernel modules are not compiled in a code folder."""
    folders = list(code.glob("*/kernels"))
    return {
        name
        for name in names
        for folder in folders
        if "@njit" in (folder / f"{name}.py").read_text(encoding="utf-8") and not _compiled(folder, name)
    }


def reuse_kernels(code: Path, packages: Sequence[Path]) -> None:
    """Copy compiled kernels into a code folder, from other code folders and the packages' sources.

    A module's kernels are copied if it has no kernels yet, and the same digest there.
    """
    for package in packages:
        kernels = code / package.name / "kernels"
        missing = compiled_digests(kernels)
        for name in [name for name in missing if _compiled(kernels, name)]:
            del missing[name]
        for other in [*code.parent.glob(f"[!.]*/{package.name}/kernels"), package / "kernels"]:
            for name in [name for name, digest in compiled_digests(other).items() if missing.get(name) == digest]:
                for compiled in (files := _compiled(other, name)):
                    (kernels / "__pycache__").mkdir(exist_ok=True)
                    shutil.copy2(compiled, kernels / "__pycache__")
                if files:
                    del missing[name]


def _compiled(kernels: Path, name: str) -> list[Path]:
    return list((kernels / "__pycache__").glob(f"{name}.*.nb[ci]"))


def code_digest(package: Path) -> str:
    """Return the digest of a package's files without bytecode: 16 hex digits."""
    digest = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        digest.update(f"{path.relative_to(package).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def site_packages(root: Path) -> Path:
    """Return the `site-packages` folder of the environment `root`."""
    return root / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def _point_at(root: Path, code: Path) -> None:
    # Stubs ignore PYTHONPATH. The variable, which a Triton passes to its stubs, keeps a running server on the code that
    # it was started with; the path written here is for all other processes.
    line = f"import os, sys; sys.path.append(os.environ.get({CODE_VARIABLE!r}) or {str(code)!r})\n"
    pth = site_packages(root) / "segserve.pth"
    if pth.exists() and pth.read_text() == line:
        return
    replace_file(pth, line)


def _remove_old_code(folder: Path) -> None:
    by_age = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    old = by_age[KEPT_CODE_FOLDERS:]
    if not old:
        return
    in_use = _code_in_use()
    for path in old:
        if str(path) not in in_use:
            shutil.rmtree(path, ignore_errors=True)


def _code_in_use() -> frozenset[str]:
    folders = set()
    for process in psutil.process_iter():
        try:
            folders.add(process.environ().get(CODE_VARIABLE, ""))
        except (psutil.Error, OSError):
            continue
    return frozenset(folders)
