"""The operator as Helm installs it into a cluster, and what it says of itself."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from fakes.cluster import Cluster, Json
from fakes.waiting import HANG_S

CHART: Final = Path(__file__).parents[2] / "charts/segserve"
HELM: Final = Path(sys.prefix) / "bin/helm"
TRITON_VERSION: Final = "24.10"
"""Of the embedded Triton, which the test image runs."""
_PORT: Final = 8012
_WRITES: Final = frozenset({"apply", "create", "delete", "patch", "status"})
_RELEASE: Final = "segserve"


@dataclass(frozen=True, slots=True)
class InstalledOperator:
    """A release in `namespace`, which looks after the pools of some other namespaces."""

    cluster: Cluster
    namespace: str

    def pods(self) -> list[Json]:
        """Return its pods, also those that end."""
        found: list[Json] = self.cluster.get(self.namespace, "pods", labels="app.kubernetes.io/component=operator")
        return found

    def scale(self, replicas: int) -> None:
        """Run so many of it; returns once they are ready, or gone."""
        self.cluster.kubectl("-n", self.namespace, "scale", f"deployment/{_RELEASE}", f"--replicas={replicas}")
        self.cluster.wait(
            f"{replicas} operators", lambda: len(self.pods()) == replicas and all(map(_ready, self.pods()))
        )

    def restart(self) -> None:
        """End all of it at once, and wait until a new one is ready."""
        former = {pod["metadata"]["uid"] for pod in self.pods()}
        self.cluster.kubectl("-n", self.namespace, "delete", "pods", "--all", "--grace-period=0", "--force")
        self.cluster.wait(
            "a new operator", lambda: any(_ready(pod) for pod in self.pods() if pod["metadata"]["uid"] not in former)
        )

    def writes(self) -> Counter[tuple[str, str]]:
        """Return how often it wrote, by verb and kind, since it started; the renewal of its Lease is left out."""
        found: Counter[tuple[str, str]] = Counter()
        for sample in self._metric("segserve_api_requests"):
            verb, kind = sample.labels["verb"], sample.labels["kind"]
            if verb in _WRITES and kind != "Lease":
                found[verb, kind] += int(sample.value)
        return found

    def passes(self) -> int:
        """Return how many passes over pools it has made since it started; at rest each pool has one in five minutes."""
        return sum(int(sample.value) for sample in self._metric("segserve_reconcile_passes"))

    def audit_age_s(self) -> float:
        """Return the time since it last compared all that it knows with the cluster."""
        (sample,) = self._metric("segserve_watch_age_seconds")
        return sample.value

    def _metric(self, name: str) -> list[Sample]:
        """Return the samples of a counter or gauge."""
        (pod,) = self.pods()
        with urllib.request.urlopen(f"http://{pod['status']['podIP']}:{_PORT}/metrics", timeout=HANG_S) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            (found,) = (family for family in families if family.name == name)
        return [sample for sample in found.samples if sample.name in (name, f"{name}_total")]


@contextmanager
def installed(
    cluster: Cluster, watched: Sequence[str], replicas: int = 1, more: Sequence[str] = ()
) -> Iterator[InstalledOperator]:
    """Install the chart for the time of the block, with `more` values; it works in the namespaces `watched` alone."""
    with cluster.namespace("operator") as namespace:
        values = [
            f"watchNamespaces={{{','.join(watched)}}}",
            "crds.enabled=false",  # the cluster has them already, and other operators use them
            f"operator.replicas={replicas}",
            "operator.resources.requests.cpu=10m",
            "operator.resources.requests.memory=64Mi",
            *image_values("operator", cluster.images.operator),
            *image_values("server", cluster.images.server),
            *image_values("envoy", cluster.images.envoy),
            *more,
        ]
        version = ("--set-string", f"images.server.tritonVersion={TRITON_VERSION}")
        waiting = ("--wait", f"--timeout={HANG_S:g}s")
        _helm(cluster, namespace, "install", _RELEASE, str(CHART), *waiting, *version, *set_options(values))
        try:
            yield InstalledOperator(cluster, namespace)
        finally:
            _helm(cluster, namespace, "uninstall", _RELEASE)


def set_options(values: Sequence[str]) -> list[str]:
    """Return Helm's options for values such as `operator.replicas=1`."""
    return [word for value in values for word in ("--set", value)]


def image_values(part: str, reference: str) -> tuple[str, str]:
    """Return the chart's values for the image of a part."""
    repository, _, tag = reference.rpartition(":")
    return f"images.{part}.repository={repository}", f"images.{part}.tag={tag}"


def _helm(cluster: Cluster, namespace: str, *arguments: str) -> None:
    command = [str(HELM), "--kubeconfig", str(cluster.kubeconfig), "--namespace", namespace, *arguments]
    with tempfile.TemporaryDirectory(prefix="segserve-helm-") as home:  # where it keeps its caches
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={"HOME": home, "PATH": "/usr/bin:/bin"}
        )
    if done.returncode:
        raise AssertionError(f"helm {arguments[0]}: {done.stderr.strip()}\n{cluster.story(namespace)}")


def _ready(pod: Json) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return "deletionTimestamp" not in pod["metadata"] and any(
        said["type"] == "Ready" and said["status"] == "True" for said in conditions
    )
