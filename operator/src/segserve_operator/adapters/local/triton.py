"""The embedded Triton: how it is started, on loopback alone, and the shared memory that it may leave."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from segserve_operator.adapters.local.code_folder import CODE_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_operator.adapters.local.runtime import Runtime

LOOPBACK: Final = "127.0.0.1"
"""The only address: this build of Triton has known holes and is for development (see docs)."""

EXIT_TIMEOUT_S: Final = 5
_SHM_FOLDER: Final = Path("/dev/shm")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PREFIX: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*")
_SINGLE_THREADED: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
"""Each stub is a process of its own; ONNX Runtime has its own setting."""
_WARM_MEMORY: Final = {"MALLOC_TRIM_THRESHOLD_": str(256 * 2**20), "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20)}
"""Steps keep what they free between requests: to give pages back and fault them in again costs more than the work."""
_SILENT: Final = {"ORT_DISABLE_TELEMETRY": "1"}
"""ONNX Runtime's official builds report what they run to Microsoft; a user's models are nobody else's business."""


@dataclass(frozen=True, slots=True)
class Command:
    """A process to start: its arguments, the executable first, and its whole environment."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]


def triton_command(
    runtime: Runtime, repository: Path, *, http_port: int, grpc_port: int, metrics_port: int, shm_prefix: str
) -> Command:
    """Return the command that serves `repository`, empty at first: models are loaded when asked for.

    `shm_prefix` names its shared memory and must differ between servers of one machine. The server logs to
    stdout and stderr. On SIGTERM it stops within `EXIT_TIMEOUT_S`; where a stub has died it then exits with
    code 1, and its shared memory stays until `sweep_shm`.
    """
    _check_prefix(shm_prefix)
    argv = (
        str(runtime.tritonserver),
        f"--model-repository={repository.resolve()}",
        f"--backend-directory={runtime.backends}",
        "--model-control-mode=explicit",
        "--strict-readiness=false",  # else one failed load makes the whole server unready for good
        "--disable-auto-complete-config",  # configurations are complete; guessing starts every stub twice
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        f"--http-address={LOOPBACK}",
        f"--http-port={http_port}",
        f"--grpc-address={LOOPBACK}",
        f"--grpc-port={grpc_port}",
        f"--metrics-address={LOOPBACK}",
        f"--metrics-port={metrics_port}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
    )
    environment = runtime_environment(runtime) | _library_path(runtime) | _SINGLE_THREADED | _WARM_MEMORY
    return Command(argv, environment)


def runtime_environment(runtime: Runtime) -> dict[str, str]:
    """Return this process's environment, with the runtime's interpreter first and its code pinned."""
    inherited = os.environ.get("PATH", os.defpath)
    path = os.pathsep.join([str(runtime.python.parent), inherited])  # stubs find their Python through PATH
    return dict(os.environ) | {"PATH": path, CODE_VARIABLE: str(runtime.code)} | _SILENT


def shm_regions(prefix: str) -> tuple[str, ...]:
    """Return the names in /dev/shm of the regions that servers with this prefix made."""
    _check_prefix(prefix)
    names = [path.name for path in _SHM_FOLDER.iterdir() if path.name.startswith(prefix)]
    return tuple(sorted(name for name in names if _UUID.fullmatch(name.removeprefix(prefix))))


def sweep_shm(prefix: str) -> tuple[str, ...]:
    """Remove the regions of a server that runs no more, and return their names."""
    swept = shm_regions(prefix)
    for name in swept:
        (_SHM_FOLDER / name).unlink(missing_ok=True)
    return swept


def _library_path(runtime: Runtime) -> dict[str, str]:
    folders = [str(runtime.library_folder), str(runtime.site_packages / "nvidia_pytriton.libs")]
    inherited = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": os.pathsep.join([*folders, inherited] if inherited else folders)}


def _check_prefix(prefix: str) -> None:
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(f"a shared memory prefix is made of letters, digits, dot, dash and underscore, got {prefix!r}")
