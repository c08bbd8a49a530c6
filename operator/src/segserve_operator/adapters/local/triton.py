"""The embedded Triton: its command line and environment; it listens on loopback only."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from segserve_builder.agent import secret
from segserve_builder.memory import STEP_LIMIT_VARIABLE, step_limit_bytes
from segserve_builder.render.target import BACKEND_VARIABLE, RELEASE_VARIABLE
from segserve_builder.render.tritonserver import SILENT, STEP_ENVIRONMENT, Ports, server_arguments
from segserve_builder.spec.names import ENGINES, TRACES_VARIABLE
from segserve_builder.steps.engine_cache import FOLDER_VARIABLE
from segserve_operator.adapters.local.code_folder import CODE_VARIABLE
from segserve_operator.adapters.local.runtime import RuntimeEnvironment

LOOPBACK: Final = "127.0.0.1"
"""The only address it listens on: this build of Triton has known vulnerabilities and is for development (see docs)."""

EXIT_TIMEOUT_S: Final = 15
"""Triton 26.04 unloads about one Python process a second; it ends as soon as all are unloaded."""


@dataclass(frozen=True, slots=True)
class Command:
    """A process to start: its arguments, with the executable first, and its environment, for `processes.start`."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]


def triton_command(
    runtime: RuntimeEnvironment,
    repository: Path,
    *,
    ports: Ports,
    shm_prefix: str,
    api_secret: str,
    traces_url: str | None = None,
) -> Command:
    """Return the command that serves `repository`, in explicit mode: models are loaded only on request.

    A client that may load a model runs code as this user, so the APIs that manage the server require `api_secret`.
    The names of its shared memory regions begin with `shm_prefix`, which must be unique on the machine. The server logs
    to stdout and stderr. On SIGTERM it stops within `EXIT_TIMEOUT_S`; if a stub has died it exits with code 1, and its
    shared memory stays until `sweep_shm`. Raises `StepMemoryError` if this process's environment sets a limit of a
    step's memory that is not allowed.
    """
    argv = server_arguments(
        runtime.tritonserver,
        repository.resolve(),
        runtime.backends,
        runtime.target,
        address=LOOPBACK,
        ports=ports,
        exit_timeout_s=EXIT_TIMEOUT_S,
        shm_prefix=shm_prefix,
        traces_url=traces_url,
    )
    hidden = dict(option.split("=", 1) for option in secret.server_arguments(api_secret))
    traces = {} if traces_url is None else {TRACES_VARIABLE: traces_url}
    own = {FOLDER_VARIABLE: str(repository.resolve().parent / ENGINES), STEP_LIMIT_VARIABLE: str(step_limit_bytes())}
    environment = runtime_environment(runtime) | runtime.library_path | STEP_ENVIRONMENT | own | traces | hidden
    return Command(argv, environment)


def runtime_environment(runtime: RuntimeEnvironment) -> dict[str, str]:
    """Return this process's environment variables and the runtime's: its interpreter first in PATH, code and target."""
    inherited = os.environ.get("PATH", os.defpath)
    path = os.pathsep.join([str(runtime.python.parent), inherited])  # stubs find their Python through PATH
    target = {RELEASE_VARIABLE: runtime.target.name, BACKEND_VARIABLE: runtime.target.backend}
    return dict(os.environ) | {"PATH": path, CODE_VARIABLE: str(runtime.code)} | target | SILENT


def is_port_free(port: int) -> bool:
    """Return whether a server can listen on the port of loopback now."""
    try:
        socket.create_server((LOOPBACK, port)).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """Return a port of loopback that no server listens on now."""
    with socket.create_server((LOOPBACK, 0)) as probe:
        return int(probe.getsockname()[1])
