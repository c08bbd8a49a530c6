"""The code that runs inside Triton: a copy of segserve_builder, named by its digest, its kernels compiled."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil

from segserve_builder.kernels.sources import compiled_digests

CODE_VARIABLE: Final = "SEGSERVE_CODE"
KEPT_CODE_FOLDERS: Final = 3


def install_code(root: Path, package: Path, prepare: Callable[[Path], None] = lambda _: None) -> Path:
    """Copy `package` below `root` under its digest, and point the environment's Python at the copy.

    `prepare` gets the folder of the copy before that has its name, so that what it adds is there or nothing is. One
    caller at a time: what another has left half-made is removed.
    """
    target = root / "code" / code_digest(package)
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        for half_made in target.parent.glob(".*"):
            shutil.rmtree(half_made)
        staging = Path(tempfile.mkdtemp(prefix=".", dir=target.parent))
        shutil.copytree(package, staging / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        _reuse_kernels(staging / package.name, package)
        staging.chmod(0o755)
        prepare(staging)
        staging.rename(target)
    os.utime(target)
    _point_at(root, target)
    _remove_old_code(target.parent)
    return target


def code_digest(package: Path) -> str:
    """Return the digest of a package's files (bytecode left out): 16 hex digits."""
    total = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        total.update(f"{path.relative_to(package).as_posix()}\0{path.stat().st_size}\0".encode())
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def site_packages(root: Path) -> Path:
    """Return the folder of packages of the environment `root`."""
    return root / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def _reuse_kernels(package: Path, source: Path) -> None:
    """Take over what the source and other code folders have compiled of modules that are made of the same here."""
    fresh = package / "kernels"
    wanted = compiled_digests(fresh)
    for other in [*package.parent.parent.glob(f"[!.]*/{package.name}/kernels"), source / "kernels"]:
        for name in [name for name, digest in compiled_digests(other).items() if wanted.get(name) == digest]:
            (fresh / "__pycache__").mkdir(exist_ok=True)
            for compiled in (other / "__pycache__").glob(f"{name}.*.nb[ci]"):
                shutil.copy2(compiled, fresh / "__pycache__")
            del wanted[name]


def _point_at(root: Path, code: Path) -> None:
    # Stubs ignore PYTHONPATH. The variable, which a Triton hands on to its stubs, keeps a running server with
    # the code that it was started with; the path written here is for everybody else.
    line = f"import os, sys; sys.path.append(os.environ.get({CODE_VARIABLE!r}) or {str(code)!r})\n"
    link = site_packages(root) / "segserve.pth"
    if link.exists() and link.read_text() == line:
        return
    staging = link.with_suffix(".pth-new")
    staging.write_text(line)
    staging.replace(link)


def _remove_old_code(folder: Path) -> None:
    by_age = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    old = by_age[KEPT_CODE_FOLDERS:]
    if not old:
        return
    used = _code_in_use()
    for path in old:
        if str(path) not in used:
            shutil.rmtree(path, ignore_errors=True)


def _code_in_use() -> frozenset[str]:
    found = set()
    for process in psutil.process_iter():
        try:
            found.add(process.environ().get(CODE_VARIABLE, ""))
        except (psutil.Error, OSError):
            continue
    return frozenset(found)
