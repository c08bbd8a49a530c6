"""Argo CD's controller and its server of repositories on this machine, beside the tests' cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench.ports import free_ports
from fakes.cluster import Cluster, Json
from fakes.neighbours import definitions, folder_of, running

MODULE: Final = "github.com/argoproj/argo-cd/v3"
API: Final = "argoproj.io/v1alpha1"
PLACE: Final = "https://kubernetes.default.svc"
"""The cluster itself, as applications name it."""
_CRDS: Final = ("manifests/crds/application-crd.yaml", "manifests/crds/appproject-crd.yaml")
_KINDS: Final = "applications.argoproj.io,appprojects.argoproj.io"


@contextmanager
def argocd(
    program: Path, redis: Path, cluster: Cluster, own: str, watched: str, config: Json, folder: Path
) -> Iterator[None]:
    """Run them for the time of the block: applications are in the namespace `own`, and what they make in `watched`."""
    shared, repositories, metrics, more = free_ports(4)
    variables = {"KUBECONFIG": str(cluster.kubeconfig), "ARGOCD_FAKE_IN_CLUSTER": "true", "ARGOCD_GPG_ENABLED": "false"}
    folders = ("HOME", "TMPDIR", "ARGOCD_TLS_DATA_PATH", "ARGOCD_SSH_DATA_PATH", "ARGOCD_PLUGINSOCKFILEPATH")
    variables |= dict.fromkeys(folders, str(folder)) | {"PATH": f"{folder}:{os.environ['PATH']}"}
    # Argo CD's image has this script beside the program; a module's files cannot be run.
    script = folder / "git-verify-wrapper.sh"
    script.write_bytes((folder_of("argocd", MODULE) / "hack" / script.name).read_bytes())
    script.chmod(0o700)
    server = [f"--port={repositories}", f"--metrics-port={metrics}"]
    controller = [f"--namespace={own}", f"--repo-server=127.0.0.1:{repositories}", f"--metrics-port={more}"]
    with ExitStack() as stack:
        stack.enter_context(definitions(cluster, "argocd", MODULE, *_CRDS, kinds=_KINDS))
        cluster.apply(own, *_settings(watched, config))
        stack.enter_context(running([redis, f"127.0.0.1:{shared}"], folder / "redis.log"))
        for name, options in {"repo-server": server, "application-controller": controller}.items():
            command = [program, *options, f"--redis=127.0.0.1:{shared}"]
            named = variables | {"ARGOCD_BINARY_NAME": f"argocd-{name}"}
            stack.enter_context(running(command, folder / f"{name}.log", named))
        yield


def _settings(watched: str, config: Json) -> list[Json]:
    """Return what Argo CD reads of itself: its ConfigMap, the one cluster that it has, and who may do what."""
    part = {"app.kubernetes.io/part-of": "argocd"}
    place = {"name": "here", "server": PLACE, "namespaces": watched, "config": "{}"}
    secret = {"apiVersion": "v1", "kind": "Secret"}
    everything = {"sourceRepos": ["*"], "destinations": [{"server": "*", "namespace": "*"}]}
    return [
        {**config, "metadata": {"name": "argocd-cm", "labels": part}},
        {**secret, "metadata": {"name": "argocd-secret", "labels": part}},
        {
            **secret,
            "metadata": {"name": "here", "labels": {"argocd.argoproj.io/secret-type": "cluster"}},
            "stringData": place,
        },
        {"apiVersion": API, "kind": "AppProject", "metadata": {"name": "default"}, "spec": everything},
    ]
