"""Choice of the kubeconfig context: cluster, user and namespace."""

from __future__ import annotations

from dataclasses import replace

from segserve.platform import Cluster
from segserve_common.kube.config import (
    KubeConfigError,
    KubeContext,
    in_cluster_context,
    kubeconfig_files,
    read_context,
)
from segserve_platform.platforms.errors import no_kubeconfig


def context_of(cluster: Cluster) -> KubeContext:
    """Return the chosen context, with the chosen namespace if there is one; raises `NoPlatformError`."""
    try:
        context = _find_context(cluster)
    except KubeConfigError as error:
        raise no_kubeconfig(str(error)) from error
    return replace(context, namespace=cluster.namespace or context.namespace)


def _find_context(cluster: Cluster) -> KubeContext:
    files = kubeconfig_files(cluster.kubeconfig)
    if not files and cluster.context is None and (in_cluster := in_cluster_context()) is not None:
        return in_cluster
    if not files:
        raise KubeConfigError("there is no kubeconfig")
    names: list[str] = []
    for file in files:
        context = read_context(file, cluster.context)
        if isinstance(context, KubeContext):
            return context
        names += context
    if cluster.context is not None:
        contexts = ", ".join(sorted(names)) or "none"
        raise KubeConfigError(f"no context {cluster.context!r} in {', '.join(map(str, files))}; there are: {contexts}")
    raise KubeConfigError(f"{', '.join(map(str, files))} names no current context")
