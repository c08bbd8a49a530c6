"""The Prometheus operator takes the chart's monitors and rules, and dashboards have data, as how-to/install.md says."""

from __future__ import annotations

import gzip
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from bench.ports import free_port
from fakes.cluster import Cluster, Json
from fakes.cluster_models import model, pool, smallest
from fakes.installed_operator import installed
from fakes.neighbours import definitions, running
from fakes.prometheus import answers, ask, configured_prometheus, queries, unexpectedly_empty
from fakes.served_namespace import ServedNamespace
from fakes.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.neighbours, pytest.mark.timeout(900)]

MODULE = "github.com/prometheus-operator/prometheus-operator"
INTERVAL = "5s"
SLO = {"errorPercent": 1, "p95Milliseconds": 30_000}
STEPS = {"steps": [{"weight": 50, "minDuration": "20s"}]}
MONITORS = ("serviceMonitor", "podMonitor")
NAME = "watching"
PROMOTED_S = 300.0
JOBS = 4
"""One of the operator, one of gateways, two of servers."""
EMPTY: Final = {
    "nv_gpu": "there is no GPU",
    "offset 1d": "a day ago nothing was served",
    "ALERTS": "nothing is wrong",
    "segserve_drift": "no model is watched for drift",
    "segserve_notifications": "nor anybody to notify",
    "segserve_rollout_held": "no rollout is held",
    "expires_seconds": "the gateway has no certificate",
    "pending_overflow": "Envoy tells a counter once it has counted",
    'envoy_response_code_class="5"': "nothing failed, and Envoy tells a counter once it has counted",
}
"""Parts of queries that may be empty here, and why."""


@dataclass(frozen=True)
class Monitored:
    """What an operator serves, and the address of the Prometheus that watches it."""

    served: ServedNamespace
    url: str


@pytest.fixture
def monitored(cluster: Cluster, namespace: str, built: Callable[..., Path], tmp_path: Path) -> Iterator[Monitored]:
    program = built("prometheusoperator", f"{MODULE}/cmd/operator")
    # Debian's finds nothing in Kubernetes.
    own = built("prometheus", "github.com/prometheus/prometheus/cmd/prometheus")
    with ExitStack() as stack:
        files, kinds = "example/prometheus-operator-crd", "podmonitors,servicemonitors,prometheusrules"
        stack.enter_context(definitions(cluster, "prometheusoperator", MODULE, files, kinds=kinds))
        values = ["monitoring.prometheusRule.enabled=true", f"networkPolicy.from[0].ipBlock.cidr={cluster.host}/32"]
        for each in MONITORS:
            values += [f"monitoring.{each}.enabled=true", f"monitoring.{each}.interval={INTERVAL}"]
        operator = stack.enter_context(installed(cluster, [namespace], more=values))
        served = ServedNamespace(cluster, operator, namespace)
        served.apply(pool(), model())
        served.wait_ready("coins")
        options = (f"--namespaces={operator.namespace}", f"--web.listen-address=127.0.0.1:{free_port()}")
        variables = {"KUBECONFIG": str(cluster.kubeconfig)}
        stack.enter_context(running([program, *options], tmp_path / "operator.log", variables))
        config, rules = written(cluster, operator.namespace, (operator.namespace, namespace))
        yield Monitored(served, stack.enter_context(configured_prometheus(tmp_path, config, rules, own)))


def written(cluster: Cluster, namespace: str, watched: Sequence[str]) -> tuple[Json, dict[str, str]]:
    """Return what the Prometheus operator makes of all monitors and rules of a namespace, for a Prometheus outside."""
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
    rules = cluster.get(namespace, "configmap", f"prometheus-{NAME}-rulefiles-0")["data"]
    return found, rules


def test_monitors_and_rules_are_taken_and_dashboards_have_data(monitored: Monitored) -> None:
    served, url = monitored.served, monitored.url
    until(lambda: isinstance(ask(url, "vector(1)"), list), "Prometheus answers")
    with served.load():
        former = served.stable("coins")
        served.apply(model(postprocess=smallest(153), rollout=STEPS, slo=SLO))
        served.cluster.wait("the candidate is promoted", lambda: served.stable("coins") != former, PROMOTED_S)
        found: dict[str, Any] = {}

        def without_answer() -> list[str]:
            found.update(answers(url, queries()))
            return unexpectedly_empty(found, EMPTY)

        with suppress(AssertionError):  # the test says which queries have none
            until(lambda: not without_answer(), "every query has an answer", within_s=240)

    assert {query: answer for query, answer in found.items() if isinstance(answer, str)} == {}
    assert unexpectedly_empty(found, EMPTY) == []
    assert ask(url, "up == 0") == []
    seen = ask(url, "count by (job) (up)")
    assert isinstance(seen, list)
    assert len(seen) == JOBS - 1  # both of servers have one name
