"""The embedded Triton: how it is started, on loopback alone, and the shared memory that it may leave."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from segserve_builder.render.tritonserver import SILENT, STEP_ENVIRONMENT, Ports, server_arguments
from segserve_operator.adapters.local.code_folder import CODE_VARIABLE
from segserve_operator.adapters.local.runtime import Runtime

LOOPBACK: Final = "127.0.0.1"
"""The only address: this build of Triton has known holes and is for development (see docs)."""

EXIT_TIMEOUT_S: Final = 5


@dataclass(frozen=True, slots=True)
class Command:
    """A process to start: its arguments, the executable first, and its whole environment."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]


def triton_command(runtime: Runtime, repository: Path, *, ports: Ports, shm_prefix: str) -> Command:
    """Return the command that serves `repository`, empty at first: models are loaded when asked for.

    `shm_prefix` names its shared memory and must differ between servers of one machine. The server logs to
    stdout and stderr. On SIGTERM it stops within `EXIT_TIMEOUT_S`; where a stub has died it then exits with
    code 1, and its shared memory stays until `sweep_shm`.
    """
    argv = server_arguments(
        runtime.tritonserver,
        repository.resolve(),
        runtime.backends,
        address=LOOPBACK,
        ports=ports,
        exit_timeout_s=EXIT_TIMEOUT_S,
        shm_prefix=shm_prefix,
    )
    environment = runtime_environment(runtime) | _library_path(runtime) | STEP_ENVIRONMENT
    return Command(argv, environment)


def runtime_environment(runtime: Runtime) -> dict[str, str]:
    """Return this process's environment, with the runtime's interpreter first and its code pinned."""
    inherited = os.environ.get("PATH", os.defpath)
    path = os.pathsep.join([str(runtime.python.parent), inherited])  # stubs find their Python through PATH
    return dict(os.environ) | {"PATH": path, CODE_VARIABLE: str(runtime.code)} | SILENT


def _library_path(runtime: Runtime) -> dict[str, str]:
    folders = [str(runtime.library_folder), str(runtime.site_packages / "nvidia_pytriton.libs")]
    inherited = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": os.pathsep.join([*folders, inherited] if inherited else folders)}
