"""The runtime environment: a virtual environment with pinned packages, for Triton, its Python steps and the agent."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import segserve_builder
import segserve_common
from segserve_operator.adapters.local.code_folder import CODE_VARIABLE, install_code, site_packages

PYTHON_VERSIONS: Final = ((3, 11), (3, 12))
_MARKER: Final = "complete"
_PACKAGE: Final = Path(segserve_builder.__file__).parent
_CODE: Final = (_PACKAGE, Path(segserve_common.__file__).parent)
"""The packages that agents and steps import."""


class RuntimeEnvironmentError(Exception):
    """The runtime environment cannot be created; the message has the cause and a remedy, `reason` a single word."""

    reason: ClassVar[str] = "RuntimeFailed"


class PythonLibraryMissingError(RuntimeEnvironmentError):
    """Python has no shared library, which Triton's Python backend needs."""

    reason = "PythonLibraryMissing"


class PythonVersionError(RuntimeEnvironmentError):
    """The pinned packages have no wheels for this Python version."""

    reason = "PythonVersion"


class InstallError(RuntimeEnvironmentError):
    """A command such as `venv` or `pip` failed; the message ends with the last lines of its output."""

    reason = "InstallFailed"


@dataclass(frozen=True, slots=True)
class RuntimeEnvironment:
    """A complete runtime environment.

    `root` is its folder, `code` the folder with its copies of segserve_builder and segserve_common and nothing else,
    `library_folder` the folder of libpython.
    """

    root: Path
    code: Path
    library_folder: Path

    @property
    def python(self) -> Path:
        """Path of the interpreter."""
        return self.root / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        """Path of the `site-packages` folder."""
        return site_packages(self.root)

    @property
    def tritonserver(self) -> Path:
        """Path of the server's executable."""
        return _triton_folder(self.root) / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        """Path of the folder of Triton's backends, with the stub for this Python version."""
        return self.root / "backends"


def ensure_runtime(cache: Path, progress: Callable[[str], None] = lambda _: None) -> RuntimeEnvironment:
    """Return the runtime environment in `cache`, created on first use, with the code of this version of segserve.

    Safe to call from several processes: one creates it, the others wait. An incomplete environment is created again.
    `progress` is called with a message before each long step. Raises `RuntimeEnvironmentError`.
    """
    library_folder = find_python_library(Path(sys.base_prefix))
    root = _root(cache)
    root.parent.mkdir(parents=True, exist_ok=True)
    with _locked(root.with_suffix(".lock")):
        if not _is_complete(root):
            _install(root, progress)
        code = install_code(root, _CODE, lambda staging: _compile_kernels(root, staging, progress))
    return RuntimeEnvironment(root, code, library_folder)


def find_runtime(cache: Path) -> Path | None:
    """Return the folder of the environment in `cache`, or None if it does not exist yet."""
    root = _root(cache)
    return root if _is_complete(root) else None


def _root(cache: Path) -> Path:
    return cache.resolve() / "runtime" / environment_digest(lock_file().read_bytes())


def lock_file() -> Path:
    """Return the path of the list of pinned packages."""
    return _PACKAGE / "runtime.lock"


def environment_digest(lock: bytes) -> str:
    """Return the name of the environment with these packages and this Python: 16 hex digits."""
    text = b"\n".join([lock, sys.version.encode(), sys.base_prefix.encode()])
    return hashlib.sha256(text).hexdigest()[:16]


def find_python_library(prefix: Path) -> Path:
    """Return the folder of `libpython3.x.so`; raises `PythonLibraryMissingError`, which says how to get it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if sys.version_info[:2] not in PYTHON_VERSIONS:
        allowed = " or ".join(f"{major}.{minor}" for major, minor in PYTHON_VERSIONS)
        raise PythonVersionError(f"segserve runs on Python {version}; the embedded Triton needs {allowed}")
    triplet = sysconfig.get_config_var("MULTIARCH") or ""
    # Relocated builds of Python report the LIBDIR of the build machine, so the prefix comes first.
    folders = [
        prefix / "lib",
        prefix / "lib" / triplet,
        Path(sysconfig.get_config_var("LIBDIR") or prefix / "lib"),
    ]
    for folder in folders:
        if (folder / f"libpython{version}.so.1.0").exists():
            return folder
    searched = ", ".join(str(folder) for folder in dict.fromkeys(folders))
    raise PythonLibraryMissingError(
        f"no libpython{version}.so.1.0 in {searched}. On Debian and Ubuntu: apt-get install libpython{version}. "
        "With pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install"
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_complete(root: Path) -> bool:
    # The interpreter is a link to the Python that created it, which may have been removed since.
    return (root / _MARKER).exists() and (root / "bin" / "python").exists()


def _install(root: Path, progress: Callable[[str], None]) -> None:
    started = time.monotonic()
    shutil.rmtree(root, ignore_errors=True)
    progress(f"creating the runtime environment {root}")
    interpreter = getattr(sys, "_base_executable", sys.executable)
    run_or_raise([interpreter, "-m", "venv", str(root)], "On Debian and Ubuntu: apt-get install python3-venv")
    progress("installing Triton and its packages (about 240 MB to download on first use)")
    python = str(root / "bin" / "python")
    # The list is complete. The requirements of nvidia-pytriton are for its Python code, which is not used.
    run_or_raise(
        [python, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check", "-r", str(lock_file())],
        "Is the package index reachable? pip's own configuration applies (PIP_INDEX_URL, pip.conf)",
    )
    _prepare_backends(root)
    (root / _MARKER).touch()
    progress(f"the runtime environment is ready after {time.monotonic() - started:.0f} s")


def run_or_raise(command: list[str], advice: str) -> None:
    """Run a command; raises `InstallError` with `advice` and the end of its output if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        tail = "\n".join(done.stdout.strip().splitlines()[-15:])
        raise InstallError(f"{' '.join(command)} failed with exit code {done.returncode}. {advice}.\n{tail}")


def _prepare_backends(root: Path) -> None:
    # The wheel has one stub per Python version in a separate folder; the backend expects it in its own.
    wheel = _triton_folder(root)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    target = root / "backends" / "python"
    shutil.copytree(wheel / "backends" / "python", target)
    shutil.copy2(wheel / "python_backend_stubs" / version / "triton_python_backend_stub", target)


def _triton_folder(root: Path) -> Path:
    return site_packages(root) / "pytriton" / "tritonserver"


def _compile_kernels(root: Path, code: Path, progress: Callable[[str], None]) -> None:
    progress("compiling the kernels (about a minute if they are new)")
    # `env` adds to the inherited environment.
    python = str(root / "bin" / "python")
    command = ["env", f"PYTHONPATH={code}", f"{CODE_VARIABLE}={code}", python, "-m", "segserve_builder.kernels"]
    run_or_raise(command, "This is a bug in segserve; please report it")
