"""The command line, environment and shared memory of a Triton server, on a laptop and in a pod."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from segserve_builder.memory import SERVER_MALLOC
from segserve_builder.spec.names import CALLER_HEADER, SLICE_HEADER

if TYPE_CHECKING:
    from segserve_builder.render.target import RenderTarget

STEP_ENVIRONMENT: Final = {
    # Each stub is a process of its own; ONNX Runtime has its own setting.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    **SERVER_MALLOC,
    # Libraries of NVIDIA compute FP32 in TF32 by default, with a mantissa of 10 bits.
    "NVIDIA_TF32_OVERRIDE": "0",
}
"""Environment of Triton and its Python steps."""

SILENT: Final = {"ORT_DISABLE_TELEMETRY": "1"}
"""Turns off the usage reports of ONNX Runtime's official builds to Microsoft."""

_TRACES: Final = (
    "mode=opentelemetry",
    "opentelemetry,resource=service.name=segserve-triton",
    "level=TIMESTAMPS",
    "rate=0",  # it samples no request itself, and traces those that come with a trace context
    "count=-1",
)
_FORWARDED: Final = f"(?i)^({CALLER_HEADER}|{SLICE_HEADER})$"
_HTTP_LIMIT_SINCE: Final = (25, 6)
_SHM_FOLDER: Final = Path("/dev/shm")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PREFIX: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports that a Triton listens on."""

    http: int
    grpc: int
    metrics: int


def server_arguments(
    executable: Path,
    repository: Path,
    backends: Path,
    target: RenderTarget,
    *,
    address: str,
    ports: Ports,
    exit_timeout_s: int,
    shm_prefix: str,
    traces_url: str | None = None,
    max_request_bytes: int | None = None,
) -> tuple[str, ...]:
    """Return the command line of a Triton that loads models on request only.

    With `traces_url` it sends the spans of requests with a trace context there, by OTLP/HTTP.
    `address` is of IPv4 or IPv6: Triton listens for HTTP only on addresses of that family, also if it is `::`.
    `shm_prefix` names its shared memory and must differ between servers that share it. Raises ValueError for one
    that cannot be a file's name.
    """
    _check_prefix(shm_prefix)
    traces = () if traces_url is None else (*_TRACES, f"opentelemetry,url={traces_url}")
    # Older releases exit with an error at arguments that they do not have.
    newer = []
    if max_request_bytes is not None and target.release >= _HTTP_LIMIT_SINCE:
        newer.append(f"--http-max-input-size={max_request_bytes}")
    if target.has_histograms:
        newer.append("--metrics-config=histogram_latencies=true")
    # Its HTTP library takes an address without the prefix for one of IPv4, and gRPC needs the brackets.
    http, grpc = (f"ipv6:{address}", f"[{address}]") if ":" in address else (address, address)
    return (
        str(executable),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        "--strict-readiness=false",  # else one failed load makes the whole server unready for good
        "--disable-auto-complete-config",  # configurations are complete; guessing starts every stub twice
        f"--exit-timeout-secs={exit_timeout_s}",
        f"--http-address={http}",
        f"--http-port={ports.http}",
        f"--grpc-address={grpc}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-address={http}",
        f"--metrics-port={ports.metrics}",
        # Steps see requests' parameters, and no headers.
        f"--http-header-forward-pattern={_FORWARDED}",
        f"--grpc-header-forward-pattern={_FORWARDED}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        *(f"--trace-config={setting}" for setting in traces),
        *newer,
    )


def shm_regions(prefix: str) -> tuple[str, ...]:
    """Return the names in /dev/shm of the regions of servers with this prefix."""
    _check_prefix(prefix)
    names = [path.name for path in _SHM_FOLDER.iterdir() if path.name.startswith(prefix)]
    return tuple(sorted(name for name in names if _UUID.fullmatch(name.removeprefix(prefix))))


def sweep_shm(prefix: str) -> tuple[str, ...]:
    """Remove the regions of a server that no longer runs, and return their names."""
    swept = shm_regions(prefix)
    for name in swept:
        (_SHM_FOLDER / name).unlink(missing_ok=True)
    return swept


def _check_prefix(prefix: str) -> None:
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(f"a shared memory prefix is made of letters, digits, dot, dash and underscore, got {prefix!r}")
