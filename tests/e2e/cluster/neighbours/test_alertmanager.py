"""Alerts fire on real causes, reach the receivers of the chart's example for Alertmanager, and end with their causes.

The Prometheus operator hands on the chart's rules, which wait for minutes to hours. Here their windows, and the times
for which something has to last, are shorter by one factor. Limits in seconds are as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final, TypeAlias

import pytest
import yaml

from charts.monitoring.rules import ALERTS
from fakes.callers import Load
from fakes.cluster import Cluster
from fakes.cluster_models import model, pool, smallest
from fakes.prometheus import alertmanager, alerts, ask, configured_prometheus
from fakes.prometheus_operator import monitored
from fakes.served_namespace import ServedNamespace
from fakes.terminal import Terminal
from fakes.waiting import until
from segserve_common.kube.names import COMPONENT_LABEL, SERVER

pytestmark = [pytest.mark.cluster, pytest.mark.neighbours, pytest.mark.needs("amtool"), pytest.mark.timeout(900)]

FACTOR: Final = 40
UNITS_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
RECEIVERS: Final = {"critical": "pagerduty", "warning": "opsgenie-tickets"}
PAUSED: Final = {"steps": [{"weight": 50, "pause": True}]}


def shortened(rules: str) -> str:
    """Return a file of rules with shorter times."""

    def shorter(text: str) -> str:
        return re.sub(r"\b(\d+)([smhd])\b", lambda found: f"{int(found[1]) * UNITS_MS[found[2]] // FACTOR}ms", text)

    groups = yaml.safe_load(rules)["groups"]
    for rule in (rule for group in groups for rule in group["rules"]):
        rule.update({key: shorter(rule[key]) for key in ("expr", "for") if key in rule})
    return yaml.safe_dump({"groups": groups})


@pytest.fixture(scope="module")
def alerting(
    cluster: Cluster, built: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServedNamespace, str]]:
    """A namespace with the coins' model, and the Alertmanager that is told of it."""
    folder = tmp_path_factory.mktemp("alerting")
    with ExitStack() as stack:
        url = stack.enter_context(alertmanager(folder))
        watched = stack.enter_context(monitored(cluster, built, folder, pool(), model()))
        told = {"alertmanagers": [{"static_configs": [{"targets": [url.removeprefix("http://")]}]}]}
        rules = {name: shortened(text) for name, text in watched.rules.items()}
        config = {**watched.config, "alerting": told}
        asked = stack.enter_context(configured_prometheus(folder, config, rules, watched.program))
        # Before its first look everything is absent.
        until(lambda: isinstance(seen := ask(asked, "segserve_is_leader == 1"), list) and seen, "Prometheus has looked")
        yield watched.served, url


@contextmanager
def its_operator_is_gone(served: ServedNamespace) -> Iterator[None]:
    served.operator.scale(0)
    yield
    served.operator.scale(1)


@contextmanager
def its_node_is_drained(served: ServedNamespace) -> Iterator[None]:
    node, servers = served.cluster.node.name, served.cluster.pods(served.name, f"{COMPONENT_LABEL}={SERVER}")
    served.cluster.kubectl("cordon", node)
    try:
        with Load(served.url(), pause_s=0.2, transports=("http", "http")) as load:
            served.delete("pod", *(pod["metadata"]["name"] for pod in servers))
            yield
            served.cluster.kubectl("uncordon", node)
            load.wait_for(served.stable("coins"))
    finally:
        served.cluster.kubectl("uncordon", node)


@contextmanager
def a_network_is_another_one(served: ServedNamespace) -> Iterator[None]:
    right = model("coins-instances")
    served.apply(model("coins-instances", artifact={**right["spec"]["artifact"], "sha256": "0" * 64}))
    yield
    served.apply(right)


@contextmanager
def a_quota_is_used_up(served: ServedNamespace) -> Iterator[None]:
    hard = {"count/deployments.apps": "0"}
    served.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": hard}})
    served.cluster.wait("it counts", lambda: served.get("resourcequota", "none").get("status", {}).get("used"))
    served.apply(model(postprocess=smallest(151), rollout=PAUSED))
    yield
    served.delete("resourcequota", "none")
    abort(served)


@contextmanager
def a_rollout_waits_for_a_person(served: ServedNamespace) -> Iterator[None]:
    served.apply(model(postprocess=smallest(152), rollout=PAUSED))
    with served.load():
        yield
        abort(served)


def abort(served: ServedNamespace) -> None:
    done = Terminal(served.cluster, served.name)("rollout", "abort", "coins")
    assert done.returncode == 0, done.stderr


Cause: TypeAlias = Callable[[ServedNamespace], AbstractContextManager[None]]
CAUSES: Final[Mapping[Cause, set[str]]] = {
    its_operator_is_gone: {"SegserveOperatorNotReconciling"},
    its_node_is_drained: {"SegserveGatewayErrors", "SegservePoolDegraded"},
    a_network_is_another_one: {"SegserveModelNotReady"},
    a_quota_is_used_up: {"SegserveEffectsFailing"},
    a_rollout_waits_for_a_person: {"SegserveRolloutHeld"},
}


@pytest.mark.parametrize("cause", CAUSES)
def test_alerts_reach_their_receivers_and_end_with_their_cause(
    alerting: tuple[ServedNamespace, str], cause: Cause
) -> None:
    served, url = alerting
    expected = {(each.name, RECEIVERS[each.severity]) for each in ALERTS if each.name in CAUSES[cause]}

    def told() -> set[tuple[str, str]]:
        """Return those of them that fire, each with its receiver."""
        active = [each for each in alerts(url) if each["status"]["state"] == "active"]
        found = {(each["labels"]["alertname"], to["name"]) for each in active for to in each["receivers"]}
        return {(name, receiver) for name, receiver in found if name in CAUSES[cause]}

    until(lambda: not told(), "nothing is wrong")
    with cause(served):
        until(lambda: told() == expected, f"{expected} fire")
    until(lambda: not told(), "they are over")
