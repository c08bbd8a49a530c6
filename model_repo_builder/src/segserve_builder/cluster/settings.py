"""Settings of a server pod's containers, read from the environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from pydantic import ValidationError

from segserve_builder.cpus import available_cpus
from segserve_builder.render.target import BACKEND_VARIABLE, RELEASE_VARIABLE, RenderTarget
from segserve_builder.render.tritonserver import Ports
from segserve_builder.sources.access import ACCESS_VARIABLE, Access
from segserve_builder.spec.names import TRACES_VARIABLE
from segserve_common.kube.names import AGENT_PORT, CACHE_FOLDER, GRPC_PORT, HTTP_PORT, METRICS_PORT, RUN_FOLDER
from segserve_common.logs import LogSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_common.logs import LogFormat

ANY_ADDRESS: Final = "0.0.0.0"
ANY_IPV6_ADDRESS: Final = "::"
LOOPBACK: Final = "127.0.0.1"
EXIT_TIMEOUT_S: Final = 30


class ServerSettingsError(Exception):
    """An environment that lacks a variable, or has an invalid one."""


@dataclass(frozen=True, slots=True)
class PodFolder:
    """The files in the folder that both containers share."""

    root: Path

    @property
    def repository(self) -> Path:
        """Triton's model repository."""
        return self.root / "repository"

    @property
    def log(self) -> Path:
        """The end of Triton's log."""
        return self.root / "triton.log"

    @property
    def record(self) -> Path:
        """The record of Triton's process."""
        return self.root / "triton.process.json"

    @property
    def secret(self) -> Path:
        """The secret of Triton's restricted APIs."""
        return self.root / "secret"


@dataclass(frozen=True, slots=True)
class TritonSettings:
    """Settings of Triton; `address` is the one on which it listens, by default only for its pod."""

    executable: Path
    backends: Path
    folder: PodFolder
    address: str
    ports: Ports
    exit_timeout_s: int
    shm_prefix: str
    target: RenderTarget
    max_request_bytes: int | None
    traces_url: str | None
    log_format: LogFormat

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """Read them; raises `ServerSettingsError`, and `UnknownNameError` where the target is unknown."""
        max_request_bytes = environment.get("SEGSERVE_MAX_REQUEST_BYTES")
        return cls(
            executable=Path(_required(environment, "SEGSERVE_TRITONSERVER")),
            backends=Path(_required(environment, "SEGSERVE_BACKENDS")),
            folder=_folder(environment),
            address=_address(environment),
            ports=_ports(environment),
            exit_timeout_s=int(environment.get("SEGSERVE_EXIT_TIMEOUT_SECONDS") or EXIT_TIMEOUT_S),
            shm_prefix=environment.get("SEGSERVE_SHM_PREFIX") or "segserve-",
            target=_target(environment),
            max_request_bytes=int(max_request_bytes) if max_request_bytes else None,
            traces_url=environment.get(TRACES_VARIABLE) or None,
            log_format=LogSettings.of(environment).format,
        )


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Settings of an agent: its pod, its group, its server.

    `folder` is shared with Triton's container; in `own_folder` is what Triton must not change.
    """

    namespace: str
    pod: str
    pod_uid: str
    pool: str
    group: str
    folder: PodFolder
    own_folder: Path
    cache: Path
    ports: Ports
    probe_port: int
    target: RenderTarget
    artifact_base: str | None
    access: Access

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """Read them; raises `ServerSettingsError`, and `UnknownNameError` where the target is unknown."""
        return cls(
            namespace=_required(environment, "POD_NAMESPACE"),
            pod=_required(environment, "POD_NAME"),
            pod_uid=_required(environment, "POD_UID"),
            pool=_required(environment, "SEGSERVE_POOL"),
            group=_required(environment, "SEGSERVE_GROUP"),
            folder=_folder(environment),
            own_folder=Path(environment.get("SEGSERVE_AGENT_FOLDER") or _folder(environment).root),
            cache=Path(environment.get("SEGSERVE_CACHE_FOLDER") or CACHE_FOLDER),
            ports=_ports(environment),
            probe_port=int(environment.get("SEGSERVE_AGENT_PORT") or AGENT_PORT),
            target=_target(environment),
            artifact_base=environment.get("SEGSERVE_ARTIFACT_BASE") or None,
            access=_access(environment),
        )


def _access(environment: Mapping[str, str]) -> Access:
    """Return the access that the pool allows, by default to public servers only."""
    try:
        return Access.model_validate_json(environment.get(ACCESS_VARIABLE) or "{}")
    except ValidationError as error:
        raise ServerSettingsError(f"{ACCESS_VARIABLE} cannot be read: {error}") from error


def _target(environment: Mapping[str, str]) -> RenderTarget:
    release = _required(environment, RELEASE_VARIABLE)
    backend = environment.get(BACKEND_VARIABLE) or "python"
    return RenderTarget.named(release, backend, available_cpus(environment))


def _folder(environment: Mapping[str, str]) -> PodFolder:
    return PodFolder(Path(environment.get("SEGSERVE_RUN_FOLDER") or RUN_FOLDER))


def _address(environment: Mapping[str, str]) -> str:
    listens = environment.get("SEGSERVE_TRITON_LISTENS") or "loopback"
    # The kubelet and the gateway call the pod's first address, and Triton serves HTTP in one family only.
    own = ANY_IPV6_ADDRESS if ":" in environment.get("POD_IP", "") else ANY_ADDRESS
    addresses = {"loopback": LOOPBACK, "pod": own}
    if listens not in addresses:
        raise ServerSettingsError(f"SEGSERVE_TRITON_LISTENS is {listens!r}; allowed: {', '.join(addresses)}")
    return addresses[listens]


def _required(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name)
    if not value:
        raise ServerSettingsError(f"{name} is not set")
    return value


def _ports(environment: Mapping[str, str]) -> Ports:
    """Return the ports, which only tests set: `SEGSERVE_TRITON_PORTS` is `http,grpc,metrics`."""
    ports = environment.get("SEGSERVE_TRITON_PORTS")
    return Ports(*map(int, ports.split(","))) if ports else Ports(HTTP_PORT, GRPC_PORT, METRICS_PORT)
