"""The runtime environment: a virtual environment with pinned packages, for Triton, its Python steps and the agent."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Final, TypeAlias

import segserve_builder
import segserve_common
from segserve_builder.render.target import EMBEDDED, Backend, RenderTarget
from segserve_builder.steps.openvino_session import REQUIREMENT
from segserve_common.interpreter import python
from segserve_operator.adapters.local.code_folder import (
    CODE_VARIABLE,
    has_all_kernels,
    install_code,
    missing_kernels,
    reuse_kernels,
    site_packages,
)

PYTHON_VERSIONS: Final = ((3, 11), (3, 12))
TRITON_VARIABLE: Final = "SEGSERVE_TRITON"
"""Environment variable: a folder with a Triton's `bin/tritonserver` and `backends`, or with `backends` alone."""
_SERVER: Final = Path("bin/tritonserver")
_STUB: Final = Path("python/triton_python_backend_stub")
_LIBRARY: Final = "libtritonserver.so"
_LIBRARY_PATH: Final = "LD_LIBRARY_PATH"
_MARKER: Final = "complete"
_INSTALLING: Final = "installing Triton (240 MB to download)"
_INSTALLING_OPENVINO: Final = "installing OpenVINO (59 MB to download)"
_INSTALLING_CUDA: Final = "installing ONNX Runtime for CUDA 13 (1.6 GB to download)"
_INDEX: Final = "Is the package index reachable? pip's own configuration applies (PIP_INDEX_URL, pip.conf)"
_PACKAGE: Final = Path(segserve_builder.__file__).parent
_KERNELS: Final = _PACKAGE / "kernels"
_OPENVINO_LOCK: Final = _PACKAGE / "openvino.lock"
_CUDA_LOCK: Final = _PACKAGE / "cuda.lock"
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


class TritonFolderError(RuntimeEnvironmentError):
    """The folder that `SEGSERVE_TRITON` names has no Triton that runs here."""

    reason = "TritonFolder"


class InstallError(RuntimeEnvironmentError):
    """A command such as `venv` or `pip` failed; the message ends with the last lines of its output."""

    reason = "InstallFailed"


@dataclass(frozen=True, slots=True)
class RuntimeEnvironment:
    """A complete runtime environment.

    `root` is its folder, `code` the folder with only its copies of segserve_builder and segserve_common,
    `library_folder` the folder of libpython. `triton` is the folder of its server, `backends` that of the server's
    backends, `target` what repositories are rendered for.
    """

    root: Path
    code: Path
    library_folder: Path
    triton: Path
    backends: Path
    target: RenderTarget = EMBEDDED

    @property
    def python(self) -> Path:
        """Path of the interpreter."""
        return _interpreter(self.root)

    @property
    def site_packages(self) -> Path:
        """Path of the `site-packages` folder."""
        return site_packages(self.root)

    @property
    def tritonserver(self) -> Path:
        """Path of the server's executable."""
        return self.triton / _SERVER

    @property
    def library_path(self) -> dict[str, str]:
        """The environment variable with the folders of the libraries that the server and its backends load."""
        own = (self.library_folder, self.triton / "lib", _libraries(self.root), self.backends)
        inherited = os.environ.get(_LIBRARY_PATH)
        return {_LIBRARY_PATH: os.pathsep.join([*map(str, own), *([inherited] if inherited else [])])}


@dataclass(frozen=True, slots=True)
class InstallStep:
    """A long step of the installation: what is done, and how many of its parts are."""

    text: str
    done: int
    total: int

    def __str__(self) -> str:
        return f"{self.text} {self.done}/{self.total}"


OnStep: TypeAlias = Callable[[InstallStep], object]


def ensure_runtime(
    cache: Path, progress: OnStep = lambda _: None, kernels: Collection[str] | None = None
) -> RuntimeEnvironment:
    """Return the runtime environment in `cache`, created on first use, with the code of this version of segserve.

    `kernels` are the modules of kernels to compile, all by default. Another one is compiled by the step that imports it
    first, which takes seconds.

    Its Triton is the embedded one, or the one that the environment variable `SEGSERVE_TRITON` names.

    Safe to call from several processes: one creates it, the others wait. An incomplete environment is created again.
    `progress` is called before and during each long step, from several threads. Raises `RuntimeEnvironmentError`.
    """
    library_folder = find_python_library(Path(sys.base_prefix))
    root = _root(cache)
    root.parent.mkdir(parents=True, exist_ok=True)
    with _locked(root.with_suffix(".lock")):
        if not _is_complete(root):
            with _compiling_meanwhile(kernels, progress):
                _install(root, progress)
        code = install_code(root, _CODE, lambda staging: _compile_kernels(root, staging, kernels, progress))
        if not has_all_kernels(code) and (kernels is None or missing_kernels(code, kernels)):
            reuse_kernels(code, _CODE)
            _compile_kernels(root, code, kernels, progress)
    embedded = RuntimeEnvironment(root, code, library_folder, _triton_folder(root), root / "backends")
    own = os.environ.get(TRITON_VARIABLE)
    return _with_triton(embedded, Path(own).resolve()) if own else embedded


def _with_triton(embedded: RuntimeEnvironment, folder: Path) -> RuntimeEnvironment:
    """Return an environment with the Triton of a folder, or with the embedded one and the folder's backends.

    Raises `TritonFolderError` and `PythonVersionError`.
    """
    backends = folder / "backends"
    if not backends.is_dir():
        expected = "expected backends/ in it, and bin/tritonserver unless the embedded Triton is to load them"
        raise TritonFolderError(f"{TRITON_VARIABLE}={folder}: {expected}")
    backend: Backend = "onnxruntime" if (backends / "onnxruntime").is_dir() else "python"
    if (folder / _SERVER).exists():
        own = replace(embedded, triton=folder, backends=backends)
        _check_stub(backends / _STUB)
        return replace(own, target=RenderTarget.named(_release(own), backend))
    # Triton takes one folder of backends, and backends name the server's library as Triton's own builds do.
    joined = embedded.root / f"backends-{hashlib.sha256(bytes(folder)).hexdigest()[:16]}"
    (library,) = _libraries(embedded.root).glob("libtritonserver-*.so")
    links = {path.name: path for path in (*backends.iterdir(), *embedded.backends.iterdir())} | {_LIBRARY: library}
    with _locked(embedded.root.with_suffix(".lock")):
        joined.mkdir(exist_ok=True)
        for name, path in links.items():
            if not (joined / name).exists():
                (joined / name).unlink(missing_ok=True)
                (joined / name).symlink_to(path)
    return replace(embedded, backends=joined, target=replace(EMBEDDED, backend=backend))


def _check_stub(stub: Path) -> None:
    """Raise if a Triton's Python steps do not run on this Python."""
    if not stub.exists():
        raise TritonFolderError(f"{TRITON_VARIABLE}: {stub} is missing; steps before and after networks run in it")
    found = re.search(rb"libpython(3\.\d+)\.so", stub.read_bytes())
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if found is not None and (needed := found[1].decode()) != version:
        raise PythonVersionError(f"segserve runs on Python {version}; {stub} needs {needed}: install segserve for that")


def _release(runtime: RuntimeEnvironment) -> str:
    """Return the release of a server, such as '26.04': its version is among what it prints before it misses models."""
    done = subprocess.run(
        [runtime.tritonserver, f"--model-repository={runtime.root / 'none'}"],
        env=dict(os.environ) | runtime.library_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    found = re.search(r"server_version\s*\|\s*2\.(\d+)\.", done.stdout)
    if found is None:
        last = "\n".join(done.stdout.splitlines()[-5:])
        raise TritonFolderError(f"{TRITON_VARIABLE}: {runtime.tritonserver} does not print a version 2.N:\n{last}")
    minor = int(found[1])
    # A minor version is a month, from 2.51 in October 2024 on; July 2025 has 2.59.1.
    months = 24 * 12 + 9 + minor - 51 + (minor >= 60)
    return f"{months // 12}.{months % 12 + 1:02}"


def ensure_openvino(cache: Path, progress: OnStep = lambda _: None) -> None:
    """Install OpenVINO for the runtime environment's steps, and that environment if it is missing.

    Models with `runtime.engine: openvino` alone need it: unpacked it has 184 MB. Raises `RuntimeEnvironmentError`.
    """
    _ensure(cache, _INSTALLING_OPENVINO, REQUIREMENT, _OPENVINO_LOCK, progress)


def ensure_cuda(cache: Path, progress: OnStep = lambda _: None) -> None:
    """Install ONNX Runtime's build for GPUs with CUDA's libraries for the runtime environment, and that as well.

    Models with `runtime.device: gpu` alone need it: unpacked it has 2.3 GB. The files replace the files of the build
    for CPUs, of the same version, and running steps keep theirs. Raises `RuntimeEnvironmentError`.
    """
    _ensure(cache, _INSTALLING_CUDA, f"onnxruntime-gpu=={_pinned()['onnxruntime']}", _CUDA_LOCK, progress)


def _ensure(cache: Path, text: str, name: str, lock: Path, progress: OnStep) -> None:
    root = ensure_runtime(cache, progress, kernels=()).root
    with _locked(root.with_suffix(".lock")):
        if not (installed := root / name).exists():
            progress(InstallStep(text, 0, 1))
            run_or_raise(_pip_install(root, lock), _INDEX)
            installed.touch()
            progress(InstallStep(text, 1, 1))


@contextmanager
def compiling_the_rest(runtime: RuntimeEnvironment) -> Iterator[None]:
    """Compile the kernels that are missing at the lowest priority, as long as the block runs."""
    if has_all_kernels(runtime.code):
        yield
        return
    command = ["nice", "-n", "19", *_kernel_command(runtime.root, runtime.code, None)]
    with _running(command, lambda _: None):
        yield


def _root(cache: Path) -> Path:
    return cache.resolve() / "runtime" / environment_digest(lock_file().read_bytes())


def lock_file() -> Path:
    """Return the path of the list of pinned packages."""
    return _PACKAGE / "runtime.lock"


def _pinned() -> dict[str, str]:
    """Return the version of each package of the list; lines of digests follow each."""
    return dict(line.split()[0].split("==") for line in lock_file().read_text().splitlines() if "==" in line)


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
    return (root / _MARKER).exists() and _interpreter(root).exists()


def _install(root: Path, progress: OnStep) -> None:
    shutil.rmtree(root, ignore_errors=True)
    run_or_raise(
        # A pip of its own would take seconds to install.
        python(
            *("-m", "venv", *(["--without-pip"] if find_spec("pip") is not None else []), str(root)),
            interpreter=getattr(sys, "_base_executable", None),
        ),
        "On Debian and Ubuntu: apt-get install python3-venv",
    )
    lock = lock_file()
    # The last part is that all are unpacked.
    total = 1 + len(_pinned())
    collected = 0

    def report(line: str) -> None:
        nonlocal collected
        if line.startswith("Collecting "):
            collected += 1
            progress(InstallStep(_INSTALLING, collected, total))

    progress(InstallStep(_INSTALLING, 0, total))
    run_or_raise(_pip_install(root, lock), _INDEX, report)
    # Three of five lines are of Kubernetes' client, which serves the agent only in a cluster.
    compiler = python(
        *("-m", "compileall", "-qq", "-x", "/kubernetes/", str(site_packages(root))), interpreter=_interpreter(root)
    )
    subprocess.run(compiler, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    # The wheel has one stub per Python version in a separate folder; the backend expects it in its own.
    wheel = _triton_folder(root)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    target = root / "backends" / "python"
    shutil.copytree(wheel / "backends" / "python", target)
    shutil.copy2(wheel / "python_backend_stubs" / version / "triton_python_backend_stub", target)
    (root / _MARKER).touch()
    progress(InstallStep(_INSTALLING, total, total))


def _pip_install(root: Path, lock: Path) -> list[str]:
    """Return the command that installs a list, which is complete and has the digests of all files that may be it."""
    own = _interpreter(root)
    has_pip = find_spec("pip") is not None
    pip = python("-m", "pip", "--python", str(own)) if has_pip else python("-m", "pip", interpreter=own)
    options = ["--no-compile", "--disable-pip-version-check", "--progress-bar", "off", "--no-deps", "--require-hashes"]
    return [*pip, "install", *options, "-r", str(lock)]


def run_or_raise(command: list[str], advice: str, on_line: Callable[[str], object] = lambda _: None) -> None:
    """Run a command; raises `InstallError` with `advice` and the end of its output if it fails.

    `on_line` is called with each line of its output.
    """
    tail: deque[str] = deque(maxlen=15)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                tail.append(line.rstrip())
                on_line(line)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        output = "\n".join(tail).strip()
        raise InstallError(f"{' '.join(command)} failed with exit code {process.returncode}. {advice}.\n{output}")


def _interpreter(root: Path) -> Path:
    return root / "bin" / "python"


def _triton_folder(root: Path) -> Path:
    return site_packages(root) / "pytriton" / "tritonserver"


def _libraries(root: Path) -> Path:
    return site_packages(root) / "nvidia_pytriton.libs"


def _compile_kernels(root: Path, code: Path, kernels: Collection[str] | None, progress: OnStep) -> None:
    if kernels is None or kernels:
        run_or_raise(
            _kernel_command(root, code, kernels),
            "This is a bug in segserve; please report it",
            _kernel_report(progress),
        )


def _kernel_command(root: Path, code: Path, kernels: Collection[str] | None) -> list[str]:
    # `env` adds to the inherited environment.
    return ["env", f"PYTHONPATH={code}", f"{CODE_VARIABLE}={code}", *_compiler(kernels, _interpreter(root))]


def _compiler(kernels: Collection[str] | None, interpreter: Path | None = None) -> list[str]:
    return python("-m", "segserve_builder.kernels", "--report", *(kernels or ()), interpreter=interpreter)


def _kernel_report(progress: OnStep) -> Callable[[str], None]:
    def report(line: str) -> None:
        done, _, total = line.strip().partition("/")
        if done.isdecimal() and total.isdecimal():
            progress(InstallStep("compiling kernels", int(done), int(total)))

    return report


@contextmanager
def _compiling_meanwhile(kernels: Collection[str] | None, progress: OnStep) -> Iterator[None]:
    """Compile kernels during the block with this Python, beside their source, from where code folders take them.

    Nothing depends on it: the environment's own Python compiles what is missing afterwards.
    """
    if (kernels is not None and not kernels) or not _has_the_same_compiler() or not os.access(_KERNELS, os.W_OK):
        yield
        return
    with _running(_compiler(kernels), _kernel_report(progress)) as wait:
        yield
        wait()


def _has_the_same_compiler() -> bool:
    """Return whether kernels that this Python compiles can be loaded in the runtime environment."""
    pinned = _pinned()
    try:
        return all(version(name) == pinned[name] for name in ("numba", "llvmlite"))
    except PackageNotFoundError:
        return False


@contextmanager
def _running(command: list[str], on_line: Callable[[str], None]) -> Iterator[Callable[[], object]]:
    """Run a command during the block, which gets a function that waits for its end; it is killed after the block."""
    # It starts processes of its own, which have to end with it.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                on_line(line)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield process.wait
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            reader.join()
