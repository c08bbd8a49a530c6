"""The only reader of the environment: what the operator is told when it starts."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast, get_args

from pydantic import ValidationError

from segserve_builder.sources.access import Signatures
from segserve_builder.spec.model_spec import SCHEMES
from segserve_common.kube.names import POD_USER
from segserve_common.logs import FORMAT_VARIABLE, FORMATS, LEVEL_VARIABLE, LEVELS, LogFormat, LogLevel, LogSettings
from segserve_operator.adapters.kube.objects.context import Defaults
from segserve_operator.adapters.kube.objects.egress import Egress

PullPolicy: TypeAlias = Literal["Always", "IfNotPresent", "Never"]

_POLICIES: Final = get_args(PullPolicy)
_SOMEBODY: Final = f"segserve-operator-{secrets.token_hex(5)}"
_LABEL: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOSTS: Final = r"[^\s@]+"
_HOSTS_ALLOWED: Final = "patterns of hosts or networks with commas between them"
_SUBDOMAIN: Final = rf"{_LABEL}(\.{_LABEL})*"


class OperatorSettingsError(ValueError):
    """The environment says something that cannot be; `problems` has a line for each variable."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


@dataclass(frozen=True, slots=True)
class OperatorSettings(Defaults):
    """Settings of the operator, among them the defaults of fields that a pool's spec leaves out.

    `namespaces` are those to work in, all if there is none; if `cluster_wide`, all are read, and those with the label
    `segserve.dev/enabled=true` are worked in as well. `triton_version` is NVIDIA's release of the Triton in
    `server_image` (26.04). Relative URIs of models are relative to `artifact_base`.
    Gates may ask `gate_hosts` and notifications call `notification_hosts` (hosts or networks; all at public addresses
    if there are none); the worker that does so listens at `worker_socket` as the user `worker_user` (the operator's own
    if it is None), and is a child of the operator if there is no socket.
    The holder of the Lease `lease_name` in `lease_namespace` leads, under the identity `pod_name`, which is unique.
    Decisions of rollouts are signed with the Ed25519 key in the file `signing_key`, if it is set. The admission webhook
    is served with the certificate in the folder `admission_keys`, if it is set.
    The counters of gateways are read from the gateways, or from the Prometheus at `samples_prometheus` if it is set.
    """

    namespaces: tuple[str, ...] = ()
    cluster_wide: bool = False
    server_image: str = "localhost/segserve-server:0.1.0"
    triton_version: str = "26.04"
    envoy_image: str = "docker.io/envoyproxy/envoy:v1.40.0"
    operator_image: str = "localhost/segserve-operator:0.1.0"
    image_pull_policy: PullPolicy = "IfNotPresent"
    lease_namespace: str = "default"
    lease_name: str = "segserve-operator"
    artifact_base: str = "file:///opt/segserve/examples/coins"
    gate_hosts: tuple[str, ...] = ()
    notification_hosts: tuple[str, ...] = ()
    worker_socket: str = ""
    worker_user: int | None = None
    health_port: int = 8012
    pod_name: str = _SOMEBODY
    samples_prometheus: str = ""
    signing_key: str = ""
    admission_keys: str = ""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> OperatorSettings:
        """Return the settings, with defaults of absent and empty variables; raises `OperatorSettingsError`."""
        read = _Reader(environ)
        settings = cls(
            namespaces=read.listed("SEGSERVE_NAMESPACES", _LABEL, "names of namespaces with commas between them"),
            cluster_wide=read.one_of("SEGSERVE_CLUSTER_WIDE", "false", ("true", "false")) == "true",
            server_image=read.image("SEGSERVE_SERVER_IMAGE", _DEFAULT.server_image),
            triton_version=read.matching(
                "SEGSERVE_TRITON_VERSION", _DEFAULT.triton_version, r"\d\d\.\d\d", "a release such as '26.04'"
            ),
            envoy_image=read.image("SEGSERVE_ENVOY_IMAGE", _DEFAULT.envoy_image),
            operator_image=read.image("SEGSERVE_OPERATOR_IMAGE", _DEFAULT.operator_image),
            image_pull_policy=cast(
                "PullPolicy", read.one_of("SEGSERVE_IMAGE_PULL_POLICY", _DEFAULT.image_pull_policy, _POLICIES)
            ),
            image_pull_secrets=read.listed("SEGSERVE_IMAGE_PULL_SECRETS", _SUBDOMAIN, "names of Secrets"),
            pod_user=read.user("SEGSERVE_POD_USER", POD_USER),
            logging=LogSettings(
                cast("LogFormat", read.one_of(FORMAT_VARIABLE, _DEFAULT.logging.format, FORMATS)),
                cast("LogLevel", read.one_of(LEVEL_VARIABLE, _DEFAULT.logging.level, LEVELS)),
            ),
            server_log_format=cast(
                "LogFormat", read.one_of("SEGSERVE_SERVER_LOG_FORMAT", _DEFAULT.server_log_format, FORMATS)
            ),
            lease_namespace=read.matching(
                "SEGSERVE_LEASE_NAMESPACE",
                _DEFAULT.lease_namespace,
                _LABEL,
                "a DNS label of at most 63 characters",
            ),
            lease_name=read.domain("SEGSERVE_LEASE_NAME", _DEFAULT.lease_name),
            cluster_domain=read.domain("SEGSERVE_CLUSTER_DOMAIN", _DEFAULT.cluster_domain),
            artifact_base=read.matching(
                "SEGSERVE_ARTIFACT_BASE",
                _DEFAULT.artifact_base,
                r"[a-z][a-z0-9+.-]*://.*",
                "an address such as 'https://example.org/models'",
            ),
            artifact_schemes=read.listed("SEGSERVE_ARTIFACT_SCHEMES", "|".join(SCHEMES), ", ".join(SCHEMES)),
            artifact_hosts=read.listed(
                "SEGSERVE_ARTIFACT_HOSTS", r"[^\s/@]+", "patterns of hosts and buckets with commas between them"
            ),
            artifact_private_hosts=read.listed("SEGSERVE_ARTIFACT_PRIVATE_HOSTS", _HOSTS, _HOSTS_ALLOWED),
            artifact_signatures=read.signatures("SEGSERVE_ARTIFACT_SIGNATURES"),
            allow_host_path=read.one_of("SEGSERVE_ALLOW_HOST_PATH", "false", ("true", "false")) == "true",
            gate_hosts=read.listed("SEGSERVE_GATE_HOSTS", _HOSTS, _HOSTS_ALLOWED),
            notification_hosts=read.listed("SEGSERVE_NOTIFICATION_HOSTS", _HOSTS, _HOSTS_ALLOWED),
            worker_socket=read.matching("SEGSERVE_WORKER_SOCKET", "", r"(/.+)?", "the path of a socket"),
            worker_user=read.user("SEGSERVE_WORKER_USER", None),
            health_port=read.port("SEGSERVE_HEALTH_PORT", _DEFAULT.health_port),
            pod_name=read.domain("POD_NAME", _DEFAULT.pod_name),
            samples_prometheus=read.matching(
                "SEGSERVE_SAMPLES_PROMETHEUS", "", r"(https?://.+)?", "an address such as 'http://prometheus:9090'"
            ),
            egress=read.egress("SEGSERVE_EGRESS"),
            admission_keys=read.matching("SEGSERVE_ADMISSION_KEYS", "", r"(/.+)?", "the path of a folder"),
            signing_key=read.matching("SEGSERVE_SIGNING_KEY", "", r"(/.+)?", "the path of a PEM file"),
        )
        if read.problems:
            raise OperatorSettingsError(read.problems)
        return settings


_DEFAULT: Final = OperatorSettings()


class _Reader:
    """Reads variables by their kind, and goes on where one is wrong, so that all are told at once."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def matching(self, variable: str, default: str, pattern: str, allowed: str) -> str:
        """Return a text of this pattern."""
        return self._checked(variable, default, lambda text: re.fullmatch(pattern, text) is not None, allowed)

    def domain(self, variable: str, default: str) -> str:
        """Return labels with dots between them."""
        return self.matching(variable, default, _SUBDOMAIN, "DNS labels with dots between them")

    def image(self, variable: str, default: str) -> str:
        """Return the reference of an image."""
        return self.matching(variable, default, r"[^\s@]+(@sha256:[0-9a-f]{64})?", "an image's reference")

    def listed(self, variable: str, pattern: str, allowed: str) -> tuple[str, ...]:
        """Return a list with commas between its parts of this pattern, each once and in order."""
        parts = sorted({part.strip() for part in self._environ.get(variable, "").split(",")} - {""})
        wrong = [part for part in parts if re.fullmatch(pattern, part) is None]
        if wrong:
            self._complain(variable, ", ".join(wrong), allowed)
        return tuple(parts)

    def one_of(self, variable: str, default: str, allowed: Sequence[str]) -> str:
        """Return one of some words."""
        return self._checked(variable, default, lambda text: text in allowed, ", ".join(allowed))

    def user(self, variable: str, default: int | None) -> int | None:
        """Return a user's number other than root's, None for `cluster`."""
        text = self.matching(
            variable,
            "cluster" if default is None else str(default),
            r"cluster|[1-9][0-9]{0,9}",
            "a number from 1, or 'cluster'",
        )
        return int(text) if text.isascii() and text.isdigit() else None

    def signatures(self, variable: str) -> Signatures:
        """Return the signers of artifacts that all pools must have, none if nothing is required."""
        text = self._environ.get(variable, "").strip()
        try:
            found = Signatures.model_validate_json(text) if text else Signatures()
        except ValidationError as error:
            self._complain(variable, str(error.errors(include_url=False)[0]["msg"]), "the chart's artifacts.signatures")
            return Signatures()
        if found.required and not (found.keys or found.certificates or found.identities):
            self._complain(variable, text[:100], "keys, certificates or identities if a signature is required")
        return found

    def egress(self, variable: str) -> Egress | None:
        """Return the destinations of pools' pods, None if they are not restricted."""
        text = self._environ.get(variable, "").strip()
        try:
            return Egress.model_validate_json(text) if text else None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            at = ".".join(map(str, first["loc"]))
            self._complain(variable, f"{at}: {first['msg']}", "JSON such as the chart's networkPolicy.egress")
            return None

    def port(self, variable: str, default: int) -> int:
        """Return a port that needs no rights."""
        text = self._checked(variable, str(default), _is_port, "a port from 1024 to 65535")
        return int(text) if _is_port(text) else default

    def _checked(self, variable: str, default: str, allows: Callable[[str], bool], allowed: str) -> str:
        text = self._environ.get(variable, "").strip() or default
        if not allows(text):
            self._complain(variable, text, allowed)
        return text

    def _complain(self, variable: str, value: str, allowed: str) -> None:
        self.problems.append(f"{variable} is {value!r}; allowed: {allowed}")


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 1024 <= int(text) <= 65535
