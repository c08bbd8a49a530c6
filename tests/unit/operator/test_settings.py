"""What the operator reads of its environment."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from kubernetes.aio.client import V1NetworkPolicyPeer

import segserve_operator
from segserve_builder.sources.access import Signatures
from segserve_common.logs import LogSettings
from segserve_operator.adapters.kube.objects.egress import Egress
from segserve_operator.settings import OperatorSettings, OperatorSettingsError

DIGEST = f"registry.example/segserve/server@sha256:{'0' * 64}"
EVERYTHING = {
    "SEGSERVE_NAMESPACES": "vision, lab,,vision",
    "SEGSERVE_CLUSTER_WIDE": "true",
    "SEGSERVE_SERVER_IMAGE": DIGEST,
    "SEGSERVE_TRITON_VERSION": "26.10",
    "SEGSERVE_ENVOY_IMAGE": "registry.example:5000/envoy:distroless-v1.40.1",
    "SEGSERVE_OPERATOR_IMAGE": "segserve-operator:2",
    "SEGSERVE_IMAGE_PULL_POLICY": "Always",
    "SEGSERVE_IMAGE_PULL_SECRETS": "registry,mirror.example",
    "SEGSERVE_POD_USER": "cluster",
    "SEGSERVE_LOG_FORMAT": "json",
    "SEGSERVE_LOG_LEVEL": "warning",
    "SEGSERVE_SERVER_LOG_FORMAT": "json",
    "SEGSERVE_LEASE_NAMESPACE": "segserve-system",
    "SEGSERVE_LEASE_NAME": "one",
    "SEGSERVE_CLUSTER_DOMAIN": "cluster.example",
    "SEGSERVE_ARTIFACT_BASE": "https://models.example/all",
    "SEGSERVE_ARTIFACT_SCHEMES": "s3, https",
    "SEGSERVE_ARTIFACT_HOSTS": "models-*",
    "SEGSERVE_ARTIFACT_PRIVATE_HOSTS": "10.0.0.0/8,*.svc",
    "SEGSERVE_ARTIFACT_SIGNATURES": '{"required": true, "keys": ["PEM"], "notBefore": null}',
    "SEGSERVE_ALLOW_HOST_PATH": "true",
    "SEGSERVE_GATE_HOSTS": "prometheus.monitoring",
    "SEGSERVE_NOTIFICATION_HOSTS": "hooks.example.com",
    "SEGSERVE_WORKER_SOCKET": "/run/segserve/worker.socket",
    "SEGSERVE_WORKER_USER": "1001",
    "SEGSERVE_HEALTH_PORT": "9000",
    "POD_NAME": "segserve-6d4cf56db6-abcde",
    "SEGSERVE_SAMPLES_PROMETHEUS": "https://prometheus.example:9090",
    "SEGSERVE_METRICS_FROM": '[{"namespaceSelector": {"matchLabels": {"team": "sre"}}}]',
    "SEGSERVE_EGRESS": '{"apiServerPorts": [8443], "servers": [{}]}',
}
OF_THE_CLUSTER = {"operator_namespace_labels", "operator_pod_labels"}
"""Settings that no variable has."""


def test_an_empty_environment_gives_the_defaults() -> None:
    assert OperatorSettings.from_environment({}) == OperatorSettings()
    assert OperatorSettings.from_environment(dict.fromkeys(EVERYTHING, "")) == OperatorSettings()


def test_every_variable_is_taken_over() -> None:
    settings = OperatorSettings.from_environment(EVERYTHING)
    assert settings == OperatorSettings(
        namespaces=("lab", "vision"),
        cluster_wide=True,
        server_image=DIGEST,
        triton_version="26.10",
        envoy_image="registry.example:5000/envoy:distroless-v1.40.1",
        operator_image="segserve-operator:2",
        image_pull_policy="Always",
        image_pull_secrets=("mirror.example", "registry"),
        pod_user=None,
        logging=LogSettings("json", "warning"),
        server_log_format="json",
        lease_namespace="segserve-system",
        lease_name="one",
        cluster_domain="cluster.example",
        artifact_base="https://models.example/all",
        artifact_schemes=("https", "s3"),
        artifact_hosts=("models-*",),
        artifact_private_hosts=("*.svc", "10.0.0.0/8"),
        artifact_signatures=Signatures(required=True, keys=("PEM",)),
        allow_host_path=True,
        gate_hosts=("prometheus.monitoring",),
        notification_hosts=("hooks.example.com",),
        worker_socket="/run/segserve/worker.socket",
        worker_user=1001,
        health_port=9000,
        pod_name="segserve-6d4cf56db6-abcde",
        samples_prometheus="https://prometheus.example:9090",
        metrics_from=(V1NetworkPolicyPeer.model_validate({"namespaceSelector": {"matchLabels": {"team": "sre"}}}),),
        egress=Egress.model_validate({"apiServerPorts": [8443], "servers": [{}]}),
    )
    default = OperatorSettings()
    unchanged = {
        field.name for field in dataclasses.fields(OperatorSettings) if _of(settings, field) == _of(default, field)
    }
    assert unchanged == OF_THE_CLUSTER


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("SEGSERVE_NAMESPACES", "vision,La/b"),
        ("SEGSERVE_CLUSTER_WIDE", "yes"),
        ("SEGSERVE_SERVER_IMAGE", "two words"),
        ("SEGSERVE_SERVER_IMAGE", "server@sha256:short"),
        ("SEGSERVE_TRITON_VERSION", "2.51.0"),
        ("SEGSERVE_IMAGE_PULL_POLICY", "always"),
        ("SEGSERVE_IMAGE_PULL_SECRETS", "a/b"),
        ("SEGSERVE_POD_USER", "0"),
        ("SEGSERVE_POD_USER", "root"),
        ("SEGSERVE_LOG_FORMAT", "yaml"),
        ("SEGSERVE_LOG_LEVEL", "INFO"),
        ("SEGSERVE_SERVER_LOG_FORMAT", "logfmt"),
        ("SEGSERVE_LEASE_NAMESPACE", "a.b"),
        ("SEGSERVE_CLUSTER_DOMAIN", "-"),
        ("SEGSERVE_ARTIFACT_BASE", "/models"),
        ("SEGSERVE_ARTIFACT_SCHEMES", "s3,gopher"),
        ("SEGSERVE_ARTIFACT_HOSTS", "https://models.example"),
        ("SEGSERVE_ARTIFACT_PRIVATE_HOSTS", "a b"),
        ("SEGSERVE_ARTIFACT_SIGNATURES", '{"required": true}'),
        ("SEGSERVE_ARTIFACT_SIGNATURES", '{"required": "perhaps"}'),
        ("SEGSERVE_ALLOW_HOST_PATH", "perhaps"),
        ("SEGSERVE_GATE_HOSTS", "a b"),
        ("SEGSERVE_NOTIFICATION_HOSTS", "user@host"),
        ("SEGSERVE_HEALTH_PORT", "80"),
        ("SEGSERVE_SAMPLES_PROMETHEUS", "prometheus:9090"),
        ("SEGSERVE_HEALTH_PORT", "٨٠٨٠"),
        ("SEGSERVE_HEALTH_PORT", "65536"),
        ("SEGSERVE_METRICS_FROM", '[{"podselector": {}}]'),
        ("SEGSERVE_EGRESS", "{"),
        ("SEGSERVE_EGRESS", '{"servers": [{"too": []}]}'),
    ],
)
def test_what_cannot_be_is_refused_with_what_was_seen_and_what_is_allowed(variable: str, text: str) -> None:
    with pytest.raises(OperatorSettingsError) as caught:
        OperatorSettings.from_environment({variable: text})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{variable} is '")
    assert "; allowed: " in problem


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(OperatorSettingsError) as caught:
        OperatorSettings.from_environment({"SEGSERVE_HEALTH_PORT": "x", "SEGSERVE_IMAGE_PULL_POLICY": "x"})
    assert len(caught.value.problems) == 2


def test_the_environment_is_read_by_programs_and_given_to_settings() -> None:
    """The local platform is started by hand and has its own; the sidecar of a gateway is a program of its own."""
    source = Path(segserve_operator.__file__).parent
    readers = {path.relative_to(source).as_posix() for path in source.rglob("*.py") if "os.environ" in path.read_text()}
    of_the_cluster = {path for path in readers if not path.startswith(("adapters/local/", "local_platform/"))}
    assert of_the_cluster <= {"main.py", "gateway_sync/__main__.py", "adapters/outbound/__main__.py"}


def _of(settings: OperatorSettings, field: dataclasses.Field[object]) -> object:
    return getattr(settings, field.name)
