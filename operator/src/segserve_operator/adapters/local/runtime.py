"""The runtime environment: a locked virtual environment for what runs inside Triton and beside it."""

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
from segserve_operator.adapters.local.code_folder import CODE_VARIABLE, install_code, site_packages

PYTHON_VERSIONS: Final = ((3, 11), (3, 12))
_MARKER: Final = "complete"
_PACKAGE: Final = Path(segserve_builder.__file__).parent


class RuntimeEnvironmentError(Exception):
    """The runtime environment cannot be made; the text says why and what helps. `reason` is one word."""

    reason: ClassVar[str] = "RuntimeFailed"


class PythonLibraryMissingError(RuntimeEnvironmentError):
    """Triton's Python backend loads Python as a shared library, and there is none."""

    reason = "PythonLibraryMissing"


class PythonVersionError(RuntimeEnvironmentError):
    """The locked packages have no wheels for this Python."""

    reason = "PythonVersion"


class InstallError(RuntimeEnvironmentError):
    """`venv` or `pip` failed; the text ends with the last lines that it printed."""

    reason = "InstallFailed"


@dataclass(frozen=True, slots=True)
class RuntimeEnvironment:
    """A complete runtime environment.

    `python` is its interpreter, `code` the folder that holds the package segserve_builder for it and nothing
    else, `library_folder` where libpython lies.
    """

    root: Path
    code: Path
    library_folder: Path

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.root / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        """The environment's folder of packages."""
        return site_packages(self.root)

    @property
    def tritonserver(self) -> Path:
        """The server's executable."""
        return _triton_folder(self.root) / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        """The folder of Triton backends, complete with the stub of this Python version."""
        return self.root / "backends"


def ensure_runtime(cache: Path, progress: Callable[[str], None] = lambda _: None) -> RuntimeEnvironment:
    """Return the runtime environment below `cache`, made on first use and given the code of this segserve.

    Safe to call at any time and from many processes: one makes it, the others wait. A half-made environment is
    made anew. `progress` is told in words what takes long. Raises a `RuntimeEnvironmentError`.
    """
    library_folder = find_python_library(Path(sys.base_prefix))
    root = _root(cache)
    root.parent.mkdir(parents=True, exist_ok=True)
    with _locked(root.with_suffix(".lock")):
        if not _is_complete(root):
            _install(root, progress)
        code = install_code(root, _PACKAGE, lambda staging: _compile_kernels(root, staging, progress))
    return RuntimeEnvironment(root, code, library_folder)


def find_runtime(cache: Path) -> Path | None:
    """Return the folder of the environment below `cache`, None where it has yet to be made."""
    root = _root(cache)
    return root if _is_complete(root) else None


def _root(cache: Path) -> Path:
    return cache.resolve() / "runtime" / environment_digest(lock_file().read_bytes())


def lock_file() -> Path:
    """Return the list of pinned packages."""
    return _PACKAGE / "runtime.lock"


def environment_digest(lock: bytes) -> str:
    """Return the name of the environment of these packages and this Python: 16 hex digits."""
    text = b"\n".join([lock, sys.version.encode(), sys.base_prefix.encode()])
    return hashlib.sha256(text).hexdigest()[:16]


def find_python_library(prefix: Path) -> Path:
    """Return the folder of `libpython3.x.so`; raises `PythonLibraryMissingError`, which says how to get it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if sys.version_info[:2] not in PYTHON_VERSIONS:
        allowed = " or ".join(f"{major}.{minor}" for major, minor in PYTHON_VERSIONS)
        raise PythonVersionError(f"Python {version} runs segserve; the embedded Triton needs {allowed}")
    triplet = sysconfig.get_config_var("MULTIARCH") or ""
    # Relocated builds of Python report the LIBDIR of the machine that built them, so the prefix comes first.
    folders = [
        prefix / "lib",
        prefix / "lib" / triplet,
        Path(sysconfig.get_config_var("LIBDIR") or prefix / "lib"),
    ]
    for folder in folders:
        if (folder / f"libpython{version}.so.1.0").exists():
            return folder
    seen = ", ".join(str(folder) for folder in dict.fromkeys(folders))
    raise PythonLibraryMissingError(
        f"no libpython{version}.so.1.0 in {seen}. On Debian and Ubuntu: apt-get install libpython{version}. "
        "With pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install"
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_complete(root: Path) -> bool:
    # The interpreter is a link to the Python that made it, which may have been removed since.
    return (root / _MARKER).exists() and (root / "bin" / "python").exists()


def _install(root: Path, progress: Callable[[str], None]) -> None:
    started = time.monotonic()
    shutil.rmtree(root, ignore_errors=True)
    progress(f"making the runtime environment {root}")
    interpreter = getattr(sys, "_base_executable", sys.executable)
    run_or_raise([interpreter, "-m", "venv", str(root)], "On Debian and Ubuntu: apt-get install python3-venv")
    progress("installing Triton and its packages (about 240 MB to download on first use)")
    python = str(root / "bin" / "python")
    # The list is complete; nvidia-pytriton's own requirements are for its Python code, which nobody imports.
    run_or_raise(
        [python, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check", "-r", str(lock_file())],
        "Is the package index reachable? pip's own configuration applies (PIP_INDEX_URL, pip.conf)",
    )
    _prepare_backends(root)
    (root / _MARKER).touch()
    progress(f"the runtime environment is ready after {time.monotonic() - started:.0f} s")


def run_or_raise(command: list[str], advice: str) -> None:
    """Run a command to its end; raises `InstallError` with the advice and what was printed last."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        tail = "\n".join(done.stdout.strip().splitlines()[-15:])
        raise InstallError(f"{' '.join(command)} failed with exit code {done.returncode}. {advice}.\n{tail}")


def _prepare_backends(root: Path) -> None:
    # The wheel keeps a stub for each Python version apart from the backend, which looks for one beside itself.
    wheel = _triton_folder(root)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    target = root / "backends" / "python"
    shutil.copytree(wheel / "backends" / "python", target)
    shutil.copy2(wheel / "python_backend_stubs" / version / "triton_python_backend_stub", target)


def _triton_folder(root: Path) -> Path:
    return site_packages(root) / "pytriton" / "tritonserver"


def _compile_kernels(root: Path, code: Path, progress: Callable[[str], None]) -> None:
    progress("preparing the kernels (about a minute where they are new)")
    # `env` rather than an argument of the call: what was inherited stays.
    python = str(root / "bin" / "python")
    command = ["env", f"PYTHONPATH={code}", f"{CODE_VARIABLE}={code}", python, "-m", "segserve_builder.kernels"]
    run_or_raise(command, "This is a defect of segserve; please report it")
