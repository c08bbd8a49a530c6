"""The only reader of the environment: the operator's settings when it starts."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

from kubernetes.aio.client import V1NetworkPolicyPeer
from pydantic import TypeAdapter, ValidationError

from segserve_builder.sources.access import Signatures
from segserve_builder.spec.model_spec import SCHEMES
from segserve_common.logs import FORMAT_VARIABLE, FORMATS, LEVEL_VARIABLE, LEVELS, LogSettings
from segserve_operator.adapters.kube.objects.context import Defaults
from segserve_operator.adapters.kube.objects.egress import Egress

PullPolicy: TypeAlias = Literal["Always", "IfNotPresent", "Never"]

_SOMEBODY: Final = f"segserve-operator-{secrets.token_hex(5)}"
_LABEL: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_SUBDOMAIN: Final = rf"{_LABEL}(\.{_LABEL})*"


class OperatorSettingsError(ValueError):
    """The environment says something that cannot be; `problems` has a line for each variable."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


@dataclass(frozen=True, slots=True)
class OperatorSettings(Defaults):
    """Settings of the operator, among them the defaults of fields that a pool's spec leaves out.

    `namespaces` are the ones to work in, all if empty; if `cluster_wide`, all are read, and namespaces with the label
    `segserve.dev/enabled=true` are worked in as well. `triton_version` is NVIDIA's release of the Triton in
    `server_image` (26.04). Relative URIs of models are relative to `artifact_base`. Gates may call `gate_hosts` and
    notifications `notification_hosts` (hosts or networks; all at public addresses if empty); the worker that does so
    listens at `worker_socket` as the user `worker_user` (the operator's own if it is None), and is a child of the
    operator if there is no socket. The holder of the Lease `lease_name` in `lease_namespace` leads, under the identity
    `pod_name`, which is unique. The counters of gateways are read from the gateways, or from the Prometheus at
    `samples_prometheus` if it is set.
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

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> OperatorSettings:
        """Return the settings, with defaults of absent and empty variables; raises `OperatorSettingsError`."""
        values: dict[str, Any] = {}
        problems: list[str] = []
        for variable, (name, read) in _VARIABLES.items():
            if text := environ.get(variable, "").strip():
                try:
                    values[name] = read(text)
                except ValueError as error:
                    seen, allowed = error.args
                    problems.append(f"{variable} is {seen!r}; allowed: {allowed}")
        if problems:
            raise OperatorSettingsError(problems)
        own = LogSettings()
        logs = LogSettings(values.pop("log_format", own.format), values.pop("log_level", own.level))
        return cls(**values, logging=logs)


def _matching(pattern: str, allowed: str) -> Callable[[str], str]:
    """Return a reader of texts; each reader raises `ValueError` with what was seen and what is allowed."""

    def read(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(text, allowed)
        return text

    return read


def _listed(pattern: str, allowed: str) -> Callable[[str], tuple[str, ...]]:
    """Return a reader of lists with commas between their parts of this pattern, each once and in order."""

    def read(text: str) -> tuple[str, ...]:
        parts = sorted({part.strip() for part in text.split(",")} - {""})
        wrong = [part for part in parts if re.fullmatch(pattern, part) is None]
        if wrong:
            raise ValueError(", ".join(wrong), allowed)
        return tuple(parts)

    return read


def _one_of(words: Sequence[str]) -> Callable[[str], str]:
    return _matching("|".join(map(re.escape, words)), ", ".join(words))


def _flag(text: str) -> bool:
    return _one_of(("true", "false"))(text) == "true"


def _user(text: str) -> int | None:
    """Return a user's number, which is not root's, or None for `cluster`."""
    number = _matching(r"cluster|[1-9][0-9]{0,9}", "a number from 1, or 'cluster'")(text)
    return None if number == "cluster" else int(number)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1024 <= int(text) <= 65535):
        raise ValueError(text, "a port from 1024 to 65535")
    return int(text)


def _signatures(text: str) -> Signatures:
    try:
        found = Signatures.model_validate_json(text)
    except ValidationError as error:
        seen = str(error.errors(include_url=False)[0]["msg"])
        raise ValueError(seen, "the chart's artifacts.signatures") from None
    if found.required and not (found.keys or found.certificates or found.identities):
        raise ValueError(text[:100], "keys, certificates or identities if a signature is required")
    return found


def _egress(text: str) -> Egress:
    try:
        return Egress.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        seen = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise ValueError(seen, "JSON such as the chart's networkPolicy.egress") from None


def _peers(text: str) -> tuple[V1NetworkPolicyPeer, ...]:
    try:
        return TypeAdapter(tuple[V1NetworkPolicyPeer, ...]).validate_json(text)
    except ValidationError as error:
        seen = str(error.errors(include_url=False)[0]["msg"])
        raise ValueError(seen, "peers such as the chart's networkPolicy.from") from None


_DOMAIN: Final = _matching(_SUBDOMAIN, "DNS labels with dots between them")
_IMAGE: Final = _matching(r"[^\s@]+(@sha256:[0-9a-f]{64})?", "an image's reference")
_PRIVATE_HOSTS: Final = _listed(r"[^\s@]+", "patterns of hosts or networks with commas between them")
_VARIABLES: Final[Mapping[str, tuple[str, Callable[[str], Any]]]] = {
    "SEGSERVE_NAMESPACES": ("namespaces", _listed(_LABEL, "names of namespaces with commas between them")),
    "SEGSERVE_CLUSTER_WIDE": ("cluster_wide", _flag),
    "SEGSERVE_SERVER_IMAGE": ("server_image", _IMAGE),
    "SEGSERVE_TRITON_VERSION": ("triton_version", _matching(r"\d\d\.\d\d", "a release such as '26.04'")),
    "SEGSERVE_ENVOY_IMAGE": ("envoy_image", _IMAGE),
    "SEGSERVE_OPERATOR_IMAGE": ("operator_image", _IMAGE),
    "SEGSERVE_IMAGE_PULL_POLICY": ("image_pull_policy", _one_of(get_args(PullPolicy))),
    "SEGSERVE_IMAGE_PULL_SECRETS": ("image_pull_secrets", _listed(_SUBDOMAIN, "names of Secrets")),
    "SEGSERVE_POD_USER": ("pod_user", _user),
    FORMAT_VARIABLE: ("log_format", _one_of(FORMATS)),
    LEVEL_VARIABLE: ("log_level", _one_of(LEVELS)),
    "SEGSERVE_SERVER_LOG_FORMAT": ("server_log_format", _one_of(FORMATS)),
    "SEGSERVE_LEASE_NAMESPACE": ("lease_namespace", _matching(_LABEL, "a DNS label of at most 63 characters")),
    "SEGSERVE_LEASE_NAME": ("lease_name", _DOMAIN),
    "SEGSERVE_CLUSTER_DOMAIN": ("cluster_domain", _DOMAIN),
    "SEGSERVE_ARTIFACT_BASE": (
        "artifact_base",
        _matching(r"[a-z][a-z0-9+.-]*://.*", "an address such as 'https://example.org/models'"),
    ),
    "SEGSERVE_ARTIFACT_SCHEMES": ("artifact_schemes", _listed("|".join(SCHEMES), ", ".join(SCHEMES))),
    "SEGSERVE_ARTIFACT_HOSTS": (
        "artifact_hosts",
        _listed(r"[^\s/@]+", "patterns of hosts and buckets with commas between them"),
    ),
    "SEGSERVE_ARTIFACT_PRIVATE_HOSTS": ("artifact_private_hosts", _PRIVATE_HOSTS),
    "SEGSERVE_ARTIFACT_SIGNATURES": ("artifact_signatures", _signatures),
    "SEGSERVE_ALLOW_HOST_PATH": ("allow_host_path", _flag),
    "SEGSERVE_GATE_HOSTS": ("gate_hosts", _PRIVATE_HOSTS),
    "SEGSERVE_NOTIFICATION_HOSTS": ("notification_hosts", _PRIVATE_HOSTS),
    "SEGSERVE_WORKER_SOCKET": ("worker_socket", _matching(r"/.+", "the path of a socket")),
    "SEGSERVE_WORKER_USER": ("worker_user", _user),
    "SEGSERVE_HEALTH_PORT": ("health_port", _port),
    "POD_NAME": ("pod_name", _DOMAIN),
    "SEGSERVE_SAMPLES_PROMETHEUS": (
        "samples_prometheus",
        _matching(r"https?://.+", "an address such as 'http://prometheus:9090'"),
    ),
    "SEGSERVE_EGRESS": ("egress", _egress),
    "SEGSERVE_METRICS_FROM": ("metrics_from", _peers),
}
"""Variables with the names of their settings and their readers."""
