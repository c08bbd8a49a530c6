"""The Prometheus operator beside an installed segserve, and what it tells a Prometheus, which runs on this machine."""

from __future__ import annotations

import gzip
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from bench.ports import free_port
from fakes.cluster import Cluster, Json
from fakes.installed_operator import installed
from fakes.neighbours import definitions, running
from fakes.served_namespace import ServedNamespace

MODULE: Final = "github.com/prometheus-operator/prometheus-operator"
MONITORS: Final = ("serviceMonitor", "podMonitor")
JOBS: Final = 4
"""One of the operator, one of gateways, two of servers."""
INTERVAL: Final = "3s"
NAME: Final = "watching"


@dataclass(frozen=True)
class Monitored:
    """A namespace, and a Prometheus that watches it: its program, its configuration and its files of rules."""

    served: ServedNamespace
    program: Path
    config: Json
    rules: dict[str, str]


@contextmanager
def monitored(cluster: Cluster, built: Callable[..., Path], folder: Path, *manifests: Json) -> Iterator[Monitored]:
    """Serve manifests, the coins' model among them, for the time of the block; their operator has monitors and rules.

    A Prometheus reads them every INTERVAL; `built` returns programs.
    """
    program = built("prometheusoperator", f"{MODULE}/cmd/operator")
    # Debian's finds nothing in Kubernetes.
    own = built("prometheus", "github.com/prometheus/prometheus/cmd/prometheus")
    values = ["monitoring.prometheusRule.enabled=true", f"networkPolicy.from[0].ipBlock.cidr={cluster.host}/32"]
    for each in MONITORS:
        values += [f"monitoring.{each}.enabled=true", f"monitoring.{each}.interval={INTERVAL}"]
    files, kinds = "example/prometheus-operator-crd", "podmonitors,servicemonitors,prometheusrules"
    with ExitStack() as stack:
        namespace = stack.enter_context(cluster.namespace("monitored"))
        stack.enter_context(definitions(cluster, "prometheusoperator", MODULE, files, kinds=kinds))
        operator = stack.enter_context(installed(cluster, [namespace], more=values))
        served = ServedNamespace(cluster, operator, namespace)
        served.apply(*manifests)
        served.wait_ready("coins")
        options = (f"--namespaces={operator.namespace}", f"--web.listen-address=127.0.0.1:{free_port()}")
        variables = {"KUBECONFIG": str(cluster.kubeconfig)}
        stack.enter_context(running([program, *options], folder / "operator.log", variables))
        yield Monitored(served, own, *_written(cluster, operator.namespace, (operator.namespace, namespace)))


def _written(cluster: Cluster, namespace: str, watched: Sequence[str]) -> tuple[Json, dict[str, str]]:
    """Return the configuration and the rules that the operator writes of all monitors and rules of a namespace."""
    cluster.kubectl("-n", namespace, "create", "serviceaccount", NAME)
    for each in watched:
        account = f"--serviceaccount={namespace}:{NAME}"
        cluster.kubectl("-n", each, "create", "rolebinding", NAME, "--clusterrole=view", account)
    (server,) = (each["cluster"] for each in yaml.safe_load(cluster.kubeconfig.read_text())["clusters"])
    access = {
        "host": server["server"],
        "tlsConfig": {"insecureSkipVerify": True},
        "bearerToken": cluster.kubectl("-n", namespace, "create", "token", NAME).strip(),
    }
    spec = {
        "replicas": 0,
        "scrapeInterval": INTERVAL,
        "evaluationInterval": INTERVAL,
        "apiserverConfig": access,
        **{f"{each}Selector": {} for each in (*MONITORS, "rule")},
    }
    manifest = {
        "apiVersion": "monitoring.coreos.com/v1", "kind": "Prometheus", "metadata": {"name": NAME}, "spec": spec
    }  # fmt: skip
    cluster.apply(namespace, manifest)

    def config() -> Json | None:
        secret = cluster.get(namespace, "secret", f"prometheus-{NAME}")
        packed = (secret or {}).get("data", {}).get("prometheus.yaml.gz")
        text = gzip.decompress(b64decode(packed)).decode() if packed else "{}"
        found: Json = yaml.safe_load(text.replace("$(SHARD)", "0"))  # as the reloader in its pod does
        return found if len(found.get("scrape_configs", ())) == JOBS else None

    found = cluster.wait("the operator has written a configuration of all monitors", config)
    rules: Any = cluster.get(namespace, "configmap", f"prometheus-{NAME}-rulefiles-0")["data"]
    return found, rules
