"""Clients of the cluster that a kubeconfig names."""

from __future__ import annotations

import ssl
from pathlib import Path

from kubernetes.client.configuration import Configuration

from segserve_common.kube.client import KubeClient, client_of
from segserve_common.kube.config import KubeContext, read_context
from segserve_common.kube.kinds import CONFIG_MAPS


def context_of_file(kubeconfig: Path) -> KubeContext:
    """Return the current context."""
    context = read_context(kubeconfig)
    assert isinstance(context, KubeContext), f"{kubeconfig} names no current context"
    return context


def client_of_file(kubeconfig: Path, namespace: str = "default") -> KubeClient:
    """Return a client of the current context in a namespace, as one of several writers."""
    client = client_of(context_of_file(kubeconfig), namespace)
    client.field_manager = "test"
    return client


def write_config_map(client: KubeClient, namespace: str, name: str, binary: dict[str, str] | None) -> None:
    """Create a ConfigMap, or make it have this binary data."""
    manifest = {
        "apiVersion": CONFIG_MAPS.api_version,
        "kind": CONFIG_MAPS.name,
        "metadata": {"name": name},
        **({} if binary is None else {"binaryData": binary}),
    }
    client.apply(CONFIG_MAPS, manifest, namespace=namespace, force=True)


def ssl_context_of(configuration: Configuration) -> ssl.SSLContext:
    """Return what a client of our own needs to trust the server and be trusted by it."""
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return context
